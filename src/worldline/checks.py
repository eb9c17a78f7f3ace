"""Checks of the values of a configuration. Every configuration calls them in its `__post_init__`.

    def __post_init__(self) -> None:
        whole(self, "rows", "columns", least=1)
        number(self, "dropout", below=1)

None passes (the type says whether a field may be None); of tuples, every entry is checked.
"""

import ast
import inspect
import math
import textwrap
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NoReturn

from worldline.schema import UsageError

MOST = 2**31 - 1
"""No count here is larger, and every library can represent it."""
MOST_WORKERS = 1024
MOST_SEED = 2**32 - 1
"""What NumPy's and PyTorch's generators both take."""


class InvalidValue(UsageError):  # noqa: N818 - an error by its base, named after what it is about
    """A field of a configuration has a value that it cannot have; `place` is the name of the field for its user."""

    def __init__(self, kind: type, field: str, found: object, allowed: str, place: str = "") -> None:
        self.kind, self.field, self.found, self.allowed = kind, field, found, allowed
        super().__init__(f"{place or f'{kind.__name__}.{field}'} is {found!r}, but must be {allowed}")

    def at(self, place: str) -> "InvalidValue":
        """The same error with another name of the field."""
        return InvalidValue(self.kind, self.field, self.found, self.allowed, place)


def refuse(config: object, field: str, allowed: str) -> NoReturn:
    """Raise `InvalidValue` for a field whose value is not allowed."""
    raise InvalidValue(type(config), field, getattr(config, field), allowed)


def whole(config: object, *fields: str, least: int = 1, most: int = MOST) -> None:
    """Check that fields are whole numbers from `least` to `most`. Raises `InvalidValue`."""
    for field, value in _values(config, fields):
        if type(value) is not int or not least <= value <= most:
            end = f"of at least {least}" if most == MOST and value <= MOST else f"from {least} to {most}"
            refuse(config, field, f"{_kind(config, field, 'whole number')} {end}")


def number(
    config: object,
    *fields: str,
    least: float | int = 0,
    most: float | int = math.inf,
    above: float | int = -math.inf,
    below: float | int = math.inf,
) -> None:
    """Check that fields are finite numbers of at least `least`, above `above` and so on. Raises `InvalidValue`."""
    low = f"above {above:g}" if above >= least else f"of at least {least:g}"
    high = f" and below {below:g}" if below < math.inf else f" and at most {most:g}" if most < math.inf else ""
    for field, value in _values(config, fields):
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not (is_number and least <= value <= most and above < value < below):
            refuse(config, field, f"{_kind(config, field, 'number')} {low}{high}")


def seed(config: object, *fields: str) -> None:
    """Check that fields are seeds. Raises `InvalidValue`."""
    whole(config, *fields, least=0, most=MOST_SEED)


def _kind(config: object, field: str, kind: str) -> str:
    return f"{kind}s, each" if isinstance(getattr(config, field), tuple | list) else f"a {kind}"


def _values(config: object, fields: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    return ((field, value) for field in fields for value in _flat(getattr(config, field)))


def _flat(value: Any) -> list[Any]:
    if isinstance(value, tuple | list):
        return [one for entry in value for one in _flat(entry)]
    return [] if value is None else [value]


def texts_of(kind: type) -> dict[str, str]:
    """The fields of a dataclass and of those it is made from, each with the text that stands below it."""
    texts = {}
    for base in reversed(kind.__mro__[:-1]):
        (parsed,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(parsed, ast.ClassDef), "the source of a class"
        for field, below in pairwise([*parsed.body, ast.Pass()]):
            if isinstance(field, ast.AnnAssign):
                text = ast.literal_eval(below.value) if isinstance(below, ast.Expr) else ""
                texts[ast.unparse(field.target)] = " ".join(text.split())
    return texts
