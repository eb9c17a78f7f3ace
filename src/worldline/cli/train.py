"""`worldline train RECIPE`: train a model into a run folder."""

from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
import tyro

from worldline import builtin
from worldline.cli.console import options_of, show
from worldline.cli.recipe_options import Recipe, parse_recipe, refuse_idle
from worldline.families.config import TrainConfig, read_config
from worldline.identity import Part
from worldline.planning.plan import refuse_too_little
from worldline.progress import Progress, say
from worldline.ranks import Ranks
from worldline.recipes.all import RECIPES
from worldline.rundir import RunDir
from worldline.training.loop import TrainResult, train

EXAMPLES = """Train a model by a recipe; every field of the recipe can be overridden.

Examples:
  worldline train tokenizer_tiny --out runs/tokenizer
  worldline train compression_tiny --tokenizer runs/tokenizer --out runs/world
  worldline train compression_tiny --data.path MY_ROBOT --data.val-path None --data.train-episodes :-10 \\
      --data.val-episodes -10: --tokenizer runs/tokenizer
  worldline train --resume runs/world
  worldline train --resume runs/world --steps 9000 --data.path NEW_PLACE
  torchrun --nproc-per-node 8 --no-python worldline train compression_revontuli --data.path train_v2.0 \\
      --data.val-path val_v2.0
"""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One training run."""

    config: Recipe
    out: Path | None = None
    """Run folder; a new one below `runs/` if not given."""
    json: bool = False
    """Print one JSON object on stdout and nothing else."""


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
class Resume:
    """A run to go on with. It needs no recipe: the run folder holds the whole configuration."""

    run: tyro.conf.Positional[Path]
    steps: int | None = None
    """Another length of the run, for example to go on with a finished one. Schedules count to the new last step."""
    epochs: float | None = None
    """The same, in passes over the training clips."""
    data: Moved = field(default_factory=Moved)
    tokenizer: Path | None = None
    """New place of the tokenizer. As of all that has moved, it must still be the same one."""
    weights: Path | None = None
    """New place of the pretrained backbone."""
    text: Path | None = None
    """New place of the encoded prompt."""
    allow_different: tuple[Part, ...] = ()
    """What may be another one, on purpose, than the run was begun with."""
    max_minutes: float | None = None
    device: str | None = None
    """As before if not given; so are workers."""
    workers: int | None = None
    json: bool = False


def parse(arguments: list[str]) -> Job | Resume:
    if arguments[:1] == ["--resume"]:
        return tyro.cli(Resume, prog="worldline train --resume", args=arguments[1:])
    name, job = parse_recipe(Job, "train", EXAMPLES, arguments)
    assert name is not None, "without a recipe the parser ends the program"
    refuse_idle(job.config, RECIPES[name]())
    return replace(job, out=job.out or Path("runs") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}")


def main(arguments: list[str]) -> None:
    """Parse and train."""
    job = parse(arguments)
    if isinstance(job, Resume):
        _resume(job)
    else:
        assert job.out is not None, "parse names a folder"
        _train(_resolved(job.config), job.out, resume=False, as_json=job.json)


def _resume(job: Resume) -> None:
    found = read_config(RunDir(job.run))
    data = {name: getattr(job.data, name) for name in ("path", "val_path", "cache")}
    given = {name: getattr(job, name) for name in ("tokenizer", "weights", "text", "device", "workers")}
    if job.weights and not job.tokenizer and found.tokenizer == found.weights:
        given["tokenizer"] = job.weights  # one folder holds both
    if job.steps is not None or job.epochs is not None:
        given |= {"steps": job.steps or 0, "epochs": job.epochs or 0.0}
    with options_of(TrainConfig):
        config = replace(found, data=replace(found.data, **_given(data)), **_given(given))
        config = replace(config, max_minutes=job.max_minutes, allow_different=job.allow_different)
    _train(config, job.run, resume=True, as_json=job.json)


def _given(options: dict[str, Any]) -> dict[str, Any]:
    """Those that are not None, names of built-ins replaced by their paths."""
    there = {name: value for name, value in options.items() if value is not None}
    named = {"path", "val_path", "tokenizer", "weights"}
    return {name: builtin.resolve_all(value) if name in named else value for name, value in there.items()}


def _resolved(config: TrainConfig) -> TrainConfig:
    """Replace names of built-ins (twin-mini, tokenizer-tiny) by their paths."""
    data = config.data
    val = builtin.resolve_all(data.val_path) if data.val_path else None
    return replace(
        config,
        data=replace(data, path=builtin.resolve_all(data.path), val_path=val),
        tokenizer=builtin.resolve(config.tokenizer) if config.tokenizer else config.weights,
        init_from=builtin.resolve(config.init_from) if config.init_from else None,
    )


def _train(config: TrainConfig, run: Path, *, resume: bool, as_json: bool) -> None:
    with Ranks.start(config.device) as ranks:
        run = ranks.agreed(run)  # the default name holds the time, and processes start at different seconds
        if ranks.writes:
            say(f"run folder: {run}")
        _check_memory(config, ranks)
        progress = Progress()
        try:
            result = train(config, run, resume=resume, ranks=ranks, report=progress)
        finally:
            progress.close()
    if ranks.writes:
        _show(result, as_json=as_json)


def _check_memory(config: TrainConfig, ranks: Ranks) -> None:
    """Refuse what certainly does not fit the GPU, before anything is made. Raises `UsageError`."""
    device = ranks.device(config.device)
    with ranks.first():
        if config.check_memory and ranks.writes and device.type == "cuda":
            refuse_too_little(config, free=torch.cuda.mem_get_info(device)[0], gpus=ranks.world_size)


def _show(result: TrainResult, *, as_json: bool) -> None:
    figures = {name: round(value, 5) for name, value in result.figures.items()}
    done = {
        "run": str(result.run),
        "step": result.step,
        "total_steps": result.total_steps,
        "seconds": round(result.seconds, 1),
    }
    if result.left_out:
        say(f"{len(result.left_out)} listed episodes were left out, for example: {result.left_out[0]}")
    if result.stopped:
        say(f"stopped by SIGTERM, with a checkpoint; to go on: worldline train --resume {result.run}")
    lines = [f"{result.run}: step {result.step} of {result.total_steps} after {result.seconds:.0f} s"]
    lines += [f"  {name:24} {value:.5g}" for name, value in figures.items()]
    done["stopped"] = result.stopped
    show({**done, "left_out": len(result.left_out), "figures": figures}, text="\n".join(lines), as_json=as_json)
