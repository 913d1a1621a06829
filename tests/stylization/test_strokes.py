"""Larger strokes: what is painted small and enlarged, with the photo's details by the repair."""

from dataclasses import asdict

import numpy as np
import pytest
import torch
from PIL import Image

from faststy.model_file import Model, ModelInfo
from faststy.nn.generator import Generator, GeneratorConfig
from faststy.nn.plain import PlainRepairer
from faststy.nn.repairer import Repairer
from faststy.stylization import strokes
from faststy.stylization.strokes import enlarge, shrink, stroke_for
from faststy.stylization.stylizer import Stylizer


@pytest.fixture(scope="module")
def stylizer():
    torch.manual_seed(1)
    config = GeneratorConfig(channels=8, blocks=2)
    generator, repairer = Generator(config).eval(), Repairer(8).eval()
    with torch.no_grad():
        for parameter in [*generator.parameters(), *repairer.head.parameters()]:
            parameter.add_(torch.randn_like(parameter) * 0.1)
    info = ModelInfo(["rain"], asdict(config), {"channels": 8})
    model = Model(generator.requires_grad_(False), repairer.requires_grad_(False), info)
    return Stylizer(model, "cpu")


def frame(height, width):
    """Smooth shapes, uint8 [H, W, 3]."""
    y, x = np.mgrid[:height, :width]
    waves = np.stack([np.sin(x / 31), np.cos(y / 23), np.sin((x + y) / 41)], axis=-1)
    return (128 + 100 * waves).astype(np.uint8)


def as_frames(array):
    return torch.from_numpy(np.array(array))[None]


@pytest.mark.parametrize(
    ("size", "stroke"),
    [((1, 1), 1), ((1280, 720), 1), ((721, 5000), 2), ((1920, 1080), 2), ((4000, 3000), 4)],
)
def test_strokes_grow_with_the_picture(size, stroke):
    assert stroke_for(*size) == stroke == stroke_for(*size[::-1])
    assert stroke_for(60_000, 60_000) == strokes.SIZES[-1]


@pytest.mark.parametrize("stroke", strokes.SIZES)
@pytest.mark.parametrize("size", [(96, 128), (61, 83), (1, 5)])
def test_what_is_shrunk_is_enlarged_to_itself(stroke, size):
    frames = as_frames(frame(*size))
    small = shrink(frames, stroke)
    assert small.dtype == torch.uint8
    assert all(
        s >= side / stroke and (stroke == 1 or s % 4 == 0)
        for s, side in zip(small.shape[1:3], size, strict=True)
    )
    again = enlarge(small, stroke, *size)
    assert again.shape == frames.shape
    difference = (again.int() - frames.int()).abs().float()
    assert difference.max() <= 3 * stroke  # at the borders
    assert difference.mean() < 2
    flat = torch.full((1, *size, 3), 77, dtype=torch.uint8)
    assert (enlarge(shrink(flat, stroke), stroke, *size) == 77).all()


@pytest.mark.parametrize("stroke", [2, 4])
def test_a_part_is_shrunk_as_in_the_whole(stroke):
    frames = as_frames(np.random.default_rng(0).integers(0, 256, (256, 320, 3), np.uint8))
    small, part = shrink(frames, stroke), shrink(frames[:, 64:], stroke)
    assert torch.equal(small[:, 64 // stroke + 2 :], part[:, 2:])


@pytest.mark.parametrize("stroke", [2, 4])
def test_it_is_painted_small_and_repaired_by_the_photo_as_it_is(stylizer, stroke):
    photo = frame(208, 272)
    small = Image.fromarray(photo).resize((272 // stroke, 208 // stroke), Image.Resampling.BILINEAR)
    painted = stylizer(small, repair=0, stroke=1).resize((272, 208), Image.Resampling.BICUBIC)
    found = np.asarray(stylizer(photo, repair=0, stroke=stroke)).astype(int)
    difference = np.abs(found - np.asarray(painted))
    assert difference.max() <= 4  # libraries round and end differently
    assert difference.mean() < 0.5
    repairer = PlainRepairer(stylizer.model.repairer)
    repaired = repairer(as_frames(found.astype(np.uint8)), as_frames(photo), 1.0)[0].numpy()
    np.testing.assert_array_equal(np.asarray(stylizer(photo, stroke=stroke)), repaired)
    assert np.abs(repaired.astype(int) - found).mean() > 1


def test_by_default_it_is_that_of_the_size(stylizer, monkeypatch):
    photo = frame(200, 264)
    monkeypatch.setattr(strokes, "READABLE", 100)
    for paint in (stylizer, stylizer.painter()):
        default = np.asarray(paint(photo))
        np.testing.assert_array_equal(default, np.asarray(stylizer(photo, stroke=2)))
    assert np.abs(default.astype(int) - np.asarray(stylizer(photo, stroke=1))).mean() > 2
    assert stylizer.paint(photo).lost_content.shape == (200, 264)


def test_another_stroke_starts_the_statistics_anew(stylizer):
    painter = stylizer.painter(stroke=1)
    painter(frame(200, 264))
    painter.set(stroke=2)
    moved = frame(220, 264)[20:]
    np.testing.assert_array_equal(painter(moved), stylizer.painter(stroke=2)(moved))
    # And goes on by those that it holds.
    again = np.abs(painter(moved).astype(int) - painter(moved))
    assert again.max() <= 1


@pytest.mark.parametrize("stroke", [3, 0, -1, 8])
def test_other_sizes_are_refused(stylizer, stroke):
    with pytest.raises(ValueError, match=f"stroke is {stroke}; expected 1, 2 or 4"):
        stylizer(frame(20, 20), stroke=stroke)
