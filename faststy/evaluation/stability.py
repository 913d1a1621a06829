"""How steady the paintings of moving pictures are.

On synthetic motion, whose flow is exact: the warp error of Lai et al. 2018, "Learning Blind Video
Temporal Consistency".
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

Frame = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Motion:
    """How a picture moves under the frame.

    Attributes:
        pan: pixels per frame, right and down.
        zoom: factor per frame; above 1 the picture is approached.
    """

    pan: tuple[float, float] = (0.0, 0.0)
    zoom: float = 1.0

    def places(self, time: int, frame: Tensor, centre: Tensor) -> Tensor:
        """Where in the picture the points `frame` [..., 2] lie at `time`."""
        return centre + (frame - centre) / self.zoom**time + time * torch.tensor(self.pan)

    def points(self, time: int, places: Tensor, centre: Tensor) -> Tensor:
        """Where in the frame the points `places` [..., 2] of the picture lie at `time`."""
        return centre + (places - time * torch.tensor(self.pan) - centre) * self.zoom**time


@dataclass(frozen=True)
class Layer:
    """A picture that moves; what of it is opaque covers the layers before.

    Attributes:
        picture: float32 ``[3, H, W]`` in 0…1; beyond its borders it is mirrored.
        motion: its motion.
        opaque: float32 ``[1, H, W]`` in 0…1, or None for all of it.
    """

    picture: Tensor
    motion: Motion
    opaque: Tensor | None = None


@dataclass(frozen=True)
class Scene:
    """Layers that move, seen through a frame of `size` (height, width) at the middle of them."""

    layers: Sequence[Layer]
    size: tuple[int, int]

    def frame(self, time: int) -> Frame:
        """What is seen at `time`, uint8 ``[H, W, 3]``."""
        seen = torch.zeros(3, *self.size)
        for layer, cover in zip(self.layers, self._covers(time), strict=True):
            places = layer.motion.places(time, *self._grid(layer))
            seen = torch.lerp(seen, sample(layer.picture, places, "reflection"), cover)
        levels = (seen * 255).round().clamp(0, 255).to(torch.uint8)
        return levels.permute(1, 2, 0).contiguous().numpy()

    def flow(self, time: int) -> tuple[Tensor, Tensor]:
        """Where each point of the frame at `time` was one frame before, and where that is sure.

        Returns ``[H, W, 2]`` (x, y) and a mask ``[H, W]``: points that were inside the frame, not
        covered, and away from the edges of layers.
        """
        covers = self._covers(time)
        flow, sure = torch.zeros(*self.size, 2), torch.zeros(self.size, dtype=torch.bool)
        hidden = torch.zeros(1, *self.size)  # by what lies above
        before_hidden = torch.zeros(1, *self.size)
        earlier = self._covers(time - 1)
        for i in reversed(range(len(self.layers))):
            grid, centre = self._grid(self.layers[i])
            motion = self.layers[i].motion
            places = motion.places(time, grid, centre)
            before = motion.points(time - 1, places, centre) - grid[0, 0]
            visible = (covers[i] * (1 - hidden))[0]
            was_visible = sample(earlier[i] * (1 - before_hidden), before, "zeros")[0]
            mine = (visible > 0.999) & (was_visible > 0.999)
            limits = torch.tensor([self.size[1] - 1, self.size[0] - 1])
            mine &= ((before >= 0) & (before <= limits)).all(-1)
            flow[mine], sure = before[mine], sure | mine
            hidden = hidden + (1 - hidden) * covers[i]
            before_hidden = before_hidden + (1 - before_hidden) * earlier[i]
        return flow, sure

    def _grid(self, layer: Layer) -> tuple[Tensor, Tensor]:
        """The points of the frame in coordinates of the picture at time 0, and their middle."""
        (h, w), (height, width) = self.size, layer.picture.shape[1:]
        y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
        offset = torch.tensor([(width - w) // 2, (height - h) // 2])
        grid = torch.stack([x, y], dim=-1) + offset
        return grid.float(), offset + torch.tensor([w - 1, h - 1]) / 2

    def _covers(self, time: int) -> list[Tensor]:
        covers = []
        for layer in self.layers:
            cover = torch.ones(1, *self.size)
            if layer.opaque is not None:
                places = layer.motion.places(time, *self._grid(layer))
                cover = sample(layer.opaque, places, "zeros")
            covers.append(cover)
        return covers


def sample(picture: Tensor, places: Tensor, beyond: str) -> Tensor:
    """Values [C, h, w] of `picture` [C, H, W] at places [h, w, 2] (x, y, in pixels), bilinear."""
    height, width = picture.shape[1:]
    grid = (2 * places + 1) / torch.tensor([width, height]) - 1
    return F.grid_sample(picture[None], grid[None], padding_mode=beyond, align_corners=False)[0]


def warp_error(painted: Sequence[Frame], flows: Sequence[tuple[Tensor, Tensor]]) -> float:
    """Root mean square, in levels of 255, of what paintings change beside moving with the scene.

    Args:
        painted: frames of a scene, painted.
        flows: of each frame but the first, as `Scene.flow` gives them.
    Returns:
        NaN where no point of any frame is sure.
    """
    total, count = 0.0, 0
    pictures = [_as_floats(frame) for frame in painted]
    for before, after, (flow, sure) in zip(pictures, pictures[1:], flows, strict=False):
        difference = (after - sample(before, flow, "border")).square().mean(0)[sure]
        total, count = total + float(difference.sum()), count + difference.numel()
    return float(255 * (total / count) ** 0.5) if count else math.nan


def contrast(painted: Iterable[Frame]) -> float:
    """Mean standard deviation over the frames, in levels: what a warp error may be held against."""
    return float(np.mean([frame.std(axis=(0, 1)).mean() for frame in painted]))


def _as_floats(frame: Frame) -> Tensor:
    return torch.from_numpy(np.array(frame)).permute(2, 0, 1).float() / 255
