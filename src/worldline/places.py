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
    here, names = Path(os.path.abspath(run)), {os.path.abspath(place): name for name, place in builtin.NAMES.items()}

    def kept(path: Path) -> Path:
        place = Path(names.get(os.path.abspath(path), os.path.abspath(path)))
        return place.relative_to(here) if place.is_relative_to(here) else place

    return with_paths(config, kept)


def located(config: T, run: Path) -> T:
    """A stored configuration with places that can be opened, whether or not something is there."""

    def found(path: Path) -> Path:
        if (run / path).exists():  # also if it is absolute
            return run / path
        # A path from a working directory, in runs of earlier versions, is not in the run.
        return builtin.NAMES.get(str(path), path if path.exists() else run / path)

    return with_paths(config, found)


def with_paths(value: Any, change: Callable[[Path], Path]) -> Any:
    """The same value with every path in it changed: of dataclasses, tuples and dictionaries, at any depth."""
    if isinstance(value, Path):
        return change(value)
    if is_dataclass(value) and not isinstance(value, type):
        old = {field.name: getattr(value, field.name) for field in fields(value) if field.init}
        new = with_paths(old, change)
        return value if new == old else replace(value, **new)
    if isinstance(value, tuple):
        return tuple(with_paths(one, change) for one in value)
    if isinstance(value, dict):
        return {name: with_paths(one, change) for name, one in value.items()}
    return value
