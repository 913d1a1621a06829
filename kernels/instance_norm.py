# mypy: disable-error-code="no-untyped-def"
"""Instance normalisation, forward and backward.

A *plane* is one channel of one sample: H·W pixels with a mean and a variance of their own. The two
kernels here hold whole planes in registers: one launch each way, and every tensor moves once. A
program takes a *unit*, BC channels of one sample, as a tile [BC, BP] with all pixels in it.

Larger planes are read twice, tile by tile, by the kernels of instance_norm_large.py, where the same
formulas stand once more. Which way a tensor goes is its plan (tuning.plane_plan).
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from faststy.kernels.instance_norm_large import (
    instance_norm_looped_bwd_kernel,
    instance_norm_looped_kernel,
    instance_norm_split_bwd_kernel,
    instance_norm_split_kernel,
    merged,
    partial_results,
    split,
)
from faststy.kernels.tiles import (
    activate,
    activation_grad,
    at,
    load,
    parameter,
    per_channel,
    strided,
)
from faststy.kernels.tuning import layout, norm_row, one_pass_plan, plane_plan, planes

# Hints for readers:
#   tensors are tuples, a pointer and strides (see tiles.py); b_ is a block of their values;
#   i_n is the sample, c0 the first channel, o_c and o_p are channels and pixels of the tile;
#   mask is False beyond the edges.


@triton.jit
def _instance_norm_whole_kernel(
    x, residual, y,  # [N, C, HW]; residual may be None; y is written
    weight, bias,  # [C] or [N, C], or None
    mean_ptr, rstd_ptr,  # [N, C], written
    C, HW, c_blocks, eps,
    ACTIVATION: tl.constexpr, BC: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0).to(tl.int64)
    i_n, c0 = pid // c_blocks, pid % c_blocks * BC
    o_c, o_p = c0 + tl.arange(0, BC), tl.arange(0, BP)
    mask = (o_c[:, None] < C) & (o_p[None, :] < HW)

    b_x = load(x, i_n, c0, 0, mask)
    mean = tl.sum(b_x, 1) / HW  # [BC]
    centered = tl.where(mask, b_x - mean[:, None], 0.0)  # [BC, BP]
    # What the sum was off by: 1e-7 of the mean, which in planes of one value is all there is.
    off = tl.sum(centered, 1) / HW
    mean += off
    variance = tl.maximum(tl.sum(centered * centered, 1) / HW - off * off, 0.0)
    variance = tl.where(off == off, variance, off)  # the maximum drops NaN
    rstd = tl.rsqrt(variance + eps)
    tl.store(mean_ptr + i_n * C + o_c, mean, mask=o_c < C)
    tl.store(rstd_ptr + i_n * C + o_c, rstd, mask=o_c < C)

    b_weight = per_channel(weight, i_n, o_c, C, 1.0)  # [BC, 1]
    b_bias = per_channel(bias, i_n, o_c, C, 0.0)
    z = (centered - off[:, None]) * (rstd[:, None] * b_weight) + b_bias
    if residual is not None:
        z += load(residual, i_n, c0, 0, mask)
    tl.store(at(y, i_n, c0, 0, BC, BP), activate(z, ACTIVATION), mask=mask)


# With x̂ = (x − mean)·rstd, z = x̂·weight + bias + residual and g = dy·activation'(z):
#     dresidual = g,  dbias = Σ g,  dweight = Σ g·x̂,
#     dx = rstd·weight·(g − dbias/HW − x̂·dweight/HW)       (fixed statistics: the first term only)
# x − mean and z are recomputed: that costs a few multiplications, storing them would cost a pass.


@triton.jit
def _instance_norm_whole_bwd_kernel(
    dy, x, residual,  # [N, C, HW]; residual may be None
    dx, dresidual,  # [N, C, HW], written; dresidual may be None
    weight, bias,  # [C] or [N, C], or None
    mean_ptr, rstd_ptr,  # [N, C]
    dweight_ptr, dbias_ptr,  # [N, C], written
    C, HW, c_blocks,
    ACTIVATION: tl.constexpr, FIXED: tl.constexpr, BC: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0).to(tl.int64)
    i_n, c0 = pid // c_blocks, pid % c_blocks * BC
    o_c, o_p = c0 + tl.arange(0, BC), tl.arange(0, BP)
    mask = (o_c[:, None] < C) & (o_p[None, :] < HW)
    mean = per_channel((mean_ptr, C), i_n, o_c, C, 0.0)  # [BC, 1]
    rstd = per_channel((rstd_ptr, C), i_n, o_c, C, 0.0)
    scale = rstd * per_channel(weight, i_n, o_c, C, 1.0)
    b_bias = per_channel(bias, i_n, o_c, C, 0.0)

    b_x = load(x, i_n, c0, 0, mask)
    g = load(dy, i_n, c0, 0, mask)
    centered = tl.where(mask, b_x - mean, 0.0)  # [BC, BP]
    if ACTIVATION != "none":
        z = centered * scale + b_bias
        if residual is not None:
            z += load(residual, i_n, c0, 0, mask)
        g = activation_grad(z, g, ACTIVATION)

    dbias = tl.sum(g, 1)  # [BC]
    dweight = tl.sum(g * centered, 1) * tl.ravel(rstd)
    tl.store(dbias_ptr + i_n * C + o_c, dbias, mask=o_c < C)
    tl.store(dweight_ptr + i_n * C + o_c, dweight, mask=o_c < C)

    if dresidual is not None:
        tl.store(at(dresidual, i_n, c0, 0, BC, BP), g, mask=mask)
    if not FIXED:
        g -= (dbias / HW)[:, None] + centered * (rstd * (dweight / HW)[:, None])
    tl.store(at(dx, i_n, c0, 0, BC, BP), g * scale, mask=mask)


# ---------------------------------------------------------------------------- launchers


def instance_norm_fwd(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    eps: float,
    activation: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """y [N, C, H, W], mean and rstd [N, C] float32."""
    n, c, h, w = x.shape
    x, strides = planes(x)
    plan = plane_plan(x, strides, norm_row("instance_norm_fwd", x))
    mean = x.new_empty((n, c), dtype=torch.float32)
    rstd = torch.empty_like(mean)
    y = torch.empty_like(x, memory_format=layout(x))
    tensors = ((x, *strides), strided(residual), strided(y), parameter(weight), parameter(bias))
    options: dict[str, Any] = {"eps": eps, "ACTIVATION": activation}
    if plan.kind == "split":
        tensors = (*tensors, parameter(mean), parameter(rstd), *partial_results(x, plan))
        split(instance_norm_split_kernel, plan, plan.steps(n), tensors, c, h * w, **options)
        return y, mean, rstd
    kernel = _instance_norm_whole_kernel
    if plan.kind == "looped":
        kernel, options["STAGES"] = instance_norm_looped_kernel, plan.num_stages
    kernel[(plan.units(n),)](
        *tensors, mean, rstd, c, h * w, plan.c_blocks,
        BC=plan.block_c, BP=plan.block_p, num_warps=plan.num_warps, **options,
    )  # fmt: skip
    return y, mean, rstd


def instance_norm_stats(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Mean and rstd [N, C] float32."""
    n, c, h, w = x.shape
    x, strides = planes(x)
    plan = one_pass_plan(x, strides)
    partial = partial_results(x, plan)
    tensors = ((x, *strides), *[None] * 6, *partial)  # no y: it stops at partial results
    options = {"eps": eps, "ACTIVATION": "none"}
    sum_all = [(0, 0, plan.units(n))]
    split(instance_norm_split_kernel, plan, sum_all, tensors, c, h * w, **options)
    mean, rstd = merged(partial, plan, n, c, h * w, eps)
    return mean, rstd


def instance_norm_apply(
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
) -> Tensor:
    """y [N, C, H, W] from given mean and rstd [N, C] float32."""
    n, c, h, w = x.shape
    x, strides = planes(x)
    plan = one_pass_plan(x, strides)
    y = torch.empty_like(x, memory_format=layout(x))
    tensors = (
        (x, *strides), strided(residual), strided(y), parameter(weight), parameter(bias),
        parameter(mean), parameter(rstd), None, None,
    )  # fmt: skip
    options = {"eps": 0.0, "ACTIVATION": activation}
    finish_all = [(0, plan.units(n), 0)]
    split(instance_norm_split_kernel, plan, finish_all, tensors, c, h * w, **options)
    return y


def instance_norm_bwd(
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
    """dx, dresidual (empty without residual or activation), dweight and dbias [N, C] float32."""
    n, c, h, w = x.shape
    x, strides = planes(x)
    if residual is None or activation == "none":
        residual = dresidual = None
    else:
        dresidual = torch.empty_like(x, dtype=residual.dtype, memory_format=layout(x))
    row = norm_row("instance_norm_bwd", x)
    plan = plane_plan(x, strides, row, read=2 if residual is None else 3)
    mean, rstd = mean.contiguous(), rstd.contiguous()
    dweight, dbias = torch.empty_like(mean), torch.empty_like(mean)
    dx = torch.empty_like(x, memory_format=layout(x))
    tensors = (
        strided(dy), (x, *strides), strided(residual), strided(dx), strided(dresidual),
        parameter(weight), parameter(bias), mean, rstd, dweight, dbias,
    )  # fmt: skip
    options: dict[str, Any] = {"ACTIVATION": activation, "FIXED": fixed}
    if plan.kind == "split":
        tensors = (*tensors, *partial_results(x, plan))
        split(instance_norm_split_bwd_kernel, plan, plan.steps(n), tensors, c, h * w, **options)
    else:
        kernel = _instance_norm_whole_bwd_kernel
        if plan.kind == "looped":
            kernel, options["STAGES"] = instance_norm_looped_bwd_kernel, plan.num_stages
        kernel[(plan.units(n),)](
            *tensors, c, h * w, plan.c_blocks,
            BC=plan.block_c, BP=plan.block_p, num_warps=plan.num_warps, **options,
        )  # fmt: skip
    return dx, x.new_empty(0) if dresidual is None else dresidual, dweight, dbias
