import numpy as np
import pytest
import torch

from faststy import ops
from faststy.nn.encoder import load_encoder
from faststy.training import objective
from faststy.training.transfer import COARSEST, _resized, _shifted, transfer


@pytest.fixture(scope="module")
def encoder():
    return load_encoder()


def scene(height=48, width=64):
    y, x = np.mgrid[:height, :width]
    disc = ((y - height / 2) ** 2 + (x - width / 2) ** 2 < (height / 3) ** 2) * 0.7 + 0.1
    return torch.from_numpy(np.stack([disc, disc, 0.5 + 0 * disc])[None]).float()


def stripes(side=64):
    y, x = np.mgrid[:side, :side]
    wave = 0.5 + 0.45 * np.sin((x + y) / 1.5)
    return torch.from_numpy(np.stack([wave, 0.3 * wave, 1 - wave])[None]).float()


def measured(painted, photo, style, encoder):
    with torch.no_grad():
        taps = encoder(painted)
        targets = objective.style_targets(encoder(style))
        return {
            "style": float(objective.style_loss(taps, targets)),
            "colour": float(
                objective.colour_loss(painted, ops.gram(objective.colour_moments(style))[0])
            ),
            "content": float(objective.content_loss(taps[2], encoder(photo)[2])),
        }


def test_the_picture_takes_on_the_style_and_keeps_its_content(encoder):
    photo, style = scene(), stripes()
    losses = []
    painted = transfer(
        photo, style, encoder, steps=25, on_progress=lambda done, total, loss: losses.append(loss)
    )
    assert painted.shape == photo.shape
    assert 0 <= painted.min() < painted.max() <= 1
    assert len(losses) == 25
    assert np.mean(losses[-3:]) < 0.5 * losses[0]
    before, after = (measured(x, photo, style, encoder) for x in (photo, painted))
    assert after["style"] < 0.5 * before["style"]
    assert after["colour"] < 0.5 * before["colour"]
    assert after["content"] < measured(style[..., :48, :], photo, style, encoder)["content"]


def test_the_style_weight_is_the_dial(encoder):
    photo, style = scene(), stripes()
    weak, strong = (
        measured(
            transfer(photo, style, encoder, style_weight=weight, steps=12), photo, style, encoder
        )
        for weight in (0.05, 50.0)
    )
    assert strong["style"] < weak["style"]
    assert strong["content"] > weak["content"]


def test_the_same_seed_gives_the_same_picture(encoder):
    photo, style = scene(), stripes()
    torch.manual_seed(5)
    one = transfer(photo, style, encoder, steps=3)
    torch.manual_seed(6)
    assert torch.equal(transfer(photo, style, encoder, steps=3), one)
    assert not torch.equal(transfer(photo, style, encoder, steps=3, seed=1), one)


def test_large_photos_are_painted_coarse_to_fine(encoder, monkeypatch):
    monkeypatch.setattr("faststy.training.transfer.COARSEST", 16)
    seen = []

    def watched(x):
        seen.append(tuple(x.shape[-2:]))
        return encoder(x)

    steps = []
    transfer(
        scene(64, 80),
        stripes(),
        watched,
        steps=1,
        on_progress=lambda done, total, loss: steps.append((done, total)),
    )
    assert steps == [(1, 3), (2, 3), (3, 3)]
    heights = [size[0] for size in seen[1::3]]
    assert all(16 * 2**i <= h < 16 * 2**i + 8 for i, h in enumerate(heights))
    assert COARSEST > 16


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (17, 33)])
def test_any_photo_size(encoder, size):
    painted = transfer(torch.rand(1, 3, *size), torch.rand(1, 3, 5, 9), encoder, steps=1)
    assert painted.shape == (1, 3, *size)
    assert painted.isfinite().all()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_callers_modes_play_no_part(encoder, mode):
    with mode():
        photo, style = scene(), stripes()
        painted = transfer(photo, style, encoder, steps=2)
    expected = transfer(photo.clone(), style.clone(), encoder, steps=2)
    assert torch.equal(painted, expected)


def test_shifting_grows_by_reflection_at_the_top_and_left():
    x = torch.rand(1, 3, 16, 20)
    grown = _shifted(x, (3, 5))
    assert grown.shape == (1, 3, 19, 25)
    assert torch.equal(grown[..., 3:, 5:], x)
    assert torch.equal(grown[..., 0, 5:], x[..., 3, :])
    assert _resized(x, (16, 20)) is x
    assert 0 <= _resized(x.round(), [37, 41]).min() <= _resized(x.round(), [37, 41]).max() <= 1
