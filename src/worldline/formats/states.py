"""The kinds of state dimensions, the statistics with which models scale them, and which values are plausible.

The 1X robot's layout is a constant. For other robots, the kind of a dimension follows from its name, then from the
range of the data; users can override it by name.

Finite numbers can be wrong, too: a lost frame read as a joint, degrees instead of radians, a sensor that stopped. That
is never certain, so it is reported, not refused. The rules use quantiles, which a few wild values do not change.
"""

import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64

from worldline.formats.source import Source, how_to_leave_out, summarise
from worldline.schema import DataError, StateKind, StateLayout, UsageError

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
_SAMPLE_ROWS = 1_000_000
# Factor by which an episode must be larger than others to have another unit; degrees are 57 times radians.
_UNIT = 20.0
_SMALL = 0.5  # differences below this (rad, m/s, a closure) do not indicate another unit or range
_STILL_ROWS = 34  # after which a dimension that never changed counts as constant

log = logging.getLogger(__name__)


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
    every = -(-total // _SAMPLE_ROWS)
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


def implausible(source: Source, episodes: Sequence[int]) -> Iterator[DataError]:
    """Implausible states of some episodes, one fault per kind: wild values, episodes in another unit."""
    usually = ["nearly all of its rows"] * source.layout.dim
    yield from _wild(source, episodes, bounds_of(_sample(source, episodes)), usually)
    sizes = np.stack([np.quantile(np.abs(source.read_states(i)), 0.95, axis=0, method="lower") for i in episodes])
    # In another unit at least half of the dimensions that move are many times as large as in the usual episode.
    usual = np.median(sizes, axis=0)
    larger = sizes > _UNIT * np.maximum(usual, _SMALL)
    strange = larger.any(axis=1) & (larger.sum(axis=1) * 2 >= (sizes > 0).sum(axis=1))
    if strange.any():
        first = int(strange.argmax())
        episode, dim = source.episodes[episodes[first]], int(larger[first].argmax())
        expected = f"{source.layout.names[dim]} of about {usual[dim]:.3g}, as in most episodes"
        found = f"{sizes[first, dim]:.3g} in {episode.name}, as if in another unit ({strange.sum()} such episodes)"
        fix = f"Convert the unit, or leave out what is at fault ({how_to_leave_out(source, episode.index)})."
        yield DataError(source.states_of(episode.index)[0], expected=expected, found=found, fix=fix, kind="other_unit")


def _wild(
    source: Source, episodes: Sequence[int], bounds: Float64[np.ndarray, "2 s"], around: Sequence[str]
) -> Iterator[DataError]:
    """Values outside of bounds that lie far `around` what is usual: the first of them, and how many there are."""
    states = ((i, source.read_states(i)) for i in episodes)
    found = [(i, marked) for i, rows in states if (marked := rows != rows.clip(*bounds)).any()]
    if found:
        episode, marked = found[0]
        row, dim = np.argwhere(marked)[0].tolist()
        name, (low, high) = source.layout.names[dim], bounds[:, dim]
        expected = f"{name} within {low:.4g} .. {high:.4g}, far around {around[dim]}"
        count = f"{sum(marked.sum() for _, marked in found)} such values in {len(found)} episodes"
        value = f"{source.read_states(episode)[row, dim]:.6g} in row {row} of {source.episodes[episode].name} ({count})"
        fix = f"Repair the recording, or leave out what is at fault ({how_to_leave_out(source, episode)})."
        yield DataError(source.states_of(episode)[0], expected=expected, found=value, fix=fix, kind="wild_value")


def unlike(source: Source, episodes: Sequence[int], known: StateStats) -> Iterator[DataError]:
    """States of some episodes that are clearly unlike training, one fault per kind.

    A value far outside of what training had (1 % to 99 %); a range that does not meet that of training, or is many
    times as wide or as small (degrees for radians, and the reverse); a dimension that stands still and moved there.
    """
    low, high = (np.array(values, np.float64) for values in (known.q01, known.q99))
    span, rows = high - low, _sample(source, episodes)
    room, wide = np.maximum(span, _SMALL), 20 * np.maximum(span, 1.0)
    here_low, here_high = (np.quantile(rows, q, axis=0) for q in (0.05, 0.95))
    other = (here_low > high + room) | (here_high < low - room) | (here_high - here_low > 10 * room)
    tiny = np.maximum(np.abs(here_low), np.abs(here_high)) * _UNIT < np.maximum(np.abs(low), np.abs(high))
    if tiny.sum() * 2 >= len(tiny):
        other |= tiny  # radians where training had degrees
    bounds = np.where(other, [[-np.inf], [np.inf]], [low - wide, high + wide])  # of others more is said below
    trained = [f"what it was in training ({a:.4g} .. {b:.4g})" for a, b in zip(low, high, strict=True)]
    yield from _wild(source, episodes, bounds, trained)
    names = source.layout.names
    if other.any():
        dim = int(other.argmax())
        expected = f"{names[dim]} as in training, {low[dim]:.4g} .. {high[dim]:.4g}"
        found = f"{here_low[dim]:.4g} .. {here_high[dim]:.4g} ({other.sum()} such dimensions)"
        fix = "Check unit and order of the states; the model has never seen such values."
        yield DataError(source.path, expected=expected, found=found, fix=fix, kind="other_range")
    still = np.flatnonzero((rows == rows[0]).all(axis=0) & (high > low) & (len(rows) >= _STILL_ROWS))
    if len(still):
        expected, value = f"{names[still[0]]} to move, as in training", rows[0, still[0]]
        found = f"{value:.4g} in every row (such dimensions: {summarise([names[dim] for dim in still])})"
        fix = "Check that the sensor was recorded; the model takes it for what the robot does."
        yield DataError(source.path, expected=expected, found=found, fix=fix, kind="stands_still")


def warn(problems: Iterator[DataError]) -> None:
    """Tell each problem to the log."""
    for problem in problems:
        log.warning("implausible states: %s", problem)


def _sample(source: Source, episodes: Sequence[int]) -> Float[np.ndarray, "n s"]:
    """Rows of all episodes, evenly thinned out beyond a million."""
    every = -(-sum(source.episodes[i].length for i in episodes) // _SAMPLE_ROWS)
    return np.concatenate([source.read_states(i)[::every] for i in episodes])
