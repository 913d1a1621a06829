"""`faststy styles`: the list, the sheet, and what is said when there can be none."""

import json
import sys
from dataclasses import asdict

import numpy as np
import pytest
import torch
from PIL import Image

from faststy import assets
from faststy.cli import main
from faststy.model_file import Model, ModelInfo, load_info, save_model
from faststy.nn.generator import Generator, GeneratorConfig


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """A folder to work in, with model.safetensors and photo.jpg."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    config = GeneratorConfig(channels=8, blocks=1, styles=2)
    info = ModelInfo(["rain", "starry night"], asdict(config), descriptions={"rain": "wet, grey"})
    save_model(Model(Generator(config), None, info), "model.safetensors")
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    Image.fromarray(noise).save("photo.jpg")
    return tmp_path


@pytest.fixture
def faststy(monkeypatch, capsys):
    def run(*arguments, command=("styles",)):
        monkeypatch.setattr(sys, "argv", ["faststy", *command, *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        return end.value.code or 0, *capsys.readouterr()

    return run


def test_a_line_per_style(faststy):
    expected = (0, "rain          wet, grey\nstarry night\n", "")
    assert faststy("-m", "model.safetensors") == expected


def test_what_a_terminal_would_obey_is_written_out(place, faststy):
    config = GeneratorConfig(channels=8, blocks=1)
    info = ModelInfo(["ra\x1b[2J\nin"], asdict(config), descriptions={"ra\x1b[2J\nin": "a\x9bb é"})
    info.license = "\x1b]0;mine\x07"
    save_model(Model(Generator(config), None, info), "model.safetensors")
    expected = (0, "ra\\x1b[2J\\nin  a\\x9bb é\n", "")
    assert faststy("-m", "model.safetensors") == expected
    for command in (("info",), ("stylize", "photo.jpg", "--style", "x", "-m")):
        _, out, err = faststy("model.safetensors", command=command)
        assert "ra\\x1b[2J" in out + err
        assert "\x1b" not in out + err


def test_json_is_a_list(faststy):
    status, out, _ = faststy("-m", "model.safetensors", "--json")
    assert status == 0
    assert json.loads(out) == [
        {"name": "rain", "description": "wet, grey"},
        {"name": "starry night", "description": ""},
    ]


def test_the_bundled_styles(faststy):
    names = load_info(assets.model()).styles
    status, out, err = faststy()
    assert status == 0
    assert [line.split()[0] for line in out.splitlines()] == names
    assert "faststy stylize PHOTO --style NAME" in err
    assert [style["name"] for style in json.loads(faststy("--json")[1])] == names


@pytest.mark.parametrize("out", [None, "new/sheet.png"])
def test_a_sheet(place, faststy, out):
    flags = () if out is None else ("-o", out)
    target = out or "photo_styles.jpg"
    status, printed, err = faststy("-m", "model.safetensors", "--sheet", "photo.jpg", *flags)
    assert (status, printed, err) == (0, f"{target}\n", "")
    sheet = Image.open(place / target)
    assert sheet.width * sheet.height > 3 * 40 * 60


def test_the_name_of_a_sheet_reaches_the_terminal_without_escape_sequences(place, faststy):
    flags = ("-m", "model.safetensors", "--sheet", "photo.jpg", "-o", "a\x1b[31m.jpg")
    assert faststy(*flags) == (0, "a\\x1b[31m.jpg\n", "")
    assert (place / "a\x1b[31m.jpg").exists()


def test_a_sheet_and_json(place, faststy):
    flags = ("-m", "model.safetensors", "--sheet", "photo.jpg", "--json")
    status, out, err = faststy(*flags)
    assert (status, err) == (0, "photo_styles.jpg\n")
    assert len(json.loads(out)) == 2
    assert (place / "photo_styles.jpg").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("-o", "sheet.jpg"), "-o is for a sheet"),
        (("--sheet", "absent.jpg"), "absent.jpg: cannot be read"),
        (("--sheet", "photo.jpg", "-o", "photo.jpg"), "photo.jpg: is an input"),
        (("--sheet", "photo.jpg", "-o", "sheet.gif"), "'.gif' is no format that faststy writes"),
        (("--sheet", "model.safetensors"), "model.safetensors: not a picture"),
        (("--sheet", "."), ".: is a folder; name one photo"),
        (("-m", "photo.jpg"), "photo.jpg: not a readable model file"),
    ],
)
def test_mistakes(place, faststy, arguments, sentence):
    before = sorted(place.iterdir())
    status, out, err = faststy(*arguments)
    assert status == 2
    assert out == ""
    assert sentence in err
    assert err.count("\n") == 1
    assert sorted(place.iterdir()) == before
