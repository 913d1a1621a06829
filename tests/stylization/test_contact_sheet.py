"""The contact sheet: every style is there, in its place, under its name."""

from dataclasses import asdict

import numpy as np
import pytest
import torch
from PIL import Image

from faststy.model_file import Model, ModelInfo
from faststy.nn.generator import Generator, GeneratorConfig
from faststy.stylization.contact_sheet import GAP, LABEL, PAPER, SIDE, contact_sheet, labelled
from faststy.stylization.stylizer import Stylizer


@pytest.fixture(scope="module")
def stylizer():
    torch.manual_seed(0)
    config = GeneratorConfig(channels=8, blocks=1, styles=3)
    info = ModelInfo(["one", "two", "three"], asdict(config))
    return Stylizer(Model(Generator(config), None, info), "cpu")


def test_the_photo_and_every_style(stylizer):
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    photo = Image.fromarray(noise)
    told = []
    sheet = contact_sheet(stylizer, photo, lambda done, total: told.append((done, total)))
    assert told == [(1, 3), (2, 3), (3, 3)]
    expected = [photo, *(stylizer(photo, style=name) for name in stylizer.styles)]
    columns = (sheet.width - GAP) // (60 + GAP)
    for index, picture in enumerate(expected):
        left = GAP + index % columns * (60 + GAP)
        top = GAP + index // columns * (40 + LABEL)
        cell = sheet.crop((left, top, left + 60, top + 40))
        assert (np.asarray(cell) == np.asarray(picture)).all()


def test_large_photos_are_painted_small(stylizer):
    sheet = contact_sheet(stylizer, Image.new("RGB", (3 * SIDE, 2 * SIDE)))
    assert sheet.width < 6 * SIDE * 1.5


@pytest.mark.parametrize("count", [1, 2, 6, 13, 30])
def test_the_sheet_has_few_empty_cells(count):
    pictures = [(str(i), Image.new("RGB", (90, 60), "red")) for i in range(count)]
    sheet = labelled(pictures)
    cells = (sheet.width // (90 + GAP)) * (sheet.height // (60 + LABEL))
    assert count <= cells <= count * 1.5
    assert 0.6 < sheet.width / sheet.height < 3.5


def test_a_label_is_written_under_its_picture():
    sheet = np.asarray(labelled([("palette_knife", Image.new("RGB", (120, 40), PAPER))]))
    ink = (sheet != PAPER).any(2)
    assert not ink[: GAP + 40].any()
    assert ink[GAP + 40 :].sum() > 50


def test_pictures_of_several_sizes_fit_their_cells():
    sheet = labelled([("a", Image.new("RGB", (90, 30), "red")), ("b", Image.new("RGB", (30, 90)))])
    red = (np.asarray(sheet) == (255, 0, 0)).all(2)
    assert red.sum() == 90 * 30
