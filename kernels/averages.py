# mypy: disable-error-code="no-untyped-def"
"""Averages of 2x2 and of 4x4 pixels together, forward and backward, in both memory layouts.

Pictures are cut as in pieces.py, forward into the cells of 4x4 of which they consist. Those
at the borders may not be whole, and then have no average; of the 2x2 in them some may be.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from faststy.kernels.pieces import cut, pictures, places
from faststy.kernels.tuning import AVERAGED_PIECES, ceil_div, layout


@triton.jit
def _averages_fwd_kernel(
    x_ptr,  # [M, H, W, C]
    half_ptr,  # [M, H // 2, W // 2, C], written
    quarter_ptr,  # [M, H // 4, W // 4, C], written
    H, W, blocks,
    C: tl.constexpr, V: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    h, w = H // 2, W // 2
    i_m, _, y, x, k = places(blocks, (w + 1) // 2 * (C // V), C, V, BLOCK)
    o_v = tl.arange(0, V)[None, :]
    x_ptr += i_m * H * W * C + o_v
    half_ptr += i_m * h * w * C + o_v
    total = tl.zeros([BLOCK, V], tl.float32)
    for i in tl.static_range(2):
        for j in tl.static_range(2):
            row, column = 2 * y + i, 2 * x + j
            mask = ((row < h) & (column < w))[:, None]
            ptr = x_ptr + ((2 * row * W + 2 * column) * C + k)[:, None]
            value = tl.load(ptr, mask=mask, other=0).to(tl.float32)
            value += tl.load(ptr + C, mask=mask, other=0)
            value += tl.load(ptr + W * C, mask=mask, other=0)
            value += tl.load(ptr + (W + 1) * C, mask=mask, other=0)
            total += value
            tl.store(half_ptr + ((row * w + column) * C + k)[:, None], value * 0.25, mask=mask)
    mask = ((y < H // 4) & (x < W // 4))[:, None]
    ptr = quarter_ptr + i_m * (H // 4) * (W // 4) * C + ((y * (W // 4) + x) * C + k)[:, None]
    tl.store(ptr + o_v, total * 0.0625, mask=mask)


@triton.jit
def _averages_bwd_kernel(
    dhalf_ptr,  # [M, H // 2, W // 2, C]
    dquarter_ptr,  # [M, H // 4, W // 4, C]
    dx_ptr,  # [M, H, W, C], written
    H, W, blocks,
    C: tl.constexpr, V: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = W * (C // V)
    i_m, o, y, x, k = places(blocks, row, C, V, BLOCK)
    o_v = tl.arange(0, V)[None, :]
    h, w = H // 2, W // 2
    mask = ((y < 2 * h) & (x < 2 * w))[:, None]
    at = ((y // 2 * w + x // 2) * C + k)[:, None]
    dhalf = tl.load(dhalf_ptr + i_m * h * w * C + at + o_v, mask=mask, other=0)
    h, w = H // 4, W // 4
    mask = ((y < 4 * h) & (x < 4 * w))[:, None]
    at = ((y // 4 * w + x // 4) * C + k)[:, None]
    dquarter = tl.load(dquarter_ptr + i_m * h * w * C + at + o_v, mask=mask, other=0)
    dx = 0.25 * (dhalf.to(tl.float32) + 0.25 * dquarter.to(tl.float32))
    tl.store(dx_ptr + i_m * H * W * C + o[:, None] * V + o_v, dx, mask=(y < H)[:, None])


# ---------------------------------------------------------------------------- launchers


def averages_fwd(x: Tensor) -> tuple[Tensor, Tensor]:
    """[N, C, H // 2, W // 2] and [N, C, H // 4, W // 4] from [N, C, H, W], in its memory layout."""
    n, c, h, w = x.shape
    memory = layout(x)
    half, quarter = (
        torch.empty((n, c, h // s, w // s), dtype=x.dtype, device=x.device, memory_format=memory)
        for s in (2, 4)
    )
    m, channels, v = pictures(x)
    cells = ceil_div(h // 2, 2) * ceil_div(w // 2, 2)
    blocks = ceil_div(cells * (channels // v), AVERAGED_PIECES)
    _averages_fwd_kernel[(m * blocks,)](
        x.contiguous(memory_format=memory), half, quarter, h, w, blocks,
        C=channels, V=v, BLOCK=AVERAGED_PIECES,
    )  # fmt: skip
    return half, quarter


def averages_bwd(
    dhalf: Tensor, dquarter: Tensor, height: int, width: int, channels_last: bool
) -> Tensor:
    """The gradient [N, C, height, width] of what was averaged, in its memory layout."""
    n, c = dhalf.shape[:2]
    memory = torch.channels_last if channels_last else torch.contiguous_format
    shape = (n, c, height, width)
    dx = torch.empty(shape, dtype=dhalf.dtype, device=dhalf.device, memory_format=memory)
    grid, blocks, constants = cut(dx)
    dhalf, dquarter = (d.contiguous(memory_format=memory) for d in (dhalf, dquarter))
    _averages_bwd_kernel[grid](dhalf, dquarter, dx, height, width, blocks, **constants)
    return dx
