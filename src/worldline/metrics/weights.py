"""Files of learned weights: read without running anything that they hold, with the identity of their bytes."""

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from worldline.files import reading
from worldline.schema import DataError

_ARRAYS = {
    (module, name): value
    for package in ("numpy.core", "numpy._core")  # before and since NumPy 2
    for module, name, value in (
        (f"{package}.multiarray", "_reconstruct", np._core.multiarray._reconstruct),  # type: ignore[attr-defined]
        ("numpy", "ndarray", np.ndarray),
        ("numpy", "dtype", np.dtype),
    )
}


class _ArraysOnly(pickle.Unpickler):
    """Reads dictionaries of NumPy arrays; a pickle may name any function to be called, so all others are refused."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ARRAYS:
            raise pickle.UnpicklingError(f"{module}.{name}, which is neither a dictionary nor a NumPy array")
        return _ARRAYS[module, name]


def named_file(option: Path | None, variable: str) -> Path | None:
    """The file of an option, or else the one that an environment variable names, if any."""
    named = os.environ.get(variable)
    return option if option or not named else Path(named)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read a pickle of nested dictionaries of arrays: keys joined by "/" -> array.

    Raises:
        DataError: the file is absent or damaged, or holds anything else. Nothing of it is run.
    """
    expected = "a pickle of dictionaries of NumPy arrays"
    damaged = (pickle.UnpicklingError, EOFError, TypeError, AttributeError, IndexError, KeyError, MemoryError)
    with reading(path, *damaged, expected=expected), path.open("rb") as file:
        content = _ArraysOnly(file).load()
    found: dict[str, np.ndarray] = {}
    _flatten(content, "", found, path, expected)
    return found


def _flatten(value: Any, name: str, found: dict[str, np.ndarray], path: Path, expected: str) -> None:
    if isinstance(value, Mapping):
        for key, part in value.items():
            _flatten(part, f"{name}/{key}" if name else str(key), found, path, expected)
    elif isinstance(value, np.ndarray) and value.dtype.kind == "f":
        found[name] = value
    else:
        kind = f"an array of {value.dtype}" if isinstance(value, np.ndarray) else type(value).__name__
        raise DataError(path, expected=f"{expected} of floats", found=f"{kind} at {name or 'its top'}")


def read_state(path: Path) -> dict[str, Tensor]:
    """Read what `torch.save(module.state_dict(), path)` wrote, tensors only.

    Raises:
        DataError: the file is absent or damaged, or holds anything else. Nothing of it is run.
    """
    expected, damaged = "a state dictionary of tensors", (pickle.UnpicklingError, EOFError, RuntimeError, BadZipFile)
    with reading(path, *damaged, KeyError, expected=expected):
        content = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise DataError(path, expected=expected, found=f"{type(content).__name__} of other things")
    return dict(content)


def is_torch_file(path: Path) -> bool:
    """Whether `torch.save` wrote it in its present form, which is a ZIP file. Raises `DataError` if unreadable."""
    with reading(path, expected="learned weights"), path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def refuse_other_shapes(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], path: Path, what: str) -> None:
    """Compare names and shapes with those of a network.

    Raises:
        DataError: one is missing, unknown, or of another shape; the first of them is named.
    """

    def refuse(found: str) -> None:
        fix = "docs/learned_metrics.md says where to get it."
        raise DataError(path, expected=what, found=found, fix=fix)

    if missing := sorted(set(wanted) - set(state)):
        refuse(f"{len(missing)} of {len(wanted)} tensors missing, such as {missing[0]}")
    if unknown := sorted(set(state) - set(wanted)):
        refuse(f"{len(unknown)} tensors of another network, such as {unknown[0]}")
    for name, tensor in wanted.items():
        if state[name].shape != tensor.shape:
            refuse(f"{name} of shape {list(state[name].shape)} instead of {list(tensor.shape)}")
        if not state[name].isfinite().all():
            refuse(f"values in {name} that are not finite")
