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
SHAPES = [(2, 3, 8, 12), (1, 1, 13, 7), (2, 4, 4, 4), (1, 3, 6, 11), (1, 16, 5, 31), (1, 48, 10, 9)]


def random(
    shape: tuple[int, ...], device: torch.device, dtype: torch.dtype, layout: torch.memory_format
) -> Tensor:
    return torch.randn(shape, device=device).to(dtype).contiguous(memory_format=layout)


def averaged(x: Tensor, scale: int) -> Tensor:
    """As the words say it."""
    h, w = x.shape[2] // scale, x.shape[3] // scale
    cells = x[..., : h * scale, : w * scale].unflatten(3, (w, scale)).unflatten(2, (h, scale))
    return cells.mean((3, 5))


def check(x: Tensor, dys: list[Tensor]) -> None:
    """Forward and gradient against float64."""
    leaf = x.detach().requires_grad_()
    ours = ops.averages(leaf)
    (dx,) = torch.autograd.grad(ours, leaf, dys)
    truth = x.detach().cpu().double().requires_grad_()
    expected = [averaged(truth, 2), averaged(truth, 4)]
    (gradient,) = torch.autograd.grad(expected, truth, [dy.cpu().double() for dy in dys])
    bound = TOLERANCES[x.dtype]
    for a, b in zip((*ours, dx), (*expected, gradient), strict=True):
        torch.testing.assert_close(a.detach().cpu().double(), b.detach(), atol=bound, rtol=bound)
        assert a.dtype == x.dtype
        if dispatch.by_raw_op("averages", x, 1):
            assert a.is_contiguous(memory_format=reference.layout(x))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_shapes(
    device: torch.device, shape: Any, layout: torch.memory_format, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    n, c, h, w = shape
    dys = [random((n, c, h // s, w // s), device, dtype, layout) for s in (2, 4)]
    check(random(shape, device, dtype, layout), dys)


def test_layouts_that_differ_and_strides(device: torch.device) -> None:
    torch.manual_seed(1)
    wide = torch.randn(2, 6, 8, 10, device=device)
    last = random((2, 3, 8, 10), device, torch.float32, torch.channels_last)
    half, quarter = (torch.randn(2, 3, 8 // s, 10 // s, device=device) for s in (2, 4))
    check(last, [half, quarter])
    check(wide[:, ::2], [half.contiguous(memory_format=torch.channels_last), quarter])
    check(last.mT, [half.mT, quarter.mT])
    check(wide[:, 3:, :, ::2], [half[..., :2], quarter[..., :1]])
    check(last, [torch.ones((), device=device).expand_as(half), quarter])
    check(last[:1, :1].expand(2, 3, 8, 10), [half, quarter])


def test_one_gradient_alone(device: torch.device) -> None:
    x = random((1, 3, 9, 8), device, torch.float32, torch.channels_last).requires_grad_()
    for i in range(2):
        (dx,) = torch.autograd.grad(ops.averages(x)[i].square().sum(), x)
        (expected,) = torch.autograd.grad(averaged(x, 2 ** (i + 1)).square().sum(), x)
        torch.testing.assert_close(dx, expected)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_nan_stays_in_its_cell(device: torch.device, layout: torch.memory_format) -> None:
    x = random((1, 3, 9, 9), device, torch.float32, layout)
    x[0, 1, 5, 6], x[0, 1, 8, 8] = torch.nan, torch.inf
    for smaller, scale in zip(ops.averages(x), (2, 4), strict=True):
        assert smaller.isnan().nonzero().tolist() == [[0, 1, 5 // scale, 6 // scale]]
        assert not smaller.isinf().any()


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_as_torch_to_the_bit_on_a_cpu(count: int) -> None:
    if dispatch.IMPL == "triton":
        pytest.skip("the kernels sum in another order")
    x = random((2, 3, 17, 24), torch.device("cpu"), torch.float32, torch.channels_last)
    found = ops.averages(x, count)
    assert len(found) == count
    for i, smaller in enumerate(found):
        assert torch.equal(smaller, F.avg_pool2d(x, 2 ** (i + 1)))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_raw_reference(device: torch.device, layout: torch.memory_format) -> None:
    """What computes the op on a GPU without Triton."""
    torch.manual_seed(2)
    x = random((2, 3, 7, 10), device, torch.float64, layout).requires_grad_()
    found = reference.averages_fwd(x)
    dys = [torch.randn_like(y) for y in found]
    dx = reference.averages_bwd(*dys, 7, 10, layout == torch.channels_last)
    expected = [averaged(x, 2), averaged(x, 4)]
    (gradient,) = torch.autograd.grad(expected, x, dys)
    for a, b in zip((*found, dx), (*expected, gradient), strict=True):
        torch.testing.assert_close(a, b)
        assert a.is_contiguous(memory_format=layout)


def test_gradcheck(device: torch.device) -> None:
    torch.manual_seed(3)
    x = torch.randn(1, 2, 5, 4, device=device, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: tuple(ops.averages(x)), (x,))


def test_empty_batch(device: torch.device) -> None:
    x = torch.empty(0, 3, 4, 9, device=device, requires_grad=True)
    half, quarter = ops.averages(x)
    assert half.shape == (0, 3, 2, 4)
    assert quarter.shape == (0, 3, 1, 2)
    (half.sum() + quarter.sum()).backward()
    assert x.grad is not None
    assert x.grad.shape == x.shape


def test_second_derivative(device: torch.device) -> None:
    """Of what is differentiable once by itself."""
    torch.manual_seed(9)
    x = random((2, 4, 8, 9), device, torch.float32, torch.channels_last)
    found = []
    for average in (ops.averages, lambda x: [reference.average(x, s) for s in (2, 4)]):
        leaf = x.clone().requires_grad_()
        loss = sum(y.pow(3).sum() for y in average(leaf))
        (dx,) = torch.autograd.grad(loss, leaf, create_graph=True)
        found.append((dx, *torch.autograd.grad(dx.square().sum(), leaf)))
    torch.testing.assert_close(*found)


def test_opcheck(device: torch.device) -> None:
    raw = torch.ops.faststy
    utils = ("test_schema", "test_faketensor", "test_autograd_registration")
    for layout in LAYOUTS:
        x = random((2, 3, 5, 8), device, torch.float32, layout)
        torch.library.opcheck(raw.averages_fwd.default, (x,), test_utils=utils)
        arguments = (*raw.averages_fwd(x), 5, 8, layout == torch.channels_last)
        torch.library.opcheck(raw.averages_bwd.default, arguments, test_utils=utils)


def test_compile(device: torch.device) -> None:
    def net(x: Tensor) -> Tensor:
        half, quarter = ops.averages(x * 2)
        return half.square().sum() + quarter.square().sum()

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


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.zeros(3, 4, 4), ValueError, r"x: expected \[N, C, H, W\], got \[3, 4, 4\]"),
        (torch.zeros(1, 3, 4, 4).int(), TypeError, "x: expected float16.*got torch.int32"),
        (torch.zeros(1, 3, 4, 3), ValueError, r"x: expected .* at least 4, got \[4, 3\]"),
    ],
)
def test_bad_input(x: Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ops.averages(x)


def test_less_than_no_averages() -> None:
    with pytest.raises(ValueError, match="count: expected at least 0, got -1"):
        ops.averages(torch.zeros(1, 3, 4, 4), -1)
