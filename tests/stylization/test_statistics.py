"""Norm statistics: collected, moved, given back and folded, they are the same thing."""

import copy
import pickle

import pytest
import torch

from faststy.nn.generator import Generator, GeneratorConfig
from faststy.stylization.statistics import NormStatistics

STYLE = torch.tensor([0.25, 0.75])


@pytest.fixture(scope="module")
def generator():
    torch.manual_seed(0)
    net = Generator(GeneratorConfig(8, 2, styles=2)).eval().requires_grad_(False)
    for parameter in net.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.1)
    return net


@pytest.fixture(scope="module")
def frames():
    make = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (2, 44, 60, 3), dtype=torch.uint8, generator=make)


def as_floats(frames):
    return frames.permute(0, 3, 1, 2).float() / 255


def test_given_back_to_their_frame_nothing_changes(generator, frames):
    one = frames[:1]
    fixed = NormStatistics.collect(generator, one, STYLE).given_to(generator)
    expected = generator(as_floats(one), STYLE)
    torch.testing.assert_close(fixed(as_floats(one), STYLE), expected, atol=2e-4, rtol=0)


def test_folded_and_frozen_agree(generator, frames):
    statistics = NormStatistics.collect(generator, frames[:1], STYLE)
    other = frames[1:]
    frozen = statistics.given_to(generator)(as_floats(other), STYLE)
    folded = statistics.folded_into(generator, STYLE)(other).clamp(0, 1)
    torch.testing.assert_close(folded, frozen, atol=2e-4, rtol=0)
    own = generator(as_floats(other), STYLE)
    assert (own - frozen).abs().max() > 0.02  # they matter


def test_approaching_is_a_running_mean(generator, frames):
    a, b = (NormStatistics.collect(generator, frames[i : i + 1], STYLE) for i in range(2))
    expected = {name: 0.75 * a.moments[name] + 0.25 * b.moments[name] for name in a.moments}
    a.approach(b, 0.25)
    for name, moments in a.moments.items():
        torch.testing.assert_close(moments, expected[name])


@pytest.mark.parametrize("way", [copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))])
def test_a_copy_moves_by_itself(generator, frames, way):
    a, b = (NormStatistics.collect(generator, frames[i : i + 1], STYLE) for i in range(2))
    copied = way(a)
    assert copied != a
    copied.approach(b, 1)
    for name, moments in copied.moments.items():
        torch.testing.assert_close(moments, b.moments[name])
        assert not torch.equal(moments, a.moments[name])


def test_norms_are_told_apart_by_their_names(generator, frames):
    a, b = (NormStatistics.collect(generator, frames[i : i + 1], STYLE) for i in range(2))
    turned = NormStatistics(dict(reversed(b.moments.items())))
    a.approach(turned, 1)
    for name, moments in a.moments.items():
        torch.testing.assert_close(moments, b.moments[name])
