"""Tiny sweeps: the runs are those of `train`, and what is left can be seen at any time."""

import json
import math
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from faststy.errors import FaststyError
from faststy.evaluation import evaluate, measure, style_grams
from faststy.model_file import load_model
from faststy.sweep import sweep as module
from faststy.sweep.sweep import Point, run_folder, suggest, sweep
from faststy.training import loop
from faststy.training.checkpoint import checkpoint_path, load_checkpoint
from faststy.training.config import STAGES, TrainConfig, read_config
from faststy.training.loop import train


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """content/ with two photos and a broken one, and a style."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "content").mkdir()
    y, x = np.mgrid[:80, :100]
    for i, name in enumerate(("content/a.png", "content/b.png", "painted_waves.png")):
        waves = [127 + 120 * np.sin((x * (i + 1) + y * c) / 7) for c in range(3)]
        Image.fromarray(np.stack(waves, -1).astype(np.uint8)).save(folder / name)
    (folder / "content" / "broken.jpg").write_bytes(b"")
    return folder


@pytest.fixture
def config(pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "LOG_EVERY", 0.0)
    monkeypatch.setattr(module, "SLICES", 2)

    def config(**settings):
        tiny = {
            "style": (str(pictures / "painted_waves.png"),),
            "content": str(pictures / "content"),
            "out": str(tmp_path / "sweep"),
            "model": "nano",
            "size": 64,
            "batch": 1,
            "steps": 4,
            "style_size": 64,
            "stages": STAGES[:1],
            "device": "cpu",
        }
        return TrainConfig(**{**tiny, **settings})

    return config


def test_a_sweep_leaves_models_numbers_sheet_curve_and_page(config, tmp_path):
    told = []
    result = sweep(config(), [20.0, 3.0], lambda label, progress: told.append((label, progress)))
    out = tmp_path / "sweep"
    assert result.finished
    assert [p.style_weight for p in result.points] == [3.0, 20.0]
    assert sorted(p.name for p in out.iterdir()) == [
        *("config.toml", "contact_sheet.png", "curve.png"),
        *("style-weight-20", "style-weight-3", "sweep.html", "sweep.json"),
    ]
    assert [p.name for p in result.skipped] == ["broken.jpg"]

    # In turns, and each as far as it goes.
    assert [label for label, _ in told] == [
        *["λ 3, 1 of 2"] * 2, *["λ 20, 2 of 2"] * 2, *["λ 3, 1 of 2"] * 2, *["λ 20, 2 of 2"] * 2
    ]  # fmt: skip
    assert [p.step for _, p in told] == [1, 2, 1, 2, 3, 4, 3, 4]
    fractions = [p.fraction for _, p in told]
    assert fractions == sorted(fractions)
    assert fractions[4] == pytest.approx(0.5)

    # The numbers are those of `faststy evaluate`.
    point, net = result.points[1], load_model(result.points[1].model)
    encoder = module.load_encoder("faststy")
    grams = style_grams(Path(config().style[0]), 64, encoder, module.device_named("cpu"))
    scores = evaluate(
        net, [Path(config().content) / f"{n}.png" for n in "ab"], {"painted_waves": grams}, encoder,
        module.device_named("cpu"),
    ).mean(repaired=False)  # fmt: skip
    assert (point.content, point.style, point.lost) == pytest.approx(
        (scores.content, scores.style, scores.lost)
    )
    assert point.steps == 4

    sheet = Image.open(result.sheet)
    side = module.SHOWN_SIZE
    assert 3 * side < sheet.width < 4 * side  # the photo, and two λ
    assert 2 * side < sheet.height < 3 * side  # two photos
    assert Image.open(result.curve).width > 500
    page = result.page.read_text(encoding="utf-8")
    assert "<h1>painted waves</h1>" in page
    assert page.count("data:image/jpeg;base64,") == 2
    assert "<svg" in page
    assert "://" not in page
    assert "http-equiv=refresh" not in page  # it grows no more
    assert f"<td>{point.content:.3f}<td>{point.style:.3f}" in page
    values = json.loads((out / "sweep.json").read_text())
    assert values["suggested"] == result.suggested
    assert [p["style"] for p in values["points"]] == [p.style for p in result.points]


def test_each_run_is_the_one_that_train_makes(config, tmp_path):
    result = sweep(config(), [3.0, 20.0])
    for point in result.points:
        plain = config(style_weight=point.style_weight, out=str(tmp_path / "plain"))
        path = train(plain, resume=True).model
        assert path.read_bytes() == point.model.read_bytes()
        (tmp_path / "plain").rename(tmp_path / f"plain{point.style_weight}")


def interrupt_at(count):
    seen = []

    def on_progress(label, progress):
        seen.append(label)
        if len(seen) == count:
            signal.raise_signal(signal.SIGINT)

    return on_progress


@pytest.mark.parametrize("count", [3, 6])
def test_interrupted_anywhere_it_goes_on_to_the_same_models(config, tmp_path, count):
    whole = sweep(config(out=str(tmp_path / "whole")), [3.0, 20.0])
    stopped = sweep(config(), [3.0, 20.0], interrupt_at(count))
    assert not stopped.finished
    if count > 4:  # the first round was over: there is something of each
        assert [p.steps for p in stopped.points] == [2, 2]
        assert stopped.sheet.exists()
        assert "50% done" in stopped.page.read_text(encoding="utf-8")
        assert "http-equiv=refresh" in stopped.page.read_text(encoding="utf-8")
    result = sweep(config(), None, resume=True)
    assert result.finished
    assert len(result.points) == 2
    for a, b in zip(result.points, whole.points, strict=True):
        assert a.model.read_bytes() == b.model.read_bytes()
        assert (a.content, a.style) == (b.content, b.style)


def test_killed_before_the_page_was_written_it_is_written_when_the_sweep_goes_on(
    config, monkeypatch
):
    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "SLICES", 1)
        patch.setattr(module, "_show", killed)
        with pytest.raises(KeyboardInterrupt):
            sweep(config(), [3.0])
    result = sweep(config(), None, resume=True)
    assert result.page.exists()
    assert [p.steps for p in result.points] == [4]


def test_a_finished_sweep_can_get_another_λ_and_be_made_longer(config, monkeypatch):
    monkeypatch.setattr(module, "SLICES", 1)
    sweep(config(), [3.0, 20.0])
    trained = []
    real = module.train
    monkeypatch.setattr(
        module, "train", lambda run, *a, **k: trained.append(run.style_weight) or real(run, *a, **k)
    )
    assert [p.steps for p in sweep(config(), None, resume=True).points] == [4, 4]
    assert trained == []  # nothing was left to do
    result = sweep(config(), [3.0, 8.0, 20.0], resume=True)
    assert [p.style_weight for p in result.points] == [3.0, 8.0, 20.0]
    assert trained == [8.0]
    result = sweep(config(), [30.0], resume=True)  # one more, not this one alone
    assert [p.style_weight for p in result.points] == [3.0, 8.0, 20.0, 30.0]
    assert trained == [8.0, 30.0]
    assert [p.steps for p in sweep(config(steps=6), None, resume=True).points] == [6] * 4
    assert read_config(Path(config().out) / "config.toml").steps == 6
    # Shorter than what was done: nothing is trained, and the next one need not be told again.
    sweep(config(steps=5), None, resume=True)
    assert read_config(Path(config().out) / "config.toml").steps == 5


def test_photos_that_cannot_be_read_are_not_among_those_shown_and_judged(
    config, pictures, tmp_path
):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(2 * module.SHOWN):
        if i % 2:
            shutil.copy(pictures / "content" / "a.png", folder / f"{i}.png")
        else:
            (folder / f"{i}.png").write_bytes(b"")
    chosen = module._photos(config(content=str(folder)), module.SHOWN)
    assert [path.name for path in chosen] == ["1.png", "3.png", "5.png", "7.png"]
    result = sweep(config(content=str(folder)), [5.0])
    assert result.page.exists()


def test_photos_that_are_too_small_to_judge_are_not_among_those_chosen(config, pictures, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(module.JUDGED):
        Image.new("RGB", (12, 12), "teal").save(folder / f"{i}.png")
    shutil.copy(pictures / "content" / "a.png", folder / "z.png")
    assert sweep(config(content=str(folder), steps=2), [5.0]).finished
    assert [path.name for path in module._photos(config(content=str(folder)), 8)] == ["z.png"]


def test_photos_are_chosen_once_and_not_moved(config, monkeypatch):
    chosen, moved = [], []
    photos, moving = module._photos, measure.Moving
    monkeypatch.setattr(module, "_photos", lambda *given: chosen.append(1) or photos(*given))
    monkeypatch.setattr(measure, "Moving", lambda *given: moved.append(1) or moving(*given))
    monkeypatch.setattr(module, "SLICES", 2)
    sweep(config(), [3.0, 20.0])
    assert len(chosen) == 1  # in two rounds, for numbers and sheet
    assert not moved


def test_the_page_of_a_sweep_of_this_folder_has_its_name(config, pictures, tmp_path, monkeypatch):
    style = tmp_path / "late_monet"
    style.mkdir()
    shutil.copy(pictures / "painted_waves.png", style)
    monkeypatch.chdir(style)
    page = sweep(config(style=(".",), steps=2), [3.0]).page.read_text(encoding="utf-8")
    assert "<title>late monet · faststy</title>" in page
    assert "<h1>late monet</h1>" in page


def test_a_sheet_of_no_photo_is_refused_in_words(config, pictures):
    with pytest.raises(FaststyError, match="none of the photos can be read any more"):
        module.contact_sheet([], [pictures / "content" / "broken.jpg"], "cpu")


def test_a_run_whose_folder_was_removed_is_trained_again(config):
    before = sweep(config(), [3.0, 20.0])
    shutil.rmtree(before.points[1].run)
    assert sweep(config(), None, resume=True).points == before.points
    assert before.points[1].model.exists()


def test_what_was_lost_of_a_finished_sweep_is_made_again(config, monkeypatch):
    before = sweep(config(), [3.0, 20.0])
    model = before.points[1].model
    weights = model.read_bytes()
    model.unlink()
    assert sweep(config(), None, resume=True).points == before.points
    assert model.read_bytes() == weights
    shown, real = [], module._show
    monkeypatch.setattr(module, "_show", lambda *given: shown.append(1) or real(*given))
    for path in (before.sheet, before.curve, before.page):
        path.unlink()
        sweep(config(), None, resume=True)
        assert path.exists()
    assert len(shown) == 3  # each time once, though there are several rounds


def test_a_sweep_goes_on_from_another_folder(config, pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(pictures)
    sweep(config(style=("painted_waves.png",), content="content", out="here"), [5.0])
    (pictures / "here").rename(tmp_path / "there")
    monkeypatch.chdir(tmp_path)
    recorded = read_config(tmp_path / "there" / "config.toml", out="there")
    result = sweep(recorded, resume=True)
    assert [p.model for p in result.points] == [Path("there/style-weight-5/model.safetensors")]
    assert len(sweep(recorded, [5.0, 20.0], resume=True).points) == 2


def test_weights_are_shared_with_no_other_folder(config):
    sweep(config(steps=1), [3.0])
    with pytest.raises(FaststyError, match="holds a sweep; resume it "):
        sweep(config(steps=1), [3.0])
    with pytest.raises(FaststyError, match="style-weights must be numbers above 0"):
        sweep(config(steps=1), [math.nan, 5.0])
    for resume in (False, True):
        with pytest.raises(FaststyError, match="is the folder of a sweep; go on with it by"):
            train(config(steps=1), resume=resume)
    for steps in (1, 2):  # though with the first of them there is nothing to train
        with pytest.raises(FaststyError, match="this run has seed 0, not 1"):
            sweep(config(steps=steps, seed=1), None, resume=True)
    with pytest.raises(FaststyError, match="this run has seed 0, not 1"):
        sweep(config(steps=1, seed=1), [5.0], resume=True)
    assert not run_folder(Path(config().out), 5.0).exists()
    assert read_config(Path(config().out) / "config.toml").seed == 0
    run = run_folder(Path(config().out), 3.0)
    assert load_checkpoint(checkpoint_path(run))[0].step == 1
    with pytest.raises(FaststyError, match="holds a training run, not a sweep"):
        sweep(config(out=str(run)), [3.0], resume=True)
    for text in ('{"style_weights": ["a"]}', '{"style_weights": 5}'):
        (Path(config().out) / "sweep.json").write_text(text)
        with pytest.raises(FaststyError, match=r"sweep\.json: damaged"):
            sweep(config(), None, resume=True)
    whole = {"style_weights": [3.0], "length": [1, None], "done": {"3": 1.0}, "shown": 1.0}
    point = {"style_weight": 3.0, "run": "", "model": "model.safetensors", "steps": 1}
    for content in ("x", None, math.nan):
        points = [{**point, "style": 0.5, "lost": 0.0, "content": content}]
        (Path(config().out) / "sweep.json").write_text(json.dumps({**whole, "points": points}))
        with pytest.raises(FaststyError, match=r"sweep\.json: damaged"):
            sweep(config(steps=1), None, resume=True)
    (Path(config().out) / "sweep.json").write_text(json.dumps({**whole, "points": []}))
    assert len(sweep(config(steps=1), None, resume=True).points) == 1
    (Path(config().out) / "sweep.json").write_text("[")
    with pytest.raises(FaststyError, match="damaged or not of a sweep"):
        sweep(config(), None, resume=True)


@pytest.mark.parametrize(
    ("settings", "weights", "sentence"),
    [
        ({}, None, "style-weights are missing; give some λ, like 5,15,45"),
        ({}, [], "style-weights are missing"),
        ({}, [5.0, 0.0], "style-weights must be numbers above 0"),
        ({}, [math.nan], "style-weights must be numbers above 0"),
        ({"style": ("a", "b")}, [5.0], "a sweep takes one style"),
        ({"style_share": 0.5}, [5.0], "style-share moves λ by itself"),
        ({"style": ("absent.jpg",)}, [5.0], "absent.jpg: cannot be read"),
        ({"content": "absent"}, [5.0], "absent: content must be a folder"),
    ],
)
def test_what_cannot_be_swept_leaves_nothing_behind(config, tmp_path, settings, weights, sentence):
    with pytest.raises(FaststyError, match=sentence):
        sweep(config(**settings), weights)
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_by_several_workers_is_refused_and_leaves_nothing_behind(
    config, tmp_path, monkeypatch
):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(module, "train", lambda *_, **__: pytest.fail("it began"))
    with pytest.raises(FaststyError, match="a sweep runs in one process, not under torchrun"):
        sweep(config(), [5.0])
    assert list(tmp_path.iterdir()) == []


def test_a_budget_in_seconds_has_rounds_that_are_long_enough(config):
    ends = module._ends(config(steps=None, seconds=30.0))
    assert ends == [1.0]
    assert module._ends(config(steps=None, seconds=60.0)) == [0.5, 1.0]
    assert module._ends(config()) == [0.5, 1.0]


def point(style_weight, content, style):
    return Point(style_weight, Path("a"), Path("b"), 1, content, style, 0.0)


def test_the_suggestion_is_nearest_to_the_best_of_both():
    curve = [point(5, 0.4, 0.2), point(15, 0.5, 0.08), point(45, 0.9, 0.05)]
    assert suggest(curve) == curve[1]
    assert suggest([curve[0], curve[2]]) == curve[0]  # the same: the weaker
    dominated = point(99, 0.95, 0.3)
    assert suggest([*curve, dominated]) != dominated
    assert suggest(curve[:1]) == curve[0]


def test_the_folder_and_what_else_was_in_it_are_kept(config, tmp_path):
    mine = tmp_path / "sweep" / "cache" / "mine.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with pytest.raises(FaststyError, match="must be a folder"):
        sweep(config(content=str(tmp_path / "nothing")), [3.0])
    assert mine.exists()
    assert sweep(config(steps=2), [3.0]).finished
    assert mine.exists()
    assert [path.name for path in mine.parent.iterdir()] == ["mine.txt"]


def test_a_style_folder_may_hold_pictures_that_cannot_be_read(config, pictures, tmp_path):
    style = tmp_path / "waves"
    (style / "more").mkdir(parents=True)
    (style / "a_broken.jpg").write_bytes(b"")
    (style / "more" / "waves.png").write_bytes((pictures / "painted_waves.png").read_bytes())
    found = sweep(config(style=(str(style),), steps=2), [3.0])
    alone = sweep(config(out=str(tmp_path / "alone"), steps=2), [3.0])
    assert found.points[0].style == alone.points[0].style
    assert {path.name for path in found.skipped} == {"a_broken.jpg", "broken.jpg"}
    pages = [found.page, found.points[0].run / "report.html"]
    assert all('alt="the style picture"' in page.read_text() for page in pages)


def test_λ_come_as_any_numbers_and_are_told_apart_by_what_they_are_called(config, tmp_path):
    sweep(config(), iter(np.array([5.0, 0.1 + 0.2, 0.3, 15.000000000000004])))
    folders = {path.name for path in (tmp_path / "sweep").glob("style-weight-*")}
    assert folders == {"style-weight-0.3", "style-weight-5", "style-weight-15"}
    assert len(sweep(config(), [5, 15], resume=True).points) == 3


def test_a_sheet_that_cannot_be_written_costs_no_training(config, tmp_path):
    (tmp_path / "sweep" / module.SHEET).mkdir(parents=True)
    (tmp_path / "sweep" / module.SHEET / "mine").touch()
    result = sweep(config(), [5.0])
    assert result.finished
    assert [event for event in result.events if "sweep --resume makes it again" in event]
    shutil.rmtree(tmp_path / "sweep" / module.SHEET)
    assert sweep(config(), resume=True).events == ()
    assert (tmp_path / "sweep" / module.SHEET).is_file()
