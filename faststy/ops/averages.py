"""Pictures at half and at quarter size by averaging, for nets that train."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from faststy.ops import checks, reference
from faststy.ops.autograd import apply, differentiated_again
from faststy.ops.dispatch import by_raw_op, define
from faststy.ops.reference import CHANNELS_LAST, PLANAR, layout


def averages(x: Tensor, count: int = 2) -> list[Tensor]:
    """The averages of each 2x2 pixels, of each 4x4 and so on: `count` smaller pictures.

    `torch.nn.functional.avg_pool2d(x, 2)`, `(x, 4)` …; two of them are made in one pass, and their
    gradients in another.

    Args:
        x: [N, C, H, W] float16, bfloat16, float32 or float64, in either memory layout; H and W of
            at least 2 to the power of `count`.

    Returns:
        [N, C, H // 2, W // 2], [N, C, H // 4, W // 4] … with the dtype and the memory layout of
        `x`.

    Raises:
        TypeError, ValueError: a wrong dtype, rank, size or count.
    """
    checks.features(x)
    if count < 0:
        raise ValueError(f"count: expected at least 0, got {count}")
    h, w = x.shape[2:]
    if min(h, w) < 2**count:
        raise ValueError(f"x: expected H and W of at least {2**count}, got {[h, w]}")
    if count != 2 or not by_raw_op("averages", x, x.shape[1:].numel()):
        return [reference.average(x, 2**i) for i in range(1, count + 1)]
    return list(apply(_Averages, x))


class _Averages(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        ctx.shape, ctx.channels_last = x.shape, layout(x) == CHANNELS_LAST
        half, quarter = torch.ops.faststy.averages_fwd(x)
        return half, quarter

    @staticmethod
    def backward(ctx: Any, dhalf: Tensor, dquarter: Tensor) -> tuple[Tensor | None, ...]:
        if differentiated_again():
            anywhere = dhalf.new_zeros(ctx.shape).requires_grad_()  # the gradient is the same
            both = [reference.average(anywhere, scale) for scale in (2, 4)]
            return torch.autograd.grad(both, anywhere, (dhalf, dquarter), create_graph=True)
        arguments = (dhalf, dquarter, *ctx.shape[2:], ctx.channels_last)
        return (torch.ops.faststy.averages_bwd(*arguments),)


def _fwd_fake(x: Tensor) -> tuple[Tensor, Tensor]:
    (n, c, h, w), memory = x.shape, layout(x)
    half = x.new_empty((n, c, h // 2, w // 2)).contiguous(memory_format=memory)
    quarter = x.new_empty((n, c, h // 4, w // 4)).contiguous(memory_format=memory)
    return half, quarter


def _bwd_fake(
    dhalf: Tensor, dquarter: Tensor, height: int, width: int, channels_last: bool
) -> Tensor:
    memory = CHANNELS_LAST if channels_last else PLANAR
    shape = (*dhalf.shape[:2], height, width)
    return torch.empty(shape, dtype=dhalf.dtype, device=dhalf.device, memory_format=memory)


define("averages_fwd(Tensor x) -> (Tensor, Tensor)", _fwd_fake)
define(
    "averages_bwd(Tensor dhalf, Tensor dquarter, int height, int width, bool channels_last) "
    "-> Tensor",
    _bwd_fake,
)
