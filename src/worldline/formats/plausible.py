"""Finite numbers that no robot gives: a lost frame read as a joint, degrees instead of radians, a sensor that stopped.

Nothing here is certain, so nothing is refused: findings are reported with their first place and a count. The rules use
quantiles, which a few wild values do not change.
"""

import logging
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Float, Float64

from worldline.formats.checks import summarise
from worldline.formats.choose import how_to_leave_out
from worldline.formats.source import Source
from worldline.formats.states import StateStats
from worldline.schema import DataError

_SAMPLE_ROWS = 1_000_000
# Factor by which an episode must be larger than others to have another unit; degrees are 57 times radians.
_UNIT = 20.0
_SMALL = 0.5  # differences below this (rad, m/s, a closure) do not indicate another unit or range
_STILL_ROWS = 34  # after which a dimension that never changed counts as constant

log = logging.getLogger(__name__)


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


def outside(rows: Float[np.ndarray, "n s"], bounds: Float64[np.ndarray, "2 s"]) -> Bool[np.ndarray, "n s"]:
    """Mark the values outside of bounds."""
    return (rows < bounds[0]) | (rows > bounds[1])


def usual_range(rows: Float[np.ndarray, "n s"]) -> tuple[Float[np.ndarray, "s"], Float[np.ndarray, "s"]]:
    """Smallest and largest plausible value of every dimension."""
    kept = np.where(outside(rows, bounds_of(rows)), np.nan, rows)
    return np.nanmin(kept, axis=0), np.nanmax(kept, axis=0)


def implausible(source: Source, episodes: Sequence[int]) -> Iterator[DataError]:
    """Implausible states of some episodes, one fault per kind: wild values, episodes in another unit."""
    around = ["nearly all of its rows"] * source.layout.dim
    yield from _wild(source, episodes, bounds_of(_sample(source, episodes)), around)
    sizes = np.stack([np.quantile(np.abs(_states(source, i)), 0.95, axis=0, method="lower") for i in episodes])
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
        yield DataError(source.states_file(episode.index), expected=expected, found=found, fix=fix, kind="other_unit")


def _wild(
    source: Source, episodes: Sequence[int], bounds: Float64[np.ndarray, "2 s"], around: Sequence[str]
) -> Iterator[DataError]:
    """Values outside of bounds that lie far `around` what is usual: the first of them, and how many there are."""
    found = [(i, marked) for i in episodes if (marked := outside(_states(source, i), bounds)).any()]
    if found:
        episode, marked = found[0]
        row, dim = np.argwhere(marked)[0].tolist()
        name, (low, high) = source.layout.names[dim], bounds[:, dim]
        expected = f"{name} within {low:.4g} .. {high:.4g}, far around {around[dim]}"
        count = f"{sum(marked.sum() for _, marked in found)} such values in {len(found)} episodes"
        value = f"{_states(source, episode)[row, dim]:.6g} in row {row} of {source.episodes[episode].name} ({count})"
        fix = f"Repair the recording, or leave out what is at fault ({how_to_leave_out(source, episode)})."
        yield DataError(source.states_file(episode), expected=expected, found=value, fix=fix, kind="wild_value")


def unlike(source: Source, episodes: Sequence[int], known: StateStats) -> Iterator[DataError]:
    """States of some episodes that are clearly unlike training, one fault per kind.

    A value far outside of what training had; a range that does not meet that of training, or is many times as wide or
    as small (degrees for radians, and the reverse); a dimension that stands still here and moved in training. What
    training had are the quantiles 1 % to 99 % of its statistics.
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


def _states(source: Source, episode: int) -> Float[np.ndarray, "n s"]:
    return source.read_states(episode, 0, source.episodes[episode].length)


def _sample(source: Source, episodes: Sequence[int]) -> Float[np.ndarray, "n s"]:
    """Rows of all episodes, evenly thinned out beyond a million."""
    every = -(-sum(source.episodes[i].length for i in episodes) // _SAMPLE_ROWS)
    return np.concatenate([_states(source, i)[::every] for i in episodes])
