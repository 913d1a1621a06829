import copy
import subprocess
import sys

import pytest
import torch
from torch import nn

from faststy.training.adam import Adam

X = torch.rand(4, 3, 12, 12, generator=torch.Generator().manual_seed(0))


def net(dtype=torch.float32):
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Conv2d(5, 2, 3)
    return nn.Sequential(*layers).to(dtype=dtype, memory_format=torch.channels_last)


def loss_of(model, scale=1.0):
    x = X.to(model[0].weight.dtype).contiguous(memory_format=torch.channels_last)
    return scale * (model(x) - 1).square().mean()


def step(model, adam, max_norm=1e9, scale=1.0):
    adam.zero_grad()
    loss = loss_of(model, scale)
    loss.backward()
    return adam.step(loss, max_norm)


@pytest.mark.parametrize("max_norm", [1e9, 0.3])
def test_it_moves_as_adam_in_float64(max_norm):
    ours, reference = net(), net(torch.float64)
    adam = Adam(ours, 0.01, (0.5, 0.99))
    other = torch.optim.Adam(reference.parameters(), 0.01, (0.5, 0.99), foreach=False)
    clipped = []
    for i in range(8):
        adam.rate = 0.01 / (i + 1)
        other.param_groups[0]["lr"] = adam.rate
        assert step(ours, adam, max_norm) == 0
        other.zero_grad()
        loss_of(reference).backward()
        clipped.append(nn.utils.clip_grad_norm_(reference.parameters(), max_norm) > max_norm)
        other.step()
    assert any(clipped) == (max_norm == 0.3)
    for a, b in zip(ours.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(a.double(), b, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), 1e38])
def test_what_is_not_finite_changes_nothing(scale):
    model = net()
    adam = Adam(model, 0.01, (0.9, 0.99))
    step(model, adam)
    undisturbed, state = copy.deepcopy(model), copy.deepcopy(adam.state_dict())
    assert step(model, adam, scale=scale) == 1
    for a, b in zip(model.parameters(), undisturbed.parameters(), strict=True):
        assert torch.equal(a, b)
    for name, value in adam.state_dict().items():
        assert torch.equal(value, state[name]), name
    assert step(model, adam) == 0
    assert adam.count == 2


def test_moments_lie_in_memory_as_their_weights():
    model = net()
    adam = Adam(model, 0.01, (0.9, 0.99))
    for weight, mean, square in zip(adam.weights, adam.means, adam.squares, strict=True):
        assert weight.stride() == mean.stride() == square.stride()
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)


def test_a_net_that_had_no_part_in_the_loss():
    model = net()
    with pytest.raises(ValueError, match="to depend on every parameter"):
        Adam(model, 0.01, (0.9, 0.99)).step(torch.zeros(()), 1.0)


def test_it_brings_no_compiler():
    code = (
        "import sys, torch\n"
        "from faststy.training.adam import Adam\n"
        "net = torch.nn.Linear(2, 1)\n"
        "adam = Adam(net, 0.01, (0.9, 0.99))\n"
        "loss = net(torch.ones(1, 2)).sum(); loss.backward(); adam.step(loss, 1.0)\n"
        "print('torch._dynamo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr
