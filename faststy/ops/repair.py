"""The ends of the repairer, from frames to frames: for painting only."""

from __future__ import annotations

import torch
from torch import Tensor

from faststy.ops import checks
from faststy.ops.dispatch import define
from faststy.ops.reference import CELL, CHANNELS_LAST


def repair_hints(painted: Tensor, photo: Tensor) -> tuple[Tensor, Tensor]:
    """What the repairer is told beside the pixels.

    Args:
        painted, photo: uint8 [N, H, W, 3] of one shape, H and W in multiples of 4.

    Returns:
        The details of painting and photo, float32 [N, 2, H, W], contiguous (`detail` in
        `faststy.ops.reference`), and how they agree, float32 [N, 3, H/4, W/4], channels_last
        (`structure` there).

    Raises:
        TypeError, ValueError: another dtype, shape or device.
    """
    _frames(painted, "painted")
    _frames(photo, "photo")
    if painted.shape != photo.shape:
        raise ValueError(
            f"photo: expected the shape {list(painted.shape)}, got {list(photo.shape)}"
        )
    if painted.device != photo.device:
        raise ValueError(f"photo: expected on {painted.device} as painted is, got {photo.device}")
    details, hints = torch.ops.faststy.repair_hints(painted.contiguous(), photo.contiguous())
    return details, hints


def repair_apply(painted: Tensor, details: Tensor, heads: Tensor, strength: float) -> Tensor:
    """The repaired frames.

    Args:
        painted: uint8 [N, H, W, 3], H and W in multiples of 4.
        details: float32 [N, 2, H, W], from `repair_hints`.
        heads: [N, 6, H/4, W/4], what the repairer's net gives: map, gates of the photo's and of the
            painting's detail, and three corrections.
        strength: 0 to 1.

    Returns:
        uint8 [N, H, W, 3]: `painted + strength · σ(map) · (residual + correction)`, where the
        residual is GATE times the photo's detail times σ(its gate), less the same of the painting;
        with `heads` interpolated.

    Raises:
        TypeError, ValueError: another dtype, shape or device, or a strength beyond 0 to 1.
    """
    _frames(painted, "painted")
    if not 0 <= strength <= 1:
        raise ValueError(f"strength: expected 0 to 1, got {strength}")
    n, height, width, _ = painted.shape
    shape = (n, 6, height // CELL, width // CELL)
    checks.shaped(heads, "heads", {"[N, 6, H/4, W/4]": shape}, painted)
    checks.shaped(details, "details", {"[N, 2, H, W]": (n, 2, height, width)}, painted)
    heads = heads.contiguous(memory_format=CHANNELS_LAST)
    repaired: Tensor = torch.ops.faststy.repair_apply(
        painted.contiguous(), details.contiguous(), heads, strength
    )
    return repaired


def _frames(frames: Tensor, name: str) -> None:
    if not isinstance(frames, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(frames).__name__}")
    if frames.dtype != torch.uint8:
        raise TypeError(f"{name}: expected uint8, got {frames.dtype}")
    if frames.ndim != 4 or frames.shape[3] != 3:
        raise ValueError(f"{name}: expected [N, H, W, 3], got {list(frames.shape)}")
    if frames.shape[1] % CELL or frames.shape[2] % CELL:
        raise ValueError(f"{name}: expected sides in multiples of {CELL}, got {list(frames.shape)}")


def _hints_fake(painted: Tensor, photo: Tensor) -> tuple[Tensor, Tensor]:
    n, height, width, _ = photo.shape
    details = photo.new_empty((n, 2, height, width), dtype=torch.float32)
    hints = photo.new_empty((n, 3, height // CELL, width // CELL), dtype=torch.float32)
    return details, hints.to(memory_format=CHANNELS_LAST)


def _apply_fake(painted: Tensor, details: Tensor, heads: Tensor, strength: float) -> Tensor:
    return torch.empty_like(painted)


define("repair_hints(Tensor painted, Tensor photo) -> (Tensor, Tensor)", _hints_fake)
define(
    "repair_apply(Tensor painted, Tensor details, Tensor heads, float strength) -> Tensor",
    _apply_fake,
)
