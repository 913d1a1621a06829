"""`faststy evaluate`: what it prints and writes, and what it refuses before it works."""

import json
import os
import re
import sys
from dataclasses import asdict

import numpy as np
import pytest
import torch
from PIL import Image

from faststy.cli import main
from faststy.errors import FaststyError
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
    flags = (*USUAL, "--html", "new/page.html", "--style", "rain.png", "night.png")
    status, out, err = faststy(*flags)
    assert status == 1  # one was skipped
    assert err.startswith("skipped photos/c.png: ")
    lines = out.splitlines()
    assert lines[0].split()[:5] == ["repair", "content", "inside", "outside", "lost"]
    names = [line.split()[:2] for line in lines[1:7]]
    assert names == [[name, r] for name in ("rain", "night", "all") for r in ("no", "yes")]
    assert lines[7].endswith(" megapixels/s")
    page = (place / "new/page.html").read_text(encoding="utf-8")
    assert "<title>rain, night · faststy</title>" in page
    assert f"<p class=quiet>{place.name}/model.safetensors · " in page
    assert "photos/c.png" in page


def test_a_narrow_terminal_shows_every_digit(faststy, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # a terminal, for rich
    monkeypatch.setenv("COLUMNS", "80")
    _, out, _ = faststy(*USUAL, "--style", "rain.png", "night.png")
    assert "…" not in out
    assert "warp error" in out  # what the columns mean


def test_a_long_name_stands_above_its_numbers(place, faststy, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    name = "a_storm_over_the_old_town"
    config = GeneratorConfig(channels=8, blocks=1)
    save_model(
        Model(Generator(config), None, ModelInfo([name], asdict(config))), "long.safetensors"
    )
    (place / "rain.png").rename(f"{name}.png")
    _, out, _ = faststy("long.safetensors", *USUAL[1:], "--style", f"{name}.png")
    lines = re.sub("\x1b.*?m", "", out).splitlines()
    assert lines[1] == name
    assert lines[2].split()[0] == "no"
    assert [len(line) for line in lines[:3:2]] == [len(lines[0])] * 2
    assert len(lines[0]) <= 80


def test_json(faststy):
    status, out, _ = faststy(*USUAL, "--style", "night.png", "--size", "32", "--json")
    assert status == 1
    values = json.loads(out)
    assert list(values["styles"]) == ["night"]
    means = values["styles"]["night"]
    entries = values["pictures"]
    assert [entry["photo"] for entry in entries] == ["photos/a.png", "photos/b.png"]
    for variant in ("painted", "repaired"):
        content = np.mean([entry[variant]["content"] for entry in entries])
        assert means[variant]["content"] == pytest.approx(content)
    assert entries[0]["size"] == [48, 32]
    (skipped,) = values["skipped"]
    assert skipped["input"] == "photos/c.png"
    assert skipped["reason"].startswith("photos/c.png: ")
    assert values["images_per_second"] > 0


def test_names_reach_the_terminal_without_escape_sequences(place, faststy):
    (place / "photos/c.png").rename(place / "photos/c\x1b]0;mine\x07\n.png")
    _, _, err = faststy(*USUAL, "--style", "rain.png")
    assert err.startswith(r"skipped photos/c\x1b]0;mine\x07\n.png: ")
    assert err.count("\n") == 1


def test_photos_of_formats_that_cannot_be_read_are_told(place, faststy):
    (place / "photos/c.png").unlink()
    (place / "photos/IMG_1.heic").write_bytes(b"heic")
    status, _, err = faststy(*USUAL, "--style", "rain.png")
    assert status == 1
    assert err.startswith("skipped photos/IMG_1.heic: ")


def test_large_photos_are_painted_as_small_as_strokes_are_seen(place, faststy):
    Image.new("RGB", (750, 740), "teal").save(place / "photos/a.png")
    sizes = []
    for flags in ((), ("--size", "1000")):
        _, out, _ = faststy(*USUAL, "--style", "night.png", *flags, "--json", "--html", "page.html")
        sizes.append([entry["size"] for entry in json.loads(out)["pictures"]])
    assert sizes == [[[730, 720], [96, 64]], [[750, 740], [96, 64]]]


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--style", "x.png"), "x.png: no style of the model has this name"),
        (("--style", "rain.png", "photos/a.png"), "photos/a.png: no style"),
        (
            ("--style", "a.png", "b.png", "--style", "c.png"),
            "b.png: several --style and pictures without one; name each picture by a --style",
        ),
        (("--style", "absent/rain.png"), "absent/rain.png: cannot be read"),
        (("--style", "rain.png", "--content", "rain.png"), "rain.png: not a folder"),
        (
            ("--style", "rain.png", "--html", "rain.png/page.html"),
            "rain.png/page.html: cannot be written (a part of the path is a file",
        ),
        (("--style", "rain.png", "--html", "photos"), "photos: is a folder"),
        (("--style", "rain.png", "--html", "model.safetensors"), "model.safetensors: is an input"),
        (("--style", "rain.png", "--html", "photos/a.png"), "photos/a.png: is an input"),
        (("--style", "rain.png", "--html", "rain.png"), "rain.png: is an input"),
        (("--style", "rain.png", "--html", "link.html"), "link.html: is an input"),
        (("--style", "rain.png", "--html", "page.png"), "page.png: no name of a page"),
        (("--style", "rain.png", "--encoder", "vgg"), "unknown encoder 'vgg'"),
        (("--style", "rain.png", "--device", "moon"), "device 'moon' cannot be used"),
    ],
)
def test_mistakes_are_told_before_the_work(place, faststy, flags, sentence):
    (place / "link.html").symlink_to("photos/a.png")
    before = sorted(place.rglob("*"))
    photo = (place / "photos/a.png").read_bytes()
    status, out, err = faststy(*USUAL, *flags)
    assert status == 2
    assert out == ""
    assert err.startswith(f"faststy: {sentence}")
    assert err.count("\n") == 1
    assert sorted(place.rglob("*")) == before
    assert (place / "photos/a.png").read_bytes() == photo


def test_a_link_in_the_place_of_the_page_stays_a_link(place, faststy):
    (place / "real.html").write_text("old")
    (place / "page.html").symlink_to("real.html")
    faststy(*USUAL, "--style", "rain.png", "--html", "page.html")
    assert (place / "page.html").is_symlink()
    assert (place / "real.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_a_pipe_in_the_place_of_the_page_is_never_replaced(place, faststy):
    os.mkfifo("pipe.html")
    status, _, err = faststy(*USUAL, "--style", "rain.png", "--html", "pipe.html")
    assert status == 2
    assert err.endswith("faststy: pipe.html: not a regular file\n")
    assert (place / "pipe.html").is_fifo()


def test_a_page_that_cannot_be_written_costs_no_numbers(faststy, monkeypatch):
    def full(data, path):
        raise FaststyError(f"{path}: cannot be written (No space left on device)")

    monkeypatch.setattr("faststy.pictures.write_data", full)
    status, out, err = faststy(*USUAL, "--style", "rain.png", "--html", "page.html", "--json")
    assert status == 2
    assert "rain" in json.loads(out)["styles"]
    assert err.endswith("faststy: page.html: cannot be written (No space left on device)\n")


def test_a_style_picture_in_the_place_of_the_model_is_told(faststy):
    pictures = ("rain.png", "night.png")
    status, out, err = faststy("--content", "photos", "--style", *pictures, "model.safetensors")
    assert (status, out) == (2, "")
    assert err.startswith("faststy: night.png: is no model, but model.safetensors is; name the ")
    assert err.count("\n") == 1
