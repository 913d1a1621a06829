# mypy: disable-error-code="no-untyped-def"
"""Instance normalisation of planes that registers do not hold: read twice, tile by tile.

The formulas are those of instance_norm.py: start there. There are two plans:

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

from faststy.kernels.tiles import activate, activation_grad, at, load, per_channel
from faststy.kernels.tuning import Plan, Step, power_of_2

# Hints for readers, beside those of instance_norm.py: i_c is the block of channels, i_s the split.


@triton.jit
def _task(pid, first, finished, summed, c_blocks, splits):
    """Sample, block of channels, split, and whether to finish it: what program `pid` is to do with
    `finished` units from the first on and `summed` ones after them.

    Units run side by side: channels of a pixel, and those that write beside those that read.
    Three groups of two units, 0 and 1, 2 and 3, 4 and 5, in two splits, are four launches. What
    their programs 0, 1, 2 … do; s4/0 is to sum up unit 4, split 0, and f4/0 to finish it:

        first  finished  summed
            0         0       2    s0/0  s1/0  s0/1  s1/1
            0         2       2    f0/1  f1/1  s2/0  s3/0  f0/0  f1/0  s2/1  s3/1
            2         2       2    f2/1  f3/1  s4/0  s5/0  f2/0  f3/0  s4/1  s5/1
            4         2       0    f4/1  f5/1  f4/0  f5/0
    """
    unit = pid % (finished + summed)
    i_s = pid // (finished + summed)
    finishes = unit < finished
    if finishes:
        i_s = splits - 1 - i_s  # begin with what was read last: it is still in L2
    unit += first
    return unit // c_blocks, unit % c_blocks, i_s, finishes


@triton.jit
def _chunks(i_n, s0, o_c, C, splits, BS: tl.constexpr):
    """Splits [BS], offsets [BS, BC] into partial results [N, splits, C], and their mask."""
    o_s = s0 + tl.arange(0, BS)
    o_in = (i_n * splits + o_s[:, None]) * C + o_c[None, :]
    return o_s, o_in, (o_s[:, None] < splits) & (o_c[None, :] < C)


# ---------------------------------------------------------------------------- forward


@triton.jit
def _chunk_stats(
    x, i_n, c0, start, end, C, BC: tl.constexpr, BP: tl.constexpr, STAGES: tl.constexpr
):
    """Mean and sum of squared deviations [BC] over pixels start … end − 1."""
    o_c, o_p = c0 + tl.arange(0, BC), tl.arange(0, BP)
    # Welford's update in every lane of the tile: no exchange between threads until the end, and
    # unlike E[x²] − E[x]² nothing cancels when the mean is large.
    b_mean = tl.zeros([BC, BP], tl.float32)
    b_m2 = tl.zeros([BC, BP], tl.float32)
    steps = 0.0
    for p0 in tl.range(start, end, BP, num_stages=STAGES):
        mask = (o_c[:, None] < C) & (o_p[None, :] < end - p0)
        b_x = load(x, i_n, c0, p0, mask, "evict_last")
        steps += 1.0
        delta = tl.where(mask, b_x - b_mean, 0.0)
        b_mean += delta * (1.0 / steps)
        b_m2 += delta * (b_x - b_mean)

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
def _normalise_chunk(
    x, residual, y, weight, bias, mean, rstd, i_n, c0, start, end, C,
    ACTIVATION: tl.constexpr, BC: tl.constexpr, BP: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """y of pixels start … end − 1, by mean and rstd [BC]."""
    o_c, o_p = c0 + tl.arange(0, BC), tl.arange(0, BP)
    scale = rstd[:, None] * per_channel(weight, i_n, o_c, C, 1.0)  # [BC, 1]
    b_bias = per_channel(bias, i_n, o_c, C, 0.0)
    for p0 in tl.range(start, end, BP, num_stages=STAGES):
        mask = (o_c[:, None] < C) & (o_p[None, :] < end - p0)
        z = (load(x, i_n, c0, p0, mask, "evict_first") - mean[:, None]) * scale + b_bias
        if residual is not None:
            z += load(residual, i_n, c0, p0, mask, "evict_first")
        y_at = at(y, i_n, c0, p0, BC, BP)
        tl.store(y_at, activate(z, ACTIVATION), mask=mask, eviction_policy="evict_first")


@triton.jit
def instance_norm_looped_kernel(
    x, residual, y,  # [N, C, HW]; residual may be None; y is written
    weight, bias,  # [C] or [N, C], or None
    mean_ptr, rstd_ptr,  # [N, C], written
    C, HW, c_blocks, eps,
    ACTIVATION: tl.constexpr, BC: tl.constexpr, BP: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0).to(tl.int64)
    i_n, c0 = pid // c_blocks, pid % c_blocks * BC
    o_c = c0 + tl.arange(0, BC)
    mean, m2 = _chunk_stats(x, i_n, c0, 0, HW, C, BC, BP, STAGES)
    rstd = tl.rsqrt(m2 / HW + eps)
    tl.store(mean_ptr + i_n * C + o_c, mean, mask=o_c < C)
    tl.store(rstd_ptr + i_n * C + o_c, rstd, mask=o_c < C)
    _normalise_chunk(
        x, residual, y, weight, bias, mean, rstd, i_n, c0, 0, HW, C, ACTIVATION, BC, BP, STAGES
    )


@triton.jit(do_not_specialize=["first", "finished", "summed"])
def instance_norm_split_kernel(
    x, residual,  # [N, C, HW]; residual may be None
    y,  # [N, C, HW], written; or None, to stop at partial results
    weight, bias,  # [C] or [N, C], or None
    mean, rstd,  # [N, C]: read if there are no partial results, otherwise written
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
        if y is not None:
            mean_ptr, mean_stride = mean
            rstd_ptr, rstd_stride = rstd
            if part_mean_ptr is None:
                b_mean = tl.load(mean_ptr + i_n * mean_stride + o_c, mask=o_c < C, other=0)  # [BC]
                b_rstd = tl.load(rstd_ptr + i_n * rstd_stride + o_c, mask=o_c < C, other=0)
            else:
                b_mean, b_rstd = _merged_stats(
                    part_mean_ptr, part_m2_ptr, i_n, o_c, C, HW, splits, chunk, eps, BC, BS
                )
                if i_s == 0:
                    tl.store(mean_ptr + i_n * mean_stride + o_c, b_mean, mask=o_c < C)
                    tl.store(rstd_ptr + i_n * rstd_stride + o_c, b_rstd, mask=o_c < C)
            _normalise_chunk(
                x, residual, y, weight, bias, b_mean, b_rstd, i_n, c0, start, end, C,
                ACTIVATION, BC, BP, STAGES,
            )  # fmt: skip
    elif part_mean_ptr is not None:
        b_mean, m2 = _chunk_stats(x, i_n, c0, start, end, C, BC, BP, STAGES)
        o_out = (i_n * splits + i_s) * C + o_c
        tl.store(part_mean_ptr + o_out, b_mean, mask=o_c < C)
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
# In channels_last a thread holds the parameters of its 8 channels: rstd stays out of the loops.


@triton.jit
def _parameters(mean_ptr, rstd_ptr, weight, bias, i_n, o_c, C):
    """mean, rstd, rstd·weight and bias, [BC, 1] each."""
    mean = per_channel((mean_ptr, C), i_n, o_c, C, 0.0)
    rstd = per_channel((rstd_ptr, C), i_n, o_c, C, 0.0)
    scale = rstd * per_channel(weight, i_n, o_c, C, 1.0)
    return mean, rstd, scale, per_channel(bias, i_n, o_c, C, 0.0)


@triton.jit
def _g_and_centered(
    dy, x, residual, mean, scale, b_bias, i_n, c0, p0, mask,
    ACTIVATION: tl.constexpr, EVICT: tl.constexpr,
):  # fmt: skip
    """g and x − mean, [BC, BP] each; zero beyond the edges."""
    b_x = load(x, i_n, c0, p0, mask, EVICT)
    g = load(dy, i_n, c0, p0, mask, EVICT)
    centered = tl.where(mask, b_x - mean, 0.0)
    if ACTIVATION != "none":
        z = centered * scale + b_bias
        if residual is not None:
            z += load(residual, i_n, c0, p0, mask, EVICT)
        g = activation_grad(z, g, ACTIVATION)
    return g, centered


@triton.jit
def _chunk_sums(
    dy, x, residual, mean, rstd, scale, b_bias, i_n, c0, start, end, C,
    ACTIVATION: tl.constexpr, BC: tl.constexpr, BP: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Shares of dweight and dbias, [BC] each, of pixels start … end − 1."""
    o_c, o_p = c0 + tl.arange(0, BC), tl.arange(0, BP)
    b_dweight = tl.zeros([BC, BP], tl.float32)
    b_dbias = tl.zeros([BC, BP], tl.float32)
    for p0 in tl.range(start, end, BP, num_stages=STAGES):
        mask = (o_c[:, None] < C) & (o_p[None, :] < end - p0)
        g, centered = _g_and_centered(
            dy, x, residual, mean, scale, b_bias, i_n, c0, p0, mask, ACTIVATION, "evict_last"
        )
        b_dweight += g * centered
        b_dbias += g
    return tl.sum(b_dweight, 1) * tl.ravel(rstd), tl.sum(b_dbias, 1)


@triton.jit
def _chunk_grads(
    dy, x, residual, dx, dresidual, mean, rstd, scale, b_bias,
    dweight, dbias,  # [BC], of whole planes
    i_n, c0, start, end, C, HW,
    ACTIVATION: tl.constexpr, FIXED: tl.constexpr,
    BC: tl.constexpr, BP: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """dx and dresidual of pixels start … end − 1."""
    o_c, o_p = c0 + tl.arange(0, BC), tl.arange(0, BP)
    offset = (dbias / HW)[:, None]  # [BC, 1]
    slope = rstd * (dweight / HW)[:, None]
    for p0 in tl.range(start, end, BP, num_stages=STAGES):
        mask = (o_c[:, None] < C) & (o_p[None, :] < end - p0)
        g, centered = _g_and_centered(
            dy, x, residual, mean, scale, b_bias, i_n, c0, p0, mask, ACTIVATION, "evict_first"
        )
        if dresidual is not None:
            dresidual_at = at(dresidual, i_n, c0, p0, BC, BP)
            tl.store(dresidual_at, g, mask=mask, eviction_policy="evict_first")
        if not FIXED:
            g -= offset + centered * slope
        dx_at = at(dx, i_n, c0, p0, BC, BP)
        tl.store(dx_at, g * scale, mask=mask, eviction_policy="evict_first")


@triton.jit
def instance_norm_looped_bwd_kernel(
    dy, x, residual,  # [N, C, HW]; residual may be None
    dx, dresidual,  # [N, C, HW], written; dresidual may be None
    weight, bias,  # [C] or [N, C], or None
    mean_ptr, rstd_ptr,  # [N, C]
    dweight_ptr, dbias_ptr,  # [N, C], written
    C, HW, c_blocks,
    ACTIVATION: tl.constexpr, FIXED: tl.constexpr,
    BC: tl.constexpr, BP: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0).to(tl.int64)
    i_n, c0 = pid // c_blocks, pid % c_blocks * BC
    o_c = c0 + tl.arange(0, BC)
    mean, rstd, scale, b_bias = _parameters(mean_ptr, rstd_ptr, weight, bias, i_n, o_c, C)
    dweight, dbias = _chunk_sums(
        dy, x, residual, mean, rstd, scale, b_bias, i_n, c0, 0, HW, C, ACTIVATION, BC, BP, STAGES
    )
    tl.store(dweight_ptr + i_n * C + o_c, dweight, mask=o_c < C)
    tl.store(dbias_ptr + i_n * C + o_c, dbias, mask=o_c < C)
    _chunk_grads(
        dy, x, residual, dx, dresidual, mean, rstd, scale, b_bias, dweight, dbias,
        i_n, c0, 0, HW, C, HW, ACTIVATION, FIXED, BC, BP, STAGES,
    )  # fmt: skip


@triton.jit(do_not_specialize=["first", "finished", "summed"])
def instance_norm_split_bwd_kernel(
    dy, x, residual,  # [N, C, HW]; residual may be None
    dx, dresidual,  # [N, C, HW], written; dresidual may be None
    weight, bias,  # [C] or [N, C], or None
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
    mean, rstd, scale, b_bias = _parameters(mean_ptr, rstd_ptr, weight, bias, i_n, o_c, C)

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
            dy, x, residual, dx, dresidual, mean, rstd, scale, b_bias, dweight, dbias,
            i_n, c0, start, end, C, HW, ACTIVATION, FIXED, BC, BP, STAGES,
        )  # fmt: skip
    else:
        dweight, dbias = _chunk_sums(
            dy, x, residual, mean, rstd, scale, b_bias, i_n, c0, start, end, C,
            ACTIVATION, BC, BP, STAGES,
        )  # fmt: skip
        o_out = (i_n * splits + i_s) * C + o_c
        tl.store(part_dweight_ptr + o_out, dweight, mask=o_c < C)
        tl.store(part_dbias_ptr + o_out, dbias, mask=o_c < C)


# ---------------------------------------------------------------------------- launchers


def split(
    kernel: Any,
    plan: Plan,
    steps: list[Step],
    tensors: tuple[Any, ...],  # of the kernel, up to its partial results
    c: int,
    hw: int,
    **options: Any,
) -> None:
    """The launches of a split plan."""
    for step in steps:
        kernel[plan.programs(step)](
            *tensors, *step, c, hw, plan.c_blocks, plan.splits, plan.chunk,
            BC=plan.block_c, BP=plan.block_p, BS=_merge_block(plan), STAGES=plan.num_stages,
            num_warps=plan.num_warps, **options,
        )  # fmt: skip


def merged(
    partial: tuple[Tensor, Tensor], plan: Plan, n: int, c: int, hw: int, eps: float
) -> tuple[Tensor, Tensor]:
    """Mean and rstd [N, C] from means and M2 of chunks."""
    mean, rstd = (partial[0].new_empty((n, c)) for _ in range(2))
    _merge_kernel[(plan.units(n),)](
        *partial, mean, rstd, c, hw, plan.c_blocks, plan.splits, plan.chunk, eps,
        BC=plan.block_c, BS=_merge_block(plan), num_warps=plan.num_warps,
    )  # fmt: skip
    return mean, rstd


def partial_results(x: Tensor, plan: Plan) -> tuple[Tensor, Tensor]:
    """Room for two partial results of every chunk, [N, splits, C] float32 each."""
    first = x.new_empty((x.shape[0], plan.splits, x.shape[1]), dtype=torch.float32)
    return first, torch.empty_like(first)


def _merge_block(plan: Plan) -> int:
    """Splits that are merged at a time: 8 partial results a thread, as many of the other kind."""
    block: int = min(power_of_2(plan.splits), max(256 * plan.num_warps // plan.block_c, 1))
    return block
