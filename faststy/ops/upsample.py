"""From features to more pixels, smoothly: for painting only."""

from __future__ import annotations

import torch
from torch import Tensor

from faststy.ops import checks
from faststy.ops.dispatch import define
from faststy.ops.reference import CHANNELS_LAST


def upsample(x: Tensor, scale: int) -> Tensor:
    """Bilinear, as `torch.nn.functional.interpolate` with `scale_factor` and no aligned corners.

    Args:
        x: [N, C, H, W] float16, bfloat16 or float32.
        scale: how many pixels a pixel becomes each way.

    Returns:
        [N, C, H·scale, W·scale], channels_last, without gradient.

    Raises:
        TypeError, ValueError: a wrong dtype, rank or scale.
    """
    checks.features(x)
    if scale < 1:
        raise ValueError(f"scale: expected at least 1, got {scale}")
    with torch.no_grad():
        y: Tensor = torch.ops.faststy.upsample_fwd(x.contiguous(memory_format=CHANNELS_LAST), scale)
    return y


def blur_cells(x: Tensor, scale: int) -> Tensor:
    """Cells of scale x scale pixels, unpacked and convolved with (1 2 1)/4 both ways.

    Args:
        x: [N, scale²·C, H, W] float16, bfloat16 or float32. A cell holds pixel after pixel: channel
            (i·scale + j)·C + c is colour c of the pixel in row i and column j. (`pixel_shuffle`
            takes colour after colour; so the colours of a pixel lie together.)
        scale: pixels of a cell each way.

    Returns:
        [N, C, H·scale, W·scale], channels_last, without gradient; a flat picture stays flat to its
        borders.

    Raises:
        TypeError, ValueError: a wrong dtype, rank, scale or number of channels.
    """
    checks.features(x)
    if scale < 1 or x.shape[1] % scale**2:
        raise ValueError(f"x: expected channels in multiples of {scale}², got {x.shape[1]}")
    with torch.no_grad():
        y: Tensor = torch.ops.faststy.blur_cells_fwd(
            x.contiguous(memory_format=CHANNELS_LAST), scale
        )
    return y


def _upsample_fake(x: Tensor, scale: int) -> Tensor:
    n, c, h, w = x.shape
    return x.new_empty((n, c, h * scale, w * scale)).to(memory_format=CHANNELS_LAST)


def _blur_fake(x: Tensor, scale: int) -> Tensor:
    n, k, h, w = x.shape
    shape = (n, k // scale**2, h * scale, w * scale)
    return x.new_empty(shape).to(memory_format=CHANNELS_LAST)


define("upsample_fwd(Tensor x, int scale) -> Tensor", _upsample_fake)
define("blur_cells_fwd(Tensor x, int scale) -> Tensor", _blur_fake)
