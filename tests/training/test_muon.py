import copy

import pytest
import torch
from torch import nn

from faststy.nn.generator import Generator, GeneratorConfig
from faststy.training import muon
from faststy.training.muon import Muon, orthogonal

X = torch.rand(4, 6, 12, 12, generator=torch.Generator().manual_seed(0))
BETAS = (0.9, 0.99)


def net(dtype=torch.float32, memory_format=torch.channels_last):
    torch.manual_seed(0)
    layers = nn.Conv2d(6, 5, 3), nn.ReLU(), nn.Conv2d(5, 3, 3)
    return nn.Sequential(*layers).to(dtype=dtype, memory_format=memory_format)


def loss_of(model, scale=1.0):
    x = X.to(model[0].weight.dtype)
    return scale * (model(x) - 1).square().mean()


def step(model, optimiser, max_norm=1e9, scale=1.0):
    optimiser.zero_grad()
    loss = loss_of(model, scale)
    loss.backward()
    return optimiser.step(loss, max_norm)


def newton_schulz(x):
    """As it is written down: an odd polynomial of the singular values, again and again."""
    u, s, v = torch.linalg.svd(x, full_matrices=False)
    s = s / torch.linalg.vector_norm(s)
    for _ in range(muon.ITERATIONS):
        s = muon.LINEAR * s + muon.CUBIC * s**3 + muon.QUINTIC * s**5
    return u @ torch.diag(s) @ v


def reference_step(weights, momenta, rate, max_norm):
    """One step in float64, kernel by kernel; `momenta` by place, of kernels alone."""
    norm = torch.linalg.vector_norm(torch.cat([w.grad.flatten() for w in weights]))
    with torch.no_grad():
        for i, weight in enumerate(weights):
            if weight.ndim != 4:
                continue
            gradient = weight.grad / max(norm / max_norm, 1.0)
            momenta[i] = muon.MOMENTUM * momenta.get(i, 0.0) + (1 - muon.MOMENTUM) * gradient
            ahead = (1 - muon.MOMENTUM) * gradient + muon.MOMENTUM * momenta[i]
            moved = newton_schulz(ahead.flatten(1)).reshape(weight.shape)
            weight -= rate * muon.SIZE * weight[0].numel() ** 0.5 * moved
    return norm


@pytest.mark.parametrize("max_norm", [1e9, 0.3])
@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_kernels_move_as_in_float64_and_the_rest_by_adam(max_norm, memory_format):
    ours, reference = net(memory_format=memory_format), net(torch.float64)
    optimiser = Muon(ours, 0.01, BETAS)
    weights = list(reference.parameters())
    biases = [w for w in weights if w.ndim != 4]
    adam = torch.optim.Adam(biases, 0.01, BETAS, foreach=False)
    momenta, clipped = {}, []
    for i in range(8):
        optimiser.rate = adam.param_groups[0]["lr"] = 0.01 / (i + 1)
        assert step(ours, optimiser, max_norm) == 0
        reference.zero_grad()
        loss_of(reference).backward()
        norm = reference_step(weights, momenta, optimiser.rate, max_norm)
        clipped.append(norm > max_norm)
        for bias in biases:
            bias.grad /= max(norm / max_norm, 1.0)
        adam.step()
    assert any(clipped) == (max_norm == 0.3)
    for a, b in zip(ours.parameters(), weights, strict=True):
        torch.testing.assert_close(a.detach().double(), b.detach(), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("shape", [(3, 48, 432), (2, 16, 16), (1, 1, 7), (4, 5, 300)])
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e6])
def test_singular_values_are_brought_near_one(shape, scale):
    torch.manual_seed(1)
    x = torch.randn(shape, dtype=torch.float64) * torch.logspace(0, -2, shape[-1])
    found = orthogonal((scale * x).float()).double()
    expected = torch.stack([newton_schulz(each) for each in x])
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=2e-3)
    values = torch.linalg.svdvals(found)
    wide = torch.linalg.svdvals(x)
    known = wide > 0.02 * torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    assert (values <= 1.25).all()
    assert (values[known] >= 0.65).all()


def test_of_nothing_comes_nothing():
    assert torch.equal(orthogonal(torch.zeros(2, 3, 9)), torch.zeros(2, 3, 9))


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), 1e38])
def test_what_is_not_finite_changes_nothing(scale):
    model = net()
    optimiser = Muon(model, 0.01, BETAS)
    step(model, optimiser)
    undisturbed, state = copy.deepcopy(model), copy.deepcopy(optimiser.state_dict())
    assert step(model, optimiser, scale=scale) == 1
    for a, b in zip(model.parameters(), undisturbed.parameters(), strict=True):
        assert torch.equal(a, b)
    for name, value in optimiser.state_dict().items():
        assert torch.equal(value, state[name]), name
    assert step(model, optimiser) == 0
    assert optimiser.count == 2


def test_its_state_is_all_that_the_next_steps_depend_on():
    model = net()
    optimiser = Muon(model, 0.01, BETAS)
    step(model, optimiser)
    other = copy.deepcopy(model)
    resumed = Muon(other, 0.01, BETAS)
    for name, value in resumed.state_dict().items():
        value.copy_(optimiser.state_dict()[name])
    for _ in range(3):
        step(model, optimiser)
        step(other, resumed)
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_kernel_with_more_rows_than_columns_is_refused():
    with pytest.raises(ValueError, match="more rows than columns"):
        Muon(nn.Conv2d(1, 10, 3), 0.01, BETAS)


@pytest.mark.parametrize("name", ["nano", "fast", "quality"])
def test_every_generator_can_be_moved(name):
    generator = Generator(GeneratorConfig.named(name, styles=2))
    kernels = sum(weight.ndim == 4 for weight in generator.parameters())
    assert len(Muon(generator, 0.01, BETAS).momentum) == kernels
