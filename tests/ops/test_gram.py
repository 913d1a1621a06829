from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from faststy import ops
from faststy.ops import reference

# Relative error by norm, of results and gradients against float64.
TOLERANCES = {torch.float32: 3e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
LAYOUTS = (torch.contiguous_format, torch.channels_last)
SHAPES = [
    (3, 5, 1, 1),
    (2, 1, 13, 7),
    (1, 3, 31, 29),
    (2, 48, 9, 9),
    (1, 131, 3, 5),
]


def relative(a: Tensor, b: Tensor) -> float:
    a, b = a.detach().cpu().double(), b.detach().cpu().double()
    return float((a - b).norm() / b.norm().clamp_min(1e-12))


def check(x: Tensor, center: bool = False, tolerance: float | None = None) -> None:
    """gram and gram_loss with their gradients against the reference in float64."""
    n, c = x.shape[:2]
    dgram = torch.randn(n, c, c, device=x.device)
    targets = torch.randn(n, c, c, device=x.device) / c + torch.eye(c, device=x.device)

    def run(library: Any, cast: Any) -> list[Tensor]:
        leaf = cast(x.detach()).requires_grad_()
        gram = library.gram(leaf, center)
        results = [gram, *torch.autograd.grad(gram, leaf, cast(dgram))]
        for target in (cast(targets), cast(targets[0])):
            loss = library.gram_loss(leaf, target, center)
            # Scaled, as gradients of half precision are in training.
            results += [loss, *torch.autograd.grad(loss * 1000, leaf)]
        return results

    tolerance = tolerance or TOLERANCES[x.dtype]
    ours = run(ops, lambda t: t)
    truth = run(reference, lambda t: t.cpu().double())
    for i, (a, b) in enumerate(zip(ours, truth, strict=True)):
        assert a.shape == b.shape
        if float(b.detach().norm()) < 1e-9:  # a centred picture of one pixel is nothing
            assert float(a.detach().norm()) < 1e-6
        else:
            assert relative(a, b) < tolerance, (i, relative(a, b))
    torch.testing.assert_close(ours[0], ours[0].mT)
    assert ours[0].dtype == torch.float32
    assert ours[1].dtype == x.dtype
    assert ours[1].is_contiguous(memory_format=reference.layout(x))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_shapes(device: torch.device, shape: Any, layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape, device=device).contiguous(memory_format=layout)
    check(x)
    check(x, center=True, tolerance=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_half_precision(
    device: torch.device, dtype: torch.dtype, layout: torch.memory_format
) -> None:
    torch.manual_seed(1)
    x = torch.randn(2, 20, 12, 11, device=device).to(dtype).contiguous(memory_format=layout)
    check(x)
    check(x + 3, center=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_sums_are_in_float32_whatever_the_dtype(
    device: torch.device, dtype: torch.dtype, layout: torch.memory_format
) -> None:
    torch.manual_seed(2)
    for shape in ((1, 22, 41, 53), (2, 7, 9, 5)):  # several tiles and less than one, odd ends
        x = torch.randn(shape, device=device).to(dtype).contiguous(memory_format=layout)
        for part in (x, x[:, 1:-2], x[:, :, :-1], x[..., 1:-1]):
            assert relative(ops.gram(part), reference.gram(part.double())) < 1e-6


def test_strides(device: torch.device) -> None:
    torch.manual_seed(2)
    wide = torch.randn(2, 12, 6, 7, device=device)
    check(wide[:, 3:9])
    check(wide[:, ::2])
    check(wide[:1, :1].expand(2, 3, 6, 7))
    check(wide[..., 1:5, 2:6])


def test_centering_survives_a_large_offset(device: torch.device) -> None:
    torch.manual_seed(3)
    check(torch.randn(1, 4, 40, 40, device=device) + 1e3, center=True, tolerance=1e-3)


def test_a_part_of_channels_last_stays_so(device: torch.device) -> None:
    torch.manual_seed(4)
    whole = torch.randn(3, 16, 9, 9, device=device).contiguous(memory_format=torch.channels_last)
    for part in (whole[:, 1:9], whole[:, :, 1:8, 2:8], whole[::2], whole.mT):
        check(part, center=False)
        x = part.detach().requires_grad_()
        (dx,) = torch.autograd.grad(ops.gram(x).square().sum(), x)
        assert dx.is_contiguous(memory_format=torch.channels_last)


def test_nan_stays_in_its_channel(device: torch.device) -> None:
    x = torch.randn(2, 5, 6, 6, device=device)
    x[1, 3, 2, 2] = torch.nan
    bad = torch.zeros(2, 5, 5, dtype=torch.bool)
    bad[1, 3, :] = bad[1, :, 3] = True
    assert torch.equal(ops.gram(x).isnan().cpu(), bad)


def test_empty_batch(device: torch.device) -> None:
    x = torch.empty(0, 3, 4, 4, device=device, requires_grad=True)
    assert ops.gram(x).shape == (0, 3, 3)
    loss = ops.gram_loss(x, torch.eye(3, device=device))
    loss.backward()
    assert x.grad is not None


def test_zero_for_its_own_gram(device: torch.device) -> None:
    x = torch.randn(1, 6, 9, 9, device=device)
    assert float(ops.gram_loss(x, ops.gram(x))) < 1e-12
    twice = float(ops.gram_loss(x, ops.gram(x) * 2))
    assert twice == pytest.approx(0.25, rel=1e-5)


def test_gradcheck(device: torch.device) -> None:
    x = torch.randn(2, 3, 3, 4, device=device, dtype=torch.float64, requires_grad=True)
    target = torch.randn(3, 3, device=device, dtype=torch.float64)
    for center in (False, True):
        assert torch.autograd.gradcheck(lambda x, c=center: ops.gram(x, c), x)
        assert torch.autograd.gradcheck(lambda x, c=center: ops.gram_loss(x, target, c), x)


def test_second_derivatives(device: torch.device) -> None:
    torch.manual_seed(5)
    x = torch.randn(2, 3, 2, 3, device=device, dtype=torch.float64, requires_grad=True)
    target = torch.randn(3, 3, device=device, dtype=torch.float64)
    for center in (False, True):
        assert torch.autograd.gradgradcheck(lambda x, c=center: ops.gram(x, c), x)
        assert torch.autograd.gradgradcheck(lambda x, c=center: ops.gram_loss(x, target, c), x)


def test_deterministic(device: torch.device) -> None:
    x = torch.randn(1, 20, 65, 67, device=device)
    assert torch.equal(ops.gram(x), ops.gram(x))


def test_opcheck(device: torch.device) -> None:
    x = torch.randn(2, 3, 5, 6, device=device).contiguous(memory_format=torch.channels_last)
    mean, square = torch.randn(2, 3, device=device), torch.eye(3, device=device)
    raw = torch.ops.faststy
    utils = ("test_schema", "test_faketensor", "test_autograd_registration")
    for op, args in (
        (raw.gram_fwd, (x, None)),
        (raw.gram_bwd, (square.repeat(2, 1, 1), x, mean, mean[:, 0].contiguous())),
        (raw.gram_loss_fwd, (x, mean, square)),
    ):
        torch.library.opcheck(op.default, args, test_utils=utils)


def test_compile(device: torch.device) -> None:
    target = torch.eye(3, device=device)

    def net(x: Tensor) -> Tensor:
        return ops.gram_loss(x * 2, target) + ops.gram(x, center=True).sum()

    torch._dynamo.reset()
    compiled = torch.compile(net, fullgraph=True, dynamic=True, backend="aot_eager")
    for size in (6, 8):
        x = torch.randn(2, 3, size, 5, device=device, requires_grad=True)
        for a, b in zip(
            (net(x), *torch.autograd.grad(net(x), x)),
            (compiled(x), *torch.autograd.grad(compiled(x), x)),
            strict=True,
        ):
            torch.testing.assert_close(a, b)


def test_without_numbers_shapes_come_out() -> None:
    x = torch.empty(2, 3, 6, 6, device="meta", requires_grad=True)
    for library in (ops, reference):
        gram = library.gram(x)
        assert gram.shape == (2, 3, 3)
        assert gram.is_meta


def test_autocast_does_not_touch_float32(device: torch.device) -> None:
    x = torch.randn(2, 3, 6, 6, device=device)
    truth = ops.gram(x)
    with torch.autocast(device.type, torch.bfloat16):
        assert torch.equal(ops.gram(x), truth)
        half = ops.gram(x.bfloat16())
    assert half.dtype == torch.float32
    assert relative(half, truth) < 1e-2


@pytest.mark.gpu
def test_cuda_graph() -> None:
    x, target = torch.randn(2, 8, 65, 65, device="cuda"), torch.eye(8, device="cuda")
    ops.gram_loss(x, target)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = ops.gram_loss(x, target)
    x.normal_()
    graph.replay()
    torch.testing.assert_close(loss, ops.gram_loss(x, target))


X = torch.zeros(2, 3, 4, 4)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match=r"x: expected \[N, C, H, W\], got \[3, 4, 4\]"):
        ops.gram(X[0])
    with pytest.raises(TypeError, match=r"x: expected float16.*got torch\.int32"):
        ops.gram_loss(X.int(), torch.eye(3))
    with pytest.raises(ValueError, match=r"target: .*\[C, C\] = \[3, 3\] or .*got \[4, 4\]"):
        ops.gram_loss(X, torch.eye(4))
    with pytest.raises(ValueError, match="target: expected on cpu as x is, got meta"):
        ops.gram_loss(X, torch.eye(3, device="meta"))
    with pytest.raises(ValueError, match="target: expected a constant"):
        ops.gram_loss(X, torch.eye(3, requires_grad=True))


def test_reference_is_the_definition() -> None:
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    truth = torch.einsum("nihw,njhw->nij", x, x) / (3 * 4 * 5)
    torch.testing.assert_close(reference.gram(x), truth)
    covariance = torch.stack([torch.cov(s.flatten(1), correction=0) for s in x]) / 3
    torch.testing.assert_close(reference.gram(x, center=True), covariance)
    target = torch.randn(3, 3, dtype=torch.float64)
    loss = sum((g - target).norm() ** 2 for g in truth) / 2 / target.norm() ** 2
    torch.testing.assert_close(reference.gram_loss(x, target), loss)
