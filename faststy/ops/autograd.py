"""Backward passes that cannot themselves be differentiated, and say so."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

Gradients = tuple[Tensor | None, ...]
MESSAGE = b"a second derivative of a faststy op: use the same op of faststy.ops.reference"


def once_differentiable(backward: Callable[..., Gradients]) -> Callable[..., Gradients]:
    """Let a second derivative raise, rather than be silently without this op's share.

    torch's decorator of this name notices only second derivatives through the incoming gradients,
    not those through saved inputs, as a loss of features needs them.
    """

    @wraps(backward)
    def guarded(ctx: Any, *grads: Tensor) -> Gradients:
        with torch.no_grad():
            results = backward(ctx, *grads)
        if not torch.is_grad_enabled() or torch.compiler.is_compiling():
            return results
        fail = torch._C._functions.DelayedError(MESSAGE, len(results))
        return fail(*[None if r is None else r.detach().requires_grad_() for r in results])  # type: ignore[arg-type]

    return guarded
