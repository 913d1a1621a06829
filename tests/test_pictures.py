"""Pictures of every kind come out upright, in 8-bit RGB, or as one sentence."""

import contextlib
import errno
import io
import os
import random
import resource
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageDraw

from faststy import pictures
from faststy.errors import FaststyError
from faststy.pictures import (
    Picture,
    encode_picture,
    format_of,
    heat_map,
    list_pictures,
    read_picture,
    scale_down,
    style_name,
    style_sample,
    write_picture,
)

ORIENTATION, MAKE = 0x0112, 0x010F


def noise(*shape, dtype=np.uint8, seed=0):
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def encoded(image, format, **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def png_16_bit(array, color_type, key=None):
    """Pillow writes no 16-bit colour; this does. array: uint16 [H, W, C], key: transparent [C]."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    height, width = array.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    header = struct.pack(">IIBBBBB", width, height, 16, color_type, 0, 0, 0)
    chunks = chunk(b"IHDR", header)
    if key is not None:
        chunks += chunk(b"tRNS", np.array(key, ">u2").tobytes())
    chunks += chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def icc_profile(space, tags):
    """A minimal ICC version 2 profile with the given tags."""
    offset, table, body = 128 + 4 + 12 * len(tags), b"", b""
    for name, data in tags.items():
        table += struct.pack(">4sII", name, offset + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    size = offset + len(body)
    kind = b"prtr" if space == b"CMYK" else b"mntr"
    connection = b"Lab " if space == b"CMYK" else b"XYZ "
    header = struct.pack(">I4sI4s4s4s", size, b"none", 0x02400000, kind, space, connection)
    header += bytes(12) + b"acsp" + bytes(28) + struct.pack(">3I", 0xF6D6, 0x10000, 0xD32D)
    return header.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def cmyk_profile(lab_of_corners):
    """A CMYK profile of a 2x2x2x2 table; lab_of_corners[c, m, y, k] in ICC's 8-bit Lab."""
    lut = b"mft1" + bytes(4) + bytes([4, 3, 2, 0])
    lut += struct.pack(">9i", *(np.eye(3, dtype=int) * 65536).flatten().tolist())
    lut += bytes(range(256)) * 4 + lab_of_corners.astype(np.uint8).tobytes() + bytes(range(256)) * 3
    return icc_profile(b"CMYK", {b"A2B0": lut})


SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
LINEAR_GREY = icc_profile(
    b"GRAY",
    {
        b"wtpt": b"XYZ " + bytes(4) + struct.pack(">3I", 0xF6D6, 0x10000, 0xD32D),
        b"kTRC": b"curv" + bytes(4) + struct.pack(">I", 0),  # no entries: the identity
    },
)

UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_orientation_is_applied_and_its_tag_is_gone(orientation, format):
    pixels = noise(5, 7, 4)
    exif = Image.Exif()
    exif[ORIENTATION], exif[MAKE] = orientation, "Camera"
    picture = read_picture(encoded(Image.fromarray(pixels), format, exif=exif))
    expected = UPRIGHT[orientation](pixels)
    np.testing.assert_array_equal(np.asarray(picture.rgb), expected[..., :3])
    np.testing.assert_array_equal(np.asarray(picture.alpha), expected[..., 3])
    again = Image.open(io.BytesIO(encode_picture(picture, "PNG")))
    assert again.getexif().get(MAKE) == "Camera"
    assert ORIENTATION not in again.getexif()


def test_every_kind_of_source_gives_the_same_pixels(tmp_path):
    pixels = noise(6, 5, 3)
    image = Image.fromarray(pixels)
    path = tmp_path / "a.png"
    image.save(path)

    class Pipe(io.RawIOBase):  # cannot seek, like standard input
        def readable(self):
            return True

        def read(self, size=-1):
            return path.read_bytes()

    with open(path, "rb") as stream:
        sources = [path, str(path), path.read_bytes(), stream, Pipe(), image, pixels]
        for source in sources:
            np.testing.assert_array_equal(np.asarray(read_picture(source).rgb), pixels)


def test_the_source_image_stays_as_it_was():
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    image = Image.open(io.BytesIO(encoded(Image.fromarray(noise(4, 6, 3)), "PNG", exif=exif)))
    assert read_picture(image).size == (4, 6)
    assert image.size == (6, 4)
    assert image.getexif()[ORIENTATION] == 6
    image = Image.fromarray(noise(4, 6, 3))
    image.info["transparency"] = (1, 2, 3)
    read_picture(image).rgb.paste("red", (0, 0, 6, 4))
    np.testing.assert_array_equal(np.asarray(image), noise(4, 6, 3))
    assert image.info["transparency"] == (1, 2, 3)


def test_a_file_is_held_once(monkeypatch):
    data = encoded(Image.fromarray(noise(4, 6, 3)), "PNG")
    monkeypatch.setattr(Image.Image, "copy", None)
    picture = read_picture(data)
    np.testing.assert_array_equal(np.asarray(picture.rgb), noise(4, 6, 3))
    assert type(picture.rgb) is Image.Image  # not of PNG, which would hold the file, too


def palette_image():
    image = Image.new("P", (3, 1))
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.putdata([0, 1, 2])
    return image


@pytest.mark.parametrize(
    ("data", "alpha"),
    [
        (encoded(Image.fromarray(noise(1, 3, 4)), "PNG"), noise(1, 3, 4)[..., 3]),
        (encoded(Image.fromarray(noise(1, 3, 2), "LA"), "PNG"), noise(1, 3, 2)[..., 1]),
        (encoded(palette_image(), "PNG", transparency=bytes([0, 128, 255])), [[0, 128, 255]]),
        (encoded(palette_image(), "GIF", transparency=1), [[255, 0, 255]]),
        (encoded(Image.new("RGB", (3, 1), (9, 8, 7)), "PNG", transparency=(9, 8, 7)), [[0] * 3]),
        (encoded(Image.new("L", (3, 1), 9), "PNG", transparency=9), [[0] * 3]),
        (
            encoded(Image.fromarray(np.array([[700, 701]], np.uint16)), "PNG", transparency=700),
            [[0, 255]],
        ),
        (
            png_16_bit(
                np.array([[[700, 65000, 9], [700, 60000, 9]]], np.uint16), 2, (700, 65000, 9)
            ),
            [[0, 255]],
        ),
    ],
    ids=["RGBA", "LA", "palette", "gif", "RGB key", "grey key", "16-bit key", "16-bit RGB key"],
)
def test_transparency_of_every_kind(data, alpha):
    picture = read_picture(data)
    np.testing.assert_array_equal(np.asarray(picture.alpha), alpha)
    assert picture.rgb.mode == "RGB"


def test_palette_colours():
    picture = read_picture(encoded(palette_image(), "PNG", transparency=bytes([0, 128, 255])))
    expected = [[[255, 0, 0], [0, 255, 0], [0, 0, 255]]]
    np.testing.assert_array_equal(np.asarray(picture.rgb), expected)


def test_one_bit_and_grey():
    bits = np.array([[True, False, True]])
    np.testing.assert_array_equal(
        np.asarray(read_picture(encoded(Image.fromarray(bits), "PNG")).rgb)[..., 0], bits * 255
    )
    grey = noise(4, 4)
    picture = read_picture(encoded(Image.fromarray(grey), "PNG"))
    np.testing.assert_array_equal(np.asarray(picture.rgb), np.repeat(grey[..., None], 3, -1))
    assert picture.alpha is None


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_and_rounded(format):
    deep = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    picture = read_picture(encoded(Image.fromarray(deep), format))
    expected = np.rint(deep.astype(np.float64) / 257)
    np.testing.assert_array_equal(np.asarray(picture.rgb)[..., 1], expected)


@pytest.mark.parametrize(("color_type", "channels"), [(2, 3), (6, 4)])
def test_16_bit_colour_is_scaled(color_type, channels):
    deep = noise(8, 9, channels, dtype=np.uint16)
    picture = read_picture(png_16_bit(deep, color_type))
    got = np.asarray(picture.to_image()).astype(float)
    assert np.abs(got - deep / 257).max() < 1  # Pillow keeps the upper byte


def test_white_is_zero():
    deep = noise(4, 5, dtype=np.uint16)
    image = Image.fromarray(deep)
    data = encoded(image, "TIFF", tiffinfo={262: 0})
    if Image.open(io.BytesIO(data)).tag_v2[262] != 0:
        pytest.skip("this Pillow writes no WhiteIsZero")
    expected = 255 - np.rint(deep / 257)
    np.testing.assert_array_equal(np.asarray(read_picture(data).rgb)[..., 0], expected)


@pytest.mark.parametrize("peak", [1.0, 40.0])
def test_float_tiff(peak):
    values = np.linspace(0, peak, 30, dtype=np.float32).reshape(5, 6)
    values[0, :2] = np.nan, -3
    picture = read_picture(encoded(Image.fromarray(values), "TIFF"))
    expected = np.rint(np.clip(np.nan_to_num(values) / peak, 0, 1) * 255)
    np.testing.assert_array_equal(np.asarray(picture.rgb)[..., 2], expected)


def test_integers_of_32_bits():
    values = np.array([[0, 1 << 29, 1 << 30]], np.int32)
    picture = read_picture(encoded(Image.fromarray(values), "TIFF"))
    np.testing.assert_array_equal(np.asarray(picture.rgb)[..., 0], [[0, 128, 255]])


def test_cmyk_without_profile_is_converted_plainly():
    image = Image.new("CMYK", (2, 1), (255, 0, 0, 0))
    picture = read_picture(encoded(image, "TIFF"))
    assert picture.rgb.getpixel((0, 0)) == (0, 255, 255)


def test_cmyk_goes_through_its_profile():
    lab = np.full((2, 2, 2, 2, 3), 128)  # neutral, in ICC's 8-bit Lab
    lab[..., 0, 0], lab[..., 1, 0] = 200, 30  # L* of paper and of black ink, 0...255 for 0...100
    lab[1, 0, 0, 0] = 140, 100, 70  # cyan
    image = Image.new("CMYK", (2, 1), (255, 0, 0, 0))
    image.putpixel((1, 0), (0, 0, 0, 255))
    picture = read_picture(encoded(image, "TIFF", icc_profile=cmyk_profile(lab)))
    cyan, black = picture.rgb.getpixel((0, 0)), picture.rgb.getpixel((1, 0))
    assert cyan[0] + 40 < cyan[1] < cyan[2] < 255
    luminance = ((30 / 2.55 + 16) / 116) ** 3
    expected = 255 * (1.055 * luminance ** (1 / 2.4) - 0.055)
    assert max(abs(value - expected) for value in black) <= 2
    assert picture.icc_profile is None  # what comes out is sRGB


def test_damaged_profile_is_ignored():
    image = Image.new("CMYK", (2, 1), (255, 0, 0, 0))
    profile = bytes(16) + b"CMYK" + bytes(200)
    picture = read_picture(encoded(image, "TIFF", icc_profile=profile))
    assert picture.rgb.getpixel((0, 0)) == (0, 255, 255)
    assert picture.icc_profile is None


def test_grey_goes_through_its_profile():
    image = Image.new("L", (2, 2), 128)
    picture = read_picture(encoded(image, "PNG", icc_profile=LINEAR_GREY))
    linear = 128 / 255
    expected = round(255 * (1.055 * linear ** (1 / 2.4) - 0.055))  # the sRGB curve
    assert max(abs(value - expected) for value in picture.rgb.getpixel((0, 0))) <= 1
    assert picture.icc_profile is None


def test_lab():
    image = Image.new("LAB", (2, 1), (255, 128, 128))
    image.putpixel((1, 0), (135, 128, 128))  # L* 53: middle grey
    rgb = np.asarray(read_picture(encoded(image, "TIFF")).rgb)
    assert rgb[0, 0].min() >= 254
    assert np.abs(rgb[0, 1].astype(int) - 126).max() <= 2


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_icc_profile_is_kept_byte_by_byte(format):
    data = encoded(Image.fromarray(noise(8, 8, 3)), "PNG", icc_profile=SRGB)
    picture = read_picture(encode_picture(read_picture(data), format))
    assert picture.icc_profile == SRGB


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_is_kept_without_the_old_files_layout(format):
    exif = Image.Exif()
    exif[MAKE], exif[0x0110], exif[ORIENTATION] = "Camera", "Model", 3
    exif[0x0100] = 4000  # ImageWidth: no longer true
    exif.get_ifd(0x8769).update({0x9003: "2001:02:03 04:05:06", 0xA002: 4000})
    exif.get_ifd(0x8825).update({1: "N", 2: (48.0, 12.0, 0.0)})
    data = encoded(Image.fromarray(noise(8, 8, 3)), "JPEG", exif=exif)
    kept = Image.open(io.BytesIO(encode_picture(read_picture(data), format))).getexif()
    assert (kept[MAKE], kept[0x0110]) == ("Camera", "Model")
    assert kept.get_ifd(0x8769)[0x9003] == "2001:02:03 04:05:06"
    assert 0xA002 not in kept.get_ifd(0x8769)
    assert kept.get_ifd(0x8825)[2] == (48.0, 12.0, 0.0)
    assert kept.get(ORIENTATION, 1) == 1
    assert kept.get(0x0100, 8) == 8


def test_exif_that_does_not_fit_into_a_jpeg_is_left_out():
    exif = Image.Exif()
    exif[MAKE] = "x" * 70_000
    picture = read_picture(encoded(Image.fromarray(noise(8, 8, 3)), "PNG", exif=exif))
    assert Image.open(io.BytesIO(encode_picture(picture, "JPEG"))).size == (8, 8)


def test_damaged_exif_does_not_cost_the_picture():
    data = encoded(Image.fromarray(noise(8, 8, 3)), "PNG", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f")
    assert read_picture(data).size == (8, 8)


def test_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    for format in ("GIF", "WEBP", "PNG"):
        options = {"lossless": True} if format == "WEBP" else {}
        data = encoded(frames[0], format, save_all=True, append_images=frames[1:], **options)
        assert read_picture(data).rgb.getpixel((1, 1)) == (255, 0, 0)


def test_errors_name_the_file_and_the_reason(tmp_path):
    text, empty, cut = tmp_path / "text.jpg", tmp_path / "empty.jpg", tmp_path / "cut.jpg"
    text.write_text("hello")
    empty.touch()
    cut.write_bytes(encoded(Image.fromarray(noise(64, 64, 3)), "JPEG")[:2000])
    for path, reason in [
        (text, "not a picture"),
        (empty, "zero bytes"),
        (cut, "cut off"),
        (tmp_path, "Is a directory"),
        (tmp_path / "missing.png", "No such file"),
        (tmp_path / "a\0b.png", "null byte"),
    ]:
        with pytest.raises(FaststyError, match=reason) as caught:
            read_picture(path)
        assert str(caught.value).startswith(f"{path}: ")
    with pytest.raises(FaststyError, match=r"standard input: .*zero bytes"):
        read_picture(io.BytesIO(), name="standard input")


def test_unreadable_file(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(errno.EACCES, "Permission denied", "secret.png")

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(FaststyError, match=r"secret\.png: .*Permission denied"):
        read_picture("secret.png")


def test_wrong_arrays_and_types():
    with pytest.raises(ValueError, match=r"the array is float32; expected uint8"):
        read_picture(np.zeros((2, 2, 3), np.float32))
    with pytest.raises(ValueError, match=r"shape \[2, 2, 5\]; expected \[H, W\]"):
        read_picture(np.zeros((2, 2, 5), np.uint8))
    with pytest.raises(TypeError, match="source is a int"):
        read_picture(3)
    with pytest.raises(TypeError, match="the mask is a int"):
        read_picture(3, name="the mask")


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "AVIF"])
@pytest.mark.filterwarnings("ignore")
def test_no_damage_raises_anything_but_one_sentence(format, monkeypatch):
    monkeypatch.setattr(pictures, "PIXEL_LIMIT", 1_000_000)
    exif = Image.Exif()
    exif[MAKE], exif[ORIENTATION] = "Camera", 6
    image = Image.fromarray(noise(24, 20, 3))
    try:
        whole = encoded(image, format, exif=exif, icc_profile=SRGB)
    except (KeyError, OSError):
        pytest.skip(f"this Pillow writes no {format}")
    chance = random.Random(format)
    read = 0
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(chance.choice([1, 3, 30])):
            data[chance.randrange(min(len(data), 800))] = chance.randrange(256)
        if chance.random() < 0.5:
            del data[chance.randrange(len(data)) :]
        with contextlib.suppress(FaststyError):
            read_picture(bytes(data))
            read += 1
    assert read < 150


def test_pixel_limit_is_checked_before_decoding(monkeypatch):
    header = struct.pack(">IIBBBBB", 40_000, 30_000, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + header
    data += struct.pack(">I", zlib.crc32(b"IHDR" + header)) + struct.pack(">I", 0) + b"IDAT"
    data += struct.pack(">I", zlib.crc32(b"IDAT"))
    with pytest.raises(FaststyError, match=r"40000 x 30000 is 1200 megapixels, more than .* 300"):
        read_picture(data)
    small = encoded(Image.fromarray(noise(10, 10)), "PNG")
    monkeypatch.setattr(pictures, "PIXEL_LIMIT", 100)
    assert read_picture(small).size == (10, 10)
    monkeypatch.setattr(pictures, "PIXEL_LIMIT", 99)
    with pytest.raises(FaststyError, match="limit"):
        read_picture(small)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP"])
def test_pillows_own_limit_does_not_matter_and_is_left_alone(monkeypatch, format):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert read_picture(encoded(Image.new("RGB", (10, 10)), format)).size == (10, 10)
    assert Image.MAX_IMAGE_PIXELS == 10


@pytest.mark.parametrize("suffix", [".png", ".tif", ".TIFF", ".bmp"])
def test_lossless_round_trip(tmp_path, suffix):
    pixels = noise(7, 9, 3)
    write_picture(Image.fromarray(pixels), tmp_path / f"a{suffix}")
    np.testing.assert_array_equal(np.asarray(read_picture(tmp_path / f"a{suffix}").rgb), pixels)
    assert os.listdir(tmp_path) == [f"a{suffix}"]


def test_alpha_is_kept_where_the_format_has_it(tmp_path):
    pixels = noise(7, 9, 4)
    picture = read_picture(pixels)
    for suffix in (".png", ".webp", ".tif"):
        write_picture(picture, tmp_path / f"a{suffix}")
        alpha = np.asarray(read_picture(tmp_path / f"a{suffix}").alpha)
        np.testing.assert_array_equal(alpha, pixels[..., 3])
    write_picture(read_picture(np.zeros((8, 8, 4), np.uint8)), tmp_path / "a.jpg")
    assert read_picture(tmp_path / "a.jpg").rgb.getextrema() == ((255, 255),) * 3  # on white


def test_jpeg_is_not_subsampled():
    image = Image.open(io.BytesIO(encode_picture(Image.fromarray(noise(16, 16, 3)), "JPEG")))
    assert [layer[1:3] for layer in image.layer] == [(1, 1)] * 3


def test_noise_fits_into_a_jpeg():
    # As large as a JPEG gets: some of Pillow's options run out of their buffer.
    picture = read_picture(noise(600, 600, 3))
    assert len(encode_picture(picture, "JPEG")) > 2 * 600 * 600


def test_unknown_suffix():
    assert format_of("a.JPG") == "JPEG"
    for name in ("a.gif", "a", "a.xyz"):
        with pytest.raises(FaststyError, match=rf"^{name}: .* use \.jpg"):
            format_of(name)


def test_too_large_for_the_format():
    with pytest.raises(FaststyError, match="cannot be written as WEBP at 17000 x 1"):
        encode_picture(Image.new("RGB", (17_000, 1)), "WEBP")


def test_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(b"old")

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FaststyError, match=r"a\.png: .*No space left"):
        write_picture(Image.fromarray(noise(4, 4, 3)), path)
    assert os.listdir(tmp_path) == ["a.png"]
    assert path.read_bytes() == b"old"


def test_file_size_limit_of_the_system(tmp_path):
    code = (
        "import numpy as np, sys; from PIL import Image; from faststy.pictures import *\n"
        "noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)\n"
        "try: write_picture(Image.fromarray(noise), sys.argv[1])\n"
        "except FaststyError as error: print(error)"
    )

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

    result = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a.png")],
        preexec_fn=limit,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "a.png: cannot be written (File too large)" in result.stdout
    assert os.listdir(tmp_path) == []


def test_links_stay_and_folders_and_devices_are_refused(tmp_path):
    image = Image.fromarray(noise(4, 4, 3))
    (tmp_path / "link.png").symlink_to("real.png")
    write_picture(image, tmp_path / "link.png")
    assert (tmp_path / "link.png").is_symlink()
    assert read_picture(tmp_path / "real.png").size == (4, 4)
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(FaststyError, match="is a folder"):
        write_picture(image, tmp_path / "folder.png")
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(FaststyError, match="not a regular file"):
        write_picture(image, tmp_path / "pipe.png")
    (tmp_path / "circle.png").symlink_to("circle.png")
    with pytest.raises(FaststyError, match="circle"):
        write_picture(image, tmp_path / "circle.png" / "a.png")
    with pytest.raises(FaststyError, match=r"real\.png/a\.png: .*is a file, not a folder"):
        write_picture(image, tmp_path / "real.png" / "a.png")


def test_missing_folders_are_made(tmp_path):
    write_picture(Image.fromarray(noise(4, 4, 3)), tmp_path / "x" / "y" / "a.png")
    assert read_picture(tmp_path / "x" / "y" / "a.png").size == (4, 4)


def test_a_style_sample_is_a_spread():
    assert list(style_sample(23)) == list(range(23))
    assert style_sample(1) == range(1)
    assert len(style_sample(47)) == 47
    assert list(style_sample(960)) == list(range(0, 960, 40))


def test_list_pictures(tmp_path):
    for name in ("b.JPG", "a.png", "notes.txt", ".hidden.png", "sub/c.tif", ".cache/d.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "sub" / "loop").symlink_to(tmp_path)
    found = [path.relative_to(tmp_path) for path in list_pictures(tmp_path)]
    assert found == [Path("a.png"), Path("b.JPG"), Path("sub/c.tif")]
    assert [p.name for p in list_pictures(tmp_path, recursive=False)] == ["a.png", "b.JPG"]


def test_list_pictures_leaves_out_what_a_training_or_a_sweep_shows(tmp_path):
    runs = ("run/config.toml", "run/log.jsonl", "run/samples/1.png", "sweep/sweep.json")
    for name in (
        "a.png",
        "run/preview.png",
        *runs,
        "sweep/x/b.png",
        "set/config.toml",
        "set/c.png",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).touch()
    assert [p.name for p in list_pictures(tmp_path)] == ["a.png", "c.png"]
    assert [p.name for p in list_pictures(tmp_path / "run")] == ["preview.png", "1.png"]


@pytest.mark.skipif(os.name != "posix", reason="there are no named pipes")
def test_list_pictures_leaves_pipes_out_and_broken_links_in(tmp_path):
    (tmp_path / "a.png").touch()
    (tmp_path / "link.png").symlink_to("a.png")
    (tmp_path / "broken.png").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe.png")
    assert [p.name for p in list_pictures(tmp_path)] == ["a.png", "broken.png", "link.png"]


def test_list_pictures_names_the_folder_that_cannot_be_read(tmp_path, monkeypatch):
    closed = tmp_path / "closed"
    closed.mkdir()
    Image.new("L", (1, 1)).save(tmp_path / "a.png")
    scandir = os.scandir

    def refuse(path):
        if Path(path) == closed:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(FaststyError, match=f"^{closed}: cannot be read .Permission denied.$"):
        list_pictures(tmp_path)
    # Whoever asks for what cannot be read is told of it with the others.
    assert list_pictures(tmp_path, foreign=True) == [tmp_path / "a.png", closed]


def test_pictures_in_a_folder_that_may_be_listed_only(tmp_path, monkeypatch):
    """They are listed: each is told of when it is read."""
    stat, path = os.stat, tmp_path / "a.png"
    path.touch()

    def closed(name, **options):
        if os.fspath(name) == str(path):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return stat(name, **options)

    monkeypatch.setattr(os, "stat", closed)  # root may look anywhere
    assert list_pictures(tmp_path) == [path]


def test_list_pictures_tells_what_is_of_other_formats(tmp_path):
    for name in ("a.png", "IMG_1.HEIC", "more.dng", "notes.txt", ".b.heic"):
        (tmp_path / name).touch()
    left_out = {Path("before"): "kept"}
    assert list_pictures(tmp_path, left_out=left_out) == [tmp_path / "a.png"]
    photo = tmp_path / "IMG_1.HEIC"
    assert list(left_out) == [Path("before"), photo, tmp_path / "more.dng"]
    assert left_out[photo] == f"{photo}: of a format that faststy does not read"
    (tmp_path / "a.png").unlink()
    with pytest.raises(FaststyError, match=r"IMG_1\.HEIC: of a format that faststy does not read"):
        list_pictures(tmp_path)


def test_list_pictures_of_nothing(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(FaststyError, match="no pictures in this folder"):
        list_pictures(tmp_path)
    with pytest.raises(FaststyError, match=r"missing: .*No such file"):
        list_pictures(tmp_path / "missing")
    with pytest.raises(FaststyError, match="not a folder"):
        list_pictures(tmp_path / "notes.txt")


def test_scale_down():
    image = Image.fromarray(noise(40, 60, 3))
    assert scale_down(image, 20).size == (30, 20)
    assert scale_down(image, 41) is image
    assert scale_down(image, None) is image
    assert scale_down(Image.new("RGB", (1000, 1)), 1).size == (1000, 1)


def test_scaled_down_without_the_colours_that_nobody_sees():
    alpha = Image.new("L", (80, 60))
    ImageDraw.Draw(alpha).ellipse((11, 9, 62, 51), fill=255)
    rgb = alpha.convert("RGB")  # what nobody sees is black
    picture = Picture(rgb, alpha, name="a disc")
    small = picture.scaled_down(15)
    assert (small.size, small.name) == ((20, 15), "a disc")
    seen = np.asarray(small.alpha)
    assert np.sum((seen > 20) & (seen < 250)) > 20
    assert np.asarray(small.rgb)[seen > 20].min() == 255
    assert picture.scaled_down(61) is picture
    assert picture.scaled_down(None) is picture
    opaque = Picture(rgb).scaled_down(15)
    assert opaque.alpha is None
    np.testing.assert_array_equal(np.asarray(opaque.rgb), np.asarray(scale_down(rgb, 15)))


def test_a_transparent_picture_is_not_copied_where_nothing_is_scaled(monkeypatch):
    picture = Picture(Image.new("RGB", (80, 60)), Image.new("L", (80, 60)))
    monkeypatch.setattr(Image.Image, "copy", lambda image: pytest.fail("copied"))
    assert picture.scaled_down(60) is picture
    assert picture.scaled_down(None) is picture


def test_alpha_is_as_large_as_the_picture():
    picture = Picture(Image.new("RGB", (80, 60)), Image.new("L", (80, 60)))
    with pytest.raises(ValueError, match=r"alpha is \(80, 60\), rgb \(40, 30\)"):
        picture.with_rgb(Image.new("RGB", (40, 30)))


def test_heat_map_grows_brighter():
    ramp = heat_map(np.linspace(0, 1, 256)[None])
    light = np.asarray(ramp.convert("L"))[0].astype(int)
    assert (np.diff(light) >= 0).all()
    assert light[0] < 5
    assert light[-1] > 240
    assert heat_map(np.array([[np.nan, 2.0, -1.0]])).getpixel((1, 0)) == (252, 253, 191)


def test_the_size_is_known_before_anything_is_decoded(tmp_path, monkeypatch):
    Image.new("L", (70, 30)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_text("hello")
    assert pictures.size_of(tmp_path / "a.png") == (70, 30)
    assert pictures.size_of(tmp_path / "b.png") is None
    assert pictures.size_of(tmp_path / "none.png") is None
    stream = io.BytesIO((tmp_path / "a.png").read_bytes())
    assert pictures.size_of(stream) == (70, 30)
    assert stream.tell() == 0
    monkeypatch.setattr(pictures, "PIXEL_LIMIT", 2000)
    assert pictures.size_of(tmp_path / "a.png") is None


def planes(bits):
    """A TIFF of 4 x 2 px with a plane per colour, not compressed."""
    values = np.arange(24).astype(f"<u{bits // 8}").tobytes()
    where, entries = 8 + 2 + 9 * 12 + 4, []
    lists = struct.pack("<3H", bits, bits, bits)
    strips = [where + 6 + 24 + i * len(values) // 3 for i in range(3)]
    lists += struct.pack("<3I", *strips) + struct.pack("<3I", *[len(values) // 3] * 3)
    for tag, kind, count, value in (
        (256, 3, 1, 4),
        (257, 3, 1, 2),
        (258, 3, 3, where),
        (259, 3, 1, 1),
        (262, 3, 1, 2),
        (273, 4, 3, where + 6),
        (277, 3, 1, 3),
        (279, 4, 3, where + 18),
        (284, 3, 1, 2),
    ):
        entries.append(struct.pack("<HHII", tag, kind, count, value))
    return b"II*\0" + struct.pack("<IH", 8, 9) + b"".join(entries) + bytes(4) + lists + values


def test_a_tiff_that_pillow_takes_for_another_picture_is_refused():
    with pytest.raises(FaststyError, match="separate planes of 16 bits"):
        read_picture(planes(16))
    pixels = np.asarray(read_picture(planes(8)).rgb)
    np.testing.assert_array_equal(pixels, np.arange(24).reshape(3, 2, 4).transpose(1, 2, 0))


def test_on_white_is_what_is_seen_on_paper():
    rgb = Image.new("RGB", (2, 1), (200, 0, 100))
    alpha = Image.new("L", (2, 1), 0)
    alpha.putpixel((1, 0), 255)
    seen = Picture(rgb, alpha).on_white()
    assert seen.alpha is None
    assert np.asarray(seen.rgb)[0].tolist() == [[255, 255, 255], [200, 0, 100]]
    opaque = Picture(rgb)
    assert opaque.on_white() is opaque


def test_a_style_is_called_as_it_is_named(tmp_path):
    (tmp_path / "J.M.W. Turner").mkdir()
    (tmp_path / "SHA256-1.jpg").touch()
    (tmp_path / "a, b.jpg").symlink_to("SHA256-1.jpg")
    names = ("J.M.W. Turner", "a, b.jpg", "SHA256-1.jpg")
    assert [style_name(tmp_path / name) for name in names] == ["J.M.W. Turner", "a_ b", "SHA256-1"]
