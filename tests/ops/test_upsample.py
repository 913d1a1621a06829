"""Upsampling and blurred cells against float64."""

import pytest
import torch
import torch.nn.functional as F

from faststy import ops


@pytest.mark.parametrize("shape", [(1, 5, 4, 7), (2, 24, 3, 1), (1, 1, 1, 1)])
@pytest.mark.parametrize("scale", [1, 2, 3, 4])
def test_upsample(shape, scale):
    x = torch.randn(shape)
    expected = F.interpolate(x.double(), scale_factor=scale, mode="bilinear", align_corners=False)
    for layout in (torch.contiguous_format, torch.channels_last):
        got = ops.upsample(x.contiguous(memory_format=layout), scale)
        # Positions of thirds are rounded, so a difference of neighbours counts, not the value.
        torch.testing.assert_close(got.double(), expected, atol=4e-6, rtol=0)
        assert got.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("shape", [(1, 3, 5, 6), (2, 16, 2, 3), (1, 1, 1, 1), (1, 5, 1, 4)])
@pytest.mark.parametrize("scale", [1, 2, 3])
def test_blur_cells(shape, scale):
    n, c, h, w = shape
    picture = torch.randn(n, c, h * scale, w * scale)
    line = torch.tensor([0.25, 0.5, 0.25], dtype=torch.float64)
    kernel = (line[:, None] * line).expand(c, 1, 3, 3)
    expected = F.conv2d(F.pad(picture.double(), (1, 1, 1, 1), "replicate"), kernel, groups=c)
    cells = F.pixel_unshuffle(picture, scale).view(n, c, scale**2, h, w).transpose(1, 2)
    got = ops.blur_cells(cells.reshape(n, -1, h, w), scale)
    torch.testing.assert_close(got.double(), expected, atol=2e-6, rtol=0)
    flat = torch.full((n, c * scale**2, h, w), 0.7)
    torch.testing.assert_close(ops.blur_cells(flat, scale), torch.full_like(got, 0.7))


def test_opcheck():
    x = torch.randn(1, 8, 3, 5).to(memory_format=torch.channels_last)
    torch.library.opcheck(torch.ops.faststy.upsample_fwd, (x, 2))
    torch.library.opcheck(torch.ops.faststy.blur_cells_fwd, (x, 2))


def test_mistakes():
    with pytest.raises(ValueError, match="scale: expected at least 1, got 0"):
        ops.upsample(torch.zeros(1, 1, 2, 2), 0)
    with pytest.raises(ValueError, match="multiples of 2², got 6"):
        ops.blur_cells(torch.zeros(1, 6, 2, 2), 2)
    with pytest.raises(ValueError, match=r"x: expected \[N, C, H, W\]"):
        ops.blur_cells(torch.zeros(4, 2, 2), 2)
