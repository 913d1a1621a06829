from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from faststy import ops
from faststy.ops import dispatch, reference

# Relative error by norm, of results and gradients against float64.
TOLERANCES = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
LAYOUTS = (torch.contiguous_format, torch.channels_last)
ACTIVATIONS: tuple[Any, ...] = (None, "relu", "leaky_relu")
SHAPES = [
    (3, 5, 1, 1),
    (2, 1, 13, 7),
    (1, 3, 31, 29),
    (2, 16, 8, 8),
    (1, 48, 20, 20),  # sums of a bias in several programs
    (2, 10, 1, 17),
]


def relative(a: Tensor, b: Tensor) -> float:
    a, b = a.detach().cpu().double(), b.detach().cpu().double()
    return float((a - b).norm() / b.norm().clamp_min(1e-12))


def random(
    shape: tuple[int, ...], device: torch.device, dtype: torch.dtype, layout: torch.memory_format
) -> Tensor:
    return torch.randn(shape, device=device).to(dtype).contiguous(memory_format=layout)


def activated(x: Tensor, bias: Tensor, activation: str | None) -> Tensor:
    z = x + bias.view(1, -1, 1, 1)
    slope = {None: 1.0, "relu": 0.0, "leaky_relu": 0.2}[activation]
    return torch.where(z > 0, z, slope * z)


def check(x: Tensor, bias: Tensor, dy: Tensor, activation: Any, frozen: bool = False) -> None:
    """Forward and every gradient against float64. Rounding never changes the sign of a sum, so
    there is no exception near zero."""
    leaves = [x.detach().requires_grad_(), bias.detach().requires_grad_(not frozen)]
    y = ops.bias_activation(*leaves, activation)
    wanted = leaves[: 1 if frozen else 2]
    ours = (y, *torch.autograd.grad(y, wanted, dy))
    truth = [t.detach().cpu().double().requires_grad_() for t in leaves]
    expected = activated(*truth, activation)
    theirs = (expected, *torch.autograd.grad(expected, truth, dy.cpu().double()))
    for name, a, b in zip(("y", "dx", "dbias"), ours, theirs, strict=False):
        assert a.shape == b.shape
        assert relative(a, b) < TOLERANCES[x.dtype], (name, relative(a, b))
    assert y.dtype == ours[1].dtype == x.dtype
    if not frozen:
        assert ours[2].dtype == bias.dtype
    if dispatch.by_kernels(x):
        assert y.is_contiguous(memory_format=reference.layout(x))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("frozen", [False, True])
def test_shapes(
    device: torch.device, shape: Any, layout: torch.memory_format, activation: Any, frozen: bool
) -> None:
    torch.manual_seed(0)
    x, dy = (random(shape, device, torch.float32, layout) for _ in range(2))
    check(x, torch.randn(shape[1], device=device), dy, activation, frozen)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("parameter", [torch.float32, None])
def test_half_precision(
    device: torch.device,
    dtype: torch.dtype,
    layout: torch.memory_format,
    parameter: torch.dtype | None,
) -> None:
    """With the bias in float32, as autocast leaves it, and in the dtype of x."""
    torch.manual_seed(1)
    for c, activation in ((24, "leaky_relu"), (12, "relu"), (6, None)):
        x, dy = (random((2, c, 12, 11), device, dtype, layout) for _ in range(2))
        bias = torch.randn(c, device=device).to(parameter or dtype)
        check(x, bias, dy, activation)
        check(x, bias, dy, activation, frozen=True)


def test_layouts_that_differ_and_strides(device: torch.device) -> None:
    torch.manual_seed(2)
    wide, bias = torch.randn(2, 12, 8, 9, device=device), torch.randn(12, device=device)
    last = random((2, 6, 8, 9), device, torch.float32, torch.channels_last)
    for frozen in (False, True):
        check(wide[:, 3:9], bias[::2], last, "relu", frozen)
        check(last, bias[:6], wide[:, ::2], "leaky_relu", frozen)
        check(last.mT, bias[6:], wide[:, :6].mT, "relu", frozen)
        check(wide[..., 1:5, 2:6], bias, wide[..., :4, :4], "relu", frozen)
        check(last[:1, :1].expand(2, 6, 8, 9), bias[:6], last, "relu", frozen)
        check(last, bias[:6], torch.ones((), device=device).expand(2, 6, 8, 9), "relu", frozen)


@pytest.mark.parametrize("shape", [(300, 17, 3, 3), (2, 80, 5, 3), (1, 513, 2, 3)])
def test_many_parts_and_channels(device: torch.device, shape: Any) -> None:
    """More sums of parts than are merged at a time, and more channels than in a tile."""
    torch.manual_seed(3)
    x = random(shape, device, torch.float32, torch.channels_last)
    for frozen in (False, True):
        bias, dy = torch.randn(shape[1], device=device), torch.randn_like(x)
        check(x, bias, dy, "leaky_relu", frozen)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_zeros_and_nan_as_torch(
    device: torch.device, layout: torch.memory_format, activation: Any
) -> None:
    x = random((2, 16, 5, 4), device, torch.float32, layout)
    x[0, :, 1], x[1, :, 2], x[1, :, 3, 1] = 0, torch.nan, -torch.inf
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    y = ops.bias_activation(ours, torch.zeros(16, device=device), activation)
    f = {None: lambda t: t + 0, "relu": F.relu, "leaky_relu": lambda t: F.leaky_relu(t, 0.2)}
    expected = f[activation](theirs)
    assert torch.equal(y.isnan(), expected.isnan())
    assert torch.equal(y.nan_to_num(), expected.nan_to_num())
    y.backward(torch.ones_like(y))
    expected.backward(torch.ones_like(y))
    assert ours.grad is not None
    assert theirs.grad is not None
    assert torch.equal(ours.grad, theirs.grad)


@pytest.mark.parametrize("activation", ["relu", "leaky_relu"])
def test_keeps_the_result_alone(device: torch.device, activation: Any) -> None:
    """Which what comes next keeps anyway; without an activation nothing at all."""
    if not dispatch.by_kernels(torch.empty(0, device=device)):
        pytest.skip("torch's own ops")
    kept: list[Tensor] = []
    x = random((1, 4, 3, 3), device, torch.float32, torch.channels_last).requires_grad_()
    bias = torch.zeros(4, device=device)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t), t)[1], lambda t: t):
        y = ops.bias_activation(x, bias, activation)
        ops.bias_activation(x, bias)
    assert [t.data_ptr() for t in kept] == [y.data_ptr()]


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradcheck(device: torch.device, activation: Any) -> None:
    torch.manual_seed(4)
    x = torch.randn(2, 2, 3, 4, device=device, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(2, device=device, dtype=torch.float64, requires_grad=True)
    op = lambda x, bias: ops.bias_activation(x, bias, activation)  # noqa: E731
    assert torch.autograd.gradcheck(op, (x, bias))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_deterministic(device: torch.device, layout: torch.memory_format) -> None:
    x = random((3, 12, 17, 19), device, torch.float32, layout)
    dy, bias = torch.randn_like(x), torch.zeros(12, device=device, requires_grad=True)
    first, second = (
        torch.autograd.grad(ops.bias_activation(x, bias, "relu"), bias, dy)[0] for _ in range(2)
    )
    assert torch.equal(first, second)


def test_empty_batch(device: torch.device) -> None:
    x = torch.empty(0, 3, 4, 4, device=device, requires_grad=True)
    bias = torch.ones(3, device=device, requires_grad=True)
    y = ops.bias_activation(x, bias, "relu")
    assert y.shape == x.shape
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.shape == x.shape
    assert bias.grad is not None
    assert torch.equal(bias.grad, torch.zeros_like(bias))


def test_opcheck(device: torch.device) -> None:
    raw = torch.ops.faststy
    utils = ("test_schema", "test_faketensor", "test_autograd_registration")
    bias = torch.randn(3, device=device)
    for layout in LAYOUTS:
        x = random((2, 3, 5, 6), device, torch.float32, layout)
        forward, backward = raw.bias_activation_fwd.default, raw.bias_activation_bwd.default
        torch.library.opcheck(forward, (x, bias, "relu"), test_utils=utils)
        for y, activation in ((x, "relu"), (x, "leaky_relu"), (None, "none")):
            for wanted in (True, False):
                arguments = (x, y, activation, wanted)
                torch.library.opcheck(backward, arguments, test_utils=utils)


def test_compile(device: torch.device) -> None:
    def net(x: Tensor, bias: Tensor) -> Tensor:
        return ops.bias_activation(x * 2, bias, "leaky_relu").square().sum()

    torch._dynamo.reset()
    compiled = torch.compile(net, fullgraph=True, dynamic=True, backend="aot_eager")
    for size in (6, 8):
        results = []
        leaf = random((2, 3, size, 5), device, torch.float32, torch.channels_last)
        for f in (net, compiled):
            leaves = leaf.clone().requires_grad_(), torch.ones(3, device=device).requires_grad_()
            loss = f(*leaves)
            results.append((loss, *torch.autograd.grad(loss, leaves)))
        torch.testing.assert_close(results[0], results[1])


def test_a_second_derivative_is_refused(device: torch.device) -> None:
    if not dispatch.by_kernels(torch.empty(0, device=device)):
        pytest.skip("torch's own ops know it")
    x = random((1, 3, 4, 4), device, torch.float32, torch.channels_last).requires_grad_()
    y = ops.bias_activation(x, torch.ones(3, device=device), "relu").square().sum()
    (dx,) = torch.autograd.grad(y, x, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivative"):
        dx.sum().backward()


@pytest.mark.gpu
def test_cuda_graph() -> None:
    x = random((2, 24, 65, 65), torch.device("cuda"), torch.bfloat16, torch.channels_last)
    bias = torch.randn(24, device="cuda").requires_grad_()
    leaves, dy = (x.requires_grad_(), bias), torch.randn_like(x)

    def step() -> tuple[Tensor, ...]:
        y = ops.bias_activation(*leaves, "leaky_relu")
        return y, *torch.autograd.grad(y, leaves, dy)

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
    ("x", "bias", "activation", "error", "message"),
    [
        (torch.zeros(3, 4), torch.zeros(3), None, ValueError, r"x: expected \[N, C, H, W\]"),
        (torch.zeros(1, 3, 4, 4).int(), torch.zeros(3), None, TypeError, "x: .*got torch.int32"),
        (
            torch.zeros(1, 3, 4, 4),
            torch.zeros(4),
            None,
            ValueError,
            r"bias: expected \[C\] = \[3\]",
        ),
        (torch.zeros(1, 3, 4, 4), torch.zeros(3), "silu", ValueError, "activation: .*got 'silu'"),
    ],
)
def test_bad_input(
    x: Tensor, bias: Tensor, activation: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        ops.bias_activation(x, bias, activation)
