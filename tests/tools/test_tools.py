"""tools/ablation.py and tools/make_gallery.py: a few steps of each."""

import re
import runpy
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from faststy.model_file import Model, ModelInfo, save_model
from faststy.nn.generator import Generator, GeneratorConfig

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture
def run(place, monkeypatch):
    """Runs the main() of a tool in the folder `place`."""
    monkeypatch.chdir(place)

    def run(tool, *arguments):
        monkeypatch.setattr(sys, "argv", [tool, *arguments])
        runpy.run_path(str(TOOLS / tool), run_name="__main__")

    return run


@pytest.fixture
def place(tmp_path):
    (tmp_path / "photos").mkdir()
    y, x = np.mgrid[:160, :160]
    for i, name in enumerate(("photos/a.png", "photos/b.png", "one.png")):
        waves = [127 + 120 * np.sin((x * (i + 1) + y * c) / 7) for c in range(3)]
        Image.fromarray(np.stack(waves, -1).astype(np.uint8)).save(tmp_path / name)
    return tmp_path


def test_an_ablation_goes_on_where_it_was(place, run):
    flags = ("one.png", "--content", "photos", "--photos", "photos", "--size", "80")
    flags = (*flags, "--steps", "3", "--out", "docs", "--device", "cpu")
    run("ablation.py", *flags)
    models = sorted((place / "ablation-runs").rglob("model.safetensors"))
    assert [m.parent.name for m in models] == ["perceptual", "perceptual-adversarial-repair"]
    text = (place / "docs/ablation.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| one \| (.*?) \|((?: [+-]?\d[\d.]* \|){7})$", text, re.MULTILINE)
    assert [name for name, _ in rows] == ["perceptual only", "+ adversarial", "+ repair"]
    assert rows[0][1] != rows[1][1] != rows[2][1]
    with Image.open(place / "docs/ablation.jpg") as sheet:
        assert sheet.width > 5 * 80

    times = [model.stat().st_mtime_ns for model in models]
    run("ablation.py", *flags)
    assert [model.stat().st_mtime_ns for model in models] == times
    assert (place / "docs/ablation.md").read_text(encoding="utf-8") == text


def test_a_gallery_of_any_model(place, run):
    torch.manual_seed(0)
    config = GeneratorConfig(channels=8, blocks=1, styles=2)
    info = ModelInfo(["rain", "night"], asdict(config))
    save_model(Model(Generator(config), None, info), place / "model.safetensors")
    run("make_gallery.py", "-m", "model.safetensors", "--out", "sheet.jpg")
    with Image.open(place / "sheet.jpg") as sheet:
        assert min(sheet.size) > 250
