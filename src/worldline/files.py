"""Small functions for files: atomic writes, JSON with useful errors, read-only maps."""

import hashlib
import json
import os
import re
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache, wraps
from pathlib import Path
from tokenize import TokenError
from typing import Any, TypeVar, cast
from zipfile import BadZipFile

import numpy as np

from worldline.schema import DataError

Read = TypeVar("Read", bound=Callable[..., Any])

_FULL = re.compile(
    r"no space left|no room to write|file too large|quota exceeded|\d+ requested and \d+ written", re.IGNORECASE
)
"""How the system, we ourselves, safetensors and NumPy say it."""
_MAPS = 256
"""Maps of each of two kinds that are kept: each is an open file, of which Linux allows a process 1,024 by default."""


class DiskFullError(OSError):
    """There was no room for a file. Existing files are unchanged, and no half-written file is left."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say which file there was no room for, and how much there is. Raises `DiskFullError`."""
    try:
        yield
    except Exception as error:  # libraries have errors of their own for a full disk
        if not _FULL.search(str(error)):
            raise
        folder = next(place for place in path.absolute().parents if place.is_dir())
        room = f"{shutil.disk_usage(folder).free / 1e6:.1f} MB are free in {folder}"
        raise DiskFullError(
            f"{path}: no room to write it ({room}). Make room and start again; nothing half-written was left"
        ) from error


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Give a temporary name beside `path`, for a file or a folder that moves to `path`, or is removed on failure."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    _remove(temporary)
    try:
        with writing(path):
            yield temporary
            os.replace(temporary, path)
    finally:
        _remove(temporary)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def remove_temporaries(folder: Path) -> None:
    """Remove what killed writers left below `folder`."""
    for path in list(folder.rglob(".*.tmp")):
        _remove(path)


def write_array(path: Path, array: np.ndarray) -> None:
    """Write the raw bytes of an array, C order, atomically."""
    with atomic(path) as temporary:
        np.ascontiguousarray(array).tofile(temporary)


@contextmanager
def npy_rows(path: Path, dtype: str, shape: tuple[int, ...]) -> Iterator[Callable[[np.ndarray], object]]:
    """Write a `.npy` atomically by pieces along its first axis, in order; the bytes are those of `np.save`."""
    header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
    with atomic(path) as temporary, temporary.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        yield lambda rows: file.write(np.ascontiguousarray(rows, dtype).data)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write JSON atomically, keys in the given order."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def hash_of(value: Any) -> str:
    """Hash of what JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises `DataError` where the file is absent, not JSON or not an object."""
    try:
        text = path.read_text(encoding="utf-8-sig")  # some editors put a mark of the encoding first
        content = json.loads(text)
        if "\\ud" in text.lower():  # half a character, which JSON can escape, can be neither printed nor written
            str(content).encode()
    except (OSError, ValueError, RecursionError) as error:  # no UTF-8 and no JSON are ValueErrors
        raise unreadable(path, expected="JSON", found=str(error), fix="Restore the file.") from error
    if not isinstance(content, dict):
        raise DataError(path, expected="a JSON object", found=type(content).__name__, fix="Restore the file.")
    return content


def write_sealed(path: Path, content: dict[str, Any]) -> None:
    """Write JSON atomically, with a checksum over its content. That is no signature: anybody can compute it again."""
    write_json(path, content | {"checksum": hash_of(content)})


def read_sealed(path: Path, *, fix: str) -> dict[str, Any]:
    """What `write_sealed` wrote, without the checksum. Raises `DataError` where it is absent, damaged or edited."""
    content = read_json(path)
    if (said := content.pop("checksum", None)) != (found := hash_of(content)):
        told = f"content of {found:.12}: it was edited or damaged"
        raise DataError(path, expected=f"content of the checksum {said!s:.12}", found=told, fix=fix)
    return content


def unreadable(
    path: Path, *, expected: str, found: str, fix: str = "Fetch it again.", kind: str = "damaged"
) -> DataError:
    """Say what is wrong with a file that could not be read: the true cause where the file itself shows one."""
    try:
        with path.open("rb") as file:
            head = file.read(256)
    except FileNotFoundError:
        kind, found = "missing_files", "a link to nothing" if path.is_symlink() else "no file"
    except (OSError, ValueError) as error:  # a folder, no permission; a name that no file can have
        found = f"{type(error).__name__}: {error}"
    else:
        if head.startswith(b"version https://git-lfs.github.com/spec/"):
            kind, found = "git_lfs_pointer", "a Git LFS pointer in its place"
            fix = "Run `git lfs pull` in the data set's folder (git-lfs must be installed)."
        elif not head:
            found = "an empty file"
        elif head.lstrip().lower().startswith((b"<!doctype html", b"<html")):
            found = "a web page, as a download that was refused leaves it"
    return DataError(path, expected=expected, found=found, fix=fix, kind=kind)


@contextmanager
def reading(path: Path, *errors: type[Exception], expected: str, fix: str = "Fetch it again.") -> Iterator[None]:
    """Turn what reading a missing or damaged file raises, also a library's own `errors`, into `DataError`."""
    try:
        yield
    except (OSError, ValueError, *errors) as error:
        found = f"{type(error).__name__}: {error}".partition("\n")[0].rstrip(".")
        raise unreadable(path, expected=expected, found=found, fix=fix) from error


def while_unchanged(maxsize: int | None) -> Callable[[Read], Read]:
    """Cache what a function reads from a file (its first argument) while the file's size and time are unchanged."""

    def keeping(read: Read) -> Read:
        kept = lru_cache(maxsize)(lambda _size, _mtime, *given, **options: read(*given, **options))

        @wraps(read)
        def current(path: Path, *given: Any, **options: Any) -> Any:
            try:
                status = path.stat()
            except (OSError, ValueError):
                return read(path, *given, **options)  # and say what is wrong with it
            return kept(status.st_size, status.st_mtime_ns, path, *given, **options)

        return cast(Read, current)

    return keeping


@while_unchanged(64)
def hash_of_file(path: Path) -> str:
    """Hash of a file's bytes. Raises `DataError` where it cannot be read."""
    with reading(path, expected="a file"), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@while_unchanged(_MAPS)
def mapped(path: Path, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """Map a raw binary file read-only, whose size the caller has checked."""
    with reading(path, expected=f"{dtype}{list(shape)}"):
        if 0 in shape and path.is_file():
            return np.zeros(shape, dtype)
        return np.memmap(path, dtype=dtype, mode="r", shape=shape)


@while_unchanged(_MAPS)
def mapped_npy(path: Path, kind: type[np.generic], shape: tuple[int, ...], *, what: str, fix: str) -> np.ndarray:
    """Map a `.npy` file read-only. Raises `DataError` where it is missing, damaged, or of another kind or shape."""
    expected = f"{what} of shape {list(shape)}"
    with reading(path, EOFError, SyntaxError, TokenError, expected=expected, fix=fix):  # its header is Python
        table = np.load(path, mmap_mode="r")
    if table.shape != shape or not np.issubdtype(table.dtype, kind):
        raise DataError(path, expected=expected, found=f"{table.dtype}{list(table.shape)}", fix=fix)
    return table


def write_npz(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write arrays into one compressed file, atomically."""
    with atomic(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def read_npz(path: Path, *, what: str, fix: str) -> dict[str, np.ndarray]:
    """Read all arrays of a file. Raises `DataError` where it is missing or damaged."""
    whole = reading(path, EOFError, KeyError, BadZipFile, zlib.error, expected=what, fix=fix)
    with whole, path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}
