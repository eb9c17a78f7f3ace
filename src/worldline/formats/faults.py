"""What is wrong with an opened data set: files that are damaged, and states that no robot gives.

Finite numbers can be wrong, too: a lost frame read as a joint, degrees instead of radians, a sensor that stopped. That
is never certain, so it is reported, not refused. The rules use quantiles, which a few wild values do not change.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float64

from worldline.formats.open import how_to_leave_out
from worldline.formats.source import Report, Source, noting, summarise
from worldline.formats.states import SAMPLE_ROWS, StateStats, bounds_of
from worldline.schema import DataError

# Factor by which an episode must be larger than others to have another unit; degrees are 57 times radians.
_UNIT = 20.0
_SMALL = 0.5  # differences below this (rad, m/s, a closure) do not indicate another unit or range
_STILL_ROWS = 34  # after which a dimension that never changed counts as constant

log = logging.getLogger(__name__)


def check_episodes(source: Source, episodes: Sequence[int], *, size: int | None = None) -> None:
    """Check the chosen episodes before costly work, except their pixels: rows, states, videos, rates and sizes.

    Frames must be of one size unless they are scaled to `size`. Raises `DataError` for the first fault, and says how to
    go on without that episode.
    """
    for episode in episodes:
        try:
            found = source.check(episode)
        except DataError as problem:
            way_out = f"{how_to_leave_out(source, episode)}, or whatever is damaged with --allow-missing."
            fix = f"{problem.fix} Or leave {source.episodes[episode].name} out: {way_out}"
            raise DataError(**vars(problem) | {"fix": fix}) from problem
        if size is None:
            _check_size(source, episode, found)


def faults(
    source: Source, report: Report, *, thorough: bool, progress: Callable[[int, int], None] | None = None
) -> set[int]:
    """Report whatever is wrong with the files of a source; give the episodes whose states are at fault.

    The first and the last frame of every video are decoded, all of them where `thorough`.
    """
    faulty: set[int] = set()
    files: dict[Path, list[int]] = {}
    for episode in source.episodes:
        files.setdefault(source.footage(episode.index)[0], []).append(episode.index)
        try:
            source.read_states(episode.index)
        except DataError as problem:
            report(problem)
            faulty.add(episode.index)
    for done, episodes in enumerate(files.values(), start=1):
        with noting(report):
            source.check_footage(episodes, report)
        if source.grid is None:
            _film_faults(source, episodes, report, thorough)
        if progress is not None:
            progress(done, len(files))
    return faulty


def _film_faults(source: Source, episodes: Sequence[int], report: Report, thorough: bool) -> None:
    """Report what is wrong with the pictures of one file: their size, their times, what does not decode."""
    with noting(report):
        _check_size(source, episodes[0], source.frame_size(episodes[0]))
    shown: dict[int, np.ndarray] = {}
    for episode in episodes:
        with noting(report):
            shown[episode] = source.shown(episode)
    pieces = [(episode, 0, len(frames)) for episode, frames in shown.items()]
    if pieces and not thorough:
        first, last = min(shown, key=lambda i: shown[i][0]), max(shown, key=lambda i: shown[i][-1])
        pieces = [(first, 0, 1), (last, len(shown[last]) - 1, len(shown[last]))]
    for episode, start, stop in pieces:
        with noting(report):
            for frames in source.frames(episode, start, stop, threads=0):
                with noting(report):
                    _check_size(source, episode, (frames.shape[-2], frames.shape[-1]))


def _check_size(source: Source, episode: int, found: tuple[int, int] | None) -> None:
    """Raise `DataError` unless frames are of the size of the others."""
    size = source.image_size
    if found is not None and size is not None and found != size:
        path, expected = source.footage(episode)[0], f"frames of {size[0]}x{size[1]}, as other episodes have"
        fix = "Give a size: every frame is then cropped and scaled to one square."
        raise DataError(path, expected=expected, found=f"{found[0]}x{found[1]}", fix=fix, kind="image_size")


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
    every = -(-sum(source.episodes[i].length for i in episodes) // SAMPLE_ROWS)
    return np.concatenate([source.read_states(i)[::every] for i in episodes])
