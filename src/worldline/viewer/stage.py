"""What all tabs of a server share: the world, the clips to begin from, the sliders, and what is usual in the data."""

import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Lock
from typing import Annotated, Literal

import numpy as np

from worldline import builtin
from worldline.checks import Limit, Positive, Seed
from worldline.contract import FramePattern
from worldline.data.clips import Clips, evenly
from worldline.evaluation.held_out import DataChoice, held_out
from worldline.families.card import ModelCard, describe_model
from worldline.families.config import LoadOptions
from worldline.families.load import load_forecaster, refuse_unfit, world_kind
from worldline.forecasting.forecaster import Forecaster
from worldline.rundir import model_folder
from worldline.schema import StateLayout, UsageError
from worldline.twin.generate import physics_of
from worldline.twin.simulation import what_it_lacks
from worldline.viewer.joints import Ranges, joints_of, ranges_of
from worldline.viewer.pictures import COLOURS
from worldline.viewer.protocol import (
    MOST_BYTES,
    RATES,
    UNSEEN,
    VERSION,
    WORDS,
    ClipInfo,
    ExportFormat,
    Limits,
    OverlayInfo,
    TwinInfo,
    Welcome,
)
from worldline.viewer.recording import Recording
from worldline.viewer.trust import ENTROPY, ROLLED_SECONDS, SPREAD, Gauge, Usual, calibrated

DEFAULT_WORLD = "driven-tiny" if builtin.DRIVEN_TINY.is_dir() else "compression-tiny"
"""A built-in that a person can drive in."""
FORMATS: tuple[ExportFormat, ...] = ("mp4", "gif", "lerobot-v3.0", "lerobot-v2.1")
MOST_CLIPS = 240
"""To choose from; of more, as many at even distances."""
APART = 2.0
"""Seconds between the beginnings of two clips of an episode."""
CALIBRATED_ON, STATES_OF = 12, 200
"""Clips that are rolled out at most, and episodes whose states are read, to find what is usual."""
CALIBRATION = 8.0
"""Seconds that the roll-outs may take; at least two clips are rolled out."""
MOST_EXPORTS = 8
MOST_MESSAGES = 240
"""A second, of one tab."""
Outside = Literal["clip", "refuse", "allow"]


@dataclass(frozen=True, kw_only=True)
class ViewOptions(DataChoice, LoadOptions):
    """How the page is served, and what it shows."""

    host: str = "127.0.0.1"
    """Address to listen on. Others than this machine's own can reach the page only at another one, such as 0.0.0.0."""
    port: Annotated[int, Limit(least=0, most=65535)] = 8000
    """Port to listen on; 0 takes any that is free."""
    allow_host: tuple[str, ...] = ()
    """Further names under which a browser may ask for the page; those of this machine always may."""
    sessions: Annotated[int, Limit(least=1, most=64)] = 4
    """Tabs at once; each has its own session."""
    max_frames: Annotated[int, Limit(least=100, most=200_000)] = 9000
    """Frames that a session keeps, over all of its branches."""
    idle_minutes: Positive = 30.0
    """A tab that says nothing for so long is closed."""
    outside: Outside = "clip"
    """What becomes of a wanted state outside of what the data have: clipped, refused, or allowed. The first two are
    counted on the page."""
    seed: Seed = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class Stage:
    """All that is the same for every tab. Nothing of it changes while the server runs."""

    forecaster: Forecaster
    clips: Clips
    numbers: tuple[int, ...]
    """Windows of `clips` to begin from."""
    ranges: Ranges
    gauge: Gauge
    world: str
    twin: TwinInfo
    options: ViewOptions
    lock: Lock = field(default_factory=Lock)
    """Held while the world computes: of two tabs one waits for the other's step. Not all models may be called at once
    (Wan's VAE keeps what it is doing in itself), and two cores are not faster with two of them.
    """

    @property
    def layout(self) -> StateLayout:
        return self.clips.source.layout

    @property
    def fps(self) -> float:
        """Of the video that the states belong to; shown are the frames at the forecaster's pace."""
        return self.clips.source.fps

    @property
    def rate(self) -> float:
        """Shown frames per second of the data."""
        return self.fps / self.forecaster.pace

    def recording(self, clip: int) -> Recording:
        """Raises `UsageError` where there is no such clip."""
        if clip >= len(self.numbers):
            raise UsageError(f"there is no clip {clip}; there are 0..{len(self.numbers) - 1}")
        return Recording(clips=self.clips, number=self.numbers[clip], forecaster=self.forecaster)

    def welcome(self) -> Welcome:
        """The first answer to a page."""
        first, options = self.recording(0), self.options
        height, width = first.context.shape[-2:]
        infos = [self._info(clip) for clip in range(len(self.numbers))]
        values = first.batch.states[0, self.forecaster.context_frames - 1].numpy()
        limits = Limits(
            sessions=options.sessions,
            frames=options.max_frames,
            branches=64,
            exports=MOST_EXPORTS,
            messages_per_second=MOST_MESSAGES,
            message_bytes=MOST_BYTES,
            unseen=UNSEEN,
            idle_seconds=60 * options.idle_minutes,
            rate_low=RATES[0],
            rate_high=RATES[1],
        )
        return Welcome(
            version=VERSION,
            world=self.world,
            data=named(self.clips),
            fps=self.rate,
            chunk=max(1, self.forecaster.chunk_frames // self.forecaster.pace),
            lookahead_seconds=self.forecaster.lookahead_frames / self.fps,
            width=width,
            height=height,
            clips=tuple(infos),
            joints=tuple(joints_of(self.layout, self.ranges, values, pace=self.forecaster.pace)),
            overlays=overlays_of(self.forecaster, self.gauge),
            twin=self.twin,
            limits=limits,
            formats=FORMATS if not (height % 2 or width % 2) else ("gif",),
            words=WORDS,
        )

    def _info(self, clip: int) -> ClipInfo:
        one, pace = self.recording(clip), self.forecaster.pace
        return ClipInfo(index=clip, label=one.label, frames=-(-one.length // pace), seconds=one.length / self.fps)


def open_stage(run: str | Path, options: ViewOptions) -> Stage:
    """Load a world and the data to begin from, and find what is usual there.

    Raises:
        UsageError: there is no such run; its world makes no frames or cannot go on; or the data do not fit it.
        DataError: files are missing or damaged.
    """
    path = builtin.resolve(run)
    model = model_folder(path, options.checkpoint)
    card = describe_model(model)
    world_kind(card, model).check_options(card, options)
    forecaster = load_forecaster(path, options).forecaster
    refuse_unseen(forecaster, path)
    pattern = FramePattern(window=forecaster.context_frames + forecaster.lookahead_frames)
    clips = held_out(path, card.promise, options, pattern=pattern)
    refuse_unfit(clips.source, card, path, options, shown=True)
    return stage_of(forecaster, clips.sized(forecaster.image_size), card, options, world=path.name.replace("_", "-"))


def refuse_unseen(forecaster: Forecaster, path: Path) -> None:
    """Raises `UsageError` for a world that shows nothing, or only one window."""
    if forecaster.tokenizer is None and forecaster.grid is not None:
        raise UsageError(
            f"{path} was trained on tokens alone and shows no frames; give their tokenizer (--tokenizer DIR)"
        )
    if forecaster.chunk_frames < 1:
        raise UsageError(
            f"{path} forecasts one window and cannot go on from it: its frames do not lie as a context does"
        )


def stage_of(
    forecaster: Forecaster, clips: Clips, card: ModelCard | None, options: ViewOptions, *, world: str
) -> Stage:
    """The stage of any forecaster over clips that it can begin from; without a card, the data say what is usual."""
    numbers, source = beginnings(clips), clips.source
    episodes = sorted({int(clips.windows[number, 0]) for number in numbers})
    ranges, known = ranges_of(source, episodes), None if card is None else card.statistics
    low, high = (ranges.low, ranges.high) if known is None else (np.array(known.minimum), np.array(known.maximum))
    stage = Stage(
        forecaster=forecaster,
        clips=clips,
        numbers=numbers,
        ranges=ranges,
        gauge=Gauge.within(source.layout.names, low, high),
        world=world,
        twin=twin_of(clips, numbers),
        options=options,
    )
    some = [stage.recording(clip) for clip in evenly(len(numbers), affordable(stage))]
    rows = [source.read_states(episodes[i]) for i in evenly(len(episodes), STATES_OF)]
    gauge = calibrated(stage.gauge, forecaster, some, fps=stage.fps, rows=rows, seed=options.seed)
    return replace(stage, gauge=gauge)


def named(clips: Clips) -> str:
    """What a person calls the data: a built-in by its name, else the name of the folder."""
    path = clips.source.path.resolve()
    return next((name for name, place in builtin.NAMES.items() if place.resolve() == path), clips.source.name)


def affordable(stage: Stage) -> int:
    """How many clips can be rolled out in `CALIBRATION` seconds, by the time that one step of one takes."""
    forecaster, first = stage.forecaster, stage.recording(0)
    ahead = first.batch.states[:, forecaster.context_frames :][:, : forecaster.lookahead_frames]
    session = forecaster.start_clips(first.batch, seed=stage.options.seed)
    began = time.perf_counter()
    session.advance(ahead)
    steps = max(1.0, ROLLED_SECONDS * stage.fps / forecaster.chunk_frames)
    return max(2, min(CALIBRATED_ON, int(CALIBRATION / (steps * (time.perf_counter() - began)))))


def beginnings(clips: Clips) -> tuple[int, ...]:
    """Windows to begin from: of each episode the first, and those that lie two seconds apart and have two seconds left;
    of all at most `MOST_CLIPS`.
    """
    found, last, apart = [], (-1, 0), APART * clips.source.fps
    for number, (episode, start) in enumerate(clips.windows.tolist()):
        left = clips.source.episodes[episode].length - start
        if episode != last[0] or (start - last[1] >= apart and left >= apart):
            found.append(number)
            last = episode, start
    return tuple(found[i] for i in evenly(len(found), MOST_CLIPS))


def twin_of(clips: Clips, numbers: tuple[int, ...]) -> TwinInfo:
    """Whether the live twin can move under the same states, or why not."""
    try:
        physics_of(clips.source, int(clips.windows[numbers[0], 0]))
    except UsageError as error:
        return TwinInfo(available=False, why=str(error))
    return TwinInfo(available=not (why := what_it_lacks()), why=why)


def overlays_of(forecaster: Forecaster, gauge: Gauge) -> tuple[OverlayInfo, ...]:
    """Which overlays there are for a world; of the others, why not."""

    def info(kind: str, label: str, unit: str, usual: Usual | None, why: str) -> OverlayInfo:
        high = 0.0 if usual is None else float(f"{2 * max(usual.largest, usual.most):.2g}")
        known = {"low": 0.0, "high": high, "colours": COLOURS, "unit": unit}
        return OverlayInfo.model_validate(
            {"id": kind, "label": label, "available": usual is not None, "why": why} | known
        )

    draws = forecaster.num_samples > 1
    more = "--num-samples 4 --temperature 1" if forecaster.token_grid else "--num-samples 4"
    of_tokens = "certainty" in forecaster.streamed
    entropy, spread = gauge.usual.get(ENTROPY), gauge.usual.get(SPREAD)
    nothing = Usual(most=1.0, largest=1.0)
    return (
        info("entropy", "token entropy", "nats", (entropy or nothing) if of_tokens else None,
             "" if of_tokens else "this world has no tokens"),
        info("spread", "spread of the samples", "grey levels", (spread or nothing) if draws else None,
             "" if draws else f"one future is drawn; start with {more}"),
        info("difference", "difference to copy-last", "grey levels", Usual(most=32.0, largest=32.0), ""),
    )  # fmt: skip
