from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from faststy import ops
from faststy.ops import dispatch, reference

LAYOUTS = (torch.contiguous_format, torch.channels_last)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
SHAPES = [
    (3, 5, 2, 2),
    (2, 1, 13, 7),
    (1, 3, 31, 29),
    (2, 16, 8, 9),
    (1, 48, 17, 4),
    (2, 10, 3, 2),
    (1, 2, 40, 70),
]


def random(
    shape: tuple[int, ...], device: torch.device, dtype: torch.dtype, layout: torch.memory_format
) -> Tensor:
    return torch.randn(shape, device=device).to(dtype).contiguous(memory_format=layout)


def pooled(x: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
    """Maxima, and the gradient of x at the first of those that are equal: window by window."""
    n, c, h, w = x.shape[0], x.shape[1], x.shape[2] // 2, x.shape[3] // 2
    windows = x[..., : 2 * h, : 2 * w].reshape(n, c, h, 2, w, 2).permute(0, 1, 2, 4, 3, 5)
    windows = windows.flatten(4)
    largest = windows.amax(4, keepdim=True)
    equal = windows == largest
    first = equal & (equal.cumsum(4) == 1)
    spread = (first * dy[..., None]).unflatten(4, (2, 2)).permute(0, 1, 2, 4, 3, 5)
    dx = torch.zeros_like(x)
    dx[..., : 2 * h, : 2 * w] = spread.reshape(n, c, 2 * h, 2 * w)
    return largest[..., 0], dx


def check(x: Tensor, dy: Tensor) -> None:
    """Forward and gradient: both only pass numbers on, so there is nothing to tolerate."""
    leaf = x.detach().requires_grad_()
    y = ops.max_pool(leaf)
    (dx,) = torch.autograd.grad(y, leaf, dy)
    expected, gradient = pooled(x.detach().cpu().double(), dy.cpu().double())
    assert torch.equal(y.detach().cpu().double(), expected)
    assert torch.equal(dx.cpu().double(), gradient)
    assert y.dtype == dx.dtype == x.dtype
    if dispatch.by_raw_op("max_pool", x, 1):
        for t in (y, dx):
            assert t.is_contiguous(memory_format=reference.layout(x))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_shapes(
    device: torch.device, shape: Any, layout: torch.memory_format, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    n, c, h, w = shape
    check(
        random(shape, device, dtype, layout),
        random((n, c, h // 2, w // 2), device, dtype, layout),
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_many_channels(device: torch.device, dtype: torch.dtype) -> None:
    torch.manual_seed(5)
    for c in (80, 513):
        x = random((1, c, 2, 5), device, dtype, torch.channels_last)
        check(x, random((1, c, 1, 2), device, dtype, torch.channels_last))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_first_of_equal_maxima(device: torch.device, layout: torch.memory_format) -> None:
    torch.manual_seed(1)
    x = random((2, 16, 9, 8), device, torch.float32, layout).round()
    x[0, :8] = -torch.inf
    check(x, torch.rand(2, 16, 4, 4, device=device))


def test_layouts_that_differ_and_strides(device: torch.device) -> None:
    torch.manual_seed(2)
    wide = torch.randn(2, 12, 8, 9, device=device)
    last = random((2, 6, 8, 9), device, torch.float32, torch.channels_last)
    dy = torch.randn(2, 6, 4, 4, device=device)
    check(last, dy)
    check(wide[:, 3:9], dy.contiguous(memory_format=torch.channels_last))
    check(wide[:, ::2, ::2, ::2], dy[..., ::2, ::2])
    check(last.mT, dy.mT)
    check(last, torch.ones((), device=device).expand(2, 6, 4, 4))
    check(last[:1, :1].expand(2, 6, 8, 9), dy)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_nan_as_torch(device: torch.device, layout: torch.memory_format) -> None:
    """Every choice of NaN among four numbers; torch's gradient goes to the last of them."""
    choices = torch.arange(16, device=device)[:, None] >> torch.arange(4, device=device) & 1
    x = random((2, 16, 2, 2), device, torch.float32, layout)
    x.masked_fill_(choices.view(16, 2, 2).bool(), torch.nan)
    dy = torch.rand(2, 16, 1, 1, device=device)
    results = []
    for f in (ops.max_pool, lambda x: F.max_pool2d(x, 2)):
        leaf = x.clone().requires_grad_()
        y = f(leaf)
        results.append((y.isnan(), y.nan_to_num(), *torch.autograd.grad(y, leaf, dy)))
    for ours, theirs in zip(*results, strict=True):
        assert torch.equal(ours, theirs)


def test_as_torch_to_the_bit_on_a_cpu() -> None:
    if dispatch.IMPL == "triton":
        pytest.skip("the kernels give gradients of the layout of x")
    x = random((2, 6, 5, 7), torch.device("cpu"), torch.float32, torch.channels_last)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, expected = ops.max_pool(a), F.max_pool2d(b, 2)
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
    x = random((2, 3, 5, 6), device, torch.float64, layout)
    dy = torch.rand(2, 3, 2, 3, device=device, dtype=torch.float64)
    y, dx = reference.max_pool_fwd(x), reference.max_pool_bwd(dy, x)
    for ours, truth in zip((y, dx), pooled(x, dy), strict=True):
        assert torch.equal(ours, truth)
        assert ours.is_contiguous(memory_format=layout)


def test_gradcheck(device: torch.device) -> None:
    torch.manual_seed(4)
    x = torch.randn(2, 2, 5, 4, device=device, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(ops.max_pool, (x,))


def test_empty_batch(device: torch.device) -> None:
    x = torch.empty(0, 3, 4, 5, device=device, requires_grad=True)
    y = ops.max_pool(x)
    assert y.shape == (0, 3, 2, 2)
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.shape == x.shape


def test_second_derivative(device: torch.device) -> None:
    """Of what is differentiable once by itself."""
    torch.manual_seed(9)
    x = random((2, 4, 8, 9), device, torch.float32, torch.channels_last)
    found = []
    for pool in (lambda x: [ops.max_pool(x)], lambda x: [reference.max_pool(x)]):
        leaf = x.clone().requires_grad_()
        loss = sum(y.pow(3).sum() for y in pool(leaf))
        (dx,) = torch.autograd.grad(loss, leaf, create_graph=True)
        found.append((dx, *torch.autograd.grad(dx.square().sum(), leaf)))
    torch.testing.assert_close(*found)


def test_opcheck(device: torch.device) -> None:
    raw = torch.ops.faststy
    utils = ("test_schema", "test_faketensor", "test_autograd_registration")
    for layout in LAYOUTS:
        x = random((2, 3, 5, 6), device, torch.float32, layout)
        dy = raw.max_pool_fwd(x)
        torch.library.opcheck(raw.max_pool_fwd.default, (x,), test_utils=utils)
        torch.library.opcheck(raw.max_pool_bwd.default, (dy, x), test_utils=utils)


def test_compile(device: torch.device) -> None:
    def net(x: Tensor) -> Tensor:
        return ops.max_pool(x * 2).square().sum()

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


@pytest.mark.gpu
def test_cuda_graph() -> None:
    x = random((2, 16, 65, 65), torch.device("cuda"), torch.bfloat16, torch.channels_last)
    x.requires_grad_()
    dy = torch.randn(2, 16, 32, 32, device="cuda", dtype=torch.bfloat16)

    def step() -> tuple[Tensor, Tensor]:
        y = ops.max_pool(x)
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
    ("x", "error", "message"),
    [
        (torch.zeros(3, 4, 4), ValueError, r"x: expected \[N, C, H, W\], got \[3, 4, 4\]"),
        (torch.zeros(1, 3, 4, 4).int(), TypeError, "x: expected float16.*got torch.int32"),
        (torch.zeros(1, 3, 4, 1), ValueError, r"x: expected .* at least 2, got \[4, 1\]"),
    ],
)
def test_bad_input(x: Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ops.max_pool(x)
