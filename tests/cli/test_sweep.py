"""`faststy sweep` as a user meets it."""

import json
import signal
import sys

import numpy as np
import pytest
from PIL import Image

from faststy.sweep import sweep as module
from faststy.training.config import read_config

TINY = ("--model", "nano", "--size", "64", "--batch", "1", "--style-size", "64", "--device", "cpu")


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "SLICES", 1)
    (tmp_path / "content").mkdir()
    y, x = np.mgrid[:80, :90]
    for i, name in enumerate(("content/a.png", "style.png")):
        waves = [127 + 120 * np.sin((x * (i + 1) + y * c) / 7) for c in range(3)]
        Image.fromarray(np.stack(waves, -1).astype(np.uint8)).save(name)
    return tmp_path


@pytest.fixture
def told(monkeypatch, capsys):
    """Runs the command in this process: exit status, standard output, standard error."""

    def run(*arguments):
        from faststy.cli import main

        monkeypatch.setattr(sys, "argv", ["faststy", "sweep", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        return end.value.code or 0, *capsys.readouterr()

    return run


def test_a_sweep_in_words_then_as_json(place, told):
    (place / "s.toml").write_text('stages = ["perceptual"]\nsteps = 50\nseed = 7\n')
    arguments = ("style.png", "--style-weights", "20,3", "--content", "content", *TINY)
    status, out, err = told(*arguments, "--config", "s.toml", "--steps", "1")
    assert status == 0, err
    assert "λ 3, 1 of 2: perceptual 0% step 1 " in err
    head, first, second, sheet, curve, page, paint = out.splitlines()
    assert head.split() == ["λ", "content", "style", "lost", "steps"]
    assert (first.split()[0], second.split()[0]) == ("3", "20")
    assert [line.split()[1] for line in (sheet, curve, page)] == [
        f"sweep/{name}" for name in ("contact_sheet.png", "curve.png", "sweep.html")
    ]
    settings = read_config(place / "sweep" / "style-weight-20" / "config.toml")
    assert (settings.style_weight, settings.seed, settings.steps) == (20.0, 7, 1)

    status, out, err = told("--resume", "--json")
    assert status == 0, err
    values = json.loads(out)
    assert [p["style_weight"] for p in values["points"]] == [3.0, 20.0]
    assert values["finished"]
    assert paint.endswith(f"-m sweep/style-weight-{values['suggested']:g}/model.safetensors")


def test_what_each_run_begins_as_is_told_once_with_its_λ(place, told):
    (place / "s.toml").write_text('stages = ["perceptual"]\nsteps = 1\nmodel = "fast"\n')
    sizes = ("--size", "64", "--batch", "1", "--style-size", "64", "--device", "cpu")
    arguments = ("style.png", "--style-weights", "20,3", "--content", "content", *sizes)
    status, _, err = told(*arguments, "--config", "s.toml")
    assert status == 0, err
    assert err.count("begins as ") == 2
    assert all(err.count(f"λ {weight}: begins as ") == 1 for weight in (3, 20))


def test_the_folder_may_be_named_in_the_file(place, told):
    (place / "s.toml").write_text('stages = ["perceptual"]\nsteps = 1\nout = "mine"\n')
    arguments = ("style.png", "--style-weights", "3", "--content", "content", *TINY)
    status, _, err = told(*arguments, "--config", "s.toml")
    assert status == 0, err
    assert (place / "mine" / "sweep.html").exists()
    assert not (place / "sweep").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("style.png",), "style-weights are missing; give some λ, like 5,15,45"),
        (("style.png", "--style-weights", "5;15"), "style-weights is '5;15'; it must be numbers"),
        (("style.png", "--style-weights", "5,-1"), "style-weights must be numbers above 0"),
        (("style.png", "--style-weights", "inf"), "style-weights must be numbers above 0"),
        (
            ("--style-weights", "5"),
            "name the style, a picture or a folder, and some λ: faststy sweep ",
        ),
        (("absent.png", "--style-weights", "5"), "absent.png: cannot be read"),
        (("style.png", "--style-weights", "5", "--content", "absent"), "absent: content must be"),
        (("style.png", "--style-weights", "5", "--out", "style.png/x"), "style.png/x"),
        (
            ("style.png", "--style-weights", "5", "--content", "content", "--out", "content"),
            "content: is a folder of pictures to learn from; name another out folder",
        ),
        (("--resume",), "sweep: holds no sweep to go on with; is --out right?"),
    ],
)
def test_bad_input_is_one_sentence_and_nothing_is_left(place, told, arguments, sentence):
    before = sorted(place.rglob("*"))
    status, out, err = told(*arguments)
    assert status == 2
    assert out == ""
    assert err.startswith("faststy: ")
    assert err.count("\n") == 1
    assert sentence in err
    assert sorted(place.rglob("*")) == before


def test_a_sweep_without_its_settings_asks_for_them(place, told):
    """As one has that was killed when it began."""
    (place / "s.toml").write_text('stages = ["perceptual"]\n')
    arguments = ("style.png", "--style-weights", "3", "--content", "content", *TINY)
    settings = ("--config", "s.toml", "--steps", "1")
    assert told(*arguments, *settings)[0] == 0
    (place / "sweep/config.toml").unlink()
    status, _, err = told("--resume")
    assert status == 2
    assert err.startswith("faststy: sweep: holds a sweep without its settings; name the style, ")
    status, _, err = told("style.png", "--content", "content", *TINY, *settings, "--resume")
    assert status == 0, err


def test_stopped_while_it_judges_it_says_how_to_go_on(place, told, monkeypatch):
    monkeypatch.setattr(module, "_judge", lambda *given: signal.raise_signal(signal.SIGINT))
    (place / "s.toml").write_text('stages = ["perceptual"]\n')
    arguments = ("style.png", "--style-weights", "3", "--content", "content", *TINY)
    status, _, err = told(*arguments, "--config", "s.toml", "--steps", "1")
    assert status == 130
    assert err.endswith("stopped; go on with: faststy sweep --resume --out sweep\n")


def test_stopped_it_says_how_to_go_on(place, told, monkeypatch):
    real = module.train

    def interrupted(config, on_progress, **named):
        def stop(progress):
            on_progress(progress)
            signal.raise_signal(signal.SIGINT)

        return real(config, stop, **named)

    monkeypatch.setattr(module, "train", interrupted)
    arguments = ("style.png", "--style-weights", "3,20", "--content", "content", *TINY)
    status, out, err = told(*arguments, "--steps", "9", "--json")
    assert status == 130
    assert err.endswith("stopped; go on with: faststy sweep --resume --out sweep\n")
    values = json.loads(out)
    assert (values["finished"], values["points"], values["page"]) == (False, [], None)
    assert (place / "sweep" / "style-weight-3" / "checkpoint").is_dir()
