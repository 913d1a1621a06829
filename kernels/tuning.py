"""Who does how much: tile sizes, warps, groups and splits, by small tables and the shape at hand.

The first row of a table is the default, the others are what `autotune` also measures. All numbers
are *predicted*: from counting registers and bytes in flight, and from offline compilation (no
spills). `faststy bench ops --tune`, on a GPU, replaces them by measurements of that GPU.
"""

from __future__ import annotations

from functools import cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from faststy.kernels import autotune

Strides = tuple[int, int, int]
Step = tuple[int, int, int]  # of a split plan: first unit, how many are finished, how many summed

WAVES = 4  # programs per multiprocessor that a split aims at
MIN_STEPS = 4  # tiles per program that make a split worth its partial sums
MIN_FILL = 0.75  # of the multiprocessors that must have work, on average, without a split
SECTOR = 32  # bytes: the smallest piece of memory that is read at once


class NormRow(NamedTuple):
    """How instance normalisation is cut."""

    tile: int  # pixels · channels that a program holds in registers at once
    whole: int  # up to here a program holds whole planes, so that x is read once, not twice
    l2: float  # the share of the L2 cache that planes fill between their two reads; 0: no grouping


NORM_TABLE = {
    "instance_norm_fwd": (
        NormRow(4096, 16384, 0.7),
        NormRow(4096, 16384, 0.35),
        NormRow(4096, 16384, 0.0),
        NormRow(4096, 8192, 0.7),
        NormRow(2048, 16384, 0.7),
    ),
    "instance_norm_bwd": (  # holds x, dy and the residual
        NormRow(2048, 8192, 0.7),
        NormRow(2048, 8192, 0.35),
        NormRow(2048, 8192, 0.0),
        NormRow(2048, 4096, 0.7),
        NormRow(1024, 8192, 0.7),
    ),
}
LARGEST_TILE = 16384  # of these rows


class GramRow(NamedTuple):
    """How Gram matrices are cut."""

    block_c: int  # side of an output tile
    block_p: int  # pixels of 2 bytes a step
    num_warps: int
    num_stages: int
    waves: int  # programs per multiprocessor that a split aims at


# By the largest C that a row serves. Forward few waves, as each leaves a matrix of partial sums.
GRAM_TABLE = (
    (16, GramRow(16, 128, 4, 4, 2)),
    (32, GramRow(32, 128, 4, 4, 2)),
    (64, GramRow(64, 128, 4, 3, 2)),
    (1 << 30, GramRow(128, 32, 8, 4, 2)),
)
GRAM_UNALIGNED = GramRow(64, 32, 8, 1, 2)
GRAM_MANY_BACKWARD = GramRow(64, 32, 8, 2, 2)


class ConvRow(NamedTuple):
    """How a 3x3 convolution is cut."""

    block_y: int  # rows and
    block_x: int  # columns of pixels of a tile
    block_k: int  # channels of the result
    block_r: int  # taps and channels of 2 bytes a step
    num_warps: int
    num_stages: int


# By the largest K and C (of the first input) that a row serves; measured on an H200 at 1080p.
CONV_TABLE = (
    (16, 16, ConvRow(8, 16, 16, 16, 4, 4)),
    (16, 1 << 30, ConvRow(8, 32, 16, 64, 8, 1)),
    (32, 32, ConvRow(16, 16, 32, 64, 8, 1)),
    (32, 1 << 30, ConvRow(8, 16, 32, 64, 8, 3)),
    (64, 1 << 30, ConvRow(16, 16, 64, 64, 8, 2)),
    (1 << 30, 1 << 30, ConvRow(8, 16, 128, 64, 8, 3)),
)
# In float32 products of three parts take registers, and shared memory is half as many values.
CONV_FLOAT32 = (
    (16, 1 << 30, ConvRow(8, 16, 16, 16, 4, 4)),
    (32, 1 << 30, ConvRow(8, 16, 32, 32, 4, 3)),
    (1 << 30, 1 << 30, ConvRow(8, 16, 64, 32, 8, 3)),
)
MERGE = 4096  # partial sums that a program merges at a time
PIXEL_TILE = 2048  # values of a frame that a program converts
ROW_TILE = 1024  # values of a row that a program upsamples: 16 bytes a thread in half precision
BLUR_TILE = 256  # of a row that it blurs: neighbours at odd places, one by one, are side by side
BLUR_ROWS = 8  # that it blurs one after the other; it reads two more
REPAIR_BLOCKS = 32  # of 8 × 8 pixels, in a row, whose means a program takes
REPAIR_CELLS = 128  # of 4 × 4 pixels, in a row, whose details a program finds
REPAIR_PIXELS = 128  # one a thread, of each of four rows that a program repairs
PIECE = 16  # bytes: the most that one instruction of a thread moves
PIECES_TILE = 1024  # values that a program pads, blurs or pools
AVERAGED_PIECES = 128  # of each of the 16 pixels of a cell that a program averages: one a thread
POINTWISE_TILE = 2048  # values of which a program changes each by itself


class Plan(NamedTuple):
    """How [N, C, H·W] is cut: units of block_c channels, tiles of block_c × block_p, chunks."""

    kind: Literal["whole", "looped", "split"]  # see instance_norm.py
    block_c: int
    block_p: int
    c_blocks: int
    chunk: int  # pixels of one program
    splits: int  # programs that share a unit
    group: int  # units that go together
    num_warps: int

    def units(self, n: int) -> int:
        return n * self.c_blocks

    def steps(self, n: int) -> list[Step]:
        """The launches of a split plan: each finishes a group and sums the next."""
        units = self.units(n)
        starts = range(0, units, self.group)
        sizes = [min(self.group, units - start) for start in starts]
        return list(zip([0, *starts], [0, *sizes], [*sizes, 0], strict=True))

    def programs(self, step: Step) -> tuple[int]:
        return ((step[1] + step[2]) * self.splits,)


class GramPlan(NamedTuple):
    """How [C, C] is cut into tiles, and the sum over H·W into splits."""

    block_c: int
    block_p: int
    c_blocks: int
    chunk: int
    splits: int
    num_warps: int
    num_stages: int


def rows(kernel: str, x: Tensor) -> tuple[NormRow, ...] | tuple[GramRow, ...] | tuple[ConvRow, ...]:
    """The rows of `kernel`, as "gram_bwd", for `x` [N, C, H, W]; the first is the default."""
    if kernel in NORM_TABLE:
        return NORM_TABLE[kernel]
    if kernel == conv_kernel(x.shape[1]):
        return conv_rows(x, x.shape[1])
    return gram_rows(x, backward=kernel == "gram_bwd")


def norm_row(kernel: str, x: Tensor) -> NormRow:
    """The row for `x` [N, C, H, W]: what was measured to be fastest here, or the default."""
    row: NormRow = autotune.fastest(kernel, x, NORM_TABLE[kernel])
    return row


def plane_plan(x: Tensor, strides: Strides, row: NormRow, read: int = 1) -> Plan:
    """The plan for ops that read planes of `read` tensors like `x` [N, C, H, W] twice.

    Whole planes are held where `row.whole` values can hold them. Larger ones are looped over if
    there are enough to fill the chip and few enough at a time to stay in L2, else split.
    """
    n, c, hw = x.shape[0], x.shape[1], x.shape[2] * x.shape[3]
    l2 = row.l2 * l2_bytes(x.device)
    fast_c = _channels_last(strides)
    # Channels of one pixel that fill a sector, where they are neighbours in memory.
    narrow = min(power_of_2(c), SECTOR // x.element_size()) if fast_c else 1
    if narrow * power_of_2(hw) <= row.whole:
        block_p = power_of_2(hw)
        block_c = min(power_of_2(c), max(narrow, row.tile // block_p))
        return _plan("whole", x, block_c, block_p, row)
    # One program of many warps per multiprocessor, so that few units are under way.
    at_a_time = multiprocessors(x.device) * read * narrow * hw * x.element_size()
    if at_a_time <= l2 and _fill(n * ceil_div(c, narrow), x.device) >= MIN_FILL:
        # 8 values a thread, backward 4 where addresses take registers, too. Backward, 4 everywhere
        # would let two programs share a multiprocessor, and twice as many units be under way.
        roomy = read > 1 and not fast_c and hw % 8 == 0
        return _plan("looped", x, narrow, (4 if roomy else 2) * row.tile // narrow, row)
    block_c = wide = min(power_of_2(c), 64) if fast_c else 1
    channel_bytes = read * hw * x.element_size()
    while channel_bytes * min(block_c, c) > l2 and block_c > 2 * narrow:
        block_c //= 2  # memory comes in pieces of two sectors; narrower units may fit
    if channel_bytes * min(block_c, c) > l2:
        block_c = wide  # nothing fits
    fits = int(l2 // (channel_bytes * min(block_c, c)))
    group = max(fits, 1) if l2 else n * ceil_div(c, block_c)
    return _plan("split", x, block_c, row.tile // block_c, row, group)


def one_pass_plan(x: Tensor, strides: Strides) -> Plan:
    """A split plan of one group, for ops that read `x` [N, C, H, W] once."""
    tile = NORM_TABLE["instance_norm_fwd"][0].tile
    plan = plane_plan(x, strides, NormRow(tile, tile, 0.0))
    return plan._replace(kind="split")


def _plan(
    kind: Literal["whole", "looped", "split"],
    x: Tensor,
    block_c: int,
    block_p: int,
    row: NormRow,
    group: int = 1 << 30,
) -> Plan:
    n, c, hw = x.shape[0], x.shape[1], x.shape[2] * x.shape[3]
    c_blocks = ceil_div(c, block_c)
    group = min(group, n * c_blocks)
    group = ceil_div(n * c_blocks, ceil_div(n * c_blocks, group))  # groups of the same size
    splits = _splits(x, group, hw, block_p) if kind == "split" else 1
    chunk = ceil_div(ceil_div(hw, splits), block_p) * block_p
    # Warps in proportion to the tile: 8 for a full one.
    num_warps = 32 if kind == "looped" else min(max(8 * block_c * block_p // row.tile, 1), 32)
    return Plan(kind, block_c, block_p, c_blocks, chunk, ceil_div(hw, chunk), group, num_warps)


def _fill(programs: int, device: torch.device) -> float:
    """The share of multiprocessors at work, on average, when each runs one program at a time."""
    waves = ceil_div(programs, multiprocessors(device))
    return programs / (waves * multiprocessors(device))


def _channels_last(strides: Strides) -> bool:
    return strides[1] < strides[2]


def gram_rows(x: Tensor, backward: bool = False) -> tuple[GramRow, ...]:
    """The rows for `x` [N, C, H, W]: the default, and what autotune also measures."""
    c, hw = x.shape[1], x.shape[2] * x.shape[3]
    row = next(row for limit, row in GRAM_TABLE if c <= limit)
    # Addresses of unaligned values take registers, and a matrix of gradients shared memory too.
    if c > 16 and (c % 16 or hw % 16):
        row = GRAM_UNALIGNED
    elif backward and c > (128 if x.dtype == torch.bfloat16 else 64):
        row = GRAM_MANY_BACKWARD
    rows = [row, row._replace(waves=1), row._replace(waves=4)]
    if row.num_stages > 2 and x.element_size() == 2:  # in float32 these spill
        rows.append(row._replace(num_stages=2))
    if row.block_p > 32 and x.element_size() == 2:
        rows.append(row._replace(block_p=row.block_p // 2))
    return tuple(rows)


def gram_plan(x: Tensor, backward: bool = False) -> GramPlan:
    """The plan for products of channels of `x` [N, C, H, W], summed over pixels.

    Backward, the same tiles are factors, and the pixels need no sum.
    """
    n, c, hw = x.shape[0], x.shape[1], x.shape[2] * x.shape[3]
    kernel = "gram_bwd" if backward else "gram_fwd"
    row = autotune.fastest(kernel, x, gram_rows(x, backward))
    block_c, block_p, num_warps, num_stages, waves = row
    if x.element_size() == 4:
        block_p //= 2  # keeps the shared memory the same
    c_blocks = ceil_div(c, block_c)
    if backward:
        wanted = ceil_div(2 * waves * multiprocessors(x.device), n * c_blocks)
        splits = min(wanted, ceil_div(hw, block_p))
    else:
        tiles = c_blocks * (c_blocks + 1) // 2
        splits = _splits(x, n * tiles, hw, block_p, waves)
    chunk = ceil_div(ceil_div(hw, splits), block_p) * block_p
    return GramPlan(block_c, block_p, c_blocks, chunk, ceil_div(hw, chunk), num_warps, num_stages)


def conv_kernel(k: int) -> str:
    """What autotune calls convolutions to `k` channels."""
    return f"conv3x3_k{max(power_of_2(k), 16)}"


def conv_rows(x: Tensor, k: int) -> tuple[ConvRow, ...]:
    """The rows for tensors like `x` [N, C, H, W] and `k` channels: the default, and others."""
    table = CONV_FLOAT32 if x.element_size() == 4 else CONV_TABLE
    row = next(row for most_k, most_c, row in table if k <= most_k and x.shape[1] <= most_c)
    # One stage goes by way of registers and of the L1 cache, more are copied from L2.
    stages = [row._replace(num_stages=stages) for stages in (1, 2, 3) if stages != row.num_stages]
    smaller = row._replace(block_y=row.block_y // 2)
    if row.block_r > 16:
        other = row._replace(block_r=row.block_r // 2, num_stages=3)
    else:
        other = row._replace(block_y=2 * row.block_y, num_warps=8)
    return (row, *stages[:2], smaller, other)


def conv_plan(x: Tensor, k: int) -> ConvRow:
    """The plan for a convolution of tensors like `x` [N, C, H, W] to `k` channels."""
    row: ConvRow = autotune.fastest(conv_kernel(k), x, conv_rows(x, k))
    return row


def chunks(x: Tensor, programs: int, pixels: int, block_p: int) -> tuple[int, int]:
    """How many of the pixels a program takes, in steps of block_p, and how many share them."""
    splits = _splits(x, programs, pixels, block_p, 2 * WAVES)  # small ones: all threads at work
    chunk = ceil_div(ceil_div(pixels, splits), block_p) * block_p
    return chunk, ceil_div(pixels, chunk)


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


@cache
def l2_bytes(device: torch.device) -> int:
    """Bytes of the L2 cache of `device`; an H100's where there is none."""
    if device.type != "cuda":
        return 50 << 20
    return torch.cuda.get_device_properties(device).L2_cache_size


def planes(x: Tensor) -> tuple[Tensor, Strides]:
    """`x` [N, C, H, W] and its strides by sample, channel and pixel.

    `x` is copied only if its pixels are not evenly spaced in memory, or so far apart that offsets
    within a tile could pass 2³¹.
    """
    h, w = x.shape[2:]
    stride_n, stride_c, stride_h, stride_w = x.stride()
    stride_p = stride_w if w > 1 or h == 1 else stride_h
    channels = 64 if stride_c < stride_p else max(LARGEST_TILE // (h * w), 1)  # in a tile, at most
    reach = stride_c * channels + stride_p * min(h * w, LARGEST_TILE)
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
