"""Everything that is wrong with the files of an opened data set, and the cheap part of it before costly work."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from worldline.formats.checks import Report, noting
from worldline.formats.choose import how_to_leave_out
from worldline.formats.source import Source
from worldline.schema import DataError


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
            raise DataError(
                problem.path, expected=problem.expected, found=problem.found, fix=fix, kind=problem.kind
            ) from problem
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
            source.read_states(episode.index, 0, episode.length)
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
