"""Checks that every source makes, so that every source says the same about the same fault."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from pydantic import TypeAdapter, ValidationError

from worldline.files import read_json
from worldline.schema import DataError, Episode, UsageError

Report = Callable[[DataError], None]
"""What to do with a fault found while opening: raise it, or note it and leave the faulty part out."""


def raise_problem(problem: DataError) -> None:
    """Be a `Report` that stops at the first fault."""
    raise problem


@contextmanager
def noting(report: Report) -> Iterator[None]:
    """Report what is wrong with what is read within, and go on."""
    try:
        yield
    except DataError as problem:
        report(problem)


@dataclass(frozen=True, kw_only=True)
class LeavingOut:
    """What to do with a part of a data set that is at fault while it is opened, and a line for each part left out."""

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
        """Leave out what is read within, where it is at fault."""
        try:
            yield
        except DataError as problem:
            self.leave(f"{what} ({problem.found})", problem)


T = TypeVar("T")


def validated(path: Path, form: type[T], content: Any, where: str = "") -> T:
    """Give content that came out of a file the type it should have. Raises `DataError` naming the first misfit."""
    try:
        return adapter(form).validate_python(content)
    except UsageError as error:  # a configuration that checks itself
        fix = "Correct or restore it."
        raise DataError(path, expected="sound settings", found=str(error), fix=fix, kind="metadata") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in (where, *first["loc"]) if part != "")
        text = repr(first["input"])
        found = text if len(text) <= 80 else f"{text[:77]}..."
        problem = first["msg"][:1].lower() + first["msg"][1:]
        raise DataError(
            path, expected=f"{place}: {problem}", found=found, fix="Correct or restore it.", kind="metadata"
        ) from error


def sound_episodes(episodes: Sequence[Episode], check: Callable[[int], object], leaving: LeavingOut) -> list[int]:
    """Episodes that pass their check, where others may be left out: one that is damaged costs itself alone."""
    if not leaving.allowed or leaving.inspecting:
        return list(range(len(episodes)))
    sound: list[int] = []
    for episode in episodes:
        before = len(leaving.lines)
        with leaving.around(episode.name):
            check(episode.index)
        if len(leaving.lines) == before:
            sound.append(episode.index)
    return sound


@lru_cache(maxsize=64)
def adapter(form: Any) -> Any:
    """What validates a type, made once."""
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
