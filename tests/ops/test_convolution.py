"""By torch's own ops, and by the kernels' order: pooled before the bias is added."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from faststy.ops import convolution
from faststy.ops.convolution import convolve

from .conftest import INTERPRETED


def after(y: Tensor, activation: str | None, pool: bool) -> Tensor:
    y = F.max_pool2d(y, 2) if pool else y
    slope = {None: 1.0, "relu": 0.0, "leaky_relu": 0.2}[activation]
    return torch.where(y > 0, y, slope * y)


@pytest.mark.parametrize("kernels", [False, True])
@pytest.mark.parametrize("activation", [None, "relu", "leaky_relu"])
@pytest.mark.parametrize("pool", [False, True])
def test_values_and_gradients(
    monkeypatch: pytest.MonkeyPatch, activation: Any, pool: bool, kernels: bool
) -> None:
    # The ops beneath still choose torch: it is the order of things that is looked at.
    monkeypatch.setattr(convolution, "by_kernels", lambda x: kernels)
    torch.manual_seed(0)
    shapes = (2, 3, 10, 13), (6, 3, 4, 4), (6,)
    leaves = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    y = convolve(*leaves, activation, stride=2, padding=1, pool=pool)
    expected = after(F.conv2d(*leaves, stride=2, padding=1), activation, pool)
    dy = torch.randn_like(y)
    torch.testing.assert_close(y, expected)
    for ours, truth in zip(
        torch.autograd.grad(y, leaves, dy), torch.autograd.grad(expected, leaves, dy), strict=True
    ):
        torch.testing.assert_close(ours, truth)


def test_without_a_bias() -> None:
    x, weight = torch.randn(1, 2, 6, 6), torch.randn(3, 2, 3, 3)
    y = convolve(x, weight, None, "leaky_relu", pool=True)
    assert torch.equal(y, F.leaky_relu(F.max_pool2d(F.conv2d(x, weight), 2), 0.2))


@pytest.mark.skipif(INTERPRETED, reason="the kernels round in between")
def test_on_a_cpu_it_is_torchs_to_the_bit() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        x, weight, bias = (torch.randn(s, dtype=dtype) for s in ((2, 3, 9, 9), (5, 3, 3, 3), (5,)))
        y = convolve(x, weight, bias, "relu", padding=1)
        assert torch.equal(y, F.relu(F.conv2d(x, weight, bias, padding=1)))
