"""Who does how much: tile sizes, warps, groups and splits, by small tables and the shape at hand.

The first row of a table is the default, the others are what `autotune` also measures. Rows of
instance norm, Gram matrices and (in half precision) convolutions were the fastest on an H200; all
other numbers are *predicted*: from counting registers and bytes in flight, and from offline
compilation (no spills). `faststy bench ops --tune`, on a GPU, replaces them by measurements of that
GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, wraps
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

from faststy.kernels import autotune

Planner = TypeVar("Planner", bound=Callable[..., Any])
Strides = tuple[int, int, int]
Step = tuple[int, int, int]  # of a split plan: first unit, how many are finished, how many summed

MIN_STEPS = 4  # tiles per program that make a split worth its partial sums
MIN_FILL = 0.75  # of the multiprocessors that must have work, on average, without a split
SECTOR = 32  # bytes: the smallest piece of memory that is read at once
WIDE = 64  # channels of a pixel that a split program takes at once, where they are neighbours


class NormRow(NamedTuple):
    """How instance normalisation is cut."""

    whole: int  # values: up to here a program holds whole planes, so that x is read once, not twice
    l2: float  # the share of the L2 cache that planes fill between their two reads; 0: no grouping
    # Of planes that are read twice:
    values: int  # that a thread holds at once
    num_warps: int
    programs: int  # per multiprocessor
    num_stages: int  # tiles under way at once, and one; of 2 bytes a value


# Backward holds x, dy and the residual. In channels_last, groups that stay in L2 do not pay.
NORM_PLANAR = {
    "instance_norm_fwd": (
        NormRow(16384, 0.7, 8, 16, 2, 6),
        NormRow(16384, 0.7, 8, 16, 2, 4),
        NormRow(16384, 0.7, 8, 16, 2, 1),
        NormRow(16384, 0.7, 16, 8, 2, 3),
        NormRow(16384, 0.0, 8, 16, 2, 6),
    ),
    "instance_norm_bwd": (
        NormRow(8192, 0.7, 8, 32, 1, 3),
        NormRow(8192, 0.7, 8, 8, 2, 4),
        NormRow(8192, 0.0, 4, 16, 3, 4),
        NormRow(8192, 0.0, 4, 16, 2, 5),
        NormRow(8192, 0.0, 4, 8, 4, 5),
    ),
}
NORM_FLOAT32 = {  # planar, too
    "instance_norm_fwd": (
        NormRow(16384, 0.7, 8, 32, 1, 1),
        NormRow(16384, 0.7, 8, 16, 2, 4),
        NormRow(16384, 0.7, 4, 32, 2, 4),
        NormRow(16384, 0.7, 8, 16, 2, 6),
        NormRow(16384, 1.0, 8, 16, 2, 4),
    ),
    "instance_norm_bwd": (
        NormRow(8192, 0.0, 4, 8, 4, 5),
        NormRow(8192, 0.0, 8, 8, 4, 3),
        NormRow(8192, 0.0, 4, 16, 2, 5),
        NormRow(8192, 0.0, 4, 8, 8, 3),
        NormRow(8192, 0.0, 4, 16, 2, 1),
    ),
}
NORM_CHANNELS_LAST = {
    "instance_norm_fwd": (
        NormRow(16384, 0.0, 8, 8, 3, 6),
        NormRow(16384, 0.0, 16, 8, 2, 3),
        NormRow(16384, 0.0, 8, 4, 8, 4),
        NormRow(16384, 0.0, 8, 16, 2, 4),
        NormRow(16384, 0.0, 8, 8, 4, 4),
    ),
    "instance_norm_bwd": (
        NormRow(8192, 0.0, 8, 8, 2, 4),
        NormRow(8192, 0.0, 4, 4, 8, 4),
        NormRow(8192, 0.0, 4, 16, 2, 5),
        NormRow(8192, 0.0, 4, 8, 4, 5),
        NormRow(8192, 0.0, 8, 8, 4, 3),
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


# By the largest C that a row serves. A wider tile reads x less often, and leaves fewer programs.
GRAM_FORWARD = (
    (64, GramRow(64, 64, 8, 4, 2)),  # groups of pixels fill it where there are fewer channels
    (128, GramRow(128, 32, 8, 4, 2)),
    (1 << 30, GramRow(64, 64, 4, 3, 2)),
)
GRAM_FLOAT32 = (  # forward: products of three parts take registers
    (16, GramRow(16, 128, 4, 4, 4)),
    (32, GramRow(32, 128, 4, 4, 2)),
    (1 << 30, GramRow(64, 64, 8, 4, 2)),
)
GRAM_BACKWARD = (
    (16, GramRow(16, 128, 4, 4, 8)),
    (32, GramRow(32, 128, 4, 4, 4)),
    (64, GramRow(64, 128, 4, 3, 3)),
    (128, GramRow(128, 64, 8, 3, 2)),
    (256, GramRow(64, 32, 4, 3, 2)),
    (1 << 30, GramRow(128, 128, 8, 3, 1)),
)
GRAM_UNALIGNED = ((16, GramRow(16, 128, 8, 4, 4)), (1 << 30, GramRow(64, 32, 8, 1, 2)))
GRAM_WIDE_BACKWARD = GramRow(64, 32, 8, 2, 2)  # where factors have 4 bytes
MERGED = 24  # bytes that a partial sum counts for: 8 are moved, by few programs
LAUNCH = 8 << 20  # bytes that are moved in the time that one more launch takes


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
PLANS = 1000  # that are remembered at most: pictures come in many sizes
BIAS_WAVES = 8  # programs per multiprocessor that sum up a gradient of a bias: small ones


class Plan(NamedTuple):
    """How [N, C, H·W] is cut: units of block_c channels, tiles of block_c × block_p, chunks."""

    kind: Literal["whole", "looped", "split"]  # see instance_norm_large.py
    block_c: int
    block_p: int
    c_blocks: int
    chunk: int  # pixels of one program
    splits: int  # programs that share a unit
    group: int  # units that go together
    num_warps: int
    num_stages: int

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
    block_k: int  # backward: channels a step
    block_p: int
    groups: int  # of pixels that stand for further channels: see gram.py
    c_blocks: int
    chunk: int  # pixels of one program, of each group
    splits: int
    num_warps: int
    num_stages: int


_plans: dict[tuple[Any, ...], Any] = {}


def remembered(plan: Planner) -> Planner:
    """`plan`, made once for all `x` of one dtype, shape, strides and device: before a kernel of a
    small map it would take as long as the kernel."""

    @wraps(plan)
    def recall(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        key = (plan, x.dtype, x.shape, x.stride(), x.device, args, *kwargs.items())
        made = _plans.get(key)
        if made is None:
            if len(_plans) >= PLANS:
                _plans.clear()
            made = _plans[key] = plan(x, *args, **kwargs)
        return made

    return recall  # type: ignore[return-value]


def rows(kernel: str, x: Tensor) -> tuple[NormRow, ...] | tuple[GramRow, ...] | tuple[ConvRow, ...]:
    """The rows of `kernel`, as "gram_bwd", for `x` [N, C, H, W]; the first is the default."""
    if kernel in NORM_PLANAR:
        return norm_rows(kernel, x)
    if kernel == conv_kernel(x.shape[1]):
        return conv_rows(x, x.shape[1])
    return gram_rows(x, backward=kernel == "gram_bwd")


def norm_rows(kernel: str, x: Tensor) -> tuple[NormRow, ...]:
    """The rows for the memory layout and the dtype of `x` [N, C, H, W]."""
    if x.stride(1) < x.stride(3):
        return NORM_CHANNELS_LAST[kernel]
    return (NORM_FLOAT32 if x.element_size() == 4 else NORM_PLANAR)[kernel]


def norm_row(kernel: str, x: Tensor) -> NormRow:
    """The row for `x` [N, C, H, W]: what was measured to be fastest here, or the default."""
    row: NormRow = autotune.fastest(kernel, x, norm_rows(kernel, x))
    return row


@remembered
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
        tile = row.whole // 4  # of 8 warps; smaller planes go together
        block_c = min(power_of_2(c), max(narrow, tile // block_p))
        return _plan("whole", x, row, block_c, block_p, 8 * block_c * block_p // tile)
    channel_bytes = read * hw * x.element_size()
    tile = 32 * row.num_warps * row.values
    for programs in () if fast_c else (row.programs, 1):  # fewer at a time, if only these fit
        at_a_time = multiprocessors(x.device) * programs
        if at_a_time * channel_bytes <= l2 and _fill(n * c, at_a_time) >= MIN_FILL:
            num_warps = min(power_of_2(row.num_warps * row.programs // programs), 32)
            row = row._replace(num_stages=1 + (row.num_stages - 1) * row.programs // programs)
            return _plan("looped", x, row, 1, tile, num_warps)
    if row.num_warps == 32:  # of 64 registers, which are too few here: two programs, half the tile
        row, tile = row._replace(num_warps=16, programs=2 * row.programs), tile // 4
    block_c = min(power_of_2(c), WIDE) if fast_c else 1
    fits = int(l2 // (channel_bytes * min(block_c, c)))
    group = max(fits, 1) if l2 else n * ceil_div(c, block_c)
    return _plan("split", x, row, block_c, max(tile // block_c, 1), row.num_warps, group)


@remembered
def one_pass_plan(x: Tensor, strides: Strides) -> Plan:
    """A split plan of one group, for ops that read `x` [N, C, H, W] once."""
    row = norm_rows("instance_norm_fwd", x)[0]
    return plane_plan(x, strides, row._replace(whole=0, l2=0.0))


def _plan(
    kind: Literal["whole", "looped", "split"],
    x: Tensor,
    row: NormRow,
    block_c: int,
    block_p: int,
    num_warps: int,
    group: int = 1 << 30,
) -> Plan:
    n, c, hw = x.shape[0], x.shape[1], x.shape[2] * x.shape[3]
    c_blocks = ceil_div(c, block_c)
    group = min(group, n * c_blocks)
    group = ceil_div(n * c_blocks, ceil_div(n * c_blocks, group))  # groups of the same size
    splits = 1
    if kind == "split":  # one wave of programs, or two if these fill the chip better
        slots = row.programs * multiprocessors(x.device)
        waves = (max(slots // group, 1), max(2 * slots // group, 1))
        splits = max(waves, key=lambda splits: round(_fill(splits * group, slots), 1))
        splits = min(splits, ceil_div(hw, MIN_STEPS * block_p))
    chunk = ceil_div(ceil_div(hw, splits), block_p) * block_p
    num_warps = min(max(num_warps, 1), 32)
    splits = ceil_div(hw, chunk)
    num_stages = 1 + (row.num_stages - 1) * 2 // x.element_size()  # as many bytes in any type
    return Plan(kind, block_c, block_p, c_blocks, chunk, splits, group, num_warps, num_stages)


def _fill(programs: int, at_a_time: int) -> float:
    """The share of the chip that `programs` use, on average, if so many run at a time."""
    return programs / (ceil_div(programs, at_a_time) * at_a_time)


def _channels_last(strides: Strides) -> bool:
    return strides[1] < strides[2]


@remembered
def gram_rows(x: Tensor, backward: bool = False) -> tuple[GramRow, ...]:
    """The rows for `x` [N, C, H, W]: the default, and what autotune also measures."""
    c, hw = x.shape[1], x.shape[2] * x.shape[3]
    table: tuple[tuple[int, GramRow], ...] = GRAM_BACKWARD
    if not backward:
        table = GRAM_FLOAT32 if x.element_size() == 4 else GRAM_FORWARD
    row = next(row for limit, row in table if c <= limit)
    groups = 1 if backward else _groups(x, row.block_c)
    # Addresses of unaligned values take registers, and a matrix of gradients shared memory too.
    if (c * groups if x.stride(1) < x.stride(3) else hw // groups) % 16:
        row = next(row for limit, row in GRAM_UNALIGNED if c <= limit)
    elif backward and c > 64 and x.dtype != torch.bfloat16:
        row = GRAM_WIDE_BACKWARD
    rows = [row, row._replace(waves=max(row.waves // 2, 1)), row._replace(waves=2 * row.waves)]
    if row.num_stages > 2 and x.element_size() == 2:  # in float32 these spill
        rows.append(row._replace(num_stages=2))
    if row.block_p > 32 and x.element_size() == 2:
        rows.append(row._replace(block_p=row.block_p // 2))
    return tuple(rows)


def gram_plan(x: Tensor, backward: bool = False) -> GramPlan:
    """The plan for products of channels of `x` [N, C, H, W], summed over pixels.

    Backward, the pixels need no sum, and block_k channels are summed at a time: all, where a row of
    blocks of the matrix fits into shared memory and stays there.
    """
    kernel = "gram_bwd" if backward else "gram_fwd"
    return _gram_plan(x, autotune.fastest(kernel, x, gram_rows(x, backward)), backward)


@remembered
def _gram_plan(x: Tensor, row: GramRow, backward: bool) -> GramPlan:
    n, c, hw = x.shape[0], x.shape[1], x.shape[2] * x.shape[3]
    block_c, block_p, num_warps, num_stages, waves = row
    if x.element_size() == 4:
        block_p //= 2  # keeps the shared memory the same
    groups = 1 if backward else _groups(x, block_c)
    c, hw = c * groups, hw // groups
    c_blocks = ceil_div(c, block_c)
    whole = c <= (256 if x.dtype == torch.bfloat16 and num_stages > 1 else 64)
    block_k = max(power_of_2(c), 16) if whole else 64
    if backward:
        wanted = waves * multiprocessors(x.device) // max(n * c_blocks, 1)
        splits = max(min(wanted, ceil_div(hw, block_p)), 1)
    else:
        tiles = n * c_blocks * (c_blocks + 1) // 2
        full = waves * multiprocessors(x.device) / max(tiles, 1)
        side = min(block_c, c)
        read = tiles * side * hw * x.element_size() * (1 if c_blocks == 1 else 2)
        most = min(full, ceil_div(hw, MIN_STEPS * block_p))
        splits = _gram_splits(read * full, MERGED * tiles * side**2, most, LAUNCH * (groups == 1))
    chunk = ceil_div(ceil_div(hw, splits), block_p) * block_p
    splits = ceil_div(hw, chunk)
    return GramPlan(
        block_c, block_k, block_p, groups, c_blocks, chunk, splits, num_warps, num_stages
    )


def _groups(x: Tensor, block_c: int) -> int:
    """How many groups of pixels can stand for further channels, so that they fill a tile."""
    groups = block_c // power_of_2(x.shape[1])
    dense = x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last)
    return groups if groups > 1 and dense and x.shape[2] * x.shape[3] % groups == 0 else 1


def _gram_splits(read: float, partial: int, most: float, launch: int) -> int:
    """How many programs share the pixels of a tile: what takes the least time, counted in bytes.

    `read` / splits stand for reading x, `partial` · splits for partial sums, written and read, and
    `launch` for the one more that these need. At `most` splits the chip is full.
    """
    splits = int(min(most, (read / max(partial, 1)) ** 0.5))
    if splits < 2 or read / splits + partial * splits + launch > read:
        return 1
    return splits


def conv_kernel(k: int) -> str:
    """What autotune calls convolutions to `k` channels."""
    return f"conv3x3_k{max(power_of_2(k), 16)}"


@remembered
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
    """How many of the pixels a program takes, in steps of block_p, and how many share them, where
    there are `programs` others to fill the chip."""
    wanted = ceil_div(BIAS_WAVES * multiprocessors(x.device), programs)
    splits = max(1, min(wanted, ceil_div(pixels, MIN_STEPS * block_p)))
    chunk = ceil_div(ceil_div(pixels, splits), block_p) * block_p
    return chunk, ceil_div(pixels, chunk)


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
    within a tile could pass 2³¹; of a plane in one piece they cannot.
    """
    h, w = x.shape[2:]
    stride_n, stride_c, stride_h, stride_w = x.stride()
    stride_p = stride_w if w > 1 or h == 1 else stride_h
    channels = 64 if stride_c < stride_p else max(LARGEST_TILE // (h * w), 1)  # in a tile, at most
    reach = stride_c * channels + stride_p * min(h * w, LARGEST_TILE)
    if h > 1 and w > 1 and stride_h != w * stride_w:
        return planes(x.contiguous(memory_format=layout(x)))
    if reach >= 2**31 and not x.is_contiguous():
        return planes(x.contiguous())
    return x, (stride_n, stride_c, stride_p)


def layout(x: Tensor) -> torch.memory_format:
    """The memory format of results shaped as `x` [N, C, H, W], which may be a part of another."""
    last = x.stride(1) == 1 < x.shape[1] and not x.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


def power_of_2(n: int) -> int:
    """The smallest power of two that is at least `n`."""
    return 1 << max(n - 1, 0).bit_length()


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)
