"""Measure which block sizes of the Triton kernels are fastest on this GPU, and remember them."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor

from faststy.errors import FaststyError
from faststy.ops import checks
from faststy.ops.dispatch import choose, launcher
from faststy.ops.reference import CHANNELS_LAST

TUNABLE = ("instance_norm", "gram", "conv3x3")


class Tuned(NamedTuple):
    """What was measured of one kernel."""

    kernel: str  # "instance_norm_fwd", "instance_norm_bwd", "gram_fwd", "gram_bwd", "conv3x3_k64"
    best: tuple[Any, ...]  # the fastest row of its table
    seconds: float  # with that row
    default_seconds: float  # with the row that is taken without tuning; infinite if it did not fit
    rows: int  # how many were measured


def tune(
    x: Tensor,
    *,
    kernels: tuple[str, ...] = TUNABLE,
    timer: Callable[[Callable[[], object]], float] | None = None,
) -> list[Tuned]:
    """Measure the kernels on features like `x`, forward and backward; later calls use the winners.

    Convolutions are measured from the channels of `x` to as many, with ReLU.

    That takes some ten seconds a shape, most of it compiling. Winners are kept in
    faststy/tuned.json of the user's cache folder (or the file that $FASTSTY_TUNED names), by GPU,
    Triton version, kernel, dtype, memory layout and sizes to the next power of two. A winner is at
    least 2 % faster than the default.

    Args:
        x: [N, C, H, W] float16, bfloat16 or float32, in either memory layout, not empty.
        kernels: some of "instance_norm", "gram" and "conv3x3".
        timer: given a function to call, the seconds of a call; by default measured on the GPU.

    Returns:
        A `Tuned` for each kernel: those of instance norm, forward and backward, of Gram matrices,
        and of convolutions, which are left out where `x` has but one row or column.

    Raises:
        TypeError, ValueError: a wrong dtype or rank, an empty `x`, an unknown kernel.
        FaststyError: no Triton kernels compute on the device of `x`.
    """
    checks.features(x)
    if x.dtype == torch.float64:
        raise TypeError("x: expected float16, bfloat16 or float32, got torch.float64")
    if x.numel() == 0:
        raise ValueError(f"x: expected values to measure with, got {list(x.shape)}")
    unknown = set(kernels) - set(TUNABLE)
    if unknown:
        raise ValueError(f"kernels: expected some of {list(TUNABLE)}, got {sorted(unknown)}")
    active = choose("instance_norm", x.device.type)
    if active.name != "triton":
        why = f"what computes there is {active.name} ({active.why})"
        raise FaststyError(f"there are no Triton kernels to tune on {x.device}: {why}")

    autotune = import_module("faststy.kernels.autotune")
    tables = import_module("faststy.kernels.tuning")
    x = x.detach()
    results = []
    for kernel, call in _calls(x, kernels).items():
        # Convolutions work in channels_last, whatever they are given.
        seen = x.contiguous(memory_format=CHANNELS_LAST) if kernel.startswith("conv3x3") else x
        rows = tables.rows(kernel, seen)
        seconds = autotune.measure(kernel, seen, rows, call, timer)
        if not seconds:
            raise FaststyError(f"{kernel}: no row of its table fits on {x.device}")
        best = min(seconds, key=seconds.__getitem__)
        default = seconds.get(rows[0], float("inf"))
        results.append(Tuned(kernel, best, seconds[best], default, len(seconds)))
    return results


def _calls(x: Tensor, kernels: tuple[str, ...]) -> dict[str, Callable[[], object]]:
    """A call of each kernel; of instance norm with weight, bias and ReLU."""
    raw, c = torch.ops.faststy, x.shape[1]
    calls: dict[str, Callable[[], object]] = {}
    if "instance_norm" in kernels:
        weight, bias = x.new_ones(c), x.new_zeros(c)
        y, mean, rstd = raw.instance_norm_fwd(x, weight, bias, None, 1e-5, "relu")
        calls["instance_norm_fwd"] = lambda: raw.instance_norm_fwd(
            x, weight, bias, None, 1e-5, "relu"
        )
        calls["instance_norm_bwd"] = lambda: raw.instance_norm_bwd(
            y, x, mean, rstd, weight, bias, None, "relu", False
        )
    if "gram" in kernels:
        gram = raw.gram_fwd(x, None)
        calls["gram_fwd"] = lambda: raw.gram_fwd(x, None)
        calls["gram_bwd"] = lambda: raw.gram_bwd(gram, x, None, None)
    if "conv3x3" in kernels and min(x.shape[2:]) > 1:
        last = x.contiguous(memory_format=CHANNELS_LAST)
        filters = x.new_ones(c, c, 3, 3).contiguous(memory_format=CHANNELS_LAST)
        name = import_module("faststy.kernels.tuning").conv_kernel(c)
        # Not the raw op: the extension, which has no such sizes, may compute that.
        convolve = launcher("conv3x3", "conv3x3_fwd", x.device.type)
        calls[name] = lambda: convolve([last], filters, None, None, None, 0.0, False)
    return calls
