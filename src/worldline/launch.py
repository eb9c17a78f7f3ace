"""Start or resume a training: names of built-ins become paths, and needed memory is compared with free memory."""

from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from worldline import builtin
from worldline.families.config import TrainConfig, read_config
from worldline.identity import Part
from worldline.planning.plan import refuse_too_little
from worldline.progress import Progress, say
from worldline.ranks import Ranks
from worldline.rundir import RunDir
from worldline.training.loop import TrainResult, train


@dataclass(frozen=True, kw_only=True)
class Moved:
    """New places of the same data."""

    path: Path | tuple[Path, ...] | None = None
    """New place of the training data."""
    val_path: Path | tuple[Path, ...] | None = None
    """New place of the validation data."""
    cache: Path | None = None
    """Another folder for decoded frames, tokens and latents; filled again where it has none."""


@dataclass(frozen=True, kw_only=True)
class ResumeOptions:
    """Fields that a resumed run may change."""

    steps: int | None = None
    """Another length of the run, for example to continue a finished one. Schedules end at the new last step."""
    epochs: float | None = None
    """The same, in passes over the training clips."""
    data: Moved = field(default_factory=Moved)
    tokenizer: Path | None = None
    """New place of the tokenizer. Everything that has moved must still be the same."""
    weights: Path | None = None
    """New place of the pretrained backbone."""
    text: Path | None = None
    """New place of the encoded prompt."""
    allow_different: tuple[Part, ...] = ()
    """Parts that may differ on purpose from those the run started with."""
    max_minutes: float | None = None
    device: str | None = None
    """As before if not given; so are workers."""
    workers: int | None = None


def new_run(name: str) -> Path:
    """A run folder that is not there yet."""
    return Path("runs") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"


def start(config: TrainConfig, run: Path) -> TrainResult:
    """Train a model into a run folder. Raises what `train` raises."""
    data = config.data
    val = builtin.resolve_all(data.val_path) if data.val_path else None
    config = replace(
        config,
        data=replace(data, path=builtin.resolve_all(data.path), val_path=val),
        tokenizer=builtin.resolve(config.tokenizer) if config.tokenizer else config.weights,
        init_from=builtin.resolve(config.init_from) if config.init_from else None,
    )
    return _train(config, run, resume=False)


def go_on(run: Path, options: ResumeOptions) -> TrainResult:
    """Go on with a run from its latest checkpoint. Raises what `train` raises."""
    found, moved = read_config(RunDir(run)), options.data
    given = {name: getattr(options, name) for name in ("tokenizer", "weights", "text", "device", "workers")}
    if options.weights and not options.tokenizer and found.tokenizer == found.weights:
        given["tokenizer"] = options.weights  # one folder holds both
    if options.steps is not None or options.epochs is not None:
        given |= {"steps": options.steps or 0, "epochs": options.epochs or 0.0}
    data = replace(found.data, **_given(path=moved.path, val_path=moved.val_path, cache=moved.cache))
    config = replace(found, data=data, **_given(**given))
    config = replace(config, max_minutes=options.max_minutes, allow_different=options.allow_different)
    return _train(config, run, resume=True)


def _given(**options: Any) -> dict[str, Any]:
    """Those that are not None, names of built-ins replaced by their paths."""
    there = {name: value for name, value in options.items() if value is not None}
    named = {"path", "val_path", "tokenizer", "weights"}
    return {name: builtin.resolve_all(value) if name in named else value for name, value in there.items()}


def _train(config: TrainConfig, run: Path, *, resume: bool) -> TrainResult:
    with Ranks.start(config.device) as ranks, Progress() as progress:
        run = ranks.agreed(run)  # the default name holds the time, and processes start at different seconds
        say(f"run folder: {run}")
        device = ranks.device(config.device)
        with ranks.first():
            if config.check_memory and ranks.writes and device.type == "cuda":
                refuse_too_little(config, free=torch.cuda.mem_get_info(device)[0], gpus=ranks.world_size)
        return train(config, run, resume=resume, ranks=ranks, report=progress)
