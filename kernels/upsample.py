# mypy: disable-error-code="no-untyped-def"
"""Bilinear upsampling by a whole factor, and cells of pixels unpacked and blurred: channels_last.

Both write whole rows and go along them value by value, o = x·C + c, so that stores are as wide as
they can be whatever C is. Down the picture a program makes several rows: what it has read and
blended along the row serves all of them. Neighbours along the row come from the L1 cache.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from faststy.kernels.pixels import to_byte
from faststy.kernels.tuning import BLUR_ROWS, BLUR_TILE, ROW_TILE, ceil_div, power_of_2


@triton.jit
def _blended(row_ptr, o_left, o_right, share, mask):
    """What lies between two values of a row, float32."""
    left = tl.load(row_ptr + o_left, mask=mask, other=0).to(tl.float32)
    right = tl.load(row_ptr + o_right, mask=mask, other=0).to(tl.float32)
    return left + share * (right - left)


@triton.jit
def _upsample_kernel(
    x_ptr,  # [N, h, w, C], contiguous
    y_ptr,  # [N, h·S, w·S, C], contiguous, written
    h, w, blocks,
    C: tl.constexpr, S: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    # A program takes the S rows between the centres of two rows of x, or of one and the border.
    pid = tl.program_id(0).to(tl.int64)
    i_n, above = pid // (blocks * (h + 1)), (pid // blocks) % (h + 1) - 1
    o = (pid % blocks * BLOCK).to(tl.int32) + tl.arange(0, BLOCK)
    mask = o < w * S * C
    x, c = o // C + (S - S // 2), o % C
    left, share = x // S - 1, (2 * (x % S) + (1 - S % 2)).to(tl.float32) / (2 * S)
    o_left = tl.where(left < 0, 0, left) * C + c
    o_right = tl.where(left < w - 1, left + 1, w - 1) * C + c

    sample = x_ptr + i_n * h * w * C
    top = _blended(sample + tl.maximum(above, 0) * w * C, o_left, o_right, share, mask)
    bottom = _blended(sample + tl.minimum(above + 1, h - 1) * w * C, o_left, o_right, share, mask)
    for i in tl.static_range(S):
        row = above * S + S // 2 + i
        value = top + (2 * i + (1 - S % 2)) / (2 * S) * (bottom - top)
        if (row >= 0) & (row < h * S):
            tl.store(y_ptr + (i_n * h * S + row) * w * S * C + o, value, mask=mask)


@triton.jit
def _blur_cells_kernel(
    x_ptr,  # [N, h, w, S, S, C], contiguous
    y_ptr,  # [N, H, W, C], contiguous, written: H ≤ h·S, W ≤ w·S; floats, or bytes for 0...1
    h, w, H, W, strips, blocks,
    C: tl.constexpr, S: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
    BYTES: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0).to(tl.int64)
    i_n, first = pid // (blocks * strips), (pid // blocks) % strips * ROWS
    o = (pid % blocks * BLOCK).to(tl.int32) + tl.arange(0, BLOCK)
    mask = o < W * C
    # A row of S·C values of one cell is S·S·C from that of the next.
    o_left = tl.where(o < C, o, o - C)
    o_right = tl.where(o < (w * S - 1) * C, o + C, o)
    o_left += o_left // (S * C) * ((S - 1) * S * C)
    o_right += o_right // (S * C) * ((S - 1) * S * C)
    o_here = o + o // (S * C) * ((S - 1) * S * C)

    above = tl.zeros([BLOCK], tl.float32)
    here = above
    for i in tl.static_range(ROWS + 2):
        row = tl.minimum(tl.maximum(first + (i - 1), 0), h * S - 1)
        at = x_ptr + ((i_n * h + row // S) * w * S + row % S) * (S * C)
        sides = tl.load(at + o_left, mask=mask, other=0).to(tl.float32)
        sides += tl.load(at + o_right, mask=mask, other=0).to(tl.float32)
        below = 0.25 * sides + 0.5 * tl.load(at + o_here, mask=mask, other=0).to(tl.float32)
        if i >= 2:
            y = first + (i - 2)
            value = 0.25 * (above + below) + 0.5 * here
            if BYTES:
                value = to_byte(value * 255)
            if y < H:
                tl.store(y_ptr + (i_n * H + y) * W * C + o, value, mask=mask)
        above, here = here, below


# ---------------------------------------------------------------------------- launchers


def upsample_fwd(x: Tensor, scale: int) -> Tensor:
    """[N, C, h·scale, w·scale], channels_last as `x` [N, C, h, w] is."""
    n, c, h, w = x.shape
    y = _channels_last(x, n, c, h * scale, w * scale)
    block = min(ROW_TILE, power_of_2(w * scale * c))
    blocks = ceil_div(w * scale * c, block)
    _upsample_kernel[(n * (h + 1) * blocks,)](x, y, h, w, blocks, C=c, S=scale, BLOCK=block)
    return y


def blur_cells_fwd(x: Tensor, scale: int) -> Tensor:
    """[N, C, h·scale, w·scale] from channels_last `x` [N, scale²·C, h, w]."""
    n, k, h, w = x.shape
    y = _channels_last(x, n, k // scale**2, h * scale, w * scale)
    _blur_cells(x, y.permute(0, 2, 3, 1), scale)
    return y


def blur_cells_frames(x: Tensor, scale: int, height: int, width: int) -> Tensor:
    """uint8 [N, height, width, C] from channels_last `x` [N, scale²·C, h, w]."""
    shape = (len(x), height, width, x.shape[1] // scale**2)
    y = torch.empty(shape, dtype=torch.uint8, device=x.device)
    _blur_cells(x, y, scale)
    return y


def _blur_cells(x: Tensor, y: Tensor, scale: int) -> None:
    (n, height, width, c), (h, w) = y.shape, x.shape[2:]
    block = min(BLUR_TILE, power_of_2(width * c))
    blocks, strips = ceil_div(width * c, block), ceil_div(height, BLUR_ROWS)
    _blur_cells_kernel[(n * strips * blocks,)](
        x, y, h, w, height, width, strips, blocks,
        C=c, S=scale, ROWS=BLUR_ROWS, BLOCK=block, BYTES=y.dtype == torch.uint8,
    )  # fmt: skip


def _channels_last(like: Tensor, *shape: int) -> Tensor:
    return torch.empty(
        shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last
    )
