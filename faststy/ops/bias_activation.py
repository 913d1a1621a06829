"""A bias and an activation in one pass: what follows a convolution."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from faststy.ops import checks, reference
from faststy.ops.autograd import apply, once_differentiable
from faststy.ops.dispatch import by_kernels, define
from faststy.ops.reference import layout, wide

Activation = Literal["relu", "leaky_relu"]
ACTIVATIONS = ("relu", "leaky_relu")  # those whose result tells their gradient


def bias_activation(x: Tensor, bias: Tensor, activation: Activation | None = None) -> Tensor:
    """`activation(x + bias)`. Backward needs the result, not `x`.

    Args:
        x: [N, C, H, W] float16, bfloat16, float32 or float64, in either memory layout. The
            arithmetic is in float32 (float64 for float64).
        bias: [C], of any of these dtypes.
        activation: "relu", "leaky_relu" (slope 0.2) or None.

    Returns:
        [N, C, H, W] with the dtype and the memory layout of `x`; on CUDA differentiable once.

    Raises:
        TypeError, ValueError: a wrong dtype, rank, shape, device or activation.
    """
    checks.features(x)
    checks.shaped(bias, "bias", {"[C]": x.shape[1:2]}, like=x)
    checks.activation(activation, ACTIVATIONS)
    if not by_kernels(x, x.shape[1:].numel()):
        return reference.bias_activation(x, bias, activation)
    return apply(_BiasActivation, x, bias, activation or "none")  # type: ignore[no-any-return]


class _BiasActivation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor, activation: str) -> Tensor:
        y = torch.ops.faststy.bias_activation_fwd(x, bias, activation)
        ctx.activation, ctx.dtype = activation, bias.dtype
        ctx.save_for_backward(y if activation != "none" else None)
        return y  # type: ignore[no-any-return]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        (y,) = ctx.saved_tensors
        for_bias = ctx.needs_input_grad[1]
        if y is None and not for_bias:
            return dy, None, None
        arguments = (dy, y, ctx.activation, for_bias)
        dx, dbias = torch.ops.faststy.bias_activation_bwd(*arguments)
        return dy if y is None else dx, dbias.to(ctx.dtype) if for_bias else None, None


def _fwd_fake(x: Tensor, bias: Tensor, activation: str) -> Tensor:
    return torch.empty_like(x, memory_format=layout(x))


def _bwd_fake(dy: Tensor, y: Tensor | None, activation: str, bias: bool) -> tuple[Tensor, Tensor]:
    dx = dy.new_empty(0) if y is None else torch.empty_like(y, memory_format=layout(y))
    return dx, dy.new_empty(dy.shape[1] if bias else 0, dtype=wide(dy.dtype))


define("bias_activation_fwd(Tensor x, Tensor bias, str activation) -> Tensor", _fwd_fake)
define(
    "bias_activation_bwd(Tensor dy, Tensor? y, str activation, bool bias) -> (Tensor, Tensor)",
    _bwd_fake,
)
