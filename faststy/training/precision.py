"""The precision that convolutions are computed in while a net is trained."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Concatenate, ParamSpec, Protocol, TypeVar

import torch
from torch import nn

P = ParamSpec("P")
R = TypeVar("R")


class Placed(Protocol):
    """What has a device, and a precision for its convolutions."""

    device: torch.device
    precision: torch.dtype


S = TypeVar("S", bound=Placed)


def precision_named(name: str, device: torch.device) -> torch.dtype:
    """float32 or bfloat16; "auto" is bfloat16 where `device` multiplies it faster than float32."""
    if name == "auto":
        name = "bfloat16" if _prefers_bfloat16(device) else "float32"
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


def _prefers_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        found = processor()
        return bool(found.get("avx512_bf16") or found.get("amx_bf16"))
    return False


def processor() -> Mapping[str, bool | int | str]:
    """What this machine's processor can do, as PyTorch names it."""
    return torch.cpu.get_capabilities()


def computing_in(precision: torch.dtype, net: nn.Module) -> nn.Module:
    """A copy of a frozen `net` with its weights in `precision`, so that no step converts them.

    Its other tensors stay as they are.
    """
    net = copy.deepcopy(net)
    for weight in net.parameters():
        weight.data = weight.data.to(precision)
    return net


def in_precision(move: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
    """`move` with the convolutions in it computed in its object's precision.

    Weights stay float32, and so do losses: the ops see to it.
    """

    @wraps(move)
    def moved(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
        half = self.precision != torch.float32
        # No cache: weights move between two nets' turns.
        with torch.autocast(self.device.type, self.precision, enabled=half, cache_enabled=False):
            return move(self, *args, **kwargs)

    return moved
