from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from faststy import ops
from faststy.ops import dispatch, reference

# Relative error by norm of gradients; padding itself changes nothing.
TOLERANCES = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
LAYOUTS = (torch.contiguous_format, torch.channels_last)
SHAPES = [
    (2, 3, 2, 2),
    (1, 1, 5, 7),
    (2, 28, 9, 6),
    (1, 48, 8, 8),
    (1, 513, 3, 2),
    (3, 6, 4, 33),
    (1, 2, 40, 3),
]


def random(
    shape: tuple[int, ...], device: torch.device, dtype: torch.dtype, layout: torch.memory_format
) -> Tensor:
    return torch.randn(shape, device=device).to(dtype).contiguous(memory_format=layout)


def check(x: Tensor, dy: Tensor, pad: int = 1) -> None:
    """Forward and gradient against torch's in float64."""
    leaf = x.detach().requires_grad_()
    y = ops.reflection_pad(leaf, pad)
    (dx,) = torch.autograd.grad(y, leaf, dy)
    truth = x.detach().cpu().double().requires_grad_()
    expected = F.pad(truth, [pad] * 4, "reflect")
    (gradient,) = torch.autograd.grad(expected, truth, dy.cpu().double())
    assert torch.equal(y.detach().cpu().double(), expected.detach())
    assert float((dx.cpu() - gradient).norm() / gradient.norm()) < TOLERANCES[x.dtype]
    assert y.dtype == dx.dtype == x.dtype
    if dispatch.by_raw_op("reflection_pad", x, 1):
        for t in (y, dx):
            assert t.is_contiguous(memory_format=reference.layout(x))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_shapes(
    device: torch.device, shape: Any, layout: torch.memory_format, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    n, c, h, w = shape
    x = random(shape, device, dtype, layout)
    check(x, random((n, c, h + 2, w + 2), device, dtype, layout))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("pad", "size"), [(0, (1, 1)), (2, (3, 9)), (3, (4, 5)), (4, (12, 16))])
def test_pads(
    device: torch.device, pad: int, size: tuple[int, int], layout: torch.memory_format
) -> None:
    """Also where a pixel is read to nine places."""
    torch.manual_seed(1)
    h, w = size
    x = random((2, 4, h, w), device, torch.float32, layout)
    check(x, random((2, 4, h + 2 * pad, w + 2 * pad), device, torch.float32, layout), pad)


def test_layouts_that_differ_and_strides(device: torch.device) -> None:
    torch.manual_seed(2)
    wide = torch.randn(2, 12, 8, 9, device=device)
    dy = random((2, 6, 8, 9), device, torch.float32, torch.channels_last)
    check(wide[:, 3:9, :6, 1:8], dy)
    check(dy[..., :6, :7], dy)
    check(wide[:, ::2, ::2, ::3], torch.ones((), device=device).expand(2, 6, 6, 5))
    check(dy[:, :1, 1:7, 1:8].expand(2, 4, 6, 7), dy[:, :4])
    check(dy.mT, wide[:, :6].repeat(1, 1, 2, 2)[..., :10, :11].mT.contiguous().mT.mT)


def test_as_torch_to_the_bit_on_a_cpu() -> None:
    """So that training there is what it was."""
    if dispatch.IMPL == "triton":
        pytest.skip("the kernels add gradients in another order")
    x = random((2, 6, 5, 7), torch.device("cpu"), torch.float32, torch.channels_last)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, expected = ops.reflection_pad(a), F.pad(b, (1, 1, 1, 1), "reflect")
    assert y.stride() == expected.stride()
    y.square().sum().backward()
    expected.square().sum().backward()
    assert a.grad is not None
    assert b.grad is not None
    assert torch.equal(a.grad, b.grad)
    assert a.grad.stride() == b.grad.stride()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_raw_reference(device: torch.device, layout: torch.memory_format) -> None:
    """What computes the op on a GPU without Triton."""
    torch.manual_seed(3)
    x = random((2, 3, 4, 6), device, torch.float64, layout).requires_grad_()
    y = reference.reflection_pad_fwd(x, 2)
    dy = torch.randn_like(y)
    last = layout == torch.channels_last
    dx = reference.reflection_pad_bwd(dy, 2, last)
    cpu = x.detach().cpu().requires_grad_()
    (expected,) = torch.autograd.grad(F.pad(cpu, [2] * 4, "reflect"), cpu, dy.cpu())
    torch.testing.assert_close(dx.cpu(), expected)
    assert y.is_contiguous(memory_format=layout)
    assert dx.is_contiguous(memory_format=layout)


def test_gradcheck(device: torch.device) -> None:
    torch.manual_seed(4)
    x = torch.randn(2, 2, 3, 4, device=device, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(ops.reflection_pad, (x,))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_deterministic(device: torch.device, layout: torch.memory_format) -> None:
    x = random((1, 12, 17, 19), device, torch.float32, layout).requires_grad_()
    dy = random((1, 12, 19, 21), device, torch.float32, layout)
    first, second = (torch.autograd.grad(ops.reflection_pad(x), x, dy)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_empty_batch(device: torch.device) -> None:
    x = torch.empty(0, 3, 4, 4, device=device, requires_grad=True)
    y = ops.reflection_pad(x)
    assert y.shape == (0, 3, 6, 6)
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.shape == x.shape


def test_second_derivative(device: torch.device) -> None:
    """Of what is differentiable once by itself."""
    torch.manual_seed(9)
    x = random((2, 4, 8, 9), device, torch.float32, torch.channels_last)
    found = []
    for pad in (lambda x: [ops.reflection_pad(x, 2)], lambda x: [reference.reflection_pad(x, 2)]):
        leaf = x.clone().requires_grad_()
        loss = sum(y.pow(3).sum() for y in pad(leaf))
        (dx,) = torch.autograd.grad(loss, leaf, create_graph=True)
        found.append((dx, *torch.autograd.grad(dx.square().sum(), leaf)))
    torch.testing.assert_close(*found)


def test_opcheck(device: torch.device) -> None:
    raw = torch.ops.faststy
    utils = ("test_schema", "test_faketensor", "test_autograd_registration")
    for layout in LAYOUTS:
        x = random((2, 3, 5, 6), device, torch.float32, layout)
        dy = raw.reflection_pad_fwd(x, 1)
        last = layout == torch.channels_last
        torch.library.opcheck(raw.reflection_pad_fwd.default, (x, 1), test_utils=utils)
        torch.library.opcheck(raw.reflection_pad_bwd.default, (dy, 1, last), test_utils=utils)


def test_compile(device: torch.device) -> None:
    def net(x: Tensor) -> Tensor:
        return ops.reflection_pad(x * 2).square().sum()

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


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_autocast_keeps_the_dtype(device: torch.device, dtype: torch.dtype) -> None:
    x = random((1, 4, 5, 6), device, dtype, torch.channels_last).requires_grad_()
    with torch.autocast(device.type, torch.bfloat16):
        y = ops.reflection_pad(x)
        assert y.dtype == dtype
        (dx,) = torch.autograd.grad(y, x, torch.ones_like(y))
    assert dx.dtype == dtype


@pytest.mark.gpu
def test_cuda_graph() -> None:
    x = random((2, 8, 65, 65), torch.device("cuda"), torch.bfloat16, torch.channels_last)
    x.requires_grad_()
    dy = torch.randn(2, 8, 67, 67, device="cuda", dtype=torch.bfloat16)

    def step() -> tuple[Tensor, Tensor]:
        y = ops.reflection_pad(x)
        return y, torch.autograd.grad(y, x, dy)[0]

    step()  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        x.normal_()
        dy.normal_()
    graph.replay()
    for a, b in zip(captured, step(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("x", "pad", "error", "message"),
    [
        (torch.zeros(3, 4, 4), 1, ValueError, r"x: expected \[N, C, H, W\], got \[3, 4, 4\]"),
        (torch.zeros(1, 3, 4, 4).int(), 1, TypeError, "x: expected float16.*got torch.int32"),
        (torch.zeros(1, 3, 4, 1), 1, ValueError, r"pad: expected .*H and W, \[4, 1\], got 1"),
        (torch.zeros(1, 3, 4, 4), -1, ValueError, "pad: expected a whole number .* got -1"),
        (torch.zeros(1, 3, 4, 4), 1.5, ValueError, "pad: expected a whole number .* got 1.5"),
    ],
)
def test_bad_input(x: Tensor, pad: int, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ops.reflection_pad(x, pad)
