import errno
import os
import random

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from faststy.errors import FaststyError
from faststy.nn.discriminator import Discriminator
from faststy.training.adam import Adam
from faststy.training.checkpoint import (
    Position,
    capture,
    checkpoint_path,
    load_checkpoint,
    newest_checkpoint,
    previous_path,
    restore,
    save_checkpoint,
)


def setup(channels=4, seed=0):
    torch.manual_seed(seed)
    nets = {
        "a": nn.Conv2d(3, channels, 3).to(memory_format=torch.channels_last),
        "judge": Discriminator(channels=channels, scales=1),
    }
    optimisers = {name: Adam(net, 0.01, (0.9, 0.99)) for name, net in nets.items()}
    return nets, optimisers


def train(nets, optimisers, steps):
    for step in steps:
        x = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(step))
        for name, net in nets.items():
            out = net(x) if name == "a" else net(x, torch.ones(1, 1))[0]
            optimisers[name].zero_grad()
            loss = (out - 1).square().mean()
            loss.backward()
            optimisers[name].step(loss, 1e9)


def states(nets, optimisers):
    found = {}
    for name, net in nets.items():
        found |= {f"{name}.{key}": value.clone() for key, value in net.state_dict().items()}
        for key, value in optimisers[name].state_dict().items():
            found[f"{name}.{key}"] = value.clone()
    return found


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    assert len(found) > 20
    for name, value in expected.items():
        assert torch.equal(value, found[name]), name


def save(path, position, run):
    save_checkpoint(path, position, capture(*run))


@pytest.fixture
def path(tmp_path):
    return checkpoint_path(tmp_path)


def test_training_goes_on_bit_by_bit(path):
    undisturbed = setup()
    train(*undisturbed, range(6))
    first = setup()
    train(*first, range(3))
    position = Position(3, 1.25, {"guards": {"rate": 0.1 + 0.2}})
    save(path, position, first)
    second = setup(seed=99)
    found, tensors = load_checkpoint(path)
    assert found == position
    restore(tensors, *second)
    train(*second, range(3, 6))
    assert_same(states(*second), states(*undisturbed))


def test_going_back_is_in_place_and_bit_by_bit():
    """In place: a captured CUDA graph keeps reading the same memory."""
    run = setup()
    train(*run, range(3))
    kept = capture(*run)
    train(*run, range(3, 6))
    expected = states(*run)
    parts = [part for each in run for part in each.values()]
    places = [t.data_ptr() for part in parts for t in part.state_dict().values()]
    train(*run, range(6, 9))
    restore(kept, *run)
    train(*run, range(3, 6))
    assert_same(states(*run), expected)
    assert [t.data_ptr() for part in parts for t in part.state_dict().values()] == places


def test_going_back_to_before_the_first_step():
    run, fresh = setup(), setup()
    kept = capture(*run)
    train(*run, range(3))
    restore(kept, *run)
    train(*run, range(2))
    train(*fresh, range(2))
    assert_same(states(*run), states(*fresh))


def test_two_generations_are_kept(path):
    run = setup()
    for step in range(4):
        train(*run, [step])
        save(path, Position(step + 1, 0.0), run)
    assert sorted(path.parent.iterdir()) == sorted([path, previous_path(path)])
    assert load_checkpoint(path)[0].step == 4
    assert load_checkpoint(previous_path(path))[0].step == 3
    assert newest_checkpoint(path)[0].step == 4
    load_file(path)  # an ordinary safetensors file


def damage_at_any_bit(data):
    place = random.Random(0)
    for _ in range(60):
        bit = place.randrange(8 * len(data))
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        yield bytes(damaged)


def test_a_single_flipped_bit_is_noticed(path):
    save(path, Position(1, 0.0), setup())
    data = path.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    flips = list(damage_at_any_bit(data))
    flips += [d + data[header:] for d in damage_at_any_bit(data[:header])]
    for damaged in flips:
        path.write_bytes(damaged)
        with pytest.raises(FaststyError, match="damaged or not a checkpoint"):
            load_checkpoint(path)


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.99])
def test_of_a_torn_checkpoint_the_one_before_is_used(path, share):
    run = setup()
    for step in range(2):
        train(*run, [step])
        save(path, Position(step + 1, 0.0), run)
    data = path.read_bytes()
    path.unlink()  # the two may share their bytes
    path.write_bytes(data[: int(share * len(data))])
    position, tensors, why = newest_checkpoint(path)
    assert position.step == 1
    restore(tensors, *run)
    assert why.startswith(f"{path}: damaged")
    assert why.endswith("going on from step 1, the one before")
    # The next save must not take the damaged one for the generation before.
    save(path, Position(5, 0.0), run)
    assert load_checkpoint(previous_path(path))[0].step == 1
    path.write_bytes(b"")
    assert newest_checkpoint(path)[0].step == 1


def test_a_kill_between_link_and_rename_leaves_a_whole_one(path, monkeypatch):
    run = setup()
    for step in range(2):
        save(path, Position(step, 0.0), run)

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        save(path, Position(2, 0.0), run)
    monkeypatch.undo()
    assert newest_checkpoint(path)[0].step == 1
    assert load_checkpoint(previous_path(path))[0].step == 1


def test_nothing_and_nothing_whole(path):
    assert newest_checkpoint(path) is None
    save(path, Position(1, 0.0), setup())
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(FaststyError, match="there is no whole one; begin in another out folder"):
        newest_checkpoint(path)


def test_a_full_disk_costs_neither_generation(path, monkeypatch):
    run = setup()
    for step in range(2):
        save(path, Position(step, 0.0), run)

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FaststyError, match="No space left on device"):
        save(path, Position(2, 0.0), run)
    assert load_checkpoint(path)[0].step == 1
    assert load_checkpoint(previous_path(path))[0].step == 0
    assert len(list(path.parent.iterdir())) == 2


def test_a_checkpoint_of_other_nets(path):
    save(path, Position(1, 0.0), setup())
    _, tensors = load_checkpoint(path)
    with pytest.raises(FaststyError, match="does not fit this run") as told:
        restore(tensors, *setup(channels=5))
    assert "another out folder" in str(told.value)
    assert len(str(told.value)) < 200  # not the names of all tensors
    with pytest.raises(FaststyError, match="does not fit this run"):
        restore(tensors, {"b": nn.Linear(2, 2)}, {})


def test_somebody_elses_file(path):
    path.parent.mkdir()
    save_file({"a": torch.ones(2)}, path)
    with pytest.raises(FaststyError, match="not a checkpoint"):
        load_checkpoint(path)
    with pytest.raises(FaststyError, match=r"absent.*No such file"):
        load_checkpoint(path.with_name("absent"))
