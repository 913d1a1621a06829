# mypy: disable-error-code="no-untyped-def"
"""Maxima of 2x2 pixels, forward and backward, in both memory layouts.

Backward looks for the maximum again, in x: that is cheaper than an index per maximum, written and
read. Pictures are cut as in pieces.py, backward into the windows of which they consist; at
odd sizes those at the borders are not whole, and have no gradient.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from faststy.kernels.pieces import pictures, places
from faststy.kernels.tuning import PIECES_TILE, ceil_div, layout


@triton.jit
def _larger(value, place, other, k: tl.constexpr):
    """The larger value and its place: of equals the first, and of several NaN the last, as torch
    has it."""
    take = (other > value) | (other != other)
    return tl.where(take, other, value), tl.where(take, k, place)


@triton.jit
def _maximum(ptr, right, below, mask):
    """Maxima [BLOCK, V] and their places 0 … 3 in the windows that begin at `ptr` [BLOCK, V]."""
    value = tl.load(ptr, mask=mask, other=0).to(tl.float32)
    place = tl.zeros(value.shape, tl.int32)
    other = tl.load(ptr + right, mask=mask, other=0).to(tl.float32)
    value, place = _larger(value, place, other, 1)
    other = tl.load(ptr + below, mask=mask, other=0).to(tl.float32)
    value, place = _larger(value, place, other, 2)
    other = tl.load(ptr + (below + right), mask=mask, other=0).to(tl.float32)
    return _larger(value, place, other, 3)


# Sizes are not specialised: C tells how values lie, and each kernel that is compiled takes a while.
@triton.jit(do_not_specialize=["H", "W", "blocks"])
def _max_pool_fwd_kernel(
    x_ptr,  # [M, H, W, C]
    y_ptr,  # [M, H // 2, W // 2, C], written
    H, W, blocks,
    C: tl.constexpr, V: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    height, row = H // 2, W // 2 * (C // V)
    i_m, o, y, x, k = places(blocks, row, C, V, BLOCK)
    o_v, mask = tl.arange(0, V)[None, :], (o < height * row)[:, None]
    at = (2 * y * W + 2 * x) * C + k
    value, _ = _maximum(x_ptr + i_m * H * W * C + at[:, None] + o_v, C, W * C, mask)
    tl.store(y_ptr + i_m * height * (W // 2) * C + o[:, None] * V + o_v, value, mask=mask)


@triton.jit(do_not_specialize=["H", "W", "blocks"])
def _max_pool_bwd_kernel(
    dy_ptr,  # [M, H // 2, W // 2, C]
    x_ptr,  # [M, H, W, C]
    dx_ptr,  # [M, H, W, C], written
    H, W, blocks,
    C: tl.constexpr, V: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = (W + 1) // 2 * (C // V)
    i_m, _, y, x, k = places(blocks, row, C, V, BLOCK)
    o_v, inside = tl.arange(0, V)[None, :], y < (H + 1) // 2
    wide, tall = inside & (2 * x + 1 < W), inside & (2 * y + 1 < H)
    whole = (wide & tall)[:, None]
    at = i_m * H * W * C + ((2 * y * W + 2 * x) * C + k)[:, None] + o_v
    o_in = ((y * (W // 2) + x) * C + k)[:, None] + o_v
    dy_ptr += i_m * (H // 2) * (W // 2) * C
    dy = tl.load(dy_ptr + o_in, mask=whole, other=0).to(tl.float32)
    _, place = _maximum(x_ptr + at, C, W * C, whole)
    dx_ptr += at
    tl.store(dx_ptr, tl.where(place == 0, dy, 0.0), mask=inside[:, None])
    tl.store(dx_ptr + C, tl.where(place == 1, dy, 0.0), mask=wide[:, None])
    tl.store(dx_ptr + W * C, tl.where(place == 2, dy, 0.0), mask=tall[:, None])
    tl.store(dx_ptr + (W + 1) * C, tl.where(place == 3, dy, 0.0), mask=whole)


# ---------------------------------------------------------------------------- launchers


def max_pool_fwd(x: Tensor) -> Tensor:
    """[N, C, H // 2, W // 2] from [N, C, H, W], in its memory layout."""
    n, c, h, w = x.shape
    memory = layout(x)
    shape = (n, c, h // 2, w // 2)
    y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=memory)
    m, channels, v = pictures(x)
    block = PIECES_TILE // v
    blocks = ceil_div(y.numel() // (m * v), block)
    _max_pool_fwd_kernel[(m * blocks,)](
        x.contiguous(memory_format=memory), y, h, w, blocks, C=channels, V=v, BLOCK=block
    )
    return y


def max_pool_bwd(dy: Tensor, x: Tensor) -> Tensor:
    """The gradient of `x` [N, C, H, W], in its memory layout."""
    h, w = x.shape[2:]
    memory = layout(x)
    dx = torch.empty_like(x, memory_format=memory)
    m, channels, v = pictures(x)
    block = PIECES_TILE // v
    blocks = ceil_div(ceil_div(h, 2) * ceil_div(w, 2) * (channels // v), block)
    _max_pool_bwd_kernel[(m * blocks,)](
        dy.contiguous(memory_format=memory), x.contiguous(memory_format=memory), dx,
        h, w, blocks, C=channels, V=v, BLOCK=block,
    )  # fmt: skip
    return dx
