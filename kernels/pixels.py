# mypy: disable-error-code="no-untyped-def"
"""uint8 frames [N, H, W, C] to normalised floats [N, C·R², h, w] and back.

A *cell* is R × R pixels, packed into the channels of one position, in the order of
torch.pixel_unshuffle: channel k = (c·R + dy)·R + dx. Both kernels are driven by what they write,
row by row, so that stores are whole and nothing but constants is ever divided by; the bytes around
come from the L1 cache.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from faststy.kernels.tuning import PIXEL_TILE, ceil_div, power_of_2


@triton.jit
def _from_pixels_kernel(
    frames_ptr, frame_strides,  # [N, H, W, C] uint8
    out_ptr, out_strides,  # [N, C·R², h, w], written
    H, W, h, w, blocks, scale, low,
    C: tl.constexpr, R: tl.constexpr, BK: tl.constexpr, BX: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0).to(tl.int64)
    i_n, i_y, x0 = pid // (blocks * h), (pid // blocks) % h, pid % blocks * BX
    o_k, o_x = tl.arange(0, BK)[:, None], x0 + tl.arange(0, BX)[None, :]  # channels, cells
    mask = (o_k < C * R * R) & (o_x < w)

    # Cells that stick out repeat the last row and column.
    y = tl.minimum(i_y * R + (o_k // R) % R, H - 1)  # [BK, 1]
    x = tl.minimum(o_x * R + o_k % R, W - 1)  # [BK, BX]
    at = i_n * frame_strides[0] + y * frame_strides[1] + x * frame_strides[2]
    at += (o_k // (R * R)).to(tl.int64) * frame_strides[3]  # colours and planes may lie far apart
    value = tl.load(frames_ptr + at, mask=mask, other=0).to(tl.float32) * scale + low
    at = i_n * out_strides[0] + i_y * out_strides[2] + o_x * out_strides[3]
    at += o_k.to(tl.int64) * out_strides[1]
    tl.store(out_ptr + at, value, mask=mask)


@triton.jit
def to_byte(value):
    """0...255 rounded, halves up; what is beyond is clamped, and NaN is 0."""
    value = tl.where(value > 0, value, 0.0)  # NaN too
    return (tl.where(value < 255, value, 255.0) + 0.5).to(tl.uint8)


@triton.jit
def _to_pixels_kernel(
    x_ptr, x_strides,  # [N, C·R², h, w]
    frames_ptr,  # [N, H, W, C] uint8, contiguous, written
    H, W, blocks, scale, low,
    C: tl.constexpr, R: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0).to(tl.int64)
    i_n, y = pid // (blocks * H), (pid // blocks) % H
    o = (pid % blocks * BLOCK).to(tl.int32) + tl.arange(0, BLOCK)  # bytes of the row
    mask = o < W * C
    x, c = o // C, o % C

    k = (c * R + y % R) * R + x % R
    at = i_n * x_strides[0] + k * x_strides[1] + y // R * x_strides[2]
    at += (x // R).to(tl.int64) * x_strides[3]  # columns may, too
    value = tl.load(x_ptr + at, mask=mask, other=0).to(tl.float32)
    row = frames_ptr + (i_n * H + y) * W * C
    tl.store(row + o, to_byte((value - low) * scale), mask=mask)


# ---------------------------------------------------------------------------- launchers


def from_pixels(
    frames: Tensor, dtype: torch.dtype, channels_last: bool, unshuffle: int, low: float, high: float
) -> Tensor:
    """[N, C·r², ⌈H/r⌉, ⌈W/r⌉] from [N, H, W, C] uint8."""
    n, height, width, c = frames.shape
    k, h, w = c * unshuffle**2, ceil_div(height, unshuffle), ceil_div(width, unshuffle)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    out = torch.empty((n, k, h, w), dtype=dtype, device=frames.device, memory_format=layout)
    block_k = power_of_2(k)
    block_x = min(max(PIXEL_TILE // block_k, 1), power_of_2(w))
    blocks = ceil_div(w, block_x)
    _from_pixels_kernel[(n * h * blocks,)](
        frames, frames.stride(), out, out.stride(), height, width, h, w, blocks,
        (high - low) / 255, low, C=c, R=unshuffle, BK=block_k, BX=block_x,
    )  # fmt: skip
    return out


def to_pixels(x: Tensor, shuffle: int, height: int, width: int, low: float, high: float) -> Tensor:
    """[N, H, W, C] uint8 from [N, C·r², h, w]."""
    n, c = len(x), x.shape[1] // shuffle**2
    frames = torch.empty((n, height, width, c), dtype=torch.uint8, device=x.device)
    block = min(PIXEL_TILE, power_of_2(width * c))
    blocks = ceil_div(width * c, block)
    _to_pixels_kernel[(n * height * blocks,)](
        x, x.stride(), frames, height, width, blocks, 255 / (high - low), low,
        C=c, R=shuffle, BLOCK=block,
    )  # fmt: skip
    return frames
