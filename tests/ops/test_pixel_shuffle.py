from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from faststy import ops
from faststy.ops import reference

LAYOUTS = (torch.contiguous_format, torch.channels_last)


@pytest.mark.parametrize("library", [ops, reference])
@pytest.mark.parametrize("name", ["pixel_shuffle", "pixel_unshuffle"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("scale", [1, 2, 4])
def test_as_torch_in_the_layout_at_hand(
    device: torch.device, library: object, name: str, layout: torch.memory_format, scale: int
) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 48, 8, 12, device=device).contiguous(memory_format=layout).requires_grad_()
    y = getattr(library, name)(x, scale)
    expected = getattr(F, name)(x, scale)
    assert torch.equal(y, expected)
    assert y.is_contiguous(memory_format=layout)
    dy = torch.randn_like(y)
    (dx,), (gradient,) = (torch.autograd.grad(z, x, dy) for z in (y, expected))
    assert torch.equal(dx, gradient)
    assert dx.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("name", ["pixel_shuffle", "pixel_unshuffle"])
def test_strides(device: torch.device, name: str) -> None:
    x = torch.randn(2, 8, 8, 12, device=device)
    for part in (x.mT, x[:, :4, ::2, :8], x[:1].expand(3, 8, 8, 12)):
        assert torch.equal(getattr(ops, name)(part, 2), getattr(F, name)(part, 2))


def test_empty(device: torch.device) -> None:
    x = torch.zeros(0, 8, 4, 6, device=device, requires_grad=True)
    for name, shape in (("pixel_shuffle", (0, 2, 8, 12)), ("pixel_unshuffle", (0, 32, 2, 3))):
        y = getattr(ops, name)(x, 2)
        assert y.shape == shape
        y.sum().backward()
    assert x.grad is not None


def test_compile(device: torch.device) -> None:
    def net(x: Tensor) -> Tensor:
        return ops.pixel_shuffle(ops.pixel_unshuffle(x, 2) * 2, 2)

    torch._dynamo.reset()
    x = torch.randn(2, 3, 4, 6, device=device).contiguous(memory_format=torch.channels_last)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), 2 * x)


def test_bad_input() -> None:
    x = torch.zeros(1, 6, 4, 5)
    with pytest.raises(ValueError, match=r"x: expected sides in multiples of 2, got \[4, 5\]"):
        ops.pixel_unshuffle(x, 2)
    for shuffle in (ops.pixel_unshuffle, ops.pixel_shuffle):
        with pytest.raises(ValueError, match="scale: expected at least 1, got 0"):
            shuffle(x, 0)
    with pytest.raises(ValueError, match="x: expected channels in multiples of 2², got 6"):
        ops.pixel_shuffle(x, 2)
    with pytest.raises(ValueError, match=r"x: expected \[N, C, H, W\], got \[6, 4, 5\]"):
        ops.pixel_shuffle(x[0], 2)
