"""Two real processes over gloo against one: the same gradients, terms and run."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from faststy.errors import FaststyError
from faststy.nn.encoder import load_encoder
from faststy.training import loop
from faststy.training.config import BATCH, GPU_BATCH, TrainConfig
from faststy.training.dataset import Pictures, generator, random_crops
from faststy.training.distributed import Alone, Worker, default_batch, joined, told_rank
from faststy.training.loop import train
from faststy.training.step import StyleTarget, Trainer

PROGRAM = """
from faststy.training import chore, loop
loop.LOG_EVERY, chore.SHARE = 0.0, 1.0
from faststy.cli import main
main()
"""
# In float32: what bfloat16 rounds depends on how many samples a worker has.
SETTINGS = {
    "model": "nano", "size": 64, "batch": 5, "style_size": 64,
    "device": "cpu", "precision": "float32",
}  # fmt: skip
STARTED: list[subprocess.Popen] = []


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """A folder to work in, with two styles and two photos, and one thread for each process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (tmp_path / "content").mkdir()
    y, x = np.mgrid[:80, :90]
    for i, name in enumerate(("content/a.png", "content/b.png", "one.png", "two.png")):
        waves = [127 + 120 * np.sin((x * (i + 1) + y * c) / 7) for c in range(3)]
        Image.fromarray(np.stack(waves, -1).astype(np.uint8)).save(name)
    yield tmp_path
    while STARTED:
        with STARTED.pop() as process:  # closes its pipes, too
            process.kill()


def workers(*command):
    """Two processes, with the variables that torchrun sets."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pair = []
    for rank in range(2):
        own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_PORT": port}
        env = {**os.environ, "MASTER_ADDR": "127.0.0.1", **{k: str(v) for k, v in own.items()}}
        pipe = subprocess.PIPE
        pair.append(
            subprocess.Popen(
                [sys.executable, *command], env=env, text=True, stdout=pipe, stderr=pipe
            )
        )
    STARTED.extend(pair)
    return pair


def ends(process):
    """Exit status, standard output and standard error."""
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


# --------------------------------------------------------------------------- a step


def take_steps(out):
    """A step of each kind; every gradient and every term of them goes to the file `out`."""
    torch.set_num_threads(1)
    config = TrainConfig(style=("one.png", "two.png"), steps=10, **SETTINGS)
    encoder = load_encoder()
    targets = [
        StyleTarget.of(Pictures.found(Path(style), 64), encoder, torch.device("cpu"))
        for style in config.style
    ]
    photos = Pictures.found(Path("content"), 80)
    kept = {}
    with joined(config.batch, "run", "cpu") as world:

        def keep(kind, terms, *names):
            for name in names:
                gradients = [weight.grad.flatten() for weight in trainer.nets[name].parameters()]
                kept[f"{kind} gradient {name}"] = torch.cat(gradients)
            for name, value in terms.items():
                kept[f"{kind} {name}"] = value.clone()

        for step in (0, 1):  # a smooth motion, and one by whole pixels
            trainer = Trainer(config, encoder, targets, torch.device("cpu"), world)
            trainer.set_learning_rate(1e-3)  # so small that rounding is not magnified
            rng = generator(config.seed, step)
            photo = random_crops(photos, config.batch, 64, (1.0, 1.2), rng, world.mine)
            pair = torch.rand(2, 3, 3, 64, 64, generator=rng).unbind()
            terms = trainer.step(step, "adversarial", photo, 2.0, pair)
            keep(f"{step} perceptual", terms, "generator", "discriminator")
            terms = trainer.step(step, "repair", photo, 2.0)
            keep(f"{step} repair", terms, "repairer", "discriminator")
        kept["contrast"] = trainer.mean(photo.std((2, 3)).mean(), len(photo))
        ranks = range(getattr(world, "size", 1))
        assert world.gathered(b"of %d" % told_rank()) == [b"of %d" % rank for rank in ranks]
        if world.leads:
            save_file(kept, out)


def test_the_gradients_and_terms_of_two_workers_are_those_of_one():
    """Of a batch of 5 photos, 2 styles and 3 pairs, which no worker has the same share of."""
    pair = workers(__file__, "two.safetensors")
    take_steps("one.safetensors")
    for process in pair:
        code, _, err = ends(process)
        assert code == 0, err
    one, two = load_file("one.safetensors"), load_file("two.safetensors")
    assert one.keys() == two.keys()
    assert {"0 perceptual stability", "1 perceptual paired", "1 repair map"} < one.keys()
    for name, value in one.items():
        error = (two[name] - value).norm() / value.norm().clamp_min(1e-3)
        assert error < 1e-4, name


# --------------------------------------------------------------------------- a run


def rows():
    lines = Path("run/log.jsonl").read_text().splitlines()
    return [row for line in lines if "terms" in (row := json.loads(line))]


def wait_for_steps(process, goal):
    deadline = time.monotonic() + 120
    log = Path("run/log.jsonl")
    while not log.exists() or log.read_text().count("\n") < goal:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_a_run_that_loses_a_worker_goes_on_with_another_number(monkeypatch):
    monkeypatch.setattr(loop, "LOG_EVERY", 0.0)
    arguments = ["one.png", "--content", "content", "--steps", "30", "--checkpoint-every", "0.01"]
    for name, value in SETTINGS.items():
        arguments += [f"--{name.replace('_', '-')}", str(value)]

    # Any worker may be told to stop; all do, at the same step, and the first one tells.
    first, second = workers("-c", PROGRAM, "train", *arguments)
    wait_for_steps(first, 4)
    second.send_signal(signal.SIGTERM)
    (code, out, err), other = ends(first), ends(second)
    assert (code, out) == (130, ""), err
    assert "stopped; go on with: faststy train --resume --out run" in err
    assert other == (130, "", "")
    stopped = len(rows())
    assert not Path("run/model.safetensors").exists()

    first, second = workers("-c", PROGRAM, "train", "--resume", "--steps", "30")
    wait_for_steps(first, stopped + 8)
    second.kill()
    code, _, err = ends(first)
    assert code == 2, err
    assert err.rstrip().endswith(
        "run: another worker was lost; resume the run (--resume, or resume=True), with any number "
        "of workers"
    )
    assert len(rows()) < 30

    config = TrainConfig(
        style=("one.png",), content="content", steps=30, checkpoint_every=0.01, **SETTINGS
    )
    assert train(config, resume=True).finished
    broken = rows()
    assert [row["step"] for row in broken] == list(range(1, 31))
    # As one process begins: the optimiser magnifies rounding, where a gradient is nothing else.
    Path("run").rename("broken")
    train(config, until=3 / 30)
    assert len(rows()) == 3
    for here, there in zip(broken, rows(), strict=False):
        assert (here["stage"], here["style_weight"]) == (there["stage"], there["style_weight"])
    for here, there in zip(broken[:2], rows(), strict=False):
        assert here["terms"] == pytest.approx(there["terms"], rel=2e-3)


# --------------------------------------------------------------------------- alone, and too many


def test_workers_with_different_batches_are_refused():
    program = """
import os, sys
from faststy.cli import main
sys.argv.append(str(4 + int(os.environ["RANK"])))
main()
"""
    command = ("train", "one.png", "--content", "content", "--device", "cpu", "--steps", "1")
    for process in workers("-c", program, *command, "--batch"):
        code, _, err = ends(process)
        assert code == 2, err
        assert err == "faststy: the workers have different batches; give all the same batch\n"
    assert not Path("run").exists()


def test_one_process_is_alone(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    with joined(1, "run", "auto") as world:
        part = torch.tensor(2.0)
        assert type(world) is not Worker
        assert world.leads
        assert world.sum(part) is part
        assert world.agree(0.25, True) == (0.25, True)
        assert world.received(lambda: b"state") is None


def test_pictures_that_any_worker_skipped_are_listed(monkeypatch):
    other = b'{"content/c.png": "damaged"}'
    monkeypatch.setattr(Alone, "gathered", lambda world, own: [own, other])
    Path("content/broken.png").touch()
    settings = {**SETTINGS, "steps": 4, "stages": ("perceptual",), "seed": 1}
    skipped = train(TrainConfig(style=("one.png",), content="content", **settings)).skipped
    assert sorted(path.name for path in skipped) == ["broken.png", "c.png"]


def test_samples_go_in_turns_and_each_worker_needs_two():
    taken = [list(range(9))[Worker(rank, 3, 9, "run").mine] for rank in range(3)]
    assert taken == [[0, 3, 6], [1, 4, 7], [2, 5, 8]]
    with pytest.raises(FaststyError, match="batch is 4; with 3 workers it must be at least 6"):
        Worker(0, 3, 4, "run")


if __name__ == "__main__":
    take_steps(sys.argv[1])


def test_default_batch_alone_is_the_documented_one_and_enough_for_all_workers(monkeypatch):
    assert default_batch("cpu") == BATCH
    monkeypatch.setenv("RANK", "0")
    for size in (1, 3):
        monkeypatch.setenv("WORLD_SIZE", str(size))
        assert default_batch("cpu") == (BATCH if size == 1 else 6)


def test_the_default_batch_touches_no_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "empty", lambda *_, **__: pytest.fail("a device was touched"))
    assert [default_batch(name) for name in ("auto", "cuda", "cuda:1")] == [GPU_BATCH] * 3
    assert default_batch("cpu") == BATCH


def test_a_worker_whose_gpu_is_not_there_says_so(monkeypatch):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    config = TrainConfig(style=("one.png",), content="content", device="cuda")
    with pytest.raises(FaststyError, match="device 'cuda:0' cannot be used"):
        train(config)


def test_a_run_of_the_defaults_makes_steps_of_one_crop(monkeypatch):
    shapes = set()

    def crops(*args):
        cut = random_crops(*args)
        shapes.add(tuple(cut.shape))
        return cut

    monkeypatch.setattr(loop, "random_crops", crops)
    settings = {"style": ("one.png",), "content": "content", "out": "run", "device": "cpu"}
    train(TrainConfig(**settings, steps=1, stages=("perceptual",)))
    start = (loop.START_PHOTOS, 3, 256, 256)  # that the bundled styles are told apart on
    assert shapes - {start} == {(1, 3, 256, 256)}
