"""Strokes larger than a model learned them: painted on smaller frames, and enlarged.

What is lost by that comes back with the repair, which sees the photo as it is. Cf. Jing et al.
2018, "Stroke Controllable Fast Style Transfer", where a net learns several sizes.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from faststy.nn.generator import SCALE
from faststy.nn.plain import whole_cells

SIZES = (1, 2, 4)  # whole, so that cells of a smaller frame lie alike in a tile and in the picture
READABLE = 720  # px, of the short side that a painting has at most, where nobody says how large


def stroke_for(height: int, width: int) -> int:
    """The size of the strokes that show in a picture of this size when all of it is seen."""
    return next((n for n in SIZES if min(height, width) <= READABLE * n), SIZES[-1])


def shrink(frames: Tensor, stroke: int) -> Tensor:
    """Frames, uint8 [N, H, W, 3], of one `stroke`-th of their sides, rounded up to whole cells."""
    if stroke == 1:
        return frames
    return _scaled(whole_cells(frames, stroke * SCALE), 1 / stroke, "bilinear")


def enlarge(painted: Tensor, stroke: int, height: int, width: int) -> Tensor:
    """What was painted on frames that were shrunk, in their size again; uint8."""
    if stroke == 1:
        return painted
    return _scaled(painted, stroke, "bicubic")[:, :height, :width].contiguous()


def _scaled(frames: Tensor, factor: float, mode: str) -> Tensor:
    x = frames.permute(0, 3, 1, 2)
    if x.is_cpu:  # alone it scales bytes, and ten times as fast as numbers
        return F.interpolate(x, scale_factor=factor, mode=mode, antialias=True).permute(0, 2, 3, 1)
    x = F.interpolate(x.float(), scale_factor=factor, mode=mode, antialias=True)
    return x.round_().clamp_(0, 255).to(frames.dtype).permute(0, 2, 3, 1)
