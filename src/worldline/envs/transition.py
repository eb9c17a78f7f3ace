"""What rewards and endings are judged by: one step of one environment."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from worldline.envs.observation import Look, Observation
from worldline.forecasting.forecaster import Session
from worldline.schema import UsageError


@dataclass(frozen=True, kw_only=True, eq=False)
class Transition:
    """One step. Pictures of its observations (`frame`) are decoded if they are read."""

    before: Observation
    after: Observation
    first: Observation
    """Of the episode's start."""
    action: Float32[np.ndarray, "..."]
    path: Float32[np.ndarray, "n s"]
    """The states that were followed, one for each video frame of the step."""
    step: int
    """Counted from 1."""
    start: int
    """Number of the start."""
    history: tuple[tuple[Look, Float32[np.ndarray, " s"]], ...] = field(default=(), repr=False)
    """What was seen and measured from the start on, if a judge reads whole episodes; else at the start and now."""
    session: Session = field(repr=False)
    """Where the episode is after the step: a fork, with which anything may be done (the live twin's says what physics
    knows)."""


Judge = Callable[[Transition], Any]
"""A number or a truth value of a transition. Where it has `many(transitions)`, a vector environment asks for all at
once, as a network is cheaper to ask. Where its `whole_episode` is True, transitions hold the whole `history`."""


@runtime_checkable
class Reader(Protocol):
    """Reads from pictures whether something is done, such as a learned success classifier."""

    def chance(self, frames: UInt8[Tensor, "b t 3 h w"], states: Float32[Tensor, "b t s"]) -> Any:
        """The chance of each episode, 0 to 1, given it from its start up to now."""
        ...


@dataclass(frozen=True)
class Seen:
    """What a reader sees, as a `success` or `failure`: true from a chance of `threshold` on."""

    reader: Reader
    threshold: float = 0.5
    whole_episode: bool = True

    def __call__(self, transition: Transition) -> bool:
        return self.many([transition])[0]

    def many(self, transitions: Sequence[Transition]) -> list[bool]:
        """Of several at once; those of one length are asked about together."""
        said: dict[int, bool] = {}
        for length in {len(one.history) for one in transitions}:
            own = [i for i, one in enumerate(transitions) if len(one.history) == length]
            pictures = np.stack([[look.frames()[-1] for look, _ in transitions[i].history] for i in own])
            states = np.stack([[state for _, state in transitions[i].history] for i in own])
            frames = torch.from_numpy(pictures).permute(0, 1, 4, 2, 3)
            chances = np.asarray(self.reader.chance(frames, torch.from_numpy(states)), np.float64).reshape(-1)
            said |= {i: bool(chance >= self.threshold) for i, chance in zip(own, chances, strict=True)}
        return [said[i] for i in range(len(transitions))]


def judged(judge: Judge, transitions: Sequence[Transition], what: str) -> list[float]:
    """What a judge says of each. Raises `UsageError` where it is no finite number."""
    many: Any = getattr(judge, "many", None)
    said = [judge(one) for one in transitions] if many is None else list(many(transitions))
    if len(said) != len(transitions):
        raise UsageError(f"the {what} gave {len(said)} values for {len(transitions)} transitions")
    try:
        found = [float(value) for value in said]
    except (TypeError, ValueError) as error:
        raise UsageError(f"the {what} must give a number, not {said[0]!r:.80}") from error
    if not np.isfinite(found).all():
        raise UsageError(f"the {what} gave {next(x for x in found if not np.isfinite(x))}, which is no finite number")
    return found
