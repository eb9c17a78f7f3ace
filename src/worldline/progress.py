"""What jobs tell the user: progress and messages on stderr, results on stdout."""

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, TypeVar

from pydantic_core import to_json
from tqdm import tqdm

T = TypeVar("T")


def watched(items: Iterable[T], what: str, *, total: int | None = None, done: int = 0) -> "tqdm[T]":
    """The items, of a job that is `done` so far, behind a bar on stderr with rate and time left.

    Of several processes the first shows it, once the job has taken two seconds.
    """
    return tqdm(items, what, total, file=sys.stderr, delay=2, dynamic_ncols=True, initial=done, disable=not speaks())


class Steps:
    """The bar of a training, with the figures to watch."""

    bar: tqdm | None = None

    def __call__(self, done: int, total: int, figures: dict[str, float]) -> None:
        if self.bar is None:
            self.bar = watched((), "training", total=total, done=done - 1)
        shown = {name.removeprefix("train/"): f"{value:.4g}" for name, value in figures.items()}
        self.bar.set_postfix({k: shown[k] for k in ("loss", "val/loss", "psnr_db", "val/psnr_db") if k in shown}, False)
        self.bar.update()


def say(message: str) -> None:
    """Tell the user something on stderr; of several processes of a job, the first does."""
    if speaks():
        print(message, file=sys.stderr)


@cache
def say_once(message: str) -> None:
    """`say` what is found again whenever something is opened again."""
    say(message)


def show(result: dict[str, Any], *, text: str, as_json: bool) -> None:
    """Print a result, once for all processes of a job: with `as_json` one object and nothing else, or text.

    NaN becomes null, as in files: JSON knows none.
    """
    if speaks():
        with reader_may_leave():
            print(to_json(result, inf_nan_mode="null").decode() if as_json else text)


@contextmanager
def reader_may_leave() -> Iterator[None]:
    """What is printed within may go to a reader who has enough (`| head`): the job is done all the same."""
    try:
        try:
            yield
        finally:
            print(end="", flush=True)
    except BrokenPipeError:  # nothing may be left to write, or Python complains at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def speaks() -> bool:
    """Whether this process talks to the user: it is alone, or the first of those that torchrun started."""
    return os.environ.get("WORLD_SIZE", "1") == "1" or os.environ.get("RANK") == "0"
