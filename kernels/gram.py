# mypy: disable-error-code="no-untyped-def"
"""Gram matrices, the relative distance between them, and the gradients of both.

x [N, C, H·W] gives [N, C, C]: small matrices from long sums. A program multiplies a tile of BC × BC
channels over `chunk` pixels, BP at a time, on the tensor cores. Only tiles on and below the
diagonal are computed. Where these are too few for the chip, `splits` programs share the pixels, and
a second launch adds their parts, always in the same order. Where channels are too few for a tile,
`groups` of pixels stand for further channels. Strides by (sample, channel, pixel) serve both
layouts.

Products are in the dtype of x, sums in float32. A product of float32 is tf32 where the user allows
that in torch's own matrix products, and otherwise three tf32 products that make up a float32 one.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from faststy.kernels.precision import factor_dtype, precision
from faststy.kernels.tuning import GramPlan, ceil_div, gram_plan, layout, planes, power_of_2

MERGE_TILE = 16  # side of a tile that a program merges: a divisor of every block of channels
MERGE_PARTS = 64  # partial sums of each entry that it reads at a time, at most

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
def _tile(i, blocks, B: tl.constexpr):
    """The first row and column of tile i of those on and below the diagonal, which come first."""
    i_a = i % blocks
    i_b = (i_a + i // blocks) % blocks  # so that blocks·(blocks + 1)/2 tiles are all pairs, once
    return tl.maximum(i_a, i_b) * B, tl.minimum(i_a, i_b) * B


@triton.jit
def _product(
    x_ptr, x_strides, mean_ptr, i_n, row, col, C, start, end,
    DTYPE: tl.constexpr, PRECISION: tl.constexpr,
    BC: tl.constexpr, BP: tl.constexpr, DIAGONAL: tl.constexpr,
):  # fmt: skip
    """Channels row… times channels col…, summed over pixels, [BC, BC]."""
    b_gram = tl.zeros([BC, BC], tl.float32)
    for p0 in range(start, end, BP):
        b_x = _load(x_ptr, x_strides, mean_ptr, i_n, row, p0, C, end, BC, BP)
        b_y = b_x
        if not DIAGONAL:  # otherwise both factors are the same, and x is read once
            b_y = _load(x_ptr, x_strides, mean_ptr, i_n, col, p0, C, end, BC, BP)
        b_y = tl.trans(b_y.to(DTYPE))
        b_gram = tl.dot(b_x.to(DTYPE), b_y, b_gram, input_precision=PRECISION)
    return b_gram


@triton.jit
def _store_both(ptr, b_matrix, row, col, C, B: tl.constexpr):
    """Write a tile and its mirror image; on the diagonal, its lower half and that one's."""
    o_row, o_col = row + tl.arange(0, B)[:, None], col + tl.arange(0, B)[None, :]
    mask = (o_row < C) & (o_col < C)
    b_matrix = tl.where(o_row >= o_col, b_matrix, tl.trans(b_matrix))
    tl.store(ptr + o_row * C + o_col, b_matrix, mask=mask)
    tl.store(ptr + o_col * C + o_row, b_matrix, mask=mask)


@triton.jit
def _gram_fwd_kernel(
    x_ptr, x_strides,  # [N, C, HW]
    mean_ptr,  # [N, C] or None
    out_ptr,  # WHOLE: the Gram matrix [N, C, C]; else sums [N, splits, C, C], below the diagonal
    C, HW, c_blocks, tiles, splits, chunk, scale,
    DTYPE: tl.constexpr, PRECISION: tl.constexpr,
    BC: tl.constexpr, BP: tl.constexpr,
    WHOLE: tl.constexpr,  # whether a program has all pixels, and no other launch is needed
):  # fmt: skip
    pid = tl.program_id(0).to(tl.int64)
    row, col = _tile(pid % tiles, c_blocks, BC)
    i_s, i_n = (pid // tiles) % splits, pid // (tiles * splits)
    start, end = i_s * chunk, tl.minimum((i_s + 1) * chunk, HW)
    if row == col:  # known to the compiler where there is one tile
        b_gram = _product(
            x_ptr, x_strides, mean_ptr, i_n, row, row, C, start, end,
            DTYPE, PRECISION, BC, BP, True,
        )  # fmt: skip
    else:
        b_gram = _product(
            x_ptr, x_strides, mean_ptr, i_n, row, col, C, start, end,
            DTYPE, PRECISION, BC, BP, False,
        )  # fmt: skip

    out_ptr += (i_n * splits + i_s) * C * C
    if WHOLE:
        _store_both(out_ptr, b_gram * scale, row, col, C, BC)
    else:
        o_row, o_col = row + tl.arange(0, BC)[:, None], col + tl.arange(0, BC)[None, :]
        tl.store(out_ptr + o_row * C + o_col, b_gram, mask=(o_row < C) & (o_col < C))


@triton.jit
def _gram_merge_kernel(
    part_ptr, part_strides,  # [N, splits, groups, C, C], valid in tiles on and below the diagonal
    target_ptr, target_stride,  # [C, C] (stride 0) or [N, C, C], or None
    out_ptr,  # [N, C, C], written: the Gram matrix, or the symmetric part of gram − target
    norms_ptr,  # [N, tiles, 2] or None, written: sums of difference² and target² of each tile
    C, parts, groups, blocks, tiles, scale,  # parts = splits · groups
    BS: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0).to(tl.int64)
    i_n = pid // tiles
    row, col = _tile(pid % tiles, blocks, BC)
    o_row, o_col = row + tl.arange(0, BC)[:, None], col + tl.arange(0, BC)[None, :]
    mask = (o_row < C) & (o_col < C)
    at = o_row * C + o_col

    b_gram = tl.zeros([BC, BC], tl.float32)
    part_ptr += i_n * part_strides[0]
    o_part = o_row * part_strides[3] + o_col * part_strides[4]
    for s0 in range(0, parts, BS):
        o_s = s0 + tl.arange(0, BS)[:, None, None]
        o_part_s = (o_s // groups).to(tl.int64) * part_strides[1] + o_s % groups * part_strides[2]
        mask_s = (o_s < parts) & mask[None, :, :]
        b_gram += tl.sum(tl.load(part_ptr + o_part_s + o_part[None, :, :], mask=mask_s, other=0), 0)
    b_gram *= scale
    if target_ptr is not None:
        target_ptr += i_n * target_stride
        b_target = tl.load(target_ptr + at, mask=mask, other=0)
        b_mirror = tl.load(target_ptr + o_col * C + o_row, mask=mask, other=0)
        b_distance = (b_gram - b_target) * (b_gram - b_target)
        b_energy = b_target * b_target
        if row > col:  # this tile stands for its mirror image, too
            b_distance += (b_gram - b_mirror) * (b_gram - b_mirror)
            b_energy += b_mirror * b_mirror
        tl.store(norms_ptr + pid * 2, tl.sum(b_distance))
        tl.store(norms_ptr + pid * 2 + 1, tl.sum(b_energy))
        b_gram -= (b_target + b_mirror) * 0.5
    _store_both(out_ptr + i_n * C * C, b_gram, row, col, C, BC)


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
    BC: tl.constexpr, BK: tl.constexpr, BP: tl.constexpr,
    WHOLE: tl.constexpr,  # whether BK holds all channels
):  # fmt: skip
    """dx = scale · symmetric @ (x − mean)."""
    pid = tl.program_id(0).to(tl.int64)
    c0 = pid % c_blocks * BC  # blocks of the same pixels run side by side and share them in L2
    i_s, i_n = (pid // c_blocks) % splits, pid // (c_blocks * splits)
    if scale_ptr is not None:
        scale *= tl.load(scale_ptr + i_n)
    o_c, o_p = tl.arange(0, BC)[:, None].to(tl.int64), tl.arange(0, BP)[None, :]
    matrix_strides = (C * C, C, 1)

    if WHOLE:  # rows of the matrix are loaded once
        b_m = _load(symmetric_ptr, matrix_strides, None, i_n, c0, 0, C, C, BC, BK).to(DTYPE)
    end = tl.minimum((i_s + 1) * chunk, HW)
    for p0 in range(i_s * chunk, end, BP):
        b_dx = tl.zeros([BC, BP], tl.float32)
        if WHOLE:
            b_x = _load(x_ptr, x_strides, mean_ptr, i_n, 0, p0, C, end, BK, BP)
            b_dx = tl.dot(b_m, b_x.to(DTYPE), b_dx, input_precision=PRECISION)
        else:
            for k0 in range(0, C, BK):
                b_a = _load(symmetric_ptr, matrix_strides, None, i_n, c0, k0, C, C, BC, BK)
                b_x = _load(x_ptr, x_strides, mean_ptr, i_n, k0, p0, C, end, BK, BP)
                b_dx = tl.dot(b_a.to(DTYPE), b_x.to(DTYPE), b_dx, input_precision=PRECISION)
        start = tl.full([], p0, tl.int64)
        at = dx_ptr + (i_n * dx_strides[0] + c0 * dx_strides[1] + start * dx_strides[2])
        at += o_c * dx_strides[1] + o_p * dx_strides[2]
        tl.store(at, b_dx * scale, mask=(o_c < C - c0) & (o_p < end - p0))


# ---------------------------------------------------------------------------- launchers


def gram_fwd(x: Tensor, mean: Tensor | None) -> Tensor:
    """[N, C, C] float32, of x less `mean` [N, C] float32."""
    gram = x.new_empty((len(x), x.shape[1], x.shape[1]), dtype=torch.float32)
    x, _ = planes(x)
    plan = gram_plan(x)
    if plan.splits == plan.groups == 1:
        _products(x, mean, plan, gram, whole=True)
    else:
        _merge(_partial_grams(x, mean, plan), None, gram, x)
    return gram


def gram_loss_fwd(x: Tensor, mean: Tensor | None, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The loss, the symmetric part of gram − target [N, C, C], and d loss / d gram over it [N]."""
    difference = x.new_empty((len(x), x.shape[1], x.shape[1]), dtype=torch.float32)
    x, _ = planes(x)
    norms = _merge(_partial_grams(x, mean, gram_plan(x)), target, difference, x)
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
    whole = plan.block_k >= c
    if not whole and dtype == tl.bfloat16:
        symmetric = symmetric.bfloat16()  # which products round it to, of half the bytes a step
    _gram_bwd_kernel[(n * plan.c_blocks * plan.splits,)](
        symmetric.contiguous(), x, x_strides, mean, *planes(dx), scale, 1 / (c * h * w),
        c, h * w, plan.c_blocks, plan.splits, plan.chunk,
        DTYPE=dtype, PRECISION=precision(x),
        BC=plan.block_c, BK=plan.block_k, BP=plan.block_p, WHOLE=whole,
        num_warps=plan.num_warps, num_stages=plan.num_stages,
    )  # fmt: skip
    return dx


def _products(x: Tensor, mean: Tensor | None, plan: GramPlan, out: Tensor, whole: bool) -> None:
    """Products over every chunk of pixels: scaled and mirrored to [N, C, C] if `whole`."""
    n, c, h, w = x.shape
    tiles = plan.c_blocks * (plan.c_blocks + 1) // 2
    _gram_fwd_kernel[(n * plan.splits * tiles,)](
        *planes(x), mean, out, c, h * w, plan.c_blocks, tiles, plan.splits, plan.chunk,
        1 / (c * h * w),
        DTYPE=factor_dtype(x), PRECISION=precision(x),
        BC=plan.block_c, BP=plan.block_p, WHOLE=whole,
        num_warps=plan.num_warps, num_stages=plan.num_stages,
    )  # fmt: skip


def _partial_grams(x: Tensor, mean: Tensor | None, plan: GramPlan) -> Tensor:
    """Sums over every part of the pixels, [N, splits, groups, C, C] float32, a view.

    Groups of pixels that lie side by side stand for further channels, so that few channels fill a
    tile. Their products with their own kind are what is sought: blocks on the diagonal.
    """
    n, c, h, w = x.shape
    g, rows = plan.groups, plan.groups * c
    last = not x.is_contiguous()
    if g > 1 and last:  # the rows are groups of channels
        x = x.permute(0, 2, 3, 1).reshape(n, h * w // g, 1, rows).permute(0, 3, 1, 2)
        mean = None if mean is None else mean.repeat(1, g)
    elif g > 1:  # channels of groups
        x = x.reshape(n, rows, h * w // g, 1)
        mean = None if mean is None else mean.repeat_interleave(g, 1)
    partial = x.new_empty((n, plan.splits, rows, rows), dtype=torch.float32)
    _products(x, mean, plan, partial, whole=False)
    of_groups = (c * (rows + 1), rows, 1) if last else (rows + 1, g * rows, g)
    strides = (plan.splits * rows**2, rows**2, *of_groups)
    return partial.as_strided((n, plan.splits, g, c, c), strides)


def _merge(partial: Tensor, target: Tensor | None, out: Tensor, x: Tensor) -> Tensor:
    """Write the scaled sum of `partial`, less `target`, to `out`; its norms are the result."""
    n, splits, groups, c, _ = partial.shape
    parts, blocks = splits * groups, ceil_div(c, MERGE_TILE)
    tiles = blocks * (blocks + 1) // 2
    block_s = min(power_of_2(parts), MERGE_PARTS)
    norms = None if target is None else out.new_empty((n, tiles, 2))
    stride = c * c if target is not None and target.ndim == 3 else 0
    _gram_merge_kernel[(n * tiles,)](
        partial, partial.stride(), target, stride, out, norms, c, parts, groups, blocks, tiles,
        n / max(x.numel(), 1),
        BS=block_s, BC=MERGE_TILE, num_warps=max(block_s // 4, 4),
    )  # fmt: skip
    return out if norms is None else norms
