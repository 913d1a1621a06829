# mypy: disable-error-code="no-untyped-def"
"""Instance normalisation, forward and backward.

A *plane* is one channel of one sample: H·W pixels with a mean and a variance of their own. A *tile*
[BC, BP] is BC channels × BP pixels. One source serves NCHW and channels_last: tensors come as a
pointer and strides by (sample, channel, pixel), and the stride that is 1 tells the compiler which
way to vectorise.

There are two plans (tuning.plane_plan):

    whole    a program holds BC whole planes in registers: one launch, every tensor moves once.
    split    too large for that: `splits` programs share a plane, each takes `chunk` pixels. A first
             launch leaves partial sums, the second merges them and finishes. x is read twice.

The merge is done anew by every program of the second launch, always in the same order: a few KB out
of the L2 cache instead of a launch in between, and deterministic.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from faststy.kernels import tuning
from faststy.kernels.tuning import Plan, layout, plane_plan, planes, power_of_2

LEAKY_SLOPE = tl.constexpr(0.2)


# Hints for readers:
#   i_ index of a program along an axis, o_ offsets of a tile, b_ a block of values;
#   i_n sample, i_c block of channels, i_s split; mask is False beyond the edges;
#   i_n, c0 and p0 are int64, as N·C·H·W may pass 2³¹; offsets within a tile are int32 (see planes).


@triton.jit
def _program(c_blocks, splits):
    """This program's sample, block of channels and split; channels of a pixel run side by side."""
    pid = tl.program_id(0).to(tl.int64)
    return pid // (c_blocks * splits), pid % c_blocks, (pid // c_blocks) % splits


@triton.jit
def _at(ptr, strides, i_n, c0, p0, BC: tl.constexpr, BP: tl.constexpr):
    """Pointers [BC, BP] to the tile that starts at channel c0 and pixel p0."""
    o_c, o_p = tl.arange(0, BC)[:, None], tl.arange(0, BP)[None, :]
    p0 = tl.full([], p0, tl.int64)  # in the interpreter, a loop's index forgets its type
    base = ptr + (i_n * strides[0] + c0 * strides[1] + p0 * strides[2])
    return base + (o_c * strides[1] + o_p * strides[2])


@triton.jit
def _per_channel(ptr, stride_n, i_n, o_c, C, default):
    """A parameter [C] or [N, C] as [BC, 1] float32; `default` where there is none."""
    if ptr is None:
        b = tl.full(o_c.shape, default, tl.float32)
    else:
        b = tl.load(ptr + i_n * stride_n + o_c, mask=o_c < C, other=default).to(tl.float32)
    return b[:, None]


@triton.jit
def _activate(z, ACTIVATION: tl.constexpr):
    # z < 0 is False for NaN: it passes through, as in torch.
    if ACTIVATION == "relu":
        z = tl.where(z < 0, 0.0, z)
    elif ACTIVATION == "leaky_relu":
        z = tl.where(z < 0, z * LEAKY_SLOPE, z)
    elif ACTIVATION == "silu":
        z = z * tl.sigmoid(z)
    return z


@triton.jit
def _activation_grad(z, dy, ACTIVATION: tl.constexpr):
    if ACTIVATION == "relu":
        dy = tl.where(z <= 0, 0.0, dy)
    elif ACTIVATION == "leaky_relu":
        dy = tl.where(z > 0, dy, dy * LEAKY_SLOPE)
    elif ACTIVATION == "silu":
        s = tl.sigmoid(z)
        dy = dy * s * (1 + z * (1 - s))
    return dy


# ---------------------------------------------------------------------------- forward


@triton.jit
def _instance_norm_whole_kernel(
    x_ptr, x_strides,  # [N, C, HW]
    residual_ptr, residual_strides,  # [N, C, HW] or None
    y_ptr, y_strides,  # [N, C, HW]
    weight_ptr, weight_stride,  # [C] (stride 0) or [N, C], or None
    bias_ptr, bias_stride,  # the same
    mean_ptr, rstd_ptr,  # [N, C], written
    C, HW, c_blocks, eps,
    ACTIVATION: tl.constexpr, BC: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    i_n, i_c, _ = _program(c_blocks, 1)
    c0, o_p = i_c * BC, tl.arange(0, BP)
    o_c = c0 + tl.arange(0, BC)
    mask = (o_c[:, None] < C) & (o_p[None, :] < HW)

    x = tl.load(_at(x_ptr, x_strides, i_n, c0, 0, BC, BP), mask=mask, other=0).to(tl.float32)
    mean = tl.sum(x, 1) / HW  # [BC]
    centered = tl.where(mask, x - mean[:, None], 0.0)  # [BC, BP]
    rstd = tl.rsqrt(tl.sum(centered * centered, 1) / HW + eps)
    tl.store(mean_ptr + i_n * C + o_c, mean, mask=o_c < C)
    tl.store(rstd_ptr + i_n * C + o_c, rstd, mask=o_c < C)

    weight = _per_channel(weight_ptr, weight_stride, i_n, o_c, C, 1.0)
    bias = _per_channel(bias_ptr, bias_stride, i_n, o_c, C, 0.0)
    z = centered * (rstd[:, None] * weight) + bias
    if residual_ptr is not None:
        z += tl.load(_at(residual_ptr, residual_strides, i_n, c0, 0, BC, BP), mask=mask, other=0)
    tl.store(_at(y_ptr, y_strides, i_n, c0, 0, BC, BP), _activate(z, ACTIVATION), mask=mask)


@triton.jit
def _instance_norm_stats_kernel(
    x_ptr, x_strides,  # [N, C, HW]
    mean_ptr, m2_ptr,  # [N, splits, C], written: mean and sum of squared deviations of each chunk
    C, HW, c_blocks, splits, chunk,
    BC: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    i_n, i_c, i_s = _program(c_blocks, splits)
    c0, o_p = i_c * BC, tl.arange(0, BP)
    o_c = c0 + tl.arange(0, BC)
    start, end = i_s * chunk, tl.minimum((i_s + 1) * chunk, HW)

    # Welford's update in every lane of the tile: no exchange between threads until the end, and
    # unlike E[x²] − E[x]² nothing cancels when the mean is large.
    b_mean = tl.zeros([BC, BP], tl.float32)
    b_m2 = tl.zeros([BC, BP], tl.float32)
    steps = 0.0
    for p0 in range(start, end, BP):
        mask = (o_c[:, None] < C) & (o_p[None, :] < end - p0)
        x = tl.load(_at(x_ptr, x_strides, i_n, c0, p0, BC, BP), mask=mask, other=0).to(tl.float32)
        steps += 1.0
        delta = tl.where(mask, x - b_mean, 0.0)
        b_mean += delta * (1.0 / steps)
        b_m2 += delta * (x - b_mean)

    # Merge the lanes (Chan et al. 1983); lane p has seen every BP-th pixel from p on.
    pixels = end - start
    seen = ((pixels - o_p + BP - 1) // BP).to(tl.float32)[None, :]  # [1, BP]
    mean = tl.sum(b_mean * seen, 1) / pixels  # [BC]
    deviation = b_mean - mean[:, None]
    m2 = tl.sum(b_m2 + deviation * deviation * seen, 1)
    o_out = (i_n * splits + i_s) * C + o_c
    tl.store(mean_ptr + o_out, mean, mask=o_c < C)
    tl.store(m2_ptr + o_out, m2, mask=o_c < C)


@triton.jit
def _merged_stats(
    mean_ptr, m2_ptr, i_n, o_c, C, HW, splits, chunk, eps, BC: tl.constexpr, BS: tl.constexpr
):
    """Mean and rstd [BC] of planes from those of their chunks, again after Chan."""
    mean = tl.zeros([BC], tl.float32)
    for s0 in range(0, splits, BS):
        o_s, o_in, mask = _chunks(i_n, s0, o_c, C, splits, BS)
        pixels = tl.minimum(chunk, HW - o_s * chunk).to(tl.float32)[:, None]  # [BS, 1]
        b_mean = tl.load(mean_ptr + o_in, mask=mask, other=0)
        mean += tl.sum(tl.where(mask, b_mean * (pixels / HW), 0.0), 0)
    m2 = tl.zeros([BC], tl.float32)
    for s0 in range(0, splits, BS):
        o_s, o_in, mask = _chunks(i_n, s0, o_c, C, splits, BS)
        pixels = tl.minimum(chunk, HW - o_s * chunk).to(tl.float32)[:, None]
        deviation = tl.load(mean_ptr + o_in, mask=mask, other=0) - mean[None, :]
        b_m2 = tl.load(m2_ptr + o_in, mask=mask, other=0)
        m2 += tl.sum(tl.where(mask, b_m2 + deviation * deviation * pixels, 0.0), 0)
    return mean, tl.rsqrt(m2 / HW + eps)


@triton.jit
def _chunks(i_n, s0, o_c, C, splits, BS: tl.constexpr):
    """Splits [BS], offsets [BS, BC] into partial results [N, splits, C], and their mask."""
    o_s = s0 + tl.arange(0, BS)
    o_in = (i_n * splits + o_s[:, None]) * C + o_c[None, :]
    return o_s, o_in, (o_s[:, None] < splits) & (o_c[None, :] < C)


@triton.jit
def _instance_norm_apply_kernel(
    x_ptr, x_strides,  # [N, C, HW]
    residual_ptr, residual_strides,  # [N, C, HW] or None
    y_ptr, y_strides,  # [N, C, HW]
    weight_ptr, weight_stride,  # [C] (stride 0) or [N, C], or None
    bias_ptr, bias_stride,  # the same
    mean_ptr, rstd_ptr,  # [N, C]: read if there are no partial results, otherwise written
    part_mean_ptr, part_m2_ptr,  # [N, splits, C] or None
    C, HW, c_blocks, splits, chunk, eps,
    ACTIVATION: tl.constexpr, BC: tl.constexpr, BP: tl.constexpr, BS: tl.constexpr,
):  # fmt: skip
    i_n, i_c, i_s = _program(c_blocks, splits)
    i_n = tl.num_programs(0) // (c_blocks * splits) - 1 - i_n  # backwards: what was read last
    i_s = splits - 1 - i_s  # is still in the L2 cache
    c0, o_p = i_c * BC, tl.arange(0, BP)
    o_c = c0 + tl.arange(0, BC)

    if part_mean_ptr is None:
        mean = tl.load(mean_ptr + i_n * C + o_c, mask=o_c < C, other=0)  # [BC]
        rstd = tl.load(rstd_ptr + i_n * C + o_c, mask=o_c < C, other=0)
    else:
        mean, rstd = _merged_stats(
            part_mean_ptr, part_m2_ptr, i_n, o_c, C, HW, splits, chunk, eps, BC, BS
        )
        if i_s == 0:
            tl.store(mean_ptr + i_n * C + o_c, mean, mask=o_c < C)
            tl.store(rstd_ptr + i_n * C + o_c, rstd, mask=o_c < C)
    scale = rstd[:, None] * _per_channel(weight_ptr, weight_stride, i_n, o_c, C, 1.0)  # [BC, 1]
    bias = _per_channel(bias_ptr, bias_stride, i_n, o_c, C, 0.0)

    end = tl.minimum((i_s + 1) * chunk, HW)
    for p0 in range(i_s * chunk, end, BP):
        mask = (o_c[:, None] < C) & (o_p[None, :] < end - p0)
        x = tl.load(_at(x_ptr, x_strides, i_n, c0, p0, BC, BP), mask=mask, other=0).to(tl.float32)
        z = (x - mean[:, None]) * scale + bias
        if residual_ptr is not None:
            z += tl.load(
                _at(residual_ptr, residual_strides, i_n, c0, p0, BC, BP), mask=mask, other=0
            )
        tl.store(_at(y_ptr, y_strides, i_n, c0, p0, BC, BP), _activate(z, ACTIVATION), mask=mask)


# ---------------------------------------------------------------------------- backward
#
# With x̂ = (x − mean)·rstd, z = x̂·weight + bias + residual and g = dy·activation'(z):
#     dresidual = g,  dbias = Σ g,  dweight = Σ g·x̂,
#     dx = rstd·weight·(g − dbias/HW − x̂·dweight/HW)       (fixed statistics: the first term only)
# x̂ and z are recomputed: that costs a few multiplications, storing them would cost a pass.


@triton.jit
def _g_and_normalised(
    dy_ptr, dy_strides, x_ptr, x_strides, residual_ptr, residual_strides,
    mean, rstd, weight, bias,  # [BC, 1]
    i_n, c0, p0, mask,
    ACTIVATION: tl.constexpr, BC: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """g and x̂, [BC, BP] each; zero beyond the edges."""
    x = tl.load(_at(x_ptr, x_strides, i_n, c0, p0, BC, BP), mask=mask, other=0).to(tl.float32)
    dy = tl.load(_at(dy_ptr, dy_strides, i_n, c0, p0, BC, BP), mask=mask, other=0).to(tl.float32)
    normalised = tl.where(mask, (x - mean) * rstd, 0.0)
    if ACTIVATION == "none":
        return dy, normalised
    z = normalised * weight + bias
    if residual_ptr is not None:
        z += tl.load(_at(residual_ptr, residual_strides, i_n, c0, p0, BC, BP), mask=mask, other=0)
    return _activation_grad(z, dy, ACTIVATION), normalised


@triton.jit
def _instance_norm_whole_bwd_kernel(
    dy_ptr, dy_strides,  # [N, C, HW]
    x_ptr, x_strides,  # [N, C, HW]
    residual_ptr, residual_strides,  # [N, C, HW] or None
    dx_ptr, dx_strides,  # [N, C, HW], written
    dresidual_ptr, dresidual_strides,  # [N, C, HW] or None, written
    weight_ptr, weight_stride,  # [C] (stride 0) or [N, C], or None
    bias_ptr, bias_stride,  # the same
    mean_ptr, rstd_ptr,  # [N, C]
    dweight_ptr, dbias_ptr,  # [N, C], written
    C, HW, c_blocks,
    ACTIVATION: tl.constexpr, FIXED: tl.constexpr, BC: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    i_n, i_c, _ = _program(c_blocks, 1)
    c0, o_p = i_c * BC, tl.arange(0, BP)
    o_c = c0 + tl.arange(0, BC)
    mask = (o_c[:, None] < C) & (o_p[None, :] < HW)
    mean = _per_channel(mean_ptr, C, i_n, o_c, C, 0.0)
    rstd = _per_channel(rstd_ptr, C, i_n, o_c, C, 0.0)
    weight = _per_channel(weight_ptr, weight_stride, i_n, o_c, C, 1.0)
    bias = _per_channel(bias_ptr, bias_stride, i_n, o_c, C, 0.0)

    g, normalised = _g_and_normalised(
        dy_ptr, dy_strides, x_ptr, x_strides, residual_ptr, residual_strides,
        mean, rstd, weight, bias, i_n, c0, 0, mask, ACTIVATION, BC, BP,
    )  # fmt: skip
    dbias = tl.sum(g, 1)  # [BC]
    dweight = tl.sum(g * normalised, 1)
    tl.store(dbias_ptr + i_n * C + o_c, dbias, mask=o_c < C)
    tl.store(dweight_ptr + i_n * C + o_c, dweight, mask=o_c < C)

    if dresidual_ptr is not None:
        tl.store(_at(dresidual_ptr, dresidual_strides, i_n, c0, 0, BC, BP), g, mask=mask)
    if not FIXED:
        g -= (dbias / HW)[:, None] + normalised * (dweight / HW)[:, None]
    tl.store(_at(dx_ptr, dx_strides, i_n, c0, 0, BC, BP), g * (rstd * weight), mask=mask)


@triton.jit
def _instance_norm_sums_kernel(
    dy_ptr, dy_strides,  # [N, C, HW]
    x_ptr, x_strides,  # [N, C, HW]
    residual_ptr, residual_strides,  # [N, C, HW] or None
    weight_ptr, weight_stride,  # [C] (stride 0) or [N, C], or None
    bias_ptr, bias_stride,  # the same
    mean_ptr, rstd_ptr,  # [N, C]
    dweight_ptr, dbias_ptr,  # [N, splits, C], written
    C, HW, c_blocks, splits, chunk,
    ACTIVATION: tl.constexpr, BC: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    i_n, i_c, i_s = _program(c_blocks, splits)
    c0, o_p = i_c * BC, tl.arange(0, BP)
    o_c = c0 + tl.arange(0, BC)
    mean = _per_channel(mean_ptr, C, i_n, o_c, C, 0.0)
    rstd = _per_channel(rstd_ptr, C, i_n, o_c, C, 0.0)
    weight = _per_channel(weight_ptr, weight_stride, i_n, o_c, C, 1.0)
    bias = _per_channel(bias_ptr, bias_stride, i_n, o_c, C, 0.0)

    b_dbias = tl.zeros([BC, BP], tl.float32)
    b_dweight = tl.zeros([BC, BP], tl.float32)
    end = tl.minimum((i_s + 1) * chunk, HW)
    for p0 in range(i_s * chunk, end, BP):
        mask = (o_c[:, None] < C) & (o_p[None, :] < end - p0)
        g, normalised = _g_and_normalised(
            dy_ptr, dy_strides, x_ptr, x_strides, residual_ptr, residual_strides,
            mean, rstd, weight, bias, i_n, c0, p0, mask, ACTIVATION, BC, BP,
        )  # fmt: skip
        b_dbias += g
        b_dweight += g * normalised
    o_out = (i_n * splits + i_s) * C + o_c
    tl.store(dbias_ptr + o_out, tl.sum(b_dbias, 1), mask=o_c < C)
    tl.store(dweight_ptr + o_out, tl.sum(b_dweight, 1), mask=o_c < C)


@triton.jit
def _instance_norm_grads_kernel(
    dy_ptr, dy_strides,  # [N, C, HW]
    x_ptr, x_strides,  # [N, C, HW]
    residual_ptr, residual_strides,  # [N, C, HW] or None
    dx_ptr, dx_strides,  # [N, C, HW], written
    dresidual_ptr, dresidual_strides,  # [N, C, HW] or None, written
    weight_ptr, weight_stride,  # [C] (stride 0) or [N, C], or None
    bias_ptr, bias_stride,  # the same
    mean_ptr, rstd_ptr,  # [N, C]
    part_dweight_ptr, part_dbias_ptr,  # [N, splits, C]
    dweight_ptr, dbias_ptr,  # [N, C], written
    C, HW, c_blocks, splits, chunk,
    ACTIVATION: tl.constexpr, FIXED: tl.constexpr,
    BC: tl.constexpr, BP: tl.constexpr, BS: tl.constexpr,
):  # fmt: skip
    i_n, i_c, i_s = _program(c_blocks, splits)
    i_n = tl.num_programs(0) // (c_blocks * splits) - 1 - i_n  # backwards: what was read last
    i_s = splits - 1 - i_s  # is still in the L2 cache
    c0, o_p = i_c * BC, tl.arange(0, BP)
    o_c = c0 + tl.arange(0, BC)
    mean = _per_channel(mean_ptr, C, i_n, o_c, C, 0.0)
    rstd = _per_channel(rstd_ptr, C, i_n, o_c, C, 0.0)
    weight = _per_channel(weight_ptr, weight_stride, i_n, o_c, C, 1.0)
    bias = _per_channel(bias_ptr, bias_stride, i_n, o_c, C, 0.0)

    dbias = tl.zeros([BC], tl.float32)
    dweight = tl.zeros([BC], tl.float32)
    for s0 in range(0, splits, BS):
        _, o_in, mask = _chunks(i_n, s0, o_c, C, splits, BS)
        dbias += tl.sum(tl.load(part_dbias_ptr + o_in, mask=mask, other=0), 0)
        dweight += tl.sum(tl.load(part_dweight_ptr + o_in, mask=mask, other=0), 0)
    if i_s == 0:
        tl.store(dbias_ptr + i_n * C + o_c, dbias, mask=o_c < C)
        tl.store(dweight_ptr + i_n * C + o_c, dweight, mask=o_c < C)

    end = tl.minimum((i_s + 1) * chunk, HW)
    for p0 in range(i_s * chunk, end, BP):
        mask = (o_c[:, None] < C) & (o_p[None, :] < end - p0)
        g, normalised = _g_and_normalised(
            dy_ptr, dy_strides, x_ptr, x_strides, residual_ptr, residual_strides,
            mean, rstd, weight, bias, i_n, c0, p0, mask, ACTIVATION, BC, BP,
        )  # fmt: skip
        if dresidual_ptr is not None:
            tl.store(_at(dresidual_ptr, dresidual_strides, i_n, c0, p0, BC, BP), g, mask=mask)
        if not FIXED:
            g -= (dbias / HW)[:, None] + normalised * (dweight / HW)[:, None]
        tl.store(_at(dx_ptr, dx_strides, i_n, c0, p0, BC, BP), g * (rstd * weight), mask=mask)


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
    x, x_strides = planes(x)
    plan = plane_plan(x, x_strides, tuning.TILE, tuning.WHOLE_TILE)
    mean = x.new_empty((n, c), dtype=torch.float32)
    rstd = torch.empty_like(mean)
    if not plan.whole:
        partial = _partial_stats(x, x_strides, plan)
        y = _apply(x, x_strides, mean, rstd, partial, weight, bias, residual, eps, activation, plan)
        return y, mean, rstd
    y = torch.empty_like(x, memory_format=layout(x))
    _instance_norm_whole_kernel[plan.programs(n)](
        x, x_strides, *_planes_or_none(residual), *planes(y),
        *_parameter(weight), *_parameter(bias), mean, rstd, c, h * w, plan.c_blocks, eps,
        ACTIVATION=activation, BC=plan.block_c, BP=plan.block_p, num_warps=plan.num_warps,
    )  # fmt: skip
    return y, mean, rstd


def instance_norm_stats(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Mean and rstd [N, C] float32."""
    x, x_strides = planes(x)
    plan = plane_plan(x, x_strides, tuning.TILE, tuning.TILE)
    means, m2s = _partial_stats(x, x_strides, plan)  # [N, splits, C]
    pixels, last = x.shape[2] * x.shape[3], plan.splits - 1
    counts = means.new_full((plan.splits, 1), plan.chunk)
    counts[last:] = pixels - last * plan.chunk
    mean = (means * (counts / pixels)).sum(1)
    m2 = (m2s + (means - mean[:, None]).square() * counts).sum(1)
    return mean, torch.rsqrt(m2 / pixels + eps)


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
    x, x_strides = planes(x)
    mean, rstd = mean.contiguous(), rstd.contiguous()
    plan = plane_plan(x, x_strides, tuning.TILE, tuning.TILE)
    return _apply(x, x_strides, mean, rstd, None, weight, bias, residual, 0.0, activation, plan)


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
    x, x_strides = planes(x)
    plan = plane_plan(x, x_strides, tuning.TILE_BWD, tuning.WHOLE_TILE_BWD)
    mean, rstd = mean.contiguous(), rstd.contiguous()
    dweight, dbias = torch.empty_like(mean), torch.empty_like(mean)
    dx = torch.empty_like(x, memory_format=layout(x))
    if residual is None or activation == "none":
        residual = dresidual = None
    else:
        dresidual = torch.empty_like(dx, dtype=residual.dtype)
    inputs = (*planes(dy), x, x_strides, *_planes_or_none(residual))
    outputs = (*planes(dx), *_planes_or_none(dresidual))
    parameters = (*_parameter(weight), *_parameter(bias), mean, rstd)
    blocks = {"BC": plan.block_c, "BP": plan.block_p, "num_warps": plan.num_warps}
    if plan.whole:
        _instance_norm_whole_bwd_kernel[plan.programs(n)](
            *inputs, *outputs, *parameters, dweight, dbias, c, h * w, plan.c_blocks,
            ACTIVATION=activation, FIXED=fixed, **blocks,
        )  # fmt: skip
    else:
        cut = (c, h * w, plan.c_blocks, plan.splits, plan.chunk)
        part_dweight = mean.new_empty((n, plan.splits, c))
        part_dbias = torch.empty_like(part_dweight)
        _instance_norm_sums_kernel[plan.programs(n)](
            *inputs, *parameters, part_dweight, part_dbias, *cut, ACTIVATION=activation, **blocks
        )
        _instance_norm_grads_kernel[plan.programs(n)](
            *inputs, *outputs, *parameters, part_dweight, part_dbias, dweight, dbias, *cut,
            ACTIVATION=activation, FIXED=fixed, BS=_merge_block(plan), **blocks,
        )  # fmt: skip
    return dx, x.new_empty(0) if dresidual is None else dresidual, dweight, dbias


def _partial_stats(x: Tensor, x_strides: tuple[int, int, int], plan: Plan) -> tuple[Tensor, Tensor]:
    """Mean and sum of squared deviations of every chunk, [N, splits, C] float32."""
    n, c, h, w = x.shape
    means = x.new_empty((n, plan.splits, c), dtype=torch.float32)
    m2s = torch.empty_like(means)
    _instance_norm_stats_kernel[plan.programs(n)](
        x, x_strides, means, m2s, c, h * w, plan.c_blocks, plan.splits, plan.chunk,
        BC=plan.block_c, BP=plan.block_p, num_warps=plan.num_warps,
    )  # fmt: skip
    return means, m2s


def _apply(
    x: Tensor,
    x_strides: tuple[int, int, int],
    mean: Tensor,
    rstd: Tensor,
    partial: tuple[Tensor, Tensor] | None,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    eps: float,
    activation: str,
    plan: Plan,
) -> Tensor:
    n, c, h, w = x.shape
    y = torch.empty_like(x, memory_format=layout(x))
    _instance_norm_apply_kernel[plan.programs(n)](
        x, x_strides, *_planes_or_none(residual), *planes(y),
        *_parameter(weight), *_parameter(bias), mean, rstd, *(partial or (None, None)),
        c, h * w, plan.c_blocks, plan.splits, plan.chunk, eps,
        ACTIVATION=activation, BC=plan.block_c, BP=plan.block_p, BS=_merge_block(plan),
        num_warps=plan.num_warps,
    )  # fmt: skip
    return y


def _merge_block(plan: Plan) -> int:
    """Splits that are merged at a time: a tile of at most 1024 partial results."""
    block: int = min(power_of_2(plan.splits), max(1024 // plan.block_c, 1))
    return block


def _planes_or_none(t: Tensor | None) -> tuple[Tensor | None, tuple[int, int, int]]:
    return (None, (0, 0, 0)) if t is None else planes(t)


def _parameter(p: Tensor | None) -> tuple[Tensor | None, int]:
    """A parameter [C] or [N, C] with its stride by sample."""
    if p is None:
        return None, 0
    p = p.contiguous()
    return p, p.stride(0) if p.ndim == 2 else 0
