# mypy: disable-error-code="no-untyped-def"
"""A 3x3 convolution with reflected borders, and all that follows it, in one launch.

A program makes a tile of BY × BX pixels by BK channels of the result: a product of [BY·BX, R] and
[R, BK] on the tensor cores, of which the left factor is never stored. Its R = 9·C columns are taps
and channels in one row, tap by tap, and come BR at a time: whatever C is, little is padded. All is
channels_last, so that a column's neighbours are its neighbours in memory; the nine places that a
pixel is needed at are found by reflecting coordinates, and lie in the L1 cache.

Several inputs stand for one of all their channels: a sum of one product each.

Mean and variance of what was convolved: every program leaves those of its tile, and a second launch
merges them in a fixed order, by Chan's formula.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from faststy.kernels.precision import factor_dtype, precision
from faststy.kernels.tiles import parameter
from faststy.kernels.tuning import MERGE, ceil_div, conv_plan, power_of_2

INT32 = 2**31  # offsets below fit into it

# Hints for readers: i_ index of a program, o_ offsets of a tile, b_ a block of values; i_n sample,
# i_k block of channels of the result; o_m pixels of a tile, o_r columns: taps and channels.


@triton.jit
def _at(ptr, i_n, y0, x0, H, W, C: tl.constexpr):
    """Pointer to pixel (y0, x0) of sample i_n: in int64, as N·H·W·C may pass 2³¹."""
    return ptr + ((i_n.to(tl.int64) * H + y0) * W + x0) * C


@triton.jit
def _reflected(i, side):
    """Index −1 as 1, and `side` as side − 2."""
    i = tl.maximum(i, -i)
    return tl.minimum(i, 2 * side - 2 - i)


@triton.jit
def _convolved(
    b_y,  # [BM, BK] float32: the sum so far
    x_ptr,  # [N, H, W, C]
    weight_ptr,  # [K, 9, ALL], at the first of C channels among ALL
    i_n, y0, x0, H, W, o_k, o_m,
    C: tl.constexpr, ALL: tl.constexpr, K: tl.constexpr,
    DTYPE: tl.constexpr, OFFSET: tl.constexpr, PRECISION: tl.constexpr,
    BX: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    """b_y and the convolution of one input."""
    # Pixels beyond the edges repeat the last ones: they are not stored.
    row = tl.minimum(y0 + o_m // BX, H - 1)[:, None]
    col = tl.minimum(x0 + o_m % BX, W - 1)[:, None]
    x_ptr = _at(x_ptr, i_n, y0, x0, H, W, C)
    for r0 in range(0, 9 * C, BR):
        o_r = r0 + tl.arange(0, BR)
        tap, c = o_r // C, o_r % C
        y = _reflected(row + (tap // 3 - 1)[None, :], H) - y0  # [BM, BR]
        x = _reflected(col + (tap % 3 - 1)[None, :], W) - x0
        at = (y.to(OFFSET) * W + x) * C + c[None, :]
        mask = (o_r < 9 * C)[None, :]
        b_x = tl.load(x_ptr + at, mask=mask, other=0, cache_modifier=".ca")
        at = (tap * ALL + c)[:, None] + o_k[None, :] * (9 * ALL)
        mask = (o_r < 9 * C)[:, None] & (o_k < K)[None, :]
        b_w = tl.load(weight_ptr + at, mask=mask, other=0)
        b_y = tl.dot(b_x.to(DTYPE), b_w.to(DTYPE), b_y, input_precision=PRECISION)
    return b_y


@triton.jit
def _conv3x3_kernel(
    x_ptrs,  # [N, H, W, C] each
    weight_ptr,  # [K, 3, 3, ALL]
    scale, bias,  # [K] or [N, K], or None: tuples, see tiles.py
    residual_ptr,  # [N, H, W, K] or None
    y_ptr,  # [N, H, W, K], written
    mean_ptr, m2_ptr,  # [N·down·across, K] or None, written: of what was convolved, tile by tile
    H, W, down, across, k_blocks,
    CHANNELS: tl.constexpr, ALL: tl.constexpr, K: tl.constexpr, SLOPE: tl.constexpr,
    DTYPE: tl.constexpr, OFFSET: tl.constexpr, PRECISION: tl.constexpr,
    BY: tl.constexpr, BX: tl.constexpr, BK: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    i_k, i_tile = tl.program_id(0) % k_blocks, tl.program_id(0) // k_blocks
    i_n = i_tile // (down * across)
    y0, x0 = i_tile // across % down * BY, i_tile % across * BX
    o_m, o_k = tl.arange(0, BY * BX), i_k * BK + tl.arange(0, BK)

    b_y = tl.zeros([BY * BX, BK], tl.float32)
    for i in tl.static_range(len(CHANNELS)):
        b_y = _convolved(
            b_y, x_ptrs[i], weight_ptr, i_n, y0, x0, H, W, o_k, o_m,
            CHANNELS[i], ALL, K, DTYPE, OFFSET, PRECISION, BX, BR,
        )  # fmt: skip
        weight_ptr += CHANNELS[i]

    o_y, o_x = o_m // BX, o_m % BX
    inside = (y0 + o_y < H) & (x0 + o_x < W)
    if mean_ptr is not None:
        pixels = (tl.minimum(BY, H - y0) * tl.minimum(BX, W - x0)).to(tl.float32)
        mean = tl.sum(tl.where(inside[:, None], b_y, 0.0), 0) / pixels  # [BK]
        deviation = tl.where(inside[:, None], b_y - mean[None, :], 0.0)
        tl.store(mean_ptr + i_tile * K + o_k, mean, mask=o_k < K)
        m2 = tl.sum(deviation * deviation, 0)
        tl.store(m2_ptr + i_tile * K + o_k, m2, mask=o_k < K)

    if scale is not None:
        at = scale[0] + i_n * scale[1] + o_k
        b_y *= tl.load(at, mask=o_k < K, other=0).to(tl.float32)[None, :]
    if bias is not None:
        at = bias[0] + i_n * bias[1] + o_k
        b_y += tl.load(at, mask=o_k < K, other=0).to(tl.float32)[None, :]
    at = (o_y.to(OFFSET) * W + o_x)[:, None] * K + o_k[None, :]
    mask = inside[:, None] & (o_k < K)[None, :]
    if residual_ptr is not None:
        b_y += tl.load(_at(residual_ptr, i_n, y0, x0, H, W, K) + at, mask=mask, other=0)
    # b_y < 0 is False for NaN: it passes through, as in torch.
    if SLOPE == 0:
        b_y = tl.where(b_y < 0, 0.0, b_y)
    elif SLOPE != 1:
        b_y = tl.where(b_y < 0, b_y * SLOPE, b_y)
    tl.store(_at(y_ptr, i_n, y0, x0, H, W, K) + at, b_y, mask=mask)


@triton.jit
def _moments_kernel(
    mean_ptr, m2_ptr,  # [N·down·across, K]: of tiles of BY × BX pixels
    out_ptr,  # [2, K], written: mean and variance
    H, W, down, across, tiles, pixels, K,
    BY: tl.constexpr, BX: tl.constexpr, BK: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    o_k = tl.program_id(0) * BK + tl.arange(0, BK)
    # Every lane merges every BT-th tile; the lanes are merged at the end.
    b_pixels = tl.zeros([BT, BK], tl.float32)
    b_mean = tl.zeros([BT, BK], tl.float32)
    b_m2 = tl.zeros([BT, BK], tl.float32)
    for t0 in range(0, tiles, BT):
        o_t = t0 + tl.arange(0, BT)
        rows = tl.minimum(BY, H - o_t // across % down * BY)
        seen = (rows * tl.minimum(BX, W - o_t % across * BX)).to(tl.float32)
        seen = tl.where(o_t < tiles, seen, 0.0)[:, None]
        at = o_t[:, None] * K + o_k[None, :]
        mask = (o_t[:, None] < tiles) & (o_k[None, :] < K)
        delta = tl.load(mean_ptr + at, mask=mask, other=0) - b_mean
        share = seen / tl.maximum(b_pixels + seen, 1.0)
        b_m2 += tl.load(m2_ptr + at, mask=mask, other=0) + delta * delta * b_pixels * share
        b_mean += delta * share
        b_pixels += seen
    mean = tl.sum(b_mean * b_pixels, 0) / pixels
    mean += tl.sum((b_mean - mean[None, :]) * b_pixels, 0) / pixels  # what the sum was off by
    deviation = b_mean - mean[None, :]
    variance = tl.sum(b_m2 + deviation * deviation * b_pixels, 0) / pixels
    tl.store(out_ptr + o_k, mean, mask=o_k < K)
    tl.store(out_ptr + K + o_k, variance, mask=o_k < K)


# ---------------------------------------------------------------------------- launchers


def conv3x3_fwd(
    inputs: list[Tensor],
    weight: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    slope: float,
    moments: bool,
) -> tuple[Tensor, Tensor]:
    """[N, K, H, W], channels_last, and moments [2, K] or [0, K]; other layouts are copied."""
    x, k = inputs[0], len(weight)
    n, _, h, w = x.shape
    inputs = [_channels_last(x) for x in inputs]
    residual = None if residual is None else _channels_last(residual)
    y = torch.empty((n, k, h, w), dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    channels = tuple(part.shape[1] for part in inputs)
    plan = conv_plan(x, k)
    down, across = ceil_div(h, plan.block_y), ceil_div(w, plan.block_x)
    tiles, k_blocks = n * down * across, ceil_div(k, plan.block_k)
    parts = x.new_empty((2, tiles, k), dtype=torch.float32) if moments else (None, None)
    reach = (plan.block_y + 2) * w * max(*channels, k)  # of a tile and its borders
    _conv3x3_kernel[(tiles * k_blocks,)](
        tuple(inputs), _channels_last(weight), parameter(scale), parameter(bias), residual, y,
        parts[0], parts[1],
        h, w, down, across, k_blocks,
        CHANNELS=channels, ALL=sum(channels), K=k, SLOPE=slope,
        DTYPE=factor_dtype(x), PRECISION=precision(x),
        OFFSET=tl.int32 if reach < INT32 else tl.int64,
        BY=plan.block_y, BX=plan.block_x, BK=plan.block_k, BR=plan.block_r,
        num_warps=plan.num_warps, num_stages=plan.num_stages,
    )  # fmt: skip
    found = x.new_empty((2 if moments else 0, k), dtype=torch.float32)
    if moments:
        block_k = min(power_of_2(k), 4)
        block_t = min(power_of_2(tiles), MERGE // block_k)
        _moments_kernel[(ceil_div(k, block_k),)](
            parts[0], parts[1], found, h, w, down, across, tiles, float(n * h * w), k,
            BY=plan.block_y, BX=plan.block_x, BK=block_k, BT=block_t, num_warps=8,
        )  # fmt: skip
    return y, found


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)
