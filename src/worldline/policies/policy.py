"""What a policy is: `act(observation) -> action`, in the world as in the twin.

An **observation** is what there is NOW: `{"frame": uint8 (h, w, 3), "state": float32 (s,)}`. An **action** is the next
commanded state, float32 `(s,)`, in the data's own units. A policy that wants history keeps it itself. So any object
with `act` is a policy. Beyond that a policy may have

* `reset(seed)`, called before every episode; `reset(seed, start)` where `needs_start` is true: a scripted policy is
  told once where things are (`worldline.twin.tasks.Start`), and never looks;
* `reset_batch(seeds, starts)` and `act_batch(observations)`, for n episodes at once: row i of every call is of
  episode i.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypedDict, runtime_checkable

import numpy as np
from jaxtyping import Float32, UInt8

from worldline.schema import UsageError


class Observation(TypedDict):
    """What a policy sees of one moment."""

    frame: UInt8[np.ndarray, "h w 3"]
    state: Float32[np.ndarray, " s"]


@runtime_checkable
class Policy(Protocol):
    """All that a policy must have."""

    def act(self, observation: Any) -> Float32[np.ndarray, " s"]:
        """The next commanded state."""
        ...


class BatchPolicy(ABC):
    """A policy that plays n episodes at a time; those of one episode are its case n = 1.

    It is deterministic in its seed, whatever else runs, and a row's actions do not depend on the other rows' episodes
    (but for rounding).
    """

    needs_start: bool = False
    """Whether `reset` must be told the start: where things are."""
    fps: float
    """Actions per second that it was made for."""

    @property
    def looks_now(self) -> bool:
        """Whether it reads the frame of its next observation: if not, nobody needs to draw or decode it."""
        return True

    @abstractmethod
    def reset_batch(self, seeds: Sequence[int], starts: Sequence[Any] | None = None) -> None:
        """Begin an episode in each row. Raises `UsageError` where `needs_start` and there are none."""

    @abstractmethod
    def act_batch(self, observations: Mapping[str, np.ndarray]) -> Float32[np.ndarray, "n s"]:
        """The next commanded state of every row; `frame` is uint8 `(n, h, w, 3)`, `state` float32 `(n, s)`.

        Raises `UsageError` before a reset, or for another number of rows.
        """

    def reset(self, seed: int = 0, start: Any = None) -> None:
        """Begin an episode."""
        self.reset_batch([seed], None if start is None else [start])

    def act(self, observation: Any) -> Float32[np.ndarray, " s"]:
        return self.act_batch({name: np.asarray(value)[None] for name, value in observation.items()})[0]


def checked_states(observations: Mapping[str, np.ndarray], rows: int | None, dim: int) -> Float32[np.ndarray, "n s"]:
    """The states of a batch of observations. Raises `UsageError` for what is not `rows` rows of `dim` numbers."""
    if rows is None:
        raise UsageError("this policy has not begun an episode: call `reset` (or `reset_batch`) first")
    states = np.asarray(observations["state"], dtype=np.float32)
    if states.shape != (rows, dim):
        raise UsageError(f"observation['state'] of {rows} episodes has the shape {(rows, dim)}, not {states.shape}")
    return states
