"""A 3x3 convolution with scale, bias, residual and activation in one op, for painting only.

On a CPU by minimal filtering, with a quarter of the multiplications (Lavin & Gray, "Fast Algorithms
for Convolutional Neural Networks", 2016). On a GPU the extension takes few channels in half
precision (csrc/conv3x3_cuda.cu), Triton the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from faststy.ops import checks
from faststy.ops.bias_activation import Activation
from faststy.ops.dispatch import HALVES, define
from faststy.ops.reference import CHANNELS_LAST, LEAKY_SLOPE, wide

SLOPES = {None: 1.0, "relu": 0.0, "leaky_relu": LEAKY_SLOPE}


def conv3x3(
    inputs: Tensor | Sequence[Tensor],
    weight: Tensor,
    scale: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    activation: Activation | None = None,
    residual: Tensor | None = None,
    moments: bool = False,
) -> tuple[Tensor, Tensor]:
    """`activation(convolved · scale + bias + residual)`; reflection makes the borders.

    Args:
        inputs: [N, C, H, W] float16, bfloat16, float32 or float64, H and W at least 2; or several
            that stand for one of all their channels.
        weight: [K, C, 3, 3] of the dtype of the inputs; `weight_layout` says how it is not copied.
        scale: [K], or [N, K] for one of each sample.
        bias: [K] or [N, K].
        activation: "relu", "leaky_relu" (slope 0.2) or None.
        residual: [N, K, H, W], added before the activation.
        moments: whether mean and variance of what was convolved are wanted.

    Returns:
        [N, K, H, W], channels_last, with the dtype of the inputs, under autocast, too, without
        gradient; and the mean and variance of what was convolved, before scale and bias, over N, H
        and W: [2, K], or [0, K] if not wanted, float32 (float64 for float64).

        On a CPU what is not finite spreads over tiles of 4x4 pixels, and very large values overflow
        sooner than in torch.

    Raises:
        TypeError, ValueError: a wrong dtype, rank, shape, device or activation.
    """
    parts = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    if not parts:
        raise ValueError("inputs: expected a tensor, or several, got none")
    for part in parts:
        checks.features(part, "inputs")
    like = parts[0]
    n, channels, height, width = like.shape
    for part in parts[1:]:
        channels += part.shape[1]
        if part.shape != (n, part.shape[1], height, width):
            shapes = [list(part.shape) for part in parts]
            raise ValueError(f"inputs: expected tensors of one batch and size, got {shapes}")
    if min(height, width) < 2:
        raise ValueError(f"inputs: expected two rows and columns or more, got {height} x {width}")
    k = checks.filters(weight, channels, like)
    for part in parts:
        if part.dtype != weight.dtype:
            raise TypeError(f"inputs: expected {weight.dtype} as the weight, got {part.dtype}")
    for vector, name in ((scale, "scale"), (bias, "bias")):
        if vector is not None:
            checks.shaped(vector, name, {"[K]": (k,), "[N, K]": (n, k)}, like)
    if residual is not None:
        checks.shaped(residual, "residual", {"[N, K, H, W]": (n, k, height, width)}, like)
        residual = residual.contiguous(memory_format=CHANNELS_LAST)
    if activation not in SLOPES:
        raise ValueError(f"activation: expected relu, leaky_relu or None, got {activation!r}")
    parts = [part.contiguous(memory_format=CHANNELS_LAST) for part in parts]
    with torch.no_grad():
        y, found = torch.ops.faststy.conv3x3_fwd(
            parts,
            weight.contiguous(memory_format=weight_layout(weight)),
            _in_rows(scale),
            _in_rows(bias),
            residual,
            SLOPES[activation],
            moments,
        )
    return y, found


def weight_layout(weight: Tensor) -> torch.memory_format:
    """The layout that weights are read in on their device."""
    return CHANNELS_LAST if weight.is_cuda else torch.contiguous_format


def _in_rows(vector: Tensor | None) -> Tensor | None:
    return vector if vector is None or vector.stride(-1) == 1 else vector.contiguous()


def _fake(
    inputs: list[Tensor],
    weight: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    slope: float,
    moments: bool,
) -> tuple[Tensor, Tensor]:
    n, _, height, width = inputs[0].shape
    y = inputs[0].new_empty((n, len(weight), height, width))
    found = y.new_empty((2 if moments else 0, len(weight)), dtype=wide(y.dtype))
    return y.to(memory_format=CHANNELS_LAST), found


def few_enough(x: Tensor, grown: int = 0) -> bool:
    """Whether csrc/conv3x3_cuda.cu can number the tiles of `x` [N, C, H, W], which it divides by
    multiplying with reciprocals; `grown` is by how many pixels results are larger each way.
    """
    n, _, height, width = x.shape
    down, across = -(-(height + 2 * grown) // 8), -(-(width + 2 * grown) // 32)
    return n * down * across * across * (1 if n == 1 else down) < 2**32


def _fits(
    inputs: list[Tensor],
    weight: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    *others: Any,
) -> bool:
    """Whether csrc/conv3x3_cuda.cu takes these: so little that shared memory holds the weights."""
    (k, c), dtype = weight.shape[:2], weight.dtype
    vectors = [v.dtype for v in (scale, bias) if v is not None]
    one_dtype = all(t.dtype == dtype for t in inputs) and {*vectors} <= {dtype, torch.float32}
    held = c * (k + -k % 8)  # by blocks of eight filters
    small = len(inputs) <= 2 and c <= 96 and k <= 64 and held <= 4096 and few_enough(inputs[0])
    if residual is not None:  # two of its values are read at once
        one_dtype = one_dtype and residual.dtype == dtype
        small = small and k % 2 == 0 and residual.data_ptr() % 4 == 0
    return dtype in HALVES and one_dtype and small


define(
    "conv3x3_fwd(Tensor[] inputs, Tensor weight, Tensor? scale, Tensor? bias, Tensor? residual, "
    "float slope, bool moments) -> (Tensor, Tensor)",
    _fake,
    _fits,
)
