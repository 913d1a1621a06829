"""Whole runs, tiny: what is left of them, and that they can be broken off and gone on with."""

import errno
import json
import os
import shutil
import signal
import threading
import time
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from faststy.errors import FaststyError, UnwritableError
from faststy.model_file import load_model
from faststy.training import chore, guards, loop, picture_cache
from faststy.training.checkpoint import checkpoint_path, newest_checkpoint
from faststy.training.config import STAGES, TrainConfig, read_config
from faststy.training.dataset import prefetch
from faststy.training.folder import was_made_by
from faststy.training.loop import style_names, train
from faststy.training.signals import stop_signals
from faststy.training.step import Trainer
from faststy.training.style_weight import StyleWeight

CPU = torch.device("cpu")


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
    lines = (run / "log.jsonl").read_text().splitlines()
    return [row for line in lines if "terms" in (row := json.loads(line))]


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
    assert model.info.content == "2 photos"  # without the broken one
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


def test_the_longer_a_run_the_fewer_lines(config, monkeypatch):
    """As the report reads them all, again and again."""
    monkeypatch.setattr(loop, "LOG_EVERY", 1e-6)
    assert len(rows(train(config()).run)) == 10
    monkeypatch.setattr(loop, "LOG_OFTEN", 1e-9)  # seconds, which are long over
    long = train(config(out=f"{config().out}-long"))
    assert [row["step"] for row in rows(long.run)] == [1, 10]


def test_what_was_learned_last_is_logged_of_runs_that_end_otherwise(config, monkeypatch):
    monkeypatch.setattr(loop, "LOG_EVERY", 1e9)
    real, taken, told = Trainer.take, [], []

    def take(self, drawn, style_weight):
        taken.append(1)
        if len(taken) == 5:
            stop()
        return real(self, drawn, style_weight)

    monkeypatch.setattr(Trainer, "take", take)
    stopped = train(config(), told.append)
    assert (stopped.steps, [row["step"] for row in rows(stopped.run)]) == (5, [1, 5])
    part = train(config(), told.append, resume=True, until=0.8)
    assert [row["step"] for row in rows(part.run)] == [1, 5, 6, 8]
    timed = train(config(steps=None, seconds=3.0, out=f"{config().out}-timed"), told.append)
    assert rows(timed.run)[-1]["step"] == timed.steps > 1
    assert f"{timed.steps:,} steps · " in (timed.run / "report.html").read_text(encoding="utf-8")
    assert [p.step for p in told] == [1, 5, 6, 8, 1, timed.steps]
    assert [p.fraction for p in told[1::2]] == [0.5, 0.8, 1.0]


def test_the_speed_that_is_told_is_that_of_now(config, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "LOG_EVERY", 0.0)
    real, slow = Trainer.take, 0.5

    def take(self, drawn, style_weight):
        take.count += 1
        if take.count > 4:
            time.sleep(slow)
        return real(self, drawn, style_weight)

    take.count = 0
    monkeypatch.setattr(Trainer, "take", take)
    train(config(steps=7, stages=STAGES[:1]))
    lines = (tmp_path / "run" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if "stage" in row]
    assert [row["step"] for row in rows] == list(range(1, 8))
    assert all(row["images_per_second"] <= 1 / slow for row in rows[4:])
    # The mean of the whole run would be more.
    assert max(row["images_per_second"] for row in rows[:4]) > 1 / slow


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


def test_a_repairer_that_does_harm_is_left_out_of_model_and_preview(config, monkeypatch):
    with Image.open(train(config(out=f"{config().out}-before")).run / "preview.png") as preview:
        columns = round(preview.width / 80)
    assert columns == 4  # photo, painting, map and repair
    seen = []

    def settle(guards, step, photos):
        seen.extend(photos)
        return [f"step {step}: harm"], False

    monkeypatch.setattr(loop.Guards, "settle", settle)
    result = train(config())
    assert load_model(result.model).repairer is None
    with Image.open(result.run / "preview.png") as preview:
        assert round(preview.width / 80) == 2
    assert "<figcaption>Photo, painting.<" in (result.run / "report.html").read_text("utf-8")
    assert result.events[-1] == "step 10: harm"
    assert {tuple(photo.shape) for photo in seen} == {(1, 3, 64, 64)}  # whole, and small


def test_a_repairer_that_learned_nothing_is_left_out(config):
    result = train(config(steps=3))
    assert [row["stage"] for row in rows(result.run)][-1] == "adversarial"
    model = load_model(result.model)
    assert model.repairer is None
    assert model.info.style_weight == rows(result.run)[-1]["style_weight"] == 20
    young = train(config(steps=1, out=f"{config().out}-young"))  # λ has hardly begun to rise
    assert load_model(young.model).info.style_weight == rows(young.run)[-1]["style_weight"] == 2


def test_photos_that_vanish_before_the_last_look_lose_nothing(config, tmp_path, monkeypatch):
    def gone(*args):
        raise FaststyError("none of 3 pictures can be read")

    monkeypatch.setattr(loop, "whole", gone)
    with pytest.raises(FaststyError, match="none of 3"):
        train(config())
    monkeypatch.undo()
    assert train(config(), resume=True).steps == 10  # all of them were done


def test_killed_in_the_last_look_all_steps_are_done(config, monkeypatch):
    class Killed(BaseException):
        pass

    def kill(*_):
        raise Killed

    undisturbed = train(config(out=f"{config().out}-whole")).model.read_bytes()
    monkeypatch.setattr(loop.Guards, "settle", kill)
    with pytest.raises(Killed):
        train(config())
    monkeypatch.undo()
    monkeypatch.setattr(Trainer, "take", lambda *_: pytest.fail("a step was made again"))
    assert train(config(), resume=True).model.read_bytes() == undisturbed


def test_what_the_last_look_takes_is_kept_of_the_seconds(config, pictures, monkeypatch):
    """It grows with the styles, more than the preview does."""
    kept, real = [], loop.Schedule.fraction

    def fraction(self, step, seconds, idle=0.0, last=0.0):
        kept.append(last)
        return real(self, step, seconds, idle, last)

    monkeypatch.setattr(loop.Schedule, "fraction", fraction)
    monkeypatch.setattr(loop.Chore, "timed", lambda self, work: work)  # all cost what was guessed
    reserved = []
    for count in (1, 3, 12):
        kept.clear()
        styles = (str(pictures / "one.png"),) * count
        train(config(style=styles, steps=1, out=f"{config().out}-{count}", stages=STAGES[:1]))
        reserved.append(kept[0])
    cost = loop.Chore(1.0).cost
    assert reserved == pytest.approx([4.8 * cost, 6.4 * cost, 6.4 * cost])


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


@pytest.mark.parametrize("after", [4, 17, 31])
def test_a_run_whose_λ_is_controlled_goes_on_to_the_same_bytes(
    config, tmp_path, after, monkeypatch
):
    monkeypatch.setattr(loop, "LOG_EVERY", 0.0)
    settings = {"style_share": 0.9, "steps": 40, "stages": STAGES[:1]}
    whole = train(config(out=str(tmp_path / "whole"), **settings))
    train(config(**settings), lambda p: p.step == after and stop())
    result = train(config(**settings), resume=True)
    assert result.model.read_bytes() == whole.model.read_bytes()
    logged = [[row["style_weight"] for row in rows(r.run)] for r in (whole, result)]
    assert logged[0] == logged[1]
    assert load_model(whole.model).info.style_weight == logged[0][-1]
    assert (whole.events[-1] in result.events) == (after < 31)  # it held before
    assert "λ holds at" in whole.events[-1]
    for row in rows(result.run):
        styled = row["style_weight"] * (row["terms"]["style"] + row["terms"]["colour"])
        assert row["terms"]["style_share"] == pytest.approx(styled / row["terms"]["total"])
    assert "<b>style_share</b>" in (result.run / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("base", ["none", "auto"])
def test_a_run_done_in_parts_leaves_a_model_each_time_and_ends_with_the_same_bytes(
    config, tmp_path, base
):
    config = partial(config, steps=20, base=base, model="fast")
    whole = train(config(out=str(tmp_path / "whole"))).model.read_bytes()
    steps, repairers = [], []
    for until in (0.25, 0.5, 0.9, 1.0):
        result = train(config(), resume=True, until=until)
        assert (result.finished, result.interrupted) == (until == 1, False)
        steps.append(result.steps)
        repairers.append(load_model(result.model).repairer is not None)
        again = train(config(), resume=True, until=until)  # nothing is left to do
        assert again.steps == result.steps
        assert again.model.read_bytes() == result.model.read_bytes()
    assert steps == [5, 10, 18, 20]
    assert repairers == [False, False, True, True]  # it is trained last
    assert result.model.read_bytes() == whole


@pytest.mark.parametrize("until", [0, -1, 1.5, float("nan")])
def test_a_part_that_no_run_has_is_refused(config, tmp_path, until):
    with pytest.raises(FaststyError, match=f"^until is {until}; it must be above 0, and 1 at most"):
        train(config(), until=until)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_callers_modes_and_random_states_play_no_part(config, tmp_path, monkeypatch, mode):
    expected = train(config(base="none")).model.read_bytes()
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("a GPU was seeded"))
    state = torch.get_rng_state()
    with mode():
        result = train(config(base="none", out=str(tmp_path / mode.__name__)))
    assert result.model.read_bytes() == expected
    assert torch.equal(torch.get_rng_state(), state)


def test_events_for_tensorboard_go_on_with_the_run(config, tmp_path, monkeypatch):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.setattr(loop, "LOG_EVERY", 0.0)
    plain = train(config(out=str(tmp_path / "plain"))).model.read_bytes()
    train(config(tensorboard=True), lambda p: p.step == 6 and stop())
    result = train(config(tensorboard=True), resume=True)
    assert result.model.read_bytes() == plain
    found = accumulator.EventAccumulator(str(result.run))
    found.Reload()
    for name, expected in [
        ("style_weight", [row["style_weight"] for row in rows(result.run)]),
        ("terms/total", [row["terms"]["total"] for row in rows(result.run)]),
    ]:
        seen = found.Scalars(name)
        assert [event.step for event in seen] == list(range(1, 11))
        assert [event.value for event in seen] == pytest.approx(expected)
    assert found.Images("preview")


def test_a_finished_run_can_be_made_longer(config, tmp_path):
    train(config(steps=3))
    assert train(config(steps=3), resume=True).steps == 3
    assert train(config(steps=5), resume=True).steps == 5


def test_a_run_that_is_ended_where_it_is_tells_the_λ_of_its_last_step(config, monkeypatch):
    monkeypatch.setattr(loop, "LOG_EVERY", 0.0)
    train(config(steps=20), lambda p: p.step == 3 and stop())
    result = train(config(steps=3), resume=True)
    assert (result.finished, result.steps) == (True, 3)
    λ = load_model(result.model).info.style_weight
    assert λ == rows(result.run)[-1]["style_weight"] < 20


def test_a_run_that_is_there_is_not_overwritten(config, tmp_path):
    train(config(steps=2))
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    with pytest.raises(FaststyError, match="holds a training run; resume it "):
        train(config(steps=3))
    assert {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()} == before


def test_what_a_run_shows_is_not_learned(config, tmp_path):
    with pytest.raises(FaststyError, match="is a folder of pictures to learn from; name another"):
        train(config(out=config().content))
    inside = config(out=f"{config().content}/run", steps=2)
    learned = loop._content(inside, picture_cache.PictureCache())
    train(inside)
    assert (tmp_path / inside.out / "preview.png").exists()
    assert loop._content(inside, picture_cache.PictureCache()).paths == learned.paths
    assert train(replace(inside, steps=3), resume=True).steps == 3


def test_an_ignored_signal_stays_ignored_and_a_closed_terminal_stops():
    before = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGHUP)}
    try:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # of tests under nohup it is ignored, too
        with stop_signals() as stopped:
            signal.raise_signal(signal.SIGTERM)
            assert not stopped.is_set()
            signal.raise_signal(signal.SIGHUP)
            assert stopped.is_set()
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_a_device_that_only_paints_is_refused(config, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "device_named", lambda name: torch.device("mps"))
    with pytest.raises(FaststyError, match="'mps' cannot train, only paint; use cpu or cuda"):
        train(config(device="mps", batch=1))
    assert not (tmp_path / "run").exists()


def test_resuming_nothing_starts_anew(config):
    assert train(config(steps=2), resume=True).steps == 2


def test_a_model_whose_checkpoint_is_gone_is_not_trained_over(config):
    result = train(config(steps=3))
    before = {p: p.read_bytes() for p in result.run.iterdir() if p.is_file()}
    shutil.rmtree(result.run / "checkpoint")
    with pytest.raises(FaststyError, match="holds a model but no checkpoint to go on from; begin"):
        train(config(steps=2), resume=True)
    assert {p: p.read_bytes() for p in result.run.iterdir()} == before
    again = config(steps=2, base=str(result.model), out=f"{result.run}-again")
    assert train(again).events[0].startswith("begins as 'one' of ")


def test_a_run_without_a_checkpoint_begins_anew_and_says_so(config, monkeypatch):
    monkeypatch.setattr(loop, "LOG_EVERY", 0.0)
    train(config(), lambda p: p.step == 4 and stop())
    shutil.rmtree(config().out + "/checkpoint")
    result = train(config(), resume=True)
    assert result.events[0] == "no checkpoint was saved; after 4 steps, the run begins anew"
    assert [row["step"] for row in rows(result.run)] == list(range(1, 11))


def test_a_run_goes_on_from_another_folder(config, pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(pictures)
    train(config(steps=2, style=("one.png",), content="content"))
    train(config(steps=3, style=("./one.png",), content="content"), resume=True)
    monkeypatch.chdir(tmp_path)
    recorded = read_config(tmp_path / "run" / "config.toml", steps=4)
    assert train(recorded, resume=True).steps == 4
    assert was_made_by(tmp_path / "run", replace(recorded, batch=None))
    assert was_made_by(tmp_path / "run", replace(recorded, out="run"))
    assert not was_made_by(tmp_path / "run", replace(recorded, batch=2))
    assert not was_made_by(tmp_path / "run", replace(recorded, steps=5))
    assert not was_made_by(tmp_path / "none", recorded)


def test_a_run_goes_on_with_its_own_batch_where_none_is_given(config, tmp_path):
    train(config(steps=1, batch=3))
    assert train(config(steps=2, batch=None), resume=True).steps == 2
    assert read_config(tmp_path / "run" / "config.toml").batch == 3


def test_a_resume_with_other_settings_is_refused_and_leaves_the_run_as_it_was(config, tmp_path):
    train(config(steps=2))
    with pytest.raises(FaststyError, match="this run has model nano, not fast; go on without"):
        train(config(steps=4, model="fast"), resume=True)
    assert read_config(tmp_path / "run" / "config.toml").model == "nano"
    assert train(config(steps=4), resume=True).steps == 4


@pytest.mark.parametrize(
    ("setting", "value", "sentence"),
    [
        ("size", 72, "this run has size 64, not 72"),
        ("style_weight", 3.0, "this run has style-weight 20.0, not 3.0"),
        ("stages", STAGES[:1], "stages perceptual,adversarial,repair, not perceptual; go on"),
        ("pairs", "b", "this run has pairs None, not b"),
    ],
)
def test_only_the_length_of_a_run_can_be_changed(config, setting, value, sentence):
    train(config(steps=1))
    with pytest.raises(FaststyError, match=sentence):
        train(config(steps=2, **{setting: value}), resume=True)
    assert train(config(steps=2, checkpoint_every=5.0), resume=True).steps == 2


def test_of_a_damaged_checkpoint_the_one_before_is_used(config, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "LOG_EVERY", 0.0)
    undisturbed = train(config(out=str(tmp_path / "whole"))).model.read_bytes()
    train(config(steps=10, checkpoint_every=1e-9), lambda p: p.step == 6 and stop())
    state = checkpoint_path(tmp_path / "run")
    data = bytearray(state.read_bytes())
    data[len(data) // 2] ^= 1
    state.unlink()
    state.write_bytes(data)
    result = train(config(steps=10), resume=True)
    assert result.model.read_bytes() == undisturbed
    assert "its checksum is wrong" in result.events[0]
    assert "going on from step " in result.events[0]
    assert {"event", "step"} in [set(row) for row in everything(tmp_path / "run")]


@pytest.mark.parametrize("part", [guards.Guards, StyleWeight])
def test_a_checkpoint_of_another_version_is_refused_in_a_sentence(config, monkeypatch, part):
    train(config(steps=3, style_share=0.5), lambda p: stop())
    real = part.state

    def state(self):
        values, tensors = real(self)
        inner = values.get("style_weight", values)
        inner["of_later"] = 1
        return values, tensors

    monkeypatch.setattr(part, "state", state)
    train(config(steps=5, style_share=0.5), lambda p: stop(), resume=True)
    monkeypatch.undo()
    with pytest.raises(FaststyError, match="does not fit this run: it is of another version"):
        train(config(steps=9, style_share=0.5), resume=True)


def test_what_threads_draw_ahead_is_what_is_drawn_in_turn(config, tmp_path, monkeypatch):
    """As on a GPU; when a stage begins, they have drawn for the one before."""
    in_turn = train(config(out=str(tmp_path / "in_turn"), batch=2)).model.read_bytes()
    monkeypatch.setattr(loop, "_ahead", lambda draw, first, device: prefetch(draw, first))
    asked, real = [], Trainer.draw

    def noted(self, step, stage, *rest):
        asked.append((step, stage, threading.current_thread().name))
        return real(self, step, stage, *rest)

    monkeypatch.setattr(Trainer, "draw", noted)
    result = train(config(batch=2))
    assert result.model.read_bytes() == in_turn
    again = [step for step, _, thread in asked if not thread.startswith("faststy-prefetch")]
    assert {4, 5, 6, 7} & set(again)
    assert 0 not in again


def stop():
    signal.raise_signal(signal.SIGINT)


def no_constant(name):
    raise ValueError(name)


def everything(run):
    """All lines of the log, as strict JSON."""
    lines = (run / "log.jsonl").read_text().splitlines()
    return [json.loads(line, parse_constant=no_constant) for line in lines]


def test_losses_that_are_not_finite_end_in_a_sound_model_and_strict_json(
    config, tmp_path, monkeypatch
):
    monkeypatch.setattr(loop, "LOG_EVERY", 0.0)
    real = Trainer.draw

    def poisoned(self, step, stage, photo, pair):
        return real(self, step, stage, photo * float("nan") if 12 <= step < 27 else photo, pair)

    monkeypatch.setattr(Trainer, "draw", poisoned)
    told = []
    result = train(config(steps=40, stages=STAGES[:1]), lambda p: told.extend(p.events))
    assert result.finished
    assert result.steps == 40
    assert 0 < result.skipped_steps <= 15
    assert "step 20: 8 updates were not finite and were skipped" in told
    assert "the loss was not finite; back to the state of step 0, learning rate x 0.3" in told[1]
    assert tuple(told) == result.events
    rows = everything(tmp_path / "run")
    assert [row["terms"]["total"] for row in rows if row["step"] == 15 and "terms" in row] == [None]
    assert all(t.isfinite().all() for t in load_file(result.model).values())
    assert "not finite" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


def test_a_learning_rate_far_too_high_is_found_out_and_made_smaller(config, monkeypatch):
    monkeypatch.setattr(guards, "BLANK_POLLS", 4)
    monkeypatch.setattr(loop, "LOG_EVERY", 0.0)
    result = train(config(steps=90, learning_rate=0.9, stages=STAGES[:1]))
    assert "neither the photo nor the style; back to the state of step 0" in result.events[0]
    assert rows(result.run)[-1]["terms"]["style"] < 0.3
    assert all(t.isfinite().all() for t in load_file(result.model).values())


@pytest.fixture
def decoding(monkeypatch, pictures, tmp_path):
    """Pictures are decoded each time; the photos can be taken away."""
    monkeypatch.setattr(picture_cache, "MEMORY", 0)
    monkeypatch.setattr(picture_cache, "RESERVE", 1 << 60)
    monkeypatch.setattr(loop, "LOG_EVERY", 0.0)
    shutil.copytree(pictures / "content", tmp_path / "photos")
    return tmp_path / "photos"


def test_photos_that_vanish_are_skipped_and_listed(config, decoding):
    (decoding / "broken.jpg").unlink()
    vanish = (decoding / "a.png").unlink
    result = train(config(content=str(decoding)), lambda p: p.step == 3 and vanish())
    assert result.finished
    assert [path.name for path in result.skipped] == ["a.png"]
    assert "less than" in result.events[0]  # no room for a cache


def test_when_all_photos_vanish_the_state_is_saved(config, decoding, pictures, tmp_path):
    undisturbed = train(config(out=str(tmp_path / "whole"), content=str(decoding)))

    def vanish(progress):
        if progress.step == 4:
            shutil.rmtree(decoding)

    with pytest.raises(FaststyError, match="none of 3 pictures can be read"):
        train(config(content=str(decoding)), vanish)
    shutil.copytree(pictures / "content", decoding)
    assert newest_checkpoint(checkpoint_path(tmp_path / "run"))[0].step == 4
    result = train(config(content=str(decoding)), resume=True)
    assert result.model.read_bytes() == undisturbed.model.read_bytes()


@pytest.mark.parametrize("shared", [False, True])
def test_a_cache_changes_nothing_but_the_decoding(config, tmp_path, monkeypatch, shared):
    expected = train(config(out=str(tmp_path / "whole"))).model.read_bytes()
    monkeypatch.setattr(picture_cache, "MEMORY", 0)
    monkeypatch.setattr(picture_cache, "RESERVE", 0)
    own = str(tmp_path / "shared") if shared else None
    result = train(config(steps=10, cache=own), lambda p: p.step == 1 and stop())
    assert not result.finished
    assert (tmp_path / "run" / "cache").exists() != shared
    assert train(config(cache=own), resume=True).model.read_bytes() == expected
    assert not (tmp_path / "run" / "cache").exists()
    assert (tmp_path / "shared").exists() == shared


def test_a_disk_that_is_full_for_a_while(config, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "LOG_EVERY", 0.0)
    monkeypatch.setattr(chore, "SHARE", 1.0)
    undisturbed = train(config(out=str(tmp_path / "whole"))).model.read_bytes()
    real = os.fsync

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def disk(progress):
        monkeypatch.setattr(os, "fsync", full if 3 <= progress.step < 7 else real)

    result = train(config(checkpoint_every=1e-9), disk)
    assert result.model.read_bytes() == undisturbed
    failed, again = (event for event in result.events if "checkpoint" in event)
    assert failed.startswith("step 3: ")
    assert failed.endswith("cannot be written (No space left on device); training goes on")
    assert again == "step 7: the checkpoint can be written again"


def test_a_disk_that_is_full_at_the_end_lets_nothing_go_on(config, monkeypatch):
    monkeypatch.setattr(loop, "LOG_EVERY", 0.0)

    def full(*_):
        raise FaststyError("state.safetensors: cannot be written")

    def stop_then(progress):
        monkeypatch.setattr(loop, "save_checkpoint", full)
        stop()

    result = train(config(), stop_then)
    assert result.events == (f"step {result.steps}: state.safetensors: cannot be written",)


@pytest.mark.parametrize("wrong", ["style", "content", "pairs", "encoder", "device"])
def test_what_cannot_be_trained_leaves_no_run_behind(config, tmp_path, wrong):
    absent = str(tmp_path / "absent.png")
    with pytest.raises(FaststyError, match="absent"):
        train(config(**{wrong: (absent,) if wrong == "style" else absent}))
    assert not (tmp_path / "run").exists()
    assert train(config(steps=1)).finished


def test_settings_that_cannot_be_written_leave_no_folder(config, tmp_path):
    with pytest.raises(FaststyError, match="which is not Unicode"):
        train(config(cache=str(tmp_path / os.fsdecode(b"ca\xff"))))
    assert not (tmp_path / "run").exists()


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
        if thread.name.startswith("faststy-prefetch"):
            thread.join(10)
            assert not thread.is_alive()


@pytest.mark.parametrize("error", [RuntimeError, SystemExit])  # rich ends a program so
def test_a_display_that_fails_costs_no_steps(config, tmp_path, monkeypatch, error):
    monkeypatch.setattr(loop, "LOG_EVERY", 0.0)
    undisturbed = train(config(out=str(tmp_path / "whole"))).model.read_bytes()

    def fail(progress):
        if progress.step == 4:
            raise error

    with pytest.raises(error):
        train(config(), fail)
    assert newest_checkpoint(checkpoint_path(tmp_path / "run"))[0].step == 4
    assert train(config(), resume=True).model.read_bytes() == undisturbed


def test_styles_of_the_same_name_are_told_apart():
    assert style_names(("x/a-b.jpg", "y/a-b.png", "a.jpg", "z/a-b", "a-2.png", "q/a.png")) == [
        "a-b",
        "a-b-2",
        "a",
        "a-b-3",
        "a-2",
        "a-3",
    ]


def test_too_little_memory_is_said_in_a_sentence(config, monkeypatch):
    def take(self, drawn, style_weight):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 B")

    monkeypatch.setattr(Trainer, "take", take)
    with pytest.raises(FaststyError, match="not enough memory for steps of 1 crops of 64 px"):
        train(config())


def test_memory_that_runs_out_for_a_moment_costs_what_came_after_the_last_checkpoint(
    config, tmp_path, monkeypatch
):
    monkeypatch.setattr(loop, "LOG_EVERY", 0.0)
    monkeypatch.setattr(chore, "SHARE", 1.0)
    undisturbed = train(config(out=str(tmp_path / "whole"))).model.read_bytes()
    real = Trainer._judged

    def judged(self, *given):
        if self.optimisers["discriminator"].count > 2:  # which has learned in this step already
            raise MemoryError
        return real(self, *given)

    monkeypatch.setattr(Trainer, "_judged", judged)
    with pytest.raises(FaststyError, match="64 px with the nano model; resume the run "):
        train(config(checkpoint_every=1e-9))
    monkeypatch.undo()
    assert train(config(), resume=True).model.read_bytes() == undisturbed


@pytest.mark.parametrize("error", [MemoryError, torch.OutOfMemoryError])
def test_a_preview_without_memory_costs_the_preview(config, tmp_path, monkeypatch, error):
    monkeypatch.setattr(loop, "LOG_EVERY", 0.0)
    monkeypatch.setattr(loop, "PREVIEW_EVERY", 0.0)
    monkeypatch.setattr(chore, "SHARE", 1e9)
    undisturbed = train(config(out=str(tmp_path / "whole"))).model.read_bytes()
    painted, paint = [], loop.paint_preview

    def preview(*given):
        painted.append(1)
        if 2 <= len(painted) <= 4:
            raise error("CUDA out of memory.\nTried to allocate 2.00 GiB")
        paint(*given)

    monkeypatch.setattr(loop, "paint_preview", preview)
    result = train(config())
    assert result.model.read_bytes() == undisturbed
    assert result.events == (
        "step 2: not enough memory for the preview; training goes on",
        "step 5: the preview can be written again",
    )


def test_a_preview_that_is_wrong_is_no_lack_of_memory(config, monkeypatch):
    def wrong(*given):
        raise RuntimeError("sizes differ")

    monkeypatch.setattr(loop, "paint_preview", wrong)
    with pytest.raises(RuntimeError, match="sizes differ"):
        train(config())


@pytest.mark.parametrize(
    "name", ["model.safetensors", "log.jsonl", "report.html", "preview.png", "checkpoint/mine"]
)
def test_what_is_of_no_run_is_not_written_over(config, tmp_path, name):
    mine = tmp_path / "run" / name
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    for resume in (False, True):
        with pytest.raises(FaststyError, match=r"no config\.toml"):
            train(config(), resume=resume)
    assert [path for path in (tmp_path / "run").rglob("*") if path.is_file()] == [mine]
    assert mine.read_bytes() == b"mine"


def test_a_run_that_another_process_has_begun_meanwhile_is_left_alone(config, monkeypatch):
    begun = []

    def start(trainer, base, photo):
        monkeypatch.undo()
        begun.append(train(config(seed=5)))

    monkeypatch.setattr(loop, "start", start)
    with pytest.raises(FaststyError, match="holds a training run"):
        train(config())
    assert read_config(begun[0].run / "config.toml").seed == 5


@pytest.mark.skipif(os.name != "posix", reason="folders cannot be held")
def test_no_second_process_goes_on_with_a_run_that_is_being_trained(config):
    again = config(steps=4)
    refused = []

    def other(progress):
        with pytest.raises(FaststyError, match="another process trains this run") as error:
            train(again, resume=True)
        refused.append(error)

    train(again, other)
    assert refused
    assert train(config(steps=5), resume=True).steps == 5  # at its end the folder is let go


def test_what_is_told_at_the_start_is_told_once(config, monkeypatch):
    class Killed(Exception):
        pass

    def kill(*_):
        raise Killed

    begins = config(base="auto", model="fast", steps=2)
    monkeypatch.setattr(Trainer, "take", kill)
    with pytest.raises(Killed):
        train(begins)
    monkeypatch.undo()
    result = train(begins, resume=True)
    lines = (result.run / "log.jsonl").read_text().splitlines()
    told = [event for line in lines if (event := json.loads(line).get("event"))]
    assert len(told) == 1
    assert told[0].startswith("begins as")


def test_a_part_whose_checkpoint_cannot_be_saved_leaves_no_model_alone(
    config, tmp_path, monkeypatch
):
    """A model without a checkpoint could never go on."""

    def full(*_):
        raise UnwritableError("the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(loop, "save_checkpoint", full)
        with pytest.raises(FaststyError, match="the checkpoint cannot be saved; with room for it"):
            train(config(steps=4), until=0.5)
    assert not (tmp_path / "run" / "model.safetensors").exists()
    assert train(config(steps=4), resume=True).finished


def test_the_callers_dtype_and_autocast_play_no_part(config, tmp_path):
    expected = train(config(base="none", steps=3)).model.read_bytes()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.autocast("cpu", torch.bfloat16):
            result = train(config(base="none", steps=3, out=str(tmp_path / "other")))
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert result.model.read_bytes() == expected


def test_two_trainers_in_threads_begin_as_alone(config):
    def digests(result):
        trainer = Trainer(config(base="none", seed=3), torch.nn.Identity(), [target], CPU)
        result.append(torch.cat([w.detach().flatten() for w in trainer.generator.parameters()]))

    plane = torch.ones(1)
    target = SimpleNamespace(grams=[plane], colours=plane, patches=1.0, variation=1.0)
    alone, together = [], []
    digests(alone)
    threads = [threading.Thread(target=digests, args=(together,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(together) == 4
    assert all(torch.equal(each, alone[0]) for each in together)


def test_a_signal_handler_that_python_did_not_set_is_left_alone(monkeypatch):
    get = signal.getsignal
    monkeypatch.setattr(signal, "getsignal", lambda n: None if n == signal.SIGHUP else get(n))
    with stop_signals() as stopped:
        signal.raise_signal(signal.SIGTERM)
    assert stopped.is_set()
