# mypy: disable-error-code="no-untyped-def"
"""What kernels share: tiles of planes, parameters of channels, activations.

A tensor comes to a kernel as one argument, a tuple: its pointer and its strides by (sample,
channel, pixel), of a parameter the stride by sample; or None. So one source serves NCHW and
channels_last: the stride that is 1 tells the compiler which way to vectorise.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from faststy.kernels.tuning import planes

LEAKY_SLOPE = tl.constexpr(0.2)
NO_POLICY = tl.constexpr("")  # Triton 3.6 takes no plain string as a default


def strided(t: Tensor | None) -> tuple[Tensor, int, int, int] | None:
    """A tensor [N, C, H, W] as kernels take it, with its strides."""
    if t is None:
        return None
    t, strides = planes(t)
    return t, *strides


def parameter(p: Tensor | None) -> tuple[Tensor, int] | None:
    """A parameter [C] (stride 0) or [N, C] as kernels take it; channels must be neighbours."""
    if p is None:
        return None
    p = p if p.stride(-1) == 1 else p.contiguous()
    return p, p.stride(0) if p.ndim == 2 else 0


@triton.jit
def at(tensor, i_n, c0, p0, BC: tl.constexpr, BP: tl.constexpr):
    """Pointers [BC, BP] to the tile that starts at channel c0 and pixel p0."""
    ptr, stride_n, stride_c, stride_p = tensor
    o_c, o_p = tl.arange(0, BC)[:, None], tl.arange(0, BP)[None, :]
    p0 = tl.full([], p0, tl.int64)  # in the interpreter, a loop's index forgets its type
    # The base in int64, as N·C·H·W may pass 2³¹; offsets within a tile are int32 (see planes).
    base = ptr + (i_n * stride_n + c0 * stride_c + p0 * stride_p)
    return base + (o_c * stride_c + o_p * stride_p)


@triton.jit
def load(tensor, i_n, c0, p0, mask, EVICT: tl.constexpr = NO_POLICY):
    """The tile [BC, BP] that starts at channel c0 and pixel p0, in float32; 0 outside the mask."""
    ptrs = at(tensor, i_n, c0, p0, mask.shape[0], mask.shape[1])
    return tl.load(ptrs, mask=mask, other=0, eviction_policy=EVICT).to(tl.float32)


@triton.jit
def per_channel(p, i_n, o_c, C, default):
    """A parameter as [BC, 1] float32; `default` where there is none."""
    if p is None:
        b = tl.full(o_c.shape, default, tl.float32)
    else:
        ptr, stride_n = p
        b = tl.load(ptr + i_n * stride_n + o_c, mask=o_c < C, other=default).to(tl.float32)
    return b[:, None]


@triton.jit
def activate(z, ACTIVATION: tl.constexpr):
    # z < 0 is False for NaN: it passes through, as in torch.
    if ACTIVATION == "relu":
        z = tl.where(z < 0, 0.0, z)
    elif ACTIVATION == "leaky_relu":
        z = tl.where(z < 0, z * LEAKY_SLOPE, z)
    elif ACTIVATION == "silu":
        z = z * tl.sigmoid(z)
    return z


@triton.jit
def activation_grad(z, dy, ACTIVATION: tl.constexpr):
    if ACTIVATION == "relu":
        dy = tl.where(z <= 0, 0.0, dy)
    elif ACTIVATION == "leaky_relu":
        dy = tl.where(z > 0, dy, dy * LEAKY_SLOPE)
    elif ACTIVATION == "silu":
        s = tl.sigmoid(z)
        dy = dy * s * (1 + z * (1 - s))
    return dy
