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


def listed(values: object, name: str, count: int | None = None) -> None:
    """`values` must be a list or a tuple, of `count` elements if that is given."""
    if not isinstance(values, Sequence):
        raise TypeError(f"{name}: expected tensors in a list, got {type(values).__name__}")
    if count is not None and len(values) != count:
        raise ValueError(f"{name}: expected {count} tensors, got {len(values)}")


def at_least_one(number: int, name: str) -> None:
    """A scale or a count."""
    if number < 1:
        raise ValueError(f"{name}: expected at least 1, got {number}")


def within(size: tuple[int, int], full: tuple[int, int], name: str) -> None:
    """Height and width of a part of `full`."""
    if not (0 <= size[0] <= full[0] and 0 <= size[1] <= full[1]):
        raise ValueError(f"{name}: expected at most {full}, and none below 0, got {size}")


def shaped(t: Tensor, name: str, shapes: Mapping[str, tuple[int, ...]], like: Tensor) -> None:
    """`t` must be floating point, on the device of `like`, in one of `shapes`, by their names."""
    floating(t, name)
    if t.shape not in shapes.values():
        expected = " or ".join(f"{spelled} = {list(shape)}" for spelled, shape in shapes.items())
        raise ValueError(f"{name}: expected {expected}, got {list(t.shape)}")
    beside(t, name, like)


def beside(t: Tensor, name: str, like: Tensor) -> None:
    """`t` must be on the device of `like`."""
    if t.device != like.device:
        raise ValueError(f"{name}: expected on {like.device} as x is, got {t.device}")


def filters(weight: Tensor, channels: int, like: Tensor) -> int:
    """`weight` must be [K, channels, 3, 3], on the device of `like`; K."""
    floating(weight, "weight")
    if weight.ndim != 4:
        raise ValueError(f"weight: expected [K, {channels}, 3, 3], got {list(weight.shape)}")
    k = weight.shape[0]
    if weight.shape != (k, channels, 3, 3):
        expected = f"[K, {channels}, 3, 3] = {[k, channels, 3, 3]}"
        raise ValueError(f"weight: expected {expected}, got {list(weight.shape)}")
    beside(weight, "weight", like)
    return k


def activation(name: str | None, known: Sequence[str]) -> None:
    """One of the `known`, or None."""
    if name is not None and name not in known:
        raise ValueError(f"activation: expected one of {known} or None, got {name!r}")
