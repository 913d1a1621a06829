"""Who does how much: tile sizes, warps and splits, by a small table and the shape at hand.

The numbers marked *predicted* come from counting registers and bytes in flight, and from offline
compilation (no spills); `benchmarks/` is where measurements would replace them.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

Strides = tuple[int, int, int]

# Pixels · channels that a program holds in registers at once (predicted).
TILE = 4096
TILE_BWD = 2048  # the backward pass holds x, dy and the residual
# Up to here a program takes whole planes, so that x is read once, not twice.
WHOLE_TILE = 16384
WHOLE_TILE_BWD = 8192
WAVES = 4  # programs per multiprocessor that a split aims at
WAVES_GRAM = 2  # fewer, as each leaves a matrix of partial sums
MIN_STEPS = 4  # tiles per program that make a split worth its partial sums
SECTOR = 32  # bytes: the smallest piece of memory that is read at once

# Gram matrices: side of an output tile, pixels of 2 bytes a step, warps, pipeline stages, by the
# largest C that a row serves (predicted).
GRAM_TABLE = (
    (16, 16, 128, 4, 4),
    (32, 32, 128, 4, 4),
    (64, 64, 128, 4, 3),
    (1 << 30, 128, 32, 8, 4),
)
GRAM_UNALIGNED = (1 << 30, 64, 32, 8, 1)
GRAM_MANY_BACKWARD = (1 << 30, 64, 32, 8, 2)
MERGE = 4096  # partial sums that a program merges at a time
PIXEL_TILE = 2048  # values of a frame that a program converts


class Plan(NamedTuple):
    """How [N, C, H·W] is cut: tiles of block_c × block_p, chunks of pixels, programs."""

    whole: bool  # a program holds whole planes
    block_c: int
    block_p: int
    c_blocks: int
    chunk: int  # pixels of one program
    splits: int  # programs that share a plane
    num_warps: int

    def programs(self, n: int) -> tuple[int]:
        return (n * self.c_blocks * self.splits,)


class GramPlan(NamedTuple):
    """How [C, C] is cut into tiles, and the sum over H·W into splits."""

    block_c: int
    block_p: int
    c_blocks: int
    chunk: int
    splits: int
    num_warps: int
    num_stages: int


def plane_plan(x: Tensor, strides: Strides, tile: int, whole_tile: int) -> Plan:
    """The plan for ops on the planes of `x` [N, C, H, W], in tiles of `tile` values.

    Whole planes are taken where tiles of up to `whole_tile` values can hold them.
    """
    n, c, hw = x.shape[0], x.shape[1], x.shape[2] * x.shape[3]
    fast_c = strides[1] < strides[2]  # channels_last
    # Channels of one pixel that fill a sector, where they are neighbours in memory.
    narrow = min(power_of_2(c), SECTOR // x.element_size()) if fast_c else 1
    whole = narrow * power_of_2(hw) <= whole_tile
    if whole:
        block_p = power_of_2(hw)
        block_c = min(power_of_2(c), max(narrow, tile // block_p))
    else:
        block_c = min(power_of_2(c), 64) if fast_c else 1
        block_p = tile // block_c
    c_blocks = ceil_div(c, block_c)
    splits = 1 if whole else _splits(x, n * c_blocks, hw, block_p)
    chunk = ceil_div(ceil_div(hw, splits), block_p) * block_p
    # Warps in proportion to the tile: 8 for a full one.
    num_warps = min(max(8 * block_c * block_p // tile, 1), 32)
    return Plan(whole, block_c, block_p, c_blocks, chunk, ceil_div(hw, chunk), num_warps)


def gram_plan(x: Tensor, backward: bool = False) -> GramPlan:
    """The plan for products of channels of `x` [N, C, H, W], summed over pixels.

    Backward, the same tiles are factors, and the pixels need no sum.
    """
    n, c, hw = x.shape[0], x.shape[1], x.shape[2] * x.shape[3]
    row = next(row for row in GRAM_TABLE if c <= row[0])
    # Addresses of unaligned values take registers, and a matrix of gradients shared memory too.
    if c > 16 and (c % 16 or hw % 16):
        row = GRAM_UNALIGNED
    elif backward and c > (128 if x.dtype == torch.bfloat16 else 64):
        row = GRAM_MANY_BACKWARD
    _, block_c, block_p, num_warps, num_stages = row
    if x.element_size() == 4:
        block_p //= 2  # keeps the shared memory the same
    c_blocks = ceil_div(c, block_c)
    if backward:
        splits = min(
            ceil_div(WAVES * multiprocessors(x.device), n * c_blocks), ceil_div(hw, block_p)
        )
    else:
        tiles = c_blocks * (c_blocks + 1) // 2
        splits = _splits(x, n * tiles, hw, block_p, WAVES_GRAM)
    chunk = ceil_div(ceil_div(hw, splits), block_p) * block_p
    return GramPlan(block_c, block_p, c_blocks, chunk, ceil_div(hw, chunk), num_warps, num_stages)


def _splits(x: Tensor, programs: int, hw: int, block_p: int, waves: int = WAVES) -> int:
    """How many programs share the pixels, when there are `programs` others to fill the chip."""
    wanted = ceil_div(waves * multiprocessors(x.device), programs)
    return max(1, min(wanted, ceil_div(hw, MIN_STEPS * block_p)))


@cache
def multiprocessors(device: torch.device) -> int:
    """Multiprocessors of `device`; an H100's where there is none."""
    if device.type != "cuda":
        return 132
    return torch.cuda.get_device_properties(device).multi_processor_count


def planes(x: Tensor) -> tuple[Tensor, Strides]:
    """`x` [N, C, H, W] and its strides by sample, channel and pixel.

    `x` is copied only if its pixels are not evenly spaced in memory, or so far apart that offsets
    within a tile could pass 2³¹.
    """
    h, w = x.shape[2:]
    stride_n, stride_c, stride_h, stride_w = x.stride()
    stride_p = stride_w if w > 1 or h == 1 else stride_h
    channels = 64 if stride_c < stride_p else max(WHOLE_TILE // (h * w), 1)  # in a tile, at most
    reach = stride_c * channels + stride_p * min(h * w, WHOLE_TILE)
    if (h > 1 and w > 1 and stride_h != w * stride_w) or reach >= 2**31:
        return planes(x.contiguous())
    return x, (stride_n, stride_c, stride_p)


def layout(x: Tensor) -> torch.memory_format:
    """The memory format of results shaped as `x` [N, C, H, W]."""
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


def power_of_2(n: int) -> int:
    """The smallest power of two that is at least `n`."""
    return 1 << max(n - 1, 0).bit_length()


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)
