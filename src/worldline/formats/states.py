"""The kinds of state dimensions, and the statistics with which models scale them.

The 1X robot's layout is a constant. For other robots, the kind of a dimension follows from its name, then from the
range of the data; users can override it by name.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
from jaxtyping import Float64

from worldline.formats.source import Source
from worldline.schema import StateKind, StateLayout, UsageError

_ARM = ("SHOULDER_PITCH", "SHOULDER_ROLL", "SHOULDER_YAW", "ELBOW_PITCH", "ELBOW_YAW", "WRIST_PITCH", "WRIST_ROLL")
ONEX_LAYOUT = StateLayout(
    names=(
        *("HIP_YAW", "HIP_ROLL", "HIP_PITCH", "KNEE_PITCH", "ANKLE_ROLL", "ANKLE_PITCH"),
        *(f"LEFT_{joint}" for joint in _ARM),
        *(f"RIGHT_{joint}" for joint in _ARM),
        "NECK_PITCH",
        *("LEFT_HAND_CLOSURE", "RIGHT_HAND_CLOSURE"),
        *("LINEAR_VELOCITY", "ANGULAR_VELOCITY"),
    ),
    kinds=("angle",) * 21 + ("binary", "binary", "velocity", "velocity"),
)
"""The 25 dimensions of the 1X World Model Challenge, v2.0 (its data card)."""

_VELOCITY = re.compile(r"(?i:velocit|speed|(^|[^a-z])[dq]?(vel|qd|dq)s?($|[^a-z]))|[a-z]Vel($|[^a-z])")
_HAND = re.compile(r"gripper|hand|finger|thumb|closure|claw", re.IGNORECASE)
_NOT_A_JOINT = re.compile(r"(^|[._ ])([xyzw]|q[xyzw]|quat\w*|force|torque|effort|current)($|[._ ])", re.IGNORECASE)
_FULL_TURN = 6.2832
_QUANTILE_ROWS = 1_000_000


def guess_layout(names: Sequence[str], minima: Sequence[float], maxima: Sequence[float]) -> StateLayout:
    """Guess the kind of every dimension from its name and its range in the data.

    `velocity` by name; `binary` for hands, fingers and grippers that stay within 0..1; `other` for positions,
    quaternions and forces by name; then `angle` for what stays within one full turn in rad, else `other`.
    """
    kinds: Any = tuple(_guess(name, low, high) for name, low, high in zip(names, minima, maxima, strict=True))
    return StateLayout(names=tuple(names), kinds=kinds)


def override_kinds(layout: StateLayout, kinds: Mapping[str, str]) -> StateLayout:
    """Replace the kinds of the named dimensions. Raises `UsageError` for an unknown name or kind."""
    unknown = [name for name in kinds if name not in layout.names]
    wrong = [kind for kind in kinds.values() if kind not in get_args(StateKind)]
    if unknown or wrong:
        raise UsageError(
            f"no state is called {unknown}, no kind is called {wrong}; "
            f"states are {list(layout.names)}, kinds are {list(get_args(StateKind))}"
        )
    changed: Any = tuple(kinds.get(name, kind) for name, kind in zip(layout.names, layout.kinds, strict=True))
    return StateLayout(names=layout.names, kinds=changed)


def _guess(name: str, low: float, high: float) -> StateKind:
    if _VELOCITY.search(name):
        return "velocity"
    if _HAND.search(name) and low >= -0.05 and high <= 1.05:
        return "binary"
    if _NOT_A_JOINT.search(name):
        return "other"
    return "angle" if low >= -_FULL_TURN and high <= _FULL_TURN else "other"


@dataclass(frozen=True, kw_only=True)
class StateStats:
    """Statistics of every state dimension over a source."""

    names: tuple[str, ...]
    count: int
    """Rows, one per video frame."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    """Population standard deviation."""
    minimum: tuple[float, ...]
    maximum: tuple[float, ...]
    q01: tuple[float, ...]
    q50: tuple[float, ...]
    q99: tuple[float, ...]
    """Quantiles: exact up to a million rows, over evenly spaced rows beyond."""

    @property
    def constant(self) -> tuple[int, ...]:
        """Dimensions that never change."""
        return tuple(i for i, (a, b) in enumerate(zip(self.minimum, self.maximum, strict=True)) if a == b)


def compute_stats(source: Source, *, episodes: Sequence[int] | None = None) -> StateStats:
    """Go once over the states of a source, or of some of its episodes; video is not touched.

    Raises:
        DataError: a state is not finite, or a file is not as its metadata say.
        UsageError: there are no episodes.
    """
    chosen = range(len(source.episodes)) if episodes is None else episodes
    total = sum(source.episodes[i].length for i in chosen)
    if total == 0:
        raise UsageError(f"{source.path}: no frames to compute statistics of")
    every = -(-total // _QUANTILE_ROWS)
    count, mean, squares = 0, np.zeros(source.layout.dim), np.zeros(source.layout.dim)
    low, high = np.full(source.layout.dim, np.inf), np.full(source.layout.dim, -np.inf)
    sample: list[np.ndarray] = []
    for i in chosen:
        rows = source.read_states(i, 0, source.episodes[i].length)
        sample.append(rows[-count % every :: every])
        low, high = np.minimum(low, rows.min(axis=0)), np.maximum(high, rows.max(axis=0))
        count, mean, squares = _merge(count, mean, squares, rows.astype(np.float64))
    q01, q50, q99 = np.quantile(np.concatenate(sample), (0.01, 0.5, 0.99), axis=0)
    found = {"mean": mean, "std": np.sqrt(squares / count), "minimum": low, "maximum": high}
    found |= {"q01": q01, "q50": q50, "q99": q99}
    numbers = {name: tuple(map(float, values)) for name, values in found.items()}
    return StateStats(names=source.layout.names, count=count, **numbers)


def _merge(
    count: int,
    mean: Float64[np.ndarray, "s"],
    squares: Float64[np.ndarray, "s"],
    rows: Float64[np.ndarray, "n s"],
) -> tuple[int, Float64[np.ndarray, "s"], Float64[np.ndarray, "s"]]:
    """Add rows to a running mean and sum of squared deviations (Chan, Golub and LeVeque 1979)."""
    new, total = rows.mean(axis=0), count + len(rows)
    shift = new - mean
    squares = squares + ((rows - new) ** 2).sum(axis=0) + shift**2 * (count * len(rows) / total)
    return total, mean + shift * (len(rows) / total), squares
