"""What is done now and then beside the training: previews, reports, checkpoints."""

from __future__ import annotations

import time
from collections.abc import Callable

SHARE = 0.05  # of the time that a chore may take; a dear one is done less often


class Chore:
    """Due `every` so many seconds."""

    def __init__(self, every: float, *, at_once: bool = False) -> None:
        self.every = every
        self.cost = 0.2  # seconds that it took the last time; a guess until the second
        self._begun = False
        self._next = time.monotonic() + (0.0 if at_once else every)

    def due(self) -> bool:
        return time.monotonic() >= self._next

    def timed(self, work: Callable[[], object]) -> Callable[[], None]:
        """`work`, noting when it was done and how long it took."""

        def timed() -> None:
            began = time.monotonic()
            try:
                work()
            finally:
                cost = time.monotonic() - began
                self._next = began + max(self.every, cost / SHARE)
                if self._begun:  # the first time pays for kernels and pictures, too
                    self.cost = cost
                self._begun = True

        return timed
