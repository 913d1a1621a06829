# mypy: disable-error-code="no-untyped-def"
"""Gram matrices, the relative distance between them, and the gradients of both.

x [N, C, H·W] gives [N, C, C]: small matrices from long sums. A program multiplies a tile of BC × BC
channels over `chunk` pixels, BP at a time, on the tensor cores; `splits` programs share the pixels
and a second launch adds their parts, always in the same order. Only tiles on and below the diagonal
are computed. As in instance_norm.py, strides by (sample, channel, pixel) serve both layouts.

Products are in the dtype of x, sums in float32. A product of float32 is tf32 where the user allows
that in torch's own matrix products, and otherwise three tf32 products that make up a float32 one.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from faststy.kernels import tuning
from faststy.kernels.precision import factor_dtype, precision
from faststy.kernels.tuning import ceil_div, gram_plan, layout, planes, power_of_2

# Hints for readers: i_ index of a program, o_ offsets, b_ a block; i_n sample, i_s split.


@triton.jit
def _load(
    ptr, strides, mean_ptr, i_n, c0, p0, C, end, BC: tl.constexpr, BP: tl.constexpr
):  # fmt: skip
    """Channels c0… of pixels p0…, [BC, BP], less their mean; zero beyond the edges."""
    # Channels in int64: a tile of them may span more than 2³¹ pixels.
    o_c, o_p = tl.arange(0, BC)[:, None].to(tl.int64), tl.arange(0, BP)[None, :]
    mask = (o_c < C - c0) & (o_p < end - p0)
    p0 = tl.full([], p0, tl.int64)  # in the interpreter, a loop's index forgets its type
    at = ptr + (i_n * strides[0] + c0 * strides[1] + p0 * strides[2])
    b_x = tl.load(at + (o_c * strides[1] + o_p * strides[2]), mask=mask, other=0)
    if mean_ptr is not None:
        mean = tl.load(mean_ptr + i_n * C + c0 + o_c, mask=o_c < C - c0, other=0)  # [BC, 1]
        b_x = tl.where(mask, b_x - mean, 0.0).to(b_x.dtype)
    return b_x


@triton.jit
def _gram_fwd_kernel(
    x_ptr, x_strides,  # [N, C, HW]
    mean_ptr,  # [N, C] or None
    part_ptr,  # [N, splits, C, C], written on and below the diagonal
    C, HW, c_blocks, splits, chunk,
    DTYPE: tl.constexpr, PRECISION: tl.constexpr,
    BC: tl.constexpr, BP: tl.constexpr, ONE: tl.constexpr,  # whether one tile holds all channels
):  # fmt: skip
    pid = tl.program_id(0).to(tl.int64)
    row, col = pid % c_blocks * BC, (pid // c_blocks) % c_blocks * BC
    i_s = (pid // (c_blocks * c_blocks)) % splits
    i_n = pid // (c_blocks * c_blocks * splits)
    if col > row:
        return  # the mirror image of another tile

    b_gram = tl.zeros([BC, BC], tl.float32)
    end = tl.minimum((i_s + 1) * chunk, HW)
    for p0 in range(i_s * chunk, end, BP):
        b_x = _load(x_ptr, x_strides, mean_ptr, i_n, row, p0, C, end, BC, BP)
        b_y = b_x
        if not ONE:  # otherwise both factors are the same, and x is read once
            b_y = _load(x_ptr, x_strides, mean_ptr, i_n, col, p0, C, end, BC, BP)
        b_y = tl.trans(b_y.to(DTYPE))
        b_gram = tl.dot(b_x.to(DTYPE), b_y, b_gram, input_precision=PRECISION)

    o_row, o_col = row + tl.arange(0, BC)[:, None], col + tl.arange(0, BC)[None, :]
    at = part_ptr + (i_n * splits + i_s) * C * C
    tl.store(at + o_row * C + o_col, b_gram, mask=(o_row < C) & (o_col < C))


@triton.jit
def _gram_merge_kernel(
    part_ptr,  # [N, splits, C, C], valid on and below the diagonal
    target_ptr, target_stride,  # [C, C] (stride 0) or [N, C, C], or None
    out_ptr,  # [N, C, C], written: the Gram matrix, or the symmetric part of gram − target
    norms_ptr,  # [N, blocks, 2] or None, written: sums of difference² and target² of each block
    C, splits, blocks, scale,
    BS: tl.constexpr, BE: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0).to(tl.int64)
    i_n, i_e = pid // blocks, pid % blocks
    o_e = i_e * BE + tl.arange(0, BE)  # entries of the matrix, row by row
    mask = o_e < C * C
    row, col = o_e // C, o_e % C
    o_lower = tl.maximum(row, col) * C + tl.minimum(row, col)

    b_gram = tl.zeros([BE], tl.float32)
    for s0 in range(0, splits, BS):
        o_s = s0 + tl.arange(0, BS)[:, None]
        at = part_ptr + (i_n * splits + o_s) * C * C + o_lower[None, :]
        b_gram += tl.sum(tl.load(at, mask=(o_s < splits) & mask[None, :], other=0), 0)
    b_gram *= scale
    if target_ptr is not None:
        target_ptr += i_n * target_stride
        b_target = tl.load(target_ptr + o_e, mask=mask, other=0)
        b_mirror = tl.load(target_ptr + col * C + row, mask=mask, other=0)
        difference = b_gram - b_target
        tl.store(norms_ptr + pid * 2, tl.sum(difference * difference))
        tl.store(norms_ptr + pid * 2 + 1, tl.sum(b_target * b_target))
        b_gram -= (b_target + b_mirror) * 0.5
    tl.store(out_ptr + i_n * C * C + o_e, b_gram, mask=mask)


@triton.jit
def _gram_loss_kernel(
    norms_ptr,  # [N, blocks, 2]
    loss_ptr,  # []
    factor_ptr,  # [N], written: what makes the difference d loss / d gram
    N, blocks,
    BN: tl.constexpr, BB: tl.constexpr,
):  # fmt: skip
    """One program: N · blocks numbers are few."""
    loss = 0.0
    for n0 in range(0, N, BN):
        o_n = n0 + tl.arange(0, BN)
        distance = tl.zeros([BN], tl.float32)
        energy = tl.zeros([BN], tl.float32)
        for b0 in range(0, blocks, BB):
            o_b = b0 + tl.arange(0, BB)[None, :]
            mask = (o_n[:, None] < N) & (o_b < blocks)
            at = norms_ptr + (o_n[:, None] * blocks + o_b) * 2
            distance += tl.sum(tl.load(at, mask=mask, other=0), 1)
            energy += tl.sum(tl.load(at + 1, mask=mask, other=0), 1)
        energy = N * tl.maximum(energy, 1.1754944e-38)  # the smallest normal float32
        loss += tl.sum(tl.where(o_n < N, distance / energy, 0.0))
        tl.store(factor_ptr + o_n, 2 / energy, mask=o_n < N)
    tl.store(loss_ptr, loss)


@triton.jit
def _gram_bwd_kernel(
    symmetric_ptr,  # [N, C, C]
    x_ptr, x_strides,  # [N, C, HW]
    mean_ptr,  # [N, C] or None
    dx_ptr, dx_strides,  # [N, C, HW], written
    scale_ptr, scale,  # [N] or None, and one number for all
    C, HW, c_blocks, splits, chunk,
    DTYPE: tl.constexpr, PRECISION: tl.constexpr,
    BC: tl.constexpr, BP: tl.constexpr, ONE: tl.constexpr,  # whether one tile holds all channels
):  # fmt: skip
    """dx = scale · symmetric @ (x − mean)."""
    pid = tl.program_id(0).to(tl.int64)
    c0 = pid % c_blocks * BC  # blocks of the same pixels run side by side and share them in L2
    i_s, i_n = (pid // c_blocks) % splits, pid // (c_blocks * splits)
    if scale_ptr is not None:
        scale *= tl.load(scale_ptr + i_n)
    o_c, o_p = tl.arange(0, BC)[:, None].to(tl.int64), tl.arange(0, BP)[None, :]
    matrix_strides = (C * C, C, 1)

    if ONE:  # the whole matrix: load it once
        b_m = _load(symmetric_ptr, matrix_strides, None, i_n, 0, 0, C, C, BC, BC).to(DTYPE)
    end = tl.minimum((i_s + 1) * chunk, HW)
    for p0 in range(i_s * chunk, end, BP):
        b_dx = tl.zeros([BC, BP], tl.float32)
        if ONE:
            b_x = _load(x_ptr, x_strides, mean_ptr, i_n, 0, p0, C, end, BC, BP)
            b_dx = tl.dot(b_m, b_x.to(DTYPE), b_dx, input_precision=PRECISION)
        else:
            for k0 in range(0, C, BC):
                b_a = _load(symmetric_ptr, matrix_strides, None, i_n, c0, k0, C, C, BC, BC)
                b_x = _load(x_ptr, x_strides, mean_ptr, i_n, k0, p0, C, end, BC, BP)
                b_dx = tl.dot(b_a.to(DTYPE), b_x.to(DTYPE), b_dx, input_precision=PRECISION)
        start = tl.full([], p0, tl.int64)
        at = dx_ptr + (i_n * dx_strides[0] + c0 * dx_strides[1] + start * dx_strides[2])
        at += o_c * dx_strides[1] + o_p * dx_strides[2]
        tl.store(at, b_dx * scale, mask=(o_c < C - c0) & (o_p < end - p0))


# ---------------------------------------------------------------------------- launchers


def gram_fwd(x: Tensor, mean: Tensor | None) -> Tensor:
    """[N, C, C] float32, of x less `mean` [N, C] float32."""
    gram = x.new_empty((len(x), x.shape[1], x.shape[1]), dtype=torch.float32)
    _merge(_partial_grams(x, mean), None, gram, x)
    return gram


def gram_loss_fwd(x: Tensor, mean: Tensor | None, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The loss, the symmetric part of gram − target [N, C, C], and d loss / d gram over it [N]."""
    difference = x.new_empty((len(x), x.shape[1], x.shape[1]), dtype=torch.float32)
    norms = _merge(_partial_grams(x, mean), target, difference, x)
    loss, factor = difference.new_empty(()), difference.new_empty(len(x))
    n, blocks = norms.shape[:2]
    _gram_loss_kernel[(1,)](
        norms, loss, factor, n, blocks, BN=min(power_of_2(n), 16), BB=min(power_of_2(blocks), 64)
    )
    return loss, difference, factor


def gram_bwd(symmetric: Tensor, x: Tensor, mean: Tensor | None, scale: Tensor | None) -> Tensor:
    """scale · symmetric @ (x − mean) / (C·H·W), like x; symmetric [N, C, C], scale [N] or None."""
    n, c, h, w = x.shape
    x, x_strides = planes(x)
    plan = gram_plan(x, backward=True)
    dx = torch.empty_like(x, memory_format=layout(x))
    # The matrix needs the exponents of float32, which tf32 has, and all of float16 fits into tf32.
    dtype = tl.float32 if x.dtype == torch.float16 else factor_dtype(x)
    _gram_bwd_kernel[(n * plan.c_blocks * plan.splits,)](
        symmetric.contiguous(), x, x_strides, mean, *planes(dx), scale, 1 / (c * h * w),
        c, h * w, plan.c_blocks, plan.splits, plan.chunk,
        DTYPE=dtype, PRECISION=precision(x),
        BC=plan.block_c, BP=plan.block_p, ONE=plan.c_blocks == 1,
        num_warps=plan.num_warps, num_stages=plan.num_stages,
    )  # fmt: skip
    return dx


def _partial_grams(x: Tensor, mean: Tensor | None) -> Tensor:
    """Sums over every chunk of pixels, [N, splits, C, C] float32, on and below the diagonal."""
    n, c, h, w = x.shape
    x, x_strides = planes(x)
    plan = gram_plan(x)
    partial = x.new_empty((n, plan.splits, c, c), dtype=torch.float32)
    _gram_fwd_kernel[(n * plan.splits * plan.c_blocks**2,)](
        x, x_strides, mean, partial, c, h * w, plan.c_blocks, plan.splits, plan.chunk,
        DTYPE=factor_dtype(x), PRECISION=precision(x),
        BC=plan.block_c, BP=plan.block_p, ONE=plan.c_blocks == 1,
        num_warps=plan.num_warps, num_stages=plan.num_stages,
    )  # fmt: skip
    return partial


def _merge(partial: Tensor, target: Tensor | None, out: Tensor, x: Tensor) -> Tensor:
    """Write the scaled sum of `partial`, less `target`, to `out`; its norms are the result."""
    n, splits, c, _ = partial.shape
    block_s = min(power_of_2(splits), 32)
    block_e = min(power_of_2(c * c), tuning.MERGE // max(block_s, 4))
    blocks = ceil_div(c * c, block_e)
    norms = None if target is None else out.new_empty((n, blocks, 2))
    stride = c * c if target is not None and target.ndim == 3 else 0
    _gram_merge_kernel[(n * blocks,)](
        partial, target, stride, out, norms, c, splits, blocks, n / x.numel(),
        BS=block_s, BE=block_e,
    )  # fmt: skip
    return out if norms is None else norms
