"""What only kernels can get wrong: how the work is cut, and where memory is. Runs in Triton's
interpreter (TRITON_INTERPRET=1), or on a GPU."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

from faststy.ops import reference

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
pytestmark = [] if INTERPRETED else [pytest.mark.gpu]
DEVICE = "cpu" if INTERPRETED else "cuda"

pytest.importorskip("triton")

from faststy.kernels import gram, instance_norm, tuning  # noqa: E402

LAYOUTS = (torch.contiguous_format, torch.channels_last)


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.double() - b).norm() / b.norm().clamp_min(1e-12))


def split_everything(monkeypatch: pytest.MonkeyPatch, l2: float = 0.0) -> None:
    """Small tiles, and no whole planes: what large pictures get, on small ones."""
    rows = {
        "instance_norm_fwd": (tuning.NormRow(128, 1, l2),),
        "instance_norm_bwd": (tuning.NormRow(64, 1, l2),),
    }
    monkeypatch.setattr(tuning, "NORM_TABLE", rows)
    monkeypatch.setattr(tuning, "MIN_STEPS", 2)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("activation", ["none", "silu"])
def test_split_planes(
    monkeypatch: pytest.MonkeyPatch, layout: torch.memory_format, activation: str
) -> None:
    split_everything(monkeypatch)
    torch.manual_seed(0)
    x, dy, r = (
        torch.randn(2, 3, 23, 29, device=DEVICE).contiguous(memory_format=layout) for _ in range(3)
    )
    x += 100
    _, strides = tuning.planes(x)
    plan = tuning.plane_plan(x, strides, tuning.norm_row("instance_norm_fwd", x))
    assert plan.kind == "split"
    assert plan.splits > 2
    assert (23 * 29) % plan.chunk != 0  # the last chunk is shorter
    w = torch.randn(3, device=DEVICE)

    wide = [t.double() for t in (x, w, w, r)]
    y, mean, rstd = instance_norm.instance_norm_fwd(x, w, w, r, 1e-5, activation)
    truth = reference.instance_norm_fwd(*wide, 1e-5, activation)
    for a, b in zip((y, mean, rstd), truth, strict=True):
        assert relative(a, b) < 1e-5
    for a, b in zip(instance_norm.instance_norm_stats(x, 1e-5), truth[1:], strict=True):
        assert relative(a, b) < 1e-5
    for fixed in (False, True):
        ours = instance_norm.instance_norm_bwd(dy, x, mean, rstd, w, w, r, activation, fixed)
        true = reference.instance_norm_bwd(
            dy.double(), wide[0], *truth[1:], *wide[1:], activation, fixed
        )
        for a, b in zip(ours, true, strict=True):
            assert a.shape == b.shape
            assert relative(a, b) < 1e-4


@pytest.mark.parametrize("c", [20, 40])
def test_split_grams(monkeypatch: pytest.MonkeyPatch, c: int) -> None:
    """Several tiles of channels, several splits, in both directions."""
    row = tuning.GramRow(16, 32, 4, 2, 2)
    monkeypatch.setattr(tuning, "GRAM_TABLE", ((1 << 30, row),))
    monkeypatch.setattr(tuning, "GRAM_UNALIGNED", row)
    monkeypatch.setattr(tuning, "MERGE", 64)
    torch.manual_seed(1)
    x = torch.randn(2, c, 13, 17, device=DEVICE)
    mean = x.mean((2, 3))
    assert tuning.gram_plan(x).splits > 1
    assert tuning.gram_plan(x).c_blocks > 1
    assert relative(gram.gram_fwd(x, mean), reference.gram_fwd(x.double(), mean.double())) < 1e-5
    target = torch.randn(c, c, device=DEVICE)
    ours = gram.gram_loss_fwd(x, None, target)
    for a, b in zip(ours, reference.gram_loss_fwd(x.double(), None, target.double()), strict=True):
        assert relative(a, b) < 1e-5
    scale = torch.tensor([0.5, 2.0], device=DEVICE)
    truth = reference.gram_bwd(ours[1].double(), x.double(), mean.double(), scale.double())
    assert relative(gram.gram_bwd(ours[1], x, mean, scale), truth) < 1e-5


@pytest.mark.parametrize(
    ("shape", "strides"),
    [
        ((2, 2, 4, 4), (2**31 + 64, 16, 4, 1)),  # samples that far apart
        ((1, 3, 4, 4), (1, 2**30 + 64, 4, 1)),  # channels
        ((1, 2, 64, 65), (1, 1, 65 * 2**19, 2**19)),  # pixels
    ],
)
def test_past_2_31_elements(monkeypatch: pytest.MonkeyPatch, shape: Any, strides: Any) -> None:
    """Tensors that reach past 2³¹ elements, of which few are touched."""
    split_everything(monkeypatch)
    extent = sum((n - 1) * s for n, s in zip(shape, strides, strict=True)) + 1
    assert extent > 2**31
    if DEVICE == "cpu":  # memory that is never touched costs nothing
        memory = torch.empty(extent, dtype=torch.float16)
    else:
        memory = torch.empty(extent, dtype=torch.float16, device=DEVICE)
    x = memory.as_strided(shape, strides)
    x.copy_(torch.randn(shape))
    y, mean, rstd = instance_norm.instance_norm_fwd(x, None, None, None, 1e-5, "none")
    truth = reference.instance_norm_fwd(x.double(), None, None, None, 1e-5, "none")
    assert relative(y, truth[0]) < 1e-3
    dx, *_ = instance_norm.instance_norm_bwd(x, x, mean, rstd, None, None, None, "relu", True)
    assert relative(dx, reference.instance_norm_bwd(
        x.double(), x.double(), *truth[1:], None, None, None, "relu", True
    )[0]) < 1e-2  # fmt: skip
    assert relative(gram.gram_fwd(x, None), reference.gram_fwd(x.double(), None)) < 1e-3


def test_planes_copies_only_what_it_must() -> None:
    x = torch.empty(2, 6, 8, 10)
    for view in (x, x[:, ::2], x[:1].expand(4, 6, 8, 10), x[:, :, :, :1], x[:, :, :1]):
        assert tuning.planes(view)[0] is view
    assert tuning.planes(x[..., ::2, :])[0].is_contiguous()
    # Small planes whose channels lie so far apart that a tile of them would pass 2³¹.
    far = torch.empty(1, device="meta").as_strided((1, 4096, 1, 1), (1, 2**20, 1, 1))
    assert tuning.planes(far)[0].is_contiguous()


@pytest.mark.parametrize(
    "shape", [(1, 32, 2160, 3840), (4, 48, 64, 64), (1, 3, 1, 1), (8, 512, 9, 9)]
)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_plans_cover_every_pixel_and_fill_the_chip(shape: Any, layout: torch.memory_format) -> None:
    x = torch.empty(shape, device="meta", memory_format=layout)
    n, c, hw = shape[0], shape[1], shape[2] * shape[3]
    _, strides = tuning.planes(x)
    plan = tuning.plane_plan(x, strides, tuning.norm_row("instance_norm_fwd", x))
    gram_plan = tuning.gram_plan(x)
    for p in (plan, gram_plan):
        assert p.chunk % p.block_p == 0
        assert p.chunk * (p.splits - 1) < hw <= p.chunk * p.splits
        assert p.c_blocks * p.block_c >= c > (p.c_blocks - 1) * p.block_c
    if hw > 1_000_000:
        step = plan.steps(n)[0]
        assert plan.programs(step)[0] >= 132
        assert gram_plan.splits * gram_plan.c_blocks >= 132
