"""Whole runs, tiny: what is left of them, and that they can be broken off and gone on with."""

import json
import signal
import threading

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from faststy.errors import FaststyError
from faststy.model_file import load_model
from faststy.training import loop
from faststy.training.checkpoint import checkpoint_path
from faststy.training.config import STAGES, TrainConfig, read_config
from faststy.training.loop import style_names, train


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """content/ with two photos and a broken one, and two styles."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "content").mkdir()
    y, x = np.mgrid[:80, :80]
    for i, name in enumerate(("content/a.png", "content/b.png", "one.png", "two.png")):
        waves = [127 + 120 * np.sin((x * (i + 1) + y * c) / 7) for c in range(3)]
        Image.fromarray(np.stack(waves, -1).astype(np.uint8)).save(folder / name)
    (folder / "content" / "broken.jpg").write_bytes(b"")
    return folder


@pytest.fixture
def config(pictures, tmp_path):
    def config(**settings):
        tiny = {
            "style": (str(pictures / "one.png"),),
            "content": str(pictures / "content"),
            "out": str(tmp_path / "run"),
            "model": "nano",
            "size": 64,
            "batch": 1,
            "steps": 10,
            "style_size": 64,
            "device": "cpu",
        }
        return TrainConfig(**{**tiny, **settings})

    return config


def rows(run):
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def test_a_run_passes_all_stages_and_leaves_everything(config, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "LOG_EVERY", 0.0)
    seen = []
    result = train(config(), seen.append)
    run = tmp_path / "run"
    assert result.run == run
    assert result.model == run / "model.safetensors"
    assert result.finished
    assert result.steps == 10
    assert result.images_per_second > 0
    assert [path.name for path in result.skipped] == ["broken.jpg"]
    assert sorted(p.name for p in run.iterdir()) == [
        "checkpoint",
        "config.toml",
        "log.jsonl",
        "model.safetensors",
        "preview.png",
        "report.html",
    ]
    assert [p.step for p in seen] == list(range(1, 11))
    assert list(dict.fromkeys(p.stage for p in seen)) == list(STAGES)
    assert seen[0].preview == run / "preview.png"
    assert seen[0].style_weight <= seen[-1].style_weight

    model = load_model(result.model)
    assert model.info.styles == ["one"]
    assert model.info.steps == 10
    assert model.repairer is not None
    assert read_config(run / "config.toml") == config()
    photo, *others = np.split(np.asarray(Image.open(run / "preview.png"))[:80, :80], 1)
    assert not others
    assert photo.std() > 10
    assert Image.open(run / "preview.png").width > 4 * 80  # four columns
    report = (run / "report.html").read_text(encoding="utf-8")
    assert "data:image/" in report
    assert "adversarial" in report

    logged = rows(run)
    assert [row["step"] for row in logged] == list(range(1, 11))
    assert [row["stage"] for row in logged] == [p.stage for p in seen]
    assert all(np.isfinite(value) for row in logged for value in row["terms"].values())
    assert "adversarial" not in logged[0]["terms"]
    assert "map" in logged[-1]["terms"]


def test_terms_of_two_stages_are_not_mixed_and_the_last_step_is_logged(
    config, tmp_path, monkeypatch
):
    monkeypatch.setattr(loop, "LOG_EVERY", 1e9)
    train(config())
    logged = rows(tmp_path / "run")
    assert [row["step"] for row in logged] == [1, 10]
    assert logged[1]["stage"] == "repair"
    assert "content" not in logged[1]["terms"]


def test_the_shipped_generator_is_the_average(config, tmp_path):
    train(config(steps=3))
    model = load_file(tmp_path / "run" / "model.safetensors")
    state = load_file(checkpoint_path(tmp_path / "run"))
    for name, value in model.items():
        if name.startswith("generator."):
            assert torch.equal(value, state["net.average." + name.removeprefix("generator.")])


def test_several_styles_and_fewer_stages(config, pictures):
    styles = tuple(str(pictures / f"{name}.png") for name in ("one", "two", "one"))
    result = train(config(style=styles, stages=STAGES[:1], steps=3))
    model = load_model(result.model)
    assert model.info.styles == ["one", "two", "one-2"]
    assert model.generator.config.styles == 3
    assert model.repairer is None


def test_pairs_are_learnt(config, pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "LOG_EVERY", 0.0)
    for name, source in (("before", "content/a.png"), ("after", "two.png")):
        (tmp_path / name).mkdir()
        Image.open(pictures / source).save(tmp_path / name / "a.png")
    train(config(pairs=str(tmp_path), stages=STAGES[:1], steps=3))
    assert all(row["terms"]["paired"] > 0 for row in rows(tmp_path / "run"))


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(config, tmp_path):
    def model(out, **settings):
        return train(config(out=str(tmp_path / out), steps=5, **settings)).model.read_bytes()

    first = model("a")
    torch.manual_seed(1234)  # nothing outside the run matters
    assert model("b") == first
    assert model("c", seed=1) != first


@pytest.mark.parametrize("after", [1, 7, 9])
def test_interrupted_in_any_stage_it_goes_on_to_the_same_bytes(
    config, tmp_path, after, monkeypatch
):
    monkeypatch.setattr(loop, "LOG_EVERY", 0.0)
    undisturbed = train(config(out=str(tmp_path / "whole"))).model.read_bytes()

    def interrupt(progress):
        if progress.step == after:
            signal.raise_signal(signal.SIGINT)

    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    result = train(config(), interrupt)
    assert (result.finished, result.steps) == (False, after)
    assert not result.model.exists()
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == handlers
    with (tmp_path / "run" / "log.jsonl").open("a") as file:
        file.write('{"step": 10, "torn')

    result = train(config(), resume=True)
    assert (result.finished, result.steps) == (True, 10)
    assert result.model.read_bytes() == undisturbed
    assert [row["step"] for row in rows(tmp_path / "run")] == list(range(1, 11))
    seconds = [row["seconds"] for row in rows(tmp_path / "run")]
    assert seconds == sorted(seconds)


def test_a_finished_run_can_be_made_longer(config, tmp_path):
    train(config(steps=3))
    assert train(config(steps=3), resume=True).steps == 3
    assert train(config(steps=5), resume=True).steps == 5


def test_a_run_that_is_there_is_not_overwritten(config, tmp_path):
    train(config(steps=2))
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    with pytest.raises(FaststyError, match="holds a training run; go on with --resume or"):
        train(config(steps=3))
    assert {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()} == before


def test_resuming_nothing_starts_anew(config):
    assert train(config(steps=2), resume=True).steps == 2


def test_a_resume_that_does_not_fit_leaves_the_run_as_it_was(config, tmp_path):
    train(config(steps=2))
    with pytest.raises(FaststyError, match="not a checkpoint of this run"):
        train(config(steps=4, model="fast"), resume=True)
    assert read_config(tmp_path / "run" / "config.toml").model == "nano"
    assert train(config(steps=4), resume=True).steps == 4


@pytest.mark.parametrize("wrong", ["style", "content", "pairs", "encoder", "device"])
def test_what_cannot_be_trained_leaves_no_run_behind(config, tmp_path, wrong):
    absent = str(tmp_path / "absent.png")
    with pytest.raises(FaststyError, match="absent"):
        train(config(**{wrong: (absent,) if wrong == "style" else absent}))
    assert not (tmp_path / "run").exists()
    assert train(config(steps=1)).finished


def test_a_budget_in_seconds_is_used_and_kept(config):
    result = train(config(steps=None, seconds=6.0))
    assert result.finished
    assert 2 < result.seconds < 20  # generous, for a busy machine
    assert load_model(result.model).info.steps == result.steps > 0


def test_training_in_another_thread(config):
    """Signals belong to the main thread only."""
    results = []
    thread = threading.Thread(target=lambda: results.append(train(config(steps=2))))
    thread.start()
    thread.join(60)
    assert results[0].finished


def test_no_thread_outlives_a_run_that_fails(config):
    def fail(progress):
        raise RuntimeError("display")

    with pytest.raises(RuntimeError, match="display"):
        train(config(), fail)
    for thread in threading.enumerate():
        if thread.name == "faststy-prefetch":
            thread.join(10)
            assert not thread.is_alive()


def test_styles_of_the_same_name_are_told_apart():
    assert style_names(("x/a-b.jpg", "y/a-b.png", "a.jpg", "z/a-b", "a-2.png", "q/a.png")) == [
        "a-b",
        "a-b-2",
        "a",
        "a-b-3",
        "a-2",
        "a-3",
    ]
