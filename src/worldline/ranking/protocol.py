"""The protocol: a policy plays episodes from the same starts at several places, in closed loop.

A **place** is a forecaster, of a world or of the truth, in which episodes begin at starts and go on in a session: the
policy sees the newest frame and state, its action is the next commanded state, which is what the session is advanced
by. In a world the state is what was commanded; where there is physics it is what was measured, and the gap between both
is recorded. Success is read from frames by one frozen reader at every place, and from physics beside it.

Everything is a function of (policy, start, seed), and of nothing that happened before.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int, UInt8
from torch import Tensor

from worldline.forecasting.forecaster import Extra, Forecaster, Session, mixed
from worldline.judges.success import spread_over
from worldline.ranking.actors import ACT_SECONDS, Actors, Contender, Held, Named
from worldline.schema import Batch, Forecast, UsageError

Signal = Literal["spread", "token_entropy", "round_trip"]
"""What a world says of how far its own episode can be trusted, larger is less: the standard deviation of its samples
(grey levels), the mean entropy of its tokens (nats), or what its tokenizer loses of the frames (grey levels)."""
Between = Literal["ramp", "hold"]
"""What the frames of a step longer than one frame are given: states on a line to the commanded one, or that one."""
Given = Literal["own", "shuffled", "replayed"]
"""What the session is advanced by: what the policy commands in this episode, what it commands in the next start's, or
what it commanded where the truth is known (then it does not act)."""
STILL = 0.25
"""Motion in grey levels per frame below which a signal is not divided by less: a still picture has no motion at all."""


# --- starts ---


@dataclass(frozen=True, kw_only=True, eq=False)
class Starts:
    """Where the episodes of a task begin: the same for every policy and at every place."""

    task: str
    named: Named
    batch: Batch
    """Frames and states of `n` contexts, as long as the longest that a place needs: the last of them is now."""

    def __len__(self) -> int:
        return len(self.batch)

    def rows(self, first: int, last: int) -> "Starts":
        """Some of them."""
        named, batch = self.named, self.batch
        told = named.told[first:last]
        some = Named(ids=named.ids[first:last], seeds=named.seeds[first:last], told=told)
        return replace(self, named=some, batch=_part(batch, slice(first, last), slice(None)))

    def contexts(self, frames: int) -> Batch:
        """The last so many frames of each context, as clips. Raises `UsageError` where there are fewer."""
        held = self.batch.states.shape[1]
        if frames > held:
            raise UsageError(
                f"the starts of {self.task!r} hold {held} frames, but this forecaster begins with {frames}"
            )
        later = 0 if self.named.told else held - frames  # a start that is told is its own moment, however much is seen
        origins = tuple(replace(one, start=one.start + later) for one in self.batch.origins)
        return replace(_part(self.batch, slice(None), slice(held - frames, None)), origins=origins)


def _part(batch: Batch, rows: slice, frames: slice) -> Batch:
    if batch.frames is None:
        raise UsageError("policies see frames: these starts have none (tokens or latents alone)")
    return Batch(
        states=batch.states[rows, frames],
        fps=batch.fps,
        origins=batch.origins[rows],
        frames=batch.frames[rows, frames],
    )


# --- places ---


class Watch(ABC):
    """Physics beside a session of n episodes: asked at the start, and after every step."""

    @abstractmethod
    def look(self, session: Session) -> Float32[np.ndarray, "n s"]:
        """The measured states now; what decides success is noted."""

    @property
    @abstractmethod
    def succeeded(self) -> Bool[np.ndarray, " n"]:
        """Whether each episode is a success, by all that was noted."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Place:
    """Where policies act."""

    id: str
    label: str
    forecaster: Forecaster
    identity: str
    """Hash of what decides its frames."""
    given: Given = "own"
    begins: Callable[[Starts, int], Session] | None = None
    """Episodes from starts and a seed; if not given, a session of their contexts."""
    watch: Callable[[Starts, Session], Watch] | None = None
    """Physics, where there is one."""
    rows: int = 64
    """Episodes at once, at most."""

    def begin(self, starts: Starts, seed: int) -> Session:
        if self.begins is not None:
            return self.begins(starts, seed)
        contexts = starts.contexts(self.forecaster.context_frames)
        return self.forecaster.start_clips(contexts, seed=seeds_of(seed, starts.named.seeds))


def seeds_of(seed: int, seeds: tuple[int, ...]) -> tuple[int, ...]:
    """The seed of each episode: of the ranking and of its start."""
    return tuple(mixed(seed, one) for one in seeds)


@runtime_checkable
class Reader(Protocol):
    """Reads success from the pictures of whole episodes: one, frozen, at every place."""

    identity: str
    label: str
    looks: int | None
    """So many frames of an episode, evenly from the first to the last, are all it must see; None where it must see all.
    Frames that nobody sees need not be decoded or drawn."""

    def chances(
        self, task: str, frames: UInt8[np.ndarray, "n t h w 3"], states: Float32[np.ndarray, "n t s"]
    ) -> Float[np.ndarray, " n"]:
        """The chance of success of each episode, from its last context frame on; success is a chance of 0.5 or more."""
        ...


# --- an episode ---


@dataclass(frozen=True, kw_only=True)
class Manner:
    """How episodes are played, the same for all."""

    steps: int
    """Steps of a session: each is a chunk of frames, and the policy acts once."""
    seed: int = 0
    between: Between = "ramp"
    limit: float = ACT_SECONDS
    signal: Signal | None = None
    held: Held | None = None
    """The range of the data, and what becomes of actions outside of it; None where it is not known."""
    films: int = 0
    """The first so many starts are kept as pictures."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Played:
    """The episodes of a policy at a place, one row for each start."""

    chances: Float[np.ndarray, " n"]
    """Of success, read from frames."""
    succeeded: Bool[np.ndarray, " n"] | None
    """By physics; None where there is none."""
    commands: Float32[np.ndarray, "n steps s"]
    gap: Float32[np.ndarray, "n s"] | None
    """Mean absolute difference of commanded and measured state; None without physics."""
    motion: Float[np.ndarray, " n"]
    """Mean absolute difference of one frame and the next that are read, in grey levels."""
    signal: Float[np.ndarray, " n"] | None
    """Mean over frames, not yet divided by the motion."""
    outside: Int[np.ndarray, " n"] | None
    """Actions of which a number was outside of the data's range; None where that is not known, or nobody acted."""
    films: UInt8[np.ndarray, "m t h w 3"]
    seconds: float

    @property
    def hits(self) -> Bool[np.ndarray, " n"]:
        """Success by frames."""
        return self.chances >= 0.5

    @property
    def doubt(self) -> Float[np.ndarray, " n"] | None:
        """The signal per motion: fast pictures are harder, and no less to be trusted for that."""
        return None if self.signal is None else self.signal / np.maximum(self.motion, STILL)

    def first(self, count: int) -> "Played":
        """The episodes of the first so many starts."""
        rows = {name: value[:count] for name, value in vars(self).items() if isinstance(value, np.ndarray)}
        return replace(self, **rows)


def play(
    place: Place,
    contender: Contender,
    starts: Starts,
    reader: Reader,
    manner: Manner,
    *,
    replayed: Float32[np.ndarray, "n steps s"] | None = None,
) -> Played:
    """Let a policy play all starts at a place.

    Args:
        replayed: the commands, where the place replays them.

    Raises:
        PolicyError: the policy did what none may do.
        UsageError: place and starts do not go together.
    """
    began, parts, filmed = time.monotonic(), [], min(manner.films, len(starts))
    firsts = [*([0] if filmed else []), *range(filmed, len(starts), place.rows)]
    for first, last in pairwise([*firsts, len(starts)]):
        given = None if replayed is None else replayed[first:last]
        # All frames of what is filmed are made, so that is played by itself.
        one = _Episodes(place, contender, starts.rows(first, last), manner, filming=last <= filmed)
        parts.append(one.played(reader, given))
    return _joined(parts, time.monotonic() - began)


@dataclass(eq=False)
class _Step:
    """What a step of a session made. Its frames are made when they are first asked for."""

    made: Forecast

    @cached_property
    def frames(self) -> UInt8[np.ndarray, "n t h w 3"]:
        return _pictures(self.made.video[:, 0])


@dataclass
class _Episodes:
    """Episodes that are played together."""

    place: Place
    contender: Contender
    starts: Starts
    manner: Manner
    filming: bool = False
    commanded: list[np.ndarray] = field(default_factory=list)
    measured: list[np.ndarray] = field(default_factory=list)
    """States `n s`: at the start, and after each step."""
    steps: list[_Step] = field(default_factory=list)
    signals: list[np.ndarray] = field(default_factory=list)
    outside: np.ndarray | None = None

    def played(self, reader: Reader, replayed: np.ndarray | None) -> Played:
        session = self.place.begin(self.starts, self.manner.seed)
        watch = None if self.place.watch is None else self.place.watch(self.starts, session)
        self.measured.append(self._first(session, watch))
        for commands in self._commands(replayed):
            self._advance(session, watch, commands)
        frames, states = self._read(None if self.filming else reader.looks)
        commands, reached = np.stack(self.commanded, axis=1), np.stack(self.measured[1:], axis=1)
        return Played(
            chances=np.asarray(reader.chances(self.starts.task, frames, states), np.float64).reshape(-1),
            succeeded=None if watch is None else watch.succeeded.copy(),
            commands=commands,
            gap=None if watch is None else np.abs(commands - reached).mean(axis=1),
            motion=_motion(_looked(frames, reader.looks)),
            signal=np.stack(self.signals).mean(axis=0) if self.signals else None,
            outside=self.outside,
            films=frames if self.filming else frames[:0],
            seconds=0.0,
        )

    @cached_property
    def now(self) -> UInt8[np.ndarray, "n one h w 3"]:
        """The last frame of the context."""
        assert self.starts.batch.frames is not None, "checked where starts are taken"
        return _pictures(self.starts.batch.frames[:, -1:])

    def _read(self, looks: int | None) -> tuple[np.ndarray, np.ndarray]:
        """Frames and states of the episodes: all of them, or `looks` at even distances."""
        per = len(self.steps[0].made.times)
        count = 1 + per * len(self.steps)
        chosen = range(count) if looks is None else spread_over(count, looks)
        frames, states = [], []
        for place in chosen:
            step, within = divmod(place - 1, per)
            frames.append(self.now[:, 0] if place == 0 else self.steps[step].frames[:, within])
            states.append(self.measured[0] if place == 0 else self._state(step, within))
        return np.stack(frames, axis=1), np.stack(states, axis=1)

    def _state(self, step: int, within: int) -> Float32[np.ndarray, "n s"]:
        """The state at a frame of a step: on the way (`between`) from that before the step to that after it."""
        forecaster, before, after = self.place.forecaster, self.measured[step], self.measured[step + 1]
        chunk = forecaster.chunk_frames
        gone = self.steps[step].made.times[within] + 1 - forecaster.context_frames - step * chunk
        if self.manner.between == "hold" or gone >= chunk:
            return after
        return before + np.float32(gone / chunk) * (after - before)

    def _first(self, session: Session, watch: Watch | None) -> np.ndarray:
        return self.starts.batch.states[:, -1].numpy() if watch is None else watch.look(session)

    def _commands(self, replayed: np.ndarray | None) -> Iterator[np.ndarray]:
        """What each step is given, in turn; the policy acts when it is asked for."""
        if (self.place.given == "replayed") != (replayed is not None):
            raise UsageError(f"commands are replayed where a place says so, and {self.place.label} does not or does")
        if replayed is not None:
            yield from np.moveaxis(replayed, 1, 0)[: self.manner.steps]
            return
        chunk, fps = self.place.forecaster.chunk_frames, self.starts.batch.fps
        how: dict[str, Any] = {"limit": self.manner.limit, "held": self.manner.held}
        with Actors(self.contender, self._named(), dim=self.measured[0].shape[-1], **how) as actors:
            actors.reset(rate=fps / chunk)
            seen = self.now[:, 0]
            for step in range(self.manner.steps):
                if self.steps and actors.looks:
                    seen = self.steps[-1].frames[:, -1]
                yield actors.act(seen, self.measured[-1], step=step)
            self.outside = None if self.manner.held is None else actors.outside

    def _named(self) -> Named:
        named = self.starts.named
        return replace(named, seeds=seeds_of(self.manner.seed, named.seeds))

    def _advance(self, session: Session, watch: Watch | None, commands: np.ndarray) -> None:
        before = self.commanded[-1] if self.commanded else self.measured[0]
        given, last = commands, before
        if self.place.given == "shuffled":
            given, last = np.roll(commands, -1, axis=0), np.roll(before, -1, axis=0) if self.commanded else before
        self.commanded.append(commands)
        ahead = between(last, given, session.forecaster, self.manner.between)
        self.steps.append(_Step(_advanced(session, ahead, self.manner.signal)))
        self.measured.append(commands if watch is None else watch.look(session))
        if self.manner.signal is not None:
            self.signals.append(_signal(self.manner.signal, session.forecaster, self.now, self.steps))


def between(
    last: Float32[np.ndarray, "n s"], wanted: Float32[np.ndarray, "n s"], forecaster: Forecaster, how: Between
) -> Float32[Tensor, "n t s"]:
    """The states that a step is given: to the wanted one over the frames of the step, and there as far as it looks."""
    chunk, ahead = forecaster.chunk_frames, forecaster.lookahead_frames
    share = np.ones(ahead, np.float32) if how == "hold" else np.minimum(np.arange(1, ahead + 1) / chunk, 1)
    rows = last[:, None] + share[None, :, None].astype(np.float32) * (wanted - last)[:, None]
    rows[:, share >= 1] = wanted[:, None]  # to the last bit
    return torch.from_numpy(rows.astype(np.float32))


def _advanced(session: Session, states: Tensor, signal: Signal | None) -> Forecast:
    extra: tuple[Extra, ...] = ("certainty",) if signal == "token_entropy" else ()
    with torch.no_grad() if not torch.is_inference_mode_enabled() else nullcontext():
        return session.advance(states, extra=extra) if extra else session.advance(states)


def _looked(frames: UInt8[np.ndarray, "n t h w 3"], looks: int | None) -> UInt8[np.ndarray, "n k h w 3"]:
    """Of all frames those that are read."""
    return frames if looks is None else frames[:, list(spread_over(frames.shape[1], looks))]


def _pictures(frames: UInt8[Tensor, "n t 3 h w"]) -> UInt8[np.ndarray, "n t h w 3"]:
    return np.ascontiguousarray(frames.permute(0, 1, 3, 4, 2).numpy())


def _motion(frames: UInt8[np.ndarray, "n t h w 3"]) -> Float[np.ndarray, " n"]:
    """Mean absolute difference of successive frames, an episode at a time: all of them at once take much memory."""
    return np.array([np.abs(np.diff(one.astype(np.int16), axis=0)).mean() for one in frames])


# --- how far an episode can be trusted ---


def _signal(name: Signal, forecaster: Forecaster, now: np.ndarray, steps: list[_Step]) -> Float[np.ndarray, " n"]:
    """One number per episode for the newest step."""
    made = steps[-1].made
    if name == "spread":
        return made.spread.mean(dim=(1, 2, 3)).double().numpy()
    if name == "token_entropy":
        if made.certainty is None:
            raise UsageError("this world has no tokens whose entropy could be told; choose another signal (--trust)")
        return made.certainty.entropy.flatten(1).mean(dim=1).double().numpy()
    return _round_trip(forecaster, now, steps)


def _round_trip(forecaster: Forecaster, now: np.ndarray, steps: list[_Step]) -> np.ndarray:
    """What the tokenizer loses of the newest frames, in grey levels: it keeps what it knows."""
    need, new = forecaster.context_frames, steps[-1].frames.shape[1]
    shown = np.concatenate([now, *(step.frames for step in steps[-need:])], axis=1)
    newest = shown.repeat(forecaster.pace, axis=1)[:, -need:]  # each stands for the frames from the one before it on
    if newest.shape[1] < need:  # before there are enough, the first one stands for those before it
        newest = np.concatenate([np.repeat(newest[:, :1], need - newest.shape[1], axis=1), newest], axis=1)
    clips = torch.from_numpy(newest).permute(0, 1, 4, 2, 3).contiguous()
    states = torch.zeros(len(clips), need, 1)
    found = forecaster.round_trip(Batch(states=states, fps=0.0, origins=(), frames=clips))
    if found is None:
        raise UsageError("this world has no tokenizer that could say what it knows; choose another signal (--trust)")
    given, kept = (one[:, -new:].float() for one in found)
    return (given - kept).abs().mean(dim=(1, 2, 3, 4)).double().numpy()


def _joined(parts: list[Played], seconds: float) -> Played:
    joined: dict[str, Any] = {}
    for name in ("chances", "succeeded", "commands", "gap", "motion", "signal", "outside"):
        held = [getattr(part, name) for part in parts]
        joined[name] = None if held[0] is None else np.concatenate(held)
    films = [part.films for part in parts if len(part.films)]
    return Played(**joined, films=np.concatenate(films) if films else parts[0].films, seconds=seconds)
