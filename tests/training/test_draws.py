"""What a step is given: styles, patches, squares, motions and offsets."""

from dataclasses import replace

import pytest
import torch

from faststy.training.config import TrainConfig
from faststy.training.dataset import generator, of_samples
from faststy.training.distributed import Alone
from faststy.training.draws import (
    ENCODER_LATTICE,
    crop,
    draw,
    erased,
    moves,
    random_shift,
    random_squares,
    random_styles,
    random_warp,
    warp,
)

CONFIG = TrainConfig(style=("a", "b", "c"), size=64, batch=4, seed=5)


class Painted:
    """Pictures [3, 80, 90] of one colour."""

    def __init__(self, colour):
        self.picture = torch.full((3, 80, 90), colour, dtype=torch.uint8)

    def get(self, index):
        return self.picture

    def __len__(self):
        return 1


STYLES = [Painted(51 * i) for i in range(3)]


def drawn(stage, step=0, pair=None, **settings):
    photo = torch.rand(4, 3, 64, 64)
    return draw(replace(CONFIG, **settings), STYLES, Alone(), step, stage, photo, pair)


# --------------------------------------------------------------------------- as a whole


def test_each_stage_is_given_what_it_needs():
    pair = torch.rand(2, 3, 64, 64), torch.rand(2, 3, 64, 64)
    always = {"photo", "style", "index", "pace"}
    seen = always | {"rows", "columns", "shift"}
    smooth = {"linear", "wobble"}
    for step in range(6):
        found = drawn("perceptual", step).tensors().keys()
        assert found in (seen, seen | smooth)
        paired = drawn("adversarial", step, pair).tensors().keys() - smooth
        assert paired == seen | {"real", "before", "after"}
        assert drawn("repair", step).tensors().keys() == always | {"real", "squares"}
    assert drawn("perceptual", stability_weight=0.0).tensors().keys() == always | {
        "rows",
        "columns",
    }


@pytest.mark.parametrize("stage", ["perceptual", "adversarial", "repair"])
def test_tensors_can_be_copied_as_they_are(stage):
    """Memory that is pinned is written in the tensor's own strides: no element twice."""
    for name, value in drawn(stage).tensors().items():
        dense = value.is_contiguous()
        if value.ndim == 4:
            dense |= value.is_contiguous(memory_format=torch.channels_last)
        assert dense, name


def test_steps_of_one_key_have_the_same_shapes():
    keys = {drawn("adversarial", step).key for step in range(20)}
    assert len(keys) == 2  # smooth motions, and those by whole pixels
    assert drawn("perceptual").key not in keys
    one, two = drawn("repair", 0), drawn("repair", 1)
    assert one.key == two.key
    one = one.map(torch.clone)
    one.copy_(two)
    for name, value in two.tensors().items():
        assert torch.equal(one.tensors()[name], value), name


def test_patches_are_of_the_styles_of_their_samples():
    for stage in ("adversarial", "repair"):
        found = drawn(stage)
        expected = (found.index * 51 / 255).view(4, 1, 1, 1).expand(4, 3, 64, 64)
        torch.testing.assert_close(found.real, expected)
        assert torch.equal(found.style.argmax(1), found.index)
        assert len(set(found.index.tolist())) > 1


def test_styles_are_drawn_alike():
    picked, index = random_styles(200, 2, generator(0, 0))
    assert torch.equal(picked.argmax(1), index)
    assert (picked.sum(1) == 1).all()
    assert 60 < int(index.sum()) < 140


def test_the_average_follows_less_and_less():
    paces = [float(drawn("perceptual", step).pace) for step in (0, 9, 439, 10_000)]
    assert paces == pytest.approx([0.9, 9 / 19, 9 / 449, 0.02])


# --------------------------------------------------------------------------- where is looked


def test_the_offset_takes_a_lattice_off():
    corners = set()
    for step in range(30):
        found = drawn("perceptual", step)
        for places in (found.rows, found.columns):
            assert torch.equal(places.diff(), torch.ones(63 - ENCODER_LATTICE, dtype=int))
            assert places[0] >= 0
            assert places[-1] < 64
        corners.add((int(found.rows[0]), int(found.columns[0])))
    assert len(corners) > 15


def test_a_crop_is_a_slice_with_its_gradient():
    x = torch.rand(2, 3, 64, 72, requires_grad=True)
    seen = crop(x, torch.arange(56) + 3, torch.arange(64) + 5)
    assert torch.equal(seen, x[..., 3:59, 5:69])
    assert seen.is_contiguous(memory_format=torch.channels_last)
    weights = torch.rand(2, 3, 56, 64)
    (seen * weights).sum().backward()
    expected = torch.zeros(2, 3, 64, 72)
    expected[..., 3:59, 5:69] = weights
    assert torch.equal(x.grad, expected)


# --------------------------------------------------------------------------- squares


def squares(count, rng):
    return random_squares(of_samples(count, rng), 64, 72)


@pytest.mark.parametrize("batch", [1, 40])
def test_about_half_of_the_paintings_lose_a_square(batch):
    painted = torch.rand(batch, 3, 64, 72)
    random = of_samples(batch, generator(0, 0))
    out = [erased(painted, squares(batch, generator(0, step))) for step in range(40 // batch)]
    changed = [(o != painted).any(1) for o in out]
    lost = torch.cat(changed).flatten(1).float().mean(1)  # share of each painting
    assert 0.25 < (lost > 0).float().mean() < 0.75
    assert lost[lost > 0].min() > 0.01
    assert lost.max() < 0.5
    own = erased(painted[batch // 2 :], random_squares(random[batch // 2 :], 64, 72))
    assert torch.equal(own, out[0][batch // 2 :])  # each by its own numbers


def test_a_square_is_flat_or_another_part():
    painted = torch.rand(3, 3, 16, 20)
    out = erased(painted, torch.tensor([[2, 3, 5, 1], [2, 3, 5, 0], [0, 0, 0, 0]]))
    mean = painted[0].mean((1, 2), keepdim=True)
    torch.testing.assert_close(out[0, :, 2:7, 3:8], mean.expand(3, 5, 5))
    assert torch.equal(out[1, :, 2:7, 3:8], painted[1, :, 10:15, 13:18])
    out[:2, :, 2:7, 3:8] = painted[:2, :, 2:7, 3:8]
    assert torch.equal(out, painted)


# --------------------------------------------------------------------------- motion


def test_standing_still_changes_nothing():
    x = torch.rand(2, 3, 32, 32)
    axis = (torch.arange(32) + 0.5) * 2 / 32 - 1
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1).expand(2, -1, -1, -1)
    torch.testing.assert_close(warp(x, grid), x, atol=1e-5, rtol=0)


def test_a_warp_is_a_small_smooth_motion_that_looks_inside():
    size = 64
    axis = (torch.arange(size) + 0.5) * 2 / size - 1
    still = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1)
    grids, valid = moves(random_warp(20, generator(0, 0)), size)
    assert grids.shape == (20, size, size, 2)
    assert valid.shape == (20, 1, size, size)
    motion = (grids - still) * size / 2  # px
    assert 1 < motion.norm(dim=-1).mean() < 6
    assert motion.norm(dim=-1).max() < 12
    assert max(motion.diff(dim=d).abs().max() for d in (1, 2)) < 0.5
    where = (grids + 1) * size / 2
    inside = ((where > 2) & (where < size - 2)).all(-1)[:, None]
    assert (valid <= inside).all()
    assert 0.4 < valid.mean() < 0.95
    other, _ = moves(random_warp(20, generator(0, 1)), size)
    assert not torch.equal(other, grids)


@pytest.mark.parametrize("motion", [random_shift, random_warp])
def test_some_of_the_motions_are_made_without_the_others(motion):
    mine = slice(1, None, 2)
    every = moves(motion(5, generator(0, 0)), 32)
    some = moves(motion(5, generator(0, 0), mine), 32)
    for own, whole in zip(some, every, strict=True):
        torch.testing.assert_close(own, whole[mine], atol=1e-6, rtol=0)


def test_autocast_does_not_round_a_motion():
    motion = random_warp(2, generator(0, 0))
    exact = moves(motion, 64)
    with torch.autocast("cpu", torch.bfloat16):
        for a, b in zip(moves(motion, 64), exact, strict=True):
            assert torch.equal(a, b)


def test_a_shift_is_by_whole_pixels():
    motion = random_shift(50, generator(0, 0))
    grid, _ = moves(motion, 32)
    x = torch.rand(50, 1, 32, 32)
    moved = warp(x, grid)
    for i, (across, down) in enumerate(motion[0].flatten(1).int().tolist()):
        inner = x[i, 0, 8 + down : 24 + down, 8 + across : 24 + across]
        torch.testing.assert_close(moved[i, 0, 8:24, 8:24], inner, atol=1e-5, rtol=0)
