"""Which row of a heuristic table is fastest on this GPU: measured when asked to, and remembered.

Nothing is measured during a user's calls. `measure` does it, for `faststy.ops.tune` and `faststy
bench ops --tune`, and writes the winners to a small JSON file, which later processes read once:

    {"NVIDIA H100 80GB HBM3, Triton 3.9.0": {"gram_fwd": {"float16 planar N4 …": [64, …]}}}

$FASTSTY_TUNED names another file; without one it is faststy/tuned.json in the user's cache folder.
A row that is no longer in its table is passed over.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

import torch
import triton
from torch import Tensor

Row = TypeVar("Row", bound="tuple[Any, ...]")
Winners = dict[str, dict[str, dict[str, list[Any]]]]  # by machine, kernel and class of tensors

WORTHWHILE = 0.98  # of the default's time: what must be undercut, lest noise choose

_measured_now: dict[str, tuple[Any, ...]] = {}  # kernel: the row that all calls take for now
_turn = Lock()  # threads that tune, each a GPU of its own perhaps, take turns


def fastest(kernel: str, x: Tensor, rows: tuple[Row, ...]) -> Row:
    """The row of `kernel` for tensors like `x` [N, C, H, W]: the winner, or the first."""
    if kernel in _measured_now:
        return _measured_now[kernel]  # type: ignore[return-value]
    if not winners():
        return rows[0]
    found = winners().get(machine(x.device), {}).get(kernel, {}).get(class_of(x))
    return next((row for row in rows if list(row) == found), rows[0])


def measure(
    kernel: str,
    x: Tensor,
    rows: tuple[Row, ...],
    call: Callable[[], object],
    timer: Callable[[Callable[[], object]], float] | None = None,
) -> dict[Row, float]:
    """Seconds of `call` with each row of `kernel`; the winner is kept for tensors like `x`.

    Rows that the GPU has no room for are left out. `timer` takes a function to call and returns
    seconds; by default Triton's, on the GPU, with a cold cache.
    """
    seconds: dict[Row, float] = {}
    with _turn:
        try:
            for row in rows:
                _measured_now[kernel] = row
                with contextlib.suppress(triton.runtime.errors.OutOfResources):
                    seconds[row] = (timer or _on_the_gpu)(call)
        finally:
            _measured_now.pop(kernel, None)
        if seconds:
            best = min(seconds, key=seconds.__getitem__)
            default = seconds.get(rows[0], float("inf"))
            _keep(kernel, x, best if seconds[best] < WORTHWHILE * default else rows[0])
    return seconds


def class_of(x: Tensor) -> str:
    """Tensors that share a winner: sizes count by the next power of two."""
    n, c, h, w = x.shape
    order = "channels_last" if x.stride(1) < x.stride(3) else "planar"
    sizes = (1 << max(size - 1, 0).bit_length() for size in (n, c, h * w))
    return " ".join([str(x.dtype).removeprefix("torch."), order, "N{} C{} P{}".format(*sizes)])


@cache
def machine(device: torch.device) -> str:
    """The GPU and the compiler that a measurement holds for."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return f"{name}, Triton {triton.__version__}"


def path() -> Path:
    """The file of winners."""
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(os.environ.get("FASTSTY_TUNED") or os.path.join(caches, "faststy", "tuned.json"))


@cache
def winners() -> Winners:
    """What the file holds, read once; nothing, with a warning, where it cannot be read."""
    try:
        found = json.loads(path().read_text(encoding="utf-8"))
        for kernels in found.values():
            for classes in kernels.values():
                if not all(isinstance(row, list) for row in classes.values()):
                    raise TypeError("rows must be lists")
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        warnings.warn(
            f"{path()}: measured block sizes cannot be read ({error}): the defaults are used; "
            "delete the file, or tune anew",
            stacklevel=2,
        )
        return {}
    return found  # type: ignore[no-any-return]


def _keep(kernel: str, x: Tensor, row: tuple[Any, ...]) -> None:
    """Add a winner to what the file holds by now, and replace it by rename."""
    winners.cache_clear()
    found = winners()  # the same object that later calls see
    found.setdefault(machine(x.device), {}).setdefault(kernel, {})[class_of(x)] = list(row)
    temporary = path().with_name(f".tuned.{secrets.token_hex(8)}.faststy-tmp")
    try:
        path().parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(found, indent=1, sort_keys=True), encoding="utf-8")
        os.replace(temporary, path())
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        warnings.warn(
            f"{path()}: cannot be written ({error.strerror or error}): what was measured holds for "
            "this process only; FASTSTY_TUNED names another file",
            stacklevel=3,
        )


def _on_the_gpu(call: Callable[[], object]) -> float:
    """Median seconds of a call."""
    milliseconds: float = triton.testing.do_bench(call, return_mode="median")
    return milliseconds / 1e3
