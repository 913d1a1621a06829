"""What tests of several nets share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def layouts(request: pytest.FixtureRequest) -> Callable[..., set[str]]:
    """Holds a net in channels_last to it: otherwise a convolution copies what it gets."""

    def check(net: nn.Module, loss: Callable[[nn.Module, Tensor], Tensor], x: Tensor) -> set[str]:
        """Run `loss(net, x)` and its gradients; the names of the features that were looked at."""
        net = net.requires_grad_().to(device=request.param, memory_format=torch.channels_last)
        x = x.to(request.param).contiguous(memory_format=torch.channels_last).requires_grad_()
        met = set()

        def last(name: str, features: Tensor) -> None:
            met.add(name)
            assert features.is_contiguous(memory_format=torch.channels_last), name

        def look(name: str, features: Tensor) -> None:
            last(name, features)
            if features.requires_grad:
                features.register_hook(lambda g: last(f"gradient at {name}", g))

        def watch(name: str, inputs: tuple[Tensor, ...], out: Any) -> None:
            look(f"{name} input", inputs[0])
            last(f"{name} output", out)

        for name, module in net.named_children():
            if not isinstance(module, nn.ModuleList):
                module.register_forward_hook(
                    lambda _, inputs, out, name=name: watch(name, inputs, out)
                )
        loss(net, x).backward()
        return met

    return check
