from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from faststy import ops
from faststy.ops import reference

# Relative error by norm, of results and gradients against float64.
TOLERANCES = {torch.float32: 3e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
LAYOUTS = (torch.contiguous_format, torch.channels_last)
SHAPES = [(3, 5, 1, 1), (2, 1, 13, 7), (1, 3, 31, 29), (2, 48, 8, 8), (1, 513, 2, 3), (5, 4, 1, 17)]
# activation, residual, weight per sample, fixed statistics
OPTIONS: list[tuple[Any, bool, bool, bool]] = [
    (None, False, False, False),
    (None, True, True, False),
    ("relu", False, True, False),
    ("relu", True, False, True),
    ("leaky_relu", True, False, False),
    ("silu", True, True, False),
]


def relative(a: Tensor, b: Tensor) -> float:
    a, b = a.detach().cpu().double(), b.detach().cpu().double()
    return float((a - b).norm() / b.norm().clamp_min(1e-12))


def check(
    x: Tensor,
    dy: Tensor,
    activation: Any = None,
    residual: Tensor | None = None,
    per_sample: bool = False,
    fixed: bool = False,
    tolerance: float | None = None,
) -> None:
    """Forward and every gradient of one call against the reference in float64."""
    n, c = x.shape[:2]
    parameter_shape = (n, c) if per_sample else (c,)
    weight = torch.randn(parameter_shape, device=x.device) + 1
    bias = torch.randn(parameter_shape, device=x.device)
    statistics = None
    if fixed:
        statistics = (torch.randn(c, device=x.device), torch.rand(c, device=x.device) + 0.5)
    inputs = [t for t in (x, weight, bias, residual) if t is not None]

    def run(op: Any, tensors: list[Tensor], cast: Any) -> tuple[Tensor, ...]:
        leaves = [cast(t.detach()).requires_grad_() for t in tensors]
        more = {"residual": leaves[3]} if len(leaves) == 4 else {}
        fixed_to = None if statistics is None else tuple(cast(s) for s in statistics)
        y = op(*leaves[:3], activation=activation, statistics=fixed_to, **more)
        return (y, *torch.autograd.grad(y, leaves, cast(dy)))

    ours = run(ops.instance_norm, inputs, lambda t: t)
    truth = run(reference.instance_norm, inputs, lambda t: t.cpu().double())
    tolerance = tolerance or TOLERANCES[x.dtype]
    for name, a, b in zip(("y", "dx", "dweight", "dbias", "dresidual"), ours, truth, strict=False):
        assert a.shape == b.shape
        if (
            float(b.detach().norm()) < 1e-3 * b.numel() ** 0.5
        ):  # nothing but rounding: one pixel a plane
            assert float(a.detach().norm()) < 1e-2, name
        else:
            assert relative(a, b) < tolerance, (name, relative(a, b))
    assert ours[0].dtype == x.dtype
    assert ours[0].is_contiguous(memory_format=reference.layout(x))


def random(
    shape: tuple[int, ...], device: torch.device, dtype: torch.dtype, layout: torch.memory_format
) -> Tensor:
    return torch.randn(shape, device=device).to(dtype).contiguous(memory_format=layout)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("options", OPTIONS)
def test_options(device: torch.device, options: Any, layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    activation, has_residual, per_sample, fixed = options
    x, dy, r = (random((2, 6, 9, 5), device, torch.float32, layout) for _ in range(3))
    check(x, dy, activation, r if has_residual else None, per_sample, fixed)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_shapes(device: torch.device, shape: Any, layout: torch.memory_format) -> None:
    torch.manual_seed(1)
    x, dy, r = (random(shape, device, torch.float32, layout) for _ in range(3))
    check(x, dy, "silu", r, per_sample=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_half_precision(
    device: torch.device, dtype: torch.dtype, layout: torch.memory_format
) -> None:
    torch.manual_seed(2)
    x, dy, r = (random((2, 16, 12, 11), device, dtype, layout) for _ in range(3))
    check(x, dy, "leaky_relu", r)


@pytest.mark.parametrize("scale", [1.0, 1 / 3, 1e3])
def test_every_number_of_float16(device: torch.device, scale: float) -> None:
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    x = bits.view(torch.float16).reshape(1, 1, 256, 256).to(device)
    rstd = torch.tensor([scale], device=device)
    y = ops.instance_norm(x, statistics=(torch.zeros_like(rstd), rstd))
    torch.testing.assert_close(y, (x.float() * rstd).half(), rtol=0, atol=0, equal_nan=True)


def test_mixed_layouts_dtypes_and_strides(device: torch.device) -> None:
    torch.manual_seed(3)
    wide = torch.randn(2, 12, 6, 7, device=device)
    channels_last = random((2, 6, 6, 7), device, torch.float16, torch.channels_last)
    check(wide[:, 3:9], channels_last, "relu", wide[:, :6].mT.contiguous().mT)  # slices, transposed
    check(wide[:, ::2], torch.ones((), device=device).expand(2, 6, 6, 7), None, channels_last)
    check(wide[:1, :1].expand(3, 4, 6, 7), wide[:1, :4].expand(3, 4, 6, 7), "silu")
    check(wide[..., 1:5, 2:6], wide[..., :4, :4], "relu")  # pixels that are not evenly spaced


def test_large_offset(device: torch.device) -> None:
    torch.manual_seed(4)
    x = torch.randn(1, 2, 64, 64, device=device) + 1e4
    # float32 holds 1e4 to 1e-3: the mean can be off by some of that, the variance must not suffer.
    check(x, torch.randn_like(x), tolerance=2e-3)
    mean, rstd = ops.instance_statistics(x)
    truth = reference.instance_statistics(x.double())
    assert relative(mean, truth[0]) < 1e-6
    assert relative(rstd, truth[1]) < 1e-4


def test_constant_plane_is_the_bias(device: torch.device) -> None:
    x = torch.full((2, 3, 8, 8), 7.25, device=device)
    bias = torch.tensor([1.0, -2.0, 3.0], device=device)
    y = ops.instance_norm(x.requires_grad_(), None, bias)
    assert torch.equal(y, bias.view(1, 3, 1, 1).expand_as(y))
    y.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, torch.zeros_like(x))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_flat_plane_has_no_negative_variance(
    device: torch.device, layout: torch.memory_format
) -> None:
    torch.manual_seed(9)
    x = (torch.rand(1, 256, 1, 1, device=device) * 10 - 5).expand(1, 256, 33, 31)
    x = x.contiguous(memory_format=layout)
    assert (ops.instance_statistics(x, eps=0)[1] > 1e5).all()
    assert ops.instance_norm(x * 1e8).isfinite().all()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_nan_stays_in_its_plane(device: torch.device, layout: torch.memory_format) -> None:
    x = random((2, 4, 9, 9), device, torch.float32, layout)
    x[1, 2, 3, 4] = torch.nan
    x.requires_grad_()
    y = ops.instance_norm(x, activation="relu")
    y.square().sum().backward()
    assert x.grad is not None
    bad = torch.zeros(2, 4, dtype=torch.bool)
    bad[1, 2] = True
    for t in (y, x.grad):
        assert torch.equal(t.isnan().any(-1).any(-1).cpu(), bad)
        assert t[1, 2].isnan().all()


def test_empty_batch(device: torch.device) -> None:
    x = torch.empty(0, 3, 4, 4, device=device, requires_grad=True)
    weight = torch.ones(3, device=device, requires_grad=True)
    y = ops.instance_norm(x, weight, activation="relu")
    assert y.shape == x.shape
    y.sum().backward()
    assert torch.equal(weight.grad, torch.zeros_like(weight))  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_statistics(device: torch.device, dtype: torch.dtype) -> None:
    x = random((2, 3, 40, 50), device, dtype, torch.channels_last)
    mean, rstd = ops.instance_statistics(x, 1e-3)
    truth = reference.instance_statistics(x.double(), 1e-3)
    assert mean.dtype == rstd.dtype == torch.float32
    torch.testing.assert_close(mean.double(), truth[0], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(rstd.double(), truth[1], atol=1e-6, rtol=1e-5)
    y = ops.instance_norm(x, statistics=(mean, rstd))
    torch.testing.assert_close(y, ops.instance_norm(x, eps=1e-3))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_statistics_out_of_a_larger_tensor(
    device: torch.device, layout: torch.memory_format
) -> None:
    x = random((3, 6, 9, 11), device, torch.float32, layout)
    many = torch.randn(3, 2, 40, device=device)
    mean, rstd, weight, bias = many[:, 0, 5:11], many[:, 1, 7:13], many[:, 0, ::4], many[:, 1, ::7]
    for parts in ((mean, rstd, weight[:, :6], bias), (mean[1], rstd[2], bias[0], bias[1])):
        wide = [t.double() for t in parts]
        truth = reference.instance_norm(x.double(), *wide[2:], statistics=(wide[0], wide[1]))
        y = ops.instance_norm(x, *parts[2:], statistics=(parts[0], parts[1]))
        assert relative(y, truth) < 1e-6


@pytest.mark.parametrize("without_numbers", [False, True])
def test_a_part_of_channels_last_stays_so(device: torch.device, without_numbers: bool) -> None:
    last = torch.channels_last
    whole = torch.randn(3, 8, 9, 9, device=device).contiguous(memory_format=last)
    whole = whole.to("meta") if without_numbers else whole
    for part in (whole[:, 1:5], whole[:, :, 1:8, 2:8], whole[::2], whole.mT, whole[:, :3, :, :1]):
        if not without_numbers:
            check(part, torch.randn_like(part), "relu", torch.randn_like(part))
        x = part.detach().requires_grad_()
        y = ops.instance_norm(x)
        (dx,) = torch.autograd.grad(y, x, torch.ones_like(y))
        assert y.is_contiguous(memory_format=last)
        assert dx.is_contiguous(memory_format=last)


def test_leaky_slope_in_float64(device: torch.device) -> None:
    x = torch.tensor([[[[-1.0, 1.0]]]], device=device, dtype=torch.float64)
    fixed = torch.zeros(1, device=device), torch.ones(1, device=device)
    y = ops.instance_norm(x, activation="leaky_relu", statistics=fixed)
    assert y.flatten().tolist() == [-0.2, 1.0]


def test_gradcheck(device: torch.device) -> None:
    torch.manual_seed(5)
    leaves = [torch.randn(s, device=device, dtype=torch.float64) for s in ((2, 3, 3, 4), (3,))]
    x, weight = (t.requires_grad_() for t in leaves)
    residual = torch.randn(2, 3, 3, 4, device=device, dtype=torch.float64, requires_grad=True)

    def op(x: Tensor, weight: Tensor, residual: Tensor) -> Tensor:
        return ops.instance_norm(x, weight, activation="silu", residual=residual)

    assert torch.autograd.gradcheck(op, (x, weight, residual))


def test_second_derivatives(device: torch.device) -> None:
    torch.manual_seed(6)

    def leaf(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=device, dtype=torch.float64, requires_grad=True)

    x, weight, bias, residual = leaf(2, 2, 2, 3), leaf(2), leaf(2, 2), leaf(2, 2, 2, 3)

    def op(*inputs: torch.Tensor, **settings: Any) -> torch.Tensor:
        x, weight, bias, residual = inputs
        return ops.instance_norm(x, weight, bias, residual=residual, **settings)

    for settings in (
        {},
        {"activation": "silu"},
        {"statistics": (torch.zeros(2, device=device), torch.ones(2, device=device))},
    ):
        assert torch.autograd.gradgradcheck(partial(op, **settings), (x, weight, bias, residual))
    # One tensor as two inputs has two gradients.
    assert torch.autograd.gradgradcheck(
        lambda x: ops.instance_norm(x, residual=x, activation="silu"), x
    )


def test_gradients_of_a_residual_alone(device: torch.device) -> None:
    x = torch.randn(1, 2, 4, 4, device=device)
    residual = torch.randn_like(x).requires_grad_()
    y = ops.instance_norm(x, residual=residual)
    (slope,) = torch.autograd.grad(y.square().sum(), residual, create_graph=True)
    torch.testing.assert_close(slope, 2 * y)


def test_a_gradient_penalty_reaches_the_weights(device: torch.device) -> None:
    torch.manual_seed(7)
    x, w = torch.randn(2, 3, 6, 6, device=device), torch.randn(3, 3, 3, 3, device=device)

    def penalty(norm: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        photo, weight = x.clone().requires_grad_(), w.clone().requires_grad_()
        value = norm(torch.nn.functional.conv2d(photo, weight)).relu().square().sum()
        (slope,) = torch.autograd.grad(value, photo, create_graph=True)
        return torch.autograd.grad(slope.square().sum(), weight)[0]

    expected = penalty(torch.nn.functional.instance_norm)
    torch.testing.assert_close(penalty(ops.instance_norm), expected, rtol=1e-3, atol=1e-3)


def test_deterministic(device: torch.device) -> None:
    x = torch.randn(1, 3, 65, 67, device=device)
    first, second = (ops.instance_norm(x, activation="silu") for _ in range(2))
    assert torch.equal(first, second)


def test_opcheck(device: torch.device) -> None:
    x = torch.randn(2, 3, 5, 6, device=device).contiguous(memory_format=torch.channels_last)
    w = torch.randn(3, device=device)
    raw = torch.ops.faststy
    y, mean, rstd = raw.instance_norm_fwd(x, w, w, x, 1e-5, "relu")
    utils = ("test_schema", "test_faketensor", "test_autograd_registration")
    for op, args in (
        (raw.instance_norm_fwd, (x, w, None, x, 1e-5, "relu")),
        (raw.instance_norm_apply, (x, mean, rstd, w, w, None, "none")),
        (raw.instance_norm_stats, (x, 1e-5)),
        (raw.instance_norm_bwd, (y, x, mean, rstd, w, w, x, "silu", False)),
        (raw.instance_norm_bwd, (y, x, mean, rstd, None, None, None, "none", True)),
    ):
        torch.library.opcheck(op.default, args, test_utils=utils)


def test_compile(device: torch.device) -> None:
    def net(x: Tensor, w: Tensor, r: Tensor) -> Tensor:
        return ops.instance_norm(x * 2, w, activation="relu", residual=r).sum()

    torch._dynamo.reset()
    compiled = torch.compile(net, fullgraph=True, dynamic=True, backend="aot_eager")
    for size in (6, 8):
        leaves = [torch.randn(s, device=device) for s in ((2, 3, size, 5), (3,), (2, 3, size, 5))]
        results = []
        for f in (net, compiled):
            x, w, r = (t.clone().requires_grad_() for t in leaves)
            loss = f(x, w, r)
            results.append((loss, *torch.autograd.grad(loss, (x, w, r))))
        torch.testing.assert_close(results[0], results[1])


def test_autocast(device: torch.device) -> None:
    conv = torch.nn.Conv2d(3, 4, 3, device=device)
    weight = torch.ones(4, device=device, requires_grad=True)
    picture = torch.randn(1, 3, 8, 8, device=device)
    with torch.autocast(device.type, torch.bfloat16):
        features = conv(picture)
        y = ops.instance_norm(features, weight, activation="relu")
    assert y.dtype == features.dtype == torch.bfloat16
    y.sum().backward()
    assert weight.grad is not None
    assert weight.grad.dtype == torch.float32
    truth = reference.instance_norm(features.detach().double(), activation="relu")
    assert relative(y, truth) < TOLERANCES[torch.bfloat16]


@pytest.mark.gpu
def test_cuda_graph() -> None:
    x = torch.randn(2, 8, 65, 65, device="cuda")
    ops.instance_norm(x, activation="relu")  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = ops.instance_norm(x, activation="relu")
    x.normal_()
    graph.replay()
    torch.testing.assert_close(y, ops.instance_norm(x, activation="relu"))


X = torch.zeros(2, 3, 4, 4)


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"x": X[0]}, ValueError, r"x: expected \[N, C, H, W\], got \[3, 4, 4\]"),
        ({"x": X.int()}, TypeError, "x: expected float16.*got torch.int32"),
        (
            {"weight": torch.zeros(4)},
            ValueError,
            r"weight: .*\[C\] = \[3\] or .*\[2, 3\], got \[4\]",
        ),
        ({"bias": torch.zeros(3, 2)}, ValueError, r"bias: .* got \[3, 2\]"),
        ({"residual": X[:1]}, ValueError, r"residual: .*\[2, 3, 4, 4\], got \[1, 3, 4, 4\]"),
        ({"weight": torch.zeros(3, device="meta")}, ValueError, "weight: expected on cpu"),
        ({"activation": "gelu"}, ValueError, "activation: expected one of .*got 'gelu'"),
        ({"statistics": (X, X)}, ValueError, "statistics: mean: expected"),
        ({"statistics": X}, TypeError, r"statistics: expected a pair \(mean, rstd\), got Tensor"),
        ({"x": [1.0]}, TypeError, "x: expected a tensor, got list"),
        ({"eps": -1.0}, ValueError, "eps: expected at least 0, got -1.0"),
        ({"residual": X.long()}, TypeError, "residual: expected float16.*got torch.int64"),
    ],
)
def test_bad_input(kwargs: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ops.instance_norm(**{"x": X, **kwargs})


def test_reference_agrees_with_torch() -> None:
    x = torch.randn(2, 3, 6, 7, dtype=torch.float64)
    w, b = torch.randn(2, 3, dtype=torch.float64)
    for activation, f in {
        "relu": torch.nn.functional.relu,
        "silu": torch.nn.functional.silu,
        "leaky_relu": lambda z: torch.nn.functional.leaky_relu(z, 0.2),
    }.items():
        truth = f(torch.nn.functional.instance_norm(x, weight=w, bias=b) + x)
        ours = reference.instance_norm(x, w, b, activation=activation, residual=x)
        torch.testing.assert_close(ours, truth)
