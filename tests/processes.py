"""Processes that tests start to kill them: forked, since one that imports PyTorch first takes three seconds longer."""

import multiprocessing
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from threading import RLock

from tqdm import tqdm

from worldline.cli.main import main

FORK = multiprocessing.get_context("fork")


def forked(work: Callable[[], object]) -> BaseProcess:
    """Begin some work on a copy of this process."""

    def run() -> None:
        tqdm.set_lock(RLock())  # its own is shared with this process, and is not let go by who is killed
        work()

    process = FORK.Process(target=run)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # pytest-xdist has a thread, which holds nothing
        process.start()
    return process


def command(words: Sequence[object], *, nice: int = 0, **environment: str) -> BaseProcess:
    """Begin what a command line says, behind `worldline`; its exit code is the process's."""

    def work() -> None:
        os.nice(nice)
        os.environ.update(environment)
        sys.argv = ["worldline", *map(str, words)]
        main()

    return forked(work)


def ended(process: BaseProcess, seconds: float = 120) -> int:
    """Wait for a process; its exit code, which is negative for a signal."""
    process.join(seconds)
    assert process.exitcode is not None, "it hangs"
    return process.exitcode
