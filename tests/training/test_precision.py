"""Which precision a run gets, and that its steps are computed in it."""

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F

from faststy.training.precision import in_precision, precision_named

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"avx512_bf16": False, "amx_bf16": True}, torch.bfloat16),
        ({"avx2": True, "avx512_bf16": False}, torch.float32),
        ({}, torch.float32),
    ],
)
def test_auto_is_bfloat16_where_the_processor_has_it(monkeypatch, found, expected):
    monkeypatch.setattr("faststy.training.precision.processor", lambda: found)
    assert precision_named("auto", CPU) == expected
    assert precision_named("float32", CPU) == torch.float32
    assert precision_named("bfloat16", CPU) == torch.bfloat16


@dataclass
class Net:
    precision: torch.dtype
    device: torch.device = CPU

    @in_precision
    def convolve(self, x, weight):
        return F.conv2d(x, weight)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_convolutions_have_the_precision_and_see_weights_as_they_are_now(precision):
    net, weight = Net(precision), torch.ones(1, 3, 1, 1, requires_grad=True)
    x = torch.rand(1, 3, 4, 4)
    first = net.convolve(x, weight)
    assert first.dtype == precision
    with torch.no_grad():
        weight *= 2
    torch.testing.assert_close(net.convolve(x, weight), 2 * first)
    assert F.conv2d(x, weight).dtype == torch.float32  # outside
