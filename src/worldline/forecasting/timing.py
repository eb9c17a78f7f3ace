"""Where the time of a step goes: parts of it that say how long they took, for whoever asks.

A context variable: sessions in other threads measure for themselves, and where nobody asks nothing is kept.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_SPENT: ContextVar[dict[str, float] | None] = ContextVar("spent", default=None)


@contextmanager
def timed() -> Iterator[dict[str, float]]:
    """Collect the seconds of all parts that end within the block, by name."""
    spent: dict[str, float] = {}
    token = _SPENT.set(spent)
    try:
        yield spent
    finally:
        _SPENT.reset(token)


@contextmanager
def part(name: str) -> Iterator[None]:
    """Say how long the block took, where somebody collects it."""
    spent, began = _SPENT.get(), time.perf_counter()
    try:
        yield
    finally:
        if spent is not None:
            spent[name] = spent.get(name, 0.0) + time.perf_counter() - began
