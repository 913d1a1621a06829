"""Between uint8 frames and the tensors that nets take and give, in one pass each way."""

from __future__ import annotations

import torch
from torch import Tensor

from faststy.ops import checks
from faststy.ops.dispatch import HALVES, define


def from_pixels(
    frames: Tensor,
    dtype: torch.dtype = torch.float32,
    *,
    channels_last: bool = False,
    unshuffle: int = 1,
    value_range: tuple[float, float] = (0.0, 1.0),
) -> Tensor:
    """uint8 frames to normalised floats, pixel-unshuffled where the net wants that.

    Args:
        frames: [N, H, W, C] or [H, W, C] uint8.
        dtype: float16, bfloat16 or float32.
        channels_last: the memory layout of the result.
        unshuffle: r packs cells of r×r pixels into channels, as `torch.pixel_unshuffle`; sides that
            are not multiples of r are extended by repeating the last row and column.
        value_range: what 0 and 255 become.

    Returns:
        [N, C·r², ⌈H/r⌉, ⌈W/r⌉].

    Raises:
        TypeError, ValueError: a wrong dtype, rank or factor.
    """
    if not isinstance(frames, Tensor):
        raise TypeError(f"frames: expected a tensor, got {type(frames).__name__}")
    if frames.dtype != torch.uint8:
        raise TypeError(f"frames: expected uint8, got {frames.dtype}")
    if frames.ndim == 3:
        frames = frames[None]
    if frames.ndim != 4:
        raise ValueError(f"frames: expected [N, H, W, C] or [H, W, C], got {list(frames.shape)}")
    if dtype not in checks.FLOATS[:3]:
        raise TypeError(f"dtype: expected float16, bfloat16 or float32, got {dtype}")
    low, high = _checked("unshuffle", unshuffle, value_range)
    x: Tensor = torch.ops.faststy.from_pixels(frames, dtype, channels_last, unshuffle, low, high)
    return x


def to_pixels(
    x: Tensor,
    *,
    shuffle: int = 1,
    size: tuple[int, int] | None = None,
    value_range: tuple[float, float] = (0.0, 1.0),
) -> Tensor:
    """Floats back to uint8 frames: clamped, rounded (halves up), NaN to 0.

    Args:
        x: [N, C·r², h, w] float16, bfloat16 or float32, in either memory layout.
        shuffle: r unpacks channels into cells of r×r pixels, as `torch.pixel_shuffle`.
        size: (H, W) of the frames, cropped at the right and bottom; (h·r, w·r) by default.
        value_range: what becomes 0 and 255.

    Returns:
        [N, H, W, C] uint8. No gradient flows through it.

    Raises:
        TypeError, ValueError: a wrong dtype, rank, factor or size.
    """
    checks.features(x)
    low, high = _checked("shuffle", shuffle, value_range)
    if x.shape[1] % shuffle**2:
        raise ValueError(f"x: expected channels in multiples of {shuffle**2}, got {x.shape[1]}")
    full = (x.shape[2] * shuffle, x.shape[3] * shuffle)
    height, width = size or full
    checks.within((height, width), full, "size")
    frames: Tensor = torch.ops.faststy.to_pixels(x.detach(), shuffle, height, width, low, high)
    return frames


def _checked(name: str, factor: int, value_range: tuple[float, float]) -> tuple[float, float]:
    checks.at_least_one(factor, name)
    pair = isinstance(value_range, tuple | list) and len(value_range) == 2
    if not pair or value_range[0] == value_range[1]:
        raise ValueError(f"value_range: expected two different values, got {value_range}")
    low, high = value_range
    return float(low), float(high)


def _from_fake(
    frames: Tensor, dtype: torch.dtype, channels_last: bool, unshuffle: int, low: float, high: float
) -> Tensor:
    n, h, w, c = frames.shape
    r = unshuffle
    layout = torch.channels_last if channels_last else torch.contiguous_format
    shape = (n, c * r * r, (h + r - 1) // r, (w + r - 1) // r)
    return torch.empty(shape, dtype=dtype, device=frames.device, memory_format=layout)


def _to_fake(x: Tensor, shuffle: int, height: int, width: int, low: float, high: float) -> Tensor:
    shape = (x.shape[0], height, width, x.shape[1] // shuffle**2)
    return torch.empty(shape, dtype=torch.uint8, device=x.device)


def _fits(
    frames: Tensor, dtype: torch.dtype, channels_last: bool, unshuffle: int, *others: float
) -> bool:
    """Whether csrc/pixels_cuda.cu takes these: what painting has."""
    cells = channels_last and unshuffle in (2, 4) and dtype in HALVES
    side_by_side = frames.shape[3] == 3 and frames.stride()[2:] == (3, 1)
    return cells and side_by_side and len(frames) * frames.shape[1] < 2**16


define(
    "from_pixels(Tensor frames, ScalarType dtype, bool channels_last, int unshuffle, float low, "
    "float high) -> Tensor",
    _from_fake,
    _fits,
)
define(
    "to_pixels(Tensor x, int shuffle, SymInt height, SymInt width, float low, float high) "
    "-> Tensor",
    _to_fake,
)
