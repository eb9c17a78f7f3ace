"""What ships inside the package: the twin-mini data set and the tiny checkpoints made from it. Paths only."""

from pathlib import Path

from worldline.schema import UsageError

ASSETS = Path(__file__).parent / "assets"
TWIN_MINI_TRAIN = ASSETS / "twin_mini" / "train"
TWIN_MINI_VAL = ASSETS / "twin_mini" / "val"
TOKENIZER_TINY = ASSETS / "tokenizer_tiny"
COMPRESSION_TINY = ASSETS / "compression_tiny"
COMPRESSION_TINY_BLIND = ASSETS / "compression_tiny_blind"
NAMES = {
    "twin-mini": TWIN_MINI_TRAIN,
    "twin-mini-val": TWIN_MINI_VAL,
    "tokenizer-tiny": TOKENIZER_TINY,
    "compression-tiny": COMPRESSION_TINY,
    "compression-tiny-blind": COMPRESSION_TINY_BLIND,
}


def resolve(path: Path) -> Path:
    """A path as given, or the built-in of that name where no such file or folder exists.

    Raises:
        UsageError: neither a path on disk nor a built-in name.
    """
    if path.exists():
        return path
    if str(path) in NAMES:
        return NAMES[str(path)]
    raise UsageError(f"{path} does not exist, and no built-in has that name; built-ins: {', '.join(NAMES)}")
