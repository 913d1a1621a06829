"""The lost-content map: where a painting no longer shows what its photo shows."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from faststy import ops

CONTENT_TAP = 2  # of the encoder; stands for relu3_1
STRUCTURE = 0.45  # of the map's largest value: less is a flat photo, with little to lose
LOST = 0.85  # of what could be lost: paintings that keep their photo stay below
EPS = 1e-6


def lost_content(painted: Sequence[Tensor], photo: Sequence[Tensor]) -> Tensor:
    """The lost-content map `M` [N, 1, h, w] in 0...1, from the encoder taps of painting and photo.

    Instance normalisation takes the style out of the features. Where what is left disagrees, as a
    share of what both hold, content was lost; where the photo is flat there was nothing to lose.
    """
    # In float32: autocast does not see to it on a CPU, and differences of small numbers need it.
    a = ops.instance_norm(painted[CONTENT_TAP].detach().float())
    b = ops.instance_norm(photo[CONTENT_TAP].detach().float())
    missing = (a - b).square().mean(1, keepdim=True)
    held_a, held_b = a.square().mean(1, keepdim=True), b.square().mean(1, keepdim=True)
    disagreement = missing / (held_a + held_b + EPS)
    return _smooth(disagreement * _presence(held_b)).clamp(0, 1)


def lost_regions(lost: Tensor, photo: Sequence[Tensor]) -> Tensor:
    """Where a lost-content map says that content is gone, as booleans [N, 1, h, w].

    There the photo has structure, and of what could be lost around, most was. `lost` is the map
    [N, 1, h, w] of `lost_content`, or a predicted one; `photo` are the encoder taps.
    """
    b = ops.instance_norm(photo[CONTENT_TAP].detach())
    losable = _smooth(_smooth(_presence(b.square().mean(1, keepdim=True))), 5)
    return (losable > STRUCTURE) & (_smooth(lost, 5) > LOST * losable)


def _presence(held: Tensor) -> Tensor:
    return held / (held + 0.5)


def _smooth(x: Tensor, side: int = 3) -> Tensor:
    return F.avg_pool2d(x, side, 1, side // 2, count_include_pad=False)
