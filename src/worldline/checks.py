"""Checks of values: the numbers of every `Checked` configuration are what their types say, a name is one of several.

    @dataclass(frozen=True, kw_only=True)
    class Config(Checked):
        rows: int = 8
        offset: Natural = 0
        dropout: Annotated[float, Limit(below=1)] = 0.1

An `int` is a whole number of at least 1, a `float` a finite number of at least 0, unless a `Limit` says otherwise. None
passes (the type says whether a field may be None); of tuples, every entry is checked. A class with checks of its own
begins them with `super().__post_init__()`.
"""

import difflib
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import cache
from math import inf, isfinite
from types import NoneType
from typing import Annotated, Any, NoReturn, TypeVar, get_args, get_origin, get_type_hints

from worldline.schema import UsageError

Options = TypeVar("Options")
Real = float | int
MOST = 2**31 - 1
"""No count here is larger, and every library can represent it."""
MOST_WORKERS = 1024


@dataclass(frozen=True, kw_only=True)
class Limit:
    """What the numbers of a field may be."""

    least: Real = 0
    most: Real = inf
    above: Real = -inf
    below: Real = inf

    def allows(self, value: Any, kind: type) -> bool:
        number = type(value) is int or (kind is float and isinstance(value, float) and isfinite(value))
        return number and self.least <= value <= self.most and self.above < value < self.below

    def said(self, value: Any) -> str:
        """The limits in words, for a value beyond them. The most that anything may be is told only where it matters."""
        low = f"above {self.above}" if self.above >= self.least else f"of at least {self.least}"
        high = "" if self.most == inf or (self.most == MOST and value <= MOST) else f" and at most {self.most}"
        return low + (f" and below {self.below}" if self.below < inf else high)


Natural = Annotated[int, Limit(most=MOST)]
Seed = Annotated[int, Limit(most=2**32 - 1)]
"""As far as the generators of both NumPy and PyTorch go."""
Positive = Annotated[float, Limit(above=0)]
Share = Annotated[float, Limit(most=1)]
_USUAL = {int: Limit(least=1, most=MOST), float: Limit()}


class InvalidValue(UsageError):  # noqa: N818 - an error by its base, named after what it is about
    """A field of a configuration has a value that it cannot have; `said` says so behind the name of the field."""

    def __init__(self, kind: type, field: str, said: str) -> None:
        self.kind, self.field, self.said = kind, field, said
        super().__init__(f"{kind.__name__}.{field} {said}")


def refuse(config: object, field: str, allowed: str) -> NoReturn:
    """Raise `InvalidValue` for a field whose value is not allowed."""
    raise InvalidValue(type(config), field, f"is {getattr(config, field)!r}, but must be {allowed}")


@contextmanager
def options_of(parts: Mapping[type, str] | None = None) -> Iterator[None]:
    """Name wrong values by their options; `parts` are the classes whose options begin with a name, and that name."""
    try:
        yield
    except InvalidValue as error:
        option = as_options([(parts or {}).get(error.kind, "") + error.field])
        raise UsageError(f"{option} {error.said}") from error


def as_only(kind: type[Options], options: Any, **others: Any) -> Options:
    """Of options those that a smaller class has, too, with `others` in place of some."""
    return kind(**{one.name: getattr(options, one.name) for one in fields(kind)} | others)  # pyright: ignore[reportArgumentType]


def changed(kind: Any, options: Any) -> list[str]:
    """The fields of a class, which have plain values, in which options are not as usual."""
    return [one.name for one in fields(kind) if getattr(options, one.name) != getattr(kind, one.name)]


def as_options(names: Iterable[str]) -> str:
    """Names of fields as the command line takes them, for a message: `--num-clips, --seed`."""
    return ", ".join(f"--{name.replace('_', '-')}" for name in names)


def refuse_unknown(name: str, names: Collection[str], *, what: str) -> None:
    """Raise `UsageError` where a name is none of those there are; says which it may have been meant for."""
    if name not in names:
        close = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise UsageError(f"there is no {what} {name!r}; {hint}there are: {', '.join(names)}")


class Checked:
    """A configuration whose numbers are within their limits. Raises `InvalidValue` where one is not."""

    def __post_init__(self) -> None:
        for field, (kind, limit) in _limits(type(self)).items():
            given, what = getattr(self, field), "whole number" if kind is int else "number"
            for value in _flat(given):
                if not limit.allows(value, kind):
                    named = f"{what}s, each" if isinstance(given, tuple | list) else f"a {what}"
                    refuse(self, field, f"{named} {limit.said(value)}")


@cache
def _limits(config: Any) -> dict[str, tuple[type, Limit]]:
    """The fields of numbers, each with their kind and limits."""
    hints = get_type_hints(config, include_extras=True)
    found = {field.name: _limit(hints[field.name]) for field in fields(config)}
    return {name: limit for name, limit in found.items() if limit is not None}


def _limit(hint: Any) -> tuple[type, Limit] | None:
    """The kind and the limits of the numbers that a type consists of; None for other types."""
    if hint in (int, float):
        return hint, _USUAL[hint]
    if get_origin(hint) is Annotated:
        found, limits = _limit(get_args(hint)[0]), [one for one in hint.__metadata__ if isinstance(one, Limit)]
        return (found[0], limits[0]) if found and limits else found
    parts = [_limit(part) for part in get_args(hint) if part not in (NoneType, Ellipsis)]
    return parts[0] if parts and None not in parts else None


def _flat(value: Any) -> list[Any]:
    """The numbers of a field, or what stands in their place."""
    if isinstance(value, tuple | list):
        return [one for entry in value for one in _flat(entry)]
    return [] if value is None else [value]
