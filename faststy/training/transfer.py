"""The slow form of the perceptual stage: no net is trained, the picture itself is optimised."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from faststy import ops
from faststy.nn.lost_content import CONTENT_TAP
from faststy.training import objective
from faststy.training.dataset import below, generator

COARSEST = 128  # short side that the painting starts at, px
GROWTH = 2.0  # from one size to the next
LEARNING_RATE = 0.03
VARIATION_WEIGHT = 0.01
JITTER = 8  # px: the encoder's lattice is moved at random, so that it leaves no grid
COARSE_SHARE = 0.6  # style pictures are never shown smaller than this share of their size


@torch.inference_mode(False)  # gradients, whatever the caller has switched off
def transfer(
    photo: Tensor,
    style: Tensor,
    encoder: nn.Module,
    *,
    style_weight: float = 20.0,
    steps: int = 150,
    seed: int = 0,
    on_progress: Callable[[int, int, float], None] | None = None,
) -> Tensor:
    """Paint one photo in one style by optimising its pixels (Gatys et al. 2016), coarse to fine.

    The objective is that of training: relative content, Gram style and colour terms, minimised by
    Adam at sizes that double from 128 px to the photo's own; each size starts from the one before.
    Unlike there, the edges of the encoder's taps judge, too: without them colours at the edge of
    the picture would be held by nothing, and stray.

    Args:
        photo: [1, 3, H, W] in 0...1, on the encoder's device.
        style: [1, 3, h, w] in 0...1, at the size that its strokes shall have.
        encoder: frozen, `[N, 3, H, W]` in 0...1 to four taps.
        style_weight: λ.
        steps: of Adam, at each size.
        on_progress: called after each step with the steps done, their number, and the loss.
    Returns:
        [1, 3, H, W] in 0...1.
    """
    height, width = photo.shape[-2:]
    scales = [1.0]
    while min(height, width) * scales[0] / GROWTH >= COARSEST:
        scales.insert(0, scales[0] / GROWTH)
    painted = photo
    done, rng = 0, generator(seed, 0)
    for scale in scales:
        size = (max(16, round(height * scale)), max(16, round(width * scale)))
        x = _resized(photo, size)
        # Large strokes first: the style shrinks less than the photo.
        ratio = max(scale, COARSE_SHARE)
        s = _resized(style, [max(16, round(side * ratio)) for side in style.shape[-2:]])
        with torch.no_grad():
            targets = objective.style_targets(encoder(s))
            colours = ops.gram(objective.colour_moments(s))[0]
            roughness = float(objective.total_variation(s, 1.0))
        pixels = torch.logit(_resized(painted, size).clamp(0.02, 0.98)).requires_grad_()
        optimiser = torch.optim.Adam([pixels], LEARNING_RATE * 4)
        for step in range(steps):
            optimiser.param_groups[0]["lr"] = LEARNING_RATE * 4 * (1 - 0.9 * step / steps)
            o = torch.sigmoid(pixels)
            offset = below(rng, JITTER), below(rng, JITTER)
            taps = encoder(_shifted(o, offset))
            with torch.no_grad():
                photo_taps = encoder(_shifted(x, offset))
            loss = (
                objective.content_loss(taps[CONTENT_TAP], photo_taps[CONTENT_TAP])
                + style_weight * objective.style_loss(taps, targets)
                + style_weight * objective.colour_loss(o, colours)
                + VARIATION_WEIGHT * objective.total_variation(o, roughness)
            )
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            done += 1
            if on_progress is not None:
                on_progress(done, steps * len(scales), float(loss.detach()))
        painted = torch.sigmoid(pixels.detach())
    return _resized(painted, (height, width))


def _resized(x: Tensor, size: tuple[int, int] | list[int]) -> Tensor:
    if list(x.shape[-2:]) == list(size):
        return x
    resized = F.interpolate(x, tuple(size), mode="bicubic", antialias=True, align_corners=False)
    return resized.clamp(0, 1).contiguous(memory_format=torch.channels_last)


def _shifted(x: Tensor, offset: tuple[int, int]) -> Tensor:
    """`x` grown by reflection at the top and left, to lie anew on the encoder's lattice."""
    return F.pad(x, (offset[1], 0, offset[0], 0), mode="reflect")
