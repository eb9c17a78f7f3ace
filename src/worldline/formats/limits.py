"""Between which values the states of a robot lie, and how far they change in a frame: the bounds of actions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Float32

from worldline.formats.source import Source
from worldline.formats.states import StateStats
from worldline.schema import Clip, StateLayout, UsageError

_EPISODES = 64
"""Episodes that are read for limits: the states of more would take long and say little more."""
_LEAST = 1e-3
"""Width of the range of an entry that never changes: a space has no empty range."""
_ROUNDING = 1e-5
"""Part of an entry's range by which it may lie outside: sums of float32."""

Vector = Float32[np.ndarray, " s"]
OutOfRange = Literal["clip", "refuse", "allow"]
"""What becomes of states outside the limits: the nearest within, refused (`UsageError`), or given as they are."""


@dataclass(frozen=True, kw_only=True, eq=False)
class StateLimits:
    """Lowest and highest value of every entry of a state, in raw units, and its largest change from frame to frame."""

    names: tuple[str, ...]
    low: Vector
    high: Vector
    change: Vector

    def __post_init__(self) -> None:
        """Raises `UsageError` where limits are of another number of entries, not finite, or the wrong way round."""
        shapes = {one.shape for one in (self.low, self.high, self.change)}
        finite = all(np.isfinite(one).all() for one in (self.low, self.high, self.change))
        if shapes != {(len(self.names),)} or not finite:
            raise UsageError(f"limits need {len(self.names)} finite numbers each: low, high and change")
        if (wrong := np.flatnonzero((self.low >= self.high) | (self.change <= 0))).size:
            raise UsageError(f"the limits of {self.names[wrong[0]]} are empty: low must be below high, change above 0")

    @staticmethod
    def of_rows(episodes: Sequence[Float32[np.ndarray, "t s"]], layout: StateLayout | None = None) -> "StateLimits":
        """The range of some recorded states, and the largest change between two rows."""
        rows = np.concatenate(episodes)
        names = tuple(map(str, range(rows.shape[1]))) if layout is None else layout.names
        steps = [np.abs(np.diff(own, axis=0)) for own in episodes if len(own) > 1]
        change = np.concatenate(steps).max(axis=0) if steps else rows.max(axis=0) - rows.min(axis=0)
        return wide_enough(names, rows.min(axis=0), rows.max(axis=0), change)

    @staticmethod
    def of_source(source: Source, episodes: Sequence[int] | None = None) -> "StateLimits":
        """The same of the states of a source, or of some of its episodes: of 64 at even distances if there are more."""
        chosen = list(range(len(source.episodes)) if episodes is None else episodes)
        some = np.linspace(0, len(chosen) - 1, min(_EPISODES, len(chosen))).round().astype(int)
        return StateLimits.of_rows([source.read_states(chosen[i]) for i in some], source.layout)

    @staticmethod
    def of_clips(clips: Sequence[Clip]) -> "StateLimits":
        """The same of some clips, which do not say what their states are called."""
        return StateLimits.of_rows([clips[i].states.numpy() for i in range(min(len(clips), 4 * _EPISODES))])

    @staticmethod
    def of_stats(stats: StateStats) -> "StateLimits":
        """The range of a model's training states. How fast they changed is not known: any change within it is one."""
        low, high = np.array(stats.minimum), np.array(stats.maximum)
        return wide_enough(stats.names, low, high, high - low)

    def within(self, stats: StateStats | None) -> "StateLimits":
        """The same changes within the range of a model's training states, where that is known."""
        if stats is None:
            return self
        return wide_enough(self.names, np.array(stats.minimum), np.array(stats.maximum), self.change)

    def held(
        self,
        rows: Float[np.ndarray, "n a"],
        how: OutOfRange,
        *,
        entries: Sequence[int] | None = None,
        where: str = "",
        fix: str = "stay within, or choose out_of_range='clip' or 'allow'",
    ) -> tuple[Float[np.ndarray, "n a"], Bool[np.ndarray, "n a"]]:
        """States that are commanded, as they are given on, and which numbers of them lie outside of the range.

        Args:
            rows: of some entries of a state, in raw units.
            entries: which these are; all of them if not given.
            where, fix: put before and behind what is said of a refused one.

        Raises `UsageError` for a number outside, where that is to be refused.
        """
        chosen = list(range(len(self.names)) if entries is None else entries)
        low, high = self.low[chosen], self.high[chosen]
        room = _ROUNDING * (high - low)
        outside = (rows < low - room) | (rows > high + room)
        if how == "refuse" and outside.any():
            row, entry = np.argwhere(outside)[0].tolist()
            raise UsageError(
                f"{where}the action leads {self.names[chosen[entry]]} to {rows[row, entry]:.6g}, outside of "
                f"{low[entry]:.6g} .. {high[entry]:.6g}; {fix}"
            )
        return (rows if how == "allow" else np.clip(rows, low, high)), outside


def wide_enough(names: tuple[str, ...], low: np.ndarray, high: np.ndarray, change: np.ndarray) -> StateLimits:
    """Limits of which none is empty; what never changed may change by a thousandth."""
    still = high - low < _LEAST
    low, high = np.where(still, low - _LEAST / 2, low), np.where(still, high + _LEAST / 2, high)
    bounds = {"low": low, "high": high, "change": np.maximum(change, _LEAST)}
    return StateLimits(names=names, **{name: value.astype(np.float32) for name, value in bounds.items()})
