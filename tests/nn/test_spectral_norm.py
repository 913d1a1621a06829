import copy

import pytest
import torch
from torch.nn.utils.parametrizations import spectral_norm

from faststy.nn.discriminator import Discriminator
from faststy.nn.spectral_norm import SpectralNorm


def weights(count=3, shape=(8, 5, 4, 4), dtype=torch.float32):
    rng = torch.Generator().manual_seed(0)
    return [7 * torch.randn(shape, generator=rng, dtype=dtype) for _ in range(count)]


@pytest.mark.parametrize("last", [False, True])
def test_largest_singular_values_are_one(last):
    given = weights()
    if last:
        given = [w.contiguous(memory_format=torch.channels_last) for w in given]
    norm = SpectralNorm(given)
    for _ in range(60):
        found = norm(given)
    for old, new in zip(given, found, strict=True):
        expected = old.double() / torch.linalg.matrix_norm(old.double().flatten(1), 2)
        torch.testing.assert_close(new.double(), expected, atol=1e-4, rtol=1e-4)
        assert new.is_contiguous(memory_format=torch.channels_last)


def test_values_and_gradients_are_those_of_torch():
    """Of a norm that has come as far: both take the singular vectors for constants."""
    (weight,) = weights(1, dtype=torch.float64)
    conv = torch.nn.Conv2d(5, 8, 4).double()
    conv.weight.data.copy_(weight)
    conv = spectral_norm(conv, n_power_iterations=600)
    torchs = conv.weight
    norm = SpectralNorm([weight]).double()
    ours = weight.clone().requires_grad_()
    for _ in range(600):
        norm([ours])
    (found,) = norm([ours])
    torch.testing.assert_close(found, torchs, atol=1e-6, rtol=1e-6)
    dy = weights(2, dtype=torch.float64)[1]
    found.backward(dy)
    torchs.backward(dy)
    expected = conv.parametrizations.weight.original.grad
    torch.testing.assert_close(ours.grad, expected, atol=1e-6, rtol=1e-6)


def test_it_iterates_in_training_alone():
    given = weights()
    norm = SpectralNorm(given)
    before = norm.u.clone()
    norm.eval()(given)
    assert torch.equal(norm.u, before)
    norm.train()(given)
    assert not torch.equal(norm.u, before)


def test_without_numbers_shapes_come_out():
    given = weights()
    found = SpectralNorm(given).to("meta")([weight.to("meta") for weight in given])
    assert [weight.shape for weight in found] == [weight.shape for weight in given]


def test_autocast_leaves_it_alone():
    given = weights()
    norm = SpectralNorm(given).eval()
    with torch.autocast("cpu", torch.bfloat16):
        found = norm(given)
    assert all(torch.equal(a, b) for a, b in zip(found, norm(given), strict=True))


def test_no_convolution_of_the_discriminator_stretches_more_than_its_spectral_norm_of_one():
    torch.manual_seed(0)
    net = Discriminator(channels=4, scales=2)
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(7)
        for _ in range(100):  # a power iteration each
            net(torch.rand(1, 3, 32, 32), torch.ones(1, 1))
    larger = copy.deepcopy(net).eval()
    with torch.no_grad():
        for scale in larger.scales:
            for conv in scale.convs:
                conv.weight.mul_(10)
                conv.bias.zero_()
        for layer, norm in zip(larger._weights(), larger.norms, strict=True):
            for weight in norm(layer):
                largest = torch.linalg.matrix_norm(weight.double().flatten(1), 2)
                assert largest == pytest.approx(1, abs=0.02)
