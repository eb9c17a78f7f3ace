"""Checks of the values of a configuration. Every configuration calls them in its `__post_init__`.

    def __post_init__(self) -> None:
        whole(self, "rows", "columns", least=1)
        number(self, "dropout", below=1)

None passes (the type says whether a field may be None); of tuples, every entry is checked.
"""

import ast
import inspect
import textwrap
from itertools import pairwise
from math import inf, isfinite
from typing import Any, NoReturn

from worldline.schema import UsageError

Real = float | int
MOST = 2**31 - 1
"""No count here is larger, and every library can represent it."""
MOST_WORKERS = 1024
MOST_SEED = 2**32 - 1
"""Largest seed of both NumPy's and PyTorch's generators."""


class InvalidValue(UsageError):  # noqa: N818 - an error by its base, named after what it is about
    """A field of a configuration has a value that it cannot have; `said` says so behind the name of the field."""

    def __init__(self, kind: type, field: str, said: str) -> None:
        self.kind, self.field, self.said = kind, field, said
        super().__init__(f"{kind.__name__}.{field} {said}")


def refuse(config: object, field: str, allowed: str) -> NoReturn:
    """Raise `InvalidValue` for a field whose value is not allowed."""
    raise InvalidValue(type(config), field, f"is {getattr(config, field)!r}, but must be {allowed}")


def whole(config: object, *fields: str, least: int = 1, most: int = MOST) -> None:
    """Check that fields are whole numbers from `least` to `most`. Raises `InvalidValue`."""
    for field in fields:
        for value in _flat(getattr(config, field)):
            if type(value) is not int or not least <= value <= most:
                end = f"of at least {least}" if most == MOST and value <= MOST else f"from {least} to {most}"
                refuse(config, field, f"{_kind(config, field, 'whole number')} {end}")


def number(
    config: object, *fields: str, least: Real = 0, most: Real = inf, above: Real = -inf, below: Real = inf
) -> None:
    """Check that fields are finite numbers of at least `least`, above `above` and so on. Raises `InvalidValue`."""
    low = f"above {above:g}" if above >= least else f"of at least {least:g}"
    high = f" and below {below:g}" if below < inf else f" and at most {most:g}" if most < inf else ""
    for field in fields:
        for value in _flat(getattr(config, field)):
            is_number = isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
            if not (is_number and least <= value <= most and above < value < below):
                refuse(config, field, f"{_kind(config, field, 'number')} {low}{high}")


def seed(config: object, *fields: str) -> None:
    """Check that fields are seeds. Raises `InvalidValue`."""
    whole(config, *fields, least=0, most=MOST_SEED)


def _kind(config: object, field: str, kind: str) -> str:
    return f"{kind}s, each" if isinstance(getattr(config, field), tuple | list) else f"a {kind}"


def _flat(value: Any) -> list[Any]:
    """The numbers of a field, or what stands in their place."""
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
