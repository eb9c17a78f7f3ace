"""How a verb talks: results on stdout, progress and messages on stderr, `--json` one object and nothing else."""

import difflib
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import is_dataclass
from typing import Any, get_args, get_type_hints

from tqdm import tqdm

from worldline.checks import InvalidValue
from worldline.schema import UsageError


class Progress:
    """Progress bars on stderr with rate and time left; one at a time, none for what takes under two seconds."""

    def __init__(self) -> None:
        self.bar: tqdm | None = None
        self.what = ""

    def __call__(self, what: str, done: int, total: int, figures: dict[str, float] | None = None) -> None:
        """Show that `done` of `total` is done of `what`; another `what` closes the bar and opens its own."""
        if self.bar is None or what != self.what:
            self.close()
            self.what = what
            if what.startswith("tokenizing"):  # where the tokens lie is worth knowing even when it takes no time
                say(what)
            self.bar = tqdm(total=total, desc=what, file=sys.stderr, delay=2, dynamic_ncols=True, initial=done - 1)
        shown = {name.removeprefix("train/"): f"{value:.4g}" for name, value in (figures or {}).items()}
        self.bar.set_postfix({k: shown[k] for k in ("loss", "val/loss", "psnr_db", "val/psnr_db") if k in shown}, False)
        self.bar.update(done - self.bar.n)
        if done == total:
            self.close()

    def named(self, what: str) -> Callable[[int, int], None]:
        """The progress of one thing, for functions that report (done, total)."""
        return lambda done, total: self(what, done, total)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None


def say(message: str) -> None:
    """Tell the user something on stderr."""
    print(message, file=sys.stderr)


def show(result: dict[str, Any], *, text: str, as_json: bool) -> None:
    """Print a verb's result: one JSON object with `as_json`, else text for people."""
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
        place = _place(part, error, prefix) if part else None
        raise error.at((place or f"--{error.field}").replace("_", "-")) from error


def _place(part: Any, error: InvalidValue, prefix: str) -> str | None:
    """The option that sets the field an error is about, if it is one of this configuration or a part of it."""
    if part is error.kind:
        return prefix + error.field
    for name, hint in get_type_hints(part).items():
        for kind in filter(is_dataclass, (hint, *get_args(hint))):
            if found := _place(kind, error, f"{prefix}{name}."):
                return found
    return None
