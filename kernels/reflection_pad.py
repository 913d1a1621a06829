# mypy: disable-error-code="no-untyped-def"
"""Padding by reflection, forward and backward, in both memory layouts.

Pictures are cut as in pieces.py. The gradient of a pixel is gathered from all places that it was
read to: no atomics.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from faststy.kernels.pieces import cut, places
from faststy.kernels.tuning import layout


@triton.jit
def _reflected(i, size):
    last = size - 1
    return last - tl.abs(last - tl.abs(i))


@triton.jit
def _reflection_pad_fwd_kernel(
    x_ptr,  # [M, H, W, C]
    y_ptr,  # [M, H + 2·PAD, W + 2·PAD, C], written
    H, W, blocks,
    PAD: tl.constexpr, C: tl.constexpr, V: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    height, width = H + 2 * PAD, W + 2 * PAD
    row = width * (C // V)
    i_m, o, y, x, k = places(blocks, row, C, V, BLOCK)
    o_v, mask = tl.arange(0, V)[None, :], (o < height * row)[:, None]
    at = (_reflected(y - PAD, H) * W + _reflected(x - PAD, W)) * C + k
    value = tl.load(x_ptr + i_m * H * W * C + at[:, None] + o_v, mask=mask)
    tl.store(y_ptr + i_m * height * width * C + o[:, None] * V + o_v, value, mask=mask)


@triton.jit
def _from_columns(ptr, x, W, mask, PAD: tl.constexpr, C: tl.constexpr):
    """What the places that column x was read to hold, added up; `ptr` [BLOCK, V] is at column 0."""
    value = tl.load(ptr + ((x + PAD) * C)[:, None], mask=mask[:, None], other=0).to(tl.float32)
    left = (mask & (x >= 1) & (x <= PAD))[:, None]
    value += tl.load(ptr + ((PAD - x) * C)[:, None], mask=left, other=0)
    right = (mask & (x >= W - 1 - PAD) & (x <= W - 2))[:, None]
    value += tl.load(ptr + ((2 * (W - 1) - x + PAD) * C)[:, None], mask=right, other=0)
    return value


@triton.jit
def _reflection_pad_bwd_kernel(
    dy_ptr,  # [M, H + 2·PAD, W + 2·PAD, C]
    dx_ptr,  # [M, H, W, C], written
    H, W, blocks,
    PAD: tl.constexpr, C: tl.constexpr, V: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    height, width = H + 2 * PAD, W + 2 * PAD
    row = W * (C // V)
    i_m, o, y, x, k = places(blocks, row, C, V, BLOCK)
    o_v, mask = tl.arange(0, V)[None, :], o < H * row
    ptr = dy_ptr + i_m * height * width * C + k[:, None] + o_v
    pitch = width * C
    dx = _from_columns(ptr + ((y + PAD) * pitch)[:, None], x, W, mask, PAD, C)
    # Most programs have no row that was read twice.
    first = (tl.program_id(0) % blocks) * BLOCK
    if (first // row <= PAD) | ((first + BLOCK) // row >= H - 1 - PAD):
        top = mask & (y >= 1) & (y <= PAD)
        dx += _from_columns(ptr + ((PAD - y) * pitch)[:, None], x, W, top, PAD, C)
        bottom = mask & (y >= H - 1 - PAD) & (y <= H - 2)
        at = (2 * (H - 1) - y + PAD) * pitch
        dx += _from_columns(ptr + at[:, None], x, W, bottom, PAD, C)
    tl.store(dx_ptr + i_m * H * W * C + o[:, None] * V + o_v, dx, mask=mask[:, None])


# ---------------------------------------------------------------------------- launchers


def reflection_pad_fwd(x: Tensor, pad: int) -> Tensor:
    """[N, C, H + 2·pad, W + 2·pad] from [N, C, H, W], in its memory layout."""
    n, c, h, w = x.shape
    shape, memory = (n, c, h + 2 * pad, w + 2 * pad), layout(x)
    y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=memory)
    grid, blocks, constants = cut(y)
    x = x.contiguous(memory_format=memory)
    _reflection_pad_fwd_kernel[grid](x, y, h, w, blocks, PAD=pad, **constants)
    return y


def reflection_pad_bwd(dy: Tensor, pad: int, channels_last: bool) -> Tensor:
    """The gradient [N, C, H, W] of what was padded, in its memory layout."""
    n, c, h, w = *dy.shape[:2], dy.shape[2] - 2 * pad, dy.shape[3] - 2 * pad
    memory = torch.channels_last if channels_last else torch.contiguous_format
    dx = torch.empty((n, c, h, w), dtype=dy.dtype, device=dy.device, memory_format=memory)
    grid, blocks, constants = cut(dx)
    dy = dy.contiguous(memory_format=memory)
    _reflection_pad_bwd_kernel[grid](dy, dx, h, w, blocks, PAD=pad, **constants)
    return dx
