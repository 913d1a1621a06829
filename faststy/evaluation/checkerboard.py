"""The checkerboard score: how much of a picture repeats with the cells that a net paints in.

Nets that upsample leave a grid of their stride (Odena et al. 2016, "Deconvolution and Checkerboard
Artifacts"). In the spectrum a grid of `s` pixels is power at exactly the frequencies (k/s, l/s),
which nothing in a photo prefers: the score compares the power there with that nearby.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

STRIDES = (2, 4, 8)
TILE = 128  # px: a grid that shows only in the sky is not averaged away with the rest
SMALLEST = 64  # px: of a picture; in fewer, lattice frequencies have no neighbours of their own
NEAR, FAR = 3, 5  # bins from a lattice frequency to its neighbours; the window leaks into 1
LEVEL = 1 / 255  # a grid fainter than this deviation is not seen, and need not be found


def checkerboard(picture: Tensor) -> dict[int, float]:
    """By stride, log2 of the power at its lattice frequencies over the power around them.

    A stride has the frequencies that no smaller one has: 2 tells what repeats every 2 px, 4 what
    repeats every 4 px and not every 2, and so on. A grid that is no sine, or is clamped to 0...1,
    has harmonics, which raise the smaller strides as well. Clamping alone makes no grid; but where
    the strength of a texture alternates with the cells, it turns that into one.

    The spectrum is the mean over half-overlapping tiles, each in units of its own power: calm
    places, where a grid is seen, weigh as much as busy ones. The power around a frequency is taken
    on the line through the origin, since straight edges in a photo raise whole such lines.

    Args:
        picture: [C, H, W] in 0...1, sides of at least `SMALLEST` px.
    Returns:
        for 2, 4 and 8: about 0 for photos and for noise of any colour; 1 is twice the power.
    """
    if picture.ndim != 3 or min(picture.shape[1:]) < SMALLEST:
        raise ValueError(
            f"picture: expected [C, H, W] with sides of at least {SMALLEST} px, "
            f"got {list(picture.shape)}"
        )
    spectrum = _spectrum(picture.float().mean(0))
    return {stride: _score(spectrum, stride) for stride in STRIDES}


def _spectrum(grey: Tensor) -> Tensor:
    """Power by frequency [size, size] of a picture [H, W], the mean over its tiles."""
    size = TILE if min(grey.shape) >= TILE else SMALLEST
    window = torch.hann_window(size, device=grey.device)
    window = window[:, None] * window
    starts = [[*range(0, side - size, size // 2), side - size] for side in grey.shape]
    total = torch.zeros_like(window)
    for y in starts[0]:  # row by row: of all tiles it takes much memory
        tiles = torch.stack([grey[y : y + size, x : x + size] for x in starts[1]])
        tiles = tiles - tiles.mean((1, 2), keepdim=True)
        power: Tensor = torch.fft.fft2(tiles * window).abs().square()
        power += LEVEL**2 * window.square().sum()  # that of noise one level strong
        total += (power / power.mean((1, 2), keepdim=True)).sum(0)
    return total / (len(starts[0]) * len(starts[1]))


def _score(spectrum: Tensor, stride: int) -> float:
    size = len(spectrum)

    def power(y: float, x: float) -> Tensor:
        at: Tensor = spectrum[round(y * size) % size, round(x * size) % size]
        return at

    ratios = []
    for y, x in _lattice(stride):
        sides = []
        for sign in (-1, 1):
            steps = [1 + sign * n / size / math.hypot(y, x) for n in range(NEAR, FAR + 1)]
            sides.append(torch.stack([power(y * step, x * step) for step in steps]).mean())
        # The geometric mean of both sides is the middle of a power law, which photos follow.
        ratios.append(power(y, x) / (sides[0] * sides[1]).sqrt())
    return float(torch.stack(ratios).mean().log2())


def _lattice(stride: int) -> list[tuple[float, float]]:
    """Frequencies (y, x), in cycles per px, that `stride` has and no smaller one: one of each ±."""
    half = stride // 2
    return [
        (y / stride, x / stride)
        for y in range(half + 1)
        for x in range(0 if y in (0, half) else 1 - half, half + 1)
        if y % 2 or x % 2
    ]
