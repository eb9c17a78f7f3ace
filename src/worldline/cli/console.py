"""Shared by verbs: results on stdout, with `--json` one object and nothing else; errors about names and values."""

import difflib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

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
def options_of(parts: Mapping[type, str] | None = None) -> Iterator[None]:
    """Name wrong values by their options; `parts` are the classes whose options begin with a name, and that name."""
    try:
        yield
    except InvalidValue as error:
        option = f"--{(parts or {}).get(error.kind, '')}{error.field}"
        raise UsageError(f"{option.replace('_', '-')} {error.said}") from error
