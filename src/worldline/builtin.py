"""Data and checkpoints inside the package: twin-mini, and the tiny models trained on the twin. Paths only."""

from collections.abc import Sequence
from pathlib import Path

from worldline.schema import UsageError

ASSETS = Path(__file__).parent / "assets"
TWIN_MINI_TRAIN = ASSETS / "twin_mini" / "train"
TWIN_MINI_VAL = ASSETS / "twin_mini" / "val"
TOKENIZER_TINY = ASSETS / "tokenizer_tiny"
COMPRESSION_TINY = ASSETS / "compression_tiny"
VAE_TINY = ASSETS / "vae_tiny"
SAMPLING_TINY = ASSETS / "sampling_tiny"
NAMES = {"twin-mini": TWIN_MINI_TRAIN, "twin-mini-val": TWIN_MINI_VAL}
NAMES |= {model.name.replace("_", "-"): model for model in (TOKENIZER_TINY, COMPRESSION_TINY, VAE_TINY, SAMPLING_TINY)}


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


def data_for(run: Path, data: Path | tuple[Path, ...] | None) -> Path | tuple[Path, ...] | None:
    """The data set to use with a run: the one asked for; else the built-in one for built-ins; else the run's own."""
    return resolve_all(data) if data is not None else TWIN_MINI_VAL if is_builtin(run) else None
