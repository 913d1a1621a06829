"""From features to more pixels, smoothly: for painting only."""

from __future__ import annotations

import torch
from torch import Tensor

from faststy.ops import checks
from faststy.ops.dispatch import by_kernels, define
from faststy.ops.pixels import to_pixels
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
    checks.at_least_one(scale, "scale")
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
    _check_cells(x, scale)
    with torch.no_grad():
        y: Tensor = torch.ops.faststy.blur_cells_fwd(
            x.contiguous(memory_format=CHANNELS_LAST), scale
        )
    return y


def blur_cells_frames(x: Tensor, scale: int, size: tuple[int, int]) -> Tensor:
    """`to_pixels(blur_cells(x, scale), size=size)`, on a GPU in one pass.

    Args:
        x: [N, scale²·C, H, W], as `blur_cells` takes them.
        scale: pixels of a cell each way.
        size: height and width of the frames, at most H·scale and W·scale.

    Returns:
        [N, height, width, C] uint8; 0...1 became 0...255.

    Raises:
        TypeError, ValueError: as `blur_cells`, and for a size that is larger or below 0.
    """
    if not by_kernels(x):
        return to_pixels(blur_cells(x, scale), size=size)
    _check_cells(x, scale)
    checks.within(size, (x.shape[2] * scale, x.shape[3] * scale), "size")
    with torch.no_grad():
        frames: Tensor = torch.ops.faststy.blur_cells_frames(
            x.contiguous(memory_format=CHANNELS_LAST), scale, *size
        )
    return frames


def _check_cells(x: Tensor, scale: int) -> None:
    checks.features(x)
    checks.at_least_one(scale, "scale")
    if x.shape[1] % scale**2:
        raise ValueError(f"x: expected channels in multiples of {scale}², got {x.shape[1]}")


def _upsample_fake(x: Tensor, scale: int) -> Tensor:
    n, c, h, w = x.shape
    return x.new_empty((n, c, h * scale, w * scale)).to(memory_format=CHANNELS_LAST)


def _blur_fake(x: Tensor, scale: int) -> Tensor:
    n, k, h, w = x.shape
    shape = (n, k // scale**2, h * scale, w * scale)
    return x.new_empty(shape).to(memory_format=CHANNELS_LAST)


def _frames_fake(x: Tensor, scale: int, height: int, width: int) -> Tensor:
    shape = (x.shape[0], height, width, x.shape[1] // scale**2)
    return torch.empty(shape, dtype=torch.uint8, device=x.device)


define("upsample_fwd(Tensor x, int scale) -> Tensor", _upsample_fake)
define("blur_cells_fwd(Tensor x, int scale) -> Tensor", _blur_fake)
define(
    "blur_cells_frames(Tensor x, int scale, SymInt height, SymInt width) -> Tensor", _frames_fake
)
