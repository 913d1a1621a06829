"""The truth: every op in plain PyTorch, any device, any float dtype.

Two kinds of function live here. `gram`, `gram_loss`, `instance_norm` … are the definitions, written
to be read, and differentiable by autograd as often as you like. The `*_fwd` and `*_bwd` functions
are the raw ops that kernels implement; they serve where there is no kernel, and are arranged to be
quick on a CPU in both memory layouts.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

LEAKY_SLOPE = 0.2

# Layouts, named by which index runs fastest.
PLANAR, CHANNELS_LAST = torch.contiguous_format, torch.channels_last


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype that sums and statistics of `dtype` are kept in: at least float32."""
    return torch.promote_types(dtype, torch.float32)


def layout(x: Tensor) -> torch.memory_format:
    """The memory format that results with the shape of `x` [N, C, H, W] are given."""
    last = x.is_contiguous(memory_format=CHANNELS_LAST) and not x.is_contiguous()
    return CHANNELS_LAST if last else PLANAR


# --------------------------------------------------------------------------- Gram matrices


def gram(x: Tensor, center: bool = False) -> Tensor:
    """`[N, C, H, W]` to `[N, C, C]`: products of channels, summed over pixels, over C·H·W."""
    flat = x.to(wide(x.dtype)).flatten(2)
    if center:
        flat = flat - flat.mean(2, keepdim=True)
    with torch.autocast(x.device.type, enabled=False):
        return flat @ flat.mT / max(flat[0:1].numel(), 1)


def gram_loss(x: Tensor, target: Tensor, center: bool = False) -> Tensor:
    """Mean over N of ‖gram(x) − target‖² / ‖target‖² (Frobenius)."""
    target = target.to(wide(x.dtype))
    return ((gram(x, center) - target).square().sum((-2, -1)) / _energy(target)).mean()


def _energy(target: Tensor) -> Tensor:
    return target.square().sum((-2, -1)).clamp_min(torch.finfo(torch.float32).tiny)


def gram_fwd(x: Tensor, mean: Tensor | None) -> Tensor:
    flat = _centered(x, mean)
    with torch.autocast(x.device.type, enabled=False):
        return (flat @ flat.mT).div_(max(x[0:1].numel(), 1))


def gram_bwd(symmetric: Tensor, x: Tensor, mean: Tensor | None, scale: Tensor | None) -> Tensor:
    """`scale · symmetric @ (x − mean) / (C·H·W)`; symmetric [N, C, C], scale [N] or None."""
    flat = _centered(x, mean)
    factor = symmetric / max(x[0:1].numel(), 1)
    if scale is not None:
        factor = factor * scale[:, None, None]
    with torch.autocast(x.device.type, enabled=False):
        # A product comes out row by row: choose whose rows.
        dx = (flat.mT @ factor).mT if layout(x) == CHANNELS_LAST else factor @ flat
    return dx.unflatten(2, x.shape[2:]).to(x.dtype)  # type: ignore[no-any-return, no-untyped-call]


def gram_loss_fwd(x: Tensor, mean: Tensor | None, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The loss, the symmetric part of gram − target [N, C, C], and d loss / d gram over it [N]."""
    difference = gram_fwd(x, mean) - target
    energy = (_energy(target) * max(len(x), 1)).expand(len(x))
    loss = (difference.square().sum((-2, -1)) / energy).sum()
    return loss, (difference + difference.mT) / 2, 2 / energy


def _centered(x: Tensor, mean: Tensor | None) -> Tensor:
    flat = x.to(wide(x.dtype)).flatten(2)
    return flat if mean is None else flat - mean[..., None]


# --------------------------------------------------------------------------- instance norm


def instance_norm(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    activation: str | None = None,
    residual: Tensor | None = None,
    statistics: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """`activation((x − mean) · rstd · weight + bias + residual)`, each plane on its own."""
    y = x.to(wide(x.dtype))
    mean, rstd = statistics if statistics is not None else instance_statistics(x, eps)
    y = (y - _per_plane(mean)) * _per_plane(rstd)
    if weight is not None:
        y = y * _per_plane(weight)
    if bias is not None:
        y = y + _per_plane(bias)
    if residual is not None:
        y = y + residual
    return _activate(y, activation or "none").to(x.dtype)


def instance_statistics(x: Tensor, eps: float = 1e-5) -> tuple[Tensor, Tensor]:
    """Mean and 1/√(variance + eps) of each plane of `x` [N, C, H, W], both [N, C]."""
    x = x.to(wide(x.dtype))
    mean = x.mean((2, 3))
    variance = (x - _per_plane(mean)).square().mean((2, 3))
    return mean, torch.rsqrt(variance + eps)


def instance_norm_stats(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return instance_statistics(x, eps)


def instance_norm_fwd(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    eps: float,
    activation: str,
) -> tuple[Tensor, Tensor, Tensor]:
    # Only sums over (2, 3) and pointwise ops: torch vectorises these in both layouts, while
    # var_mean, group_norm's backward and F.instance_norm are several times slower in channels_last.
    mean = x.mean((2, 3), dtype=wide(x.dtype))
    centered = x - _per_plane(mean)
    y = centered * centered
    rstd = torch.rsqrt(y.mean((2, 3)) + eps)
    y = _activate(_affine(centered, rstd, weight, bias, residual, out=y), activation)
    return y.to(x.dtype).contiguous(memory_format=layout(x)), mean, rstd


def instance_norm_apply(
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
) -> Tensor:
    centered = x - _per_plane(mean)
    y = _activate(_affine(centered, rstd, weight, bias, residual, out=centered), activation)
    return y.to(x.dtype).contiguous(memory_format=layout(x))


def instance_norm_bwd(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    fixed: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, residual, weight [N, C] and bias [N, C]; `fixed` statistics are constants."""
    centered = x - _per_plane(mean)
    g = dy.to(centered.dtype)
    dx = torch.empty_like(centered)  # memory for everything in between, too
    if activation != "none":
        z = _affine(centered, rstd, weight, bias, residual, out=dx)
        g = _activation_grad(g, z, activation)
    pixels = max(x.shape[2] * x.shape[3], 1)
    dbias = g.sum((2, 3))
    dweight = torch.mul(g, centered, out=dx).sum((2, 3)) * rstd
    scale = rstd if weight is None else rstd * weight
    if fixed:
        torch.mul(g, _per_plane(scale), out=dx)
    else:  # scale · (g − mean(g) − x̂ · mean(g · x̂))
        torch.addcmul(_per_plane(dbias * scale / -pixels), g, _per_plane(scale), out=dx)
        dx.addcmul_(centered, _per_plane(dweight * rstd * scale / -pixels))
    dx = dx.to(x.dtype).contiguous(memory_format=layout(x))
    if residual is None or activation == "none":  # then it is nothing, or dy itself
        dresidual = x.new_empty(0)
    else:
        dresidual = g.to(residual.dtype).contiguous(memory_format=layout(x))
    return dx, dresidual, dweight, dbias


def _affine(
    centered: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    out: Tensor,
) -> Tensor:
    scale = _per_plane(rstd if weight is None else rstd * weight)
    if bias is None:
        torch.mul(centered, scale, out=out)
    else:
        torch.addcmul(_per_plane(bias.to(out.dtype)), centered, scale, out=out)
    return out if residual is None else out.add_(residual)


def _per_plane(p: Tensor) -> Tensor:
    """`[C]` or `[N, C]`, to broadcast over `[N, C, H, W]`."""
    return p[..., None, None]


def _activate(z: Tensor, activation: str) -> Tensor:
    if activation == "relu":
        return F.relu(z)
    if activation == "leaky_relu":
        return F.leaky_relu(z, LEAKY_SLOPE)
    if activation == "silu":
        return F.silu(z)
    return z


def _activation_grad(g: Tensor, z: Tensor, activation: str) -> Tensor:
    aten = torch.ops.aten
    if activation == "relu":
        dz: Tensor = aten.threshold_backward(g, z, 0)
    elif activation == "leaky_relu":
        dz = aten.leaky_relu_backward(g, z, LEAKY_SLOPE, False)
    else:
        dz = aten.silu_backward(g, z)
    return dz


# --------------------------------------------------------------------------- pixels


def from_pixels(
    frames: Tensor, dtype: torch.dtype, channels_last: bool, unshuffle: int, low: float, high: float
) -> Tensor:
    """uint8 `[N, H, W, C]` to `[N, C·r², ⌈H/r⌉, ⌈W/r⌉]`, 0…255 mapped to low…high."""
    x = frames.permute(0, 3, 1, 2).float() * ((high - low) / 255) + low
    right, bottom = -x.shape[3] % unshuffle, -x.shape[2] % unshuffle
    if right or bottom:
        x = F.pad(x, (0, right, 0, bottom), mode="replicate")
    n, c, h, w = x.shape  # F.pixel_unshuffle leaves empty batches as they are
    x = x.reshape(n, c, h // unshuffle, unshuffle, w // unshuffle, unshuffle)
    x = x.permute(0, 1, 3, 5, 2, 4).reshape(n, c * unshuffle**2, h // unshuffle, w // unshuffle)
    return x.to(dtype).contiguous(memory_format=CHANNELS_LAST if channels_last else PLANAR)


def to_pixels(x: Tensor, shuffle: int, height: int, width: int, low: float, high: float) -> Tensor:
    """`[N, C·r², h, w]` to uint8 `[N, H, W, C]`, cropped to H×W; low…high mapped to 0…255."""
    n, k, h, w = x.shape
    c = k // shuffle**2
    x = x.float().reshape(n, c, shuffle, shuffle, h, w).permute(0, 1, 4, 2, 5, 3)
    x = x.reshape(n, c, h * shuffle, w * shuffle)[..., :height, :width]
    x = (x - low) * (255 / (high - low))
    # Halves round up, so that every implementation agrees; NaN is black.
    x = torch.floor(torch.nan_to_num(x, nan=0.0).clamp(0, 255) + 0.5)
    return x.to(torch.uint8).permute(0, 2, 3, 1).contiguous()
