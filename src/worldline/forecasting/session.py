"""`Session`: an imagined episode of any length, chunk by chunk: a forecaster and a `Snapshot`.

A step is a pure function of the snapshot and the next states: sessions share nothing, and their memory does not grow.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float32
from torch import Tensor

from worldline.process.noise import chunk_seeds
from worldline.schema import Forecast, UsageError

if TYPE_CHECKING:
    from worldline.forecasting.forecaster import Forecaster

Context = tuple[Tensor, ...]
"""The context of a forecaster, in its own form: token grids, latents, frames or physics. Small, and on the CPU."""
Step = tuple[Forecast, Callable[[], Context]]
"""The forecast of a window, and a function that makes the context one chunk later."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Snapshot:
    """A moment of a session: all that decides its future, except the forecaster. Its tensors never change."""

    made_by: str
    """Which forecaster, by `signature`."""
    context: Context
    states: Float32[Tensor, "b c s"]
    """Of the frames of the context."""
    seeds: tuple[int, ...]
    chunks: int = 0


class Session:
    """Imagined frames after a context, as the states say. Batched: the futures of `b` clips continue together."""

    forecaster: "Forecaster"

    def __init__(self, forecaster: Any, now: Snapshot) -> None:
        self.forecaster, self._now = forecaster, now

    @property
    def time(self) -> int:
        """Frames so far, with the context: the position of the next one."""
        return self.forecaster.context_frames + self._now.chunks * self.forecaster.chunk_frames

    def advance(self, states: Float32[Tensor, "b t s"]) -> Forecast:
        """Continue by `chunk_frames` and return their forecast; `Forecast.times` says which frames it predicts.

        Args:
            states: raw units, one row for each of the next `lookahead_frames` frames; the next call's begin
                `chunk_frames` later. Others, or no finite numbers, raise `UsageError`.
        """
        now, chunk = self._now, self.forecaster.chunk_frames
        check_states(states, (len(now.seeds), self.forecaster.lookahead_frames, now.states.shape[-1]))
        window = torch.cat([now.states, states.cpu()], dim=1)
        made, onward = self.forecaster.step(now.context, window, seeds=chunk_seeds(now.seeds, now.chunks))
        kept = window[:, chunk : chunk + now.states.shape[1]].clone()
        self._now = replace(now, context=onward(), states=kept, chunks=now.chunks + 1)
        inside = [time for time in made.times if time < self.forecaster.context_frames + chunk]
        frames = None if made.frames is None else made.frames[:, :, : len(inside)]
        return replace(made, frames=frames, times=tuple(now.chunks * chunk + time for time in inside))

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


def check_states(states: Tensor, expected: tuple[int, int, int]) -> None:
    """Refuse states of another shape (clips, frames, dimensions), or that are no numbers. Raises `UsageError`."""
    if tuple(states.shape) != expected:
        clips, frames, dims = expected
        found = " x ".join(map(str, states.shape))
        raise UsageError(f"expected states of {clips} clips x {frames} frames x {dims} dimensions, not {found}")
    if not states.isfinite().all():
        raise UsageError("the states hold values that are no finite numbers")


def signature(forecaster: Any) -> str:
    """Hash of its settings, and of its models by the names, shapes and first values of their weights."""
    digest = hashlib.sha256(type(forecaster).__name__.encode())
    for field in fields(forecaster):
        part = getattr(forecaster, field.name)
        weights = part.state_dict() if isinstance(part, torch.nn.Module) else {"": part}
        for name, value in weights.items() if field.compare else ():
            first = f"{[*value.shape]} {value.flatten()[:4].tolist()}" if isinstance(value, Tensor) else repr(value)
            digest.update(f"{field.name} {name} {first}\n".encode())
    return digest.hexdigest()
