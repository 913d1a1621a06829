"""What small tensors on a CPU cannot show: the kernels at real sizes, and whole training steps of
them captured, compiled and repeated, on a CUDA device."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from torch import Tensor

from faststy import ops
from faststy.ops import dispatch, reference

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="interpreted on a CPU"),
]

DEVICE = "cuda"
# Relative error by norm; in float32 a sum over half a million pixels, in another order.
TOLERANCES = {torch.float32: 2e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}
LAYOUTS = (torch.contiguous_format, torch.channels_last)
# Planes that are held, looped over (144²) and split in groups (540 × 960): kernels/README.md.
SHAPES = [
    (4, 48, 64, 64),
    (8, 128, 64, 64),
    (1, 132, 144, 144),
    (1, 48, 540, 960),
    (4, 512, 32, 32),
    (2, 35, 127, 65),
]
OPS = ("instance_norm", "gram", "gram_loss")
# Gradients of Gram matrices are below what float16 holds, unless scaled as in training.
LOSS_SCALE = 2.0**13


def inputs(op: str, shape: Any, dtype: torch.dtype, layout: torch.memory_format) -> list[Tensor]:
    """The arguments of an op, and the gradient that arrives at its result."""
    n, c = shape[:2]
    x, residual, dy = (
        torch.randn(shape, device=DEVICE).to(dtype).contiguous(memory_format=layout)
        for _ in range(3)
    )
    if op == "instance_norm":
        weight, bias = torch.randn(2, c, device=DEVICE)
        return [x, weight + 1, bias, residual, dy]
    if op == "gram":
        return [x, torch.randn(n, c, c, device=DEVICE) * LOSS_SCALE]
    noise = torch.randn(c, c, device=DEVICE) / 10
    target = (2 * torch.eye(c, device=DEVICE) + noise + noise.T) / c
    return [x, target, torch.tensor(LOSS_SCALE, device=DEVICE)]


def step(library: Any, op: str, tensors: list[Tensor]) -> tuple[Tensor, ...]:
    """Forward and every gradient; silu, as a ReLU's gradient jumps where rounding decides."""
    *arguments, dy = tensors
    if op == "instance_norm":
        x, weight, bias, residual = leaves = arguments
        y = library.instance_norm(x, weight, bias, activation="silu", residual=residual)
    else:
        leaves = arguments[:1]
        y = getattr(library, op)(*arguments)
    return (y, *torch.autograd.grad(y, leaves, dy))


def prepared(op: str, tensors: list[Tensor], dtype: torch.dtype | None = None) -> list[Tensor]:
    """Copies, in which the inputs that get a gradient require one."""
    leaves = 4 if op == "instance_norm" else 1
    copies = [t.detach().clone().to(dtype or t.dtype) for t in tensors]
    return [t.requires_grad_(i < leaves) for i, t in enumerate(copies)]


def relative(a: Tensor, b: Tensor) -> float:
    return float((a.detach().double() - b.detach()).norm() / b.detach().norm())


def test_the_kernels_are_what_runs() -> None:
    """Otherwise all of these tests would pass without them."""
    for op, kernels in dispatch.KERNELS.items():
        name = dispatch.choose(op, DEVICE).name
        if kernels is None or op in dispatch.NATIVE_FIRST:
            assert name == "native"
        else:
            assert name == "triton"


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("op", OPS)
def test_real_sizes(op: str, shape: Any, layout: torch.memory_format, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    tensors = inputs(op, shape, dtype, layout)
    ours = step(ops, op, prepared(op, tensors))
    truth = step(reference, op, prepared(op, tensors, torch.float64))
    for i, (a, b) in enumerate(zip(ours, truth, strict=True)):
        assert a.shape == b.shape
        assert relative(a, b) < TOLERANCES[dtype], (i, relative(a, b))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("op", OPS)
def test_the_same_bits_from_run_to_run(op: str, layout: torch.memory_format) -> None:
    tensors = prepared(op, inputs(op, (1, 48, 270, 480), torch.bfloat16, layout))
    first = step(ops, op, tensors)
    for _ in range(3):
        for a, b in zip(step(ops, op, tensors), first, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("shape", [(2, 48, 65, 64), (1, 48, 540, 960)])
@pytest.mark.parametrize("op", OPS)
def test_cuda_graph_of_forward_and_backward(op: str, shape: Any) -> None:
    tensors = prepared(op, inputs(op, shape, torch.float32, torch.channels_last))
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step(ops, op, tensors)  # compiles
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(ops, op, tensors)
    with torch.no_grad():
        tensors[0].normal_()
    graph.replay()
    for a, b in zip(captured, step(ops, op, tensors), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("op", OPS)
def test_inductor(op: str) -> None:
    tensors = prepared(op, inputs(op, (2, 48, 65, 64), torch.float32, torch.channels_last))
    *arguments, dy = tensors

    def net(*arguments: Tensor) -> Tensor:
        x, *more = arguments
        return getattr(ops, op)(torch.sin(x), *more) * 2

    torch._dynamo.reset()
    results = []
    for f in (net, torch.compile(net, fullgraph=True)):
        leaf = arguments[0].detach().requires_grad_()
        y = f(leaf, *(a.detach() for a in arguments[1:3]))
        results.append((y, *torch.autograd.grad(y, leaf, dy)))
    for a, b in zip(*results, strict=True):
        assert relative(a, b) < 1e-5


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_a_4k_frame(dtype: torch.dtype, channels_last: bool) -> None:
    frame = torch.randint(0, 256, (1, 2160, 3840, 3), dtype=torch.uint8, device=DEVICE)
    x = ops.from_pixels(frame, dtype, channels_last=channels_last, unshuffle=4, value_range=(-1, 1))
    truth = reference.from_pixels(frame, torch.float64, channels_last, 4, -1.0, 1.0)
    assert relative(x, truth) < TOLERANCES[dtype]
    assert torch.equal(ops.to_pixels(x, shuffle=4, value_range=(-1, 1)), frame)


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_the_painting_ops_on_an_hd_frame(dtype: torch.dtype) -> None:
    """A batch of two, and in float64 the same by the reference."""
    last = torch.channels_last
    torch.manual_seed(0)
    features = torch.randn(2, 16, 270, 480, device=DEVICE).to(dtype).to(memory_format=last)
    cells = torch.randn(2, 12, 540, 960, device=DEVICE).to(dtype).to(memory_format=last)
    for got, truth in (
        (ops.upsample(features, 2), reference.upsample_fwd(features.double(), 2)),
        (ops.blur_cells(cells, 2), reference.blur_cells_fwd(cells.double(), 2)),
    ):
        assert got.dtype == dtype
        assert relative(got, truth) < TOLERANCES[dtype]
    painted, photo = torch.randint(
        0, 256, (2, 2, 1080, 1920, 3), dtype=torch.uint8, device=DEVICE
    ).unbind()
    details, hints = ops.repair_hints(painted, photo)
    a, b = (reference.detail(f.permute(0, 3, 1, 2).double() / 255) for f in (painted, photo))
    assert relative(details, torch.cat([a, b], 1)) < TOLERANCES[torch.float32]
    assert relative(hints, reference.structure(a, b)) < TOLERANCES[torch.float32]
    heads = torch.randn(2, 6, 270, 480, device=DEVICE).to(dtype).to(memory_format=last)
    got = ops.repair_apply(painted, details, heads, 0.7).int()
    truth = reference.repair_apply(painted, details, heads, 0.7).int()
    assert (got - truth).abs().max() <= 1
    assert (got != truth).float().mean() < 1e-3
