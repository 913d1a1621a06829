from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from faststy import ops
from faststy.ops import dispatch, reference

TOLERANCES = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
LAYOUTS = (torch.contiguous_format, torch.channels_last)
SHAPES = [(2, 3, 9, 12), (1, 1, 1, 5), (2, 4, 2, 2), (1, 5, 7, 1), (1, 16, 3, 4), (2, 12, 4, 17)]


def random(
    shape: tuple[int, ...], device: torch.device, dtype: torch.dtype, layout: torch.memory_format
) -> Tensor:
    return torch.randn(shape, device=device).to(dtype).contiguous(memory_format=layout)


def blurred(x: Tensor) -> Tensor:
    """Weights times shifted pictures, as the words say it."""
    h, w = x.shape[2:]
    around = F.pad(x, (1, 1, 1, 1), "replicate")
    weights = ((1, 2, 1), (2, 4, 2), (1, 2, 1))
    shifted = [(i, j, around[..., i : i + h, j : j + w]) for i in range(3) for j in range(3)]
    return torch.stack([weights[i][j] / 16 * part for i, j, part in shifted]).sum(0)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_shapes(
    device: torch.device, shape: Any, layout: torch.memory_format, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    x, dy = (random(shape, device, dtype, layout) for _ in range(2))
    leaf = x.clone().requires_grad_()
    y = ops.blur(leaf)
    (dx,) = torch.autograd.grad(y, leaf, dy)
    truth = x.cpu().double().requires_grad_()
    expected = blurred(truth)
    (gradient,) = torch.autograd.grad(expected, truth, dy.cpu().double())
    bound = TOLERANCES[dtype]
    torch.testing.assert_close(y.detach().cpu().double(), expected.detach(), atol=bound, rtol=bound)
    torch.testing.assert_close(dx.cpu().double(), gradient, atol=bound, rtol=bound)
    assert y.dtype == dx.dtype == dtype
    if dispatch.by_kernels(x):
        assert y.is_contiguous(memory_format=reference.layout(x))
        assert dx.is_contiguous(memory_format=reference.layout(x))


def test_strides(device: torch.device) -> None:
    torch.manual_seed(1)
    x = torch.randn(2, 6, 9, 12, device=device)
    for part in (x[:, 1:4, 2:, ::2], x.mT, x[:1, :1].expand(2, 3, 9, 12)):
        torch.testing.assert_close(ops.blur(part).cpu(), blurred(part.cpu()))


def test_takes_away_what_alternates_and_keeps_what_is_flat(device: torch.device) -> None:
    places = torch.arange(8, device=device)
    checks = ((places[:, None] + places) % 2).float().expand(1, 3, 8, 8)
    assert torch.equal(ops.blur(checks)[..., 1:-1, 1:-1].cpu(), torch.full((1, 3, 6, 6), 0.5))
    flat = torch.full((1, 3, 5, 6), 0.7, device=device)
    torch.testing.assert_close(ops.blur(flat), flat)


def test_autocast_leaves_it_alone(device: torch.device) -> None:
    x = torch.randn(1, 3, 6, 7, device=device, requires_grad=True)
    expected = ops.blur(x)
    with torch.autocast(device.type, torch.bfloat16):
        y = ops.blur(x)
        assert ops.blur(x.bfloat16()).dtype == torch.bfloat16
    assert torch.equal(y, expected)
    (dx,) = torch.autograd.grad(y.sum(), x)
    assert dx.dtype == torch.float32


def test_gradcheck_twice(device: torch.device) -> None:
    torch.manual_seed(2)
    x = torch.randn(1, 2, 3, 3, device=device, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(ops.blur, (x,))
    assert torch.autograd.gradgradcheck(ops.blur, (x,))


def test_empty_batch(device: torch.device) -> None:
    x = torch.empty(0, 3, 4, 4, device=device, requires_grad=True)
    ops.blur(x).sum().backward()
    assert x.grad is not None
    assert x.grad.shape == x.shape


def test_opcheck(device: torch.device) -> None:
    utils = ("test_schema", "test_faketensor", "test_autograd_registration")
    for layout in LAYOUTS:
        x = random((2, 3, 5, 6), device, torch.float32, layout)
        torch.library.opcheck(torch.ops.faststy.blur_fwd.default, (x,), test_utils=utils)


def test_compile(device: torch.device) -> None:
    def net(x: Tensor) -> Tensor:
        return ops.blur(x * 2).square().sum()

    torch._dynamo.reset()
    compiled = torch.compile(net, fullgraph=True, dynamic=True, backend="aot_eager")
    for size in (6, 8):
        results = []
        leaf = random((2, 3, size, 5), device, torch.float32, torch.channels_last)
        for f in (net, compiled):
            x = leaf.clone().requires_grad_()
            loss = f(x)
            results.append((loss, *torch.autograd.grad(loss, x)))
        torch.testing.assert_close(results[0], results[1])


def test_bad_input() -> None:
    with pytest.raises(ValueError, match=r"x: expected \[N, C, H, W\], got \[3, 4, 4\]"):
        ops.blur(torch.zeros(3, 4, 4))
    with pytest.raises(TypeError, match=r"x: expected float16.*got torch.int32"):
        ops.blur(torch.zeros(1, 3, 4, 4).int())
