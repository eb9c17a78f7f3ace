"""LeRobot data sets, v2.x and v3.0, read as they lie: parquet tables, and mp4 files or images in the tables.

No lerobot package needed.

Rows and frames are paired by their times: the table's `timestamp` against the times at which the video shows its
frames. Knows nothing of windows.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int64, UInt8
from torch import Tensor

from worldline.formats.checks import check_finite, check_window
from worldline.formats.lerobot.tables import matrix, read_columns, read_images, seconds
from worldline.formats.pairing import Mismatch, pair, rate, runs_at
from worldline.formats.source import Source
from worldline.formats.video import FrameTimes, decode_image, frame_times, probe, stream_frames
from worldline.schema import DataError

_IMAGES = 16
"""Images of a table that are decoded at a time."""


@dataclass(frozen=True, kw_only=True)
class Recording:
    """Where one episode lies: rows of a table and frames of a video."""

    number: int
    """`episode_index` in the table."""
    root: Path
    """The data set's folder."""
    table: Path
    video: Path | None
    """None where the camera's images lie in the table."""
    begins: float | None = None
    """Seconds into the video, where one file holds several episodes (v3.0)."""
    first_frame: int = 0
    """The episode's first frame in its file, if the episodes there follow one another without gap or surplus."""
    frames_in_file: int | None = None
    """Frames of all episodes that the metadata place in the video; None where the file is the episode's own."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Table:
    """What is needed of a parquet file."""

    values: Float32[np.ndarray, "n s"]
    numbers: Int64[np.ndarray, "e"] | None
    """Episodes of which there are rows, rising; None where the file does not say."""
    places: Int64[np.ndarray, "n"]
    """The rows of the first of these, in order, then of the second, and so on."""
    ends: Int64[np.ndarray, "_"]
    """Where in `places` each of them ends."""
    times: Float64[np.ndarray, "n"]
    """Seconds since the episode began; NaN where the file does not say."""
    faults: dict[int, str]
    """What is wrong with the states of a row, where it does not hold its numbers."""

    def rows_of(self, number: int) -> Int64[np.ndarray, "r"]:
        """The rows of an episode."""
        if self.numbers is None:
            return self.places
        at = int(np.searchsorted(self.numbers, number))
        if at == len(self.numbers) or self.numbers[at] != number:
            return self.places[:0]
        return self.places[self.ends[at - 1] if at else 0 : self.ends[at]]


@dataclass(frozen=True, kw_only=True, eq=False)
class LerobotSource(Source):
    """Episodes of a LeRobot data set seen by one camera."""

    camera: str
    columns: tuple[str, ...]
    """Table columns that make up `Clip.states`."""
    dims: tuple[int, ...]
    """Width of each of those columns."""

    @property
    def recordings(self) -> tuple[Recording, ...]:
        return self.places

    @property
    def alike(self) -> dict[str, object]:
        return super().alike | {"cameras": self.camera, "columns of states": self.columns}

    @property
    def reading(self) -> dict[str, Any]:
        return {"camera": self.camera, "state_keys": list(self.columns)}

    def frames(self, episode: int, start: int, stop: int, *, threads: int = 1) -> Iterator[UInt8[Tensor, "n 3 h w"]]:
        """Decode the frames of rows `start .. stop-1` in pieces of bounded size."""
        check_window(self.episodes[episode], start, stop)
        video = self.recordings[episode].video
        if video is not None:
            yield from stream_frames(video, self.shown(episode)[start:stop], threads=threads)
            return
        path, rows, _ = self._rows(episode)
        places = rows[start:stop].tolist()
        for i in range(0, len(places), _IMAGES):
            piece = places[i : i + _IMAGES]
            images = zip(piece, read_images(path, self.camera, piece, self.recordings[episode].root), strict=True)
            yield torch.stack([decode_image(data, path, f"row {row} of {self.camera}") for row, data in images])

    def read_states(self, episode: int, start: int, stop: int) -> Float32[np.ndarray, "t s"]:
        """Read states alone, checked to be finite and to have one row per frame."""
        check_window(self.episodes[episode], start, stop)
        path, rows, table = self._rows(episode)
        places = rows[start:stop]
        window = table.values[places]
        wrong = [i for i, place in enumerate(places.tolist()) if place in table.faults] if table.faults else []
        if wrong:
            raise DataError(
                path,
                expected=f"{self.layout.dim} numbers in every row of {self.episodes[episode].name}",
                found=f"{table.faults[int(places[wrong[0]])]} in row {start + wrong[0]} ({len(wrong)} such rows)",
                fix="Repair the recording.",
                kind="states",
            )
        check_finite(path, window, self.layout.names, start)
        return window

    def shown(self, episode: int) -> Int64[np.ndarray, "n"]:
        """The frame of the video that shows each row.

        Raises:
            DataError: rows and frames do not belong together by their times.
        """
        recording = self.recordings[episode]
        assert recording.video is not None
        path, rows, table = self._rows(episode)
        times, video = table.times[rows], frame_times(recording.video)
        self._check_times(episode, path, times, video)
        own = len(video) if recording.frames_in_file is None else recording.frames_in_file
        one_to_one = own == len(video) and (recording.frames_in_file is not None or own == len(times))
        begins, zero = recording.begins or 0.0, float(video.seconds[0])
        found = pair(
            times,
            video.seconds,
            starts=(begins, begins + zero) if zero else (begins,),
            first=recording.first_frame if one_to_one else None,
            fps=self.fps,
        )
        if isinstance(found, Mismatch):
            raise self._unpaired(episode, found, times, video)
        return found

    def _check_times(self, episode: int, path: Path, times: Float64[np.ndarray, "n"], video: FrameTimes) -> None:
        """Raise `DataError` unless times rise, at the rate of meta/info.json."""
        with np.errstate(invalid="ignore"):
            sound = np.isfinite(times) & (np.diff(times, prepend=-np.inf) > 0)
        if not sound.all():
            row = int(sound.argmin())
            raise DataError(
                path,
                expected=f"timestamps of {self.episodes[episode].name} that rise from row to row",
                found=f"{times[row]:.6g} in row {row}, after {times[max(0, row - 1)]:.6g}",
                fix="Correct them, or drop the column: rows are then taken to follow one another at info.json's fps.",
                kind="timestamps",
            )
        if not runs_at(times, self.fps):
            raise DataError(
                path,
                expected=f"{self.fps:g} rows per second, as meta/info.json says",
                found=f"{rate(times):.4g} by the timestamps of {self.episodes[episode].name}{_shows(video)}",
                fix="Correct fps in meta/info.json or the timestamps (without that column rows follow one another at "
                "info.json's fps).",
                kind="rate",
            )

    def check(self, episode: int) -> tuple[int, int] | None:
        """Check all of an episode but its pixels, as cheaply as can be; give the size of its frames.

        The times of a video's frames are read only where its header leaves a doubt.

        Raises:
            DataError: its rows or its video are not what they should be.
        """
        length, recording = self.episodes[episode].length, self.recordings[episode]
        self.read_states(episode, 0, length)
        if recording.video is None:
            return self.first_size(episode)
        info, (_, rows, table) = probe(recording.video), self._rows(episode)
        times = table.times[rows]
        own = length if recording.frames_in_file is None else recording.frames_in_file
        regular = np.abs(times - np.arange(length) / self.fps).max() <= 0.1 / self.fps
        if info.num_frames != own or abs(info.fps - self.fps) > 0.005 * self.fps or not regular:
            self.shown(episode)
        return info.height, info.width

    def first_size(self, episode: int) -> tuple[int, int]:
        """Height and width of an episode's first frame, as it is stored."""
        video = self.recordings[episode].video
        if video is not None:
            return probe(video).height, probe(video).width
        _, _, height, width = next(self.frames(episode, 0, 1)).shape
        return height, width

    def footage(self, episode: int) -> tuple[Path, int]:
        """The file that shows an episode, and about where the episode's frames begin in it."""
        recording = self.recordings[episode]
        return recording.video or recording.table, recording.first_frame

    def stored_states(self, episode: int) -> Float32[np.ndarray, "n s"]:
        """All rows that the episode's table holds of it, unchecked, however many there are."""
        recording = self.recordings[episode]
        table = self._table(recording.table)
        return table.values[table.rows_of(recording.number)]

    def moved(self) -> tuple[int, ...]:
        """Episodes whose rows lie in another table than the metadata say, and are read from there."""
        found: list[int] = []
        for episode in self.episodes:
            try:
                if self._rows(episode.index)[0] != self.recordings[episode.index].table:
                    found.append(episode.index)
            except DataError:
                continue
        return tuple(found)

    def _rows(self, episode: int) -> tuple[Path, Int64[np.ndarray, "n"], Table]:
        """The table that holds an episode, and the rows that are the episode's.

        Metadata may name another file than the one that holds the rows (v3.0); LeRobot finds them by number, and so
        do we.
        """
        recording, length = self.recordings[episode], self.episodes[episode].length
        table = self._table(recording.table)
        rows = table.rows_of(recording.number)
        if len(rows) == length:
            return recording.table, rows, table
        elsewhere = holders(recording.root, recording.number).get(length) if self.kind == "lerobot-v3.0" else None
        if elsewhere is not None:
            table = self._table(elsewhere)
            return elsewhere, table.rows_of(recording.number), table
        others = [] if table.numbers is None else table.numbers.tolist()
        held = f"; it holds episodes {others[:4]}" if others and recording.number not in others else ""
        raise DataError(
            recording.table,
            expected=f"{length} rows of {self.episodes[episode].name}, as the metadata say",
            found=f"{len(rows)}{held}",
            fix="Fetch the file again, or correct the episode's length in meta/.",
            kind="rows",
        )

    def _table(self, path: Path) -> Table:
        return read_table(path, self.columns, self.dims, self.fps)

    def _unpaired(self, episode: int, found: Mismatch, times: Float64[np.ndarray, "n"], video: FrameTimes) -> DataError:
        recording, name = self.recordings[episode], self.episodes[episode].name
        assert recording.video is not None
        shown = video.seconds
        same_rate = abs(rate(shown) - rate(times)) <= 0.01 * rate(times)
        if recording.frames_in_file is None and len(video) < len(times) and same_rate:
            return DataError(
                recording.video,
                expected=f"{len(times)} frames, one per row of {name}",
                found=f"{len(video)}; none shows row {found.row} at {found.at:.3f} s",
                fix="Download or encode it again.",
                kind="frames",
            )
        return DataError(
            recording.video,
            expected=f"a frame within half a frame of every row of {name}, at {rate(times) or self.fps:.4g} rows/s",
            found=f"row {found.row} at {found.at:.3f} s, the nearest frame at {found.nearest:.3f} s{_shows(video)}",
            fix="Encode the video at the rows' rate, or correct the timestamps.",
            kind="frames" if same_rate else "rate",
        )


def _shows(video: FrameTimes) -> str:
    return f"; the video runs at {rate(video.seconds):.4g} frames/s"


def read_table(path: Path, columns: tuple[str, ...], dims: tuple[int, ...], fps: float) -> Table:
    """Read states, episode numbers and times of a parquet file; kept in memory while the file is unchanged.

    Raises:
        DataError: not parquet, a column is absent, holds no numbers, or is of another width.
    """
    try:
        status = path.stat()
    except (OSError, ValueError):
        read_columns(path, columns)  # says what is wrong with it
        raise
    return _read_table(path, columns, dims, fps, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=1024)
def _read_table(
    path: Path, columns: tuple[str, ...], dims: tuple[int, ...], fps: float, _size: int, _mtime: int
) -> Table:
    table = read_columns(path, columns, ("episode_index", "timestamp", "frame_index"))
    parts = [matrix(path, table, name, dim) for name, dim in zip(columns, dims, strict=True)]

    def numbers(name: str) -> Float64[np.ndarray, "n"] | None:
        return seconds(path, table, name) if name in table.column_names else None

    episodes, times, frames = numbers("episode_index"), numbers("timestamp"), numbers("frame_index")
    episodes = None if episodes is None else _whole(episodes)
    if times is None:
        times = (_place(len(table), episodes) if frames is None else frames) / fps
    with np.errstate(over="ignore"):
        values = np.concatenate([part.values for part in parts], axis=1).astype(np.float32)
    faults = {row: found for part in parts for row, found in part.faults.items()}
    found, ends, places = None, np.zeros(0, np.int64), np.arange(len(table))
    if episodes is not None:
        places = np.argsort(episodes, kind="stable")
        found, counts = np.unique(episodes, return_counts=True)
        ends = np.cumsum(counts)
    return Table(values=values, numbers=found, places=places, ends=ends, times=times, faults=faults)


def _place(rows: int, episodes: Int64[np.ndarray, "n"] | None) -> Float64[np.ndarray, "n"]:
    """Place of every row within its episode, where no column says it."""
    if episodes is None:
        return np.arange(rows, dtype=np.float64)
    _, first, which = np.unique(episodes, return_index=True, return_inverse=True)
    return (np.arange(rows) - first[which]).astype(np.float64)


def holders(root: Path, number: int) -> dict[int, Path]:
    """Tables that hold rows of an episode, by how many."""
    files = {path: path.stat() for path in sorted((root / "data").rglob("*.parquet")) if path.is_file()}
    counts = _counts(tuple((path, status.st_size, status.st_mtime_ns) for path, status in files.items()))
    return {of[number]: path for path, of in counts.items() if number in of}


@lru_cache(maxsize=8)
def _counts(files: tuple[tuple[Path, int, int], ...]) -> dict[Path, dict[int, int]]:
    """Rows per episode in every table that can be read."""
    found: dict[Path, dict[int, int]] = {}
    for path, _, _ in files:
        try:
            episodes = matrix(path, read_columns(path, ("episode_index",)), "episode_index", 1).values[:, 0]
        except DataError:
            continue
        numbers, counts = np.unique(_whole(episodes), return_counts=True)
        found[path] = dict(zip(numbers.tolist(), counts.tolist(), strict=True))
    return found


def _whole(numbers: Float64[np.ndarray, "n"]) -> Int64[np.ndarray, "n"]:
    """Episode numbers as integers; -1, which no episode has, for what is none."""
    return np.where(np.abs(numbers) < 2**53, numbers, -1).astype(np.int64)
