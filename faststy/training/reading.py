"""Numbers on their way from the device to the host."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Reading:
    """The numbers that `values` [...] has now, for the host to read later.

    On a CUDA device they are copied behind what runs there, and nothing waits for them until they
    are read. Who has begun another step by then keeps the device busy meanwhile: see `lag`.
    """

    def __init__(self, values: Tensor) -> None:
        self._values = values.detach().to("cpu", non_blocking=values.is_cuda, copy=True)
        self._copied = torch.cuda.Event() if values.is_cuda else None  # type: ignore[no-untyped-call]
        if self._copied is not None:
            # Of its own device: that of now may be another, and idle.
            self._copied.record(torch.cuda.current_stream(values.device))

    def tolist(self) -> list[Any]:
        if self._copied is not None:
            self._copied.synchronize()
        return self._values.tolist()


def lag(device: torch.device) -> int:
    """How many steps to begin before reading, so that `device` does not wait for the host."""
    return 1 if device.type == "cuda" else 0
