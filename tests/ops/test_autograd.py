"""When ops build a graph, and that whoever asks for derivatives they do not know is told."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from faststy import ops
from faststy.ops import conv3x3_train

MATRIX = torch.eye(4)
FILTERS, BIASES = torch.rand(8, 4, 3, 3), torch.zeros(8)

OPS: dict[str, Callable[[Tensor], Tensor]] = {
    "instance_norm": lambda x: ops.instance_norm(x, torch.ones(4), activation="relu"),
    "gram": ops.gram,
    "gram_loss": lambda x: ops.gram_loss(x, MATRIX),
    "combined_loss": lambda x: ops.combined_loss(torch.ones(6), picture=x).total,
    "discriminator_loss": lambda x: ops.discriminator_loss([x], [x + 1]).total,
    "reflected_conv3x3": lambda x: ops.reflected_conv3x3(x, FILTERS, activation="relu"),
    "frozen_conv3x3": lambda x: ops.frozen_conv3x3(x, FILTERS, BIASES),
}
# On a CPU torch computes these for those who know its own ops alone.
TORCHS: dict[str, Callable[[Tensor], Tensor]] = {
    "reflected_conv3x3": OPS["reflected_conv3x3"],
    "frozen_conv3x3": OPS["frozen_conv3x3"],
    "max_pool": ops.max_pool,
    "averages": lambda x: ops.averages(x)[1],
    "reflection_pad": ops.reflection_pad,
}


@pytest.fixture(autouse=True)
def few_pixels_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """For the extension's convolutions, on a CPU."""
    monkeypatch.setattr(conv3x3_train, "LEAST", 0)


@pytest.fixture
def x() -> Tensor:
    return torch.rand(2, 4, 8, 8).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("op", OPS)
def test_without_gradients_there_is_no_graph(
    monkeypatch: pytest.MonkeyPatch, op: str, x: Tensor
) -> None:
    leaf = x.clone().requires_grad_()
    expected = OPS[op](leaf)
    assert expected.requires_grad

    def apply(*args: Any) -> None:
        raise AssertionError("a graph is built")

    monkeypatch.setattr(torch.autograd.Function, "apply", apply)
    found = [OPS[op](x)]
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            found.append(OPS[op](leaf))
    for y in found:
        assert not y.requires_grad
        torch.testing.assert_close(y, expected)


@pytest.mark.parametrize("grad_mode", [True, False])
@pytest.mark.parametrize("op", [op for op in OPS if op not in TORCHS])
def test_forward_mode_is_refused(op: str, grad_mode: bool, x: Tensor) -> None:
    """Tangents would be lost without a word; grad mode has no say in them."""
    with torch.set_grad_enabled(grad_mode), forward_ad.dual_level():
        dual = forward_ad.make_dual(x, torch.ones_like(x))
        with pytest.raises(NotImplementedError, match="jvp"):
            OPS[op](dual)


@pytest.mark.parametrize("op", ["instance_norm", "gram", "gram_loss"])
def test_transforms_are_refused(op: str, x: Tensor) -> None:
    def total(x: Tensor) -> Tensor:
        return OPS[op](x).sum()

    def of_another(y: Tensor) -> Tensor:  # where x is a constant of the inner transform
        return torch.func.grad(lambda y: (total(x * 2) * y).sum())(y).sum()

    for call in (
        lambda: torch.func.grad(total)(x),
        lambda: torch.func.grad(of_another)(x),
        lambda: torch.func.vmap(total)(x[None]),
        lambda: torch.func.jvp(total, (x,), (x,)),
    ):
        with pytest.raises(RuntimeError, match="functorch transforms"):
            call()


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("op", TORCHS)
def test_what_torch_has_is_transformed_and_exported_as_its_own(op: str, x: Tensor) -> None:
    planes = x.contiguous()  # there torch takes them anyway
    weight = torch.rand_like(TORCHS[op](x))
    leaf = x.clone().requires_grad_()
    expected = torch.autograd.grad(TORCHS[op](leaf), leaf, weight)[0]
    found = torch.func.grad(lambda x: (TORCHS[op](x) * weight).sum())(x)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    found, tangent = torch.func.jvp(TORCHS[op], (x,), (weight.new_ones(x.shape),))
    torch.testing.assert_close(found, TORCHS[op](planes), check_stride=False)
    torch.testing.assert_close((tangent * weight).sum(), expected.sum(), atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(
        torch.func.vmap(TORCHS[op])(torch.stack([x, x + 1]))[1], TORCHS[op](x + 1)
    )
    traced = torch.jit.trace(TORCHS[op], x, check_trace=False)
    assert "faststy::" not in str(traced.inlined_graph)
    torch.testing.assert_close(traced(x), TORCHS[op](x), atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("op", ["instance_norm", "gram", "gram_loss"])
def test_a_trace_needs_no_faststy(op: str, x: Tensor, grad: bool) -> None:
    call = OPS[op]
    with torch.set_grad_enabled(grad):
        traced = torch.jit.trace(call, x)
    assert not re.search(r"faststy::|\^_", str(traced.inlined_graph))
    torch.testing.assert_close(traced(x + 1), call(x + 1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("op", OPS)
def test_compiled_in_and_out_of_grad_mode(op: str, x: Tensor) -> None:
    def net(x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.set_grad_enabled(False):
            constant = OPS[op](x)
        return constant, OPS[op](x * 2)

    torch._dynamo.reset()
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    found = []
    for f in (net, compiled):
        leaf = x.clone().requires_grad_()
        constant, y = f(leaf)
        assert not constant.requires_grad
        found.append((constant, y.detach(), *torch.autograd.grad(y.sum(), leaf)))
        with torch.no_grad():
            found[-1] += f(leaf)
    # Compiled, convolutions are torch's, not by minimal filtering.
    torch.testing.assert_close(found[0], found[1], atol=1e-4, rtol=1e-4)
