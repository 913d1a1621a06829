"""Upsampling and blurred cells against float64."""

from __future__ import annotations

import ctypes
import math
import mmap
import os
from itertools import product

import pytest
import torch
import torch.nn.functional as F

from faststy import ops
from faststy.ops import reference
from faststy.ops.reference import CHANNELS_LAST

# Relative: halves are rounded once, at the end. (Triton's interpreter cuts bfloat16 off.)
ROUNDING = {torch.float32: 0.0, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-7}


@pytest.mark.parametrize("shape", [(1, 5, 4, 7), (2, 24, 3, 1), (1, 1, 1, 1), (3, 16, 1, 11)])
@pytest.mark.parametrize("scale", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", ROUNDING)
def test_upsample(
    device: torch.device, shape: tuple[int, ...], scale: int, dtype: torch.dtype
) -> None:
    x = torch.randn(shape).to(dtype)
    expected = F.interpolate(x.double(), scale_factor=scale, mode="bilinear", align_corners=False)
    for layout in (torch.contiguous_format, CHANNELS_LAST):
        got = ops.upsample(x.to(device).contiguous(memory_format=layout), scale)
        assert got.dtype == dtype
        assert got.is_contiguous(memory_format=CHANNELS_LAST)
        # Positions of thirds are rounded, so a difference of neighbours counts, not the value.
        torch.testing.assert_close(got.cpu().double(), expected, atol=4e-6, rtol=ROUNDING[dtype])


@pytest.mark.parametrize("shape", [(1, 3, 5, 6), (2, 16, 2, 3), (1, 1, 1, 1), (1, 5, 1, 4)])
@pytest.mark.parametrize("scale", [1, 2, 3])
@pytest.mark.parametrize("dtype", ROUNDING)
def test_blur_cells(
    device: torch.device, shape: tuple[int, ...], scale: int, dtype: torch.dtype
) -> None:
    n, c, h, w = shape
    picture = torch.randn(n, c, h * scale, w * scale).to(dtype)
    line = torch.tensor([0.25, 0.5, 0.25], dtype=torch.float64)
    kernel = (line[:, None] * line).expand(c, 1, 3, 3)
    expected = F.conv2d(F.pad(picture.double(), (1, 1, 1, 1), "replicate"), kernel, groups=c)
    cells = F.pixel_unshuffle(picture, scale).view(n, c, scale**2, h, w).transpose(1, 2)
    got = ops.blur_cells(cells.reshape(n, -1, h, w).to(device), scale)
    assert got.dtype == dtype
    assert got.is_contiguous(memory_format=CHANNELS_LAST)
    torch.testing.assert_close(got.cpu().double(), expected, atol=2e-6, rtol=ROUNDING[dtype])
    flat = torch.full((n, c * scale**2, h, w), 0.7, dtype=dtype, device=device)
    torch.testing.assert_close(ops.blur_cells(flat, scale), torch.full_like(got, 0.7))


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize(("h", "w", "size"), [(4, 7, (8, 14)), (3, 5, (5, 9)), (1, 1, (1, 2))])
def test_blurred_cells_as_frames(
    device: torch.device, h: int, w: int, size: tuple[int, int], dtype: torch.dtype
) -> None:
    x = (torch.rand(2, 12, h, w) * 1.4 - 0.2).to(device, dtype)
    got = ops.blur_cells_frames(x, 2, size)
    assert got.shape == (2, *size, 3)
    exact = reference.blur_cells_fwd(x.double(), 2)[..., : size[0], : size[1]].clamp(0, 1) * 255
    # Half a level, and what rounding to half precision in between takes.
    off = (got.permute(0, 3, 1, 2).double() - exact).abs().max()
    assert off <= 0.5 + 255 * max(ROUNDING[dtype], 1e-6)
    x[0, 0, 0, 0] = float("nan")
    assert ops.blur_cells_frames(x, 2, size)[0, 0, 0, 0] == 0


def test_rows_beyond_one_program(device: torch.device) -> None:
    """Wider and higher than what a program of the kernels takes."""
    x = torch.randn(2, 12, 6, 260)
    expected = F.interpolate(x.double(), scale_factor=2, mode="bilinear", align_corners=False)
    got = ops.upsample(x.to(device), 2).cpu().double()
    torch.testing.assert_close(got, expected, atol=4e-6, rtol=0)
    pixels = F.pixel_shuffle(x.double().view(2, 4, 3, 6, 260).transpose(1, 2).flatten(1, 2), 2)
    kernel = torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]]).double().expand(3, 1, 3, 3) / 16
    expected = F.conv2d(F.pad(pixels, (1, 1, 1, 1), "replicate"), kernel, groups=3)
    got = ops.blur_cells(x.to(device), 2).cpu().double()
    torch.testing.assert_close(got, expected, atol=2e-6, rtol=0)


def test_nothing_is_read_beyond_the_end(device: torch.device) -> None:
    """Where the next page of memory cannot be read."""
    if device.type != "cpu" or os.name != "posix":
        pytest.skip("a page of the CPU's memory")
    memory = mmap.mmap(-1, 2 * mmap.PAGESIZE)
    after = ctypes.addressof(ctypes.c_char.from_buffer(memory)) + mmap.PAGESIZE
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(after), mmap.PAGESIZE, 0) == 0
    floats = torch.frombuffer(memory, dtype=torch.float32, count=mmap.PAGESIZE // 4)
    for scale, channels, width in product((1, 2, 3), (1, 2, 3, 5), (1, 2, 3, 4, 5, 9)):
        shape = (1, scale**2 * channels, 1, width)
        x = floats[-math.prod(shape) :].view(1, 1, width, -1).permute(0, 3, 1, 2)
        x.copy_(torch.randn(shape))
        expected = reference.blur_cells_fwd(x, scale)
        torch.testing.assert_close(ops.blur_cells(x, scale), expected)
        expected = reference.upsample_fwd(x, scale)
        torch.testing.assert_close(ops.upsample(x, scale), expected, atol=4e-6, rtol=0)


def test_not_a_number_stays_where_it_is(device: torch.device) -> None:
    x = torch.zeros(1, 4, 3, 5)
    x[0, 2, 1, 3] = torch.nan
    seen = ops.blur_cells(x.to(device), 2).isnan().nonzero().tolist()
    assert seen == [[0, 0, y, z] for y in range(2, 5) for z in range(5, 8)]


def test_empty(device: torch.device) -> None:
    x = torch.empty(0, 4, 3, 5, device=device)
    assert ops.upsample(x, 2).shape == (0, 4, 6, 10)
    assert ops.blur_cells(x, 2).shape == (0, 1, 6, 10)


def test_opcheck(device: torch.device) -> None:
    x = torch.randn(1, 8, 3, 5).to(device).to(memory_format=CHANNELS_LAST)
    torch.library.opcheck(torch.ops.faststy.upsample_fwd, (x, 2))
    torch.library.opcheck(torch.ops.faststy.blur_cells_fwd, (x, 2))
    torch.library.opcheck(torch.ops.faststy.blur_cells_frames, (x, 2, 2, 3))


def test_mistakes() -> None:
    with pytest.raises(ValueError, match="scale: expected at least 1, got 0"):
        ops.upsample(torch.zeros(1, 1, 2, 2), 0)
    with pytest.raises(ValueError, match="scale: expected at least 1, got 0"):
        ops.blur_cells(torch.zeros(1, 1, 2, 2), 0)
    with pytest.raises(ValueError, match="multiples of 2², got 6"):
        ops.blur_cells(torch.zeros(1, 6, 2, 2), 2)
    with pytest.raises(ValueError, match=r"x: expected \[N, C, H, W\]"):
        ops.blur_cells(torch.zeros(4, 2, 2), 2)
    for size in ((5, 4), (-1, 4)):
        with pytest.raises(ValueError, match=r"size: expected at most \(4, 4\)"):
            ops.blur_cells_frames(torch.zeros(1, 4, 2, 2), 2, size)
