"""Checks of the arguments of ops: errors name the argument, what it got and what it expects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def features(x: Tensor, name: str = "x") -> None:
    """`x` must be floating point `[N, C, H, W]`."""
    floating(x, name)
    if x.ndim != 4:
        raise ValueError(f"{name}: expected [N, C, H, W], got {list(x.shape)}")


def floating(x: Tensor, name: str) -> None:
    """`x` must be a tensor of a supported floating dtype."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(x).__name__}")
    if x.dtype not in FLOATS:
        supported = "float16, bfloat16, float32 or float64"
        raise TypeError(f"{name}: expected {supported}, got {x.dtype}")


def shaped(t: Tensor, name: str, shapes: Mapping[str, Sequence[int]], like: Tensor) -> None:
    """`t` must be floating point, on the device of `like`, in one of `shapes`, by their names."""
    floating(t, name)
    if not any(tuple(t.shape) == tuple(shape) for shape in shapes.values()):
        expected = " or ".join(f"{spelled} = {list(shape)}" for spelled, shape in shapes.items())
        raise ValueError(f"{name}: expected {expected}, got {list(t.shape)}")
    if t.device != like.device:
        raise ValueError(f"{name}: expected on {like.device} as x is, got {t.device}")
