"""Imagined episodes as a LeRobot data set: context frames, which are real, and then those of a forecaster or a session.

Frames come at the pace of the forecaster: a world that predicts every fourth frame makes a data set of a quarter of the
rate, with the states of these frames. Every sample is an episode of its own.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float32, UInt8
from torch import Tensor

from worldline.data.clips import Clips
from worldline.data.splits import recording_of
from worldline.forecasting.forecaster import Forecaster, clip_seeds, signature
from worldline.forecasting.postprocess import mean
from worldline.formats.lerobot.write import (
    MEAN,
    NO_TASK,
    Export,
    Provenance,
    Recorded,
    Version,
    Written,
    add_episodes,
    camera_of,
    next_states,
)
from worldline.ranks import Ranks
from worldline.schema import Batch, Forecast, StateLayout, UsageError, stack

_AT_ONCE = 4  # clips that are forecast together


@dataclass(frozen=True, kw_only=True, eq=False)
class Imagined:
    """Futures of some clips after their context; all frames, their states, and which of them are real."""

    frames: UInt8[Tensor, "b k t 3 h w"]
    states: Float32[Tensor, "b t s"]
    times: tuple[int, ...]
    """Positions of the frames, in video frames, counted from the first of the context."""
    context: int
    """So many of them are real."""
    uncertainty: Float32[Tensor, "b t"]
    """Mean spread of the samples over the pixels, in grey levels: 0 of real frames, -1 where one sample has none."""

    @classmethod
    def of(
        cls, forecaster: Forecaster, batch: Batch, forecasts: Sequence[Forecast], *, states: Tensor | None = None
    ) -> "Imagined":
        """The episodes of clips that hold a context, and what was forecast after it: once, or chunk by chunk.

        Args:
            forecasts: one `Forecaster.forecast_clips`, or what each `Session.advance` gave, in order.
            states: `b t s`, of every video frame from the first of the context on, where they are not the clips' own.

        Raises `UsageError` where the forecasts do not follow one another, or there are no states for their frames.
        """
        states, shown = batch.states if states is None else states, forecaster.shown_context
        times = (*shown, *(time for made in forecasts for time in made.times))
        if len(times) == len(shown) or set(np.diff(times).tolist()) - {forecaster.pace}:
            raise UsageError(f"no episode: its frames are not every {forecaster.pace}, they are at {times}")
        if states.shape[1] <= times[-1]:
            raise UsageError(f"{states.shape[1]} states are given, but the last frame is number {times[-1]}")
        seen, samples = forecaster.shown(batch)[0], forecasts[0].video.shape[1]
        parts = [seen[:, None].expand(-1, samples, -1, -1, -1, -1), *(made.video for made in forecasts)]
        known = [torch.zeros(seen.shape[:2])]
        for made in forecasts:
            lone = torch.full((len(seen), len(made.times)), -1.0)
            known.append(made.spread.mean(dim=(2, 3)) if samples > 1 else lone)
        rows = states[:, list(times)].float()
        return cls(
            frames=torch.cat(parts, dim=2),
            states=rows,
            times=times,
            context=len(shown),
            uncertainty=torch.cat(known, dim=1),
        )


def write_session(
    out: Path,
    imagined: Imagined,
    *,
    version: Version = "v3.0",
    fps: float,
    layout: StateLayout,
    name: str,
    camera: str = "observation.images.camera",
    task: str = NO_TASK,
    recordings: Sequence[str] | None = None,
    starts: Sequence[int] | None = None,
    seed: int = 0,
    append: bool = False,
) -> Written:
    """Write episodes that are in memory, such as those of a driven session, every sample as an episode of its own.

    Args:
        fps: of the video that the states belong to: the data set's is that divided by the pace of the frames.
        name: tells these episodes from others; the same name again is the same episodes, and not added twice.
        recordings: of each clip, the one its context is of (`splits.recording_of`): whoever holds it out holds out
            these episodes too. None: every clip is a recording of its own, by that name.
        starts: of each clip, the frame of that recording at which its times begin; None: the first.

    Raises what `add_episodes` raises.
    """
    pace = imagined.times[1] - imagined.times[0] if len(imagined.times) > 1 else 1
    export = _export(version, fps / pace, imagined.frames, layout, camera)
    episodes = []
    for clip in range(len(imagined.frames)):
        named = f"{name}, clip {clip}"
        shown = named if recordings is None else recordings[clip]
        start = 0 if starts is None else starts[clip]
        where = Provenance(source="session", episode=named, recording=shown, start=start, forecaster="session")
        for sample in range(imagined.frames.shape[1]):
            episodes.append(
                _recorded(
                    imagined.states[clip],
                    imagined.times,
                    imagined.context,
                    frames=partial(_pieces, imagined.frames[clip, sample]),
                    uncertainty=partial(imagined.uncertainty[clip].numpy),
                    provenance=replace(where, seed=seed, sample=sample),
                    task=task,
                )
            )
    return add_episodes(out, export, episodes, append=append)


def write_forecasts(
    out: Path,
    forecaster: Forecaster,
    clips: Clips,
    numbers: Sequence[int],
    *,
    version: Version,
    seed: int,
    run: str,
    task: str | None = None,
    mean_only: bool = False,
    append: bool = False,
    ranks: Ranks | None = None,
) -> Written:
    """Forecast some clips from their context and states, and write them; a few at a time, when they are written.

    Args:
        mean_only: write the mean of the samples, pixel by pixel, in their place.

    Raises what `add_episodes` and the forecaster raise.
    """
    source, made_by = clips.source, signature(forecaster)[:16]
    seen = forecaster.shown(stack([clips[numbers[0]]]))[0]
    export = _export(version, source.fps / forecaster.pace, seen, source.layout, camera_of(source))
    at_once = max(1, min(_AT_ONCE, forecaster.rows_at_once // forecaster.num_samples))

    known: dict[int, Tensor] = {}  # uncertainty of the clips of a part

    @lru_cache(maxsize=1)  # samples of a clip, and clips of a part, are written one after the other
    def made(part: int) -> Imagined:
        batch = stack([clips[number] for number in numbers[part * at_once :][:at_once]])
        forecast = forecaster.forecast_clips(batch, seeds=clip_seeds(seed, batch.origins))
        imagined = Imagined.of(forecaster, batch, [forecast])
        known[part] = imagined.uncertainty
        return replace(imagined, frames=mean(imagined.frames)[:, None]) if mean_only else imagined

    def frames(part: int, clip: int, sample: int) -> Iterator[UInt8[np.ndarray, "n h w 3"]]:
        yield from _pieces(made(part).frames[clip, max(0, sample)])

    def uncertainty(part: int, clip: int) -> Float32[np.ndarray, "f"]:
        return known[part][clip].numpy()

    times, context, episodes = (*forecaster.shown_context, *forecaster.times), len(forecaster.shown_context), []
    for place, number in enumerate(numbers):
        (episode, start), at = clips.windows[number].tolist(), divmod(place, at_once)
        of = source.episodes[episode]
        states = torch.from_numpy(source.read_states(episode, start, start + times[-1] + 1))[list(times)]
        where = Provenance(source=source.name, episode=of.name, recording=recording_of(source, episode), run=run)
        for sample in [MEAN] if mean_only else range(forecaster.num_samples):
            here = replace(where, start=start, forecaster=made_by, seed=seed, sample=sample)
            shown = {"frames": partial(frames, *at, sample), "uncertainty": partial(uncertainty, *at)}
            task_here = task or of.task or NO_TASK
            episodes.append(_recorded(states, times, context, provenance=here, task=task_here, **shown))
    return add_episodes(out, export, episodes, append=append, ranks=ranks)


def _export(version: Version, fps: float, frames: Tensor, layout: StateLayout, camera: str) -> Export:
    height, width = frames.shape[-2:]
    names: dict[str, Any] = {"state_names": layout.names, "state_kinds": layout.kinds, "action_names": layout.names}
    return Export(version=version, fps=fps, size=(height, width), actions="next_state", camera=camera, **names)


def _recorded(
    states: Float32[Tensor, "t s"], times: tuple[int, ...], context: int, *, provenance: Provenance, **how: Any
) -> Recorded:
    rows = states.numpy()
    return Recorded(
        states=rows,
        actions=next_states(rows),
        real=np.arange(len(times)) < context,
        source_frames=provenance.start + np.array(times, np.int64),
        provenance=provenance,
        **how,
    )


def _pieces(frames: UInt8[Tensor, "t 3 h w"]) -> Iterator[UInt8[np.ndarray, "n h w 3"]]:
    yield rearrange(frames, "t c h w -> t h w c").numpy()
