"""What rewards and endings are judged by: one step of one environment."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float32

from worldline.envs.observation import Observation
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
    session: Session = field(repr=False)
    """Where the episode is after the step: a fork, with which anything may be done (the live twin's says what physics
    knows)."""


Judge = Callable[[Transition], Any]
"""A number or a truth value of a transition. Where it has `many(transitions)`, a vector environment asks for all at
once, as a network is cheaper to ask."""


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
