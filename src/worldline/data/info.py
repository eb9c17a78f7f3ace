"""`inspect`: what a data set holds and everything that is wrong with it. Changes nothing."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from worldline.data.checks import check_finite
from worldline.data.lerobot import LerobotSource
from worldline.data.lerobot_open import cameras, looks_like_lerobot
from worldline.data.onex import OnexSource, check_ids
from worldline.data.onex_open import looks_like_onex
from worldline.data.open import open_reporting, open_source
from worldline.data.source import Conditioning
from worldline.data.states import StateStats, compute_stats
from worldline.data.video import probe, stream_frames
from worldline.data.windows import source_windows
from worldline.files import mapped, read_json
from worldline.schema import DataError, Episode, TokenGrid

_SAMPLE = 34
"""Frames of a compression sample: two blocks of 17."""


@dataclass(frozen=True, kw_only=True)
class Info:
    """What `inspect` found. `dataclasses.asdict` of it is JSON once `path` is text."""

    path: Path
    kind: str
    episodes: int
    frames: int
    fps: float
    state_dim: int
    state_names: tuple[str, ...]
    state_kinds: tuple[str, ...]
    image_size: tuple[int, int] | None
    """Height and width in px."""
    camera: str | None
    cameras: tuple[str, ...]
    grid: TokenGrid | None
    samples: int
    """Disjoint compression samples: two token blocks, or 34 frames of video, within one episode."""
    windows_77: int
    """Windows of 77 frames at a stride of 8 within one episode; 0 for tokens, which hold no 77."""
    statistics: StateStats | None
    """Over the episodes whose states are sound; None where there are none."""
    bytes: int
    left_out: tuple[str, ...]
    """Listed but absent."""
    problems: tuple[str, ...]


def inspect(
    path: Path,
    *,
    camera: str | None = None,
    conditioning: Conditioning = "state",
    layout: dict[str, str] | None = None,
    thorough: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Info:
    """Open a data set, check every file it lists and count what can be made of it.

    Every video's container is read and its first and last frames are decoded; `thorough` decodes all. Every
    state and every token id is read. Faults are collected in `Info.problems`, never raised.

    Args:
        camera: LeRobot camera; the first where it is not given.

    Raises:
        DataError: the folder is no data set of a known format.
    """
    if not (looks_like_lerobot(path) or looks_like_onex(path)):
        open_source(path)
    problems: list[str] = []
    seen = _cameras(path)
    try:
        source = open_reporting(
            path,
            camera=camera or (seen[0] if len(seen) > 1 else None),
            conditioning=conditioning,
            layout=layout,
            allow_missing=True,
            report=lambda problem: problems.append(str(problem)),
        )
    except DataError as problem:
        return _unreadable(path, seen, (*problems, str(problem)))
    problems.extend(f"{path}: missing {line}" for line in source.left_out)
    faulty: set[int] = set()
    for episode, problem in _faults(source, thorough, progress):
        problems.append(str(problem))
        faulty.update(() if episode is None else (episode,))
    sound = [episode.index for episode in source.episodes if episode.index not in faulty]
    statistics = compute_stats(source, episodes=sound) if sound else None
    if statistics is not None and statistics.constant:
        names = ", ".join(statistics.names[i] for i in statistics.constant)
        problems.append(f"{path}: {len(statistics.constant)} state dimensions never change: {names}")
    return _summary(source, seen, statistics, tuple(problems))


def _summary(
    source: OnexSource | LerobotSource,
    seen: tuple[str, ...],
    statistics: StateStats | None,
    problems: tuple[str, ...],
) -> Info:
    sample = _SAMPLE if source.grid is None else 2 * source.grid.block
    return Info(
        path=source.path,
        kind=source.kind,
        episodes=len(source.episodes),
        frames=sum(episode.length for episode in source.episodes),
        fps=source.fps,
        state_dim=source.layout.dim,
        state_names=source.layout.names,
        state_kinds=source.layout.kinds,
        image_size=source.image_size,
        camera=source.camera if isinstance(source, LerobotSource) else None,
        cameras=seen,
        grid=source.grid,
        samples=len(source_windows(source, window=sample, stride=sample)),
        windows_77=0 if source.grid is not None else len(source_windows(source, window=77, stride=8)),
        statistics=statistics,
        bytes=_bytes(source.path),
        left_out=source.left_out,
        problems=tuple(dict.fromkeys(problems)),
    )


def _unreadable(path: Path, seen: tuple[str, ...], problems: tuple[str, ...]) -> Info:
    return Info(
        path=path,
        kind="lerobot" if looks_like_lerobot(path) else "1x",
        episodes=0,
        frames=0,
        fps=0.0,
        state_dim=0,
        state_names=(),
        state_kinds=(),
        image_size=None,
        camera=None,
        cameras=seen,
        grid=None,
        samples=0,
        windows_77=0,
        statistics=None,
        bytes=_bytes(path),
        left_out=(),
        problems=problems,
    )


def _faults(
    source: OnexSource | LerobotSource, thorough: bool, progress: Callable[[int, int], None] | None
) -> Iterator[tuple[int | None, DataError]]:
    """Faults with the episode whose states they spoil, None for all others."""
    yield from ((None, problem) for problem in _count_faults(source))
    spans = _spans(source)
    for done, (path, stop) in enumerate(spans.items(), start=1):
        if source.grid is None:
            faults = _video_faults(source, path, stop, thorough)
        else:
            faults = _token_faults(source.grid, path, stop)
        yield from ((None, problem) for problem in faults)
        if progress is not None:
            progress(done, len(spans))
    for episode in source.episodes:
        yield from ((episode.index, problem) for problem in _state_faults(source, episode))


def _state_faults(source: OnexSource | LerobotSource, episode: Episode) -> Iterator[DataError]:
    """What is wrong with an episode's states; a wrong number of rows does not hide what else is."""
    try:
        source.read_states(episode.index, 0, episode.length)
    except DataError as problem:
        yield problem
        if isinstance(source, LerobotSource):
            try:
                table = source.recordings[episode.index].table
                check_finite(table, source.rows(episode.index), source.layout.names, 0)
            except DataError as other:
                yield other


def _spans(source: OnexSource | LerobotSource) -> dict[Path, int]:
    """Every video or token file with the number of frames its episodes need of it."""
    spans: dict[Path, int] = {}
    for episode in source.episodes:
        path, first = source.footage(episode.index)
        spans[path] = max(spans.get(path, 0), first + episode.length)
    return spans


def _video_faults(source: OnexSource | LerobotSource, video: Path, stop: int, thorough: bool) -> Iterator[DataError]:
    try:
        info = probe(video)
    except DataError as problem:
        yield problem
        return
    again = "Download or encode it again, or correct the metadata."
    if info.num_frames != stop:
        found = f"{info.num_frames}"
        yield DataError(video, expected=f"{stop} frames, one per row of states", found=found, fix=again)
    if abs(info.fps - source.fps) > 0.005 * source.fps:
        yield DataError(video, expected=f"{source.fps:g} frames per second", found=f"{info.fps:g}", fix=again)
    if (info.height, info.width) != source.image_size and source.image_size is not None:
        size = "x".join(str(n) for n in source.image_size)
        yield DataError(video, expected=f"frames of {size}", found=f"{info.height}x{info.width}", fix=again)
    last = min(stop, info.num_frames)
    for start in (0,) if thorough else (0, last - 1):
        try:
            for _ in stream_frames(video, range(start, last if thorough else start + 1), threads=0):
                pass
        except DataError as problem:
            yield problem


def _token_faults(grid: TokenGrid, path: Path, stop: int) -> Iterator[DataError]:
    block = (grid.latents_per_block, grid.height, grid.width)
    stored = path.stat().st_size // (4 * int(np.prod(block)))
    count = min(stored, stop // grid.block)  # a partial last block is never read
    table = mapped(path, "int32", (count, *block))
    for first in range(0, count, 1024):
        try:
            check_ids(path, table[first : first + 1024], grid, first)
        except DataError as problem:
            yield problem


def _count_faults(source: OnexSource | LerobotSource) -> Iterator[DataError]:
    """Compare the totals that the metadata claim with what is there, where nothing is left out."""
    is_lerobot = isinstance(source, LerobotSource)
    path = source.path / ("meta/info.json" if is_lerobot else "metadata.json")
    if source.left_out or not path.exists():
        return
    metadata = read_json(path)
    frames = sum(episode.length for episode in source.episodes)
    claims = [("total_episodes", len(source.episodes)), ("total_frames", frames)]
    for key, found in claims if is_lerobot else [("num_images", frames)]:
        if key in metadata and metadata[key] != found:
            yield DataError(path, expected=f"{key} {metadata[key]}", found=f"{found}", fix="Correct the metadata.")


def _cameras(path: Path) -> tuple[str, ...]:
    try:
        return tuple(cameras(path)) if looks_like_lerobot(path) else ()
    except DataError:
        return ()


def _bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
