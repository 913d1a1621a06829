"""The scenes that steadiness is measured on: their flow is known, and so is what hides what."""

import numpy as np
import pytest
from stability import change_ratio, scenes

from faststy.evaluation.stability import Layer, Motion, Scene, warp_error

SIZE = (40, 56)


@pytest.fixture(scope="module")
def moving(two_photos):
    return scenes(two_photos, SIZE)


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


def test_change_ratio(moving):
    frames = [moving["fast pan"].frame(t) for t in range(5)]
    assert change_ratio(frames, frames) == 1
    paler = [(frame // 2 + 60).astype(np.uint8) for frame in frames]
    assert change_ratio(frames, paler) == pytest.approx(1, rel=0.05)
    rng = np.random.default_rng(0)
    noisy = [np.clip(f + rng.normal(0, 30, f.shape), 0, 255).astype(np.uint8) for f in frames]
    assert change_ratio(frames, noisy) > 2
