"""The stylizer's dials do what they say, and nothing to the photo that they do not say."""

import tracemalloc
from dataclasses import asdict
from typing import get_type_hints

import numpy as np
import pytest
import torch
from PIL import Image

from faststy.errors import FaststyError
from faststy.model_file import Model, ModelInfo, save_model
from faststy.nn.generator import Generator, GeneratorConfig
from faststy.nn.plain import PlainGenerator
from faststy.nn.repairer import Repairer
from faststy.ops.reference import LUMA
from faststy.pictures import Picture, read_picture
from faststy.stylization import tiles
from faststy.stylization.realtime import Dials
from faststy.stylization.stylizer import (
    Stylizer,
    blend,
    mixing_weights,
    with_colors_of,
)


def make_model(repairer=True):
    """A tiny model of random weights whose styles and repairs are far from trivial."""
    torch.manual_seed(1)
    config = GeneratorConfig(channels=8, blocks=1, styles=2)
    generator, repair = Generator(config), Repairer(8)
    with torch.no_grad():
        for parameter in [
            *generator.parameters(),
            *repair.head.parameters(),
        ]:
            parameter.add_(torch.randn_like(parameter) * 0.1)
    info = ModelInfo(["rain", "starry night"], asdict(config), {"channels": 8})
    if not repairer:
        return Model(generator.eval(), None, ModelInfo(info.styles, info.generator))
    return Model(generator.eval(), repair.eval(), info)


@pytest.fixture(scope="module")
def stylizer():
    return Stylizer(make_model(), "cpu")


@pytest.fixture(scope="module")
def photo():
    """Smooth shapes with some noise, uint8 [45, 62, 3]."""
    y, x = np.mgrid[:45, :62]
    waves = np.stack([np.sin(x / 7), np.cos(y / 5), np.sin((x + y) / 9)], axis=-1)
    noise = np.random.default_rng(0).normal(0, 8, waves.shape)
    return np.clip(128 + 90 * waves + noise, 0, 255).astype(np.uint8)


def pixels(image):
    return np.asarray(image.convert("RGB")).astype(int)


def as_tensor(array):
    return torch.from_numpy(array).permute(2, 0, 1)[None].float() / 255


def test_loads_and_paints_with_the_nets_of_the_file(tmp_path, photo):
    model = make_model()
    save_model(model, tmp_path / "m.safetensors")
    stylizer = Stylizer.load(tmp_path / "m.safetensors")
    assert stylizer.styles == ["rain", "starry night"]
    x = as_tensor(photo)
    with torch.no_grad():
        pure = model.generator.cpu()(x, torch.tensor([0.0, 1.0]))
        pure = (pure.clamp(0, 1) * 255).round() / 255  # the repairer is shown a frame
        lost, residual = model.repairer.cpu()(pure, x)
    for repair in (0.0, 0.4, 1.0):
        expected = (pure + repair * lost * residual).clamp(0, 1)[0].permute(1, 2, 0) * 255
        painting = Stylizer(model, "cpu").paint(photo, style="starry night", repair=repair)
        assert np.abs(pixels(painting.picture.rgb) - expected.numpy()).max() <= 0.51
        np.testing.assert_allclose(painting.lost_content, lost[0, 0], atol=1e-5)
        assert painting.style == {"starry night": 1.0}
    default = stylizer(photo, style="starry night")
    assert np.abs(pixels(default) - expected.numpy()).max() <= 0.51  # all content back


def test_every_kind_of_picture_gives_the_same_painting(tmp_path, stylizer, photo):
    image = Image.fromarray(photo)
    image.save(tmp_path / "a.png")
    chw = torch.from_numpy(photo).permute(2, 0, 1)
    expected = pixels(stylizer(photo))
    assert np.abs(expected - photo).mean() > 10
    for source in (
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
        (tmp_path / "a.png").read_bytes(),
        image,
        read_picture(photo),
        chw,
        chw[None],
        chw.float() / 255,
        (chw.double() / 255)[None],
    ):
        np.testing.assert_array_equal(pixels(stylizer(source)), expected)


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (9, 2), (33, 20)])
def test_any_size(stylizer, shape):
    small = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    painted = stylizer(small, strength=0.5, keep_color=True, mask=small)
    assert painted.size == shape[::-1]


def test_what_the_photo_carries_is_kept(stylizer, photo):
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "Camera", 6
    alpha = np.random.default_rng(0).integers(1, 256, photo.shape[:2], np.uint8)
    image = Image.fromarray(np.dstack([photo, alpha]))
    image.info.update(icc_profile=bytes(16) + b"RGB " + bytes(108), exif=exif.tobytes())
    painted = stylizer(image)
    assert painted.mode == "RGBA"
    assert painted.size == (45, 62)  # upright
    np.testing.assert_array_equal(np.asarray(painted)[..., 3], np.rot90(alpha, -1))
    assert painted.info["icc_profile"] == image.info["icc_profile"]
    assert painted.getexif()[0x010F] == "Camera"
    assert 0x0112 not in painted.getexif()


@pytest.mark.parametrize("name", ["painted.jpg", "painted.png"])
def test_a_painting_is_saved_whole(stylizer, photo, tmp_path, name, dim_profile):
    exif = Image.Exif()
    exif[0x010F] = "Camera"
    image = Image.fromarray(np.dstack([photo, photo[..., 0]]))
    image.info.update(icc_profile=dim_profile, exif=exif.tobytes())
    stylizer.paint(image).save(tmp_path / name)
    with Image.open(tmp_path / name) as saved:
        assert saved.mode == ("RGB" if name.endswith("jpg") else "RGBA")
        assert saved.info["icc_profile"] == dim_profile
        assert saved.getexif()[0x010F] == "Camera"


def test_invisible_colours_do_not_matter(stylizer, photo):
    alpha = np.full(photo.shape[:2], 255, np.uint8)
    alpha[:, 30:] = 0
    other = photo.copy()
    other[:, 30:] = 7
    one, two = (stylizer(np.dstack([p, alpha])) for p in (photo, other))
    np.testing.assert_array_equal(np.asarray(one), np.asarray(two))


def test_filling_what_nobody_sees_takes_no_index_of_every_pixel():
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 256, (300, 400, 3), np.uint8)
    alpha = rng.integers(0, 3, (300, 400), np.uint8)
    photo = Picture(Image.fromarray(rgb), Image.fromarray(alpha))
    tracemalloc.start()
    filled = photo.filled().rgb
    _, most = tracemalloc.get_traced_memory()  # of Python and NumPy; Pillow holds the picture
    tracemalloc.stop()
    assert most < 300 * 400
    rgb[alpha == 0] = rgb[alpha != 0].mean(axis=0).round()
    np.testing.assert_array_equal(np.asarray(filled), rgb)


def test_strength_goes_from_the_photo_to_the_painting(stylizer, photo):
    np.testing.assert_array_equal(pixels(stylizer(photo, strength=0)), photo)
    full = pixels(stylizer(photo, strength=1))
    far = [
        np.abs(pixels(stylizer(photo, strength=s)) - photo).mean() for s in (0.05, 0.3, 0.6, 0.95)
    ]
    near = [np.abs(pixels(stylizer(photo, strength=s)) - full).mean() for s in (0.05, 0.6, 0.999)]
    assert far == sorted(far)
    assert near == sorted(near, reverse=True)
    assert far[0] < 0.1 * far[-1]
    assert near[-1] < 1


def test_blend_shows_one_shape_where_a_fade_shows_two():
    stripes = (torch.arange(64) // 2 % 2).float() - 0.5
    strong, weak = 0.5 + 0.6 * stripes, 0.5 + 0.15 * stripes
    photo = strong.expand(1, 3, 64, 64)  # strong upright stripes under weak lying ones
    painted = weak[:, None].expand(1, 3, 64, 64)
    inner = slice(8, 56)
    for first, second, strength in [(photo, painted, 0.4), (painted, photo, 0.6)]:
        ghosts = []
        for got in (blend(first, second, strength), torch.lerp(first, second, strength)):
            got = got[..., inner, inner]
            upright, lying = got.mean(-2).std(), got.mean(-1).std()
            ghosts.append(lying / upright)
        assert ghosts[0] < 0.4 * ghosts[1]


def test_blend_is_a_fade_where_nothing_competes():
    torch.manual_seed(0)
    flat, strokes = torch.full((1, 3, 33, 20), 0.4), torch.rand(1, 3, 33, 20)
    torch.testing.assert_close(
        blend(flat, strokes, 0.25), torch.lerp(flat, strokes, 0.25), atol=2e-3, rtol=0
    )
    torch.testing.assert_close(blend(flat, flat + 0.4, 0.25), flat + 0.1)
    torch.testing.assert_close(blend(strokes, strokes.clone(), 0.3), strokes)


def test_keep_color_takes_light_from_the_painting_and_hue_from_the_photo(stylizer, photo):
    x, painted = as_tensor(photo), as_tensor(np.ascontiguousarray(photo[::-1]))
    kept = with_colors_of(x, painted)
    weights = torch.tensor(LUMA).view(1, 3, 1, 1)

    def light(t):
        return (t * weights).sum(1, keepdim=True)

    torch.testing.assert_close(light(kept), light(painted), atol=1e-5, rtol=0)
    before, after = x - light(x), kept - light(kept)
    share = (after * before).sum(1) / before.square().sum(1).clamp_min(1e-9)
    assert share.min() >= -1e-4
    assert share.max() <= 1 + 1e-4
    torch.testing.assert_close(after, share[:, None] * before, atol=1e-4, rtol=0)  # the same hue
    assert share.mean() > 0.5
    grey = np.repeat(photo[..., :1], 3, axis=-1)
    got = pixels(stylizer(grey, keep_color=True))
    assert np.ptp(got, axis=-1).max() == 0


def test_mask_limits_where(stylizer, photo):
    full = pixels(stylizer(photo))
    mask = np.zeros((10, 20), np.uint8)  # another size than the photo's
    mask[:, 10:] = 255
    got = pixels(stylizer(photo, mask=mask))
    np.testing.assert_array_equal(got[:, :20], photo[:, :20])
    np.testing.assert_array_equal(got[:, 42:], full[:, 42:])
    between = np.full((4, 4), 51, np.uint8)
    expected = photo + 0.2 * (full - photo.astype(int))
    assert np.abs(pixels(stylizer(photo, mask=between)) - expected).max() <= 1
    see_through = np.dstack([np.full((9, 9, 3), 255, np.uint8), np.zeros((9, 9), np.uint8)])
    np.testing.assert_array_equal(pixels(stylizer(photo, mask=see_through)), photo)


def test_mask_edges_are_soft(stylizer):
    grey = np.full((512, 512, 3), 90, np.uint8)
    mask = np.zeros((512, 512), np.uint8)
    mask[:, 256:] = 255
    full = pixels(stylizer(grey))[256]
    got = pixels(stylizer(grey, mask=mask))[256]
    share = (got - 90).sum(1) / (full - 90).sum(1)
    assert 0.05 < share[254] < share[256] < share[258] < 0.95


def test_size_scales_down_and_never_up(stylizer, photo):
    alpha = np.full(photo.shape[:2], 200, np.uint8)
    small = stylizer(np.dstack([photo, alpha]), size=15)
    assert small.size == (21, 15)
    assert small.getchannel("A").getextrema() == (200, 200)
    assert stylizer(photo, size=4000).size == (62, 45)


def test_styles_mix(stylizer, photo):
    one, two = (pixels(stylizer(photo, style=name)) for name in stylizer.styles)
    assert np.abs(one - two).mean() > 1
    for mixture in ("rain:1,starry night:3", {"rain": 2, "starry night": 6}):
        mixed = stylizer.paint(photo, style=mixture)
        assert mixed.style == {"rain": 0.25, "starry night": 0.75}
        x = as_tensor(photo)
        with torch.no_grad():
            pure = stylizer.model.generator(x, torch.tensor([0.25, 0.75]))
        zero_repair = stylizer(photo, style=mixture, repair=0)
        expected = pure[0].permute(1, 2, 0).numpy() * 255
        assert np.abs(pixels(zero_repair) - expected).max() <= 0.51
    np.testing.assert_array_equal(pixels(stylizer(photo)), one)


def test_mixing_weights():
    names = ["a", "b:1,c", "d"]
    assert mixing_weights(None, names) == {"a": 1.0}
    assert mixing_weights("b:1,c", names) == {"b:1,c": 1.0}  # a whole name comes first
    assert mixing_weights("a, d", names) == {"a": 0.5, "d": 0.5}
    assert mixing_weights("a:1,d:0", names) == {"a": 1.0}
    assert mixing_weights("a:1,d:2,a:1", names) == {"a": 0.5, "d": 0.5}
    names = ["stained_glass", "the scream", "the_scream"]  # as on a sheet, unless one is called so
    assert mixing_weights("stained glass", names) == {"stained_glass": 1.0}
    assert mixing_weights("stained glass:1,the scream:3", names) == {
        "stained_glass": 0.25,
        "the scream": 0.75,
    }


@pytest.mark.parametrize(
    ("style", "message"),
    [
        ("stary night", "unknown style 'stary night': did you mean 'starry night'?.*rain, starry"),
        ("zzz", "unknown style 'zzz': the model has rain, starry night"),
        ("rain:much", "weight 'much' of 'rain' is no number"),
        ("rain:-1", "0 or more"),
        ("rain:nan", "0 or more"),
        ("rain:inf", "0 or more"),
        ("rain:inf,starry night:-inf", "0 or more"),
        ("rain:1e308,starry night:1e308", "0 or more"),  # their sum is no number
        ("rain:0", "not all 0"),
        ({}, "not all 0"),
        ({"rain": "0.5"}, "weight '0.5' of 'rain' is no number"),
        ({3: 1.0}, "unknown style '3'"),
        ("", "unknown style ''"),
    ],
)
def test_wrong_styles(style, message):
    with pytest.raises(FaststyError, match=message):
        mixing_weights(style, ["rain", "starry night"])


@pytest.mark.parametrize("style", [["rain"], ("rain",), 3])
def test_styles_of_other_types(style):
    with pytest.raises(TypeError, match=f"style is a {type(style).__name__}; expected a name"):
        mixing_weights(style, ["rain", "starry night"])


@pytest.mark.parametrize("device", ["meta", torch.device("cuda:99")])
def test_a_device_that_cannot_be_used(device):
    with pytest.raises(FaststyError, match=f"device '{device}' cannot be used"):
        Stylizer.load(device=device)
    assert Stylizer(make_model(), "auto").device.type in ("cpu", "cuda")


def test_a_model_without_a_repairer(photo):
    stylizer = Stylizer(make_model(repairer=False), "cpu")
    painting = stylizer.paint(photo)
    assert painting.lost_content is None
    np.testing.assert_array_equal(
        pixels(painting.picture.rgb), pixels(Stylizer(make_model(), "cpu")(photo, repair=0))
    )
    with pytest.raises(FaststyError, match="without a repairer"):
        stylizer(photo, repair=0.5)


@pytest.mark.parametrize("annotated", [Stylizer.__call__, Stylizer.paint, Dials])
def test_types_are_there_for_programs(annotated):
    assert "style" in get_type_hints(annotated)


def test_arguments_out_of_range(stylizer, photo):
    for options, message in [
        ({"strength": 1.5}, r"strength is 1\.5; expected 0 to 1"),
        ({"repair": -1}, "repair is -1; expected 0 to 1"),
        ({"size": 0}, "size is 0"),
        ({"size": 1.5}, r"size is 1\.5; expected a whole number"),
        ({"memory": 0}, "memory is 0; expected at least 1 byte"),
        ({"memory": -1}, "memory is -1"),
        ({"mask": np.zeros((4, 4))}, "the mask is float64; expected uint8"),
        ({"mask": photo[..., :2]}, r"the mask has shape \[45, 62, 2\]"),
    ]:
        with pytest.raises(ValueError, match=message):
            stylizer.paint(photo, **options)
    with pytest.raises(TypeError, match="the mask is a list; expected a path"):
        stylizer(photo, mask=[])
    with pytest.raises(TypeError, match="the mask is a Tensor; expected a path"):
        stylizer(photo, mask=torch.zeros(3, 4, 4))
    with pytest.raises(FaststyError, match=r"none\.png: cannot be read"):
        stylizer(photo, mask="none.png")
    for tensor, message in [
        (torch.zeros(1, 4, 5), r"shape \[1, 4, 5\]; expected \[3, H, W\]"),
        (torch.zeros(2, 3, 4, 5), r"shape \[2, 3, 4, 5\]"),
        (torch.zeros(3, 4, 5, dtype=torch.int64), "int64; expected uint8"),
        (torch.linspace(0, 255, 60).view(3, 4, 5), r"values in 0\.\.\.255; expected 0\.\.\.1"),
        (torch.linspace(-1, 1, 60).view(3, 4, 5), r"values in -1\.\.\.1"),
        (torch.full((3, 4, 5), torch.nan), r"values in nan"),
    ]:
        with pytest.raises(ValueError, match=message):
            stylizer(tensor)


def test_too_little_memory_is_one_sentence(stylizer, photo, monkeypatch):
    def fail(message):
        def forward(*_, **__):
            raise RuntimeError(message)

        monkeypatch.setattr(PlainGenerator, "paint", forward)
        monkeypatch.setattr(tiles, "paint_tiles", forward)  # that is tried then

    fail("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")
    with pytest.raises(FaststyError, match="not enough memory to paint 62 x 45; use a smaller"):
        stylizer(photo)
    fail("a mistake of ours")
    with pytest.raises(RuntimeError, match="a mistake of ours"):
        stylizer(photo)
