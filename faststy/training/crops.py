"""Squares of pictures made crops of one size: on a CPU one by one, on a GPU all together there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

CPU = torch.device("cpu")


class Square(NamedTuple):
    """A part of a picture, still in its own size."""

    pixels: Tensor  # uint8 [3, side, side], a view of the picture
    flip: bool  # whether it is to be mirrored


def crops_of(squares: Sequence[Square], size: int, device: torch.device = CPU) -> Tensor:
    """The squares, scaled: float [N, 3, size, size] in 0...1, channels_last, on `device`.

    From a GPU the host gets nothing but copies of bytes to do, and waits for none of them; crops
    made there differ from those of a CPU by less than half a level of 255.
    """
    if device.type == "cuda":
        return together(squares, size, device)
    crops = torch.stack([cut(square, size) for square in squares])
    return crops.contiguous(memory_format=torch.channels_last)


def cut(square: Square, size: int) -> Tensor:
    """A square as float [3, size, size] in 0...1."""
    crop = square.pixels.float().div_(255)
    if crop.shape[1] != size:
        crop = F.interpolate(
            crop[None], (size, size), mode="bilinear", antialias=True, align_corners=False
        )[0]
    return crop.flip(-1) if square.flip else crop


def whole(picture: Tensor, short_side: int) -> Tensor:
    """A uint8 [3, H, W] picture as float [1, 3, h, w] in 0...1, scaled down to `short_side`."""
    x = picture[None].float().div_(255)
    scale = short_side / min(x.shape[2:])
    if scale < 1:
        sides = [max(round(side * scale), short_side) for side in x.shape[2:]]
        x = F.interpolate(x, sides, mode="bilinear", antialias=True, align_corners=False)
    return x.contiguous(memory_format=torch.channels_last)


def together(squares: Sequence[Square], size: int, device: torch.device) -> Tensor:
    """As `crops_of`, by products of matrices."""
    n, sides = len(squares), [square.pixels.shape[1] for square in squares]
    s, pinned = max(sides), device.type == "cuda"
    windows = torch.empty((n, s, s, 3), dtype=torch.uint8, pin_memory=pinned)
    for window, square in zip(windows, squares, strict=True):
        pixels = square.pixels.permute(1, 2, 0)  # as pictures lie in memory
        window[: len(pixels), : len(pixels)] = pixels
    numbers = torch.tensor([sides, [square.flip for square in squares]], dtype=torch.float32)
    numbers = numbers.pin_memory() if pinned else numbers
    side, flip = numbers.to(device, non_blocking=True)[..., None, None].unbind()

    filters = _filters(side, s, size)
    mirrored = torch.where(flip > 0, filters.flip(1), filters)
    dtype = torch.float16 if pinned else torch.float32  # all levels are exact in it
    x = windows.to(device, non_blocking=True).to(dtype).view(n, s, s * 3)
    x = torch.bmm(filters.to(dtype), x)  # along y
    x = x.view(n, size, s, 3).transpose(1, 2).reshape(n, s, size * 3)
    x = torch.bmm(mirrored.to(dtype), x).view(n, size, size, 3)  # along x, which comes first now
    x = x.permute(0, 3, 2, 1).float().div_(255)
    return x.contiguous(memory_format=torch.channels_last)


def _filters(side: Tensor, s: int, size: int) -> Tensor:
    """What each of `s` pixels in a row counts in each of `size`, of which `side` [N, 1, 1] are
    scaled: [N, size, s].

    Linear, and as wide as the scale where that shrinks, as PyTorch's antialiased interpolation.
    """
    scale = side / size
    centre = (torch.arange(size, device=side.device)[:, None] + 0.5) * scale
    place = torch.arange(s, device=side.device) + 0.5
    filters = (1 - (place - centre).abs() / scale.clamp_min(1)).clamp_min(0) * (place < side)
    return filters / filters.sum(-1, keepdim=True)
