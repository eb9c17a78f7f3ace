"""Shared by verbs: results on stdout, with `--json` one object and nothing else; errors about names and values."""

import difflib
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import is_dataclass
from typing import Any, get_args, get_type_hints

from worldline.checks import InvalidValue
from worldline.progress import speaks
from worldline.schema import UsageError


def show(result: dict[str, Any], *, text: str, as_json: bool) -> None:
    """Print a verb's result, once for all processes of a job: one JSON object with `as_json`, else text for people."""
    if speaks():
        print(json.dumps(result) if as_json else text)


def choose(arguments: list[str], names: Iterable[str], *, what: str) -> str | None:
    """The first word of the arguments, if it is one of the names; None if help is asked for.

    Raises:
        UsageError: another word; says which name it may have been meant for.
    """
    word = next((a for a in arguments if not a.startswith("-")), None)
    if word is None or word in names:
        return word
    close = difflib.get_close_matches(word, list(names), n=1, cutoff=0.4)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise UsageError(f"there is no {what} {word!r}; {hint}there are: {', '.join(names)}")


@contextmanager
def options_of(part: Any = None, prefix: str = "--") -> Iterator[None]:
    """Name wrong values by their options. `part` is the configuration whose fields are options behind `prefix`."""
    try:
        yield
    except InvalidValue as error:
        place = (part and _place(part, error, prefix)) or f"--{error.field}"
        raise UsageError(f"{place.replace('_', '-')} {error.said}") from error


def _place(part: Any, error: InvalidValue, prefix: str) -> str | None:
    """The option that sets the field an error is about, if it is one of this configuration or a part of it."""
    if part is error.kind:
        return prefix + error.field
    for name, hint in get_type_hints(part).items():
        for kind in filter(is_dataclass, (hint, *get_args(hint))):
            for one in (kind, *type.__subclasses__(kind)):  # models are told by their kind
                if found := _place(one, error, f"{prefix}{name}."):
                    return found
    return None
