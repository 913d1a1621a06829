"""Instance normalisation with scale, shift, residual and activation in one op.

Ulyanov et al., "Instance Normalization: The Missing Ingredient for Fast Stylization", 2016; with a
weight and bias per sample it is the conditional form of Dumoulin et al. (2017) and AdaIN (Huang &
Belongie, 2017).
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from faststy.ops import checks, reference
from faststy.ops.autograd import apply, differentiated_again, gradients
from faststy.ops.dispatch import define, is_traced
from faststy.ops.reference import evenly_spaced, layout, wide

Activation = Literal["relu", "leaky_relu", "silu"]
ACTIVATIONS = ("relu", "leaky_relu", "silu")


def instance_norm(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    activation: Activation | None = None,
    residual: Tensor | None = None,
    statistics: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """`activation(normalised(x) · weight + bias + residual)`, each plane normalised on its own.

    Args:
        x: [N, C, H, W] float16, bfloat16, float32 or float64, in either memory layout. The
            arithmetic is in float32 (float64 for float64).
        weight: [C], or [N, C] for a scale of each sample.
        bias: [C] or [N, C].
        eps: added to the variance.
        activation: "relu", "leaky_relu" (slope 0.2), "silu" or None.
        residual: [N, C, H, W], added before the activation.
        statistics: `(mean, rstd)`, each [C] or [N, C], used instead of those of `x`; constants,
            without gradient. `instance_statistics` makes them.

    Returns:
        [N, C, H, W] with the dtype and the memory layout of `x`.

    Raises:
        TypeError, ValueError: a wrong dtype, rank, shape, device or activation.
    """
    checks.features(x)
    n, c, _, _ = x.shape
    shapes = {"[C]": (c,), "[N, C]": (n, c)}
    if weight is not None:
        checks.shaped(weight, "weight", shapes, like=x)
    if bias is not None:
        checks.shaped(bias, "bias", shapes, like=x)
    if residual is not None:
        checks.shaped(residual, "residual", {"the shape of x": x.shape}, like=x)
    checks.activation(activation, ACTIVATIONS)
    if not eps >= 0:
        raise ValueError(f"eps: expected at least 0, got {eps}")
    mean = rstd = None
    if statistics is not None:
        if not isinstance(statistics, tuple | list) or len(statistics) != 2:
            raise TypeError(
                f"statistics: expected a pair (mean, rstd), got {type(statistics).__name__}"
            )
        mean, rstd = statistics
        checks.shaped(mean, "statistics: mean", shapes, like=x)
        checks.shaped(rstd, "statistics: rstd", shapes, like=x)
        mean, rstd = (s.detach().to(wide(x.dtype)).expand(n, c) for s in (mean, rstd))
    if is_traced():
        options: dict[str, Any] = {"activation": activation, "residual": residual}
        return reference.instance_norm(x, weight, bias, eps, statistics=statistics, **options)
    args = (evenly_spaced(x), weight, bias, residual, mean, rstd, eps, activation or "none")
    return apply(_InstanceNorm, *args)  # type: ignore[no-any-return]


def instance_statistics(x: Tensor, eps: float = 1e-5) -> tuple[Tensor, Tensor]:
    """Mean and 1/√(variance + eps) of each plane: what `instance_norm` normalises with.

    Args:
        x: [N, C, H, W], any supported float dtype and layout.
        eps: added to the variance.

    Returns:
        mean and rstd, each [N, C], float32 (float64 for float64 `x`), without gradient.

    Raises:
        TypeError, ValueError: a wrong dtype or rank.
    """
    checks.features(x)
    mean, rstd = torch.ops.faststy.instance_norm_stats(x.detach(), eps)
    return mean, rstd


class _InstanceNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        mean: Tensor | None,
        rstd: Tensor | None,
        eps: float,
        activation: str,
    ) -> Tensor:
        ops = torch.ops.faststy
        ctx.fixed = mean is not None
        ctx.activation = activation
        if ctx.fixed:
            y = ops.instance_norm_apply(x, mean, rstd, weight, bias, residual, activation)
        else:
            y, mean, rstd = ops.instance_norm_fwd(x, weight, bias, residual, eps, activation)
        # Without an activation the residual's gradient is dy, and its values are not needed.
        kept = residual if activation != "none" else None
        ctx.has_residual, ctx.eps = residual is not None, eps
        ctx.save_for_backward(x, mean, rstd, weight, bias, kept)
        return y  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        if differentiated_again():
            return _InstanceNorm._backward_again(ctx, dy)
        x, mean, rstd, weight, bias, residual = ctx.saved_tensors
        dx, dresidual, dweight, dbias = torch.ops.faststy.instance_norm_bwd(
            dy, x, mean, rstd, weight, bias, residual, ctx.activation, ctx.fixed
        )
        if residual is None:
            dresidual = dy if ctx.has_residual else None
        return (
            dx,
            _sum_to(dweight, weight) if ctx.needs_input_grad[1] else None,
            _sum_to(dbias, bias) if ctx.needs_input_grad[2] else None,
            dresidual,
            *[None] * 4,
        )

    @staticmethod
    def _backward_again(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """As `backward`, by the reference, so that it can itself be differentiated."""
        x, mean, rstd, *parameters, residual = ctx.saved_tensors

        def norm(
            x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None
        ) -> Tensor:
            return reference.instance_norm(
                x,
                weight,
                bias,
                ctx.eps,
                activation=None if ctx.activation == "none" else ctx.activation,
                residual=residual,
                statistics=(mean, rstd) if ctx.fixed else None,
            )

        *found, dresidual = gradients(norm, (x, *parameters, residual), dy)
        if residual is None:
            dresidual = dy if ctx.has_residual else None
        return (*found, dresidual, *[None] * 4)


def _sum_to(grad: Tensor, parameter: Tensor) -> Tensor:
    """A gradient [N, C], summed over the samples that share a parameter [C]."""
    return (grad.sum(0) if parameter.ndim == 1 else grad).to(parameter.dtype)


def _stats_fake(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    mean = x.new_empty(x.shape[:2], dtype=wide(x.dtype))
    return mean, torch.empty_like(mean)


def _fwd_fake(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    eps: float,
    activation: str,
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x, memory_format=layout(x)), *_stats_fake(x, eps)


def _apply_fake(x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x, memory_format=layout(x))


def _bwd_fake(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    fixed: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dx = torch.empty_like(x, memory_format=layout(x))
    if residual is None or activation == "none":
        dresidual = x.new_empty(0)
    else:
        dresidual = torch.empty_like(dx, dtype=residual.dtype)
    return dx, dresidual, *_stats_fake(x, 0)


define("instance_norm_stats(Tensor x, float eps) -> (Tensor, Tensor)", _stats_fake)
define(
    "instance_norm_fwd(Tensor x, Tensor? weight, Tensor? bias, Tensor? residual, float eps, "
    "str activation) -> (Tensor, Tensor, Tensor)",
    _fwd_fake,
)
define(
    "instance_norm_apply(Tensor x, Tensor mean, Tensor rstd, Tensor? weight, Tensor? bias, "
    "Tensor? residual, str activation) -> Tensor",
    _apply_fake,
)
define(
    "instance_norm_bwd(Tensor dy, Tensor x, Tensor mean, Tensor rstd, Tensor? weight, "
    "Tensor? bias, Tensor? residual, str activation, bool fixed) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    _bwd_fake,
)
