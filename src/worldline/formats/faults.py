"""Everything that is wrong with the files of an opened data set, one `DataError` each. Changes nothing.

Also `check_episodes`: the cheap part of it, done before costly work on chosen episodes.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from worldline.files import mapped, read_json
from worldline.formats.checks import check_finite
from worldline.formats.choose import JOINED, how_to_leave_out
from worldline.formats.lerobot.open import cameras, stated_names, stated_size
from worldline.formats.lerobot.source import LerobotSource
from worldline.formats.onex.source import OnexSource, check_ids
from worldline.formats.source import Source
from worldline.formats.states import StateStats
from worldline.formats.video import frame_times, probe, stream_frames
from worldline.schema import DataError, Episode, TokenGrid

Opened = OnexSource | LerobotSource
Progress = Callable[[int, int], None]


def check_episodes(source: Source, episodes: Sequence[int], *, size: int | None = None) -> None:
    """Check all of the chosen episodes but their pixels, before costly work: rows, states, videos, rates and sizes.

    Args:
        size: what frames are scaled to; None where they must be of one size as they are.

    Raises:
        DataError: the first fault, and how to go on without that episode.
    """
    for episode in episodes:
        try:
            found = source.check(episode)
        except DataError as problem:
            raise _with_a_way_out(problem, source, episode) from problem
        if size is None and found is not None and found != source.image_size and source.image_size is not None:
            raise _other_size(source.footage(episode)[0], source.image_size, found)


def _with_a_way_out(problem: DataError, source: Source, episode: int) -> DataError:
    fix = (
        f"{problem.fix} Or leave {source.episodes[episode].name} out: {how_to_leave_out(source, episode)}, or whatever "
        "is damaged with --allow-missing."
    )
    return DataError(problem.path, expected=problem.expected, found=problem.found, fix=fix, kind=problem.kind)


def _other_size(path: Path, expected: tuple[int, int], found: tuple[int, int]) -> DataError:
    return DataError(
        path,
        expected=f"frames of {expected[0]}x{expected[1]}, as other episodes have",
        found=f"{found[0]}x{found[1]}",
        fix="Give a size: every frame is then cropped and scaled to one square.",
        kind="image_size",
    )


def faults(source: Opened, *, thorough: bool, progress: Progress | None) -> Iterator[tuple[int | None, DataError]]:
    """Faults, with the episode whose states they spoil (None for all others)."""
    for episode in source.episodes:
        yield from ((episode.index, problem) for problem in _state_faults(source, episode))
    yield from ((None, problem) for problem in _metadata_faults(source))
    files = _files(source)
    for done, (path, episodes) in enumerate(files.items(), start=1):
        if source.grid is not None:
            found = _token_faults(source, source.grid, path, episodes)
        elif isinstance(source, LerobotSource) and source.recordings[episodes[0]].video is None:
            found = _image_faults(source, episodes, thorough)
        else:
            found = _video_faults(source, path, episodes, thorough)
        yield from ((None, problem) for problem in found)
        if progress is not None:
            progress(done, len(files))


def surplus_frames(source: Opened) -> dict[Path, int]:
    """Frames of each LeRobot video that no row belongs to. They are never read."""
    found: dict[Path, int] = {}
    for path, episodes in _files(source).items() if isinstance(source, LerobotSource) else ():
        try:
            rows = sum(source.episodes[episode].length for episode in episodes)
            found[path] = len(frame_times(path)) - rows if path.suffix != ".parquet" else 0
        except DataError:
            continue
    return {path: count for path, count in found.items() if count > 0}


def _files(source: Opened) -> dict[Path, list[int]]:
    """Every file that shows something, with its episodes."""
    files: dict[Path, list[int]] = {}
    for episode in source.episodes:
        files.setdefault(source.footage(episode.index)[0], []).append(episode.index)
    return files


def _state_faults(source: Opened, episode: Episode) -> Iterator[DataError]:
    """What is wrong with an episode's states; a wrong number of rows does not hide what else is."""
    try:
        source.read_states(episode.index, 0, episode.length)
    except DataError as problem:
        yield problem
        if problem.kind == "rows" and isinstance(source, LerobotSource):
            try:
                check_finite(problem.path, source.stored_states(episode.index), source.layout.names, 0)
            except DataError as other:
                yield other


def _video_faults(source: Opened, video: Path, episodes: list[int], thorough: bool) -> Iterator[DataError]:
    try:
        info, times = probe(video), frame_times(video)
    except DataError as problem:
        yield problem
        return
    if source.image_size is not None and (info.height, info.width) != source.image_size:
        yield _other_size(video, source.image_size, (info.height, info.width))
    if isinstance(source, OnexSource) and len(times) > (stop := source.num_frames(episodes[0])):
        expected, fix = f"{stop} frames, one per row of states", "Encode it again, or correct the metadata."
        yield DataError(video, expected=expected, found=f"{len(times)}", fix=fix, kind="frames")
    wanted: list[int] = []
    for episode in episodes:
        try:
            numbers = source.shown(episode)
            wanted += [int(numbers[0]), int(numbers[-1])]
        except DataError as problem:
            yield problem
    wanted = [number for number in wanted if number < len(times)] or [0]
    first, last = min(wanted), max(wanted)
    for numbers in [range(first, last + 1)] if thorough else [range(n, n + 1) for n in sorted({first, last})]:
        try:
            for _ in stream_frames(video, numbers, threads=0):
                pass
        except DataError as problem:
            yield problem


def _image_faults(source: LerobotSource, episodes: list[int], thorough: bool) -> Iterator[DataError]:
    for episode in episodes:
        length = source.episodes[episode].length
        try:
            for start, stop in [(0, length)] if thorough else [(0, 1), (length - 1, length)]:
                for frames in source.frames(episode, start, stop):
                    height, width = frames.shape[-2:]
                    if source.image_size is not None and source.image_size != (height, width):
                        yield _other_size(source.footage(episode)[0], source.image_size, (height, width))
        except DataError as problem:
            yield problem


def _token_faults(source: Opened, grid: TokenGrid, path: Path, episodes: list[int]) -> Iterator[DataError]:
    block = (grid.latents_per_block, grid.height, grid.width)
    needed = max(source.footage(i)[1] + source.episodes[i].length for i in episodes)
    count = min(path.stat().st_size // (4 * math.prod(block)), needed // grid.block)  # no partial last block is read
    try:
        table = mapped(path, "int32", (count, *block))
        for first in range(0, count, 1024):
            check_ids(path, table[first : first + 1024], grid, first)
    except DataError as problem:
        yield problem


def _metadata_faults(source: Opened) -> Iterator[DataError]:
    """Compare what the metadata claim with what is there, where nothing is left out."""
    if JOINED in str(source.path):
        return
    is_lerobot = isinstance(source, LerobotSource)
    path = source.path / ("meta/info.json" if is_lerobot else "metadata.json")
    if isinstance(source, LerobotSource):
        yield from _lerobot_claims(source, path)
    if source.left_out or not path.exists():
        return
    metadata = read_json(path)
    frames = sum(episode.length for episode in source.episodes)
    claims = [("total_episodes", len(source.episodes)), ("total_frames", frames)]
    for key, found in claims if is_lerobot else [("num_images", frames)]:
        if key in metadata and metadata[key] != found:
            expected = f"{key} {str(metadata[key])[:80]}"
            yield DataError(path, expected=expected, found=f"{found}", fix="Correct the metadata.", kind="metadata")


def _lerobot_claims(source: LerobotSource, path: Path) -> Iterator[DataError]:
    fix = "Correct the metadata."
    for key, why_not in cameras(source.path).items():
        if why_not == "no file" and key != source.camera:
            yield DataError(path, expected=f"videos of {key}", found="no file of it", fix=fix, kind="camera")
    try:
        stated = stated_size(path, read_json(path)["features"][source.camera])
        if stated != source.image_size and source.image_size is not None and source.episodes:
            expected = f"{source.camera} of {stated[0]}x{stated[1]}"
            found = f"frames of {source.image_size[0]}x{source.image_size[1]}, which are used"
            yield DataError(path, expected=expected, found=found, fix=fix, kind="image_size")
    except DataError as problem:
        yield problem
    for column, dim in zip(source.columns, source.dims, strict=True):
        names = stated_names(source.path, column)
        if names and (len(names) != dim or len(set(names)) != dim):
            expected = f"{dim} different names of {column}"
            yield DataError(path, expected=expected, found=f"{len(set(names))}", fix=fix, kind="names")
    moved = source.moved()
    if moved:
        expected = f"rows of {source.episodes[moved[0]].name} in {source.recordings[moved[0]].table.name}"
        found = f"them in another file ({len(moved)} such episodes), where they were found and are used"
        fix = "Nothing needs to be done; converting the data set again corrects meta/episodes."
        yield DataError(source.path / "meta/episodes", expected=expected, found=found, fix=fix, kind="stale_pointer")


def stats_faults(source: LerobotSource, statistics: StateStats) -> Iterator[DataError]:
    """Compare meta/stats.json with the tables: wrong statistics hide a changed unit. They are not used."""
    path = source.path / "meta/stats.json"
    if not path.is_file():
        return
    fix = "Compute them again with LeRobot's tools; worldline takes statistics from the tables."
    try:
        stats, first = read_json(path), 0
    except DataError as problem:
        yield problem
        return
    for column, dim in zip(source.columns, source.dims, strict=True):
        there = slice(first, first + dim)
        claimed = [_numbers(stats.get(column), key) for key in ("min", "max")]
        actual = [np.array(values[there]) for values in (statistics.minimum, statistics.maximum)]
        first += dim
        if not isinstance(stats.get(column), dict):
            continue
        room = 0.1 * (actual[1] - actual[0]) + 1e-3 * np.abs(actual[0]).max() + 1e-6
        if any(c.size != dim or not (np.abs(c - a) <= room).all() for c, a in zip(claimed, actual, strict=True)):
            expected = f"the range of {column}, as the tables have it"
            found = (
                f"{_short(claimed[0])} .. {_short(claimed[1])} where it is {_short(actual[0])} .. {_short(actual[1])}"
            )
            yield DataError(path, expected=expected, found=found, fix=fix, kind="stats")


def _numbers(stats: Any, key: str) -> np.ndarray:
    try:
        return np.array(stats[key], np.float64).ravel()
    except (KeyError, TypeError, ValueError):
        return np.zeros(0)


def _short(values: np.ndarray) -> str:
    return f"[{', '.join(f'{value:.3g}' for value in values[:4])}{', ...' if len(values) > 4 else ''}]"
