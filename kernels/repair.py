# mypy: disable-error-code="no-untyped-def"
"""The ends of the repairer, from uint8 frames [N, H, W, 3] to uint8 frames.

A *cell* is 4 × 4 pixels, a position of the repairer's net; a *block* is 8 × 8 pixels, whose mean
luminance is no detail. The hints take three launches, as each needs what lies beside its own in the
one before: means of blocks; details and their products in cells; the structure of 3 × 3 cells. What
is between them is a tenth of the frames at most, and stays in L2.

Interpolation needs no addresses of pixels: those of one cell, or between the centres of two, have
the same two neighbours, and shares known when the kernel is compiled.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from faststy.kernels.pixels import to_byte
from faststy.kernels.tuning import REPAIR_BLOCKS, REPAIR_CELLS, REPAIR_PIXELS, ceil_div, power_of_2
from faststy.kernels.upsample import _blended

CELL = tl.constexpr(4)
BLOCK = tl.constexpr(8)
GATE = tl.constexpr(4.0)  # the most that a detail is multiplied by
HEADS = tl.constexpr(6)  # map, two gates and three corrections
CONTRAST = tl.constexpr(1e-5)  # added to that of a detail, before the logarithm


@triton.jit
def _luminance(rgb_ptr, mask):
    """That of pixels of bytes, 0…1; ITU-R BT.601."""
    red = tl.load(rgb_ptr, mask=mask, other=0).to(tl.float32)
    green = tl.load(rgb_ptr + 1, mask=mask, other=0).to(tl.float32)
    blue = tl.load(rgb_ptr + 2, mask=mask, other=0).to(tl.float32)
    return (0.299 / 255) * red + (0.587 / 255) * green + (0.114 / 255) * blue


@triton.jit
def _means_kernel(
    painted_ptr, photo_ptr,  # [N, H, W, 3] uint8
    means_ptr,  # [N, 2, down, across] float32, written
    H, W, down, across, groups,
    BB: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0).to(tl.int64)
    plane, i_y = pid // (groups * down), (pid // groups) % down  # plane = 2·n + (0 or 1)
    o_b = (pid % groups * BB).to(tl.int32) + tl.arange(0, BB)  # blocks
    x = o_b[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    # Blocks that stick out repeat the last row and column.
    x = tl.minimum(x, W - 1)
    frame = painted_ptr if plane % 2 == 0 else photo_ptr
    frame += plane // 2 * H * W * 3
    sums = tl.zeros([BB, BLOCK], tl.float32)
    for i in tl.static_range(BLOCK):
        row = frame + tl.minimum(i_y * BLOCK + i, H - 1) * W * 3
        sums += _luminance(row + 3 * x, (o_b < across)[:, None])
    means = tl.sum(sums, 1) / (BLOCK * BLOCK)
    tl.store(means_ptr + (plane * down + i_y) * across + o_b, means, mask=o_b < across)


@triton.jit
def _store_mean(row_ptr, o_c, w, sums):
    """Sums [BC, CELL] of the columns of cells, as means of the cells."""
    tl.store(row_ptr + o_c, tl.sum(sums, 1) / (CELL * CELL), mask=o_c < w)


@triton.jit
def _details_kernel(
    painted_ptr, photo_ptr,  # [N, H, W, 3] uint8
    means_ptr,  # [N, 2, down, across] float32
    details_ptr,  # [N, 2, H, W] float32, written
    products_ptr,  # [N, 3, h, w] float32, written: means of cells
    h, w, down, across, groups,
    BC: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0).to(tl.int64)
    i_n, i_y = pid // (groups * h), (pid // groups) % h
    o_c = (pid % groups * BC).to(tl.int32) + tl.arange(0, BC)
    mask = o_c[:, None] < w
    o_j = tl.arange(0, CELL)[None, :]
    x = o_c[:, None] * CELL + o_j  # [BC, CELL]

    # The cells of a block lie on either side of its centre: they look up or down, left or right.
    lower, right = i_y % 2, o_c[:, None] % 2
    block = o_c[:, None] // 2
    beside = tl.minimum(tl.maximum(block + (2 * right - 1), 0), across - 1)
    block_y = i_y // 2
    beside_y = tl.minimum(tl.maximum(block_y + (2 * lower - 1), 0), down - 1)
    share = tl.where(right == 1, 0.5 + o_j, 3.5 - o_j) / BLOCK
    near = means_ptr + (i_n * 2 * down + block_y) * across
    far = means_ptr + (i_n * 2 * down + beside_y) * across
    one_near = _blended(near, block, beside, share, mask)
    one_far = _blended(far, block, beside, share, mask)
    two_near = _blended(near + down * across, block, beside, share, mask)
    two_far = _blended(far + down * across, block, beside, share, mask)

    H, W = h * CELL, w * CELL
    aa = tl.zeros([BC, CELL], tl.float32)
    bb = aa
    ab = aa
    for i in tl.static_range(CELL):
        y = i_y * CELL + i
        share_y = tl.where(lower == 1, 0.5 + i, 3.5 - i) / BLOCK
        row = (i_n * H + y) * W * 3
        a = _luminance(painted_ptr + row + 3 * x, mask) - one_near
        a -= share_y * (one_far - one_near)
        b = _luminance(photo_ptr + row + 3 * x, mask) - two_near
        b -= share_y * (two_far - two_near)
        tl.store(details_ptr + (i_n * 2 * H + y) * W + x, a, mask=mask)
        tl.store(details_ptr + ((i_n * 2 + 1) * H + y) * W + x, b, mask=mask)
        aa += a * a
        bb += b * b
        ab += a * b
    _store_mean(products_ptr + (i_n * 3 * h + i_y) * w, o_c, w, aa)
    _store_mean(products_ptr + ((i_n * 3 + 1) * h + i_y) * w, o_c, w, bb)
    _store_mean(products_ptr + ((i_n * 3 + 2) * h + i_y) * w, o_c, w, ab)


@triton.jit
def _around(plane_ptr, i_y, o_c, h, w, BC: tl.constexpr):
    """Means [BC] of 3 × 3 cells of a plane [h, w], less where there are none."""
    total = tl.zeros([BC], tl.float32)
    for i in tl.static_range(3):
        y = i_y + (i - 1)
        if (y >= 0) & (y < h):
            for j in tl.static_range(3):
                x = o_c + (j - 1)
                total += tl.load(plane_ptr + y * w + x, mask=(x >= 0) & (x < w), other=0)
    rows = tl.minimum(i_y + 1, h - 1) - tl.maximum(i_y - 1, 0) + 1
    columns = tl.minimum(o_c + 1, w - 1) - tl.maximum(o_c - 1, 0) + 1
    return total / (rows * tl.maximum(columns, 1)).to(tl.float32)


@triton.jit
def _structure_kernel(
    products_ptr,  # [N, 3, h, w] float32
    hints_ptr,  # [N, h, w, 3] float32, written
    h, w, groups,
    BC: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0).to(tl.int64)
    i_n, i_y = pid // (groups * h), (pid // groups) % h
    o_c = (pid % groups * BC).to(tl.int32) + tl.arange(0, BC)
    aa = _around(products_ptr + i_n * 3 * h * w, i_y, o_c, h, w, BC) + CONTRAST
    bb = _around(products_ptr + (i_n * 3 + 1) * h * w, i_y, o_c, h, w, BC) + CONTRAST
    ab = _around(products_ptr + (i_n * 3 + 2) * h * w, i_y, o_c, h, w, BC)
    at = hints_ptr + (i_n * h + i_y) * w * 3 + 3 * o_c
    tl.store(at, tl.log(aa) / 4 + 1, mask=o_c < w)
    tl.store(at + 1, tl.log(bb) / 4 + 1, mask=o_c < w)
    tl.store(at + 2, ab * tl.rsqrt(aa * bb), mask=o_c < w)


@triton.jit
def _head(above_ptr, below_ptr, o_left, o_right, share, mask):
    """One number of the net at a row of cells and what it differs by at the next, interpolated
    along both."""
    above = _blended(above_ptr, o_left, o_right, share, mask)
    return above, _blended(below_ptr, o_left, o_right, share, mask) - above


@triton.jit
def _add_to_pixel(from_ptr, to_ptr, added, mask):
    value = tl.load(from_ptr, mask=mask, other=0).to(tl.float32) + 255 * added
    tl.store(to_ptr, to_byte(value), mask=mask)


@triton.jit
def _repair_apply_kernel(
    painted_ptr,  # [N, H, W, 3] uint8
    details_ptr,  # [N, 2, H, W] float32
    heads_ptr,  # [N, h, w, HEADS]
    out_ptr,  # [N, H, W, 3] uint8, written
    h, w, blocks, strength,
    BX: tl.constexpr,
):  # fmt: skip
    # A program takes the CELL rows between the centres of two rows of cells, or one and the border.
    pid = tl.program_id(0).to(tl.int64)
    i_n, above = pid // (blocks * (h + 1)), (pid // blocks) % (h + 1) - 1
    H, W = h * CELL, w * CELL
    o_x = (pid % blocks * BX).to(tl.int32) + tl.arange(0, BX)
    x = o_x + CELL // 2
    left, share = x // CELL - 1, (x % CELL + 0.5) / CELL
    o_left = tl.maximum(left, 0) * HEADS
    o_right = tl.minimum(left + 1, w - 1) * HEADS
    row = heads_ptr + (i_n * h + tl.maximum(above, 0)) * w * HEADS
    next_row = heads_ptr + (i_n * h + tl.minimum(above + 1, h - 1)) * w * HEADS
    inside = o_x < W
    lost, more_lost = _head(row, next_row, o_left, o_right, share, inside)
    photo, more_photo = _head(row + 1, next_row + 1, o_left, o_right, share, inside)
    own, more_own = _head(row + 2, next_row + 2, o_left, o_right, share, inside)
    red, more_red = _head(row + 3, next_row + 3, o_left, o_right, share, inside)
    green, more_green = _head(row + 4, next_row + 4, o_left, o_right, share, inside)
    blue, more_blue = _head(row + 5, next_row + 5, o_left, o_right, share, inside)

    for i in tl.static_range(CELL):
        down = (i + 0.5) / CELL
        y = above * CELL + (CELL // 2 + i)
        if (y >= 0) & (y < H):
            own_at = details_ptr + (i_n * 2 * H + y) * W + o_x
            photo_at = details_ptr + ((i_n * 2 + 1) * H + y) * W + o_x
            kept = tl.sigmoid(photo + down * more_photo) * tl.load(photo_at, mask=inside, other=0)
            dropped = tl.sigmoid(own + down * more_own) * tl.load(own_at, mask=inside, other=0)
            residual = GATE * (kept - dropped)
            much = strength * tl.sigmoid(lost + down * more_lost)
            pixel = (i_n * H + y) * W * 3 + 3 * o_x
            before, after = painted_ptr + pixel, out_ptr + pixel
            _add_to_pixel(before, after, much * (residual + red + down * more_red), inside)
            _add_to_pixel(
                before + 1, after + 1, much * (residual + green + down * more_green), inside
            )
            _add_to_pixel(
                before + 2, after + 2, much * (residual + blue + down * more_blue), inside
            )


# ---------------------------------------------------------------------------- launchers


def repair_hints(painted: Tensor, photo: Tensor) -> tuple[Tensor, Tensor]:
    """Details [N, 2, H, W] and channels_last structure [N, 3, H/4, W/4] of frames [N, H, W, 3]."""
    n, height, width, _ = photo.shape
    h, w = height // CELL.value, width // CELL.value
    down, across = ceil_div(height, BLOCK.value), ceil_div(width, BLOCK.value)
    means, products, details = (
        torch.empty(shape, dtype=torch.float32, device=photo.device)
        for shape in ((n, 2, down, across), (n, 3, h, w), (n, 2, height, width))
    )
    hints = torch.empty(
        (n, 3, h, w),
        dtype=torch.float32,
        device=photo.device,
        memory_format=torch.channels_last,
    )
    size = min(REPAIR_BLOCKS, power_of_2(across))
    groups = ceil_div(across, size)
    _means_kernel[(2 * n * down * groups,)](
        painted, photo, means, height, width, down, across, groups, BB=size
    )
    size = min(REPAIR_CELLS, power_of_2(w))
    groups = ceil_div(w, size)
    _details_kernel[(n * h * groups,)](
        painted, photo, means, details, products, h, w, down, across, groups, BC=size
    )
    _structure_kernel[(n * h * groups,)](products, hints, h, w, groups, BC=size)
    return details, hints


def repair_apply(painted: Tensor, details: Tensor, heads: Tensor, strength: float) -> Tensor:
    """Repaired frames [N, H, W, 3] of `painted`, by channels_last heads [N, 6, H/4, W/4]."""
    n, _, h, w = heads.shape
    out = torch.empty_like(painted)
    block = min(REPAIR_PIXELS, power_of_2(w * CELL.value))
    blocks = ceil_div(w * CELL.value, block)
    _repair_apply_kernel[(n * (h + 1) * blocks,)](
        painted, details, heads, out, h, w, blocks, strength, BX=block
    )
    return out
