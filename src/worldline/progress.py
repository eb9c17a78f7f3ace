"""What jobs tell the user: progress and messages on stderr, results on stdout."""

import json
import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from tqdm import tqdm


class Progress(AbstractContextManager["Progress"]):
    """Progress bars on stderr with rate and time left; one at a time, and none for jobs under two seconds."""

    bar: tqdm | None = None

    def __call__(self, what: str, done: int, total: int, figures: dict[str, float] | None = None) -> None:
        """Show `done` of `total` for `what`; another `what` closes the bar and opens a new one."""
        if self.bar is None or what != self.bar.desc:
            self.close()
            if what.startswith("filling"):  # where a cache lies is worth knowing even when it takes no time
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

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None


def say(message: str) -> None:
    """Tell the user something on stderr; of several processes of a job, the first does."""
    if speaks():
        print(message, file=sys.stderr)


def show(result: dict[str, Any], *, text: str, as_json: bool) -> None:
    """Print a result, once for all processes of a job: with `as_json` one object and nothing else, or text."""
    if speaks():
        print(json.dumps(result) if as_json else text)


def speaks() -> bool:
    """Whether this process talks to the user: it is alone, or the first of those that torchrun started."""
    return os.environ.get("WORLD_SIZE", "1") == "1" or os.environ.get("RANK") == "0"
