"""Between which values the states of a robot lie, and how far they change in a frame: the bounds of actions."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

from worldline.formats.source import Source
from worldline.formats.states import StateStats
from worldline.schema import Clip, StateLayout, UsageError
from worldline.twin.scene import INDEX, JOINTS, LAYOUT, neutral

_EPISODES = 64
"""Episodes that are read for limits: the states of more would take long and say little more."""
_LEAST = 1e-3
"""Width of the range of an entry that never changes: a space has no empty range."""
_TWIN_SPEEDS = {"LINEAR_VELOCITY": 0.3, "ANGULAR_VELOCITY": 0.5}
"""Of the twin's base, m/s and rad/s, forwards and backwards."""
_TWIN_CHANGE = 2.5
"""How far the twin's entries change in a second: rad of a joint, which its motors follow, and a closure twice over."""

Vector = Float32[np.ndarray, " s"]


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
        return _wide_enough(names, rows.min(axis=0), rows.max(axis=0), change)

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
    def of_twin(low: np.ndarray, high: np.ndarray, *, fps: float) -> "StateLimits":
        """Those of the twin: of its joints in rad (`Simulation.low`, `high`), hands open and closed, and its speeds."""
        lowest, highest = np.zeros(LAYOUT.dim, np.float32), np.ones(LAYOUT.dim, np.float32)
        lowest[: len(JOINTS)], highest[: len(JOINTS)] = low, high
        for name, speed in _TWIN_SPEEDS.items():
            lowest[INDEX[name]], highest[INDEX[name]] = -speed, speed
        change = np.full(LAYOUT.dim, _TWIN_CHANGE / fps, np.float32)
        return _wide_enough(LAYOUT.names, np.minimum(lowest, neutral()), np.maximum(highest, neutral()), change)

    def within(self, stats: StateStats | None) -> "StateLimits":
        """The same changes within the range of a model's training states, where that is known."""
        if stats is None:
            return self
        return _wide_enough(self.names, np.array(stats.minimum), np.array(stats.maximum), self.change)


def _wide_enough(names: tuple[str, ...], low: np.ndarray, high: np.ndarray, change: np.ndarray) -> StateLimits:
    """Limits of which none is empty; what never changed may change by a thousandth."""
    still = high - low < _LEAST
    low, high = np.where(still, low - _LEAST / 2, low), np.where(still, high + _LEAST / 2, high)
    bounds = {"low": low, "high": high, "change": np.maximum(change, _LEAST)}
    return StateLimits(names=names, **{name: value.astype(np.float32) for name, value in bounds.items()})
