"""Distances against NumPy in float64, their invariances, and second derivatives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from faststy.evaluation import content_distance, style_distance

DISTANCES = [content_distance, style_distance]


def features(seed: int, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) + 0.2


def pyramid(seed: int, n: int = 2) -> list[Tensor]:
    return [features(seed + t, n, 3 + t, 12 >> t, 16 >> t) for t in range(3)]


def test_style_matches_numpy() -> None:
    a, b = pyramid(0), [features(9, 1, c, 9, 7) for c in (3, 4, 5)]
    got = style_distance(a, b).double()
    for t in range(3):
        grams = []
        for x in (a[t].double().numpy(), b[t].double().numpy()):
            n, c, h, w = x.shape
            flat = x.reshape(n, c, h * w)
            grams.append(np.einsum("nip,njp->nij", flat, flat) / (c * h * w))
        error = ((grams[0] - grams[1]) ** 2).sum((1, 2)) / (grams[1] ** 2).sum((1, 2))
        torch.testing.assert_close(got[:, t], torch.from_numpy(error), rtol=1e-5, atol=1e-7)


def test_content_matches_numpy() -> None:
    a, b = pyramid(0), pyramid(10)
    got = content_distance(a, b).double()
    for t in range(3):
        x, y = a[t].double().numpy(), b[t].double().numpy()
        error = ((x - y) ** 2).sum((1, 2, 3)) / (y**2).sum((1, 2, 3))
        torch.testing.assert_close(got[:, t], torch.from_numpy(error), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("distance", DISTANCES)
def test_same_is_zero_and_one_reference_serves_all(distance) -> None:
    a, one = pyramid(0), [tap[:1] for tap in pyramid(10)]
    assert distance(a, a).shape == (2, 3)
    assert torch.equal(distance(a, a), torch.zeros(2, 3))
    each = [tap.expand(2, -1, -1, -1) for tap in one]
    torch.testing.assert_close(distance(a, one), distance(a, each))


def test_blank_features_give_finite_numbers() -> None:
    blank = [torch.zeros(1, 3, 8, 8)]
    for distance in DISTANCES:
        assert torch.isfinite(distance([features(0, 1, 3, 8, 8)], blank)).all()
        assert distance(blank, blank).item() == 0


@pytest.mark.parametrize("distance", DISTANCES)
def test_first_and_second_derivatives(distance) -> None:
    a = features(0, 1, 3, 4, 4).double().requires_grad_()
    b = features(1, 1, 3, 4, 4).double()
    assert torch.autograd.gradcheck(lambda a: distance([a], [b]), a)
    assert torch.autograd.gradgradcheck(lambda a: distance([a], [b]), a)


@pytest.mark.parametrize("distance", DISTANCES)
def test_misfits_are_refused(distance) -> None:
    a = [features(0, 2, 3, 8, 8)]
    with pytest.raises(ValueError, match="as many taps"):
        distance(a, a * 2)
    with pytest.raises(ValueError, match="same channels"):
        distance(a, [features(0, 2, 4, 8, 8)])
    with pytest.raises(ValueError, match="one reference"):
        distance(a, [features(0, 3, 3, 8, 8)])


def test_content_needs_the_same_size() -> None:
    with pytest.raises(ValueError, match="same size"):
        content_distance([features(0, 1, 3, 8, 8)], [features(0, 1, 3, 8, 6)])
