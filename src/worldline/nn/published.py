"""Published weights: what their files hold, compared with what is wanted before a tensor is read. Downloads nothing."""

import hashlib
import importlib
import inspect
import json
import pickle
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from worldline.files import read_json, unreadable
from worldline.schema import DataError, UsageError

HUB_ID = "Wan-AI/Wan2.2-TI2V-5B-Diffusers"
ORIGINAL_HUB_ID = "Wan-AI/Wan2.2-TI2V-5B"
STEM = "diffusion_pytorch_model"
_FLOATS = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
"""Types of stored weights, and their names in safetensors."""


def upstream(module: str) -> Any:
    """Import a module of diffusers or transformers. Raises `UsageError` where they are not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UsageError(f"Wan needs {module.partition('.')[0]}: pip install 'worldline[wan]'") from error


def full_config(content: Mapping[str, Any], kind: type) -> dict[str, Any]:
    """The content of a diffusers `config.json`, with the defaults of its class for what it leaves out."""
    defaults = {name: parameter.default for name, parameter in inspect.signature(kind.__init__).parameters.items()}
    return {name: value for name, value in (defaults | dict(content)).items() if name[0] != "_" and name != "self"}


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """A tensor in a file, not read yet."""

    file: Path
    key: str
    dtype: str
    """As safetensors calls it."""
    shape: tuple[int, ...]
    begin: int = 0
    end: int = 0
    """Bytes from the start of the file, in safetensors."""


def weight_files(folder: Path, stem: str = STEM) -> list[Path]:
    """The safetensors files of a model by name; none where there are none. Raises `DataError` for a missing shard."""
    index = folder / f"{stem}.safetensors.index.json"
    if not index.is_file():
        return sorted(folder.glob(f"{stem}*.safetensors"))
    files = [folder / name for name in sorted(set(read_json(index).get("weight_map", {}).values()))]
    if missing := [file for file in files if not file.is_file()]:
        raise DataError(missing[0], expected=f"a shard, named by {index.name}", found="nothing")
    if not files:
        raise DataError(index, expected="a weight_map of shards", found="none")
    return files


def stored_tensors(files: Iterable[Path], name_of: Callable[[str], str]) -> dict[str, StoredTensor]:
    """What the files (safetensors, or `.pth`) hold by wanted names. Raises `DataError` for damage or a tensor twice."""
    stored: dict[str, StoredTensor] = {}
    for file in files:
        for tensor in _header(file) if file.suffix == ".safetensors" else _saved_header(file):
            name = name_of(tensor.key)
            if name in stored:
                expected, found = f"{tensor.key} once", f"it in {stored[name].file.name} as well"
                raise DataError(file, expected=expected, found=found, fix="Keep the files of one download only.")
            stored[name] = tensor
    return stored


def check_tensors(stored: Mapping[str, StoredTensor], expected: Mapping[str, Tensor], place: Path, *, fix: str) -> None:
    """Raise `DataError` for the first tensor that is missing, of another shape, quantised, or one too many."""
    for name, value in expected.items():
        if name not in stored:
            raise DataError(place, expected=f"a tensor {name}", found="none of that name", fix=fix)
        at, shape = stored[name], tuple(value.shape)
        if at.shape != shape:
            raise DataError(at.file, expected=f"{at.key} of shape {shape}", found=f"shape {at.shape}", fix=fix)
        if at.dtype not in _FLOATS.values():
            found = f"{at.dtype}: quantised, and so other weights"
            raise DataError(at.file, expected=f"{at.key} as one of {', '.join(_FLOATS.values())}", found=found, fix=fix)
    for name in sorted(stored.keys() - expected.keys()):
        at = stored[name]
        raise DataError(at.file, expected="the tensors of this model only", found=f"{at.key} besides", fix=fix)


def read_tensors(stored: Mapping[str, StoredTensor]) -> Iterator[tuple[str, Tensor]]:
    """Name and values of every tensor, mapped and not copied."""
    for file in dict.fromkeys(at.file for at in stored.values()):
        values = load_file(file) if file.suffix == ".safetensors" else load_saved(file)
        yield from ((name, values[at.key]) for name, at in stored.items() if at.file == file)


def load_saved(file: Path) -> dict[str, Tensor]:
    """Map the tensors of a file of `torch.save`. Raises `DataError` where it is damaged or holds something else."""
    try:
        content: Any = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        found = str(error).splitlines()[0][:200]
        raise unreadable(file, expected="tensors saved by torch.save", found=found) from error
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise DataError(file, expected="named tensors", found=type(content).__name__)
    return content


def renamed(key: str, table: Iterable[tuple[str, str]]) -> str:
    """A key after the replacements (regular expression, replacement) of a table, in its order."""
    for pattern, replacement in table:
        key = re.sub(pattern, replacement, key)
    return key


def digest(ranges: Iterable[tuple[str, Path, int, int]], sample: int = 4096) -> str:
    """SHA-256 over labels and the first and last `sample` bytes of each range (label, file, begin, end)."""
    hasher = hashlib.sha256()
    for label, file, begin, end in ranges:
        hasher.update(f"{label}\n{end - begin}\n".encode())
        with file.open("rb") as opened:
            for start in (begin, max(begin, end - sample)):
                opened.seek(start)
                hasher.update(opened.read(min(sample, end - start)))
    return hasher.hexdigest()


def _header(file: Path) -> Iterator[StoredTensor]:
    size = file.stat().st_size
    with file.open("rb") as opened:
        start = 8 + int.from_bytes(opened.read(8), "little")
        text = opened.read(start - 8) if start <= size else b""
    try:
        header = json.loads(text)
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise unreadable(file, expected="a safetensors file", found=f"{size} other bytes") from None
    header.pop("__metadata__", None)
    needed = start + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if needed != size:
        raise DataError(file, expected=f"{needed} bytes", found=f"{size}")
    for key, entry in header.items():
        begin, end = (start + offset for offset in entry["data_offsets"])
        shape = tuple(entry["shape"])
        yield StoredTensor(file=file, key=key, dtype=entry["dtype"], shape=shape, begin=begin, end=end)


def _saved_header(file: Path) -> Iterator[StoredTensor]:
    for key, value in load_saved(file).items():
        dtype = _FLOATS.get(value.dtype, str(value.dtype))
        yield StoredTensor(file=file, key=key, dtype=dtype, shape=tuple(value.shape))
