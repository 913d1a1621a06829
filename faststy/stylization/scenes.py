"""Where a scene of a film ends and how one begins: cuts and fades.

What the first norm sees of a frame, its moments [2, C], depends on the frame alone. A fade takes
contrast from all channels alike, which no cut does.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

CUT = 0.5  # moments that jump by more from one frame to the next are of another scene
ALIKE = 0.1  # deviation of the growth of channels in a fade at most; of photos it is 0.1 to 0.5
FADED = math.log(6)  # of so little of a scene's contrast nothing can be told
FADES = 0.1  # alike in all channels, a loss of that (as a logarithm) is one of light, not of things
SHOWN = 1 / 3  # of a scene's contrast: with less the film itself shows through, black is black
DIM = 12.0  # levels of 255: a first frame with less contrast has only begun to be seen,
USUAL = 40.0  # and will have about that
GROWS = 1.02  # times the contrast of the frame before, while a scene appears
NOTHING = 4.0  # levels: less is the noise of a black frame
PATIENCE = 10  # frames without growth, after which a scene of little contrast is just that


Flags = npt.NDArray[np.bool_]
Numbers = npt.NDArray[np.float32]


def jump(before: Tensor, after: Tensor) -> Numbers:
    """How far moments [..., 2, C] moved, in deviations: 0 for none, near 1 for another scene."""
    mean, variance = before.numpy()[..., 0, :], before.numpy()[..., 1, :]  # so few: sooner
    new_mean, new_variance = after.numpy()[..., 0, :], after.numpy()[..., 1, :]
    deviation = np.sqrt((variance + new_variance) / 2) + 1e-6
    moved = np.abs(new_mean - mean) / deviation + np.abs(_growth(before, after))
    return np.asarray(moved.mean(-1))


def _growth(before: Tensor, after: Tensor) -> Numbers:
    """The logarithm of how many times the contrast of `before` each channel has, [..., C]."""
    variance, new_variance = before.numpy()[..., 1, :], after.numpy()[..., 1, :]
    return np.asarray(np.log((new_variance + 1e-6) / (variance + 1e-6)) / 2)


def is_faded(moments: Tensor, scene: Tensor) -> Flags:
    """Whether frames have next to nothing of the contrast of a frame of `scene`, as black."""
    return np.asarray(_growth(scene, moments).mean(-1) < -FADED)


def only_fades(moments: Tensor, scene: Tensor) -> bool:
    """Whether a frame is one of `scene` with less contrast, of which there is nothing to learn."""
    growth = _growth(scene, moments)
    loses_light = growth.mean() < -FADES and growth.std() < ALIKE
    return bool(is_faded(moments, scene) or loses_light)


def shares_painted(moments: Tensor, scene: Tensor) -> list[float]:
    """How much of each painting is seen, of frames [N, 2, C]: by their part of the contrast."""
    contrasts: list[float] = np.exp(_growth(scene, moments).mean(-1)).tolist()
    return [share_painted(contrast) for contrast in contrasts]


def share_painted(contrast: float) -> float:
    """How much of a painting is seen of a frame with so many times the contrast of its scene."""
    return min(1.0, contrast / SHOWN)


def is_cut(scene: Tensor, before: Tensor, after: Tensor) -> Flags:
    """Whether frames are of another scene than those before them; `scene` is of a frame that has
    contrast. What has none ends no scene: it may come back."""
    black = torch.from_numpy(is_faded(before, scene))[..., None, None]
    before = torch.where(black, scene, before)
    stays = jump(before, after) <= CUT
    fades = _growth(before, after).std(-1) < ALIKE  # what is NaN is none of this scene
    return np.asarray(~(stays | fades | is_faded(after, scene)))


def contrast(frame: Tensor) -> float:
    """How much its pixels deviate, in levels, the mean over the channels; uint8 [1, H, W, 3]."""
    return float(frame[0].flatten(0, 1).float().std(0, correction=0).mean())


def unfaded(frame: Tensor, gain: float) -> Tensor:
    """What a faded frame, uint8 [1, H, W, 3], may look like later: with `gain` times its contrast,
    and nearer to grey."""
    x = frame.float()
    mean = x.mean((1, 2), keepdim=True)  # of each channel: a red one would be clamped to flat
    middle = torch.lerp(mean, mean.new_tensor(127.5), 1 - 1 / gain)
    return ((x - mean) * gain + middle).round_().clamp_(0, 255).to(torch.uint8)
