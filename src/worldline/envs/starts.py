"""Where episodes begin: clips of a data set, or anything else that a session can be started from."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from worldline.contract import Contract, FramePattern
from worldline.data.clips import Clips, some_windows
from worldline.envs.observation import Look, seen
from worldline.forecasting.forecaster import Forecaster, Session
from worldline.formats.limits import StateLimits
from worldline.formats.source import Source
from worldline.schema import Batch, Clip, UsageError, contents_of, stack


@dataclass(frozen=True, kw_only=True, eq=False)
class Begun:
    """An episode before its first step."""

    session: Session
    """Of one clip."""
    look: Look
    state: Any
    """The last of its context: float32 `(s,)`."""
    command: Any = None
    """What the robot is commanded then, where that is another: actions are counted from it."""


@runtime_checkable
class Starts(Protocol):
    """Where episodes begin, each known by a number."""

    @property
    def numbers(self) -> Sequence[int]:
        """Those that there are."""
        ...

    def limits(self) -> StateLimits:
        """Of states, where nothing else says them."""
        ...

    def begin(self, forecaster: Forecaster, numbers: Sequence[int], seeds: Sequence[int]) -> list[Begun]:
        """Begin some, together where that is cheaper. Raises `UsageError` and `DataError` as `start_clips`."""
        ...


@dataclass(frozen=True, eq=False)
class ClipStarts:
    """Clips that hold a context, and perhaps more, which is not read."""

    clips: Sequence[Clip]

    @property
    def numbers(self) -> Sequence[int]:
        return range(len(self.clips))

    def limits(self) -> StateLimits:
        if isinstance(self.clips, Clips):
            return StateLimits.of_source(self.clips.source, sorted(set(self.clips.windows[:, 0].tolist())))
        return StateLimits.of_clips(self.clips)

    def begin(self, forecaster: Forecaster, numbers: Sequence[int], seeds: Sequence[int]) -> list[Begun]:
        batch = stack([self.clips[number] for number in numbers])
        sessions = forecaster.start_clips(batch, seed=seeds).part()
        states = batch.states[:, forecaster.context_frames - 1].numpy()
        each = zip(sessions, _looks(forecaster, batch), states, strict=True)
        return [Begun(session=session, look=look, state=row) for session, look, row in each]


def _looks(forecaster: Forecaster, batch: Batch) -> list[Look]:
    """What the context of each clip shows; decoded when it is read, where clips hold no frames."""
    if batch.frames is not None:
        return seen(forecaster.shown(batch)[0])
    kept: list[torch.Tensor] = []

    def row(i: int) -> torch.Tensor:
        if not kept:
            kept.append(forecaster.shown(batch)[0])
        return kept[0][i]

    return [Look(lambda i=i: row(i)) for i in range(len(batch))]


def starts_of(given: Starts | Source | Sequence[Clip] | Batch, forecaster: Forecaster) -> Starts:
    """What environments begin with. Of a source: disjoint contexts of all its episodes, at the size of the world.

    Raises `UsageError` where there is none.
    """
    if isinstance(given, Source):
        context, block = forecaster.context_frames, 1 if given.grid is None else given.grid.block
        window = -(-context // block) * block
        windows = some_windows(given, range(len(given.episodes)), window=window, stride=window)
        sized = None if given.grid is not None or given.latent_grid is not None else forecaster.image_size
        given = Clips(given, windows, FramePattern(window=window), sized)
    if isinstance(given, Batch):
        given = [_clip(given, row) for row in range(len(given))]
    starts = ClipStarts(given) if isinstance(given, Sequence) else given
    if not isinstance(starts, Starts):
        raise UsageError(
            f"environments start from a data set, clips or a batch of them, not from {type(given).__name__}"
        )
    if len(starts.numbers) < 1:
        raise UsageError("there is nothing to start from; give clips with at least a context")
    return starts


def refuse_unlike(contract: Contract, given: Any) -> None:
    """Raise `UsageError` for data of other states or another rate than a world was trained with, as far as they say."""
    given = given.source if isinstance(given, Clips) else given
    if isinstance(given, Source) and given.layout.names != contract.state_names:
        raise UsageError(f"{given.path} holds other states than this world was trained with; give data of its robot")
    one = given[0] if isinstance(given, Sequence) and given else given
    fps = getattr(one, "fps", 0.0)
    if fps and abs(fps - contract.fps) > 1e-3:
        raise UsageError(f"episodes would begin at {fps:g} fps, but this world was trained at {contract.fps:g}")


def _clip(batch: Batch, row: int) -> Clip:
    if len(batch.origins) != len(batch):
        raise UsageError("a batch to start from needs the origin of each clip; read its clips from a data set")
    held: dict[str, Any] = {name: tensor[row] for name, tensor in contents_of(batch).items()}
    return Clip(fps=batch.fps, origin=batch.origins[row], **held)


def draw(starts: Starts, rng: np.random.Generator, chosen: Any = None) -> int:
    """The number of a start: `chosen`, or any with equal chances. Raises `UsageError` where there is none such."""
    numbers = starts.numbers
    if chosen is None:
        return int(numbers[int(rng.integers(len(numbers)))])
    if isinstance(chosen, bool) or not isinstance(chosen, int | np.integer) or chosen not in numbers:
        raise UsageError(f"options['start'] is the number of a start, {numbers[0]} .. {numbers[-1]}, not {chosen!r}")
    return int(chosen)
