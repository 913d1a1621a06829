# mypy: disable-error-code="no-untyped-def"
"""Pictures cut into pieces, for kernels that are driven by what they write.

Pictures are [M, H, W, C] without gaps: channels_last as it lies in memory, and NCHW as M = N·C
pictures of one channel. They are cut into *pieces* of V channels of a pixel, as many as one
instruction moves; programs take BLOCK of them each, one after the other in memory.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from faststy.kernels.tuning import PIECE, PIECES_TILE, ceil_div, layout

# Hints for readers: o_ offsets of a tile, in pieces; y, x and k the row, column and piece of a
# pixel; offsets within a picture are int32, which faststy.ops sees to.


@triton.jit
def places(blocks, row, C: tl.constexpr, V: tl.constexpr, BLOCK: tl.constexpr):
    """Picture, pieces [BLOCK], and their row, column and first channel; a row has `row` pieces."""
    pid = tl.program_id(0).to(tl.int64)
    o = (pid % blocks).to(tl.int32) * BLOCK + tl.arange(0, BLOCK)
    y, at = o // row, o % row
    return pid // blocks, o, y, at // (C // V), at % (C // V) * V


def pictures(x: Tensor) -> tuple[int, int, int]:
    """How many pictures `x` [N, C, H, W] is, their channels, and the channels of a piece."""
    n, c = x.shape[:2]
    if layout(x) == torch.contiguous_format:
        return n * c, 1, 1
    return n, c, math.gcd(c, PIECE // x.element_size())


def cut(y: Tensor) -> tuple[tuple[int], int, dict[str, int]]:
    """Grid, blocks of a picture, and constants of a kernel that writes the pieces of `y`."""
    m, channels, v = pictures(y)
    block = PIECES_TILE // v
    blocks = ceil_div(y.numel() // (m * v), block)
    return (m * blocks,), blocks, {"C": channels, "V": v, "BLOCK": block}
