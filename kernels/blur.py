# mypy: disable-error-code="no-untyped-def"
"""Convolution with (1 2 1)/4 both ways, borders repeated.

As a matrix it is symmetric, the borders included: the backward pass is the same kernel. Pictures
are cut as in pieces.py.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from faststy.kernels.pieces import cut, places
from faststy.kernels.tuning import layout


@triton.jit
def _blurred_row(ptr, x, W, mask, C: tl.constexpr):
    """That of the row that `ptr` [BLOCK, V] is at column 0 of, at columns x [BLOCK]."""
    left, right = tl.maximum(x - 1, 0), tl.minimum(x + 1, W - 1)
    value = tl.load(ptr + (left * C)[:, None], mask=mask, other=0).to(tl.float32)
    value += tl.load(ptr + (right * C)[:, None], mask=mask, other=0)
    middle = tl.load(ptr + (x * C)[:, None], mask=mask, other=0).to(tl.float32)
    return 0.25 * value + 0.5 * middle


@triton.jit
def _blur_kernel(
    x_ptr, y_ptr,  # [M, H, W, C], read and written
    H, W, blocks,
    C: tl.constexpr, V: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = W * (C // V)
    i_m, o, y, x, k = places(blocks, row, C, V, BLOCK)
    o_v, mask = tl.arange(0, V)[None, :], (o < H * row)[:, None]
    picture, pitch = i_m * H * W * C, W * C
    ptr = x_ptr + picture + k[:, None] + o_v
    above, below = tl.maximum(y - 1, 0), tl.minimum(y + 1, H - 1)
    value = _blurred_row(ptr + (above * pitch)[:, None], x, W, mask, C)
    value += _blurred_row(ptr + (below * pitch)[:, None], x, W, mask, C)
    value = 0.25 * value + 0.5 * _blurred_row(ptr + (y * pitch)[:, None], x, W, mask, C)
    tl.store(y_ptr + picture + o[:, None] * V + o_v, value, mask=mask)


def blur_fwd(x: Tensor) -> Tensor:
    """[N, C, H, W], blurred, in the memory layout of `x`."""
    h, w = x.shape[2:]
    x = x.contiguous(memory_format=layout(x))
    y = torch.empty_like(x)
    grid, blocks, constants = cut(y)
    _blur_kernel[grid](x, y, h, w, blocks, **constants)
    return y
