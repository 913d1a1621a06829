"""Pixels to channels and back in the memory layout at hand, which torch's keep on a CPU alone."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from faststy.ops import checks, reference
from faststy.ops.dispatch import by_kernels


def pixel_unshuffle(x: Tensor, scale: int) -> Tensor:
    """`torch.nn.functional.pixel_unshuffle`, channels_last where `x` is; on CUDA, too.

    Args:
        x: [N, C, H, W] floating point; H and W are multiples of `scale`.
        scale: pixels of a cell each way.

    Returns:
        [N, C·scale², H/scale, W/scale]. Differentiable.

    Raises:
        TypeError, ValueError: a wrong dtype, rank, scale or size.
    """
    checks.features(x)
    checks.at_least_one(scale, "scale")
    if x.shape[2] % scale or x.shape[3] % scale:
        raise ValueError(f"x: expected sides in multiples of {scale}, got {list(x.shape[2:])}")
    return _shuffles(x).pixel_unshuffle(x, scale)  # type: ignore[no-any-return]


def pixel_shuffle(x: Tensor, scale: int) -> Tensor:
    """`torch.nn.functional.pixel_shuffle`, channels_last where `x` is; on CUDA, too.

    Args:
        x: [N, C·scale², H, W] floating point.
        scale: pixels of a cell each way.

    Returns:
        [N, C, H·scale, W·scale]. Differentiable.

    Raises:
        TypeError, ValueError: a wrong dtype, rank, scale or number of channels.
    """
    checks.features(x)
    checks.at_least_one(scale, "scale")
    if x.shape[1] % scale**2:
        raise ValueError(f"x: expected channels in multiples of {scale}², got {x.shape[1]}")
    return _shuffles(x).pixel_shuffle(x, scale)  # type: ignore[no-any-return]


def _shuffles(x: Tensor) -> Any:
    """What has both. Torch's leave empty batches as they are."""
    return reference if by_kernels(x) or x.numel() == 0 else F
