"""The maxima of 2x2 pixels, for nets that train: in the memory layout of what is pooled."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from faststy.ops import checks, reference
from faststy.ops.autograd import apply, differentiated_again, gradients
from faststy.ops.dispatch import by_raw_op, define
from faststy.ops.reference import layout


def max_pool(x: Tensor) -> Tensor:
    """The maximum of each 2x2 pixels; at odd sizes the last row or column is left out.

    `torch.nn.functional.max_pool2d(x, 2)`, which keeps an index of eight bytes per maximum.

    Args:
        x: [N, C, H, W] float16, bfloat16, float32 or float64, in either memory layout; H and W of
            at least 2.

    Returns:
        [N, C, H // 2, W // 2] with the dtype and the memory layout of `x`. The gradient goes to the
        first of equal maxima.

    Raises:
        TypeError, ValueError: a wrong dtype, rank or size.
    """
    checks.features(x)
    h, w = x.shape[2:]
    if min(h, w) < 2:
        raise ValueError(f"x: expected H and W of at least 2, got {[h, w]}")
    if not by_raw_op("max_pool", x, x.shape[1:].numel()):
        return reference.max_pool(x)
    return apply(_MaxPool, x)  # type: ignore[no-any-return]


class _MaxPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.ops.faststy.max_pool_fwd(x)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        if differentiated_again():
            return gradients(reference.max_pool, ctx.saved_tensors, dy)
        return (torch.ops.faststy.max_pool_bwd(dy, *ctx.saved_tensors),)


def _fwd_fake(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    shape = (n, c, h // 2, w // 2)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout(x))


def _bwd_fake(dy: Tensor, x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=layout(x))


define("max_pool_fwd(Tensor x) -> Tensor", _fwd_fake)
define("max_pool_bwd(Tensor dy, Tensor x) -> Tensor", _bwd_fake)
