"""The repairer: finds what the painting lost of the photo, and brings it back."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from faststy.nn.generator import SCALE, SubpixelHead, conv3x3, pad_to_cells

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


def detail(x: Tensor, cell: int = 8) -> Tensor:
    """High-pass luminance of [N, 3, H, W] as [N, 1, H, W]: outlines and structure without colour."""
    luma = (x * x.new_tensor(LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)
    height, width = x.shape[-2:]
    small = F.interpolate(luma, (-(-height // cell), -(-width // cell)), mode="area")
    return luma - F.interpolate(small, (height, width), mode="bilinear", align_corners=False)


class Repairer(nn.Module):
    """`R(G(x), x)`: a lost-content map and a residual; `G(x) + strength * map * residual` is repaired.

    The residual is a learned gate times the luminance detail that photo and painting differ in
    (which starts the training from a sensible repair and keeps the painting's palette), plus a
    learned colour correction that starts from zero.
    """

    def __init__(self, channels: int = 24) -> None:
        super().__init__()
        self.config = {"channels": channels}
        cell = SCALE**2
        self.stem = conv3x3(6 * cell, channels)
        self.body = conv3x3(channels, channels)
        self.head = SubpixelHead(channels, 5)  # correction (3), gate (1) and map (1)
        nn.init.zeros_(self.head.weight)

    def forward(self, painted: Tensor, photo: Tensor) -> tuple[Tensor, Tensor]:
        """Compare `painted` and `photo`, both [N, 3, H, W] in 0...1.

        Returns the lost-content map [N, 1, H, W] in 0...1 and the residual [N, 3, H, W].
        """
        height, width = photo.shape[-2:]
        pair = pad_to_cells(torch.cat([painted, photo], dim=1))
        h = F.leaky_relu(self.stem(F.pixel_unshuffle(pair * 2 - 1, SCALE)), 0.2)
        h = h + F.leaky_relu(self.body(h), 0.2)
        out = self.head(h)[..., :height, :width]
        correction, gate, lost = out.split((3, 1, 1), dim=1)
        missing = detail(photo) - detail(painted)
        return torch.sigmoid(lost), torch.sigmoid(gate) * missing + correction

    @staticmethod
    def apply_repair(painted: Tensor, lost: Tensor, residual: Tensor, strength: float) -> Tensor:
        """`painted + strength * lost * residual`, clamped to 0...1; `strength` in 0...1."""
        return (painted + strength * lost * residual).clamp(0, 1)
