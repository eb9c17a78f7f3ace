"""`Forecaster` = tokenizer + world + sampling choice: frames and states in, frames out, for a window or without end.

All later code (evaluation, viewer, environments) knows only forecasters and sessions, and never asks for the track. A
`Session` is an imagined episode of any length, a forecaster and a `Snapshot`: a step is a pure function of the snapshot
and the next states, so that sessions share nothing and their memory does not grow.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from worldline.contract import Configured
from worldline.forecasting import timing
from worldline.schema import Batch, Certainty, Forecast, LatentGrid, Origin, TokenGrid, UsageError
from worldline.tokenizers.tokenizer import Tokenizer

Extra = Literal["costs", "teacher_forced_costs", "top", "plain_frames", "certainty"]
"""Parts of a `Forecast` that must be asked for, of what has tokens; `top` are the 500 most probable tokens."""
Same = TypeVar("Same", bound="Forecaster")
States = Float32[Tensor, "b t s"]
Seeds = Sequence[int] | None
Frames = UInt8[Tensor, "b n 3 h w"]
Shown = tuple[UInt8[Tensor, "b n 3 h w"], UInt8[Tensor, "b f 3 h w"] | None]
Context = tuple[Tensor, ...]
"""The context of a forecaster, in its own form: token grids, latents, frames or physics. Small. On the CPU, or where it
is large enough to make a step slow (`causal.py`) on the device of the forecaster, until it is pickled."""
Step = tuple[Forecast, Callable[[], Context]]
"""The forecast of a window, and a function that makes the context one chunk later."""


@dataclass(frozen=True, kw_only=True)
class Forecaster(ABC):
    """Forecast future frames from context frames and the states of context and future.

    Several samples of each clip are rows in the order `(b k)`.
    """

    grid: TokenGrid | LatentGrid | None
    """How its tokens or latents lie over frames; None where it makes neither."""
    tokenizer: Tokenizer[Any] | None
    num_samples: int = 1
    """Futures per clip."""
    rows: int | None = field(default=None, compare=False)
    """Rows at once; None takes as many as memory of a fixed size has room for. Changes rounding at most."""
    device: torch.device = field(default=torch.device("cpu"), compare=False)
    """Where it computes. Inputs are moved there; forecasts come back to the CPU."""
    lazy: bool = field(default=False, compare=False)
    """Leave the frames of steps to when `Forecast.video` is read, where making them costs extra and what follows does
    not need them; else it has no effect. The future is the same."""
    # These follow from the others, in `__post_init__`.
    context_frames: int = field(init=False)
    """Frames that a forecast begins with."""
    times: tuple[int, ...] = field(init=False)
    """Positions of the predicted frames, counted from the first frame of the context; not all need be there."""
    chunk_frames: int = field(init=False)
    """Frames per step of a session; 0 if it cannot continue beyond the window."""

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

    def measured(self, moment: "Session | Snapshot") -> Float32[Tensor, "b s"] | None:
        """The robot's state at a moment of a session, where it is another than was given: of the live twin."""
        del moment
        return None

    def close(self) -> None:  # noqa: B027 - most hold nothing
        """Free what it holds outside of memory (the live twin's OpenGL contexts); it is opened again where needed."""

    def joined(self, contexts: Sequence[Context]) -> Context:
        """One context of the clips of several, in order; by default the rows of each tensor, on axis 0."""
        return tuple(torch.cat(parts) for parts in zip(*contexts, strict=True))

    def parted(self, context: Context, clips: Sequence[int]) -> list[Context]:
        """The contexts of the first `clips[0]` clips, of the next `clips[1]`, ...; none keeps the others alive."""
        sizes = [[len(part) // sum(clips) * count for count in clips] for part in context]
        pieces = [part.split(size) for part, size in zip(context, sizes, strict=True)]
        return [tuple(piece.clone() for piece in own) for own in zip(*pieces, strict=True)]

    @property
    def extras(self) -> frozenset[Extra]:
        """Parts of a forecast that `forecast_clips` can give beside its frames; others are asked for in vain."""
        return frozenset()

    @property
    def streamed(self) -> frozenset[Extra]:
        """Parts of a forecast that a step of a session can give beside its frames (`Session.advance`)."""
        return frozenset()

    def encoded(self, batch: Batch) -> Batch:
        """The clips with their tokens or latents, so that several calls encode them once."""
        return batch

    @property
    def rows_at_once(self) -> int:
        """Futures that are computed at once, over all clips."""
        return self.rows or 1_000_000

    @property
    def token_grid(self) -> TokenGrid | None:
        """How its tokens lie over frames; None of a forecaster without tokens."""
        return self.grid if isinstance(self.grid, TokenGrid) else None

    @property
    def image_size(self) -> int | None:
        """Side of the frames it takes and gives; None where any will do, or they are not square."""
        if self.grid is None or self.tokenizer is None or self.grid.height != self.grid.width:
            return None
        return self.grid.height * self.tokenizer.spatial_stride

    @property
    def horizon_frames(self) -> int:
        """Video frames between the last of the context and the last that is predicted."""
        return self.times[-1] + 1 - self.context_frames

    @property
    def lookahead_frames(self) -> int:
        """How many frames ahead a forecast, or a step of a session, must know the states."""
        return self.horizon_frames

    @property
    def pace(self) -> int:
        """Video frames from one predicted frame to the next."""
        return self.times[1] - self.times[0] if len(self.times) > 1 else 1

    @property
    def shown_context(self) -> list[int]:
        """Context frames to show before a forecast: at its pace, ending with the last."""
        return list(range((self.context_frames - 1) % self.pace, self.context_frames, self.pace))

    def conditional_mean(self, draws: int) -> "Forecaster | None":
        """The forecaster of the mean of all futures in so many network calls; None where the world knows no mean."""
        del draws
        return None

    @property
    def members(self) -> "tuple[Forecaster, ...]":
        """The forecasters of an ensemble, each alone; none where it is one world."""
        return ()

    def with_members(self: Same, others: Sequence["Forecaster"]) -> Same:
        """The ensemble of this world and `others`, which sample as it does. Raises `UsageError` where there is none."""
        del others
        raise UsageError("worlds of this kind form no ensemble; leave out --members")

    def one_roll_out(self) -> "Forecaster | None":
        """The forecaster of one roll-out, where this one mixes several; else None."""
        return None

    def forecast(
        self, frames: UInt8[Tensor, "b c 3 h w"], states: Float32[Tensor, "n t s"], *, seeds: Seeds = None
    ) -> Forecast:
        """Predict the frames at `times`. Raises `UsageError` for other shapes, or without seeds where they are needed.

        Args:
            frames: the context only: exactly `context_frames` of them, uint8 RGB.
            states: one row per frame of context and horizon, raw units.
            seeds: one per clip (`clip_seeds`), or None if nothing is drawn. Sample k of a clip depends on its frames,
                its states, its seed and k alone.
        """
        rows = self.context_frames + self.lookahead_frames
        return self.forecast_clips(self._given(frames, states, rows), seeds=seeds)

    def forecast_clips(
        self, batch: Batch, *, states: States | None = None, seeds: Seeds = None, extra: Collection[Extra] = ()
    ) -> Forecast:
        """As `forecast`, from clips of frames, token grids or latents, of which too few raise `UsageError`.

        Args:
            states: in place of the clips' own.
            extra: further parts of the forecast. Costs need the whole true future, which nothing else reads.
        """
        del extra  # of what has tokens
        given = batch if states is None else replace(batch, states=states)
        return self.step(self.begin(given), given.states, seeds=seeds)[0]

    def round_trip(self, batch: Batch) -> tuple[Frames, Frames] | None:
        """Frames of the context, and what of them its tokens or latents kept, decoded; None where there are none.

        Clips that are encoded already (`encoded`) cost one call of the decoder.
        """
        if self.token_grid is None or self.tokenizer is None or batch.frames is None:
            return None
        tokens = self.encoded(batch).tokens
        assert tokens is not None, "encoded just now"
        kept = self._decode(tokens[:, : self.token_grid.grids_of(self.context_frames)])
        return batch.frames[:, : self.context_frames], kept

    def shown(self, batch: Batch) -> Shown:
        """Context frames at the pace of the forecast, and the true frames at `times`, if known, decoded if need be."""
        frames, times = self.frames_of(batch, self.context_frames), list(self.times)
        return frames[:, self.shown_context], frames[:, times] if frames.shape[1] > times[-1] else None

    def start(
        self, frames: UInt8[Tensor, "b c 3 h w"], states: Float32[Tensor, "n t s"], *, seed: int | Sequence[int] = 0
    ) -> "Session":
        """An imagined episode of any length, from `context_frames` frames, their states, and one seed or one for each.

        The result for a clip depends on its frames, states and seed only. Raises `UsageError` for other numbers of
        frames, states or seeds, or another size of frames.
        """
        return self.start_clips(self._given(frames, states, self.context_frames), seed=seed)

    def start_clips(self, batch: Batch, *, seed: int | Sequence[int] = 0) -> "Session":
        """The same from clips of frames, token grids or latents; only their context is read."""
        self.refuse_standing()
        states = batch.states[:, : self.context_frames].cpu().clone()
        _check_states(states, len(batch), self.context_frames, states.shape[-1])
        seeds = (int(seed),) * len(batch) if isinstance(seed, int | np.integer) else tuple(map(int, seed))
        if len(seeds) != len(batch) or min(seeds, default=0) < 0:
            raise UsageError(f"give one seed of 0 or more, or one for each of {len(batch)} clips, not {seed}")
        return Session(self, Snapshot(made_by=signature(self), context=self.begin(batch), states=states, seeds=seeds))

    def refuse_standing(self) -> None:
        """Raise `UsageError` where it cannot go on beyond its window."""
        if self.chunk_frames < 1:
            raise UsageError("no frames of this forecaster's window lie as a context does: it cannot be rolled on")

    def frames_of(self, batch: Batch, count: int) -> UInt8[Tensor, "b t 3 h w"]:
        """All frames of clips that hold at least `count`, of its size. Raises `UsageError` for other clips."""
        frames, size = self._enough(batch, "frames", batch.frames, count), self.image_size
        height, width = frames.shape[-2:]
        if size is not None and {height, width} != {size}:
            raise UsageError(
                f"this world was trained on frames of {size}x{size}, not {height}x{width}; scale those of each clip as "
                f"training does, by worldline.formats.video.resize(clip.frames, {size})"
            )
        return frames

    def _given(self, frames: Tensor, states: Tensor, rows: int) -> Batch:
        """A batch of what a caller gave. Floats of NumPy, which are float64, become what worlds compute with."""
        shape = tuple(frames.shape)
        if frames.dtype != torch.uint8 or len(shape) != 5 or shape[2] != 3 or not shape[0]:
            raise UsageError(
                "frames are uint8 RGB, 0..255, of clips x frames x 3 x height x width, one clip at least, not "
                f"{str(frames.dtype).removeprefix('torch.')} of {' x '.join(map(str, shape))}"
            )
        if frames.shape[1] != self.context_frames:
            raise UsageError(f"the context is {self.context_frames} frames, but {frames.shape[1]} were given")
        _check_states(states, len(frames), rows, states.shape[-1])
        return Batch(states=states.float(), fps=0.0, origins=(), frames=frames)

    def _enough(self, batch: Batch, what: str, held: Tensor | None, count: int) -> Tensor:
        """What clips hold, on axis 1. Raises `UsageError` where it is less than is needed."""
        found = 0 if held is None else held.shape[1]
        if held is None or found < count:
            source = batch.origins[0].source if batch.origins else "a clip"
            raise UsageError(f"{source} holds {found or 'no'} {what}, but {count} of them are needed")
        return held

    def _known(self) -> Any:
        if self.tokenizer is None:
            raise UsageError("this world was trained on tokens alone; give their tokenizer (--tokenizer DIR)")
        return self.tokenizer

    @torch.no_grad()
    def _encode(self, frames: UInt8[Tensor, "b t 3 h w"]) -> Tensor:
        return self._known().encode(frames.to(self.device)).cpu()

    @torch.no_grad()
    def _decode(self, encoded: Tensor, *seen: Tensor) -> UInt8[Tensor, "b t 3 h w"]:
        with timing.part("decode"):
            return self._known().decode(encoded.to(self.device), *(one.to(self.device) for one in seen)).cpu()


@dataclass(frozen=True, kw_only=True)
class CopyLast(Forecaster):
    """The baseline that every forecast must beat: the last context frame, repeated."""

    grid: TokenGrid | LatentGrid | None = None
    tokenizer: Tokenizer[Any] | None = None
    context_frames: int
    times: tuple[int, ...]
    chunk_frames: int

    @classmethod
    def beside(cls: type[Same], forecaster: Forecaster, **more: Any) -> Same:
        """The baseline of a forecaster: the same context, predicted times and steps."""
        same = {name: getattr(forecaster, name) for name in ("context_frames", "times", "chunk_frames")}
        return cls(**same, **more)

    def reconstruct(self, batch: Batch) -> Forecast:
        frames = self.frames_of(batch, self.times[-1] + 1)
        return Forecast(times=self.times, frames=frames[:, None, list(self.times)])

    def begin(self, batch: Batch) -> Context:
        return (self.frames_of(batch, self.context_frames)[:, self.context_frames - 1].clone(),)

    def step(self, context: Context, states: States, *, seeds: Seeds) -> Step:
        (last,), futures = context, (self.num_samples, len(self.times))
        return Forecast(times=self.times, frames=last[:, None, None].repeat(1, *futures, 1, 1, 1)), lambda: context


@dataclass(frozen=True, kw_only=True, eq=False)
class Snapshot:
    """A moment of a session: all that decides its future, except the forecaster. Its tensors never change."""

    made_by: str
    """Which forecaster: a hash of its settings and its weights."""
    context: Context
    states: Float32[Tensor, "b c s"]
    """Of the frames of the context."""
    seeds: tuple[int, ...]
    chunks: int = 0

    def __getstate__(self) -> dict[str, Any]:
        """What is pickled is on the CPU, so that it can be read on a machine without the device."""
        return vars(self) | {"context": tuple(part.cpu() for part in self.context)}


class Session:
    """Imagined frames after a context, as the states say. Batched: the futures of `b` clips continue together."""

    def __init__(self, forecaster: Forecaster, now: Snapshot) -> None:
        self.forecaster, self._now = forecaster, now

    @property
    def time(self) -> int:
        """Frames so far, with the context: the position of the next one."""
        return self.forecaster.context_frames + self._now.chunks * self.forecaster.chunk_frames

    def advance(self, states: Float32[Tensor, "b t s"], *, extra: Collection[Extra] = ()) -> Forecast:
        """Continue by `chunk_frames` and return their forecast; `Forecast.times` says which frames it predicts.

        Args:
            states: raw units, one row for each of the next `lookahead_frames` frames; the next call's begin
                `chunk_frames` later. Others, or no finite numbers, raise `UsageError`.
            extra: further parts of the forecast, of those that are `streamed`; others raise `UsageError`.
        """
        return advance_together([self], [states], extra=extra)[0]

    def snapshot(self) -> Snapshot:
        """This moment: a few token grids, latents or frames. It can be pickled."""
        return self._now

    def restore(self, snapshot: Snapshot) -> None:
        """Return to a moment of this or another session. Raises `UsageError` if another forecaster made it."""
        if snapshot.made_by != self._now.made_by:
            other = "another forecaster (other weights, or another choice of sampling)"
            raise UsageError(f"this snapshot is of {other}; restore it in a session of the one that made it")
        self._now = snapshot

    def fork(self) -> "Session":
        """A second session that goes on from this moment."""
        return Session(self.forecaster, self._now)

    def part(self) -> "list[Session]":
        """A session of each clip by itself, which go on from this moment one by one or together."""
        now, ones = self._now, (1,) * len(self._now.seeds)
        each = zip(self.forecaster.parted(now.context, ones), now.states.split(1), now.seeds, strict=True)
        moments = [replace(now, context=own, states=states.clone(), seeds=(seed,)) for own, states, seed in each]
        return [Session(self.forecaster, moment) for moment in moments]


def advance_together(
    sessions: Sequence[Session], states: Sequence[Float32[Tensor, "_ t s"]], *, extra: Collection[Extra] = ()
) -> list[Forecast]:
    """Continue each of several sessions by a chunk, in one call of their world.

    They may be at different times: environments begin anew one by one. What each gives is what its own `advance`
    would, within rounding, and costs less. Raises `UsageError` where the sessions are not of one forecaster, one is
    there twice, the states of one do not fit, or an `extra` part is not `streamed`; then none has gone on.
    """
    if not sessions or len({id(one) for one in sessions}) < len(sessions) or len(sessions) != len(states):
        raise UsageError(f"give some different sessions with the states of each, not {len(sessions)} and {len(states)}")
    forecaster, moments = sessions[0].forecaster, [session.snapshot() for session in sessions]
    if len({moment.made_by for moment in moments}) > 1:
        raise UsageError("sessions of different forecasters (weights, or choices of sampling) cannot go on together")
    if missing := {*extra} - forecaster.streamed:
        raise UsageError(f"a session of this world does not give {', '.join(sorted(missing))}")
    chunk, dims = forecaster.chunk_frames, moments[0].states.shape[-1]
    for moment, ahead in zip(moments, states, strict=True):
        _check_states(ahead, len(moment.seeds), forecaster.lookahead_frames, dims)
    ways = [ahead.to("cpu", torch.float32) for ahead in states]
    windows = [torch.cat([now.states, way], dim=1) for now, way in zip(moments, ways, strict=True)]
    drawn = [chunk_seeds(moment.seeds, moment.chunks) or () for moment in moments]
    alone, clips = len(moments) == 1, [len(moment.seeds) for moment in moments]
    context = moments[0].context if alone else forecaster.joined([moment.context for moment in moments])
    more: dict[str, Any] = {"extra": extra} if extra else {}
    made, onward = forecaster.step(context, torch.cat(windows), seeds=[seed for own in drawn for seed in own], **more)
    contexts = [onward()] if alone else forecaster.parted(onward(), clips)
    inside = sum(time < forecaster.context_frames + chunk for time in made.times)
    forecasts = [_first(part, inside) for part in ([made] if alone else _parted(made, clips))]
    for i, (session, now, window) in enumerate(zip(sessions, moments, windows, strict=True)):
        kept = window[:, chunk : chunk + now.states.shape[1]].clone()
        session._now = replace(now, context=contexts[i], states=kept, chunks=now.chunks + 1)
        forecasts[i] = replace(forecasts[i], times=tuple(now.chunks * chunk + time for time in forecasts[i].times))
    return forecasts


def _parted(made: Forecast, clips: Sequence[int]) -> list[Forecast]:
    """The forecasts of the first `clips[0]` clips, of the next `clips[1]`, ...; frames made later are made at once."""
    whole, ends = cache(lambda: made.video), np.cumsum(clips).tolist()

    def part(rows: slice) -> Forecast:
        frames, tokens = (None if held is None else held[rows] for held in (made.frames, made.tokens))
        unmade = None if made.later is None else lambda: whole()[rows]
        held = {} if made.certainty is None else {name: x for name, x in vars(made.certainty).items() if x is not None}
        sure = Certainty(**{name: x[rows] for name, x in held.items()}) if held else None
        return Forecast(times=made.times, frames=frames, tokens=tokens, certainty=sure, later=unmade)

    return [part(slice(end - count, end)) for end, count in zip(ends, clips, strict=True)]


def _first(made: Forecast, count: int) -> Forecast:
    """The first frames of a forecast."""
    frames, later = made.frames, made.later
    frames = None if frames is None else frames[:, :, :count]
    later = None if later is None else (lambda all_of=later: all_of()[:, :, :count])
    return replace(made, frames=frames, later=later, times=made.times[:count])


# --- noise: that of sample k depends on (seed, clip, k) alone, and is drawn on the CPU, alike on all machines ---


def clip_seeds(seed: int, origins: Sequence[Origin]) -> tuple[int, ...]:
    """One seed per clip, from the episode and frame where it begins."""
    return tuple(mixed(seed, origin.episode, origin.start) for origin in origins)


def chunk_seeds(seeds: Seeds, number: int) -> Seeds:
    """The seeds of a chunk of a session, counted from 0: the first is a forecast with the seeds of the session."""
    return tuple(mixed(seed, number, 1) for seed in seeds) if seeds is not None and number else seeds


def generators(seeds: Seeds, num_samples: int, *, clips: int) -> list[torch.Generator]:
    """One generator for each sample of each clip, in the order `(b k)`. Raises `UsageError` where seeds are missing."""
    if seeds is None or len(seeds) != clips:
        found = "none" if seeds is None else len(seeds)
        raise UsageError(f"this forecast is drawn from noise: give one seed for each of {clips} clips, not {found}")
    return [torch.Generator().manual_seed(mixed(seed, k)) for seed in seeds for k in range(num_samples)]


def mixed(*numbers: int) -> int:
    """Numbers without a pattern from numbers with one; torch reads 32 bits of it."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint32)[0])


# --- checks ---


def _check_states(states: Tensor, clips: int, frames: int, dims: int) -> None:
    """Refuse states of another shape, or that are no numbers. Raises `UsageError`."""
    if tuple(states.shape) != (clips, frames, dims):
        found = " x ".join(map(str, states.shape))
        raise UsageError(f"expected states of {clips} clips x {frames} frames x {dims} dimensions, not {found}")
    if not states.isfinite().all():
        raise UsageError("the states hold values that are no finite numbers")


def signature(forecaster: Forecaster) -> str:
    """Hash of its settings, and of its models: their configs, and names, shapes and first values of their weights."""
    digest = hashlib.sha256(type(forecaster).__name__.encode())
    for part in (part for part in fields(forecaster) if part.compare):
        own: Any = getattr(forecaster, part.name)
        if isinstance(own, Forecaster):
            own = signature(own)
        if isinstance(own, tuple) and any(isinstance(one, torch.nn.Module) for one in own):
            own = torch.nn.ModuleList(own)
        weights = own.state_dict() if isinstance(own, torch.nn.Module) else {"": own}
        config = own.config if isinstance(own, Configured) else None
        digest.update(repr(config).encode())  # the same weights can forecast in several ways
        for name, value in weights.items():
            first = f"{[*value.shape]} {value.flatten()[:4].tolist()}" if isinstance(value, Tensor) else repr(value)
            digest.update(f"{part.name} {name} {first}\n".encode())
    return digest.hexdigest()
