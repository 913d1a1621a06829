"""`faststy transfer`: one painting, and what is said when it cannot be made."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from faststy.cli import main


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    y, x = np.mgrid[:40, :56]
    for i, name in enumerate(("photo.png", "style.png")):
        waves = [127 + 120 * np.sin((x * (i + 1) + y * c) / 7) for c in range(3)]
        Image.fromarray(np.stack(waves, -1).astype(np.uint8)).save(name)
    return tmp_path


@pytest.fixture
def told(monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["faststy", "transfer", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        return end.value.code or 0, *capsys.readouterr()

    return run


def test_a_painting_of_the_photos_size(place, told):
    status, out, err = told("photo.png", "style.png", "-o", "painted.png", "--steps", "2")
    assert (status, err) == (0, "")
    assert out.startswith("painted.png  56 x 40 in ")
    painted, photo = (np.asarray(Image.open(p)).astype(int) for p in ("painted.png", "photo.png"))
    assert painted.shape == photo.shape
    assert np.abs(painted - photo).mean() > 1


def test_the_name_of_a_painting_reaches_the_terminal_without_escape_sequences(place, told):
    status, out, _ = told("photo.png", "style.png", "-o", "a\x1b[31m.png", "--steps", "1")
    assert status == 0
    assert out.startswith("a\\x1b[31m.png  56 x 40 in ")
    assert (place / "a\x1b[31m.png").exists()


def test_json_and_a_smaller_size(place, told):
    flags = ("-o", "new/painted.jpg", "--steps", "1", "--size", "20", "--json")
    status, out, _ = told("photo.png", "style.png", *flags)
    assert status == 0
    values = json.loads(out)
    assert values["out"] == "new/painted.jpg"
    assert values["size"] == [28, 20]
    assert Image.open("new/painted.jpg").size == (28, 20)


def test_transparency_is_kept(place, told):
    photo = Image.open("photo.png")
    photo.putalpha(Image.linear_gradient("L").resize(photo.size))
    photo.save("photo.png")
    assert told("photo.png", "style.png", "-o", "painted.png", "--steps", "1")[0] == 0
    painted = Image.open("painted.png")
    assert painted.getchannel("A").tobytes() == photo.getchannel("A").tobytes()


@pytest.mark.parametrize(
    ("photo", "style", "out", "sentence"),
    [
        ("text.jpg", "style.png", "o.png", "text.jpg: not a picture"),
        ("photo.png", "zero.jpg", "o.png", "zero.jpg: the file is empty (zero bytes)"),
        ("cut.jpg", "style.png", "o.png", "cut.jpg: damaged or cut off"),
        ("absent.jpg", "style.png", "o.png", "absent.jpg: cannot be read"),
        (".", "style.png", "o.png", ".: cannot be read (Is a directory)"),
        ("photo.png", "style.png", "o.gif", "o.gif: '.gif' is no format that faststy writes"),
        ("photo.png", "style.png", "text.jpg/o.png", "text.jpg/o.png: cannot be written"),
        ("photo.png", "style.png", "folder.png", "folder.png: is a folder"),
    ],
)
def test_bad_input_is_one_sentence_and_no_picture(place, told, photo, style, out, sentence):
    (place / "folder.png").mkdir()
    (place / "text.jpg").write_text("not a picture")
    (place / "zero.jpg").write_bytes(b"")
    Image.open("photo.png").save("whole.jpg")
    whole = (place / "whole.jpg").read_bytes()
    (place / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    before = sorted(place.rglob("*"))
    status, stdout, err = told(photo, style, "-o", out, "--steps", "1")
    assert status == 2
    assert stdout == ""
    assert err.startswith("faststy: ")
    assert err.count("\n") == 1
    assert sentence in err
    assert sorted(place.rglob("*")) == before


@pytest.mark.parametrize("out", ["photo.png", "style.png", "link.png", "./folder/../photo.png"])
def test_photo_and_style_are_never_overwritten(place, told, out):
    (place / "folder").mkdir()
    (place / "link.png").symlink_to("photo.png")
    before = {path: path.read_bytes() for path in place.glob("*.png")}
    status, _, err = told("photo.png", "style.png", "-o", out, "--steps", "1")
    assert (status, err) == (2, f"faststy: {Path(out)}: is an input and will not be overwritten\n")
    assert {path: path.read_bytes() for path in place.glob("*.png")} == before


@pytest.mark.parametrize("out", ["folder.png", "text.jpg/o.png", "circle/o.png"])
def test_an_output_that_cannot_be_written_is_told_before_the_work(place, told, monkeypatch, out):
    (place / "folder.png").mkdir()
    (place / "text.jpg").write_text("not a picture")
    (place / "circle").symlink_to("circle")
    monkeypatch.setattr("faststy.training.transfer.transfer", lambda *_, **__: pytest.fail("work"))
    status, _, err = told("photo.png", "style.png", "-o", out)
    assert status == 2
    assert err.startswith(f"faststy: {out}: ")
    assert err.count("\n") == 1


def test_too_little_memory_is_one_sentence(place, told, monkeypatch):
    def transfer(*_, **__):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr("faststy.training.transfer.transfer", transfer)
    status, out, err = told("photo.png", "style.png", "-o", "o.png", "--size", "20")
    sentence = "photo.png: not enough memory to paint 28 x 20; use a smaller --size"
    assert (status, out, err) == (2, "", f"faststy: {sentence}\n")


def test_an_unknown_encoder_or_device(told):
    for flag, value in (("--encoder", "vgg16"), ("--device", "tpu")):
        status, _, err = told("photo.png", "style.png", "-o", "o.png", flag, value)
        assert status == 2
        assert value in err
        assert err.count("\n") == 1


@pytest.mark.parametrize("weight", ["nan", "inf"])
def test_a_weight_that_is_no_number_paints_nothing(place, told, weight):
    status, out, err = told("photo.png", "style.png", "-o", "o.png", "--style-weight", weight)
    assert (status, out) == (2, "")
    assert f"'{weight}' is no finite number." in err
    assert not (place / "o.png").exists()
