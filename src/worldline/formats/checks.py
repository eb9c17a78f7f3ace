"""Checks that every source makes, so that every source says the same about the same fault."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from worldline.files import read_json, unreadable
from worldline.schema import DataError, UsageError

Report = Callable[[DataError], None]  # called with what is wrong, where that is collected and not raised
T = TypeVar("T")


@contextmanager
def noting(report: Report) -> Iterator[None]:
    """Report what is wrong with what the block reads, and continue."""
    try:
        yield
    except DataError as problem:
        report(problem)


@dataclass(frozen=True, kw_only=True)
class LeavingOut:
    """How faulty parts of a data set are handled on opening, with a line for each part left out."""

    allowed: bool
    """Whether parts may be left out; without it the first raises."""
    report: Report | None = None
    """Given by an inspection: then nothing raises."""
    lines: list[str] = field(default_factory=list)

    def leave(self, what: str, problem: DataError, *, harmless: bool = False) -> None:
        """Leave out a part, or raise what is wrong with it; what is `harmless` (nothing is lost) needs no leave."""
        if self.report is not None:
            self.report(problem)
        elif not (self.allowed or harmless):
            raise problem
        self.lines.append(what)

    @contextmanager
    def around(self, what: str) -> Iterator[None]:
        """Leave out the part that is read in the block, if it is faulty."""
        try:
            yield
        except DataError as problem:
            self.leave(f"{what} ({problem.found})", problem)


def validated(path: Path, form: type[T], content: Any, where: str = "") -> T:
    """Give content of a file, or a line of JSON, the type it should have. Raises `DataError` naming a misfit."""
    try:
        check = _adapter(form)
        return check.validate_json(content) if isinstance(content, bytes) else check.validate_python(content)
    except UsageError as error:  # a configuration that checks itself
        raise DataError(path, expected="sound settings", found=str(error), kind="metadata") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in (where, *first["loc"]) if part != "")
        value = first["input"].decode(errors="replace") if isinstance(first["input"], bytes) else first["input"]
        expected = f"{place}: {first['msg'][:1].lower()}{first['msg'][1:]}"
        raise unreadable(path, expected=expected, found=repr(value)[:80], fix="", kind="metadata") from error


@lru_cache(maxsize=64)
def _adapter(form: Any) -> Any:
    return TypeAdapter(form)


def leave_out_absent(root: Path, needed: Mapping[str, Sequence[Path]], leaving: LeavingOut) -> list[int]:
    """Leave out the parts, by name, of which a file is absent; give the positions of the others."""
    absent = {
        name: [file.name + " is a link to nothing" * os.path.islink(file) for file in files if not os.path.exists(file)]
        for name, files in needed.items()
    }
    missing = [f"{name} ({' '.join(names)})" for name, names in absent.items() if names]
    if missing and not leaving.allowed:
        missing = [summarise(missing)]
    for what in missing:
        expected, found = "all files that are listed", f"missing {what}"
        leaving.leave(what, DataError(root, expected=expected, found=found, kind="missing_files"))
    return [i for i, names in enumerate(absent.values()) if not names]


def check_totals(path: Path, counted: dict[str, int], report: Report) -> None:
    """Report totals in a JSON file that are not what was counted."""
    stated = read_json(path)
    for key, count in counted.items():
        if stated.get(key, count) != count:
            report(DataError(path, expected=f"{key} {str(stated[key])[:80]}", found=f"{count}", kind="metadata"))


def summarise(items: Sequence[str], limit: int = 4) -> str:
    """Join a few examples of a long list: `100: a, b, c, d, ...`."""
    return f"{len(items)}: {', '.join(items[:limit])}{', ...' if len(items) > limit else ''}"
