"""`Forecaster` = tokenizer + world + sampling choice: frames and states in, frames out.

All later code (evaluation, viewer, environments) knows only forecasters and sessions, and never asks for the track.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from worldline.forecasting.session import Context, Session, Snapshot, Step, check_states, signature
from worldline.schema import Batch, Forecast, LatentGrid, TokenGrid, UsageError
from worldline.tokenizers.tokenizer import Tokenizer

Extra = Literal["costs", "teacher_forced_costs", "top", "plain_frames"]
"""Parts of a `Forecast` that must be asked for, of what has tokens; `top` are the `TOP` most probable tokens."""
TOP = 500
CPU = torch.device("cpu")
B = TypeVar("B", bound="CopyLast")
States = Float32[Tensor, "b t s"]
Seeds = Sequence[int] | None
Shown = tuple[UInt8[Tensor, "b n 3 h w"], UInt8[Tensor, "b f 3 h w"] | None]


class Forecaster(ABC):
    """Forecast future frames from context frames and the states of context and future."""

    num_samples: int
    """Futures per clip."""
    device: torch.device
    """Where it computes. Inputs are moved there; forecasts come back to the CPU."""

    @property
    @abstractmethod
    def context_frames(self) -> int:
        """Frames that a forecast begins with."""

    @property
    @abstractmethod
    def times(self) -> tuple[int, ...]:
        """Positions of the predicted frames, counted from the first frame of the context; not all need be there."""

    @property
    @abstractmethod
    def chunk_frames(self) -> int:
        """Frames per step of a session; 0 if it cannot continue beyond the window."""

    @property
    def rows_at_once(self) -> int:
        """Futures that are computed at once, over all clips."""
        return 1_000_000

    @property
    def image_size(self) -> int | None:
        """Side of the frames it takes and gives; None where any will do, or they are not square."""
        return None

    @property
    def token_grid(self) -> TokenGrid | None:
        """How its tokens lie over frames; None of a forecaster without tokens."""
        return None

    def encoded(self, batch: Batch) -> Batch:
        """The clips with their tokens or latents, so that several calls encode them once."""
        return batch

    @abstractmethod
    def reconstruct(self, batch: Batch) -> Forecast:
        """The true future, encoded and decoded by the tokenizer: an upper bound for its forecasts."""

    @abstractmethod
    def begin(self, batch: Batch) -> Context:
        """The context from which clips continue. Their future is not read."""

    @abstractmethod
    def step(self, context: Context, states: States, *, seeds: Seeds) -> Step:
        """Forecast one window, `times` counted from the first frame of `context`, given states of context and horizon.

        A pure function of its arguments. The result shares no memory with the context of the next step.
        """

    def drawing(self, num_samples: int) -> "Forecaster":
        """The same forecaster with so many futures per clip."""
        return replace(self, num_samples=num_samples)  # pyright: ignore[reportArgumentType] - all are dataclasses

    @property
    def horizon_frames(self) -> int:
        """Video frames between the last of the context and the last that is predicted."""
        return self.times[-1] + 1 - self.context_frames

    @property
    def lookahead_frames(self) -> int:
        """How many frames ahead a step of a session must know the states."""
        return self.horizon_frames

    def forecast(
        self, frames: UInt8[Tensor, "b c 3 h w"], states: Float32[Tensor, "n t s"], *, seeds: Seeds = None
    ) -> Forecast:
        """Predict the frames at `times`. Raises `UsageError` for other shapes, or without seeds where they are needed.

        Args:
            frames: the context only: exactly `context_frames` of them, uint8 RGB.
            states: one row per frame of context and horizon, raw units.
            seeds: one per clip (`worldline.process.noise.clip_seeds`), or None if nothing is drawn. Sample k of a clip
                depends on its frames, its states, its seed and k alone.
        """
        return self.forecast_clips(self._given(frames, states, self.context_frames + self.horizon_frames), seeds=seeds)

    def forecast_clips(
        self, batch: Batch, *, states: States | None = None, seeds: Seeds = None, extra: Collection[Extra] = ()
    ) -> Forecast:
        """As `forecast`, from clips of frames, token grids or latents, of which too few raise `UsageError`.

        Args:
            states: in place of the clips' own.
            extra: further parts of the forecast. Costs need the whole true future, which nothing else reads.
        """
        del extra  # of what has tokens
        return self.step(self.begin(batch), batch.states if states is None else states, seeds=seeds)[0]

    def shown(self, batch: Batch) -> Shown:
        """Context frames at the pace of the forecast, and the true frames at `times`, if known, decoded if need be."""
        frames, times = frames_of(self, batch, self.context_frames), list(self.times)
        return frames[:, shown_context(self)], frames[:, times] if frames.shape[1] > times[-1] else None

    def start(
        self, frames: UInt8[Tensor, "b c 3 h w"], states: Float32[Tensor, "n t s"], *, seed: int | Sequence[int] = 0
    ) -> Session:
        """An imagined episode of any length, from `context_frames` frames, their states, and one seed or one for each.

        The result for a clip depends on its frames, states and seed only. Raises `UsageError` for other numbers of
        frames, states or seeds, or another size of frames.
        """
        return self.start_clips(self._given(frames, states, self.context_frames), seed=seed)

    def start_clips(self, batch: Batch, *, seed: int | Sequence[int] = 0) -> Session:
        """The same from clips of frames, token grids or latents; only their context is read."""
        if self.chunk_frames < 1:
            raise UsageError("no frames of this forecaster's window lie as a context does: it cannot be rolled on")
        states = batch.states[:, : self.context_frames].cpu().clone()
        check_states(states, (len(batch), self.context_frames, states.shape[-1]))
        seeds = (seed,) * len(batch) if isinstance(seed, int) else tuple(seed)
        if len(seeds) != len(batch) or min(seeds, default=0) < 0:
            raise UsageError(f"give one seed of 0 or more, or one for each of {len(batch)} clips, not {seed}")
        return Session(self, Snapshot(made_by=signature(self), context=self.begin(batch), states=states, seeds=seeds))

    def _given(self, frames: Tensor, states: Tensor, rows: int) -> Batch:
        if frames.shape[1] != self.context_frames:
            raise UsageError(f"the context is {self.context_frames} frames, but {frames.shape[1]} were given")
        check_states(states, (len(frames), rows, states.shape[-1]))
        return Batch(states=states, fps=0.0, origins=(), frames=frames)


@dataclass(frozen=True, kw_only=True)
class WorldForecaster(Forecaster):
    """A world between a tokenizer's encoder and decoder. A row is one sample of one clip, in the order `(b k)`."""

    grid: TokenGrid | LatentGrid
    tokenizer: Tokenizer[Any] | None
    num_samples: int = 1
    rows: int | None = field(default=None, compare=False)
    """Rows at once; None takes as many as memory of a fixed size has room for. Changes rounding at most."""
    device: torch.device = field(default=CPU, compare=False)
    """Where world and tokenizer are."""

    @property
    def image_size(self) -> int | None:
        if self.tokenizer is None or self.grid.height != self.grid.width:
            return None
        return self.grid.height * self.tokenizer.spatial_stride

    def _enough(self, batch: Batch, encoded: Tensor | None, count: int) -> Tensor:
        """So many token grids or latents of clips, on the CPU. Raises `UsageError` where there are fewer."""
        found = 0 if encoded is None else encoded.shape[1]
        if encoded is None or found < count:
            what = "token grids" if isinstance(self.grid, TokenGrid) else "latents"
            raise UsageError(f"{name_of(batch)} holds {found} {what}, but this world needs {count}")
        return encoded[:, :count].cpu()

    def _known(self) -> Any:
        if self.tokenizer is None:
            raise UsageError("this world was trained on tokens alone; give their tokenizer (--tokenizer DIR)")
        return self.tokenizer

    @torch.no_grad()
    def _encode(self, frames: UInt8[Tensor, "b t 3 h w"]) -> Tensor:
        return self._known().encode(frames.to(self.device)).cpu()

    @torch.no_grad()
    def _decode(self, encoded: Tensor) -> UInt8[Tensor, "b t 3 h w"]:
        return self._known().decode(encoded.to(self.device)).cpu()


@dataclass(frozen=True, kw_only=True)
class CopyLast(Forecaster):
    """The baseline that every forecast must beat: the last context frame, repeated.

    Args:
        context, predicted, chunk: its `context_frames`, `times` and `chunk_frames` (None: the whole horizon).
    """

    context: int
    predicted: tuple[int, ...]
    chunk: int | None = None
    num_samples: int = 1
    device: torch.device = field(default=CPU, compare=False)

    @classmethod
    def beside(cls: type[B], forecaster: Forecaster, **more: Any) -> B:
        """The baseline of a forecaster: the same context, predicted times and steps."""
        same = {"context": forecaster.context_frames, "predicted": forecaster.times, "chunk": forecaster.chunk_frames}
        return cls(**same, **more)

    @property
    def context_frames(self) -> int:
        return self.context

    @property
    def times(self) -> tuple[int, ...]:
        return self.predicted

    @property
    def chunk_frames(self) -> int:
        return self.horizon_frames if self.chunk is None else self.chunk

    def reconstruct(self, batch: Batch) -> Forecast:
        frames = frames_of(self, batch, self.times[-1] + 1)
        return Forecast(times=self.times, frames=frames[:, None, list(self.times)])

    def begin(self, batch: Batch) -> Context:
        return (frames_of(self, batch, self.context_frames)[:, self.context_frames - 1].clone(),)

    def step(self, context: Context, states: States, *, seeds: Seeds) -> Step:
        (last,), futures = context, (self.num_samples, len(self.times))
        return Forecast(times=self.times, frames=last[:, None, None].repeat(1, *futures, 1, 1, 1)), lambda: context


def check_seeds(seeds: Seeds, clips: int) -> Sequence[int]:
    """The seeds of clips for which something is drawn. Raises `UsageError` if they are missing."""
    if seeds is None or len(seeds) != clips:
        found = "none" if seeds is None else len(seeds)
        raise UsageError(f"this forecast is drawn from noise: give one seed for each of {clips} clips, not {found}")
    return seeds


def frames_of(forecaster: Forecaster, batch: Batch, count: int) -> UInt8[Tensor, "b t 3 h w"]:
    """All frames of clips that hold at least `count`. Raises `UsageError` where they do not, or of another size."""
    if batch.frames is None or batch.frames.shape[1] < count:
        found = "no frames" if batch.frames is None else f"{batch.frames.shape[1]} frames"
        raise UsageError(f"{name_of(batch)} holds {found}, but {count} of them are needed")
    size, (height, width) = forecaster.image_size, batch.frames.shape[-2:]
    if size is not None and {height, width} != {size}:
        raise UsageError(f"this world was trained on frames of {size}x{size}, not {height}x{width}; scale them")
    return batch.frames


def name_of(batch: Batch) -> str:
    """Where clips come from, for messages."""
    return batch.origins[0].source if batch.origins else "a clip"


def shown_context(forecaster: Forecaster) -> list[int]:
    """Context frames to show before a forecast: at the pace of the predicted ones, ending with the last."""
    count, pace = forecaster.context_frames, shown_pace(forecaster)
    return list(range((count - 1) % pace, count, pace))


def shown_pace(forecaster: Forecaster) -> int:
    """Video frames from one predicted frame to the next."""
    times = forecaster.times
    return times[1] - times[0] if len(times) > 1 else 1
