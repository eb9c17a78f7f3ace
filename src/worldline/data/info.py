"""`inspect`: the content of a data set and all its problems. Changes nothing."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from worldline.data.clips import check_size, source_windows
from worldline.data.splits import repeated
from worldline.formats.open import OpenOptions, choose_episodes, format_of, only
from worldline.formats.source import Report, Source, noting, some_lengths
from worldline.formats.states import StateStats, compute_stats, implausible
from worldline.progress import watched
from worldline.schema import DataError, TokenGrid

_SAMPLE, _SAMPLING = 34, 77
"""Frames of a sample of the compression track, two blocks of 17, and of one of the sampling track."""
_EXAMPLES = 4


@dataclass(frozen=True, kw_only=True)
class Problem:
    """All faults of one kind and one remedy."""

    kind: str
    """A short stable id, as `DataError.kind`."""
    count: int
    examples: tuple[str, ...]
    """The first few, with file, expected and found."""
    remedy: str

    def __str__(self) -> str:
        more = f" (and {self.count - 1} more)" if self.count > 1 else ""
        return f"{self.kind}: {self.examples[0]}{more}. {self.remedy}"


@dataclass(frozen=True, kw_only=True)
class Info:
    """The result of `inspect`. Of a data set that cannot be opened, only the problems."""

    path: Path
    kind: str = "unreadable"
    episodes: int = 0
    frames: int = 0
    fps: float = 0.0
    state_dim: int = 0
    state_names: tuple[str, ...] = ()
    state_kinds: tuple[str, ...] = ()
    image_size: tuple[int, int] | None = None
    """Height and width in px."""
    camera: str | None = None
    cameras: tuple[str, ...]
    grid: TokenGrid | None = None
    samples: int = 0
    """Disjoint compression samples: two token blocks, or 34 frames of video, within one episode."""
    windows_77: int = 0
    """Windows of 77 frames at a stride of 8 within one episode; 0 for tokens, which hold no 77."""
    latents: str = ""
    """Of latents, which windows there are; no others can be read, so the two numbers above are 0."""
    statistics: StateStats | None = None
    """Over the episodes whose states are sound; None where there are none."""
    bytes: int
    left_out: tuple[str, ...] = ()
    """Listed, but absent, empty or listed twice."""
    problems: tuple[Problem, ...]
    notes: tuple[str, ...] = ()
    """Facts worth knowing that are no faults."""

    def __str__(self) -> str:
        size = f"{self.image_size[0]}x{self.image_size[1]}" if self.image_size else "no pictures"
        lines = [
            f"{self.path}: {self.kind}",
            f"  episodes     {self.episodes} ({len(self.left_out)} more listed and left out)",
            f"  frames       {self.frames} at {self.fps:g} fps, {size}",
            f"  camera       {self._cameras}" if self.cameras else "",
            f"  tokens       {self.grid}" if self.grid else "",
            f"  latents      {self.latents}"
            if self.latents
            else f"  samples      {self.samples} (34 frames), windows of 77 frames at stride 8: {self.windows_77}",
            f"  states       {self.state_dim} dimensions",
        ]
        known = self.statistics
        for i, (name, kind) in enumerate(zip(self.state_names, self.state_kinds, strict=True)):
            span = f"{known.minimum[i]:9.3f} .. {known.maximum[i]:8.3f}" if known else ""
            lines.append(f"    {i:3} {name:28} {kind:9} {span}")
        lines += [f"  note: {note}" for note in self.notes]
        lines += [f"  problem: {problem}" for problem in self.problems] or ["  no problems found"]
        return "\n".join(line for line in lines if line)

    @property
    def _cameras(self) -> str:
        """The camera that is read, the others, and how to choose one of them."""
        others = ", ".join(camera for camera in self.cameras if camera != self.camera)
        not_read = f"not read: {others} (choose with --camera)" if others else ""
        return "; ".join(part for part in (self.camera, not_read) if part)


def inspect(
    path: Path | Sequence[Path],
    options: OpenOptions | None = None,
    *,
    episodes: str = ":",
    exclude: Sequence[int] = (),
    thorough: bool = False,
) -> Info:
    """Open a data set, or several as one, check every file it lists and count what can be made of it.

    Every video's container is read and its first and last frames are decoded; `thorough` decodes all. Every
    state and every token id is read. Faults are collected in `Info.problems`, never raised. Of several cameras the
    first is taken where none is given; `episodes` and `exclude` are as for `choose_episodes`.

    Raises `DataError` for a folder of no known format, and `UsageError` where there is no such camera, column or
    episode, or the data sets differ.
    """
    options, paths = options or OpenOptions(), [path] if isinstance(path, Path) else list(path)
    found: dict[str, DataError] = {}  # by its text: several checks may find the same

    def note(problem: DataError) -> None:
        if not (options.allow_missing and problem.kind == "missing_files"):
            found.setdefault(str(problem), problem)

    formats, cameras = [format_of(one) for one in paths], {}
    with suppress(DataError):
        cameras = formats[0].cameras(paths[0]) if formats[0].cameras else {}
    usual = [key for key, why_not in cameras.items() if not why_not] or list(cameras)
    camera = options.camera or (usual[0] if len(cameras) > 1 else None)
    size = sum(file.stat().st_size for one in paths for file in one.rglob("*") if file.is_file())
    about: dict[str, Any] = {"cameras": tuple(cameras), "bytes": size}
    try:
        source = replace(options, camera=camera, allow_missing=True).open(path, report=note)
    except DataError as problem:
        note(problem)
        return Info(path=paths[0], problems=_problems(paths[0], found.values()), **about)
    if source.episodes and (episodes != ":" or exclude):
        source = only(source, choose_episodes(source, episodes, exclude=exclude))
    sample = _SAMPLE if source.grid is None else 2 * source.grid.block
    if source.pattern is None:
        about["samples"] = len(source_windows(source, window=sample, stride=sample))
        about["windows_77"] = 0 if source.grid is not None else len(source_windows(source, window=_SAMPLING, stride=8))
    else:
        window, stride = source.pattern.window, source.stride
        count = len(source_windows(source, window=window, stride=stride))
        about["latents"] = f"{count} windows of {window} frames, at multiples of {stride}"
    about["statistics"] = statistics = _checked(source, note, thorough=thorough)
    if len(paths) == 1:
        with noting(note):
            extremes = None if statistics is None else np.array([statistics.minimum, statistics.maximum])
            source.claims(note, extremes)
    lengths = [episode.length for episode in source.episodes]
    imagined = all(episode.provenance.get("forecaster") for episode in source.episodes)
    if not imagined and not about.get("samples", 1):  # a forecast is as long as it was asked to be: the notes say so
        note(_too_short(source.path, lengths, sample))
    about |= {name: getattr(source, name) for name in ("path", "kind", "fps", "image_size", "grid", "left_out")}
    return Info(
        **about,
        episodes=len(lengths),
        frames=sum(lengths),
        state_dim=source.layout.dim,
        state_names=source.layout.names,
        state_kinds=source.layout.kinds,
        camera=source.reading.camera if cameras else None,
        problems=_problems(source.path, found.values()),
        notes=tuple(_notes(source, sample, statistics, joined=len(paths) > 1)),
    )


def _checked(source: Source, note: Report, *, thorough: bool) -> StateStats | None:
    """Note all that is wrong with a source; give the statistics of the episodes whose states are sound."""
    faulty = _faults(source, note, thorough=thorough)
    sound = [episode.index for episode in source.episodes if episode.index not in faulty]
    statistics = compute_stats(source, episodes=sound) if sound else None
    for check in (repeated, implausible) if sound else ():
        with noting(note):
            for problem in check(source, sound):
                note(problem)
    return statistics


def _faults(source: Source, report: Report, *, thorough: bool) -> set[int]:
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
    for episodes in watched(files.values(), "checking files"):
        with noting(report):
            source.check_footage(episodes, report)
        if source.grid is None and source.latent_grid is None:
            _film_faults(source, episodes, report, thorough)
    return faulty


def _film_faults(source: Source, episodes: Sequence[int], report: Report, thorough: bool) -> None:
    """Report what is wrong with the pictures of one file: their size, their times, what does not decode."""
    with noting(report):
        check_size(source, episodes[0], source.frame_size(episodes[0]))
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
                    check_size(source, episode, (frames.shape[-2], frames.shape[-1]))


def _problems(path: Path, found: Iterable[DataError]) -> tuple[Problem, ...]:
    """One problem per kind and remedy, in the order in which they were found."""
    grouped: dict[tuple[str, str], list[str]] = {}
    for problem in found:
        place = problem.path.relative_to(path) if problem.path.is_relative_to(path) else problem.path
        example = f"{'' if place == Path('.') else f'{place}: '}expected {problem.expected}, found {problem.found}"
        grouped.setdefault((problem.kind, problem.fix), []).append(example)
    return tuple(
        Problem(kind=kind, count=len(examples), examples=tuple(examples[:_EXAMPLES]), remedy=remedy)
        for (kind, remedy), examples in grouped.items()
    )


def _notes(source: Source, sample: int, statistics: StateStats | None, *, joined: bool) -> Iterator[str]:
    """Facts worth knowing that are no faults."""
    if statistics is not None and statistics.constant:
        names = ", ".join(statistics.names[i] for i in statistics.constant)
        yield f"{len(statistics.constant)} state dimensions never change: {names}"
    yield from source.notes()
    if joined:
        yield "several data sets are read as one; what their own metadata claim is checked when each is looked at alone"
    tracks = {"compression": sample} | ({} if source.grid else {"sampling": _SAMPLING})
    if source.pattern is not None:
        tracks = {"sampling": source.pattern.window}
    for track, frames in tracks.items():
        short = [episode.length for episode in source.episodes if episode.length < frames]
        if short:
            yield (
                f"{len(short)} of {len(source.episodes)} episodes are shorter than the {frames} frames of a sample of "
                f"the {track} track and give none (they have {some_lengths(short)})"
            )


def _too_short(path: Path, lengths: list[int], sample: int) -> DataError:
    expected, found = f"an episode of at least {sample} frames", f"lengths of {some_lengths(lengths)}"
    fix = "Record longer episodes, or train the sampling track on a shorter window."
    return DataError(path, expected=expected, found=found, fix=fix, kind="too_short")
