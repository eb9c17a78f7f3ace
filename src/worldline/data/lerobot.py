"""LeRobot data sets, v2.x and v3.0, read as they lie: parquet tables and mp4 files.

No lerobot package needed.

States come from `observation.state`, from `action`, or from both side by side. Knows nothing of windows.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow
import torch
from jaxtyping import Float32, Int64
from pyarrow import parquet

from worldline.data.checks import check_finite, check_window
from worldline.data.video import decode
from worldline.schema import Clip, DataError, Episode, Origin, StateLayout, TokenGrid


@dataclass(frozen=True, kw_only=True)
class Recording:
    """Where one episode lies: rows of a table and frames of a video."""

    number: int
    """`episode_index` in the table."""
    table: Path
    video: Path
    first_frame: int
    """Position of the episode's first frame in its video file (v3.0 joins episodes)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LerobotSource:
    """Episodes of a LeRobot data set seen by one camera. A `Source`."""

    kind: str
    path: Path
    fps: float
    layout: StateLayout
    episodes: tuple[Episode, ...]
    image_size: tuple[int, int] | None
    grid: TokenGrid | None
    left_out: tuple[str, ...]
    camera: str
    columns: tuple[str, ...]
    """Table columns that make up `Clip.states`."""
    dims: tuple[int, ...]
    """Width of each of those columns."""
    recordings: tuple[Recording, ...]

    def read(self, episode: int, start: int, stop: int) -> Clip:
        """Read states and decoded frames of a window."""
        states = torch.from_numpy(self.read_states(episode, start, stop))
        video, first = self.footage(episode)
        frames = decode(video, first + start, first + stop, fps=self.fps)
        origin = Origin(source=str(self.path), episode=episode, start=start)
        return Clip(states=states, fps=self.fps, origin=origin, frames=frames)

    def read_states(self, episode: int, start: int, stop: int) -> Float32[np.ndarray, "t s"]:
        """Read states alone, checked to be finite and to have one row per frame."""
        check_window(self.episodes[episode], start, stop)
        rows, length = self.rows(episode), self.episodes[episode].length
        if len(rows) != length:
            raise DataError(
                self.recordings[episode].table,
                expected=f"{length} rows of {self.episodes[episode].name}, as the metadata say",
                found=f"{len(rows)}",
                fix="Fetch the file again, or correct the episode's length in meta/.",
            )
        window = rows[start:stop].copy()
        check_finite(self.recordings[episode].table, window, self.layout.names, start)
        return window

    def rows(self, episode: int) -> Float32[np.ndarray, "t s"]:
        """All state rows the table holds of an episode, unchecked."""
        recording = self.recordings[episode]
        table, numbers = read_table(recording.table, self.columns, self.dims)
        return table if (numbers == recording.number).all() else table[numbers == recording.number]

    def footage(self, episode: int) -> tuple[Path, int]:
        """The video that shows an episode, and the episode's first frame in it."""
        return self.recordings[episode].video, self.recordings[episode].first_frame


def read_table(
    path: Path, columns: tuple[str, ...], dims: tuple[int, ...]
) -> tuple[Float32[np.ndarray, "n s"], Int64[np.ndarray, "n"]]:
    """Read state columns and episode numbers of a parquet file; kept in memory while the file is unchanged.

    Raises:
        DataError: not parquet, a column is absent, holds no numbers, or is of another width.
    """
    try:
        status = path.stat()
    except FileNotFoundError:
        raise DataError(path, expected="a parquet file", found="no file", fix="Fetch it again.") from None
    return _read_table(path, columns, dims, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=1024)
def _read_table(
    path: Path, columns: tuple[str, ...], dims: tuple[int, ...], _size: int, _mtime: int
) -> tuple[Float32[np.ndarray, "n s"], Int64[np.ndarray, "n"]]:
    try:
        present = parquet.read_schema(path).names
        absent = [name for name in (*columns, "episode_index") if name not in present]
        if absent:
            raise DataError(
                path,
                expected=f"columns {absent}",
                found=f"{present}",
                fix="Choose another conditioning or repair it.",
            )
        table = parquet.read_table(path, columns=[*columns, "episode_index"])
        parts = [_matrix(path, table[name], name, dim) for name, dim in zip(columns, dims, strict=True)]
        numbers = table["episode_index"].to_numpy().astype(np.int64)
    except (pyarrow.ArrowException, OSError) as error:
        found = f"{type(error).__name__}: {error}"
        raise DataError(path, expected="a parquet file", found=found, fix="Fetch it again.") from error
    return np.concatenate(parts, axis=1), numbers


def _matrix(path: Path, column: pyarrow.ChunkedArray, name: str, dim: int) -> Float32[np.ndarray, "n d"]:
    array = column.combine_chunks()
    is_list = pyarrow.types.is_list(array.type) or pyarrow.types.is_fixed_size_list(array.type)
    flat = array.flatten() if is_list else array
    values = flat.to_numpy(zero_copy_only=False).astype(np.float32)
    lengths = set(np.diff(array.offsets.to_numpy()).tolist()) if pyarrow.types.is_list(array.type) else {dim}
    if values.size != len(array) * dim or not lengths <= {dim}:
        raise DataError(
            path,
            expected=f"{name} of {dim} values per row, as meta/info.json says",
            found=f"{values.size} values in {len(array)} rows",
            fix="Correct the shape in meta/info.json or convert the data set again.",
        )
    return values.reshape(-1, dim)
