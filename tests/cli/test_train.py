"""`faststy train` as a process: killed, stopped, resumed, and told nonsense."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from faststy.model_file import load_info

# The command line with every step logged.
PROGRAM = """
from faststy.training import loop
loop.LOG_EVERY = 0.0
from faststy.cli import main
main()
"""
TINY = ("--model", "nano", "--size", "64", "--batch", "1", "--style-size", "64", "--device", "cpu")
TINY += ("--checkpoint-every", "0.1")

posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """A folder to work in, with a style, a folder of photos, and one thread for all processes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (tmp_path / "content").mkdir()
    y, x = np.mgrid[:80, :90]
    for i, name in enumerate(("content/a.png", "content/b.png", "style.png")):
        waves = [127 + 120 * np.sin((x * (i + 1) + y * c) / 7) for c in range(3)]
        Image.fromarray(np.stack(waves, -1).astype(np.uint8)).save(name)
    return tmp_path


STARTED: list[subprocess.Popen] = []


@pytest.fixture(autouse=True)
def no_process_stays():
    yield
    while STARTED:
        with STARTED.pop() as process:  # closes its pipes, too
            process.kill()


def start(*arguments):
    command = [sys.executable, "-c", PROGRAM, "train", *arguments]
    pipe = subprocess.PIPE
    STARTED.append(subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True))
    return STARTED[-1]


def faststy(*arguments):
    """Exit status, standard output, standard error."""
    process = start(*arguments)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def begin(*arguments):
    return start("style.png", "--content", "content", *TINY, *arguments)


def lines(path):
    try:
        return path.read_text().count("\n")
    except FileNotFoundError:
        return 0


def wait_for_steps(process, log, goal):
    """Until `goal` steps are logged, one a line."""
    deadline = time.monotonic() + 300
    while lines(log) < goal:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)


def steps(log):
    """Those whose terms are in the log, where events stand, too."""
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    return [entry["step"] for entry in entries if "event" not in entry]


# Imports once; then each training process is a child, killed by SIGKILL while it runs: on its way
# to the first step, or a few steps on. It does what a person would: a run that has come as far as
# its config.toml is resumed, an earlier one begun again.
KILLER = """
import os, random, signal, sys, time
import torch
from faststy.training import chore, loop
from faststy.cli.train import command
chore.SHARE, loop.LOG_EVERY = 1.0, 0.0
run, kills, *arguments = sys.argv[1:]
log = run + "/log.jsonl"

def start():
    child = os.fork()
    if child == 0:
        try:
            begun = os.path.exists(run + "/config.toml")
            command.main(["--resume", "--out", run] if begun else arguments, standalone_mode=False)
        finally:
            os._exit(0)
    return child

def lines():
    return open(log).read().count("\\n") if os.path.exists(log) else 0

for _ in range(int(kills)):
    child, goal = start(), lines() + random.randrange(4)
    while lines() < goal:
        assert os.waitpid(child, os.WNOHANG) == (0, 0), "ended by itself"
        time.sleep(0.001)
    time.sleep(random.uniform(0, 0.03))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "ended by itself"
_, status = os.waitpid(start(), 0)
assert status == 0
"""


@posix
def test_killed_at_twenty_random_moments_it_ends_with_the_same_bytes(place):
    def run(out, kills):
        arguments = ["style.png", "--content", "content", *TINY, "--steps", "200", "--out", out]
        command = [sys.executable, "-c", KILLER, out, str(kills), *arguments]
        command += ["--checkpoint-every", "0.05"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr

    run("whole", 0)
    run("run", 20)
    whole, run = (place / name / "model.safetensors" for name in ("whole", "run"))
    assert run.read_bytes() == whole.read_bytes()
    assert load_info(run).steps == 200
    assert steps(place / "run" / "log.jsonl") == list(range(1, 201))
    assert sorted(p.name for p in (place / "run").rglob("*") if p.is_file()) == sorted(
        ["config.toml", "log.jsonl", "model.safetensors", "preview.png", "report.html"]
        + [p.name for p in (place / "run" / "checkpoint").iterdir()]
    )


# In a disk of its own, which has room for two checkpoints but not for a third beside them.
FULL = """
import sys
from faststy.cli.train import command
from faststy.training import chore
from faststy.training.checkpoint import checkpoint_path, newest_checkpoint
from pathlib import Path
chore.SHARE = 1.0
command.main(sys.argv[1:], standalone_mode=False)
print(newest_checkpoint(checkpoint_path(Path("small/run")))[0].step)
"""
SMALL_DISK = 'mount -t tmpfs -o size=20m none small && "$@"'
IN_SMALL_DISK = ("unshare", "-rm", "sh", "-c", SMALL_DISK, "sh")


def test_a_full_disk_costs_checkpoints_not_the_run(place):
    (place / "small").mkdir()
    try:
        subprocess.run([*IN_SMALL_DISK, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no disk can be mounted here")
    arguments = ["style.png", "--content", "content", *TINY, "--steps", "20", "--out", "small/run"]
    command = [*IN_SMALL_DISK, sys.executable, "-c", FULL, *arguments, "--checkpoint-every", "1e-9"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "20 steps in " in done.stdout
    said = done.stderr.splitlines()
    failed = {line for line in said if "state.safetensors: cannot be written (No space" in line}
    assert len(failed) == 1
    assert failed.pop().endswith("; training goes on")
    assert 0 < int(done.stdout.splitlines()[-1]) < 20


@posix
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_it_saves_and_says_how_to_go_on(place, number):
    process = begin("--seconds", "1000", "--out", "run", "--json")
    wait_for_steps(process, place / "run" / "log.jsonl", 3)
    process.send_signal(number)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 130
    assert err.endswith("stopped; go on with: faststy train --resume --out run\n")
    told = json.loads(out)
    assert (told["finished"], told["model"]) == (False, None)
    done = steps(place / "run" / "log.jsonl")
    assert done == list(range(1, told["steps"] + 1))

    status, out, err = faststy("--resume", "--out", "run", "--steps", str(told["steps"] + 2))
    assert status == 0, err
    assert f"{told['steps'] + 2} steps in" in out
    assert steps(place / "run" / "log.jsonl") == list(range(1, told["steps"] + 3))

    (place / "run").rename(place / "moved")
    status, out, err = faststy("--resume", "--out", "moved", "--steps", str(told["steps"] + 3))
    assert status == 0, err
    assert not (place / "run").exists()
    (place / "moved").rename(place / "run")  # the default name
    status, out, err = faststy("--resume", "--steps", str(told["steps"] + 4))
    assert status == 0, err
    assert steps(place / "run" / "log.jsonl")[-1] == told["steps"] + 4
    assert not (place / "moved").exists()
    assert " images/s\n" in out
    status, out, err = faststy("--resume", "--steps", str(told["steps"] + 4))
    assert (status, " images/s" in out) == (0, False)  # no step was left to take


def test_the_end_is_told_in_words_and_a_second_run_is_refused(place):
    process = begin("--steps", "2", "--stages", "perceptual, adversarial")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert out.startswith("2 steps in ")
    assert "paint   faststy stylize photo.jpg -m run/model.safetensors" in out
    assert "perceptual 0% step 1 " in err
    fails_with(
        begin("--steps", "2"),
        "run: holds a training run; resume it (--resume, or resume=True) or choose another",
    )


@posix
@pytest.mark.parametrize("stream", ["full disk", "closed pipe"])
def test_a_standard_error_that_cannot_be_written_ends_nothing(place, told, monkeypatch, stream):
    from faststy.training import loop

    monkeypatch.setattr(loop, "LOG_EVERY", 0.0)
    if stream == "full disk":
        if not os.path.exists("/dev/full"):
            pytest.skip("needs /dev/full")
        file = os.open("/dev/full", os.O_WRONLY)
    else:
        reading, file = os.pipe()
        os.close(reading)
    with os.fdopen(file, "w", buffering=1) as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        status, out, _ = told("style.png", "--content", "content", *TINY, "--steps", "3")
        stderr.flush()  # as Python does at its end: it would exit with 120
    assert status == 0
    assert "3 steps in " in out


def fails_with(process, sentence):
    out, err = process.communicate(timeout=300)
    assert process.returncode == 2, err
    assert out == ""
    assert err.startswith("faststy: ")
    assert err.count("\n") == 1
    assert sentence in err


@pytest.fixture
def told(monkeypatch, capsys):
    """Runs the command in this process: exit status, standard output, standard error."""

    def run(*arguments):
        from faststy.cli import main

        monkeypatch.setattr(sys, "argv", ["faststy", "train", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        return end.value.code or 0, *capsys.readouterr()

    return run


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "name the style, a picture or a folder: faststy train painting.jpg"),
        (("--resume", "--out", "empty"), "empty: holds no training run to go on with"),
        (("text.jpg",), "text.jpg: not a picture"),
        (("cut.jpg",), "cut.jpg: damaged or cut off"),
        (("zero.jpg",), "zero.jpg: the file is empty (zero bytes)"),
        (("absent.jpg",), "absent.jpg: cannot be read (No such file or directory)"),
        (("tiny.png",), "tiny.png: 4 x 4 px is too small to learn from"),
        (("empty",), "empty: no pictures in this folder"),
        (("style.png", "--content", "empty"), "empty: no pictures in this folder"),
        (("style.png", "--content", "broken"), "broken: none of 2 pictures can be read"),
        (("style.png", "--content", "style.png"), "style.png: content must be a folder of photos"),
        (("style.png", "--content", "absent"), "absent: content must be a folder"),
        (("style.png", "--pairs", "empty"), "no such folder; pairs are read from before/"),
        (("style.png", "--out", "text.jpg/run", "--steps", "1"), "text.jpg/run: cannot be made"),
        (("style.png", "--out", "text.jpg", "--steps", "1"), "text.jpg: cannot be made a folder"),
        (("style.png", "--content", "empty", "--out", "text.jpg"), "text.jpg: cannot be made a"),
        (("style.png", "--size", "100"), "size is 100; it must be 64...1024, in steps of 8"),
        (("style.png", "--style-share", "1"), "style-share is 1.0; it must be between 0 and 1"),
        (("style.png", "--seed", "-1"), "seed is -1; it must be 0 or more"),
        (("style.png", "--style-weight", "1e60"), "style-weight is 1e+60; it must be in 0...1,000"),
        (("style.png", "--steps", "5", "--seconds", "5"), "steps is 5; it must be absent when"),
        (("style.png", "--stages", "repair"), "stages is 'repair'; it must be perceptual"),
        (("style.png", "--encoder", "vgg16"), "unknown encoder 'vgg16'"),
        (("style.png", "--device", "tpu"), "device 'tpu' cannot be used"),
        (("style.png", "--config", "bad.toml"), "bad.toml: unknown setting 'speed'"),
        (("style.png", "--config", "absent.toml"), "absent.toml: cannot be read as TOML"),
    ],
)
def test_bad_input_is_one_sentence_and_no_run(place, told, arguments, sentence):
    (place / "empty").mkdir()
    (place / "broken").mkdir()
    for name in ("text.jpg", "broken/a.jpg", "broken/b.png"):
        (place / name).write_text("not a picture")
    (place / "zero.jpg").write_bytes(b"")
    Image.open("style.png").save("whole.jpg")
    whole = (place / "whole.jpg").read_bytes()
    (place / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    Image.new("RGB", (4, 4)).save("tiny.png")
    (place / "bad.toml").write_text("speed = 3\n")
    before = sorted(place.rglob("*"))
    status, out, err = told(*arguments)
    assert status == 2
    assert out == ""
    assert err.startswith("faststy: ")
    assert err.count("\n") == 1
    assert sentence in err
    assert sorted(place.rglob("*")) == before


def test_settings_come_from_a_file_and_flags_win(place, told):
    (place / "s.toml").write_text(
        'style = "style.png"\ncontent = "content"\nmodel = "nano"\nsize = 64\nbatch = 2\n'
        'steps = 50\nstyle-size = 64\nstages = ["perceptual"]\nout = "here"\n'
    )
    status, out, err = told("--config", "s.toml", "--steps", "1", "--json")
    assert status == 0, err
    values = json.loads(out)
    assert (values["steps"], values["run"]) == (1, "here")
    assert values.keys() == {
        *("run", "model", "finished", "steps", "seconds", "images_per_second"),
        *("skipped", "skipped_steps", "events"),
    }


def test_skipped_pictures_are_listed(place, told):
    (place / "content" / "ze\x1bro.jpg").write_bytes(b"")
    arguments = ("style.png", "--content", "content", *TINY, "--steps", "12", "--json")
    status, out, err = told(*arguments, "--stages", "perceptual")
    assert status == 0, err
    (skipped,) = json.loads(out)["skipped"]
    assert skipped["input"] == "content/ze\x1bro.jpg"
    assert "the file is empty" in skipped["reason"]
    told_of = "skipped content/ze\\x1bro.jpg: the file is empty (zero bytes)\n"
    told_of += "skipped 1 picture in all\n"
    assert told_of in err


def test_what_a_run_begins_as_is_told_once(place, told):
    arguments = ("style.png", "--content", "content", *TINY, "--model", "fast", "--steps", "1")
    status, _, err = told(*arguments, "--stages", "perceptual")
    assert status == 0, err
    assert err.count("begins as ") == 1


def test_help_tells_the_defaults_that_hold(told):
    from faststy.training.config import BATCH, GPU_BATCH, TrainConfig

    _, out, _ = told("--help")
    text, defaults = " ".join(out[out.index("Options:") :].split()), TrainConfig(style=("a",))
    for flag, value in [
        ("--size", defaults.size),
        ("--batch", f"{BATCH}, on a GPU {GPU_BATCH}"),
        ("--model", defaults.model),
        ("--style-size", defaults.style_size),
        ("--style-weight", f"{defaults.style_weight:g}"),
        ("--adversarial", defaults.adversarial),
    ]:
        described = text[text.index(f"{flag} ") :]
        assert described[described.index("[default: ") :].startswith(f"[default: {value}]"), flag
