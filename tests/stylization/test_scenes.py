"""Cuts, fades, and frames of nothing."""

import math

import numpy as np
import pytest
import torch

from faststy.stylization import scenes

from .test_realtime import frame, stylizer  # noqa: F401  (a fixture)

SCENE = torch.tensor([[0.0, 1.0, -2.0], [1.0, 4.0, 9.0]])
OTHER = torch.tensor([[3.0, -4.0, 7.0], [2.0, 1.0, 20.0]])


def dimmed(moments, contrast, mean=0.5):
    return torch.stack([mean * moments[0], contrast**2 * moments[1]])


def test_jump():
    moments = torch.tensor([[0.0, 1.0], [1.0, 4.0]])
    assert scenes.jump(moments, moments) == 0
    moved = torch.tensor([[1.0, 3.0], [1.0, 4.0]])
    assert scenes.jump(moments, moved) == pytest.approx(1, abs=1e-3)  # each mean by a deviation
    wider = torch.tensor([[0.0, 1.0], [1.0, 4.0 * math.e**2]])
    assert scenes.jump(moments, wider) == pytest.approx(0.5, abs=1e-3)


def test_a_cut_is_no_fade():
    assert scenes.is_cut(SCENE, SCENE, OTHER)
    assert not scenes.is_cut(SCENE, SCENE, SCENE)
    for contrast in (0.5, 0.3, 0.01, 0.0):
        faded = dimmed(SCENE, contrast)
        assert scenes.jump(SCENE, faded) > scenes.CUT
        assert not scenes.is_cut(SCENE, SCENE, faded)
        assert not scenes.is_cut(SCENE, faded, SCENE)
    assert scenes.is_cut(SCENE, dimmed(SCENE, 0.0), OTHER)  # after black
    assert not scenes.is_cut(SCENE, dimmed(OTHER, 0.0), dimmed(SCENE, 0.5))
    assert scenes.is_cut(SCENE, SCENE, torch.full_like(SCENE, math.nan))


def test_of_a_frame_that_only_fades_nothing_is_learned():
    assert scenes.only_fades(dimmed(SCENE, 0.6), SCENE)
    assert scenes.only_fades(dimmed(OTHER, 0.0), SCENE)
    assert not scenes.only_fades(dimmed(SCENE, 1.2), SCENE)
    assert not scenes.only_fades(OTHER, SCENE)


def test_contrast_is_that_of_the_pixels_of_each_channel():
    flat = torch.tensor([110, 100, 90], dtype=torch.uint8).expand(1, 6, 8, 3)
    assert scenes.contrast(flat) == pytest.approx(0, abs=1e-3)
    stripes = flat.clone()
    stripes[:, ::2] += 20
    assert scenes.contrast(stripes) == pytest.approx(10, abs=1e-3)
    assert scenes.contrast(scenes.unfaded(stripes, 3.0)) == pytest.approx(30, abs=1)


@pytest.fixture
def film():
    """Black, a fade from it, and one back to it."""
    levels = [0] * 3 + [i / 12 for i in range(1, 13)] + [1] * 3
    return np.stack([np.rint(frame() * k).astype(np.uint8) for k in levels + levels[::-1]])


def test_a_fade_is_one_in_the_painting(stylizer, film):  # noqa: F811
    painter = stylizer.painter(repair=0.0, half_life=10)
    painted = np.stack([painter(one) for one in film])
    assert not painted[film.max((1, 2, 3)) == 0].any()
    contrast = painted.std((1, 2)).mean(1)
    half = len(film) // 2
    assert (np.diff(contrast[:half]) >= -2).all()
    assert (np.diff(contrast[half:]) <= 2).all()
    own = np.asarray(stylizer(frame(), repair=0.0)).astype(int)
    assert np.abs(painted[half - 1] - own).max() <= 1  # as if the film had begun there


def test_noise_in_black_is_not_painted_in_full_contrast(stylizer):  # noqa: F811
    noise = np.random.default_rng(0).integers(0, 3, (4, 45, 62, 3), np.uint8)
    painter = stylizer.painter(repair=0.0)
    for one in noise:
        assert np.abs(painter(one).astype(int) - one).max() <= 16


@pytest.mark.parametrize("colour", [(254, 0, 0), (0, 0, 0), (255, 255, 255), (1, 128, 254)])
def test_a_film_that_begins_nearly_flat_begins(stylizer, colour):  # noqa: F811
    painter = stylizer.painter()
    flat = np.full((45, 62, 3), colour, np.uint8)
    for i in range(3):
        nearly = flat.copy()
        nearly[i, i] ^= 1
        assert np.abs(painter(nearly).astype(int) - nearly).max() <= 16
        noise = np.random.default_rng(i).integers(-1, 2, flat.shape)
        painter((flat + noise).clip(0, 255).astype(np.uint8))


def test_a_film_in_fog_is_painted_in_time(stylizer):  # noqa: F811
    fog = np.rint(128 + 0.1 * (frame() - 128.0)).astype(np.uint8)
    painter = stylizer.painter(repair=0.0, half_life=2)
    for _ in range(60):
        painted = painter(fog)
    own = np.asarray(stylizer(fog, repair=0.0)).astype(int)
    assert np.abs(painted - own).max() <= 2


def test_after_black_another_scene_has_its_own_statistics(stylizer):  # noqa: F811
    other = np.random.default_rng(1).integers(0, 255, (45, 62, 3), np.uint8)
    painter = stylizer.painter(repair=0.0)
    black = np.zeros_like(other)
    for one in (frame(), black, black, other):
        painted = painter(one)
    own = np.asarray(stylizer(other, repair=0.0)).astype(int)
    assert np.abs(painted - own).max() <= 1


def test_given_frames_are_not_what_is_painted(stylizer):  # noqa: F811
    flat = np.full((45, 62, 3), 9, np.uint8)
    painted = stylizer.painter()(flat)
    assert not np.shares_memory(painted, flat)
