"""Padding by reflection, for nets that train: in the memory layout of what is padded."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from faststy.ops import checks, reference
from faststy.ops.autograd import apply, differentiated_again, gradients
from faststy.ops.dispatch import by_raw_op, define
from faststy.ops.reference import CHANNELS_LAST, PLANAR, layout


def reflection_pad(x: Tensor, pad: int = 1) -> Tensor:
    """`x` with `pad` rows and columns more on each side, mirrored at its outermost ones.

    `torch.nn.functional.pad(x, [pad] * 4, "reflect")`, which is slow in channels_last; on CUDA it
    pads in NCHW alone, and adds gradients in no fixed order.

    Args:
        x: [N, C, H, W] float16, bfloat16, float32 or float64, in either memory layout.
        pad: from 0 to the smaller of H and W less one.

    Returns:
        [N, C, H + 2·pad, W + 2·pad] with the dtype and the memory layout of `x`, under autocast,
        too.

    Raises:
        TypeError, ValueError: a wrong dtype, rank or pad.
    """
    checks.features(x)
    _, c, h, w = x.shape
    if isinstance(pad, float) or not 0 <= pad < min(h, w):
        raise ValueError(
            f"pad: expected a whole number from 0 to less than H and W, {[h, w]}, got {pad}"
        )
    if not by_raw_op("reflection_pad", x, c * (h + 2 * pad) * (w + 2 * pad)):
        return reference.reflection_pad(x, pad)
    return apply(_ReflectionPad, x, pad)  # type: ignore[no-any-return]


class _ReflectionPad(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, pad: int) -> Tensor:
        ctx.shape, ctx.pad, ctx.channels_last = x.shape, pad, layout(x) == CHANNELS_LAST
        return torch.ops.faststy.reflection_pad_fwd(x, pad)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        if differentiated_again():
            anywhere = dy.new_zeros(ctx.shape).requires_grad_()  # the gradient is the same
            pad = partial(reference.reflection_pad, pad=ctx.pad)
            return *gradients(pad, (anywhere,), dy), None
        return torch.ops.faststy.reflection_pad_bwd(dy, ctx.pad, ctx.channels_last), None


def _fwd_fake(x: Tensor, pad: int) -> Tensor:
    n, c, h, w = x.shape
    return _empty(x, (n, c, h + 2 * pad, w + 2 * pad), layout(x))


def _bwd_fake(dy: Tensor, pad: int, channels_last: bool) -> Tensor:
    n, c, h, w = dy.shape
    memory_format = CHANNELS_LAST if channels_last else PLANAR
    return _empty(dy, (n, c, h - 2 * pad, w - 2 * pad), memory_format)


def _empty(like: Tensor, shape: tuple[int, ...], memory_format: torch.memory_format) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=memory_format)


define("reflection_pad_fwd(Tensor x, int pad) -> Tensor", _fwd_fake)
define("reflection_pad_bwd(Tensor dy, int pad, bool channels_last) -> Tensor", _bwd_fake)
