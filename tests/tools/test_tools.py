"""tools/ablation.py, make_gallery.py, soak.py and train_styles.py: a few steps of each."""

import json
import re
import runpy
import sys
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from faststy.model_file import Model, ModelInfo, load_model, save_model
from faststy.nn.generator import Generator, GeneratorConfig
from faststy.nn.repairer import Repairer
from faststy.training.config import TrainConfig

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
    (place / "judged").mkdir()
    (place / "judged" / "a.png").write_bytes((place / "photos" / "a.png").read_bytes())
    (place / "judged" / "broken.png").touch()
    flags = ("one.png", "--content", "photos", "--photos", "judged", "--size", "80")
    flags = (*flags, "--steps", "9", "--out", "docs", "--device", "cpu")
    run("ablation.py", *flags)
    models = sorted((place / "ablation-runs").rglob("model.safetensors"))
    assert [m.parent.name for m in models] == ["perceptual", "perceptual-adversarial-repair"]
    text = (place / "docs/ablation.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| one \| (.*?) \|((?: [+-]?\d[\d.]* \|){7})$", text, re.MULTILINE)
    assert "measured on 1 others" in text  # the broken one was skipped
    assert [name for name, _ in rows] == ["perceptual only", "+ adversarial", "+ repair"]
    assert rows[0][1] != rows[1][1] != rows[2][1]
    with Image.open(place / "docs/ablation.jpg") as sheet:
        assert sheet.width > 4 * 80

    times = [model.stat().st_mtime_ns for model in models]
    run("ablation.py", *flags)
    assert [model.stat().st_mtime_ns for model in models] == times
    assert (place / "docs/ablation.md").read_text(encoding="utf-8") == text
    run("ablation.py", *flags, "--runs", str(place / "ablation-runs"))  # the same, named otherwise
    assert [model.stat().st_mtime_ns for model in models] == times
    with pytest.raises(SystemExit, match="holds a run with other settings"):
        run("ablation.py", *flags, "--steps", "4")
    whole = load_model(models[1])
    save_model(replace(whole, repairer=None, info=replace(whole.info, repairer=None)), models[1])
    with pytest.raises(SystemExit, match="its repairer made paintings flat"):
        run("ablation.py", *flags)


def test_an_ablation_of_two_styles_of_one_name_is_refused_before_the_work(run, capsys):
    with pytest.raises(SystemExit):
        run("ablation.py", "d1/x.png", "d2/x.png", "--content", "photos", "--photos", "photos")
    assert "two styles have the same name" in capsys.readouterr().err


def test_a_gallery_of_any_model(place, run):
    torch.manual_seed(0)
    config = GeneratorConfig(channels=8, blocks=1, styles=2)
    info = ModelInfo(["rain", "night"], asdict(config))
    save_model(Model(Generator(config), None, info), place / "model.safetensors")
    run("make_gallery.py", "-m", "model.safetensors", "--out", "sheet.jpg")
    with Image.open(place / "sheet.jpg") as sheet:
        assert min(sheet.size) > 250


@pytest.fixture
def soak(monkeypatch):
    """The names of tools/soak.py."""
    monkeypatch.setattr(sys, "argv", ["soak.py"])
    names = runpy.run_path(str(TOOLS / "soak.py"))
    monkeypatch.setitem(names["STEPS"], "nano", 2)
    return names


def test_soak_draws_every_value_equally_often_and_the_same_again(soak):
    drawn = [soak["settings_of"](number) for number in range(120)]
    assert drawn == [soak["settings_of"](number) for number in range(120)]
    for name, values in soak["CHOICES"].items():
        counts = Counter(settings[name] for settings in drawn)
        assert {counts[value] / values.count(value) for value in values} == {120 / len(values)}


def test_soak_judges_what_a_run_left_and_writes_a_table(soak, tmp_path):
    outcome = soak["soak"](0, tmp_path / "run")
    assert outcome.verdict in ("sound", "flat")
    bad = replace(outcome, verdict="not finite", contrast=float("nan"), skipped_steps=3)
    soak["write"]([outcome, bad], tmp_path, 1.0)
    text = (tmp_path / "soak.md").read_text(encoding="utf-8")
    assert "2 short runs" in text
    assert text.count("| not finite |") == 1
    assert json.loads((tmp_path / "soak.json").read_text())["runs"][1]["contrast"] is None


@pytest.mark.parametrize(("value", "verdict"), [(0.0, "flat"), (float("nan"), "not all finite")])
def test_soak_knows_dead_models(soak, tmp_path, value, verdict):
    net = Generator(GeneratorConfig.named("nano", 1))
    for weight in net.parameters():
        weight.data.fill_(value)
    info = ModelInfo(styles=["a"], generator=asdict(net.config))
    save_model(Model(net, None, info), tmp_path / "m.safetensors")
    assert verdict in soak["judged"](tmp_path / "m.safetensors")[0]


def small_run(place, seconds):
    """The settings of a short run on the pictures of `place`."""
    return TrainConfig(
        str(place / "one.png"),
        content=str(place / "photos"),
        out=str(place / "run"),
        model="nano",
        size=64,
        style_size=64,
        batch=1,
        seconds=seconds,
    )


def test_training_a_repairer_leaves_the_log_of_its_generator(place, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train_styles.py"])
    train_repairer = runpy.run_path(str(TOOLS / "train_styles.py"))["train_repairer"]
    net, repairer = Generator(GeneratorConfig.named("nano", 1)), Repairer()
    info = ModelInfo(["one"], asdict(net.config), repairer.config)
    save_model(Model(net, repairer, info), place / "m.safetensors")
    (place / "run").mkdir()
    (place / "run/log.jsonl").write_text('{"step": 900}\n')
    train_repairer(small_run(place, 1e-9), place / "m.safetensors")
    assert (place / "run/log.jsonl").read_text() == '{"step": 900}\n'


def test_calming_a_style_moves_its_norms_alone(place, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train_styles.py"])
    train_norms = runpy.run_path(str(TOOLS / "train_styles.py"))["train_norms"]
    net = Generator(GeneratorConfig.named("nano", 2)).requires_grad_(False)
    info = ModelInfo(["one", "two"], asdict(net.config))
    save_model(Model(net, None, info), place / "m.st", torch.float16)
    before = load_model(place / "m.st").generator.state_dict()
    train_norms(small_run(place, 1.0), place / "m.st", "two")
    model = load_model(place / "m.st")
    assert model.info.styles == ["one", "two"]
    for name, found in model.generator.state_dict().items():
        if name.endswith(("norm.weight", "norm.bias")) or ".norm" in name:
            assert torch.equal(found[0], before[name][0]), name
            assert not torch.equal(found[1], before[name][1]), name
        else:
            assert torch.equal(found, before[name]), name


def test_the_mean_of_models_that_began_as_one(place, run):
    config = GeneratorConfig.named("nano", styles=2)
    generators = [Generator(config).requires_grad_(False) for _ in range(3)]
    for i, generator in enumerate(generators):
        info = ModelInfo(["a", "b"], asdict(config), None, steps=i)
        save_model(Model(generator, None, info), place / f"{i}.safetensors")
    run(
        "train_styles.py",
        "--mean",
        *(f"{i}.safetensors" for i in range(3)),
        "--out",
        "m.safetensors",
    )
    mean = load_model(place / "m.safetensors").generator.state_dict()
    for name, found in mean.items():
        expected = torch.stack([g.state_dict()[name] for g in generators]).mean(0)
        torch.testing.assert_close(
            found, expected, atol=1e-3, rtol=1e-3
        )  # stored in half precision
    with pytest.raises(SystemExit):
        run("train_styles.py", "--content", "photos")


def test_no_mean_of_models_of_other_sizes_or_styles(place, run):
    for name, styles, channels in (("0", "ab", 8), ("1", "ac", 8), ("2", "ab", 16)):
        config = GeneratorConfig(channels=channels, blocks=1, styles=2)
        info = ModelInfo([*styles], asdict(config))
        save_model(Model(Generator(config), None, info), place / f"{name}.safetensors")
    for other in ("1.safetensors", "2.safetensors"):
        sentence = f"error: {other}: is of other sizes or styles than 0.safetensors; no mean"
        with pytest.raises(SystemExit, match=sentence):
            run("train_styles.py", "--mean", "0.safetensors", other, "--out", "m.safetensors")
    assert not (place / "m.safetensors").exists()


@pytest.fixture
def train_styles(place, run):
    """Runs tools/train_styles.py on the photos and empty paintings."""
    for style in runpy.run_path(str(TOOLS / "train_styles.py"))["STYLES"]:
        (place / f"{style}.jpg").touch()
    usual = ("--content", "photos", "--paintings", ".", "--out", "m.safetensors")
    return lambda *flags: run("train_styles.py", *usual, *flags)


def test_interrupted_the_ready_styles_end_as_an_error(place, train_styles, monkeypatch):
    stopped = SimpleNamespace(finished=False)
    monkeypatch.setattr("faststy.training.loop.train", lambda *given, **named: stopped)
    with pytest.raises(SystemExit, match="error: interrupted; the same command with --resume"):
        train_styles()
    assert not (place / "m.safetensors").exists()


def test_a_model_without_a_repairer_has_none_to_train_on(place, train_styles):
    config = GeneratorConfig(channels=8, blocks=1)
    info = ModelInfo(["a"], asdict(config))
    save_model(Model(Generator(config), None, info), place / "m.safetensors")
    with pytest.raises(SystemExit, match=r"error: m\.safetensors: has no repairer to train on"):
        train_styles("--repairer")


def test_no_style_that_the_model_lacks_is_calmed(place, train_styles):
    config = GeneratorConfig(channels=8, blocks=1, styles=2)
    info = ModelInfo(["ink", "mine"], asdict(config))
    save_model(Model(Generator(config), None, info), place / "m.safetensors")
    with pytest.raises(SystemExit, match=r"m\.safetensors: has no style swirl, only ink, mine"):
        train_styles("--calm", "swirl")
