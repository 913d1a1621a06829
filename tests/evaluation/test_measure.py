"""Evaluations: the numbers against their formulas, the matching of styles, and the page."""

import math
import re
from copy import deepcopy
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from faststy.errors import FaststyError
from faststy.evaluation import Evaluation, evaluate, match_styles, measure, style_grams
from faststy.evaluation.checkerboard import checkerboard
from faststy.evaluation.distances import content_distance, style_distance
from faststy.evaluation.measure import Moving
from faststy.evaluation.page import HEAD, evaluation_page, table
from faststy.evaluation.stability import Motion
from faststy.model_file import Model, ModelInfo
from faststy.nn.encoder import Encoder
from faststy.nn.generator import Generator, GeneratorConfig
from faststy.nn.lost_content import CONTENT_TAP, lost_content
from faststy.nn.repairer import Repairer
from faststy.pictures import read_picture, style_sample
from faststy.stylization.realtime import FramePainter
from faststy.stylization.stylizer import Stylizer
from faststy.tensors import to_tensor
from faststy.training.dataset import Pictures
from faststy.training.step import StyleTarget

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def encoder():
    return Encoder()


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = GeneratorConfig(channels=8, blocks=1, styles=2)
    repairer = Repairer(8)
    torch.nn.init.normal_(repairer.head.weight, std=0.2)
    generator = Generator(config)
    with torch.no_grad():  # a new net paints alike in all its styles
        for name, weight in generator.named_parameters():
            if "norm" in name:
                weight.add_(torch.randn_like(weight), alpha=0.3)
    for net in (generator, repairer):
        net.eval().requires_grad_(False)
    return Model(generator, repairer, ModelInfo(["rain", "night"], asdict(config), {"channels": 8}))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """a.png, b.png (smaller), style.png and a broken file."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for name, size in (("a.png", (72, 96)), ("b.png", (40, 48)), ("style.png", (64, 64))):
        coarse = rng.integers(0, 256, (size[0] // 8, size[1] // 8, 3), np.uint8)
        Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC).save(folder / name)
    (folder / "broken.jpg").write_bytes(b"")
    return folder


@pytest.fixture(scope="module")
def result(model, folder, encoder):
    photos = [folder / name for name in ("a.png", "broken.jpg", "b.png")]
    grams = style_grams(folder / "style.png", 64, encoder, CPU)
    return evaluate(model, photos, {"rain": grams, "night": grams}, encoder, CPU)


def test_every_photo_in_every_style_and_the_unreadable_ones(result, folder):
    found = [(entry.photo.name, entry.style) for entry in result.entries]
    assert found == [(p, s) for p in ("a.png", "b.png") for s in ("rain", "night")]
    assert list(result.skipped) == [folder / "broken.jpg"]
    assert [entry.size for entry in result.entries[::2]] == [(96, 72), (48, 40)]


def test_scores_are_what_their_formulas_say(result, model, folder, encoder):
    photo = to_tensor(read_picture(folder / "a.png").rgb)
    style = to_tensor(read_picture(folder / "style.png").rgb)
    painted, repaired, other = (
        to_tensor(Stylizer(model, CPU)(folder / "a.png", style=style, repair=repair))
        for style, repair in (("night", 0), ("night", 1), ("rain", 0))
    )
    assert not torch.equal(painted, other)
    entry = result.entries[1]
    f = encoder(photo)
    lost = lost_content(encoder(painted), f).double()
    for picture, scores in ((painted, entry.painted), (repaired, entry.repaired)):
        g = encoder(picture)
        assert scores.content == pytest.approx(content_distance(g, f)[0, CONTENT_TAP].item())
        expected = style_distance(g, encoder(style)).mean().item()
        assert scores.style == pytest.approx(expected, rel=1e-4)
        a, b = (normalized(taps[CONTENT_TAP].double()) for taps in (g, f))
        for weight, score in ((lost, scores.inside), (1 - lost, scores.outside)):
            expected = ((weight * (a - b) ** 2).sum() / (weight * b**2).sum()).item()
            assert score == pytest.approx(expected, rel=1e-3)
        rise = {n: s - checkerboard(photo[0])[n] for n, s in checkerboard(picture[0]).items()}
        assert scores.checkerboard == pytest.approx(rise)
    assert entry.final is entry.repaired


def test_paintings_are_those_of_stylize_with_its_strokes(model, folder, encoder, monkeypatch):
    monkeypatch.setattr("faststy.stylization.strokes.READABLE", 40)  # px: less than a.png has
    grams = style_grams(folder / "style.png", 64, encoder, CPU)
    entry = evaluate(model, [folder / "a.png"], {"rain": grams}, encoder, CPU).entries[0]
    f = encoder(to_tensor(read_picture(folder / "a.png").rgb))
    for repair, scores in ((0, entry.painted), (1, entry.repaired)):
        small, large = (
            encoder(to_tensor(Stylizer(model, CPU)(folder / "a.png", repair=repair, stroke=stroke)))
            for stroke in (1, None)
        )
        distance = content_distance(large, f)[0, CONTENT_TAP].item()
        assert scores.content == pytest.approx(distance)
        assert distance != pytest.approx(content_distance(small, f)[0, CONTENT_TAP].item())


def test_colours_are_judged_as_they_are_seen(model, folder, encoder, tmp_path):
    """The numbers of a photo with a profile of its own are painted, and those of sRGB compared."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, blue = profile.find(b"rXYZ"), profile.find(b"bXYZ")  # in its table
    profile[red : red + 4], profile[blue : blue + 4] = b"bXYZ", b"rXYZ"
    Image.open(folder / "a.png").save(tmp_path / "a.png", icc_profile=bytes(profile))
    grams = style_grams(folder / "style.png", 64, encoder, CPU)
    entry = evaluate(model, [tmp_path / "a.png"], {"rain": grams}, encoder, CPU).entries[0]
    painting = Stylizer(model, CPU).paint(tmp_path / "a.png").picture
    taps = [
        encoder(to_tensor(picture.in_srgb().rgb))
        for picture in (painting, read_picture(tmp_path / "a.png"))
    ]
    assert entry.final.content == pytest.approx(content_distance(*taps)[0, CONTENT_TAP].item())
    assert painting.in_srgb().rgb != painting.rgb


@pytest.mark.parametrize("size", [None, 40])
def test_transparent_photos_are_judged_by_what_is_seen(model, folder, encoder, tmp_path, size):
    photo = Image.open(folder / "a.png")
    grams = style_grams(folder / "style.png", 64, encoder, CPU)
    hidden = np.zeros((72, 96), bool)
    hidden[:, 40:] = True
    found = []
    for colour in ((0, 0, 0), (250, 20, 90)):
        pixels = np.array(photo)
        pixels[hidden] = colour
        clear = np.dstack([pixels, np.where(hidden, 0, 255).astype(np.uint8)])
        Image.fromarray(clear).save(tmp_path / "clear.png")
        result = evaluate(model, [tmp_path / "clear.png"], {"rain": grams}, encoder, CPU, size=size)
        found.append(replace(result.entries[0], seconds=0.0))
    assert found[0] == found[1]
    assert found[0].size == ((96, 72) if size is None else (53, 40))


@pytest.mark.parametrize("height", [71, 96, 135])
def test_the_encoder_sees_bands(encoder, monkeypatch, height):
    x = torch.rand(1, 3, height, 90).to(memory_format=torch.channels_last)
    seen = []
    monkeypatch.setattr(measure, "BAND", 32)
    content, grams = measure._seen(x, lambda band: seen.append(band.shape[2]) or encoder(band))
    assert len(seen) == height // 32
    assert max(seen) <= 2 * 32 + 2 * measure.REACH
    taps = encoder(x)
    torch.testing.assert_close(content, taps[CONTENT_TAP])
    for gram, tap in zip(grams, taps, strict=True):
        flat = tap.double().flatten(2)
        torch.testing.assert_close(gram, (flat @ flat.mT / tap[0].numel()).float())


def normalized(x):
    variance = x.var((2, 3), unbiased=False, keepdim=True)
    return (x - x.mean((2, 3), keepdim=True)) / (variance + 1e-5).sqrt()


def test_means_and_speed(result):
    mean = result.mean("rain", repaired=True)
    chosen = [entry.repaired for entry in result.entries if entry.style == "rain"]
    assert mean.content == pytest.approx(fmean(scores.content for scores in chosen))
    # The second photo is too small for a spectrum, and counts for the rest.
    assert [bool(scores.checkerboard) for scores in chosen] == [True, False]
    assert mean.checkerboard == chosen[0].checkerboard
    everything = result.mean(repaired=False)
    assert everything.style == pytest.approx(fmean(e.painted.style for e in result.entries))
    seconds = sum(entry.seconds for entry in result.entries)
    assert result.images_per_second == pytest.approx(4 / seconds)
    pixels = 2 * (96 * 72 + 48 * 40)
    assert result.megapixels_per_second == pytest.approx(pixels / 1e6 / seconds)


def test_the_seconds_are_those_of_stylize(model, folder, encoder, monkeypatch):
    now, paint = [0.0], Stylizer.paint

    def slow(stylizer, photo, *, repair=None, **dials):
        now[0] += 1 if repair is None else 10  # as by default, or for the comparison
        return paint(stylizer, photo, repair=repair, **dials)

    monkeypatch.setattr(measure.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(Stylizer, "paint", slow)
    grams = style_grams(folder / "style.png", 64, encoder, CPU)
    result = evaluate(model, [folder / "a.png"], {"rain": grams}, encoder, CPU)
    assert [entry.seconds for entry in result.entries] == [1]


def test_motion_is_what_does_not_move_with_the_photo(result, model):
    assert set(result.motion) == {(s, r) for s in ("rain", "night") for r in (False, True)}
    assert all(len(errors) == 2 for errors in result.motion.values())  # photos
    both = result.motion["rain", True] + result.motion["night", True]
    assert result.mean_motion(repaired=True) == pytest.approx(fmean(both))
    rng = np.random.default_rng(0)
    photo = Image.fromarray(rng.integers(0, 256, (9, 12, 3), np.uint8))
    photo = photo.resize((120, 90), Image.Resampling.BICUBIC)

    def painter(repair, **dials):  # as it is, and as something else each time
        return lambda frame: rng.integers(0, 256, frame.shape, np.uint8) if repair else frame

    stylizer = SimpleNamespace(model=model, painter=painter)
    errors = Moving(photo).errors(stylizer, "rain")
    assert errors[False] < 3  # rounding to levels, and sampling between pixels
    assert errors[True] > 100  # of two unrelated pictures: √2, less what sampling smooths


def test_what_is_plain_has_no_motion(model):
    plain = np.full((96, 128, 3), 90, np.uint8)
    assert Moving(Image.fromarray(plain)).errors(Stylizer(model, "cpu"), "rain") == {}


def test_motion_that_cannot_be_followed_is_a_dash(model, folder, encoder, monkeypatch):
    monkeypatch.setattr("faststy.evaluation.measure.PAN", Motion((500.0, 0.0)))
    grams = style_grams(folder / "style.png", 64, encoder, CPU)
    result = evaluate(model, [folder / "a.png"], {"rain": grams}, encoder, CPU)
    assert result.mean_motion(repaired=True) is None
    assert [row[-1] for row in table(result)] == ["–", "–"]


def out_of_memory():
    """As torch says it: of the CPU's memory, oneDNN's, and a GPU's."""
    text = (
        "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
    )
    onednn = RuntimeError("could not create a primitive")
    return RuntimeError(text), onednn, torch.OutOfMemoryError("CUDA out of memory"), MemoryError()


@pytest.mark.parametrize("error", out_of_memory(), ids=lambda error: type(error).__name__)
def test_a_photo_that_memory_does_not_hold_is_skipped(model, folder, encoder, monkeypatch, error):
    paint = Stylizer.paint

    def painted(stylizer, photo, *, style, **dials):
        if photo.size[0] == 96 and style == "night":  # a.png, half of it done
            raise error
        return paint(stylizer, photo, style=style, **dials)

    monkeypatch.setattr(Stylizer, "paint", painted)
    a, b = folder / "a.png", folder / "b.png"
    grams = style_grams(folder / "style.png", 64, encoder, CPU)
    styles = {"rain": grams, "night": grams}
    result = evaluate(model, [a, b], styles, encoder, CPU)
    assert [(entry.photo, entry.style) for entry in result.entries] == [(b, "rain"), (b, "night")]
    assert [len(errors) for errors in result.motion.values()] == [1] * 4
    sentence = f"{a}: not enough memory to judge 96 x 72; use a smaller size"
    assert result.skipped == {a: sentence}
    with pytest.raises(FaststyError, match=re.escape(sentence)):
        evaluate(model, [a], styles, encoder, CPU)


def test_a_photo_that_memory_does_not_suffice_to_paint_is_skipped(
    model, folder, encoder, monkeypatch
):
    def full(painter, photo):
        raise MemoryError

    monkeypatch.setattr(FramePainter, "paint_picture", full)
    monkeypatch.setattr(FramePainter, "__call__", full)
    grams = style_grams(folder / "style.png", 64, encoder, CPU)
    sentence = f"{folder / 'a.png'}: not enough memory to paint 96 x 72; use a smaller size"
    with pytest.raises(FaststyError, match=re.escape(sentence)):
        evaluate(model, [folder / "a.png"], {"rain": grams}, encoder, CPU)


def test_a_photo_that_would_take_more_memory_than_there_is_is_skipped_before(
    model, folder, encoder, monkeypatch
):
    def painted(stylizer, photo, **dials):
        assert photo.size == (48, 40)
        return paint(stylizer, photo, **dials)

    paint, pixels = Stylizer.paint, 48 * 40
    free = 400 * pixels  # bytes: for b.png it suffices
    monkeypatch.setattr("faststy.stylization.tiles.available_memory", lambda: free)
    monkeypatch.setattr(Stylizer, "paint", painted)
    a, b = folder / "a.png", folder / "b.png"
    grams = style_grams(folder / "style.png", 64, encoder, CPU)
    result = evaluate(model, [a, b], {"rain": grams}, encoder, CPU)
    assert result.skipped == {a: f"{a}: not enough memory to judge 96 x 72; use a smaller size"}
    assert [entry.photo for entry in result.entries] == [b]


@pytest.mark.parametrize("error", out_of_memory(), ids=lambda error: type(error).__name__)
def test_a_style_that_memory_does_not_hold_is_skipped(folder, encoder, tmp_path, error):
    for i, name in enumerate(("a.png", "b.png")):
        (tmp_path / f"{i}.png").write_bytes((folder / name).read_bytes())

    def judge(x):
        if x.shape[-1] == 96:
            raise error
        return encoder(x)

    sentence = "0.png: not enough memory to judge by 96 x 72; use a smaller --style-size"
    with pytest.raises(FaststyError, match=sentence):
        style_grams(tmp_path / "0.png", 80, judge, CPU)
    skipped = {}
    grams = style_grams(tmp_path, 80, judge, CPU, skipped)
    assert all(map(torch.equal, grams, style_grams(tmp_path / "1.png", 80, encoder, CPU)))
    assert sentence in skipped[tmp_path / "0.png"]


def test_other_errors_of_torch_are_no_lack_of_memory(model, folder, encoder, monkeypatch):
    def painted(stylizer, photo, **dials):
        raise RuntimeError("a bug")

    monkeypatch.setattr(Stylizer, "paint", painted)
    grams = style_grams(folder / "style.png", 64, encoder, CPU)
    with pytest.raises(RuntimeError, match="a bug"):
        evaluate(model, [folder / "a.png"], {"rain": grams}, encoder, CPU)


@pytest.mark.parametrize("part", ["generator", "repairer"])
def test_a_painting_that_is_not_finite_is_an_error(model, folder, encoder, part):
    broken = deepcopy(model)
    next(getattr(broken, part).parameters()).fill_(math.nan)
    grams = style_grams(folder / "style.png", 64, encoder, CPU)
    with pytest.raises(
        FaststyError, match=r"a\.png: its painting in rain is not finite; the model"
    ):
        evaluate(broken, [folder / "a.png"], {"rain": grams}, encoder, CPU)


def test_a_smaller_size_progress_and_a_model_without_a_repairer(model, folder, encoder):
    told = []
    result = evaluate(
        replace(model, repairer=None),
        [folder / "a.png"],
        {"rain": style_grams(folder / "style.png", 32, encoder, CPU)},
        encoder,
        CPU,
        size=36,
        on_progress=lambda done, total: told.append((done, total)),
    )
    entry = result.entries[0]
    assert entry.size == (48, 36)
    assert entry.final is entry.painted
    assert result.mean(repaired=True) is None
    assert told == [(1, 1)]
    assert [row[:2] for row in table(result)] == [("rain", "no")]


def test_a_folder_of_styles_is_their_mean(folder, encoder, tmp_path):
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    each = [style_grams(folder / name, 40, encoder, CPU) for name in ("a.png", "b.png")]
    both = style_grams(tmp_path, 40, encoder, CPU)
    for one, two, mean in zip(*each, both, strict=True):
        torch.testing.assert_close(mean, (one + two) / 2)


def test_a_large_folder_is_judged_by_the_pictures_of_its_training(encoder, tmp_path):
    rng = np.random.default_rng(0)
    for i in range(50):
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(tmp_path / f"{i:02}.png")
    pictures = [tmp_path / f"{i:02}.png" for i in style_sample(50)]
    assert len(pictures) < 50
    each = [style_grams(picture, 16, encoder, CPU) for picture in pictures]
    judged = style_grams(tmp_path, 16, encoder, CPU)
    for ours, *of_each in zip(judged, *each, strict=True):
        torch.testing.assert_close(ours, torch.stack(of_each).mean(0))


def test_nothing_to_judge(model, folder, encoder):
    styles = {"rain": style_grams(folder / "style.png", 64, encoder, CPU)}
    with pytest.raises(FaststyError, match=r"none of 1 photos can be judged: .*broken\.jpg"):
        evaluate(model, [folder / "broken.jpg"], styles, encoder, CPU)
    with pytest.raises(FaststyError, match=r"photos is \[\]; it must hold at least one"):
        evaluate(model, [], styles, encoder, CPU)
    with pytest.raises(FaststyError, match=r"styles is \{\}; it must hold at least one"):
        evaluate(model, [folder / "a.png"], {}, encoder, CPU)
    with pytest.raises(FaststyError, match=r"photos is 'a\.png'; it must hold"):
        evaluate(model, "a.png", styles, encoder, CPU)


def test_a_style_that_the_model_lacks_is_refused(model, folder, encoder):
    """With all weights of 0 it would paint something, too."""
    styles = {"rainn": style_grams(folder / "style.png", 64, encoder, CPU)}
    with pytest.raises(FaststyError, match="unknown style 'rainn'; the model has rain, night"):
        evaluate(model, [folder / "a.png"], styles, encoder, CPU)


def test_files_and_devices_may_be_strings(model, folder, encoder):
    style = str(folder / "style.png")
    assert match_styles(["style"], [style]) == {"style": folder / "style.png"}
    grams = style_grams(style, 64, encoder, "cpu")
    result = evaluate(model, [str(folder / "a.png")], {"rain": grams}, encoder, "cpu")
    assert result.entries[0].photo == folder / "a.png"
    with pytest.raises(FaststyError, match="device 'nonsense' cannot be used"):
        style_grams(style, 64, encoder, "nonsense")


@pytest.mark.parametrize(
    ("pictures", "expected"),
    [
        ("night.jpg rain.png", {"night": "night.jpg", "rain": "rain.png"}),
        ("rain.png", {"rain": "rain.png"}),
        ("x.jpg y.jpg", {"rain": "x.jpg", "night": "y.jpg"}),
        ("rain.png rain.jpg", {"rain": "rain.png", "night": "rain.jpg"}),
    ],
)
def test_styles_are_matched_by_name_or_order(pictures, expected):
    found = match_styles(["rain", "night"], list(map(Path, pictures.split())))
    assert found == {name: Path(path) for name, path in expected.items()}


@pytest.mark.parametrize(
    ("pictures", "sentence"),
    [
        ("rain.png x.jpg", "x.jpg: no style of the model has this name; the model has rain, night"),
        ("x.jpg", "x.jpg: no style"),
        ("rain.a rain.b rain.c", "3 style pictures, but two of them have the same name"),
    ],
)
def test_styles_that_cannot_be_matched(pictures, sentence):
    with pytest.raises(FaststyError, match=re.escape(sentence)):
        match_styles(["rain", "night"], list(map(Path, pictures.split())))


def test_the_page(result, model):
    shown = []

    def show(entry):
        shown.append(entry)
        return Image.new("RGB", entry.size, "red"), Image.new("RGB", entry.size, "blue")

    html = evaluation_page(result, "<model>", show)
    styles = dict.fromkeys(entry.style for entry in result.entries)
    assert f"<h1>{', '.join(styles)}</h1><p class=quiet>&lt;model&gt; · " in html
    assert html.count("data:image/jpeg;base64,") == 2 * len(shown)
    worst = html.index("Content: worst")
    content = {entry.final.content: entry for entry in result.entries}
    first = re.search(r"<figcaption>(.*?)</figcaption>", html[worst:])[1]
    expected = content[max(content)]
    assert first.startswith(f"{expected.photo.name}, {expected.style}: content ")
    assert "Style: best" in html
    assert "broken.jpg" in html[html.index("Skipped") :]
    assert "://" not in html
    assert "<script" not in html
    for row in table(result):
        assert len(row) == len(HEAD)
        assert all(f"<td>{cell}" in html for cell in row)


def test_pictures_without_a_grid_score_are_not_ranked_by_it(result):
    def show(entry):
        return Image.new("RGB", entry.size), Image.new("RGB", entry.size)

    entries = [entry for entry in result.entries if entry.photo.name == "a.png"]
    small = [entry for entry in result.entries if entry.photo.name == "b.png"]
    assert not any(entry.final.checkerboard for entry in small)
    html = evaluation_page(Evaluation(entries + small), "model", show)
    grids = re.findall(r"<figcaption>(.*?): grid (.*?)</figcaption>", html)
    assert sorted(grids) == sorted(
        (f"a.png, {e.style}", f"{max(e.final.checkerboard.values()):.3g}") for e in entries
    )


def test_one_picture_is_neither_best_nor_worst(result):
    one = Evaluation(result.entries[:1])
    assert "worst" not in evaluation_page(one, "model", lambda entry: pytest.fail("shown"))
    assert all(math.isfinite(float(cell)) for cell in table(one)[0][2:5])


def test_what_cannot_be_read_of_a_style_is_skipped_as_in_training(folder, encoder, tmp_path):
    noise = np.random.default_rng(3).integers(0, 256, (40, 40, 3), np.uint8)
    (tmp_path / "a.png").write_bytes(b"")
    Image.fromarray(noise[:8, :8]).save(tmp_path / "b.png")
    with pytest.raises(FaststyError, match=r"a\.png"):
        style_grams(tmp_path, 40, encoder, CPU)
    for i in (0, 9):
        Image.fromarray(noise[i:]).save(tmp_path / f"c{i}.png")
    skipped = {}
    grams = style_grams(tmp_path, 40, encoder, CPU, skipped)
    used = [style_grams(tmp_path / f"c{i}.png", 40, encoder, CPU) for i in (0, 9)]
    for ours, *of_each in zip(grams, *used, strict=True):
        torch.testing.assert_close(ours, torch.stack(of_each).mean(0))
    trained = StyleTarget.of(Pictures.found(tmp_path, 40), encoder, CPU)
    of_both = [
        StyleTarget.of(Pictures.found(tmp_path / f"c{i}.png", 40), encoder, CPU) for i in (0, 9)
    ]
    torch.testing.assert_close(trained.colours, (of_both[0].colours + of_both[1].colours) / 2)
    assert [path.name for path in skipped] == ["a.png", "b.png"]
    (tmp_path / "IMG_1.heic").touch()  # what is judged by stays the same
    again = style_grams(tmp_path, 40, encoder, CPU, skipped)
    assert all(map(torch.equal, again, grams))
    assert {path.name for path in skipped} == {"a.png", "b.png", "IMG_1.heic"}
