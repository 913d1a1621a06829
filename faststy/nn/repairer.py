"""The repairer: finds what the painting lost of the photo, and brings it back."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from faststy.nn.generator import (
    SCALE,
    CellStem,
    ReflectedConv3x3,
    check_pictures,
    pad_to_cells,
)
from faststy.ops.reference import GATE, LEAKY_SLOPE, detail, layout, structure

HINTS = 3  # of `structure`
START = 0.5  # of both gates, where nothing was learned


class Repairer(nn.Module):
    """`R(G(x), x)`: a lost-content map and a residual; `G(x) + strength · map · residual`.

    The residual is the photo's luminance detail times a learned gate, less the painting's times
    another (which starts the training from a sensible repair and keeps the painting's palette),
    plus a learned colour correction that starts from zero. Gates go to GATE, beyond 1: the map,
    which they are multiplied by, is rarely near 1.
    """

    def __init__(self, channels: int = 24) -> None:
        super().__init__()
        self.config = {"channels": channels}
        self.stem = CellStem(6, channels)
        self.body1 = ReflectedConv3x3(channels + HINTS, channels)
        self.body2 = ReflectedConv3x3(channels, channels)
        self.head = ReflectedConv3x3(channels, 6)  # map (1), gates (2) and correction (3)
        nn.init.zeros_(self.head.weight)
        bias = [0.0, *[math.log(START / (GATE - START))] * 2, 0.0, 0.0, 0.0]
        self.head.bias = nn.Parameter(torch.tensor(bias))

    @torch.no_grad()
    def forget_colours(self) -> None:
        """Back to a colour correction of zero: what other styles taught shifts a new palette."""
        for parameter in self.head.parameters():
            parameter[3:] = 0

    def forward(self, painted: Tensor, photo: Tensor) -> tuple[Tensor, Tensor]:
        """Compare `painted` and `photo`, both [N, 3, H, W] in 0...1.

        Returns the lost-content map [N, 1, H, W] in 0...1 and the residual [N, 3, H, W].
        Raises ValueError for other shapes.
        """
        check_pictures(painted, "painted")
        if photo.shape != painted.shape:
            shapes = f"{list(painted.shape)}, got {list(photo.shape)}"
            raise ValueError(f"photo: expected the shape of painted, {shapes}")
        height, width = photo.shape[-2:]
        painted, photo = pad_to_cells(painted), pad_to_cells(photo)
        painted_detail, photo_detail = detail(painted), detail(photo)
        h = F.leaky_relu(self.stem(torch.cat([painted, photo], dim=1) * 2 - 1), LEAKY_SLOPE)
        hints = structure(painted_detail, photo_detail)
        h = torch.cat([h, hints.to(h.dtype, memory_format=layout(h))], dim=1)
        h = self.body1(h, "leaky_relu")
        h = h + self.body2(h, "leaky_relu")
        # All smooth: what is fine in the residual comes from the pictures, and there is no grid.
        out = F.interpolate(self.head(h), scale_factor=SCALE, mode="bilinear", align_corners=False)[
            ..., :height, :width
        ]
        lost, gates, correction = out.split_with_sizes((1, 2, 3), dim=1)
        details = torch.cat([photo_detail, -painted_detail], dim=1)[..., :height, :width]
        gated = GATE * (torch.sigmoid(gates) * details).sum(1, keepdim=True)
        return torch.sigmoid(lost), gated + correction

    @staticmethod
    def apply_repair(painted: Tensor, lost: Tensor, residual: Tensor, strength: float) -> Tensor:
        """`painted + strength · lost · residual`, clamped to 0...1; `strength` in 0...1."""
        return (painted + strength * lost * residual).clamp(0, 1)
