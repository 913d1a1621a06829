"""SIGINT, SIGTERM and SIGHUP as a wish to stop after the step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

NAMES = ("SIGINT", "SIGTERM", "SIGHUP")  # the last, where there is one, when a terminal is closed


@contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """An event that these signals set; a second one acts as usual. What is ignored stays so."""
    stopped = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return
    numbers = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]
    previous = {number: signal.getsignal(number) for number in numbers}
    theirs = (signal.SIG_IGN, None)  # None: set by no Python, which could not set it again
    previous = {n: handler for n, handler in previous.items() if handler not in theirs}

    def stop(number: int, frame: FrameType | None) -> None:
        stopped.set()
        for each, handler in previous.items():
            signal.signal(each, handler)

    for number in previous:
        signal.signal(number, stop)
    try:
        yield stopped
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
