"""`faststy evaluate`: what it prints and writes, and what it refuses before it works."""

import json
import sys
from dataclasses import asdict

import numpy as np
import pytest
import torch
from PIL import Image

from faststy.cli import main
from faststy.model_file import Model, ModelInfo, save_model
from faststy.nn.generator import Generator, GeneratorConfig
from faststy.nn.repairer import Repairer


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """A folder to work in, with model.safetensors, photos/ and two style pictures."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    config = GeneratorConfig(channels=8, blocks=1, styles=2)
    info = ModelInfo(["rain", "night"], asdict(config), {"channels": 8})
    save_model(Model(Generator(config), Repairer(8), info), "model.safetensors")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/c.png").touch()
    for name in ("photos/a.png", "photos/b.png", "rain.png", "night.png"):
        noise = np.random.default_rng(0).integers(0, 256, (8, 12, 3), np.uint8)
        Image.fromarray(noise).resize((96, 64), Image.Resampling.BICUBIC).save(name)
    return tmp_path


@pytest.fixture
def faststy(monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["faststy", "evaluate", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        return end.value.code or 0, *capsys.readouterr()

    return run


USUAL = ("model.safetensors", "--content", "photos", "--style-size", "48")


def test_a_table_and_a_page(place, faststy):
    flags = (*USUAL, "--html", "page.html", "--style", "rain.png", "night.png")
    status, out, err = faststy(*flags)
    assert status == 0
    assert err.startswith("skipped photos/c.png: ")
    lines = out.splitlines()
    assert lines[0].split()[:5] == ["repair", "content", "inside", "outside", "lost"]
    names = [line.split()[:2] for line in lines[1:7]]
    assert names == [[name, r] for name in ("rain", "night", "all") for r in ("no", "yes")]
    assert lines[7].endswith(" megapixels/s")
    page = (place / "page.html").read_text(encoding="utf-8")
    assert "model.safetensors" in page
    assert "photos/c.png" in page


def test_json(faststy):
    status, out, _ = faststy(*USUAL, "--style", "night.png", "--size", "32", "--json")
    assert status == 0
    values = json.loads(out)
    assert list(values["styles"]) == ["night"]
    means = values["styles"]["night"]
    entries = values["pictures"]
    assert [entry["photo"] for entry in entries] == ["photos/a.png", "photos/b.png"]
    for variant in ("painted", "repaired"):
        content = np.mean([entry[variant]["content"] for entry in entries])
        assert means[variant]["content"] == pytest.approx(content)
    assert entries[0]["size"] == [48, 32]
    assert values["skipped"] == ["photos/c.png"]
    assert values["images_per_second"] > 0


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--style", "x.png"), "x.png: no style of the model has this name"),
        (("--style", "rain.png", "photos/a.png"), "photos/a.png: no style"),
        (("--style", "absent/rain.png"), "absent/rain.png: cannot be read"),
        (("--style", "rain.png", "--content", "rain.png"), "rain.png: not a folder"),
        (("--style", "rain.png", "--html", "absent/page.html"), "absent/page.html: its folder"),
        (("--style", "rain.png", "--html", "photos"), "photos: is a folder"),
        (("--style", "rain.png", "--encoder", "vgg"), "unknown encoder 'vgg'"),
        (("--style", "rain.png", "--device", "moon"), "device 'moon' cannot be used"),
    ],
)
def test_mistakes_are_told_before_the_work(place, faststy, flags, sentence):
    before = sorted(place.rglob("*"))
    status, out, err = faststy(*USUAL, *flags)
    assert status == 2
    assert out == ""
    assert err.startswith(f"faststy: {sentence}")
    assert err.count("\n") == 1
    assert sorted(place.rglob("*")) == before
