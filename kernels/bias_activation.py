# mypy: disable-error-code="no-untyped-def"
"""A bias per channel and an activation in one pass, forward and backward, in both memory layouts.

Forward, and backward where the bias gets no gradient, values are taken one after the other as they
lie in memory: 16 bytes a thread whatever C is. The gradient of a bias is summed up over
chunks of pixels; each program leaves its sums, and a second launch merges them in order.
Pictures are [M, P, C] as in pieces.py, P pixels and C a constant of the compiler's.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from faststy.kernels.pieces import pictures
from faststy.kernels.tiles import activate, activation_grad
from faststy.kernels.tuning import (
    MERGE,
    POINTWISE_TILE,
    ceil_div,
    chunks,
    layout,
    power_of_2,
)


# Sizes are not specialised: C tells how values lie, and each kernel that is compiled takes a while.
@triton.jit(do_not_specialize=["P", "channels", "blocks"])
def _bias_activation_fwd_kernel(
    x_ptr, bias_ptr, y_ptr,  # [M, P, C], [channels], [M, P, C] written
    P, channels, blocks,
    ACTIVATION: tl.constexpr, C: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    size = P * C
    pid = tl.program_id(0).to(tl.int64)
    i_m, o = pid // blocks, (pid % blocks).to(tl.int32) * BLOCK + tl.arange(0, BLOCK)
    mask = o < size
    if C == 1:  # NCHW: a picture is one channel of a sample
        bias = tl.load(bias_ptr + i_m % channels).to(tl.float32)
    else:
        bias = tl.load(bias_ptr + o % C, mask=mask, other=0).to(tl.float32)
    z = tl.load(x_ptr + i_m * size + o, mask=mask, other=0).to(tl.float32) + bias
    tl.store(y_ptr + i_m * size + o, activate(z, ACTIVATION), mask=mask)


@triton.jit
def _activation_bwd_kernel(
    dy_ptr, y_ptr, dx_ptr,  # [size], of one layout; dx is written
    size,
    ACTIVATION: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    start, o = tl.program_id(0).to(tl.int64) * BLOCK, tl.arange(0, BLOCK)
    mask = o < size - start
    dy = tl.load(dy_ptr + start + o, mask=mask, other=0).to(tl.float32)
    y = tl.load(y_ptr + start + o, mask=mask, other=0).to(tl.float32)
    tl.store(dx_ptr + start + o, activation_grad(y, dy, ACTIVATION), mask=mask)


@triton.jit(do_not_specialize=["P", "channels", "units", "c_blocks", "splits", "chunk"])
def _bias_activation_sums_kernel(
    dy_ptr, y_ptr, dx_ptr,  # [M, P, C], of one layout; dx written; y and dx None: no activation
    part_ptr,  # [N, splits, channels], written: sums of dx over chunks of pixels
    P, channels, units, c_blocks, splits, chunk,
    ACTIVATION: tl.constexpr, C: tl.constexpr, BC: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0).to(tl.int64)
    i_s, i_m = pid // units, pid % units // c_blocks
    o_c = (pid % c_blocks).to(tl.int32) * BC + tl.arange(0, BC)
    start = (i_s * chunk).to(tl.int32)
    end = tl.minimum(start + chunk, P)
    picture = i_m * P * C
    sums = tl.zeros([BP, BC], tl.float32)
    for p0 in range(start, end, BP):
        o_p = p0 + tl.arange(0, BP)
        mask = (o_p < end)[:, None] & (o_c < C)[None, :]
        at = picture + ((o_p * C)[:, None] + o_c[None, :])
        dx = tl.load(dy_ptr + at, mask=mask, other=0).to(tl.float32)
        if y_ptr is not None:
            y = tl.load(y_ptr + at, mask=mask, other=0).to(tl.float32)
            dx = activation_grad(y, dx, ACTIVATION)
            tl.store(dx_ptr + at, dx, mask=mask)
        sums += dx
    mask = o_c < C
    if C == 1:
        o_c += (i_m % channels).to(tl.int32)
        i_m //= channels
    tl.store(part_ptr + (i_m * splits + i_s) * channels + o_c, tl.sum(sums, 0), mask=mask)


@triton.jit(do_not_specialize=["parts", "C"])
def _bias_merge_kernel(
    part_ptr, dbias_ptr,  # [parts, C], [C] written
    parts, C,
    BS: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    o_s, o_c = tl.arange(0, BS)[:, None], tl.program_id(0) * BC + tl.arange(0, BC)
    sums = tl.zeros([BS, BC], tl.float32)
    for s0 in range(0, parts, BS):
        mask = (s0 + o_s < parts) & (o_c[None, :] < C)
        sums += tl.load(part_ptr + (s0 + o_s) * C + o_c[None, :], mask=mask, other=0)
    tl.store(dbias_ptr + o_c, tl.sum(sums, 0), mask=o_c < C)


# ---------------------------------------------------------------------------- launchers


def bias_activation_fwd(x: Tensor, bias: Tensor, activation: str) -> Tensor:
    """`activation(x + bias)` [N, C, H, W], in the memory layout of `x`."""
    x = x.contiguous(memory_format=layout(x))
    y = torch.empty_like(x)
    m, channels, _ = pictures(x)
    size = x.numel() // m
    block = min(POINTWISE_TILE, power_of_2(size))
    blocks = ceil_div(size, block)
    _bias_activation_fwd_kernel[(m * blocks,)](
        x, bias.contiguous(), y, size // channels, len(bias), blocks,
        ACTIVATION=activation, C=channels, BLOCK=block,
    )  # fmt: skip
    return y


def bias_activation_bwd(
    dy: Tensor, y: Tensor | None, activation: str, bias: bool
) -> tuple[Tensor, Tensor]:
    """dx like y [N, C, H, W], empty without an activation; dbias [C] float32, empty if not asked.

    `y` is the result of the forward pass; None without an activation.
    """
    memory = layout(dy if y is None else y)
    dy = dy.contiguous(memory_format=memory)
    if y is None:
        dx = dy.new_empty(0)
    else:
        y = y.contiguous(memory_format=memory)
        dx = torch.empty_like(y)
    if bias:
        return dx, _bias_grad(dy, y, dx, activation)
    if y is not None:
        size = dx.numel()
        block = min(POINTWISE_TILE, power_of_2(size))
        _activation_bwd_kernel[(ceil_div(size, block),)](
            dy, y, dx, size, ACTIVATION=activation, BLOCK=block
        )
    return dx, dy.new_empty(0, dtype=torch.float32)


def _bias_grad(dy: Tensor, y: Tensor | None, dx: Tensor, activation: str) -> Tensor:
    """dbias [C]; writes dx on the way."""
    n, channels, h, w = dy.shape
    m, c, _ = pictures(dy)
    pixels = h * w
    block_c = min(power_of_2(c), 64)
    block_p = min(POINTWISE_TILE // block_c, power_of_2(pixels))
    c_blocks = ceil_div(c, block_c)
    chunk, splits = chunks(dy, m * c_blocks, pixels, block_p)
    parts = n * splits
    part = dy.new_empty((parts, channels), dtype=torch.float32)
    _bias_activation_sums_kernel[(m * c_blocks * splits,)](
        dy, y, None if y is None else dx, part,
        pixels, channels, m * c_blocks, c_blocks, splits, chunk,
        ACTIVATION=activation, C=c, BC=block_c, BP=block_p,
        num_warps=max(block_c * block_p // 256, 1),
    )  # fmt: skip
    dbias = part.new_empty(channels)
    block_c = 16  # 64 bytes, two sectors, of each part
    _bias_merge_kernel[(ceil_div(channels, block_c),)](
        part, dbias, parts, channels, BS=MERGE // block_c, BC=block_c
    )
    return dbias
