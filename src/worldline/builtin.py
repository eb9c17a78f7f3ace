"""Paths that lead somewhere: to data and checkpoints inside the package, and from a run's configuration.

The package has data of the twin (twin-mini, twin-table), and tiny models trained on it. A run can be read from any
working directory and after a move: its configuration holds paths inside the run as relative ones, built-ins by name,
all others as absolute.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from worldline.schema import UsageError

T = TypeVar("T")
ASSETS = Path(__file__).parent / "assets"
TWIN_MINI_TRAIN = ASSETS / "twin_mini" / "train"
TWIN_MINI_VAL = ASSETS / "twin_mini" / "val"
TWIN_TABLE = ASSETS / "twin_table"
TOKENIZER_TINY = ASSETS / "tokenizer_tiny"
COMPRESSION_TINY = ASSETS / "compression_tiny"
TOKENIZER_DRIVEN = ASSETS / "tokenizer_driven"
DRIVEN_TINY = ASSETS / "driven_tiny"
VAE_TINY = ASSETS / "vae_tiny"
SAMPLING_TINY = ASSETS / "sampling_tiny"
INVERSE_DYNAMICS_TINY = ASSETS / "inverse_dynamics_tiny"
_MODELS = (
    *(TOKENIZER_TINY, COMPRESSION_TINY, TOKENIZER_DRIVEN, DRIVEN_TINY),
    *(VAE_TINY, SAMPLING_TINY, INVERSE_DYNAMICS_TINY),
)
NAMES = {"twin-mini": TWIN_MINI_TRAIN, "twin-mini-val": TWIN_MINI_VAL}
NAMES |= {"twin-table": TWIN_TABLE}
NAMES |= {model.name.replace("_", "-"): model for model in _MODELS}


def held_out(path: Path) -> Path:
    """The built-in data that a built-in model was not trained on."""
    driven = (TOKENIZER_DRIVEN.resolve(), DRIVEN_TINY.resolve())
    return TWIN_TABLE if path.resolve() in driven else TWIN_MINI_VAL


def resolve(path: str | Path) -> Path:
    """A path as given, or else the built-in of that name. Raises `UsageError` where there is neither."""
    path = Path(path)
    if path.exists():
        return path
    if str(path) in NAMES:
        return NAMES[str(path)]
    raise UsageError(f"{path} does not exist, and no built-in has that name; built-ins: {', '.join(NAMES)}")


def resolve_all(path: str | Path | Sequence[str | Path]) -> Path | tuple[Path, ...]:
    """The same for one path or several."""
    return resolve(path) if isinstance(path, str | Path) else tuple(resolve(one) for one in path)


def is_builtin(path: Path) -> bool:
    """Whether a path lies inside the package, where nothing may be written."""
    return path.resolve().is_relative_to(ASSETS.resolve())


def results_of(run: Path) -> Path:
    """Where results about a run go: into the run folder, but for a built-in into `runs/NAME`."""
    return Path("runs") / run.name if is_builtin(run) else run


def stored(config: T, run: Path) -> T:
    """A configuration as its run keeps it."""
    here, names = Path(os.path.abspath(run)), {os.path.abspath(place): name for name, place in NAMES.items()}

    def kept(path: Path) -> Path:
        place = Path(names.get(os.path.abspath(path), os.path.abspath(path)))
        return place.relative_to(here) if place.is_relative_to(here) else place

    return _with_paths(config, kept)


def located(config: T, run: Path) -> T:
    """A stored configuration with places that can be opened, whether or not something is there."""

    def found(path: Path) -> Path:
        if (run / path).exists():  # also if it is absolute
            return run / path
        # A path from a working directory, in runs of earlier versions, is not in the run.
        return NAMES.get(str(path), path if path.exists() else run / path)

    return _with_paths(config, found)


def _with_paths(value: Any, change: Callable[[Path], Path]) -> Any:
    """The same value with every path in it changed: of dataclasses and tuples, at any depth."""
    if isinstance(value, Path):
        return change(value)
    if isinstance(value, tuple):
        return tuple(_with_paths(one, change) for one in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{name: _with_paths(one, change) for name, one in vars(value).items()})
    return value
