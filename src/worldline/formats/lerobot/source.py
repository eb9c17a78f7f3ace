"""LeRobot data sets, v2.x and v3.0, read directly: parquet tables, and mp4 files or images in the tables.

Rows and frames are paired by the table's `timestamp` and the times at which the video shows its frames.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int64, UInt8
from torch import Tensor

from worldline.files import read_json
from worldline.formats.checks import Report, check_finite, check_totals, check_window
from worldline.formats.lerobot.metadata import NO_FILE, Meta
from worldline.formats.lerobot.tables import Table, count_rows, read_images, read_table
from worldline.formats.pairing import Mismatch, pair, rate, runs_at
from worldline.formats.source import Source
from worldline.formats.video import decode_image, frame_times, probe, stream_frames
from worldline.schema import DataError

_Times = Float64[np.ndarray, "_"]
_IMAGES = 16  # of a table that are decoded at a time


@dataclass(frozen=True, kw_only=True)
class Recording:
    """Where one episode lies, as the metadata say: rows of a table below the folder `root`, and frames of a video."""

    number: int
    """`episode_index` in the table."""
    length: int
    root: Path
    table: Path
    video: Path | None
    """None where the camera's images lie in the table."""
    begins: float | None = None
    """Seconds into the video, where one file holds several episodes (v3.0)."""
    first_frame: int = 0
    """The episode's first frame in its file, if the episodes there follow one another without gap or surplus."""
    frames_in_file: int | None = None
    """Frames of all episodes that lie in the video; None where the file is the episode's own."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LerobotSource(Source):
    """Episodes of a LeRobot data set seen by one camera."""

    places: tuple[Recording, ...] = ()
    meta: Meta
    camera: str
    columns: tuple[str, ...]
    """Table columns that make up `Clip.states`."""
    dims: tuple[int, ...]
    """Width of each of those columns."""

    @property
    def alike(self) -> dict[str, object]:
        return super().alike | {"cameras": self.camera, "columns of states": self.columns}

    def frames(self, episode: int, start: int, stop: int, *, threads: int = 1) -> Iterator[UInt8[Tensor, "n 3 h w"]]:
        check_window(self.episodes[episode], start, stop)
        recording, shown = self.places[episode], self.shown(episode)[start:stop]
        if recording.video is not None:
            yield from stream_frames(recording.video, shown, threads=threads)
            return
        path = self._rows(episode)[1].path
        for piece in np.split(shown, range(_IMAGES, len(shown), _IMAGES)):
            images = zip(piece, read_images(path, self.camera, piece, recording.root), strict=True)
            yield torch.stack([decode_image(data, path, f"row {row} of {self.camera}") for row, data in images])

    def read_states(self, episode: int, start: int, stop: int) -> Float32[np.ndarray, "t s"]:
        check_window(self.episodes[episode], start, stop)
        rows, table = self._rows(episode)
        window = rows[start:stop]
        wrong = [i for i, row in enumerate(window.tolist()) if row in table.faults] if table.faults else []
        if wrong:
            expected = f"{self.layout.dim} numbers in every row of {self.episodes[episode].name}"
            found = f"{table.faults[int(window[wrong[0]])]} in row {start + wrong[0]} ({len(wrong)} such rows)"
            raise DataError(table.path, expected=expected, found=found, kind="states")
        states = table.values[window]
        check_finite(table.path, states, self.layout.names, start)
        return states

    def shown(self, episode: int) -> Int64[np.ndarray, "n"]:
        """The frame of the video that shows each row; for images in the table, the row itself."""
        recording, (rows, table) = self.places[episode], self._rows(episode)
        if recording.video is None:
            return rows
        times, shown = table.times[rows], frame_times(recording.video).seconds
        self._check_times(episode, table.path, times, shown)
        own = len(times) if recording.frames_in_file is None else recording.frames_in_file
        begins, first = recording.begins or 0.0, recording.first_frame if own == len(shown) else None
        found = pair(times, shown, starts=(begins, begins + float(shown[0])), first=first, fps=self.fps)
        if isinstance(found, Mismatch):
            raise self._unpaired(episode, found, times, shown)
        return found

    def check(self, episode: int) -> tuple[int, int] | None:
        """As `Source.check`. The times of a video's frames are read only if its header is not conclusive."""
        super().check(episode)
        length, recording = self.episodes[episode].length, self.places[episode]
        if recording.video is not None:
            info, (rows, table) = probe(recording.video), self._rows(episode)
            own = length if recording.frames_in_file is None else recording.frames_in_file
            regular = np.abs(table.times[rows] - np.arange(length) / self.fps).max() <= 0.1 / self.fps
            if info.num_frames != own or abs(info.fps - self.fps) > 0.005 * self.fps or not regular:
                self.shown(episode)
        return self.frame_size(episode)

    def frame_size(self, episode: int) -> tuple[int, int] | None:
        video = self.places[episode].video
        return super().frame_size(episode) if video is None else probe(video).size

    def footage(self, episode: int) -> tuple[Path, int]:
        """The file that shows an episode, and about where the episode's frames begin in it."""
        recording = self.places[episode]
        return recording.video or recording.table, recording.first_frame

    def states_file(self, episode: int) -> Path:
        return self.places[episode].table

    def claims(self, report: Report, extremes: Float64[np.ndarray, "2 s"] | None = None) -> None:
        meta, fix = self.meta, "Correct the metadata."
        for camera, why_not in meta.cameras().items():
            if why_not == NO_FILE and camera != self.camera:
                report(meta.fault(f"videos of {camera}", "no file of it", "camera", fix))
        if self.image_size != (stated := meta.size(self.camera)) and self.image_size is not None and self.episodes:
            used = "frames of {}x{}, which are used".format(*self.image_size)
            report(meta.fault("{} of {}x{}".format(self.camera, *stated), used, "image_size", fix))
        for column, dim in zip(self.columns, self.dims, strict=True):
            names = meta.names(column)
            if names and (len(names) != dim or len(set(names)) != dim):
                report(meta.fault(f"{dim} different names of {column}", f"{len(set(names))}", "names", fix))
        self._report_moved(report)
        if not self.left_out:
            frames = sum(episode.length for episode in self.episodes)
            check_totals(meta.path, {"total_episodes": len(self.episodes), "total_frames": frames}, report)
        if extremes is not None and (path := meta.root / "meta/stats.json").is_file():
            self._check_stats(path, extremes, report)

    def notes(self) -> Iterator[str]:
        """Cameras that are not used by default, and frames that belong to no row."""
        for camera, why_not in self.meta.cameras().items():
            if why_not and why_not != NO_FILE:
                yield f"{camera} is not used by default: {why_not}"
        rows: Counter[Path] = Counter()
        for place in self.places:
            if place.video is not None:
                rows[place.video] += place.length
        surplus: Counter[Path] = Counter()
        for video, count in rows.items():
            with suppress(DataError):
                surplus[video] = len(frame_times(video)) - count
        surplus = +surplus  # those above 0
        if surplus:
            yield f"{surplus.total()} frames of {len(surplus)} videos belong to no row and are not read"

    def _report_moved(self, report: Report) -> None:
        """Report episodes whose rows lie in another table than the metadata say, and are read from there."""
        moved: list[int] = []
        for episode, place in enumerate(self.places):
            with suppress(DataError):
                if self._rows(episode)[1].path != place.table:
                    moved.append(episode)
        if moved:
            expected = f"rows of {self.episodes[moved[0]].name} in {self.places[moved[0]].table.name}"
            found = f"them in another file ({len(moved)} such episodes), where they were found and are used"
            fix = "Nothing needs to be done; converting the data set again corrects meta/episodes."
            path = self.path / "meta/episodes"
            report(DataError(path, expected=expected, found=found, fix=fix, kind="stale_pointer"))

    def _check_stats(self, path: Path, extremes: Float64[np.ndarray, "2 s"], report: Report) -> None:
        """Compare meta/stats.json with the tables: wrong statistics hide a changed unit. They are not used."""
        stats, ends = read_json(path), np.cumsum(self.dims).tolist()
        for column, dim, end in zip(self.columns, self.dims, ends, strict=True):
            stated, actual = stats.get(column), extremes[:, end - dim : end]
            if not isinstance(stated, dict):
                continue
            room = 0.1 * (actual[1] - actual[0]) + 1e-3 * np.abs(actual[0]).max() + 1e-6
            try:
                claimed = np.array([stated["min"], stated["max"]], np.float64).reshape(2, dim)
                found = "" if (np.abs(claimed - actual) <= room).all() else _range(claimed)
            except (KeyError, TypeError, ValueError):
                found = f"other things than {dim} numbers"
            if found:
                expected, found = f"the range of {column}, as the tables have it", f"{found}; it is {_range(actual)}"
                fix = "Compute them again with LeRobot's tools; worldline takes statistics from the tables."
                report(DataError(path, expected=expected, found=found, fix=fix, kind="stats"))

    def _rows(self, episode: int) -> tuple[Int64[np.ndarray, "n"], Table]:
        """The rows that are an episode's, and the table that holds them.

        Metadata may name another table than theirs (v3.0); LeRobot finds rows by number, and so do we.
        """
        recording, length = self.places[episode], self.episodes[episode].length
        table = self._table(recording.table)
        rows = table.rows_of(recording.number)
        if len(rows) == length:
            return rows, table
        for path in sorted((recording.root / "data").rglob("*.parquet")) if self.kind == "lerobot-v3.0" else ():
            if count_rows(path).get(recording.number) == length:
                return self._table(path).rows_of(recording.number), self._table(path)
        others = list(table.rows or ())
        held = f"; it holds episodes {others[:4]}" if others and not len(rows) else ""
        wild = int((~np.isfinite(table.values[rows])).any(axis=1).sum())
        expected = f"{length} rows of {self.episodes[episode].name}, as the metadata say"
        found = f"{len(rows)}{held}{f', {wild} of them without finite states' if wild else ''}"
        fix = "Fetch the file again, or correct the episode's length in meta/."
        raise DataError(table.path, expected=expected, found=found, fix=fix, kind="rows")

    def _table(self, path: Path) -> Table:
        return read_table(path, self.columns, self.dims, self.fps)

    def _check_times(self, episode: int, path: Path, times: _Times, shown: _Times) -> None:
        """Raise `DataError` unless times rise, at the rate of meta/info.json."""
        name = self.episodes[episode].name
        with np.errstate(invalid="ignore"):
            sound = np.isfinite(times) & (np.diff(times, prepend=-np.inf) > 0)
        if not sound.all():
            row = int(sound.argmin())
            expected = f"timestamps of {name} that rise from row to row"
            found = f"{times[row]:.6g} in row {row}, after {times[max(0, row - 1)]:.6g}"
            fix = "Correct them, or drop the column: rows are then taken to follow one another at info.json's fps."
            raise DataError(path, expected=expected, found=found, fix=fix, kind="timestamps")
        if not runs_at(times, self.fps):
            expected = f"{self.fps:g} rows per second, as meta/info.json says"
            found = f"{rate(times):.4g} by the timestamps of {name}; the video runs at {rate(shown):.4g} frames/s"
            fix = "Correct fps in meta/info.json, or the timestamps, or drop that column (rows then follow at fps)."
            raise DataError(path, expected=expected, found=found, fix=fix, kind="rate")

    def _unpaired(self, episode: int, found: Mismatch, times: _Times, shown: _Times) -> DataError:
        path, name, shown_at = self.footage(episode)[0], self.episodes[episode].name, rate(shown)
        same_rate, place = abs(shown_at - rate(times)) <= 0.01 * rate(times), f"row {found.row} at {found.at:.3f} s"
        if self.places[episode].frames_in_file is None and len(shown) < len(times) and same_rate:
            expected, missing = f"{len(times)} frames, one per row of {name}", f"{len(shown)}; none shows {place}"
            return DataError(path, expected=expected, found=missing, kind="frames")
        expected = f"a frame within half a frame of every row of {name}, at {rate(times) or self.fps:.4g} rows/s"
        nearest = f"{place}, the nearest frame at {found.nearest:.3f} s; the video runs at {shown_at:.4g} frames/s"
        kind, fix = "frames" if same_rate else "rate", "Encode the video at the rows' rate, or correct the timestamps."
        return DataError(path, expected=expected, found=nearest, fix=fix, kind=kind)


def _range(extremes: Float64[np.ndarray, "2 d"]) -> str:
    """Smallest and largest values, of the first dimensions: `[0, -1.2] .. [1, 1.2]`."""
    low, high = (", ".join(f"{value:.3g}" for value in values[:4]) for values in extremes)
    more = ", ..." * (extremes.shape[1] > 4)
    return f"[{low}{more}] .. [{high}{more}]"
