"""A picture from file to file in strips is the same picture painted in memory in tiles."""

import itertools
import os
import sys
from dataclasses import asdict

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageCms

from faststy.errors import FaststyError
from faststy.model_file import Model, ModelInfo
from faststy.nn.generator import Generator, GeneratorConfig
from faststy.nn.repairer import Repairer
from faststy.pictures import read_picture
from faststy.stylization import strips, tiles
from faststy.stylization.stylizer import Stylizer

SIZE = (1090, 1111)
TOO_LITTLE = 1  # bytes: the smallest tiles
needs_any_name = pytest.mark.skipif(sys.platform != "linux", reason="names are Unicode")
needs_libvips = pytest.mark.skipif(not strips.is_available(), reason="libvips is not installed")


@pytest.fixture(scope="module")
def stylizer():
    torch.manual_seed(1)
    config = GeneratorConfig(channels=8, blocks=1, styles=1)
    generator, repairer = Generator(config).eval(), Repairer(8).eval()
    with torch.no_grad():
        for parameter in [*generator.parameters(), *repairer.head.parameters()]:
            parameter.add_(torch.randn_like(parameter) * 0.1)
    info = ModelInfo(["rain"], asdict(config), {"channels": 8})
    return Stylizer(Model(generator, repairer, info), "cpu")


@pytest.fixture(scope="module")
def photo():
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (70, 70, 3), np.uint8))
    return small.resize(SIZE, Image.Resampling.BICUBIC)


@pytest.fixture
def save(photo, tmp_path):
    """Writes a picture, with what is added to the photo's options."""

    def save(name, picture=photo, **options):
        picture.save(tmp_path / name, **options)
        return tmp_path / name

    return save


@needs_libvips
@pytest.mark.parametrize(
    ("source", "target"), [("a.png", "b.png"), ("a.tiff", "b.tif"), ("a.jpg", "b.png")]
)
def test_strips_are_the_tiles(stylizer, save, tmp_path, source, target):
    path, told = save(source, **({"quality": 95} if source == "a.jpg" else {})), []
    picture = strips.look_at(path, tmp_path / target)
    strips.paint_file(
        stylizer, picture, tmp_path / target, memory=TOO_LITTLE, progress=told.append, repair=0.5
    )
    truth = stylizer.paint(path, memory=TOO_LITTLE, repair=0.5).picture.rgb
    # Decoders of JPEG round differently, and what they give is painted.
    most = 4 if source == "a.jpg" else 0
    with Image.open(tmp_path / target) as painted:
        off = np.abs(np.asarray(painted).astype(int) - np.asarray(truth))
    assert off.max() <= most
    assert len(told) == 9
    assert told == sorted(told)
    assert told[-1] == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([source, target])


@needs_libvips
def test_out_of_memory_goes_on_in_smaller_tiles(stylizer, save, tmp_path, monkeypatch):
    path, sides, paint = save("a.png"), [], strips._paint

    def tight(picture, side, *rest):
        sides.append(side)
        yield from itertools.islice(paint(picture, side, *rest), None if side == 512 else 1)
        if side > 512:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(strips, "_paint", tight)
    picture = strips.look_at(path, tmp_path / "b.png")
    strips.paint_file(stylizer, picture, tmp_path / "b.png", memory=64 << 30)
    assert sides == [2048, 1024, 512]
    truth = stylizer.paint(path, memory=TOO_LITTLE).picture.rgb
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "b.png")), np.asarray(truth))


@needs_libvips
def test_a_drawing_that_no_sample_meets(stylizer, photo, save, tmp_path):
    picture = Image.new("RGB", SIZE, "white")
    picture.paste(photo.crop((0, 0, 12, 500)), (SIZE[0] // 2, 300))
    path = save("a.png", picture)
    found = strips._samples(strips.look_at(path, tmp_path / "b.png"), 1)
    assert len(found) == 1
    torch.testing.assert_close(found, tiles.samples(picture), atol=0, rtol=0)


@needs_libvips
@pytest.mark.parametrize("stroke", [2, 4])
def test_a_square_that_the_samples_of_large_strokes_cover(save, photo, tmp_path, stroke):
    side = stroke * tiles.SAMPLES * tiles.SAMPLE_SIDE  # 2048, 4096: squares that people have
    picture = photo.resize((side, side))
    found = strips._samples(strips.look_at(save("a.png", picture), tmp_path / "b.png"), stroke)
    torch.testing.assert_close(found, tiles.samples(picture, stroke), atol=0, rtol=0)


@needs_libvips
@pytest.mark.parametrize("name", ["a.png", "a.tiff"])
def test_16_bits_are_read_as_pillow_reads_them(tmp_path, name):
    import pyvips

    values = np.random.default_rng(0).integers(0, 65536, (1111, 1090, 3), np.uint16)
    deep = pyvips.Image.new_from_array(values).copy(interpretation="rgb16")
    deep.write_to_file(str(tmp_path / name))
    picture = strips.look_at(tmp_path / name, tmp_path / "b.png")
    truth = np.asarray(read_picture(tmp_path / name).rgb)
    np.testing.assert_array_equal(strips._Reader(picture).rows(0, 1111), truth)


@needs_libvips
def test_samples_beyond_the_colours_are_left_out_as_pillow_does(photo, tmp_path):
    photo.convert("RGBX").save(tmp_path / "a.tiff")
    picture = strips.look_at(tmp_path / "a.tiff", tmp_path / "b.png")
    rows = strips._Reader(picture).rows(0, picture.size[1])
    np.testing.assert_array_equal(rows, np.asarray(photo))


@needs_libvips
@pytest.mark.parametrize("target", ["b.png", "b.jpg"])
def test_profile_and_metadata_are_kept(stylizer, save, tmp_path, target):
    exif = Image.Exif()
    exif[ExifTags.Base.Artist] = "Ada"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    path = save("a.png", icc_profile=profile, exif=exif)
    strips.paint_file(
        stylizer, strips.look_at(path, tmp_path / target), tmp_path / target, memory=TOO_LITTLE
    )
    found = read_picture(tmp_path / target)
    assert found.icc_profile == profile
    kept = Image.Exif()
    kept.load(found.exif)
    assert kept[ExifTags.Base.Artist] == "Ada"
    truth = np.asarray(stylizer.paint(path, memory=TOO_LITTLE).picture.rgb).astype(int)
    assert np.abs(np.asarray(found.rgb) - truth).mean() < 3  # JPEG


@needs_libvips
def test_a_damaged_picture_leaves_nothing(stylizer, save, tmp_path):
    path = save("a.png")
    picture = strips.look_at(path, tmp_path / "b.png")
    path.write_bytes(path.read_bytes()[:-100_000])
    (tmp_path / "b.png").write_bytes(b"old")
    with pytest.raises(FaststyError, match=r"a\.png: damaged or cut off"):
        strips.paint_file(stylizer, picture, tmp_path / "b.png", memory=TOO_LITTLE)
    assert (tmp_path / "b.png").read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 2


@needs_libvips
@pytest.mark.parametrize("name", [b"a[1]", pytest.param(b"\xff", marks=needs_any_name)])
def test_names_of_every_kind(stylizer, photo, tmp_path, name):
    folder = tmp_path / os.fsdecode(name)
    folder.mkdir()
    path, target = folder / f"{folder.name}.png", folder / f"b{folder.name}.png"
    photo.save(path)
    path = path.rename(path.with_suffix(""))
    strips.paint_file(stylizer, strips.look_at(path, target), target, memory=TOO_LITTLE)
    with Image.open(target) as painted:
        assert painted.size == SIZE


@needs_libvips
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes")
def test_pipes_and_files_in_the_way_stay(stylizer, save, tmp_path):
    picture = strips.look_at(save("a.png"), tmp_path / "b.png")
    os.mkfifo(tmp_path / "b.png")
    with pytest.raises(FaststyError, match=r"b\.png: not a regular file"):
        strips.paint_file(stylizer, picture, tmp_path / "b.png", memory=TOO_LITTLE)
    assert (tmp_path / "b.png").is_fifo()
    with pytest.raises(FaststyError, match="a part of the path is a file, not a folder"):
        strips.paint_file(stylizer, picture, tmp_path / "a.png" / "b.png", memory=TOO_LITTLE)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png", "b.png"]


def test_what_cannot_be_read_in_strips(photo, save, tmp_path):
    png, turned = tmp_path / "b.png", Image.Exif()
    turned[ExifTags.Base.Orientation] = 6
    assert strips.look_at(save("a.png"), png).size == SIZE
    assert strips.look_at(save("a.png"), tmp_path / "b.webp") is None
    for path in (
        save("a.bmp"),
        save("grey.png", photo.convert("L")),
        save("alpha.png", photo.convert("RGBA")),
        save("small.png", photo.resize((300, 3000))),
        save("progressive.jpg", progressive=True),
        save("turned.jpg", exif=turned),
        tmp_path / "none.png",
    ):
        assert strips.look_at(path, png) is None, path


def test_memory_decides():
    sides = [strips.side_within(m << 20, 256, 16384) for m in (1, 900, 1200, 8000)]
    assert sides == sorted(sides)
    assert sides[0] == tiles.SMALLEST
    assert sides[1] < sides[2]
    assert sides[-1] == tiles.LARGEST
    least = strips.least_memory(256, 16384)
    assert strips.side_within(least, 256, 16384) == tiles.SMALLEST
    wider = least + (tiles.SMALLEST << 20)
    assert strips.side_within(wider, 256, 16384) > tiles.SMALLEST
    assert strips.least_memory(256, 32768) > least + (100 << 20)
