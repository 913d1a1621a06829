"""Autograd Functions: none where nobody asks for gradients, and their backward passes of backward
passes by the reference, or not at all, which is said."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

Gradients = tuple[Tensor | None, ...]
MESSAGE = b"a second derivative of a faststy op: use the same op of faststy.ops.reference"


def apply(function: type[Function], *args: Any) -> Any:
    """`function.apply(*args)`; without gradients its forward alone: a graph takes as long as a
    small map."""
    if _differentiated(args):
        return function.apply(*args)  # type: ignore[no-untyped-call]
    return function.forward(_Forgetful(), *args)


def _differentiated(args: tuple[Any, ...]) -> bool:
    """Whether derivatives of what is made of `args` may be asked for."""
    if is_transformed():  # a Function says that it does not know that
        return True
    if torch.is_grad_enabled():
        for arg in args:
            if isinstance(arg, Tensor) and arg.requires_grad:
                return True
    return False


def is_transformed() -> bool:
    """Whether forward mode or a transform of torch.func is at work."""
    return forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()


class _Forgetful:
    """A ctx that saves nothing."""

    def save_for_backward(self, *tensors: Tensor | None) -> None: ...

    def mark_non_differentiable(self, *tensors: Tensor) -> None: ...

    def set_materialize_grads(self, value: bool) -> None: ...


def once_differentiable(backward: Callable[..., Gradients]) -> Callable[..., Gradients]:
    """Let a second derivative raise, rather than be silently without this op's share.

    torch's decorator of this name notices only second derivatives through the incoming gradients,
    not those through saved inputs, as a loss of features needs them. What is saved must be what the
    graph leads to, no copy of it.
    """

    @wraps(backward)
    def guarded(ctx: Any, *grads: Tensor) -> Gradients:
        again = differentiated_again()
        ctx = _UnpackedOnce(ctx) if again else ctx
        with torch.no_grad():
            results = backward(ctx, *grads)
        if not again:
            return results
        given = [None if r is None else r.detach().requires_grad_() for r in results]
        # Whatever a second derivative is asked for, its way leads through one of the others.
        tied = (*given, *grads, *ctx.saved_tensors)
        failing = torch._C._functions.DelayedError(MESSAGE, len(tied))(*tied)
        return tuple(failing[: len(results)])

    return guarded


class _UnpackedOnce:
    """A ctx that reads its saved tensors once: checkpoints recompute them, and allow no more."""

    def __init__(self, ctx: Any) -> None:
        self.__dict__.update(ctx=ctx, saved_tensors=ctx.saved_tensors)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["ctx"], name)

    def __setattr__(self, name: str, value: object) -> None:
        setattr(self.__dict__["ctx"], name, value)


def differentiated_again() -> bool:
    """Whether the backward pass that is running will be differentiated: `create_graph=True`."""
    return torch.is_grad_enabled() and not torch.compiler.is_compiling()


def gradients(
    function: Callable[..., Tensor], inputs: Sequence[Tensor | None], dy: Tensor
) -> Gradients:
    """Those of `function(*inputs)` for each of `inputs`, themselves differentiable."""
    # Views, as one tensor may be several inputs, each of which has its own gradient.
    own = [None if x is None else x.view_as(x) for x in inputs]
    wanted = [x for x in own if x is not None and x.requires_grad]
    if not wanted:
        return (None,) * len(own)
    found = iter(torch.autograd.grad(function(*own), wanted, dy, create_graph=True))
    return tuple(next(found) if x is not None and x.requires_grad else None for x in own)
