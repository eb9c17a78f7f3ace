"""SIGTERM while training: what is running is finished and saved, as a scheduler asks for before it takes a machine."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def termination() -> Iterator[Callable[[], bool]]:
    """Inside, SIGTERM ends nothing; the function it gives says whether it came.

    Outside the main thread, where Python takes no signals, it never does.
    """
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = signal.signal(signal.SIGTERM, lambda number, _: came.append(number))
    try:
        yield lambda: bool(came)
    finally:
        signal.signal(signal.SIGTERM, before)
