"""Warp errors of paintings whose unsteadiness is known."""

import math

import numpy as np
import pytest
import torch

from faststy.evaluation.stability import (
    Layer,
    Motion,
    Scene,
    change_ratio,
    contrast,
    scenes,
    warp_error,
)

SIZE = (40, 56)


@pytest.fixture(scope="module")
def photos():
    """Two smooth pictures, larger than the frame."""
    y, x = torch.meshgrid(torch.arange(90.0), torch.arange(120.0), indexing="ij")
    waves = [torch.sin(x / 9 + k) + torch.cos(y / 7 - k) for k in range(6)]
    pictures = torch.stack(waves).view(2, 3, 90, 120) / 4 + 0.5
    return list(pictures)


@pytest.fixture(scope="module")
def moving(photos):
    return scenes(photos, SIZE)


@pytest.mark.parametrize("name", ["slow pan", "fast pan", "zoom", "layers"])
def test_the_flow_is_exact(moving, name):
    """Frames of a smooth scene, warped by it, are the frames that come next."""
    scene = moving[name]
    frames = [scene.frame(t) for t in range(4)]
    assert frames[0].shape == (*SIZE, 3)
    error = warp_error(frames, [scene.flow(t) for t in range(1, 4)])
    assert error < 1  # rounding to levels, and of the interpolation
    still = Scene([Layer(scene.layers[0].picture, Motion())], SIZE)
    assert (
        warp_error(frames, [still.flow(t) for t in range(1, 4)]) > 1.5 * error
    )  # without the flow it is not


def test_a_pan_by_whole_pixels(photos):
    scene = Scene([Layer(photos[0], Motion(pan=(2.0, -1.0)))], SIZE)
    flow, sure = scene.flow(3)
    y, x = torch.meshgrid(torch.arange(40.0), torch.arange(56.0), indexing="ij")
    expected = torch.stack([x + 2, y - 1], dim=-1)
    torch.testing.assert_close(flow[sure], expected[sure], atol=1e-4, rtol=0)
    assert sure.sum() == 54 * 39  # what was outside is not sure
    np.testing.assert_array_equal(scene.frame(1)[1:, :-2], scene.frame(0)[:-1, 2:])


def test_a_disc_enters_what_stands_still(moving):
    scene = moving["a disc enters"]
    frames = [scene.frame(t) for t in (0, 12, 13)]
    assert (frames[0] == 242).all(-1).sum() < 5
    assert (frames[1] == 242).all(-1).sum() > 50
    np.testing.assert_array_equal(frames[1][:, :20], frames[0][:, :20])
    assert warp_error(frames[1:], [scene.flow(13)]) < 1


def test_what_a_layer_covers_or_uncovers_is_not_sure(moving):
    _, sure = moving["layers"].flow(1)
    _, alone = Scene(moving["layers"].layers[:1], SIZE).flow(1)
    hidden = alone & ~sure
    assert 10 < hidden.sum() < 400  # a rim around the disc
    assert sure[20, 28]  # the middle of the disc


def test_noise_counts_twice(moving):
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


def test_change_ratio(moving):
    frames = [moving["fast pan"].frame(t) for t in range(5)]
    assert change_ratio(frames, frames) == 1
    paler = [(frame // 2 + 60).astype(np.uint8) for frame in frames]
    assert change_ratio(frames, paler) == pytest.approx(1, rel=0.05)
    rng = np.random.default_rng(0)
    noisy = [np.clip(f + rng.normal(0, 30, f.shape), 0, 255).astype(np.uint8) for f in frames]
    assert change_ratio(frames, noisy) > 2
