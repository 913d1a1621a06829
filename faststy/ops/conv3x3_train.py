"""3x3 convolutions of nets in training: of a net that learns, and of one that does not.

On a GPU the extension takes few channels in half precision (csrc/conv3x3_cuda.cu): cuDNN fills its
tiles badly with these, and pads, adds biases and activates in passes of their own. On a CPU it
takes float32 in channels_last, by minimal filtering (csrc/conv3x3_cpu.cpp): nets that are frozen,
and gradients of inputs. All others are torch's, with what follows in one pass of Triton's on a GPU.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from faststy.ops import checks
from faststy.ops.autograd import apply, once_differentiable
from faststy.ops.bias_activation import Activation, bias_activation
from faststy.ops.conv3x3 import few_enough, weight_layout
from faststy.ops.convolution import activate_, convolve
from faststy.ops.dispatch import HALVES, LARGEST, by_extension, define, is_watched
from faststy.ops.max_pool import max_pool
from faststy.ops.reference import CHANNELS_LAST, PLANAR
from faststy.ops.reflection_pad import reflection_pad

MOST = 64  # channels on either side, on a GPU
LEAST = 72 * 16  # pixels on a CPU: fewer do not pay for the transforms of the weights


def reflected_conv3x3(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: Activation | None = None
) -> Tensor:
    """`activation(conv2d(pad(x, 1, "reflect"), weight, bias))`, in the precision of autocast if on.

    Args:
        x: [N, C, H, W] float16, bfloat16, float32 or float64, H and W at least 2.
        weight: [K, C, 3, 3].
        bias: [K].
        activation: "relu", "leaky_relu" (slope 0.2) or None.

    Returns:
        [N, K, H, W]; differentiable, where the extension computes it once.

    Raises:
        TypeError, ValueError: a wrong dtype, rank, shape or device.
    """
    _check(x, weight, bias)
    if min(x.shape[2:]) < 2:
        raise ValueError(f"x: expected two rows and columns or more, got {list(x.shape)}")
    if not _fits(x, weight, True):
        return convolve(reflection_pad(x), weight, bias, activation)
    x = x.to(_precision(x, weight), memory_format=CHANNELS_LAST)
    if x.is_cuda and bias is not None and activation is not None:  # one pass, there and back
        y = apply(_ReflectedConv3x3, x, weight, None)
        return bias_activation(y, bias, activation)
    y = apply(_ReflectedConv3x3, x, weight, bias)
    return activate_(y, activation)


def frozen_conv3x3(
    x: Tensor, weight: Tensor, bias: Tensor, *, relu: bool = False, pool: bool = False
) -> Tensor:
    """`conv2d(x, weight, bias, padding=1)`, maxima of 2x2 of it if `pool`, then the positive part
    if `relu`; `x` alone learns.

    Args:
        x: [N, C, H, W] float16, bfloat16, float32 or float64; converted to the dtype of the weights
            where those are half precision on a GPU, as autocast does.
        weight: [K, C, 3, 3], without gradient.
        bias: [K] in the dtype of the weights, likewise.
        relu: whether what is below 0 becomes 0.
        pool: whether to take the maximum of each 2x2 pixels; needs two rows and columns.

    Returns:
        [N, K, H, W], or half the size; differentiable with respect to `x`, where the extension
        computes it once. On a CPU what is not finite spreads as in `conv3x3`.

    Raises:
        TypeError, ValueError: a wrong dtype, rank, shape or device.
    """
    _check(x, weight, bias)
    if weight.requires_grad or bias.requires_grad or not _fits(x, weight, False):
        return convolve(x, weight, bias, "relu" if relu else None, padding=1, pool=pool)
    x = x.to(weight.dtype, memory_format=CHANNELS_LAST)
    y: Tensor = apply(_FrozenConv3x3, x, weight, bias, relu)
    return max_pool(y) if pool else y


def _check(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    checks.features(x)
    k = checks.filters(weight, x.shape[1], x)
    if bias is not None:
        checks.shaped(bias, "bias", {"[K]": (k,)}, x)


def _fits(x: Tensor, weight: Tensor, learns: bool) -> bool:
    """Whether the extension takes these, there and back; where it learns, weights also."""
    if not (x.is_cuda or x.is_cpu) or x.numel() == 0 or is_watched():
        return False
    (k, c), dtype = weight.shape[:2], _precision(x, weight)
    if x.is_cuda:
        few = c <= (48 if learns else MOST)
        few |= learns and c == 96 and k <= 32 and not x.requires_grad  # two frames' cells
        suited = few and k <= MOST and few_enough(x, grown=1)
        suited &= dtype == torch.bfloat16 if learns else weight.dtype in HALVES
        if learns:  # Triton's borders and biases come after it in the backward pass
            suited &= max(c, k) * (x.shape[2] + 2) * (x.shape[3] + 2) < LARGEST
    elif torch.compiler.is_compiling():  # it knows torch's, and exports them
        return False
    else:
        suited = dtype == x.dtype == torch.float32 and x.is_contiguous(memory_format=CHANNELS_LAST)
        suited &= x.shape[0] * x.shape[2:].numel() >= LEAST
    return suited and by_extension("conv3x3_train", x)


def _precision(x: Tensor, weight: Tensor) -> torch.dtype:
    """That of autocast, if it is on, or of the weights."""
    device = x.device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return weight.dtype


def _turned(weight: Tensor) -> Tensor:
    """The filters [C, K, 3, 3] that gradients of inputs are convolved with."""
    return weight.flip(2, 3).transpose(0, 1).contiguous(memory_format=weight_layout(weight))


class _ReflectedConv3x3(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.bias_dtype = None if bias is None else bias.dtype
        ctx.save_for_backward(x, weight)
        weight = weight.to(x.dtype, memory_format=weight_layout(weight))
        if not x.is_cuda:
            # What is flat stays flat; minimal filtering would vary it by rounding, of which the
            # norms that follow make strokes.
            return convolve(reflection_pad(x), weight, bias)
        if bias is not None and bias.dtype != torch.float32:
            bias = bias.to(x.dtype)
        return torch.ops.faststy.conv3x3_train_fwd(x, weight, bias, True, False)  # type: ignore[no-any-return]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        dy = dy.contiguous(memory_format=CHANNELS_LAST)
        dx = dw = db = None
        if ctx.needs_input_grad[0]:
            turned = _turned(weight.to(x.dtype))
            padded = torch.ops.faststy.conv3x3_train_input_grad(dy, turned, None, True)
            dx = torch.ops.faststy.reflection_pad_bwd(padded, 1, True)
        if ctx.needs_input_grad[1]:
            dw = torch.ops.faststy.conv3x3_train_weight_grad(dy, x).to(weight.dtype)
        if ctx.needs_input_grad[2]:
            _, db = torch.ops.faststy.bias_activation_bwd(dy, None, "none", True)
            db = db.to(ctx.bias_dtype)
        return dx, dw, db


class _FrozenConv3x3(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, relu: bool) -> Tensor:
        weight = weight.contiguous(memory_format=weight_layout(weight))
        y: Tensor = torch.ops.faststy.conv3x3_train_fwd(x, weight, bias, False, relu)
        ctx.save_for_backward(weight, *[y] * relu)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        weight, *gate = ctx.saved_tensors
        dy = dy.contiguous(memory_format=CHANNELS_LAST)
        given = dy, _turned(weight), *(gate or [None]), False
        return torch.ops.faststy.conv3x3_train_input_grad(*given), None, None, None


def _fwd_fake(x: Tensor, weight: Tensor, bias: Tensor | None, reflect: bool, relu: bool) -> Tensor:
    return _empty(x, x.shape[0], len(weight), *x.shape[2:])


def _input_grad_fake(dy: Tensor, turned: Tensor, gate: Tensor | None, padded: bool) -> Tensor:
    n, _, h, w = dy.shape
    return _empty(dy, n, len(turned), h + 2 * padded, w + 2 * padded)


def _weight_grad_fake(dy: Tensor, x: Tensor) -> Tensor:
    return _empty(x, dy.shape[1], x.shape[1], 3, 3).float()


def _empty(like: Tensor, *shape: int) -> Tensor:
    # Of one channel, layouts are one.
    layout = PLANAR if shape[1] == 1 else CHANNELS_LAST
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=layout)


define(
    "conv3x3_train_fwd(Tensor x, Tensor weight, Tensor? bias, bool reflect, bool relu) -> Tensor",
    _fwd_fake,
)
define(
    "conv3x3_train_input_grad(Tensor dy, Tensor turned, Tensor? gate, bool padded) -> Tensor",
    _input_grad_fake,
)
define("conv3x3_train_weight_grad(Tensor dy, Tensor x) -> Tensor", _weight_grad_fake)
