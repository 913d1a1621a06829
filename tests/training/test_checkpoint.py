import pytest
import torch
from torch import nn

from faststy.errors import FaststyError
from faststy.nn.discriminator import Discriminator
from faststy.training.checkpoint import (
    Position,
    checkpoint_path,
    load_checkpoint,
    save_checkpoint,
)


def setup(channels=4, seed=0):
    torch.manual_seed(seed)
    nets = {
        "a": nn.Conv2d(3, channels, 3).to(memory_format=torch.channels_last),
        "judge": Discriminator(channels=channels, scales=1),
    }
    optimisers = {name: torch.optim.Adam(net.parameters(), 0.01) for name, net in nets.items()}
    return nets, optimisers


def train(nets, optimisers, steps):
    for step in steps:
        x = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(step))
        for name, net in nets.items():
            out = net(x) if name == "a" else net(x, torch.ones(1, 1))[0]
            optimisers[name].zero_grad()
            (out - 1).square().mean().backward()
            optimisers[name].step()


def states(nets, optimisers):
    found = {}
    for name, net in nets.items():
        found |= {f"{name}.{key}": value for key, value in net.state_dict().items()}
        for index, state in optimisers[name].state_dict()["state"].items():
            found |= {f"{name}.{index}.{key}": value for key, value in state.items()}
    return found


def test_training_goes_on_bit_by_bit(tmp_path):
    path = checkpoint_path(tmp_path)
    undisturbed = setup()
    train(*undisturbed, range(6))
    first = setup()
    train(*first, range(3))
    save_checkpoint(path, Position(3, 1.25), *first)
    second = setup(seed=99)
    assert load_checkpoint(path, *second) == Position(3, 1.25)
    train(*second, range(3, 6))
    expected, found = states(*undisturbed), states(*second)
    assert found.keys() == expected.keys()
    assert len(found) > 20
    for name, value in expected.items():
        assert torch.equal(value, found[name]), name


def test_loaded_moments_lie_in_memory_as_their_weights(tmp_path):
    nets, optimisers = setup()
    train(nets, optimisers, range(1))
    save_checkpoint(tmp_path / "c", Position(1, 0.0), nets, optimisers)
    nets, optimisers = setup()
    load_checkpoint(tmp_path / "c", nets, optimisers)
    for p, state in optimisers["a"].state.items():
        assert state["exp_avg"].stride() == p.stride()
        assert state["exp_avg_sq"].stride() == p.stride()


def test_an_optimiser_that_has_not_moved_stays_fresh(tmp_path):
    nets, optimisers = setup()
    save_checkpoint(tmp_path / "c", Position(0, 0.0), nets, optimisers)
    load_checkpoint(tmp_path / "c", nets, optimisers)
    assert all(not o.state for o in optimisers.values())


def test_the_folder_is_made_and_holds_one_file(tmp_path):
    path = checkpoint_path(tmp_path / "run")
    for step in range(2):
        save_checkpoint(path, Position(step, 0.0), *setup())
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.99])
def test_a_truncated_checkpoint(tmp_path, share):
    path = tmp_path / "c"
    save_checkpoint(path, Position(1, 0.0), *setup())
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(FaststyError, match="not a checkpoint of this run") as caught:
        load_checkpoint(path, *setup())
    assert str(path) in str(caught.value)


def test_a_checkpoint_of_another_run(tmp_path):
    path = tmp_path / "c"
    nets, optimisers = setup()
    save_checkpoint(path, Position(1, 0.0), nets, optimisers)
    with pytest.raises(FaststyError, match="not a checkpoint of this run"):
        load_checkpoint(path, *setup(channels=5))
    with pytest.raises(FaststyError, match="not a checkpoint of this run"):
        load_checkpoint(path, {"b": nn.Linear(2, 2)}, {})
    with pytest.raises(FaststyError, match="not a checkpoint of this run"):
        load_checkpoint(tmp_path / "absent", nets, optimisers)


def test_somebody_elses_file(tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.ones(2)}, tmp_path / "c")
    with pytest.raises(FaststyError, match="not a checkpoint of this run"):
        load_checkpoint(tmp_path / "c", *setup())
