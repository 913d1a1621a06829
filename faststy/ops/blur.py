"""The smallest blur, for nets that train: it takes away what alternates from pixel to pixel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from faststy.ops import checks, reference
from faststy.ops.autograd import apply
from faststy.ops.dispatch import by_kernels, define
from faststy.ops.reference import layout


def blur(x: Tensor) -> Tensor:
    """`x` convolved with (1 2 1)/4 both ways; a flat picture stays flat to its borders.

    Args:
        x: [N, C, H, W] float16, bfloat16, float32 or float64, in either memory layout.

    Returns:
        [N, C, H, W] with the dtype and, on CUDA, the memory layout of `x`. Differentiable.

    Raises:
        TypeError, ValueError: a wrong dtype or rank.
    """
    checks.features(x)
    if not by_kernels(x, x.shape[1:].numel()):
        return reference.blur(x)
    return apply(_Blur, x)  # type: ignore[no-any-return]


class _Blur(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.ops.faststy.blur_fwd(x)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        return apply(_Blur, dy)  # type: ignore[no-any-return]


def _blur_fake(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=layout(x))


define("blur_fwd(Tensor x) -> Tensor", _blur_fake)
