"""Weights in files: what a checkpoint contains, what published files hold, and how what does not fit is named.

Tensors of files are mapped: names, shapes and types are compared before any value is read. Downloads nothing.
"""

import hashlib
import importlib
import inspect
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Protocol, runtime_checkable

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from worldline.files import read_json, reading
from worldline.schema import DataError, UsageError

HUB_ID = "Wan-AI/Wan2.2-TI2V-5B-Diffusers"
ORIGINAL_HUB_ID = "Wan-AI/Wan2.2-TI2V-5B"
STEM = "diffusion_pytorch_model"


def upstream(module: str) -> Any:
    """Import a module of diffusers or transformers. Raises `UsageError` where they are not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UsageError(f"Wan needs {module.partition('.')[0]}: pip install 'worldline[wan]'") from error


# --- of a model ---


@dataclass(frozen=True, kw_only=True)
class MayLack:
    """What first weights from elsewhere (`--init-from`) need not contain; parts by the beginnings of their names."""

    new: tuple[str, ...] = ()
    """Parts that start such that they change nothing: of each, all or nothing may be there."""
    reshaped: tuple[str, ...] = ()
    """Parts that begin anew where what is there is of another shape."""
    measured: tuple[str, ...] = ()
    """Buffers, by their names, that the end of a training measures."""


@runtime_checkable
class Extended(Protocol):
    """A model that may begin with the weights of one that has less."""

    may_lack: MayLack


def changing_state(model: nn.Module) -> dict[str, Tensor]:
    """The state dict without frozen parameters (a pretrained base with its own files): what a checkpoint contains."""
    frozen = {name for name, value in model.named_parameters(remove_duplicate=False) if not value.requires_grad}
    return {name: value for name, value in model.state_dict().items() if name not in frozen}


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], folder: Path) -> None:
    """Load the weights of a checkpoint strictly. Raises `DataError` naming the first that differ."""
    check_tensors(weights, changing_state(model), folder / "model.safetensors")
    model.load_state_dict(weights, strict=False)


def check_tensors(
    found: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    path: Path,
    *,
    fix: str = "Take model.json and weights of one run, and the version of worldline that wrote them.",
) -> None:
    """Raise `DataError` where tensors of a file have other names or shapes than is expected, or are quantised."""
    there, needed = ({name: _kind_of(value) for name, value in group.items()} for group in (found, expected))
    differ = sorted(name for name in there | needed if there.get(name) != needed.get(name))
    if differ:
        first = [f"{name} (there: {there.get(name)}, needed: {needed.get(name)})" for name in differ[:3]]
        said = f"{len(differ)} missing, surplus or of another shape: {', '.join(first)}"
        raise DataError(path, expected="the weights of the model", found=said, fix=fix)


def _kind_of(value: Tensor) -> str:
    """Shape and type, of which only a quantised one matters: its values are other weights."""
    plain = value.is_floating_point() and value.element_size() > 1
    return f"{tuple(value.shape)}{'' if plain else f' of {value.dtype}'}"


# --- of published files ---


def full_config(content: Mapping[str, Any], kind: type) -> dict[str, Any]:
    """The content of a diffusers `config.json`, with the defaults of its class for what it leaves out."""
    defaults = {name: parameter.default for name, parameter in inspect.signature(kind.__init__).parameters.items()}
    return {name: value for name, value in (defaults | dict(content)).items() if name[0] != "_" and name != "self"}


def weight_files(folder: Path, stem: str = STEM) -> list[Path]:
    """The safetensors files of a model by name; none where there are none. Raises `DataError` for a missing shard."""
    index = folder / f"{stem}.safetensors.index.json"
    if not index.is_file():
        return sorted(folder.glob(f"{stem}*.safetensors"))
    files = [folder / name for name in sorted(set(read_json(index).get("weight_map", {}).values()))]
    if not files or not all(file.is_file() for file in files):
        missing = next((file for file in files if not file.is_file()), index)
        raise DataError(missing, expected=f"shards, as {index.name} names them", found="nothing")
    return files


def mapped_tensors(files: Iterable[Path]) -> dict[str, Tensor]:
    """All tensors of safetensors files, or files of `torch.save`. Raises `DataError` for damage or a tensor twice."""
    tensors: dict[str, Tensor] = {}
    for file in files:
        with reading(file, SafetensorError, UnpicklingError, RuntimeError, EOFError, expected="a file of tensors"):
            safe = file.suffix == ".safetensors"
            content: Any = load_file(file) if safe else torch.load(file, "cpu", weights_only=True, mmap=True)
        if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
            raise DataError(file, expected="named tensors", found=type(content).__name__)
        if twice := sorted(tensors.keys() & content.keys()):
            fix = "Keep the files of one download only."
            raise DataError(file, expected=f"{twice[0]} once", found="it in another file as well", fix=fix)
        tensors |= content
    return tensors


def renamed(key: str, table: Iterable[tuple[str, str]]) -> str:
    """A key after the replacements (regular expression, replacement) of a table, in its order."""
    for pattern, replacement in table:
        key = re.sub(pattern, replacement, key)
    return key


def digest(parts: Iterable[tuple[str, memoryview]], sample: int = 4096) -> str:
    """SHA-256 over labels, and the size and the first and last `sample` bytes of each part."""
    hasher = hashlib.sha256()
    for label, content in parts:
        hasher.update(f"{label}\n{len(content)}\n".encode())
        hasher.update(content[:sample])
        hasher.update(content[-sample:])
    return hasher.hexdigest()
