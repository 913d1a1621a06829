"""Warp errors of paintings whose unsteadiness is known."""

import math

import numpy as np
import pytest
import torch

from faststy.evaluation.stability import Layer, Motion, Scene, contrast, warp_error

SIZE = (40, 56)


def test_a_pan_by_whole_pixels(two_photos):
    scene = Scene([Layer(two_photos[0], Motion(pan=(2.0, -1.0)))], SIZE)
    flow, sure = scene.flow(3)
    y, x = torch.meshgrid(torch.arange(40.0), torch.arange(56.0), indexing="ij")
    expected = torch.stack([x + 2, y - 1], dim=-1)
    torch.testing.assert_close(flow[sure], expected[sure], atol=1e-4, rtol=0)
    assert sure.sum() == 54 * 39  # what was outside is not sure
    np.testing.assert_array_equal(scene.frame(1)[1:, :-2], scene.frame(0)[:-1, 2:])


def test_noise_counts_twice():
    """A painting with its own noise in every frame differs by √2 of it from the one before."""
    rng = np.random.default_rng(0)
    grey = [np.clip(128 + rng.normal(0, 10, (*SIZE, 3)), 0, 255).astype(np.uint8) for _ in range(8)]
    still = Scene([Layer(torch.rand(3, 90, 120), Motion())], SIZE)
    assert warp_error(grey, [still.flow(t) for t in range(1, 8)]) == pytest.approx(
        10 * 2**0.5, rel=0.05
    )
    assert contrast(grey) == pytest.approx(10, rel=0.05)


def test_where_no_point_is_sure_nothing_is_known():
    grey = np.full((*SIZE, 3), 128, np.uint8)
    nowhere = torch.zeros(*SIZE, 2), torch.zeros(SIZE, dtype=torch.bool)
    assert math.isnan(warp_error([grey, grey], [nowhere]))
