# mypy: disable-error-code="no-untyped-def"
"""Instance normalisation, forward and backward.

A *plane* is one channel of one sample: H·W pixels with a mean and a variance of their own. A *tile*
[BC, BP] is BC channels × BP pixels. One source serves NCHW and channels_last: tensors come as a
pointer and strides by (sample, channel, pixel), and the stride that is 1 tells the compiler which
way to vectorise.

A *unit* is BC channels of one sample: whole planes. There are three plans (tuning.plane_plan):

    whole    a program holds a unit in registers: one launch, every tensor moves once.
    looped   a program goes through its unit twice, tile by tile: one launch. What runs at a time
             fits into the L2 cache, where the second pass finds x. Planar only.
    split    large or few units: `splits` programs share one, each takes a `chunk` of pixels. Planar
             units go in groups that fit into L2. A launch leaves partial sums of one group and, in
             other programs, finishes the group before, of which it finds x in L2:

                 launch 0   sums of group 0
                 launch 1   group 0 finished     sums of group 1
                 launch 2   group 1 finished     sums of group 2 …

Loops have `STAGES` − 1 tiles under way: Triton copies them to shared memory ahead of their use.
Launches follow each other on the stream, and nothing waits inside a kernel. Every program that
finishes merges the partial sums of its unit anew, always in the same order: a few KB out of L2, and
deterministic. What will be read again is loaded as evict_last; the last read and the results are
evict_first, so that they do not push it out.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from faststy.kernels.tuning import (
    Plan,
    layout,
    norm_row,
    one_pass_plan,
    plane_plan,
    planes,
    power_of_2,
)

LEAKY_SLOPE = tl.constexpr(0.2)


# Hints for readers:
#   i_ index of a program along an axis, o_ offsets of a tile, b_ a block of values;
#   i_n sample, i_c block of channels, i_s split; mask is False beyond the edges;
#   i_n, c0 and p0 are int64, as N·C·H·W may pass 2³¹; offsets within a tile are int32 (see planes).


@triton.jit
def _task(pid, first, finished, summed, c_blocks, splits):
    """Sample, block of channels, split, and whether to finish it: what program `pid` is to do with
    `finished` units from the first on and `summed` ones after them.

    Units run side by side: channels of a pixel, and those that write beside those that read.
    """
    unit = pid % (finished + summed)
    i_s = pid // (finished + summed)
    finishes = unit < finished
    if finishes:
        i_s = splits - 1 - i_s  # begin with what was read last: it is still in L2
    unit += first
    return unit // c_blocks, unit % c_blocks, i_s, finishes


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
    pid = tl.program_id(0).to(tl.int64)
    i_n, i_c = pid // c_blocks, pid % c_blocks
    c0, o_p = i_c * BC, tl.arange(0, BP)
    o_c = c0 + tl.arange(0, BC)
    mask = (o_c[:, None] < C) & (o_p[None, :] < HW)

    x = tl.load(_at(x_ptr, x_strides, i_n, c0, 0, BC, BP), mask=mask, other=0).to(tl.float32)
    mean = tl.sum(x, 1) / HW  # [BC]
    centered = tl.where(mask, x - mean[:, None], 0.0)  # [BC, BP]
    # What the sum was off by: 1e-7 of the mean, which in planes of one value is all there is.
    off = tl.sum(centered, 1) / HW
    mean += off
    variance = tl.maximum(tl.sum(centered * centered, 1) / HW - off * off, 0.0)
    variance = tl.where(off == off, variance, off)  # the maximum drops NaN
    rstd = tl.rsqrt(variance + eps)
    tl.store(mean_ptr + i_n * C + o_c, mean, mask=o_c < C)
    tl.store(rstd_ptr + i_n * C + o_c, rstd, mask=o_c < C)

    weight = _per_channel(weight_ptr, weight_stride, i_n, o_c, C, 1.0)
    bias = _per_channel(bias_ptr, bias_stride, i_n, o_c, C, 0.0)
    z = (centered - off[:, None]) * (rstd[:, None] * weight) + bias
    if residual_ptr is not None:
        z += tl.load(_at(residual_ptr, residual_strides, i_n, c0, 0, BC, BP), mask=mask, other=0)
    tl.store(_at(y_ptr, y_strides, i_n, c0, 0, BC, BP), _activate(z, ACTIVATION), mask=mask)


@triton.jit
def _chunk_stats(
    x_ptr, x_strides, i_n, c0, start, end, C,
    BC: tl.constexpr, BP: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Mean and sum of squared deviations [BC] over pixels start … end − 1."""
    o_c, o_p = c0 + tl.arange(0, BC), tl.arange(0, BP)
    # Welford's update in every lane of the tile: no exchange between threads until the end, and
    # unlike E[x²] − E[x]² nothing cancels when the mean is large.
    b_mean = tl.zeros([BC, BP], tl.float32)
    b_m2 = tl.zeros([BC, BP], tl.float32)
    steps = 0.0
    for p0 in tl.range(start, end, BP, num_stages=STAGES):
        mask = (o_c[:, None] < C) & (o_p[None, :] < end - p0)
        at = _at(x_ptr, x_strides, i_n, c0, p0, BC, BP)
        x = tl.load(at, mask=mask, other=0, eviction_policy="evict_last").to(tl.float32)
        steps += 1.0
        delta = tl.where(mask, x - b_mean, 0.0)
        b_mean += delta * (1.0 / steps)
        b_m2 += delta * (x - b_mean)

    # Merge the lanes (Chan et al. 1983); lane p has seen every BP-th pixel from p on.
    pixels = end - start
    seen = ((pixels - o_p + BP - 1) // BP).to(tl.float32)[None, :]  # [1, BP]
    mean = tl.sum(b_mean * seen, 1) / pixels  # [BC]
    mean += tl.sum((b_mean - mean[:, None]) * seen, 1) / pixels  # what the sum was off by
    deviation = b_mean - mean[:, None]
    return mean, tl.sum(b_m2 + deviation * deviation * seen, 1)


@triton.jit
def _merged_stats(
    mean_ptr, m2_ptr, i_n, o_c, C, HW, splits, chunk, eps, BC: tl.constexpr, BS: tl.constexpr
):
    """Mean and rstd [BC] of planes from those of their chunks, again after Chan."""
    # Relative to the first chunk's, so that equal means give just that; and what cancels below is
    # no more than that chunk's own share in the variance times the number of chunks.
    first = tl.load(mean_ptr + i_n * splits * C + o_c, mask=o_c < C, other=0)
    shift = tl.zeros([BC], tl.float32)
    m2 = tl.zeros([BC], tl.float32)
    for s0 in range(0, splits, BS):
        o_s, o_in, mask = _chunks(i_n, s0, o_c, C, splits, BS)
        pixels = tl.minimum(chunk, HW - o_s * chunk).to(tl.float32)[:, None]  # [BS, 1]
        b_m2 = tl.load(m2_ptr + o_in, mask=mask, other=0)
        deviation = tl.load(mean_ptr + o_in, mask=mask, other=0) - first[None, :]
        deviation = tl.where(mask, deviation, 0.0)
        shift += tl.sum(deviation * (pixels / HW), 0)
        m2 += tl.sum(b_m2 + deviation * deviation * pixels, 0)
    variance = m2 / HW - shift * shift
    variance = tl.where(variance < 0, 0.0, variance)  # a maximum would drop NaN
    return first + shift, tl.rsqrt(variance + eps)


@triton.jit
def _chunks(i_n, s0, o_c, C, splits, BS: tl.constexpr):
    """Splits [BS], offsets [BS, BC] into partial results [N, splits, C], and their mask."""
    o_s = s0 + tl.arange(0, BS)
    o_in = (i_n * splits + o_s[:, None]) * C + o_c[None, :]
    return o_s, o_in, (o_s[:, None] < splits) & (o_c[None, :] < C)


@triton.jit
def _normalise_chunk(
    x_ptr, x_strides, residual_ptr, residual_strides, y_ptr, y_strides,
    weight_ptr, weight_stride, bias_ptr, bias_stride,
    mean, rstd,  # [BC]
    i_n, c0, start, end, C,
    ACTIVATION: tl.constexpr, BC: tl.constexpr, BP: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    o_c, o_p = c0 + tl.arange(0, BC), tl.arange(0, BP)
    scale = rstd[:, None] * _per_channel(weight_ptr, weight_stride, i_n, o_c, C, 1.0)  # [BC, 1]
    bias = _per_channel(bias_ptr, bias_stride, i_n, o_c, C, 0.0)
    for p0 in tl.range(start, end, BP, num_stages=STAGES):
        mask = (o_c[:, None] < C) & (o_p[None, :] < end - p0)
        at = _at(x_ptr, x_strides, i_n, c0, p0, BC, BP)
        x = tl.load(at, mask=mask, other=0, eviction_policy="evict_first").to(tl.float32)
        z = (x - mean[:, None]) * scale + bias
        if residual_ptr is not None:
            at = _at(residual_ptr, residual_strides, i_n, c0, p0, BC, BP)
            z += tl.load(at, mask=mask, other=0, eviction_policy="evict_first")
        at = _at(y_ptr, y_strides, i_n, c0, p0, BC, BP)
        tl.store(at, _activate(z, ACTIVATION), mask=mask, eviction_policy="evict_first")


@triton.jit
def _instance_norm_looped_kernel(
    x_ptr, x_strides,  # [N, C, HW]
    residual_ptr, residual_strides,  # [N, C, HW] or None
    y_ptr, y_strides,  # [N, C, HW], written
    weight_ptr, weight_stride,  # [C] (stride 0) or [N, C], or None
    bias_ptr, bias_stride,  # the same
    mean_ptr, rstd_ptr,  # [N, C], written
    C, HW, c_blocks, eps,
    ACTIVATION: tl.constexpr, BC: tl.constexpr, BP: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0).to(tl.int64)
    i_n, i_c = pid // c_blocks, pid % c_blocks
    c0 = i_c * BC
    o_c = c0 + tl.arange(0, BC)
    mean, m2 = _chunk_stats(x_ptr, x_strides, i_n, c0, 0, HW, C, BC, BP, STAGES)
    rstd = tl.rsqrt(m2 / HW + eps)
    tl.store(mean_ptr + i_n * C + o_c, mean, mask=o_c < C)
    tl.store(rstd_ptr + i_n * C + o_c, rstd, mask=o_c < C)
    _normalise_chunk(
        x_ptr, x_strides, residual_ptr, residual_strides, y_ptr, y_strides,
        weight_ptr, weight_stride, bias_ptr, bias_stride,
        mean, rstd, i_n, c0, 0, HW, C, ACTIVATION, BC, BP, STAGES,
    )  # fmt: skip


@triton.jit(do_not_specialize=["first", "finished", "summed"])
def _instance_norm_split_kernel(
    x_ptr, x_strides,  # [N, C, HW]
    residual_ptr, residual_strides,  # [N, C, HW] or None
    y_ptr, y_strides,  # [N, C, HW], written; or None, to stop at partial results
    weight_ptr, weight_stride,  # [C] (stride 0) or [N, C], or None
    bias_ptr, bias_stride,  # the same
    mean_ptr, mean_stride,  # [N, C]: read if there are no partial results, otherwise written
    rstd_ptr, rstd_stride,  # the same
    part_mean_ptr, part_m2_ptr,  # [N, splits, C] or None: means and M2 of chunks
    first, finished, summed,  # units: `finished` from the first on, `summed` from there on
    C, HW, c_blocks, splits, chunk, eps,
    ACTIVATION: tl.constexpr,
    BC: tl.constexpr, BP: tl.constexpr, BS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0).to(tl.int64)
    i_n, i_c, i_s, finishes = _task(pid, first, finished, summed, c_blocks, splits)
    c0 = i_c * BC
    o_c = c0 + tl.arange(0, BC)
    start, end = i_s * chunk, tl.minimum((i_s + 1) * chunk, HW)
    if finishes:
        if y_ptr is not None:
            if part_mean_ptr is None:
                mean = tl.load(mean_ptr + i_n * mean_stride + o_c, mask=o_c < C, other=0)  # [BC]
                rstd = tl.load(rstd_ptr + i_n * rstd_stride + o_c, mask=o_c < C, other=0)
            else:
                mean, rstd = _merged_stats(
                    part_mean_ptr, part_m2_ptr, i_n, o_c, C, HW, splits, chunk, eps, BC, BS
                )
                if i_s == 0:
                    tl.store(mean_ptr + i_n * mean_stride + o_c, mean, mask=o_c < C)
                    tl.store(rstd_ptr + i_n * rstd_stride + o_c, rstd, mask=o_c < C)
            _normalise_chunk(
                x_ptr, x_strides, residual_ptr, residual_strides, y_ptr, y_strides,
                weight_ptr, weight_stride, bias_ptr, bias_stride,
                mean, rstd, i_n, c0, start, end, C, ACTIVATION, BC, BP,
                STAGES,
            )  # fmt: skip
    elif part_mean_ptr is not None:
        mean, m2 = _chunk_stats(x_ptr, x_strides, i_n, c0, start, end, C, BC, BP, STAGES)
        o_out = (i_n * splits + i_s) * C + o_c
        tl.store(part_mean_ptr + o_out, mean, mask=o_c < C)
        tl.store(part_m2_ptr + o_out, m2, mask=o_c < C)


@triton.jit
def _merge_kernel(
    part_mean_ptr, part_m2_ptr,  # [N, splits, C]: means and M2 of chunks
    mean_ptr, rstd_ptr,  # [N, C], written
    C, HW, c_blocks, splits, chunk, eps,
    BC: tl.constexpr, BS: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0).to(tl.int64)
    i_n, o_c = pid // c_blocks, pid % c_blocks * BC + tl.arange(0, BC)
    mean, rstd = _merged_stats(
        part_mean_ptr, part_m2_ptr, i_n, o_c, C, HW, splits, chunk, eps, BC, BS
    )
    tl.store(mean_ptr + i_n * C + o_c, mean, mask=o_c < C)
    tl.store(rstd_ptr + i_n * C + o_c, rstd, mask=o_c < C)


# ---------------------------------------------------------------------------- backward
#
# With x̂ = (x − mean)·rstd, z = x̂·weight + bias + residual and g = dy·activation'(z):
#     dresidual = g,  dbias = Σ g,  dweight = Σ g·x̂,
#     dx = rstd·weight·(g − dbias/HW − x̂·dweight/HW)       (fixed statistics: the first term only)
# x − mean and z are recomputed: that costs a few multiplications, storing them would cost a pass.
# In channels_last a thread holds the parameters of its 8 channels: rstd stays out of the loops.


@triton.jit
def _parameters(
    mean_ptr, rstd_ptr, weight_ptr, weight_stride, bias_ptr, bias_stride, i_n, o_c, C
):  # fmt: skip
    """mean, rstd, rstd·weight and bias, [BC, 1] each."""
    mean = _per_channel(mean_ptr, C, i_n, o_c, C, 0.0)
    rstd = _per_channel(rstd_ptr, C, i_n, o_c, C, 0.0)
    scale = rstd * _per_channel(weight_ptr, weight_stride, i_n, o_c, C, 1.0)
    return mean, rstd, scale, _per_channel(bias_ptr, bias_stride, i_n, o_c, C, 0.0)


@triton.jit
def _g_and_centered(
    dy_ptr, dy_strides, x_ptr, x_strides, residual_ptr, residual_strides,
    mean, scale, bias,  # [BC, 1]
    i_n, c0, p0, mask,
    ACTIVATION: tl.constexpr, BC: tl.constexpr, BP: tl.constexpr, EVICT: tl.constexpr,
):  # fmt: skip
    """g and x − mean, [BC, BP] each; zero beyond the edges."""
    at = _at(x_ptr, x_strides, i_n, c0, p0, BC, BP)
    x = tl.load(at, mask=mask, other=0, eviction_policy=EVICT).to(tl.float32)
    at = _at(dy_ptr, dy_strides, i_n, c0, p0, BC, BP)
    dy = tl.load(at, mask=mask, other=0, eviction_policy=EVICT).to(tl.float32)
    centered = tl.where(mask, x - mean, 0.0)
    if ACTIVATION == "none":
        return dy, centered
    z = centered * scale + bias
    if residual_ptr is not None:
        at = _at(residual_ptr, residual_strides, i_n, c0, p0, BC, BP)
        z += tl.load(at, mask=mask, other=0, eviction_policy=EVICT)
    return _activation_grad(z, dy, ACTIVATION), centered


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
    pid = tl.program_id(0).to(tl.int64)
    i_n, i_c = pid // c_blocks, pid % c_blocks
    c0, o_p = i_c * BC, tl.arange(0, BP)
    o_c = c0 + tl.arange(0, BC)
    mask = (o_c[:, None] < C) & (o_p[None, :] < HW)
    mean, rstd, scale, bias = _parameters(
        mean_ptr, rstd_ptr, weight_ptr, weight_stride, bias_ptr, bias_stride, i_n, o_c, C
    )

    g, centered = _g_and_centered(
        dy_ptr, dy_strides, x_ptr, x_strides, residual_ptr, residual_strides,
        mean, scale, bias, i_n, c0, 0, mask, ACTIVATION, BC, BP, "",
    )  # fmt: skip
    dbias = tl.sum(g, 1)  # [BC]
    dweight = tl.sum(g * centered, 1) * tl.ravel(rstd)
    tl.store(dbias_ptr + i_n * C + o_c, dbias, mask=o_c < C)
    tl.store(dweight_ptr + i_n * C + o_c, dweight, mask=o_c < C)

    if dresidual_ptr is not None:
        tl.store(_at(dresidual_ptr, dresidual_strides, i_n, c0, 0, BC, BP), g, mask=mask)
    if not FIXED:
        g -= (dbias / HW)[:, None] + centered * (rstd * (dweight / HW)[:, None])
    tl.store(_at(dx_ptr, dx_strides, i_n, c0, 0, BC, BP), g * scale, mask=mask)


@triton.jit
def _chunk_sums(
    dy_ptr, dy_strides, x_ptr, x_strides, residual_ptr, residual_strides,
    mean, rstd, scale, bias,  # [BC, 1]
    i_n, c0, start, end, C,
    ACTIVATION: tl.constexpr, BC: tl.constexpr, BP: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Shares of dweight and dbias, [BC] each, of pixels start … end − 1."""
    o_c, o_p = c0 + tl.arange(0, BC), tl.arange(0, BP)
    b_dweight = tl.zeros([BC, BP], tl.float32)
    b_dbias = tl.zeros([BC, BP], tl.float32)
    for p0 in tl.range(start, end, BP, num_stages=STAGES):
        mask = (o_c[:, None] < C) & (o_p[None, :] < end - p0)
        g, centered = _g_and_centered(
            dy_ptr, dy_strides, x_ptr, x_strides, residual_ptr, residual_strides,
            mean, scale, bias, i_n, c0, p0, mask, ACTIVATION, BC, BP, "evict_last",
        )  # fmt: skip
        b_dweight += g * centered
        b_dbias += g
    return tl.sum(b_dweight, 1) * tl.ravel(rstd), tl.sum(b_dbias, 1)


@triton.jit
def _chunk_grads(
    dy_ptr, dy_strides, x_ptr, x_strides, residual_ptr, residual_strides,
    dx_ptr, dx_strides, dresidual_ptr, dresidual_strides,
    mean, rstd, scale, bias,  # [BC, 1]
    dweight, dbias,  # [BC]
    i_n, c0, start, end, C, HW,
    ACTIVATION: tl.constexpr, FIXED: tl.constexpr,
    BC: tl.constexpr, BP: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    o_c, o_p = c0 + tl.arange(0, BC), tl.arange(0, BP)
    offset = (dbias / HW)[:, None]  # [BC, 1]
    slope = rstd * (dweight / HW)[:, None]
    for p0 in tl.range(start, end, BP, num_stages=STAGES):
        mask = (o_c[:, None] < C) & (o_p[None, :] < end - p0)
        g, centered = _g_and_centered(
            dy_ptr, dy_strides, x_ptr, x_strides, residual_ptr, residual_strides,
            mean, scale, bias, i_n, c0, p0, mask, ACTIVATION, BC, BP, "evict_first",
        )  # fmt: skip
        if dresidual_ptr is not None:
            at = _at(dresidual_ptr, dresidual_strides, i_n, c0, p0, BC, BP)
            tl.store(at, g, mask=mask, eviction_policy="evict_first")
        if not FIXED:
            g -= offset + centered * slope
        at = _at(dx_ptr, dx_strides, i_n, c0, p0, BC, BP)
        tl.store(at, g * scale, mask=mask, eviction_policy="evict_first")


@triton.jit
def _instance_norm_looped_bwd_kernel(
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
    ACTIVATION: tl.constexpr, FIXED: tl.constexpr,
    BC: tl.constexpr, BP: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0).to(tl.int64)
    i_n, i_c = pid // c_blocks, pid % c_blocks
    c0 = i_c * BC
    o_c = c0 + tl.arange(0, BC)
    mean, rstd, scale, bias = _parameters(
        mean_ptr, rstd_ptr, weight_ptr, weight_stride, bias_ptr, bias_stride, i_n, o_c, C
    )
    dweight, dbias = _chunk_sums(
        dy_ptr, dy_strides, x_ptr, x_strides, residual_ptr, residual_strides,
        mean, rstd, scale, bias, i_n, c0, 0, HW, C, ACTIVATION, BC, BP, STAGES,
    )  # fmt: skip
    tl.store(dweight_ptr + i_n * C + o_c, dweight, mask=o_c < C)
    tl.store(dbias_ptr + i_n * C + o_c, dbias, mask=o_c < C)
    _chunk_grads(
        dy_ptr, dy_strides, x_ptr, x_strides, residual_ptr, residual_strides,
        dx_ptr, dx_strides, dresidual_ptr, dresidual_strides,
        mean, rstd, scale, bias, dweight, dbias, i_n, c0, 0, HW, C, HW,
        ACTIVATION, FIXED, BC, BP, STAGES,
    )  # fmt: skip


@triton.jit(do_not_specialize=["first", "finished", "summed"])
def _instance_norm_split_bwd_kernel(
    dy_ptr, dy_strides,  # [N, C, HW]
    x_ptr, x_strides,  # [N, C, HW]
    residual_ptr, residual_strides,  # [N, C, HW] or None
    dx_ptr, dx_strides,  # [N, C, HW], written
    dresidual_ptr, dresidual_strides,  # [N, C, HW] or None, written
    weight_ptr, weight_stride,  # [C] (stride 0) or [N, C], or None
    bias_ptr, bias_stride,  # the same
    mean_ptr, rstd_ptr,  # [N, C]
    dweight_ptr, dbias_ptr,  # [N, C], written
    part_dweight_ptr, part_dbias_ptr,  # [N, splits, C]
    first, finished, summed,  # units: `finished` from the first on, `summed` from there on
    C, HW, c_blocks, splits, chunk,
    ACTIVATION: tl.constexpr, FIXED: tl.constexpr,
    BC: tl.constexpr, BP: tl.constexpr, BS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0).to(tl.int64)
    i_n, i_c, i_s, finishes = _task(pid, first, finished, summed, c_blocks, splits)
    c0 = i_c * BC
    o_c = c0 + tl.arange(0, BC)
    start, end = i_s * chunk, tl.minimum((i_s + 1) * chunk, HW)
    mean, rstd, scale, bias = _parameters(
        mean_ptr, rstd_ptr, weight_ptr, weight_stride, bias_ptr, bias_stride, i_n, o_c, C
    )

    if finishes:
        dweight = tl.zeros([BC], tl.float32)
        dbias = tl.zeros([BC], tl.float32)
        for s0 in range(0, splits, BS):
            _, o_in, mask = _chunks(i_n, s0, o_c, C, splits, BS)
            dweight += tl.sum(tl.load(part_dweight_ptr + o_in, mask=mask, other=0), 0)
            dbias += tl.sum(tl.load(part_dbias_ptr + o_in, mask=mask, other=0), 0)
        if i_s == 0:
            tl.store(dweight_ptr + i_n * C + o_c, dweight, mask=o_c < C)
            tl.store(dbias_ptr + i_n * C + o_c, dbias, mask=o_c < C)
        _chunk_grads(
            dy_ptr, dy_strides, x_ptr, x_strides, residual_ptr, residual_strides,
            dx_ptr, dx_strides, dresidual_ptr, dresidual_strides,
            mean, rstd, scale, bias, dweight, dbias, i_n, c0, start, end, C, HW,
            ACTIVATION, FIXED, BC, BP, STAGES,
        )  # fmt: skip
    else:
        dweight, dbias = _chunk_sums(
            dy_ptr, dy_strides, x_ptr, x_strides, residual_ptr, residual_strides,
            mean, rstd, scale, bias, i_n, c0, start, end, C, ACTIVATION, BC, BP, STAGES,
        )  # fmt: skip
        o_out = (i_n * splits + i_s) * C + o_c
        tl.store(part_dweight_ptr + o_out, dweight, mask=o_c < C)
        tl.store(part_dbias_ptr + o_out, dbias, mask=o_c < C)


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
    plan = plane_plan(x, x_strides, norm_row("instance_norm_fwd", x))
    mean = x.new_empty((n, c), dtype=torch.float32)
    rstd = torch.empty_like(mean)
    y = torch.empty_like(x, memory_format=layout(x))
    tensors = (x, x_strides, *_planes_or_none(residual), *planes(y))
    parameters = (*_parameter(weight), *_parameter(bias))
    if plan.kind == "split":
        statistics = (*_parameter(mean), *_parameter(rstd))
        arguments = (*tensors, *parameters, *statistics, *_partial(x, plan))
        _split(plan, plan.steps(n), arguments, c, h * w, eps, activation)
        return y, mean, rstd
    kernel, options = _instance_norm_whole_kernel, {}
    if plan.kind == "looped":
        kernel, options = _instance_norm_looped_kernel, {"STAGES": plan.num_stages}
    kernel[(plan.units(n),)](
        *tensors, *parameters, mean, rstd, c, h * w, plan.c_blocks, eps,
        ACTIVATION=activation, BC=plan.block_c, BP=plan.block_p, **options,
        num_warps=plan.num_warps,
    )  # fmt: skip
    return y, mean, rstd


def instance_norm_stats(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Mean and rstd [N, C] float32."""
    n, c, h, w = x.shape
    pixels = h * w
    x, x_strides = planes(x)
    plan = one_pass_plan(x, x_strides)
    partial = _partial(x, plan)
    nothing = (*_planes_or_none(None), *_planes_or_none(None), *[*_parameter(None)] * 4)
    _split(
        plan, [(0, 0, plan.units(n))], (x, x_strides, *nothing, *partial), c, pixels, eps, "none"
    )
    mean, rstd = (x.new_empty((n, c), dtype=torch.float32) for _ in range(2))
    _merge_kernel[(plan.units(n),)](
        *partial, mean, rstd, c, pixels, plan.c_blocks, plan.splits, plan.chunk, eps,
        BC=plan.block_c, BS=_merge_block(plan), num_warps=plan.num_warps,
    )  # fmt: skip
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
    x, x_strides = planes(x)
    plan = one_pass_plan(x, x_strides)
    y = torch.empty_like(x, memory_format=layout(x))
    arguments = (
        x, x_strides, *_planes_or_none(residual), *planes(y),
        *_parameter(weight), *_parameter(bias), *_parameter(mean), *_parameter(rstd), None, None,
    )  # fmt: skip
    _split(plan, [(0, plan.units(n), 0)], arguments, c, h * w, 0.0, activation)
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
    x, x_strides = planes(x)
    if residual is None or activation == "none":
        residual = dresidual = None
    else:
        dresidual = torch.empty_like(x, dtype=residual.dtype, memory_format=layout(x))
    row = norm_row("instance_norm_bwd", x)
    plan = plane_plan(x, x_strides, row, read=2 if residual is None else 3)
    mean, rstd = mean.contiguous(), rstd.contiguous()
    dweight, dbias = torch.empty_like(mean), torch.empty_like(mean)
    dx = torch.empty_like(x, memory_format=layout(x))
    arguments = (
        *planes(dy), x, x_strides, *_planes_or_none(residual),
        *planes(dx), *_planes_or_none(dresidual),
        *_parameter(weight), *_parameter(bias), mean, rstd, dweight, dbias,
    )  # fmt: skip
    options = {
        "ACTIVATION": activation, "FIXED": fixed,
        "BC": plan.block_c, "BP": plan.block_p, "num_warps": plan.num_warps,
    }  # fmt: skip
    if plan.kind == "split":
        partial = _partial(x, plan)
        for step in plan.steps(n):
            _instance_norm_split_bwd_kernel[plan.programs(step)](
                *arguments, *partial, *step, c, h * w, plan.c_blocks, plan.splits, plan.chunk,
                BS=_merge_block(plan), STAGES=plan.num_stages, **options,
            )  # fmt: skip
    elif plan.kind == "looped":
        _instance_norm_looped_bwd_kernel[(plan.units(n),)](
            *arguments, c, h * w, plan.c_blocks, STAGES=plan.num_stages, **options
        )
    else:
        _instance_norm_whole_bwd_kernel[(plan.units(n),)](
            *arguments, c, h * w, plan.c_blocks, **options
        )
    return dx, x.new_empty(0) if dresidual is None else dresidual, dweight, dbias


def _split(
    plan: Plan,
    steps: list[tuple[int, int, int]],
    arguments: tuple[Any, ...],  # of the kernel, up to its partial results
    c: int,
    hw: int,
    eps: float,
    activation: str,
) -> None:
    for step in steps:
        _instance_norm_split_kernel[plan.programs(step)](
            *arguments, *step, c, hw, plan.c_blocks, plan.splits, plan.chunk, eps,
            ACTIVATION=activation, BC=plan.block_c, BP=plan.block_p, BS=_merge_block(plan),
            STAGES=plan.num_stages, num_warps=plan.num_warps,
        )  # fmt: skip


def _partial(x: Tensor, plan: Plan) -> tuple[Tensor, Tensor]:
    """Room for two partial results of every chunk, [N, splits, C] float32 each."""
    first = x.new_empty((x.shape[0], plan.splits, x.shape[1]), dtype=torch.float32)
    return first, torch.empty_like(first)


def _merge_block(plan: Plan) -> int:
    """Splits that are merged at a time: 8 partial results a thread, as many of the other kind."""
    block: int = min(power_of_2(plan.splits), max(256 * plan.num_warps // plan.block_c, 1))
    return block


def _planes_or_none(t: Tensor | None) -> tuple[Tensor | None, tuple[int, int, int]]:
    return (None, (0, 0, 0)) if t is None else planes(t)


def _parameter(p: Tensor | None) -> tuple[Tensor | None, int]:
    """A parameter [C] or [N, C] with its stride by sample; channels must be neighbours."""
    if p is None:
        return None, 0
    p = p if p.stride(-1) == 1 else p.contiguous()
    return p, p.stride(0) if p.ndim == 2 else 0
