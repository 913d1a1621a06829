"""The lost-content map: what is erased from a painting is found, and nothing else."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from faststy import assets
from faststy.model_file import load_model
from faststy.nn.encoder import Encoder
from faststy.nn.lost_content import CONTENT_TAP, STRUCTURE, lost_content, lost_regions
from faststy.pictures import read_picture, scale_down
from faststy.tensors import to_tensor

SIDE = 240  # px


@pytest.fixture(scope="module")
def judge():
    encoder = Encoder()
    return lambda x: encoder(x, taps=CONTENT_TAP + 1)


@pytest.fixture(scope="module")
def paintings():
    """The bundled photos, each in three ready styles: (photo, painting, another painting)."""
    model = load_model(assets.model())
    photos = [to_tensor(scale_down(read_picture(path).rgb, SIDE)) for path in assets.photos()]
    found = []
    with torch.inference_mode():
        for index in range(len(model.info.styles)):
            photo, before = (photos[i % len(photos)] for i in (index, index - 1))
            style = F.one_hot(torch.tensor(index), len(model.info.styles)).float()
            other = F.interpolate(before, photo.shape[-2:], mode="bilinear")
            found.append((photo, model.generator(photo, style), model.generator(other, style)))
    return found


def squares(height, width, seed):
    """Where three squares of a fifth to a third of the short side lie: bool [1, 1, H, W]."""
    rng = np.random.default_rng(seed)
    mask = torch.zeros(1, 1, height, width, dtype=torch.bool)
    for _ in range(3):
        side = int(min(height, width) * rng.uniform(0.2, 0.35))
        top, left = rng.integers(height - side), rng.integers(width - side)
        mask[..., top : top + side, left : left + side] = True
    return mask


def f1(found, true):
    return 2 * (found & true).sum().item() / (found.sum() + true.sum()).item()


def erased(paintings, fill):
    """(photo, painting, the same with squares erased, mask): flat, or by another painting."""
    for seed, (photo, painted, other) in enumerate(paintings):
        mask = squares(*photo.shape[-2:], seed)
        flat = painted.mean((2, 3), keepdim=True)
        yield photo, painted, torch.where(mask, flat if fill == "flat" else other, painted), mask


# `strict` counts what the style itself lost elsewhere as found wrongly; `least` does not.
@pytest.mark.parametrize(("fill", "least", "strict"), [("flat", 0.8, 0.79), ("texture", 0.8, 0.8)])
def test_erased_regions_are_found(judge, paintings, fill, least, strict):
    scores, strict_scores = [], []
    for photo, painted, damaged, mask in erased(paintings, fill):
        with torch.inference_mode():
            taps = judge(photo)
            found = lost_regions(lost_content(judge(damaged), taps), taps)
            before = lost_regions(lost_content(judge(painted), taps), taps)
            structured = lost_regions(torch.ones_like(found, dtype=torch.float32), taps)
        # In a flat sky there is nothing to lose.
        true = structured & (F.interpolate(mask.float(), found.shape[-2:], mode="area") > 0.5)
        scores.append(f1(found & (true | ~before), true))
        strict_scores.append(f1(found, true))
    assert np.mean(scores) >= least
    assert np.mean(strict_scores) >= strict


def test_a_photo_itself_lost_nothing_and_a_blank_everything(judge, paintings):
    blanked = []
    for photo, _, _ in paintings[:4]:
        taps = judge(photo)
        assert lost_content(taps, taps).max() < 1e-5
        assert not lost_regions(lost_content(taps, taps), taps).any()
        blank = judge(torch.full_like(photo, 0.5))
        lost = lost_content(blank, taps)
        assert 0 <= lost.min() <= lost.max() <= 1
        structured = lost_regions(torch.ones_like(lost), taps)
        assert structured.float().mean() > 0.35
        assert lost_regions(lost, taps)[structured].float().mean() > 0.85
        blanked.append(lost_regions(lost, taps).float().mean())
    assert np.mean(blanked) > 0.6  # one of them is mostly sky


def test_a_flat_photo_has_nothing_to_lose(judge):
    noise = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    photo = torch.full((1, 3, 64, 96), 0.4)
    photo[..., 72:] = noise[:1, ..., 72:]
    taps = judge(photo)
    lost = lost_content(judge(noise[1:]), taps)
    assert lost[..., 2:15].mean() < STRUCTURE < lost[..., 20:].mean()
    found = lost_regions(lost, taps)
    assert found[..., 2:15].float().mean() < 0.02
    assert found[..., 20:].float().mean() > 0.6
