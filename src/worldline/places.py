"""Paths in a run's configuration, so that the run can be read from any working directory and after a move.

Paths inside the run are relative, data included in worldline go by name, all other paths are absolute.
"""

import os
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from worldline import builtin

T = TypeVar("T")


def stored(config: T, run: Path) -> T:
    """A configuration as its run keeps it."""
    here = Path(os.path.abspath(run))

    def kept(path: Path) -> Path:
        place = Path(os.path.abspath(path))
        shipped = next((name for name, asset in builtin.NAMES.items() if place == Path(os.path.abspath(asset))), None)
        if shipped is not None:
            return Path(shipped)
        return place.relative_to(here) if place.is_relative_to(here) else place

    return with_paths(config, kept)


def located(config: T, run: Path) -> T:
    """A stored configuration with places that can be opened, whether or not something is there."""

    def found(path: Path) -> Path:
        if path.is_absolute():
            return path
        if (run / path).exists() or str(path) not in builtin.NAMES:
            # A path from a working directory, in runs of earlier versions, is not in the run.
            return path if path.exists() and not (run / path).exists() else run / path
        return builtin.NAMES[str(path)]

    return with_paths(config, found)


def with_paths(value: Any, change: Callable[[Path], Path]) -> Any:
    """The same value with every path in it changed: of dataclasses, tuples and dictionaries, at any depth."""
    if isinstance(value, Path):
        return change(value)
    if is_dataclass(value) and not isinstance(value, type):
        old = {field.name: getattr(value, field.name) for field in fields(value) if field.init}
        new = {name: with_paths(one, change) for name, one in old.items()}
        return value if new == old else replace(value, **new)
    if isinstance(value, tuple):
        return tuple(with_paths(one, change) for one in value)
    if isinstance(value, dict):
        return {name: with_paths(one, change) for name, one in value.items()}
    return value
