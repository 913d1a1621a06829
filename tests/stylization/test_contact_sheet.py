"""The contact sheet: every style is there, in its place, under its name."""

import io
from dataclasses import asdict

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

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
    for cell, picture in zip(cells(sheet, 60, 40, 4), expected, strict=True):
        assert (cell == np.asarray(picture)).all()


def test_a_name_of_several_lines_is_written_on_one():
    picture = Image.new("RGB", (200, 20))
    assert labelled([("a\nb", picture)]).tobytes() == labelled([("a_b", picture)]).tobytes()


def cells(sheet, width, height, count):
    """The pixels of each picture on a sheet."""
    columns = (sheet.width - GAP) // (width + GAP)
    for index in range(count):
        left = GAP + index % columns * (width + GAP)
        top = GAP + index // columns * (height + LABEL)
        yield np.asarray(sheet.crop((left, top, left + width, top + height)))


def test_transparent_pixels_are_paper(stylizer):
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 4), np.uint8)
    noise[..., 3] = 255
    noise[:, :20, 3] = 0  # with colours that nobody should see
    shown = list(cells(contact_sheet(stylizer, Image.fromarray(noise)), 60, 40, 4))
    for cell in shown:
        assert (cell[:, :20] == PAPER).all()
    assert (shown[0][:, 20:] == noise[:, 20:, :3]).all()
    expected = [stylizer(Image.fromarray(noise), style=name) for name in stylizer.styles]
    for cell, painted in zip(shown[1:], expected, strict=True):
        assert (cell[:, 20:] == np.asarray(painted)[:, 20:, :3]).all()


def test_colours_of_another_profile_are_seen_as_they_are(stylizer, dim_profile):
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    photo = Image.fromarray(noise)
    photo.info["icc_profile"] = dim_profile
    sheet = contact_sheet(stylizer, photo)
    expected = [photo, *(stylizer(photo, style=name) for name in stylizer.styles)]
    for cell, picture in zip(cells(sheet, 60, 40, 4), expected, strict=True):
        profile = ImageCms.ImageCmsProfile(io.BytesIO(picture.info["icc_profile"]))
        srgb = ImageCms.profileToProfile(picture, profile, ImageCms.createProfile("sRGB"), 1)
        assert np.abs(cell.astype(int) - np.asarray(picture)).mean() > 5
        assert np.abs(cell.astype(int) - np.asarray(srgb)).mean() < 1


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


def test_a_long_name_stays_under_its_picture():
    pictures = [("long_" * 40, Image.new("RGB", (300, 40))), ("", Image.new("RGB", (300, 40)))]
    sheet = np.asarray(labelled(pictures, columns=2))
    below = (sheet[GAP + 40 :] != PAPER).any((0, 2))
    assert below[GAP : GAP + 300].any()
    assert not below[:GAP].any()
    assert not below[GAP + 300 :].any()
