"""Distances between pictures in the features of an encoder; smaller is closer, 0 is the same.

Each takes the four taps of an encoder, ours or VGG-19, compares them with the reference's and
returns `[N, T]`: a number per picture and tap, relative to the reference, so that pictures, styles
and resolutions can be compared. A reference of one picture serves the whole batch. All are
differentiable any number of times.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from faststy.ops.reference import gram

EPS = 1e-12  # against a blank reference


def style_distance(taps: Sequence[Tensor], style: Sequence[Tensor]) -> Tensor:
    """`‖Gram(f(o)) − Gram(f(s))‖² / ‖Gram(f(s))‖²` (Gatys et al. 2016, made relative).

    Args:
        taps: features `[N, C_t, H_t, W_t]` of the paintings.
        style: those of the styles, `[N or 1, C_t, any, any]`: sizes may differ.

    Raises ValueError where channels or counts of pictures do not fit.
    """
    return _per_tap(_gram_distance, taps, style)


def content_distance(taps: Sequence[Tensor], photo: Sequence[Tensor]) -> Tensor:
    """`Σ(f(o) − f(x))² / Σf(x)²`, over channels and positions (Johnson et al. 2016, made relative).

    Args:
        taps: features `[N, C_t, H_t, W_t]` of the paintings.
        photo: those of the photos, of the same size, `[N or 1, C_t, H_t, W_t]`.

    Raises ValueError where the shapes do not fit.
    """
    return _per_tap(_feature_distance, taps, photo)


def _gram_distance(a: Tensor, b: Tensor) -> Tensor:
    return relative(gram(a), gram(b))


def _feature_distance(a: Tensor, b: Tensor) -> Tensor:
    if a.shape[1:] != b.shape[1:]:
        raise ValueError(f"features must be of the same size, got {list(a.shape)}, {list(b.shape)}")
    return relative(a, b)


def relative(a: Tensor, b: Tensor) -> Tensor:
    """`Σ(a − b)² / Σb²` of each in the batch, [N]."""
    dims = tuple(range(1, a.ndim))
    return (a - b).square().sum(dims) / (b.square().sum(dims) + EPS)


def _per_tap(
    distance: Callable[[Tensor, Tensor], Tensor], taps: Sequence[Tensor], others: Sequence[Tensor]
) -> Tensor:
    if len(taps) != len(others):
        raise ValueError(f"expected as many taps on both sides, got {len(taps)} and {len(others)}")
    for a, b in zip(taps, others, strict=True):
        if a.shape[1] != b.shape[1] or len(b) not in (1, len(a)):
            raise ValueError(
                "expected taps of the same channels, and one reference for all pictures or one "
                f"each, got {list(a.shape)} and {list(b.shape)}"
            )
    return torch.stack([distance(a, b) for a, b in zip(taps, others, strict=True)], dim=1)
