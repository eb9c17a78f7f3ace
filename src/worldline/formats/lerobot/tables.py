"""Parquet files -> arrays: numbers in any nesting of Arrow, the rows of each episode, and images."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
from jaxtyping import Float32, Float64, Int64
from pyarrow import parquet, types

from worldline.files import reading, while_unchanged
from worldline.schema import DataError

_LISTS = (types.is_list, types.is_large_list, types.is_fixed_size_list, types.is_list_view, types.is_large_list_view)
_NUMBERS = (types.is_integer, types.is_floating, types.is_decimal, types.is_boolean)


def read_columns(path: Path, columns: Sequence[str], optional: Sequence[str] = ()) -> pyarrow.Table:
    """Read columns, and those of `optional` that are there. Raises `DataError` where one of `columns` is not."""
    with _opened(path) as file:
        present = file.schema_arrow.names
        absent = [name for name in columns if name not in present]
        if absent:
            fix = "Choose other columns to condition on, or repair the file."
            raise DataError(path, expected=f"columns {absent}", found=f"{present}", fix=fix, kind="columns")
        wanted = list(dict.fromkeys([*columns, *(name for name in optional if name in present)]))
        return file.read(columns=wanted).select(wanted)


@dataclass(frozen=True, kw_only=True, eq=False)
class Table:
    """Columns of a file that are needed, without images."""

    path: Path
    values: Float32[np.ndarray, "n s"]
    """The states; NaN in rows that do not hold their numbers."""
    rows: dict[int | None, Int64[np.ndarray, "r"]]
    """The rows of each episode, in order; all are those of None where the file does not say."""
    times: Float64[np.ndarray, "n"]
    """Seconds since the episode began; NaN where the file does not say."""

    def rows_of(self, number: int) -> Int64[np.ndarray, "r"]:
        return self.rows.get(number, self.rows.get(None, np.zeros(0, np.int64)))


@while_unchanged(1024)
def read_table(path: Path, columns: tuple[str, ...], dims: tuple[int, ...], fps: float) -> Table:
    """Read states, of columns of these widths, episode numbers and times. Raises `DataError` where it has them not."""
    table = read_columns(path, columns, ("episode_index", "timestamp", "frame_index"))
    parts = [matrix(path, table, name, dim) for name, dim in zip(columns, dims, strict=True)]
    with np.errstate(over="ignore"):
        values = np.concatenate(parts, axis=1).astype(np.float32)
    rows: dict[int | None, np.ndarray] = {None: np.arange(len(table))}
    if "episode_index" in table.column_names:
        numbers = seconds(path, table, "episode_index")
        numbers = np.where(np.abs(numbers) < 2**53, numbers, -1).astype(np.int64)  # -1 for what is none
        order = np.argsort(numbers, kind="stable")
        found, begins = np.unique(numbers[order], return_index=True)
        rows = dict(zip(found.tolist(), np.split(order, begins[1:]), strict=False))
    times = np.zeros(len(table))
    if "timestamp" in table.column_names:
        times = seconds(path, table, "timestamp")
    elif "frame_index" in table.column_names:
        times = seconds(path, table, "frame_index") / fps
    else:
        for own in rows.values():
            times[own] = np.arange(len(own)) / fps
    return Table(path=path, values=values, rows=rows, times=times)


def matrix(path: Path, table: pyarrow.Table, name: str, dim: int) -> Float64[np.ndarray, "n d"]:
    """Turn a column into `dim` numbers per row: numbers, lists of numbers or lists of lists, of any Arrow type.

    Those of a row with other than `dim` values are NaN, so that it costs only its own episode. Raises `DataError` where
    no row has `dim` values, or where they are no numbers.
    """
    from pyarrow import compute  # slow to import, and most jobs read no tables

    array = column = _plain(table[name].combine_chunks())
    even = True
    while any(is_list(array.type) for is_list in _LISTS):
        lengths = compute.call_function("list_value_length", [array]).unique()
        even, array = even and not array.null_count and len(lengths) <= 1, _plain(array.flatten())
    expected = f"{name} of {dim} values per row, as meta/info.json says"
    fix = "Correct the shape in meta/info.json or convert the data set again."
    wrong = partial(DataError, path, expected=expected, fix=fix, kind="columns")
    if not any(is_number(array.type) for is_number in _NUMBERS):
        raise wrong(found=f"values of type {array.type}")
    if even and not array.null_count and len(array) == len(table) * dim:
        return _floats(array).reshape(len(table), dim)
    cells = [_flat(cell) for cell in column.to_pylist()]
    sound = [row for row, cell in enumerate(cells) if len(cell) == dim and None not in cell]
    if cells and not sound:
        raise wrong(found=f"{len(cells[0])} values in row 0 ({cells[0].count(None)} empty), and as little elsewhere")
    values = np.full((len(table), dim), np.nan)
    for row in sound:
        values[row] = [float(value) for value in cells[row]]
    return values


def seconds(path: Path, table: pyarrow.Table, name: str) -> Float64[np.ndarray, "n"]:
    """A column of times in seconds: numbers, or Arrow's own times. NaN where there is none."""
    column = table[name]
    if types.is_timestamp(column.type) or types.is_duration(column.type):
        per_second = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[column.type.unit]
        return _floats(column.cast(pyarrow.int64()).combine_chunks()) / per_second
    return matrix(path, table, name, 1)[:, 0]


def _flat(cell: Any) -> list[Any]:
    """The values of a cell, in any nesting."""
    return [value for item in cell for value in _flat(item)] if isinstance(cell, list) else [cell]


def _floats(array: pyarrow.Array) -> Float64[np.ndarray, "n"]:
    array = array.cast(pyarrow.int8()) if types.is_boolean(array.type) else array
    return array.cast(pyarrow.float64(), safe=False).to_numpy(zero_copy_only=False)


def read_images(path: Path, name: str, rows: Int64[np.ndarray, "t"], root: Path) -> list[bytes]:
    """Read the encoded images of ascending rows: bytes, or LeRobot's `{bytes, path}`, path below `root`.

    Reads the row groups that hold them alone. Raises `DataError` where one is absent.
    """
    cells: list[Any] = []
    with _opened(path) as file:
        ends = np.cumsum([file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)])
        groups = np.searchsorted(ends, rows, side="right")
        for group in np.unique(groups).tolist():
            column = file.read_row_group(group, columns=[name])[name]
            places = rows[groups == group] - (ends[group] - len(column))
            cells += [column[place].as_py() for place in places.tolist()]
    images: list[bytes] = []
    for row, cell in zip(rows, cells, strict=True):
        data, place = (cell.get("bytes"), cell.get("path")) if isinstance(cell, dict) else (cell, None)
        if not data and isinstance(place, str) and place:
            with reading(root / place, expected="an image"):
                data = (root / place).read_bytes()
        if not data or not isinstance(data, bytes):
            found = f"{'nothing' if data is None else type(data).__name__} in row {row} of {name}"
            raise DataError(path, expected="an encoded image", found=found, kind="frames")
        images.append(data)
    return images


def _plain(array: pyarrow.Array) -> pyarrow.Array:
    """Undo what only wraps values: extension types (tensors of fixed shape) and dictionaries."""
    if isinstance(array, pyarrow.ExtensionArray):
        array = array.storage
    return array.dictionary_decode() if types.is_dictionary(array.type) else array


@contextmanager
def _opened(path: Path) -> Iterator[parquet.ParquetFile]:
    """Open a parquet file. The one place that maps PyArrow's errors."""
    damage = (pyarrow.ArrowException, KeyError, IndexError)
    with reading(path, *damage, expected="a parquet file"), parquet.ParquetFile(path) as file:
        yield file
