"""Checks that every source makes, so that every source says the same about the same fault."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from worldline.schema import DataError, Episode

Report = Callable[[DataError], None]
"""What to do with a fault found while opening: raise it, or note it and leave the faulty part out."""


def raise_problem(problem: DataError) -> None:
    """Be a `Report` that stops at the first fault."""
    raise problem


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
        fix="Repair the recording or leave the episode out.",
    )


def summarise(items: Sequence[str], limit: int = 4) -> str:
    """Join a few examples of a long list: `100: a, b, c, d, ...`."""
    return f"{len(items)}: {', '.join(items[:limit])}{', ...' if len(items) > limit else ''}"
