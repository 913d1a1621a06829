"""The checkerboard score: grids raise that of their own stride, and nothing else raises any."""

import numpy as np
import pytest
import torch

from faststy import assets, ops
from faststy.evaluation.checkerboard import SMALLEST, STRIDES, checkerboard
from faststy.pictures import read_picture
from faststy.tensors import to_tensor


@pytest.fixture(scope="module")
def photos():
    return [to_tensor(read_picture(path).rgb)[0] for path in assets.photos()]


def noise(*, blurs=0, height=256, width=384, seed=0):
    x = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(seed))
    for _ in range(blurs):
        x = ops.blur(x)
    return x[0]


def with_grid(picture, stride, deviation):
    """A block of half the stride, repeated; clamped and rounded as a picture in a file is."""
    cell = torch.zeros(stride, stride)
    cell[: stride // 2, : stride // 2] = 1
    cell = (cell - cell.mean()) / cell.std(correction=0)
    height, width = picture.shape[-2:]
    grid = cell.repeat(-(-height // stride), -(-width // stride))[:height, :width]
    return ((picture + deviation * grid).clamp(0, 1) * 255).round() / 255


def means(pictures):
    scores = [checkerboard(picture) for picture in pictures]
    return {stride: np.mean([score[stride] for score in scores]) for stride in STRIDES}


def test_photos_have_none(photos):
    assert all(abs(score) < 0.25 for score in means(photos).values())


@pytest.mark.parametrize("blurs", [0, 1, 6])
def test_noise_of_any_colour_has_none(blurs):
    scores = means([noise(blurs=blurs, seed=seed) for seed in range(4)])
    assert all(abs(score) < 0.25 for score in scores.values())


def test_clamping_makes_none():
    hard = ((noise(blurs=6, height=512, width=512) - 0.5) * 10 + 0.5).clamp(0, 1)
    assert (hard == hard.round()).float().mean() > 0.2  # a good part is clamped
    assert all(abs(score) < 0.3 for score in checkerboard(hard).values())


@pytest.mark.parametrize("stride", STRIDES)
def test_a_faint_grid_raises_its_own_stride_and_no_larger_one(photos, stride):
    before = means(photos)
    after = means([with_grid(photo, stride, 2 / 255) for photo in photos])
    assert after[stride] - before[stride] > 0.6
    for other in STRIDES:
        if other != stride:
            assert after[other] == pytest.approx(before[other], abs=0.15)


def test_the_stronger_the_grid_the_higher(photos):
    scores = [checkerboard(with_grid(photos[1], 4, level / 255))[4] for level in (0, 1, 2, 4, 8)]
    assert scores == sorted(scores)
    assert scores[-1] > scores[0] + 4


def test_a_grid_in_a_corner_is_seen_and_a_move_changes_nothing(photos):
    photo = photos[0]
    corner = photo.clone()
    corner[:, :160, :160] = with_grid(photo, 4, 8 / 255)[:, :160, :160]
    assert checkerboard(corner)[4] > checkerboard(photo)[4] + 1
    painted = with_grid(photo, 4, 4 / 255)
    for shift in (1, 2, 3):
        moved = checkerboard(painted[:, shift:, shift:])
        assert moved[4] == pytest.approx(checkerboard(painted)[4], abs=0.4)


def test_flat_pictures_and_small_ones():
    assert checkerboard(torch.full((3, 200, 200), 0.7)) == pytest.approx({2: 0, 4: 0, 8: 0})
    assert set(checkerboard(noise(height=SMALLEST, width=SMALLEST))) == set(STRIDES)
    for shape in ((3, SMALLEST - 1, 200), (1, 3, 200, 200)):
        with pytest.raises(ValueError, match=r"expected \[C, H, W\] with sides of at least 64"):
            checkerboard(torch.zeros(shape))
