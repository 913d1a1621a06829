"""A 3x3 convolution of a net that does not learn, with bias and ReLU, and gradients for its input.

On a GPU the extension takes few channels in half precision (csrc/conv3x3_cuda.cu): cuDNN fills its
tiles badly with these, and adds biases in a pass of their own. Everything else is torch's.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from faststy.ops import checks
from faststy.ops.autograd import once_differentiable
from faststy.ops.dispatch import HALVES, by_extension, define
from faststy.ops.reference import CHANNELS_LAST

MOST = 64  # channels, on either side


def frozen_conv3x3(x: Tensor, weight: Tensor, bias: Tensor, *, relu: bool = False) -> Tensor:
    """`conv2d(x, weight, bias, padding=1)`, and then its positive part if `relu`.

    Args:
        x: [N, C, H, W] float16, bfloat16 or float32; converted to the dtype of the weights where
            those are half precision on a GPU, as autocast does.
        weight: [K, C, 3, 3] that gets no gradient.
        bias: [K], likewise, in the dtype of the weights.

    Returns:
        [N, K, H, W] in the dtype of the weights; once differentiable, with respect to `x`.

    Raises:
        TypeError, ValueError: a wrong dtype, rank, shape or device.
    """
    checks.features(x)
    c = x.shape[1]
    if weight.ndim != 4:
        raise ValueError(f"weight: expected [K, {c}, 3, 3], got {list(weight.shape)}")
    k = len(weight)
    checks.shaped(weight, "weight", {f"[K, {c}, 3, 3]": (k, c, 3, 3)}, x)
    checks.shaped(bias, "bias", {"[K]": (k,)}, x)
    if not _fits(x, weight):
        y = F.conv2d(x, weight, bias, padding=1)
        return F.relu_(y) if relu else y
    x = x.to(weight.dtype, memory_format=CHANNELS_LAST)
    return _FrozenConv3x3.apply(x, weight, bias, relu)  # type: ignore[no-any-return, no-untyped-call]


def _fits(x: Tensor, weight: Tensor) -> bool:
    k, c = weight.shape[:2]
    small = k <= MOST and c <= MOST and weight.dtype in HALVES and x.numel() > 0
    return small and by_extension("frozen_conv3x3", x)


class _FrozenConv3x3(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, relu: bool) -> Tensor:
        weight = weight.contiguous(memory_format=CHANNELS_LAST)
        y: Tensor = torch.ops.faststy.frozen_conv3x3_fwd(x, weight, bias, relu)
        ctx.save_for_backward(weight, *[y] * relu)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        weight, *gate = ctx.saved_tensors
        turned = weight.flip(2, 3).transpose(0, 1).contiguous(memory_format=CHANNELS_LAST)
        dy = dy.contiguous(memory_format=CHANNELS_LAST)
        dx = torch.ops.faststy.frozen_conv3x3_bwd(dy, turned, *gate or [None])
        return dx, None, None, None


def _fwd_fake(x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool) -> Tensor:
    y = x.new_empty((len(x), len(weight), *x.shape[2:]))
    return y.to(memory_format=CHANNELS_LAST)


def _bwd_fake(dy: Tensor, turned: Tensor, gate: Tensor | None) -> Tensor:
    return _fwd_fake(dy, turned, None, False)


define("frozen_conv3x3_fwd(Tensor x, Tensor weight, Tensor? bias, bool relu) -> Tensor", _fwd_fake)
define("frozen_conv3x3_bwd(Tensor dy, Tensor turned, Tensor? gate) -> Tensor", _bwd_fake)
