"""The kinds of state dimensions, the statistics with which models scale them, and which values are plausible.

The 1X robot's layout is a constant. For other robots, the kind of a dimension follows from its name, then from the
range of the data; users can override it by name.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64

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
SAMPLE_ROWS = 1_000_000


def guess_kind(name: str, low: float, high: float) -> StateKind:
    """Guess the kind of a dimension from its name and its range in the data.

    `velocity` by name; `binary` for hands, fingers and grippers that stay within 0..1; `other` for positions,
    quaternions and forces by name; then `angle` for what stays within one full turn in rad, else `other`.
    """
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
    """Go once over the states of a source, or of some episodes, never over video. Raises what `read_states` does."""
    chosen = range(len(source.episodes)) if episodes is None else episodes
    lengths = [source.episodes[i].length for i in chosen]
    total = sum(lengths)
    if total == 0:
        raise UsageError(f"{source.path}: no frames to compute statistics of")
    every = -(-total // SAMPLE_ROWS)
    begun, sample, parts = 0, [], []
    for i in chosen:
        rows = source.read_states(i)
        sample.append(rows[-begun % every :: every])
        exact = rows.astype(np.float64)
        parts.append((exact.mean(axis=0), exact.var(axis=0), rows.min(axis=0), rows.max(axis=0)))
        begun += len(rows)
    means, variances, lows, highs = (np.stack(part) for part in zip(*parts, strict=True))
    mean = np.average(means, axis=0, weights=lengths)
    std = np.sqrt(np.average(variances + (means - mean) ** 2, axis=0, weights=lengths))
    q01, q50, q99 = np.quantile(np.concatenate(sample), (0.01, 0.5, 0.99), axis=0)
    found = {"mean": mean, "std": std, "minimum": lows.min(axis=0), "maximum": highs.max(axis=0)}
    found |= {"q01": q01, "q50": q50, "q99": q99}
    numbers = {name: tuple(map(float, values)) for name, values in found.items()}
    return StateStats(names=source.layout.names, count=total, **numbers)


def bounds_of(rows: Float[np.ndarray, "n s"]) -> Float64[np.ndarray, "2 s"]:
    """Between which values every dimension is plausible.

    100 times the span of the middle 90 % of rows beyond these, and 20 times the span of the middle 98 % beyond those,
    whichever is less; a span counts as 1 at least, so that what rarely moves (a gripper, a base) may.
    """
    bounds: list[tuple[np.ndarray, np.ndarray]] = []
    for share, factor in ((0.05, 100.0), (0.01, 20.0)):
        low = np.quantile(rows, share, axis=0, method="higher").astype(np.float64)
        high = np.quantile(rows, 1 - share, axis=0, method="lower").astype(np.float64)
        low, high = np.minimum(low, high), np.maximum(low, high)  # of one or two rows
        room = factor * np.maximum(high - low, 1.0)
        bounds.append((low - room, high + room))
    lows, highs = zip(*bounds, strict=True)
    return np.stack([np.max(lows, axis=0), np.min(highs, axis=0)])
