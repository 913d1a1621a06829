"""Gram matrices and the relative distance between them.

The Gram matrix of feature maps is the style of a picture as Gatys et al. define it ("Image Style
Transfer Using Convolutional Neural Networks", 2016).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from faststy.ops import checks, reference
from faststy.ops.autograd import apply, differentiated_again, gradients
from faststy.ops.dispatch import define, is_traced
from faststy.ops.reference import evenly_spaced, layout, wide


def gram(x: Tensor, center: bool = False) -> Tensor:
    """Gram matrices: sums over pixels of products of channels, divided by C·H·W.

    Args:
        x: [N, C, H, W] float16, bfloat16, float32 or float64, in either memory layout.
        center: subtract each channel's mean first (a covariance, then).

    Returns:
        [N, C, C], symmetric, float32 (float64 for float64 `x`).

    Raises:
        TypeError, ValueError: `x` has another dtype or rank.
    """
    checks.features(x)
    if is_traced():
        return reference.gram(x, center)
    return apply(_Gram, evenly_spaced(x), center)  # type: ignore[no-any-return]


def gram_loss(x: Tensor, target: Tensor, center: bool = False) -> Tensor:
    """Relative Gram distance: mean over N of ‖gram(x) − target‖² / ‖target‖² (Frobenius norms).

    Args:
        x: [N, C, H, W] float16, bfloat16, float32 or float64, in either memory layout.
        target: [C, C] or [N, C, C], a constant: it gets no gradient.
        center: as for `gram`; `target` must have been made the same way.

    Returns:
        A scalar, float32 (float64 for float64 `x`). Differentiable with respect to `x`.

    Raises:
        TypeError, ValueError: a wrong dtype, shape or device, or a target that needs gradients.
    """
    checks.features(x)
    n, c, _, _ = x.shape
    checks.shaped(target, "target", {"[C, C]": (c, c), "[N, C, C]": (n, c, c)}, like=x)
    if target.requires_grad:
        raise ValueError("target: expected a constant, got one that requires gradients: detach it")
    if is_traced():
        return reference.gram_loss(x, target, center)
    return apply(_GramLoss, evenly_spaced(x), target, center)  # type: ignore[no-any-return]


class _Gram(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, center: bool) -> Tensor:
        mean = _mean(x) if center else None
        ctx.save_for_backward(x, mean)
        return torch.ops.faststy.gram_fwd(x, mean)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, dgram: Tensor) -> tuple[Tensor | None, None]:
        x, mean = ctx.saved_tensors
        if differentiated_again():
            again = partial(reference.gram, center=mean is not None)
            return gradients(again, [x], dgram)[0], None
        return torch.ops.faststy.gram_bwd(dgram + dgram.mT, x, mean, None), None


class _GramLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, target: Tensor, center: bool) -> Tensor:
        mean = _mean(x) if center else None
        target = target.to(wide(x.dtype)).contiguous()
        loss, difference, factor = torch.ops.faststy.gram_loss_fwd(x, mean, target)
        ctx.save_for_backward(x, mean, difference, factor, target)
        return loss  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, dloss: Tensor) -> tuple[Tensor | None, None, None]:
        x, mean, difference, factor, target = ctx.saved_tensors
        if differentiated_again():
            again = partial(reference.gram_loss, target=target, center=mean is not None)
            return gradients(again, [x], dloss)[0], None, None
        # What counts of d gram is d gram + d gramᵀ: twice its symmetric part.
        scale = factor * (2 * dloss)
        return torch.ops.faststy.gram_bwd(difference, x, mean, scale), None, None


def _mean(x: Tensor) -> Tensor:
    return x.mean((2, 3), dtype=wide(x.dtype))  # [N, C]


def _gram_fwd_fake(x: Tensor, mean: Tensor | None) -> Tensor:
    return x.new_empty((x.shape[0], x.shape[1], x.shape[1]), dtype=wide(x.dtype))


def _gram_bwd_fake(
    symmetric: Tensor, x: Tensor, mean: Tensor | None, scale: Tensor | None
) -> Tensor:
    return torch.empty_like(x, memory_format=layout(x))


def _gram_loss_fwd_fake(
    x: Tensor, mean: Tensor | None, target: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    gram = _gram_fwd_fake(x, mean)
    return gram.new_empty(()), gram, gram.new_empty(x.shape[0])


define("gram_fwd(Tensor x, Tensor? mean) -> Tensor", _gram_fwd_fake)
define(
    "gram_bwd(Tensor symmetric, Tensor x, Tensor? mean, Tensor? scale) -> Tensor", _gram_bwd_fake
)
define(
    "gram_loss_fwd(Tensor x, Tensor? mean, Tensor target) -> (Tensor, Tensor, Tensor)",
    _gram_loss_fwd_fake,
)
