"""The truth: every op in plain PyTorch, any device, any float dtype.

Two kinds of function live here. `gram`, `gram_loss`, `instance_norm` … are the definitions, written
to be read, and differentiable by autograd as often as you like. The `*_fwd` and `*_bwd` functions
are the raw ops that kernels implement; they serve where there is no kernel, and are arranged to be
quick on a CPU in both memory layouts.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_weight

LEAKY_SLOPE = 0.2

Pair = tuple[Tensor, Tensor]

# Layouts, named by which index runs fastest.
PLANAR, CHANNELS_LAST = torch.contiguous_format, torch.channels_last


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype that sums and statistics of `dtype` are kept in: at least float32."""
    return torch.promote_types(dtype, torch.float32)


def layout(x: Tensor) -> torch.memory_format:
    """The memory format of results shaped as `x` [N, C, H, W], which may be a part of another."""
    last = x.stride(1) == 1 < x.shape[1] and not x.is_contiguous()
    return CHANNELS_LAST if last else PLANAR


def evenly_spaced(x: Tensor) -> Tensor:
    """`x`; a crop as a copy in its layout, which kernels would make in each pass."""
    (_, _, h, w), (_, _, down, across) = x.shape, x.stride()
    crop = h > 1 and w > 1 and down != w * across
    return x.contiguous(memory_format=layout(x)) if crop else x


def without_autocast(x: Tensor) -> AbstractContextManager[Any]:
    """Computing in the dtype at hand on the device of `x`, which may not know autocast, as meta."""
    kind = x.device.type
    # The former are named, as torch.compile of torch 2.11 does not know the question.
    known = kind in ("cpu", "cuda") or torch.amp.is_autocast_available(kind)
    is_on = known and torch.is_autocast_enabled(kind)
    return torch.autocast(kind, enabled=False) if is_on else nullcontext()


# --------------------------------------------------------------------------- Gram matrices


def gram(x: Tensor, center: bool = False) -> Tensor:
    """`[N, C, H, W]` to `[N, C, C]`: products of channels, summed over pixels, over C·H·W."""
    flat = x.to(wide(x.dtype)).flatten(2)
    if center:
        flat = flat - flat.mean(2, keepdim=True)
    with without_autocast(x):
        return flat @ flat.mT / max(flat[0:1].numel(), 1)


def gram_loss(x: Tensor, target: Tensor, center: bool = False) -> Tensor:
    """Mean over N of ‖gram(x) − target‖² / ‖target‖² (Frobenius)."""
    target = target.to(wide(x.dtype))
    return ((gram(x, center) - target).square().sum((-2, -1)) / _energy(target)).mean()


def _energy(target: Tensor) -> Tensor:
    return target.square().sum((-2, -1)).clamp_min(torch.finfo(torch.float32).tiny)


def gram_fwd(x: Tensor, mean: Tensor | None) -> Tensor:
    flat = _centered(x, mean)
    with without_autocast(x):
        return (flat @ flat.mT).div_(max(x[0:1].numel(), 1))


def gram_bwd(symmetric: Tensor, x: Tensor, mean: Tensor | None, scale: Tensor | None) -> Tensor:
    """`scale · symmetric @ (x − mean) / (C·H·W)`; symmetric [N, C, C], scale [N] or None."""
    flat = _centered(x, mean)
    factor = symmetric / max(x[0:1].numel(), 1)
    if scale is not None:
        factor = factor * scale[:, None, None]
    with without_autocast(x):
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


# --------------------------------------------------------------------------- after convolutions


def bias_activation(x: Tensor, bias: Tensor, activation: str | None = None) -> Tensor:
    """`activation(x + bias)`, a bias per channel."""
    y = x.to(wide(x.dtype)) + bias.to(wide(x.dtype))[:, None, None]
    return _activate(y, activation or "none").to(x.dtype)


def bias_activation_fwd(x: Tensor, bias: Tensor, activation: str) -> Tensor:
    return bias_activation(x, bias, activation).contiguous(memory_format=layout(x))


def bias_activation_bwd(
    dy: Tensor, y: Tensor | None, activation: str, bias: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of x, empty without activation, and of the bias [C], empty if not asked for."""
    g = dy.to(wide(dy.dtype))
    dx = dy.new_empty(0)
    if y is not None:  # which is positive where x + bias is
        g = _activation_grad(g, y.to(g.dtype), activation)
        dx = g.to(y.dtype).contiguous(memory_format=layout(y))
    return dx, g.sum((0, 2, 3)) if bias else g.new_empty(0)


def max_pool(x: Tensor) -> Tensor:
    """`[N, C, H, W]` to `[N, C, H // 2, W // 2]`, the maxima of 2x2."""
    return F.max_pool2d(x, 2)


def max_pool_fwd(x: Tensor) -> Tensor:
    return max_pool(x).contiguous(memory_format=layout(x))


def max_pool_bwd(dy: Tensor, x: Tensor) -> Tensor:
    _, places = F.max_pool2d(x, 2, return_indices=True)
    dx: Tensor = torch.ops.aten.max_pool2d_with_indices_backward(
        dy, x, [2, 2], [2, 2], [0, 0], [1, 1], False, places
    )
    return dx.contiguous(memory_format=layout(x))


def average(x: Tensor, scale: int) -> Tensor:
    """`[N, C, H, W]` to `[N, C, H // scale, W // scale]`, the averages of scale x scale."""
    return F.avg_pool2d(x, scale)


def averages_fwd(x: Tensor) -> tuple[Tensor, Tensor]:
    half, quarter = (average(x, s).contiguous(memory_format=layout(x)) for s in (2, 4))
    return half, quarter


def averages_bwd(
    dhalf: Tensor, dquarter: Tensor, height: int, width: int, channels_last: bool
) -> Tensor:
    dx = dhalf.new_zeros((*dhalf.shape[:2], height, width), dtype=wide(dhalf.dtype))
    for d, s in ((dhalf, 2), (dquarter, 4)):
        spread = F.interpolate(d.to(dx.dtype), scale_factor=s, mode="nearest") / s**2
        dx[..., : spread.shape[2], : spread.shape[3]] += spread
    return dx.to(dhalf.dtype).contiguous(memory_format=CHANNELS_LAST if channels_last else PLANAR)


# --------------------------------------------------------------------------- pixels


def from_pixels(
    frames: Tensor, dtype: torch.dtype, channels_last: bool, unshuffle: int, low: float, high: float
) -> Tensor:
    """uint8 `[N, H, W, C]` to `[N, C·r², ⌈H/r⌉, ⌈W/r⌉]`, 0…255 mapped to low…high."""
    x = frames.permute(0, 3, 1, 2).float() * ((high - low) / 255) + low
    right, bottom = -x.shape[3] % unshuffle, -x.shape[2] % unshuffle
    if right or bottom:
        x = F.pad(x, (0, right, 0, bottom), mode="replicate")
    x = pixel_unshuffle(x, unshuffle)
    return x.to(dtype).contiguous(memory_format=CHANNELS_LAST if channels_last else PLANAR)


def to_pixels(x: Tensor, shuffle: int, height: int, width: int, low: float, high: float) -> Tensor:
    """`[N, C·r², h, w]` to uint8 `[N, H, W, C]`, cropped to H×W; low…high mapped to 0…255."""
    x = pixel_shuffle(x.float(), shuffle)[..., :height, :width]
    x = (x - low) * (255 / (high - low))
    # Halves round up, so that every implementation agrees; NaN is black.
    x = torch.floor(torch.nan_to_num(x, nan=0.0).clamp(0, 255) + 0.5)
    return x.to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def pixel_unshuffle(x: Tensor, scale: int) -> Tensor:
    """`[N, C, H, W]` to `[N, C·scale², H/scale, W/scale]` in the layout of `x`."""
    n, c, h, w = x.shape[0], x.shape[1], x.shape[2] // scale, x.shape[3] // scale
    if layout(x) == PLANAR:
        cells = x.reshape(n, c, h, scale, w, scale).permute(0, 1, 3, 5, 2, 4)
        return cells.reshape(n, c * scale**2, h, w)
    cells = x.permute(0, 2, 3, 1).reshape(n, h, scale, w, scale, c).permute(0, 1, 3, 5, 2, 4)
    return cells.reshape(n, h, w, c * scale**2).permute(0, 3, 1, 2)


def pixel_shuffle(x: Tensor, scale: int) -> Tensor:
    """`[N, C·scale², H, W]` to `[N, C, H·scale, W·scale]` in the layout of `x`."""
    n, c, h, w = x.shape[0], x.shape[1] // scale**2, x.shape[2], x.shape[3]
    if layout(x) == PLANAR:
        cells = x.reshape(n, c, scale, scale, h, w).permute(0, 1, 4, 2, 5, 3)
        return cells.reshape(n, c, h * scale, w * scale)
    cells = x.permute(0, 2, 3, 1).reshape(n, h, w, c, scale, scale).permute(0, 1, 4, 2, 5, 3)
    return cells.reshape(n, h * scale, w * scale, c).permute(0, 3, 1, 2)


# --------------------------------------------------------------------------- borders


def reflection_pad(x: Tensor, pad: int = 1) -> Tensor:
    """`[N, C, H, W]` to `[N, C, H + 2·pad, W + 2·pad]`, mirrored at the outermost pixels."""
    with without_autocast(x):  # which has it in float32 on a CPU, there and back again
        return F.pad(x, (pad, pad, pad, pad), "reflect")


def blur(x: Tensor) -> Tensor:
    """`[N, C, H, W]` convolved with (1 2 1)/4 both ways, borders repeated."""
    # Made where x is: a constant of the host's would have to be copied there each time.
    line = 0.5 - 0.25 * torch.arange(-1, 2, dtype=x.dtype, device=x.device).abs()
    kernel = (line[:, None] * line).expand(x.shape[1], 1, 3, 3)
    with without_autocast(x):
        return F.conv2d(F.pad(x, (1, 1, 1, 1), "replicate"), kernel, groups=x.shape[1])


def reflection_pad_fwd(x: Tensor, pad: int) -> Tensor:
    return reflection_pad(x, pad).contiguous(memory_format=layout(x))


def reflection_pad_bwd(dy: Tensor, pad: int, channels_last: bool) -> Tensor:
    dx = dy.to(wide(dy.dtype))
    for dim in (2, 3):
        size = dx.shape[dim] - 2 * pad
        before, after = dx.narrow(dim, 0, pad), dx.narrow(dim, pad + size, pad)
        dx = dx.narrow(dim, pad, size).clone()
        dx.narrow(dim, 1, pad).add_(before.flip(dim))
        dx.narrow(dim, size - 1 - pad, pad).add_(after.flip(dim))
    return dx.to(dy.dtype).contiguous(memory_format=CHANNELS_LAST if channels_last else PLANAR)


def blur_fwd(x: Tensor) -> Tensor:
    return blur(x).contiguous(memory_format=layout(x))


# --------------------------------------------------------------------------- nets in training


def conv3x3_train_fwd(
    x: Tensor, weight: Tensor, bias: Tensor | None, reflect: bool, relu: bool
) -> Tensor:
    """Borders that reflect, or zeros beyond them; then ReLU, if asked."""
    bias = None if bias is None else bias.to(weight.dtype)
    x = F.pad(x, (1, 1, 1, 1), "reflect") if reflect else F.pad(x, (1, 1, 1, 1))
    with without_autocast(x):
        y = F.conv2d(x, weight, bias)
    return (F.relu_(y) if relu else y).contiguous(memory_format=CHANNELS_LAST)


def conv3x3_train_input_grad(
    dy: Tensor, turned: Tensor, gate: Tensor | None, padded: bool
) -> Tensor:
    """The gradient of the input, or of the padded input, by filters turned round: [C, K, 3, 3].

    `gate` is the ReLU's result, if there was one.
    """
    if gate is not None:
        dy = torch.where(gate > 0, dy, 0)
    with without_autocast(dy):
        dx = F.conv2d(dy, turned, padding=1 + padded)
    return dx.contiguous(memory_format=CHANNELS_LAST)


def conv3x3_train_weight_grad(dy: Tensor, x: Tensor) -> Tensor:
    """[K, C, 3, 3], at least float32, of a convolution whose borders reflect."""
    x = F.pad(x, (1, 1, 1, 1), "reflect").to(wide(x.dtype))
    shape = (dy.shape[1], x.shape[1], 3, 3)
    with without_autocast(x):
        dw: Tensor = conv2d_weight(x, shape, dy.to(x.dtype))  # type: ignore[no-untyped-call]
    return dw.contiguous(memory_format=CHANNELS_LAST)


# --------------------------------------------------------------------------- painting


def conv3x3_fwd(
    inputs: list[Tensor],
    weight: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    slope: float,
    moments: bool,
) -> tuple[Tensor, Tensor]:
    """`f(conv(inputs) · scale + bias + residual)`, f(z) = z, or slope · z where z is negative."""
    x = torch.cat(inputs, dim=1) if len(inputs) > 1 else inputs[0]
    with without_autocast(x):
        y = F.conv2d(F.pad(x, (1, 1, 1, 1), "reflect"), weight)
    found = y.new_empty((0, len(weight)), dtype=wide(y.dtype))
    if moments:
        mean = y.mean((0, 2, 3), dtype=wide(y.dtype))
        centered = y - mean[:, None, None]  # var_mean takes ten times as long in channels_last
        found = torch.stack([mean, centered.square_().mean((0, 2, 3))])
    if scale is not None:
        y *= scale[..., None, None]
    if bias is not None:
        y += bias[..., None, None]
    if residual is not None:
        y += residual
    if slope != 1:
        y = F.relu_(y) if slope == 0 else F.leaky_relu_(y, slope)
    return y.contiguous(memory_format=CHANNELS_LAST), found


def upsample_fwd(x: Tensor, scale: int) -> Tensor:
    """Bilinear, by a whole factor."""
    y = x.to(wide(x.dtype))
    y = F.interpolate(y, scale_factor=scale, mode="bilinear", align_corners=False)
    return y.to(x.dtype).contiguous(memory_format=CHANNELS_LAST)


def blur_cells_fwd(x: Tensor, scale: int) -> Tensor:
    """Cells `[N, (i, j, c), h, w]` to pixels, convolved with (1 2 1)/4 both ways."""
    n, k, h, w = x.shape
    c = k // scale**2
    y = x.to(wide(x.dtype)).reshape(n, scale, scale, c, h, w).permute(0, 3, 4, 1, 5, 2)
    y = F.pad(y.reshape(n, c, h * scale, w * scale), (1, 1, 1, 1), "replicate")
    y = 0.25 * (y[..., :-2] + y[..., 2:]) + 0.5 * y[..., 1:-1]
    y = 0.25 * (y[..., :-2, :] + y[..., 2:, :]) + 0.5 * y[..., 1:-1, :]
    return y.to(x.dtype).contiguous(memory_format=CHANNELS_LAST)


def blur_cells_frames(x: Tensor, scale: int, height: int, width: int) -> Tensor:
    return to_pixels(blur_cells_fwd(x, scale), 1, height, width, 0.0, 1.0)


# --------------------------------------------------------------------------- repair

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
CELL = 4  # pixels of a position of the nets, each way
BLOCK = 8  # pixels of a mean that `detail` takes away, each way
GATE = 4.0  # the most that a detail is multiplied by in a repair, before the map


def luminance(x: Tensor) -> Tensor:
    """That of RGB [N, 3, H, W] as [N, 1, H, W]."""
    # The weights are no tensor: it would come from the host, which a CUDA graph cannot record.
    return LUMA[0] * x[:, :1] + LUMA[1] * x[:, 1:2] + LUMA[2] * x[:, 2:]


def detail(x: Tensor) -> Tensor:
    """High-pass luminance of [N, 3, H, W] as [N, 1, H, W]: outlines and structure, no colour.

    The luminance less its means over blocks of pixels, which are interpolated.
    """
    luma = luminance(x)
    height, width = x.shape[-2:]
    # Whole blocks: whatever the size, a block lies where it lies in any larger picture.
    whole = F.pad(luma, (0, -width % BLOCK, 0, -height % BLOCK), mode="replicate")
    smooth = F.interpolate(
        F.avg_pool2d(whole, BLOCK), scale_factor=BLOCK, mode="bilinear", align_corners=False
    )
    return luma - smooth[..., :height, :width]


def structure(a: Tensor, b: Tensor) -> Tensor:
    """How two details [N, 1, H, W] agree, cell by cell: [N, 3, H/4, W/4].

    Their contrasts (log) and their correlation around each cell, as in the structural similarity of
    Wang et al. 2004: a small net finds what was lost from these, hardly from the pixels.
    """
    products = F.avg_pool2d(torch.cat([a * a, b * b, a * b], dim=1), CELL)
    products = F.avg_pool2d(products, 3, 1, 1, count_include_pad=False)
    aa, bb, ab = (products[:, i : i + 1] + floor for i, floor in enumerate((1e-5, 1e-5, 0.0)))
    return torch.cat([aa.log() / 4 + 1, bb.log() / 4 + 1, ab / (aa * bb).sqrt()], dim=1)


def repair_hints(painted: Tensor, photo: Tensor) -> tuple[Tensor, Tensor]:
    """The details of painting and photo, [N, 2, H, W], and the structure of both; from frames."""
    a, b = (detail(frames.permute(0, 3, 1, 2).float() / 255) for frames in (painted, photo))
    return torch.cat([a, b], dim=1), structure(a, b).contiguous(memory_format=CHANNELS_LAST)


def repair_apply(painted: Tensor, details: Tensor, heads: Tensor, strength: float) -> Tensor:
    """Frames, with `strength · σ(map) · (GATE · (σ(g₁) · photo − σ(g₂) · own) + correction)` added,
    where photo and own are the details of the photo and of the painting itself."""
    heads = upsample_fwd(heads.float(), CELL)
    gates = GATE * torch.sigmoid(heads[:, 1:3])
    residual = gates[:, :1] * details[:, 1:] - gates[:, 1:] * details[:, :1] + heads[:, 3:]
    added = strength * torch.sigmoid(heads[:, :1]) * residual
    x = painted.permute(0, 3, 1, 2).float() / 255 + added
    return to_pixels(x, 1, painted.shape[1], painted.shape[2], 0.0, 1.0)


# --------------------------------------------------------------------------- the combined loss

LOSS_EPS = 1e-6  # added to the energy that a distance is relative to
TINY = torch.finfo(torch.float32).tiny


def combined_loss(
    weights: Tensor,
    *,
    logits: Sequence[Tensor] = (),
    form: str = "hinge",
    grams: Sequence[Pair] = (),
    features: Sequence[Pair] = (),
    normalized: bool = False,
    picture: Tensor | None = None,
    variation: float = 1.0,
    colours: Tensor | None = None,
    repair: tuple[Tensor, Tensor, Tensor] | None = None,
) -> Tensor:
    """Adversarial, style, content, variation, colour, repair, their weighted sum, and if finite."""
    zero = weights.new_zeros((), dtype=wide(weights.dtype))
    terms = [zero] * 6
    if logits:
        terms[0] = _average([_judged(scale, form, "generator") for scale in logits])
    if grams:
        terms[1] = _average([_gram_distance(g, target) for g, target in grams])
    if features:
        terms[2] = _average([_content(a, b, normalized) for a, b in features])
    if picture is not None:
        x = picture.to(wide(picture.dtype))
        rough = _average([_mean(x.diff(dim=d).square()) for d in (2, 3)]) * 2
        terms[3] = rough / (variation + LOSS_EPS)
        if colours is not None:
            moments = torch.cat([x, torch.ones_like(x[:, :1])], 1)
            terms[4] = _gram_distance(gram(moments), colours)
    if repair is not None:
        a, b = (instance_norm(f.to(wide(f.dtype))) for f in (repair[0], repair[1].detach()))
        error = (repair[2] * (a - b).square()).sum((1, 2, 3))
        energy = (repair[2] * b.square()).sum((1, 2, 3))
        terms[5] = _mean(error / (energy + LOSS_EPS * a[0:1].numel()))
    # Absent terms count nothing, whatever their weight.
    present = [bool(logits), bool(grams), bool(features), picture is not None, colours is not None]
    present.append(repair is not None)
    total = sum((w * t for w, t, p in zip(weights, terms, present, strict=True) if p), zero)
    return _with_flag([*terms, total])


def discriminator_loss(real: Sequence[Tensor], fake: Sequence[Tensor], form: str) -> Tensor:
    """What real and generated patches cost, their sum, and whether it is finite: `[4]`."""
    terms = [_average([_judged(x, form, "real") for x in real])]
    terms.append(_average([_judged(x, form, "fake") for x in fake]))
    return _with_flag([*terms, terms[0] + terms[1]])


def _judged(logits: Tensor, form: str, role: str) -> Tensor:
    """`bce`: −log of the probability of `real`; `hinge`; `lsgan`: squares. `role`: whose loss."""
    x = logits.to(wide(logits.dtype))
    sign = 1.0 if role == "fake" else -1.0
    if form == "bce":
        return _mean(F.softplus(sign * x))
    if form == "lsgan":
        return _mean((x - float(role != "fake")).square())
    return _mean(sign * x if role == "generator" else F.relu(1 + sign * x))


def _gram_distance(g: Tensor, target: Tensor) -> Tensor:
    g, target = g.to(wide(g.dtype)), target.detach().to(wide(g.dtype))
    return _mean((g - target).square().sum((-2, -1)) / _energy(target))


def _content(a: Tensor, b: Tensor, normalized: bool) -> Tensor:
    a, b = a.to(wide(a.dtype)), b.detach().to(wide(b.dtype))
    if normalized:
        a, b = instance_norm(a), instance_norm(b)
    return (a - b).square().sum() / (b.square().sum() + LOSS_EPS)


def _mean(x: Tensor) -> Tensor:
    """Nothing counts nothing."""
    return x.sum() / max(x.numel(), 1)


def _average(values: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(values)).mean()


def combined_loss_fwd(
    logits: list[Tensor],
    grams: list[Tensor],
    features: list[Tensor],
    pictures: list[Tensor],
    repaired: list[Tensor],
    targets: list[Tensor],
    references: list[Tensor],
    colours: list[Tensor],
    kept: list[Tensor],
    maps: list[Tensor],
    weights: Tensor,
    form: str,
    variation: float,
    gradients: bool,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """The weighted total, `combined_loss`, and the total's gradients of the first five lists.

    `repaired` and `kept` are instance-normalised already.
    """
    w = weights.to(loss_dtype([weights, *logits, *grams, *features, *pictures, *repaired]))
    zero = torch.zeros_like(w[0])
    terms, found = [zero] * 6, list[Tensor]()

    def add(term: int, share: int, value: Tensor, gradient: Tensor, x: Tensor) -> None:
        terms[term] = terms[term] + value / share
        if gradients:
            gradient = (gradient * (w[term] / share)).to(x.dtype)
            found.append(gradient.contiguous(memory_format=_like(x)))

    for x in logits:
        add(0, len(logits), *_judged_slope(x, form, "generator"), x)
    for x, target in zip(grams, targets, strict=True):
        add(1, len(grams), *_relative_slope(x, target, None, TINY), x)
    for x, b in zip(features, references, strict=True):
        value, gradient = _relative_slope(x[None], b[None], None, LOSS_EPS)
        add(2, len(features), value, gradient[0], x)
    for i, x in enumerate(pictures):
        rough, gradient = _variation_slope(x, variation)
        terms[3] = terms[3] + rough / len(pictures)
        gradient = gradient * w[3]
        if colours:
            value, slope = _colour_slope(x, colours[i])
            terms[4] = terms[4] + value / len(pictures)
            gradient = gradient + slope * w[4]
        if gradients:
            gradient = (gradient / len(pictures)).to(x.dtype)
            found.append(gradient.contiguous(memory_format=_like(x)))
    for x, b, m in zip(repaired, kept, maps, strict=True):
        add(5, len(repaired), *_relative_slope(x, b, m, LOSS_EPS * x[0:1].numel()), x)

    lists = (logits, grams, features, pictures, colours, repaired)
    total = sum((w[i] * t for i, t in enumerate(terms) if lists[i]), zero)
    return total, _with_flag([*terms, total]), found


def discriminator_loss_fwd(
    real: list[Tensor], fake: list[Tensor], form: str, gradients: bool
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """The total, `discriminator_loss`, and the total's gradients."""
    terms, found = [], list[Tensor]()
    for role, logits in (("real", real), ("fake", fake)):
        sums = torch.zeros((), dtype=loss_dtype([*real, *fake]), device=real[0].device)
        for x in logits:
            value, gradient = _judged_slope(x, form, role)
            sums = sums + value / len(logits)
            if gradients:
                gradient = (gradient / len(logits)).to(x.dtype)
                found.append(gradient.contiguous(memory_format=_like(x)))
        terms.append(sums)
    total = terms[0] + terms[1]
    return total, _with_flag([*terms, total]), found


def combined_loss_scale_(gradients: list[Tensor], scale: Tensor) -> None:
    """Multiply the gradients of a loss by the gradient [] that arrived at it."""
    if scale.device.type != "cpu" or float(scale) != 1:
        for gradient in gradients:
            gradient.mul_(scale)


def loss_dtype(tensors: Sequence[Tensor]) -> torch.dtype:
    """float64 where any tensor is, or float32."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def _with_flag(values: list[Tensor]) -> Tensor:
    losses = torch.stack(values)
    return torch.cat([losses, torch.isfinite(losses).all()[None].to(losses.dtype)])


def _like(x: Tensor) -> torch.memory_format:
    return layout(x) if x.ndim == 4 else PLANAR


def _judged_slope(logits: Tensor, form: str, role: str) -> tuple[Tensor, Tensor]:
    x = logits.to(wide(logits.dtype))
    sign = 1.0 if role == "fake" else -1.0
    if form == "bce":
        slope = sign * torch.sigmoid(sign * x)
    elif form == "lsgan":
        slope = 2 * (x - float(role != "fake"))
    elif role == "generator":
        slope = torch.full_like(x, sign)
    else:
        slope = sign * (1 + sign * x > 0).to(x.dtype)
    return _judged(logits, form, role), slope / max(x.numel(), 1)


def _relative_slope(
    x: Tensor, b: Tensor, weight: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """Mean over the first dimension of `Σ weight·(x − b)² / (Σ weight·b² + eps)`."""
    x, b = x.to(wide(x.dtype)), b.to(wide(b.dtype)).expand_as(x)
    difference = x - b
    slope = difference if weight is None else weight * difference
    energy = b * b if weight is None else weight * b * b
    share = max(len(x), 1) * (energy.flatten(1).sum(1) + eps)
    value = ((slope * difference).flatten(1).sum(1) / share).sum()
    return value, slope * (2 / share).view(-1, *[1] * (x.ndim - 1))


def _variation_slope(picture: Tensor, variation: float) -> tuple[Tensor, Tensor]:
    x = picture.to(wide(picture.dtype))
    value, gradient = x.new_zeros(()), torch.zeros_like(x)
    for dim in (2, 3):
        step = x.diff(dim=dim)
        share = max(step.numel(), 1) * (variation + LOSS_EPS)
        value = value + step.square().sum() / share
        step = step * (2 / share)
        length = x.shape[dim] - 1
        if length > 0:
            gradient.narrow(dim, 1, length).add_(step)
            gradient.narrow(dim, 0, length).sub_(step)
    return value, gradient


def _colour_slope(picture: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    x = picture.to(wide(picture.dtype))
    moments = torch.cat([x, torch.ones_like(x[:, :1])], 1)
    loss, difference, factor = gram_loss_fwd(moments, None, target.to(x.dtype))
    return loss, gram_bwd(difference, moments, None, factor * 2)[:, :3]
