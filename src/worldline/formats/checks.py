"""Checks that every source makes, so that every source says the same about the same fault."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from pydantic import TypeAdapter, ValidationError

from worldline.files import read_json, unreadable
from worldline.schema import DataError, Episode, UsageError

Report = Callable[[DataError], None]
"""Called with a fault found while opening: raises it, or notes it so that the faulty part is left out."""


def raise_problem(problem: DataError) -> None:
    """A `Report` that stops at the first fault."""
    raise problem


@contextmanager
def noting(report: Report) -> Iterator[None]:
    """Report the faults of reads in the block, and continue."""
    try:
        yield
    except DataError as problem:
        report(problem)


@dataclass(frozen=True, kw_only=True)
class LeavingOut:
    """How faulty parts of a data set are handled on opening, with a line for each part left out."""

    allowed: bool
    """Whether parts may be left out; without it the first raises."""
    report: Report = raise_problem
    lines: list[str] = field(default_factory=list)

    @property
    def inspecting(self) -> bool:
        """Whether faults are collected and not raised."""
        return self.report is not raise_problem

    def leave(self, what: str, problem: DataError, *, harmless: bool = False) -> None:
        """Leave out a part, or raise what is wrong with it.

        Args:
            harmless: nothing is lost by leaving it out, so that it needs no leave.
        """
        if self.inspecting or not (self.allowed or harmless):
            self.report(problem)
        self.lines.append(what)

    @contextmanager
    def around(self, what: str) -> Iterator[None]:
        """Leave out the part that is read in the block, if it is faulty."""
        try:
            yield
        except DataError as problem:
            self.leave(f"{what} ({problem.found})", problem)


T = TypeVar("T")


def validated(path: Path, form: type[T], content: Any, where: str = "") -> T:
    """Give content of a file, or a line of JSON, the type it should have. Raises `DataError` naming a misfit."""
    try:
        check = adapter(form)
        return check.validate_json(content) if isinstance(content, bytes) else check.validate_python(content)
    except UsageError as error:  # a configuration that checks itself
        raise DataError(path, expected="sound settings", found=str(error), kind="metadata") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in (where, *first["loc"]) if part != "")
        value = first["input"]
        text = repr(value.decode(errors="replace") if isinstance(value, bytes) else value)
        found = text if len(text) <= 80 else f"{text[:77]}..."
        expected = f"{place}: {first['msg'][:1].lower()}{first['msg'][1:]}"
        raise unreadable(path, expected=expected, found=found, fix="Correct or restore it.", kind="metadata") from error


def leave_out_absent(root: Path, needed: Mapping[str, Sequence[Path]], leaving: LeavingOut) -> list[int]:
    """Leave out the parts, by name, of which a file is absent; give the positions of the others."""
    link = " is a link to nothing"
    absent = {
        name: [file.name + link * os.path.islink(file) for file in files if not os.path.exists(file)]
        for name, files in needed.items()
    }
    missing = [f"{name} ({' '.join(names)})" for name, names in absent.items() if names]

    def problem(what: str) -> DataError:
        return DataError(root, expected="all files that are listed", found=f"missing {what}", kind="missing_files")

    if missing and not leaving.allowed:
        raise problem(summarise(missing))
    for what in missing:
        leaving.leave(what, problem(what))
    return [i for i, names in enumerate(absent.values()) if not names]


@lru_cache(maxsize=64)
def adapter(form: Any) -> Any:
    """The validator of a type, made once."""
    return TypeAdapter(form)


def check_totals(path: Path, counted: dict[str, int], report: Report) -> None:
    """Report totals in a JSON file that are not what was counted."""
    stated = read_json(path)
    for key, count in counted.items():
        if stated.get(key, count) != count:
            expected, fix = f"{key} {str(stated[key])[:80]}", "Correct the metadata."
            report(DataError(path, expected=expected, found=f"{count}", fix=fix, kind="metadata"))


def check_window(episode: Episode, start: int, stop: int) -> None:
    """Raise `IndexError` where `start .. stop-1` leaves the episode or is empty."""
    if not 0 <= start < stop <= episode.length:
        raise IndexError(f"{episode.name}: frames {start}..{stop - 1} are not within 0..{episode.length - 1}")


def check_finite(path: Path, states: np.ndarray, names: Sequence[str], first_row: int) -> None:
    """Raise `DataError` naming the first state that is NaN or infinite."""
    if np.isfinite(states).all():
        return
    rows, columns = np.nonzero(~np.isfinite(states))
    value, name = states[rows[0], columns[0]], names[columns[0]]
    raise DataError(
        path,
        expected="finite states",
        found=f"{value} in row {first_row + rows[0]}, {name} ({len(rows)} such values)",
        fix="Repair the recording.",
        kind="states",
    )


def summarise(items: Sequence[str], limit: int = 4) -> str:
    """Join a few examples of a long list: `100: a, b, c, d, ...`."""
    return f"{len(items)}: {', '.join(items[:limit])}{', ...' if len(items) > limit else ''}"
