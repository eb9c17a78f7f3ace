"""Which clips a run is judged on: held-out windows in the shape and units its checkpoint was trained with."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from worldline.data.clips import Clips, DataConfig, open_clips
from worldline.data.windows import FramePattern
from worldline.files import read_json
from worldline.rundir import RunDir, from_json
from worldline.schema import UsageError


def held_out(
    run: Path,
    contract: dict[str, Any],
    *,
    window: int,
    stride: int | None = None,
    pattern: FramePattern | None = None,
    data: Path | None = None,
    episodes: str | None = None,
) -> Clips:
    """Windows over the validation data of a run, or over other data of the same contract.

    Args:
        contract: the `contract` entry of the run's model description.
        window: frames per clip.
        stride: frames between the starts of clips; None makes them disjoint.
        pattern: which frames of a window are wanted; None wants all.
        data: another data set than the run's; `episodes` is then a slice of that one.

    Raises:
        UsageError: the data have other states or another rate than the model was trained with.
    """
    config = _config(run, data, contract)
    if episodes is not None:
        config = replace(config, val_episodes=episodes)
    pattern = pattern or FramePattern.consecutive(window)
    wanted = replace(config, pattern=pattern, window_stride=stride or window, cache=None, cache_size=None)
    clips = open_clips(wanted, "val")
    _check(clips, contract, data or config.path)
    return clips


def _config(run: Path, data: Path | None, contract: dict[str, Any]) -> DataConfig:
    if data is not None:
        nothing = "0:0"  # all of the given data is held out: the run was trained on something else
        return DataConfig(
            path=data,
            train_episodes=nothing,
            camera=contract["camera"],
            conditioning=contract["conditioning"],
            image_size=contract["image_size"],
        )
    path = next((p for p in (RunDir(run).config, RunDir(run.parent.parent).config) if p.exists()), None)
    if path is None:
        raise UsageError(f"{run} has no config.json that names its data; give the data to judge it on (--data DIR)")
    return from_json(DataConfig, read_json(path).get("data"), path)


def _check(clips: Clips, contract: dict[str, Any], path: Path) -> None:
    names, expected = list(clips.source.layout.names), contract["state_names"]
    if len(names) != len(expected):
        raise UsageError(
            f"{path} has {len(names)}-dimensional states, but the model was trained with {len(expected)} "
            f"({', '.join(expected[:4])}, ...)"
        )
    if names != expected:
        first = next(i for i, (a, b) in enumerate(zip(names, expected, strict=True)) if a != b)
        raise UsageError(f"{path}: state {first} is {names[first]!r}, the model was trained with {expected[first]!r}")
    if abs(clips.source.fps - contract["fps"]) > 1e-3:
        raise UsageError(f"{path} runs at {clips.source.fps} fps, but the model was trained at {contract['fps']}")


def spread(num_clips: int, wanted: int | None) -> list[int]:
    """Evenly spread clip numbers; all of them where `wanted` is None or too many.

    Raises:
        UsageError: fewer than one clip is wanted.
    """
    if wanted is not None and wanted < 1:
        raise UsageError(f"{wanted} clips are too few to judge anything by; give at least 1")
    if wanted is None or wanted >= num_clips:
        return list(range(num_clips))
    return np.linspace(0, num_clips - 1, wanted).round().astype(int).tolist()


def foreign_states(clips: Clips, chosen: list[int]) -> Float32[Tensor, "n t s"] | None:
    """For each chosen clip the states of another one, half the set away: real motion, but not this clip's.

    None where there is no other clip.
    """
    if len(clips) < 2:
        return None
    pool = chosen if len(chosen) > 1 else [(chosen[0] + i) % len(clips) for i in range(len(clips))]
    partners = [pool[(i + len(pool) // 2) % len(pool)] for i in range(len(chosen))]
    rows = []
    for number in partners:
        episode, start = int(clips.windows.episode[number]), int(clips.windows.start[number])
        rows.append(clips.source.read_states(episode, start, start + clips.pattern.window))
    return torch.from_numpy(np.stack(rows))
