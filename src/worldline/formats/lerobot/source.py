"""LeRobot data sets, v2.x and v3.0, read directly: parquet tables, and mp4 files or images in the tables.

Rows and frames are paired by the table's `timestamp` and the times at which the video shows its frames.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64, UInt8
from torch import Tensor

from worldline.contract import Reading
from worldline.files import read_json, while_unchanged
from worldline.formats.lerobot.metadata import INFO, MARK, NO_FILE, NO_NUMBERS, Meta, Recording, flat_names
from worldline.formats.lerobot.tables import Table, matrix, read_columns, read_images, read_table
from worldline.formats.source import LeavingOut, Report, Source, check_totals, leave_out_absent
from worldline.formats.states import bounds_of, guess_kind
from worldline.formats.video import decode_image, frame_times, pair, probe, rate, runs_at, stream_frames
from worldline.schema import DataError, StateKind, StateLayout, UsageError

_GUESS_FROM = 8  # tables that are read to guess the layout
_IMAGES = 16  # of a table that are decoded at a time


@dataclass(frozen=True, kw_only=True, eq=False)
class LerobotSource(Source):
    """Episodes of a LeRobot data set seen by one camera."""

    episodes: tuple[Recording, ...]
    meta: Meta
    camera: str
    dims: tuple[int, ...]
    """Width of each of the columns (`reading.state_keys`) that make up `Clip.states`."""

    @property
    def alike(self) -> dict[str, object]:
        return super().alike | {"cameras": self.camera, "columns of states": self.reading.state_keys}

    def frames(self, episode: int, start: int, stop: int, *, threads: int = 1) -> Iterator[UInt8[Tensor, "n 3 h w"]]:
        of, shown = self.episodes[episode], self.shown(episode)[start:stop]
        if of.video is not None:
            yield from stream_frames(of.video, shown, threads=threads)
            return
        path = self._rows(episode)[1].path
        for piece in np.split(shown, range(_IMAGES, len(shown), _IMAGES)):
            images = zip(piece, read_images(path, self.camera, piece, of.root), strict=True)
            yield torch.stack([decode_image(data, path, f"row {row} of {self.camera}") for row, data in images])

    def states_of(self, episode: int) -> tuple[Path, Float[np.ndarray, "n s"]]:
        rows, table = self._rows(episode)
        return table.path, table.values[rows]

    def column(self, episode: int, name: str) -> Float[np.ndarray, "n d"] | None:
        if not (names := self._column_names(name, episode)):
            return None
        rows, table = self._rows(episode)
        return matrix(table.path, read_columns(table.path, (name,)), name, len(names))[rows]

    def action_names(self, episode: int) -> tuple[str, ...]:
        made = _noted(self.episodes[episode].root / MARK).get("actions") == "next_state"  # of states, by our writer
        return () if made else self._column_names("action", episode)

    def _column_names(self, name: str, episode: int) -> tuple[str, ...]:
        """The names of a column's places; empty where there is no such column."""
        meta = self._meta_of(episode)
        if meta.features.get(name, {}).get("dtype", "string") in NO_NUMBERS:
            return ()
        dim, names = meta.dim(name), flat_names(meta.features[name].get("names"))
        return tuple(names if len(names) == dim == len(set(names)) else [f"{name}.{i}" for i in range(dim)])

    def shown(self, episode: int) -> Int64[np.ndarray, "n"]:
        """The frame of the video that shows each row; for images in the table, the row itself."""
        of, (rows, table) = self.episodes[episode], self._rows(episode)
        times = table.times[rows]
        with np.errstate(invalid="ignore"):
            sound = np.isfinite(times) & (np.diff(times, prepend=-np.inf) > 0)
        if not sound.all():
            row = int(sound.argmin())
            expected = f"timestamps of {of.name} that rise from row to row"
            found = f"{times[row]:.6g} in row {row}, after {times[max(0, row - 1)]:.6g}"
            fix = "Correct them, or drop the column: rows are then taken to follow one another at info.json's fps."
            raise DataError(table.path, expected=expected, found=found, fix=fix, kind="timestamps")
        row_rate = rate(times)
        if not runs_at(times, self.fps):
            expected = f"{self.fps:g} rows per second, as meta/info.json says"
            film = "" if of.video is None else f"; the video runs at {rate(frame_times(of.video).seconds):.4g} frames/s"
            found = f"{row_rate:.4g} by the timestamps of {of.name}{film}"
            fix = "Correct fps in meta/info.json, or the timestamps, or drop that column (rows then follow at fps)."
            raise DataError(table.path, expected=expected, found=found, fix=fix, kind="rate")
        if of.video is None:
            return rows
        shown = frame_times(of.video).seconds
        shown_at = rate(shown)
        begins, first = of.begins or 0.0, of.first_frame if of.frames_in_file == len(shown) else None
        found = pair(times, shown, starts=(begins, begins + float(shown[0])), first=first, fps=self.fps)
        if not isinstance(found, str):
            return found
        same_rate = abs(shown_at - row_rate) <= 0.01 * row_rate
        if of.begins is None and len(shown) < len(times) and same_rate:
            expected, missing = f"{len(times)} frames, one per row of {of.name}", f"{len(shown)}; none shows {found}"
            raise DataError(of.video, expected=expected, found=missing, kind="frames")
        expected = f"a frame within half a frame of every row of {of.name}, at {row_rate or self.fps:.4g} rows/s"
        nearest = f"{found}; the video runs at {shown_at:.4g} frames/s"
        kind, fix = "frames" if same_rate else "rate", "Encode the video at the rows' rate, or correct the timestamps."
        raise DataError(of.video, expected=expected, found=nearest, fix=fix, kind=kind)

    def surely_shown(self, episode: int) -> bool:
        of, (rows, table) = self.episodes[episode], self._rows(episode)
        regular = np.abs(table.times[rows] - np.arange(of.length) / self.fps).max() <= 0.1 / self.fps
        return bool(regular and (of.video is None or probe(of.video).holds(of.frames_in_file, self.fps)))

    def frame_size(self, episode: int) -> tuple[int, int] | None:
        video = self.episodes[episode].video
        return super().frame_size(episode) if video is None else probe(video).size

    def footage(self, episode: int) -> tuple[Path, int]:
        of = self.episodes[episode]
        return of.video or of.table, of.first_frame

    def pairing(self, episode: int) -> str:
        """The images of all cameras may lie in one table; and times may pair rows with other frames of a same video."""
        in_table = self.episodes[episode].video is None
        with suppress(DataError):  # what is wrong with it is said when it is read
            if in_table or not self.surely_shown(episode):
                shown = hashlib.sha256(self.shown(episode).tobytes()).hexdigest()
                return f"{self.camera * in_table} {shown:.16}"
        return ""

    def claims(self, report: Report, extremes: Float64[np.ndarray, "2 s"] | None = None) -> None:
        meta = self.meta
        for camera, why_not in meta.cameras().items():
            if why_not == NO_FILE and camera != self.camera:
                report(meta.fault(f"videos of {camera}", "no file of it", "camera"))
        if self.image_size != (stated := meta.size(self.camera)) and self.image_size is not None and self.episodes:
            used = "frames of {}x{}, which are used".format(*self.image_size)
            report(meta.fault("{} of {}x{}".format(self.camera, *stated), used, "image_size"))
        for column, dim in zip(self.reading.state_keys, self.dims, strict=True):
            names = flat_names(meta.features[column].get("names"))
            if names and (len(names) != dim or len(set(names)) != dim):
                report(meta.fault(f"{dim} different names of {column}", f"{len(set(names))}", "names"))
        moved: list[Recording] = []
        for of in self.episodes:
            with suppress(DataError):
                if self._rows(of.index)[1].path != of.table:
                    moved.append(of)
        if moved:
            path, expected = self.path / "meta/episodes", f"rows of {moved[0].name} in {moved[0].table.name}"
            found = f"them in another file ({len(moved)} such episodes), where they were found and are used"
            fix = "Nothing needs to be done; converting the data set again corrects meta/episodes."
            report(DataError(path, expected=expected, found=found, fix=fix, kind="stale_pointer"))
        if not self.left_out:
            frames = sum(of.length for of in self.episodes)
            check_totals(meta.root / INFO, {"total_episodes": len(self.episodes), "total_frames": frames}, report)
        if extremes is not None and (path := meta.root / "meta/stats.json").is_file():
            self._check_stats(path, extremes, report)

    def notes(self) -> Iterator[str]:
        """Cameras that are not used by default, and frames that belong to no row."""
        for camera, why_not in self.meta.cameras().items():
            if why_not and why_not != NO_FILE:
                yield f"{camera} is not used by default: {why_not}"
        if imagined := sum(bool(of.provenance.get("forecaster")) for of in self.episodes):
            yield f"{imagined} of {len(self.episodes)} episodes hold imagined frames (column worldline.real)"
        surplus: Counter[Path] = Counter()
        for video, frames in {of.video: of.frames_in_file for of in self.episodes if of.video is not None}.items():
            with suppress(DataError):
                surplus[video] = len(frame_times(video).ticks) - frames
        surplus = +surplus  # those above 0
        if surplus:
            yield f"{surplus.total()} frames of {len(surplus)} videos belong to no row and are not read"

    def _check_stats(self, path: Path, extremes: Float64[np.ndarray, "2 s"], report: Report) -> None:
        """Compare meta/stats.json with the tables: wrong statistics hide a changed unit. They are not used."""
        stats, ends = read_json(path), np.cumsum(self.dims)
        for column, actual in zip(self.reading.state_keys, np.split(extremes, ends[:-1], axis=1), strict=True):
            if not isinstance(stated := stats.get(column), dict):
                continue
            room = 0.1 * (actual[1] - actual[0]) + 1e-3 * np.abs(actual[0]).max() + 1e-6
            claimed = np.full(actual.shape, np.nan)
            with suppress(KeyError, TypeError, ValueError):
                claimed = np.array([stated["min"], stated["max"]], np.float64).reshape(actual.shape)
            wrong = ~(np.abs(claimed - actual) <= room).all(axis=0)
            if wrong.any():
                i = int(wrong.argmax())
                expected = f"{column} to span {actual[0, i]:.3g} .. {actual[1, i]:.3g} in place {i}, as in the tables"
                found = f"{claimed[0, i]:.3g} .. {claimed[1, i]:.3g} ({wrong.sum()} such places)"
                fix = "Compute them again with LeRobot's tools; worldline takes statistics from the tables."
                report(DataError(path, expected=expected, found=found, fix=fix, kind="stats"))

    def _meta_of(self, episode: int) -> Meta:
        """The metadata of the data set that an episode is of; `meta` are those of the first that was joined."""
        root = self.episodes[episode].root
        return self.meta if root == self.meta.root else _meta(root / INFO)

    def _rows(self, episode: int) -> tuple[Int64[np.ndarray, "n"], Table]:
        """The rows that are an episode's, and the table that holds them.

        Metadata may name another table than theirs (v3.0); LeRobot finds rows by number, and so do we.
        """
        of = self.episodes[episode]
        read = partial(read_table, columns=self.reading.state_keys, dims=self.dims, fps=self.fps)
        table = read(of.table)
        rows = table.rows_of(of.number)
        if len(rows) == of.length:
            return rows, table
        shared = self._meta_of(episode).codebase_version == "v3.0"
        for path in sorted((of.root / "data").rglob("*.parquet")) if shared else ():
            with suppress(DataError):
                other = read(path)
                if len(other.rows_of(of.number)) == of.length:
                    return other.rows_of(of.number), other
        held = "" if len(rows) else f"; it holds episodes {list(table.rows)[:4]}"
        expected = f"{of.length} rows of {of.name}, as the metadata say"
        fix = "Fetch the file again, or correct the episode's length in meta/."
        raise DataError(table.path, expected=expected, found=f"{len(rows)}{held}", fix=fix, kind="rows")


def open_lerobot(root: Path, *, camera: str | None, columns: tuple[str, ...], leaving: LeavingOut) -> Source:
    """Open a LeRobot data set; `columns` of its tables, side by side, are the states."""
    meta = Meta.read(root)
    camera = meta.camera(camera)
    listed = meta.recordings(camera, leaving)
    needed = {of.name: [path for path in (of.table, of.video) if path is not None] for of in listed}
    if len(set(columns)) != len(columns):
        raise UsageError(f"state keys {', '.join(columns)}: each can be given once")
    dims = tuple(meta.dim(column) for column in columns)
    there = [listed[i] for i in leave_out_absent(root, needed, leaving)]
    source = LerobotSource(
        kind=f"lerobot-{meta.codebase_version}",
        path=root,
        fps=meta.fps,
        layout=_layout(meta, columns, dims, sorted({of.table for of in there})),
        episodes=tuple(replace(of, index=index) for index, of in enumerate(there)),
        image_size=meta.size(camera),
        meta=meta,
        camera=camera,
        reading=Reading(camera=camera, state_keys=columns),
        dims=dims,
    )
    return source.sound(leaving)


def _layout(meta: Meta, columns: tuple[str, ...], dims: tuple[int, ...], tables: Sequence[Path]) -> StateLayout:
    """Names (`state.0` and so on where the metadata do not give as many), and kinds by the values in a few tables."""
    names: list[str] = []
    last = [column.rsplit(".", 1)[-1] for column in columns]
    for column, dim, end in zip(columns, dims, last, strict=True):
        prefix = f"{end if last.count(end) == 1 else column}."
        found = [prefix * (len(columns) > 1) + name for name in flat_names(meta.features[column].get("names"))]
        names += found if len(found) == dim == len(set(found)) else [f"{prefix}{i}" for i in range(dim)]
    # meta/stats.json is not used, because it often belongs to other data.
    read = [np.zeros((1, sum(dims)), np.float32)]
    for path in tables[:: max(1, len(tables) // _GUESS_FROM)][:_GUESS_FROM]:
        with suppress(DataError):  # what is wrong with it is said when it is read
            values = read_table(path, columns=columns, dims=dims, fps=meta.fps).values
            read.append(np.nan_to_num(values, posinf=0.0, neginf=0.0))
    rows = np.concatenate(read)
    usual = np.where(rows == rows.clip(*bounds_of(rows)), rows, np.nan)
    low, high = np.nanmin(usual, axis=0).tolist(), np.nanmax(usual, axis=0).tolist()
    kinds: list[StateKind] = [guess_kind(*one) for one in zip(names, low, high, strict=True)]
    known = _known_kinds(meta.root)
    return StateLayout(names=tuple(names), kinds=tuple(known.get(*one) for one in zip(names, kinds, strict=True)))


def _known_kinds(root: Path) -> dict[str, StateKind]:
    """Kinds of states by name, where worldline's writer has noted them: of an export, none need be guessed."""
    with suppress(KeyError, TypeError, ValueError):
        said = _noted(root / MARK)
        pairs = zip(said["state_names"], said["state_kinds"], strict=True)
        return {name: kind for name, kind in pairs if kind in get_args(StateKind)}
    return {}


@while_unchanged(64)
def _noted(path: Path) -> dict[str, Any]:
    """What worldline's writer has noted of all episodes of an export; empty for data of others."""
    with suppress(DataError):
        said = read_json(path).get("export")
        return said if isinstance(said, dict) else {}
    return {}


@while_unchanged(64)
def _meta(path: Path) -> Meta:
    """The metadata of a data set, by the file that holds them: an export asks for them with every episode."""
    return Meta.read(path.parents[1])
