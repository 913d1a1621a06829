"""Convolutions with what follows them: on a GPU that is one pass, not two or three."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from faststy.ops.bias_activation import Activation, bias_activation
from faststy.ops.dispatch import by_kernels
from faststy.ops.max_pool import max_pool
from faststy.ops.reference import LEAKY_SLOPE


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: Activation | None = None,
    *,
    stride: int = 1,
    padding: int = 0,
    pool: bool = False,
) -> Tensor:
    """`activation(F.conv2d(x, weight, bias, stride, padding))`, and between the two maxima of 2x2.

    Args:
        x: [N, C, H, W], in any dtype and memory layout that `F.conv2d` takes.
        weight: [K, C, h, w] of the dtype of `x`; of any float dtype under autocast.
        bias: [K] likewise, or None.
        activation: "relu", "leaky_relu" (slope 0.2) or None.
        stride: pixels from one place of the filters to the next, both ways.
        padding: zeros around the picture, as many on each side.
        pool: whether to take the maximum of each 2x2 pixels.

    Returns:
        [N, K, H', W'], as `F.conv2d` gives it, half the size after pooling; differentiable, with a
        bias or pooling on CUDA once.

    Raises:
        What `F.conv2d`, `max_pool` and `bias_activation` raise: it checks nothing itself.
    """
    if bias is not None and by_kernels(x):
        y = F.conv2d(x, weight, None, stride, padding)
        # What is added to all does not change which is largest: after pooling it is a quarter.
        return bias_activation(max_pool(y) if pool else y, bias, activation)
    y = F.conv2d(x, weight, bias, stride, padding)
    return activate_(max_pool(y) if pool else y, activation)


def activate_(x: Tensor, activation: Activation | None) -> Tensor:
    """`activation(x)`, in place."""
    if activation == "relu":
        return F.relu_(x)
    return F.leaky_relu_(x, LEAKY_SLOPE) if activation == "leaky_relu" else x
