"""The clips of an evaluation, in the shape and units of the checkpoint's training data."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from worldline import builtin
from worldline.checks import Natural, changed
from worldline.contract import Contract, FramePattern
from worldline.data.clips import Clips, DataConfig, check_episodes, open_clips, open_split
from worldline.data.splits import content_of
from worldline.evaluation.result import Split
from worldline.families.card import Identity, Part, describe_model, refuse_another
from worldline.files import read_json
from worldline.formats.open import has_choices
from worldline.formats.source import Source
from worldline.formats.states import implausible, unlike, warn
from worldline.rundir import from_json, model_folder, of_run
from worldline.schema import UsageError

On = Literal["held-out", "training-data"]
"""Data of an evaluation: recordings that the run was not trained on, or, if asked for, those that it was trained on."""


@dataclass(frozen=True, kw_only=True)
class DataChoice:
    """Which data are used, and how they are read if not as in training."""

    data: Path | tuple[Path, ...] | None = None
    """Data set to use, or several of one layout; if not given, the run's own validation data (for built-ins
    twin-mini-val, of those that are driven twin-table)."""
    episodes: str | None = None
    """Python slices and numbers of its episodes, for example `:-10` or `:40,45,50:60`."""
    exclude_episodes: tuple[Natural, ...] = ()
    """Episodes to leave out, by the data set's own numbers; the places of all others stay the same."""
    camera: str | None = None
    """LeRobot camera key, or its last part; the one of the training data if not given."""
    state_keys: tuple[str, ...] = ()
    """Columns of LeRobot's tables that make up the states, in this order; as in training if not given."""
    allow_missing: bool = False
    """Leave out listed episodes that are missing or damaged."""


OWN = DataChoice()


def split_of(
    run: Path,
    contract: Contract,
    models: Sequence[Path],
    choice: DataChoice = OWN,
    *,
    on: On = "held-out",
    allow_different: Collection[Part] = (),
) -> Split:
    """Whether models were trained on the data of their evaluation. Reads states only, and no weights.

    Args:
        models: run or model folders: the evaluated world, and one it is compared with.
        allow_different: `validation`, where the run's own data may have changed since it was trained.

    Raises:
        UsageError: as `held_out`; the run's own data have changed; or it is not `on` such data.
    """
    _, source, chosen = _opened(run, contract, choice, on)
    own = on == "held-out" and not changed(DataChoice, choice)
    if own and not builtin.is_builtin(run) and (made := describe_model(model_folder(run)).identity).validation:
        found = Identity(validation=content_of(source, chosen))
        refuse_another(made, found, what=str(run), places={"validation": source.path}, allowed=allow_different)
    check_episodes(source, chosen, size=contract.image_size)
    warn_of_strange_states(source, chosen, models[0])
    known = [one for model in models if (one := describe_model(model_folder(model)).trained_on) is not None]
    shared = list(dict.fromkeys(episode.name for one in known for episode in one.among(source, chosen)))
    if on == "training-data":
        if not shared and len(known) == len(models):
            raise UsageError(f"{source.path}: none of these episodes was trained on; leave out --on training-data")
        return "training data"
    if shared:
        names = ", ".join(shared[:4]) + (", ..." if len(shared) > 4 else "")
        raise UsageError(
            f"{source.path}: {len(shared)} of {len(chosen)} episodes are recordings that the run was trained on "
            f"({names}), here or in a copy; give others (--data, --episodes), or ask for it: --on training-data"
        )
    return "held out" if len(known) == len(models) else "not checked"


def warn_of_strange_states(source: Source, episodes: Sequence[int], model: Path) -> None:
    """Report states unlike those of the model's training or, if these are unknown, implausible states."""
    known = describe_model(model_folder(model)).statistics
    warn(implausible(source, episodes) if known is None else unlike(source, episodes, known))


def held_out(
    run: Path,
    contract: Contract,
    choice: DataChoice = OWN,
    *,
    pattern: FramePattern | None = None,
    stride: int | None = None,
    on: On = "held-out",
) -> Clips:
    """Windows over the validation data of a run, or over other data of the same contract (see `split_of`).

    Args:
        pattern: which frames of a window are wanted; None wants all of the contract's.
        stride: frames between the starts of clips; None makes them disjoint.
        on: `training-data` takes the run's training episodes for its validation episodes.

    Raises:
        UsageError: the data are not there, or have other states or another rate than the model was trained with.
    """
    config, source, _ = _opened(run, contract, choice, on)
    pattern = pattern or FramePattern(window=contract.pattern.window)
    # Encoded data have no other windows than those every `source.stride` frames.
    disjoint = -(-pattern.window // source.stride) * source.stride
    return open_clips(replace(config, pattern=pattern, window_stride=stride or disjoint), "val")


def episodes_of(
    run: Path, contract: Contract, choice: DataChoice, *, on: On = "held-out"
) -> tuple[Source, Sequence[int]]:
    """The data of an evaluation, and which of its episodes are taken, however long they are."""
    return _opened(run, contract, choice, on)[1:]


def _opened(run: Path, contract: Contract, choice: DataChoice, on: On) -> tuple[DataConfig, Source, Sequence[int]]:
    """How the data of an evaluation are configured, and its episodes. Refuses other states and another rate."""
    config = _config(run, contract, choice, on)
    if isinstance(config.path, tuple):  # the kinds of their states may be guessed otherwise: the model's are known
        for root in config.path:
            _refuse_another_robot(config.open(root), contract)
        config = replace(config, state_kinds=dict(zip(contract.state_names, contract.state_kinds, strict=True)))
    source, chosen = open_split(config, "val")
    _refuse_another_robot(source, contract)
    return config, source, chosen


def _refuse_another_robot(source: Source, contract: Contract) -> None:
    """Raise `UsageError` where states or rate are not those that a model was trained with."""
    path, names, expected = source.path, source.layout.names, contract.state_names
    if len(names) != len(expected):
        raise UsageError(f"{path} has {len(names)}-dimensional states, but the model was trained with {len(expected)}")
    for place, (name, known) in enumerate(zip(names, expected, strict=True)):
        if name != known:
            raise UsageError(f"{path}: state {place} is {name!r}, the model was trained with {known!r}")
    if abs(source.fps - contract.fps) > 1e-3:
        raise UsageError(f"{path} runs at {source.fps} fps, but the model was trained at {contract.fps}")


def _config(run: Path, contract: Contract, choice: DataChoice, on: On) -> DataConfig:
    """The configuration of the run's data, whose validation clips are those of the evaluation."""
    data = builtin.held_out(run) if builtin.is_builtin(run) else None
    if choice.data is not None:
        data = builtin.resolve_all(choice.data)
    path = of_run(run, "config.json")
    if path is None and data is None:
        raise UsageError(f"{run} has no config.json that names its data; give the data to evaluate it on (--data DIR)")
    config = DataConfig(path=Path())
    if path is not None:
        config = builtin.located(from_json(DataConfig, read_json(path).get("data"), path), path.parent)
    if data is not None:
        config = replace(config, path=data, val_path=None, val_episodes=":", exclude_episodes=())
    elif on == "training-data":
        config = replace(config, val_path=None, val_episodes=config.train_episodes)
    elif config.val_path is not None:
        config = replace(config, path=config.val_path, val_path=None, exclude_episodes=())
    if data is None and isinstance(config.path, Path) and not config.path.exists():
        raise UsageError(
            f"{run} was trained beside the data in {config.path}, which are not there now; give their new place "
            "(--data DIR)"
        )
    how = contract if has_choices(config.path) else DataConfig(path=config.path)  # other formats have nothing to choose
    return replace(
        config,
        image_size=contract.image_size,
        cache=None,
        cache_size=None,
        val_episodes=config.val_episodes if choice.episodes is None else choice.episodes,
        exclude_episodes=(*config.exclude_episodes, *choice.exclude_episodes),
        camera=choice.camera or how.camera,
        conditioning="state" if choice.state_keys else how.conditioning,
        state_keys=choice.state_keys or how.state_keys,
        allow_missing=choice.allow_missing or config.allow_missing,
    )


def foreign_states(clips: Clips, chosen: list[int]) -> Float32[Tensor, "n t s"] | None:
    """For each chosen clip the states of another one, half the set away, or None where there is no other."""
    if len(clips) < 2:
        return None
    pool = chosen if len(chosen) > 1 else [(chosen[0] + i) % len(clips) for i in range(len(clips))]
    partners = [pool[(i + len(pool) // 2) % len(pool)] for i in range(len(chosen))]
    return states_of(clips, partners)


def states_of(clips: Clips, chosen: Sequence[int]) -> Float32[Tensor, "n t s"]:
    """The states of some clips, without their frames."""
    places = clips.windows[list(chosen)].tolist()
    rows = [clips.source.read_states(episode, start, start + clips.pattern.window) for episode, start in places]
    return torch.from_numpy(np.stack(rows))
