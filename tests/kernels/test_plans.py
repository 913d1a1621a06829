"""What only kernels can get wrong: how the work is cut, and where memory is. Runs in Triton's
interpreter (TRITON_INTERPRET=1), or on a GPU."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from faststy.ops import reference

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
pytestmark = [] if INTERPRETED else [pytest.mark.gpu]
DEVICE = "cpu" if INTERPRETED else "cuda"

pytest.importorskip("triton")

from faststy.kernels import conv3x3, gram, instance_norm, tuning  # noqa: E402

LAYOUTS = (torch.contiguous_format, torch.channels_last)


@pytest.fixture(autouse=True)
def forget_plans() -> Iterator[None]:
    """Those of other tables and devices than a test's own."""
    tuning._plans.clear()
    yield
    tuning._plans.clear()


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.double() - b).norm() / b.norm().clamp_min(1e-12))


def split_everything(monkeypatch: pytest.MonkeyPatch, l2: float = 0.0, values: int = 2) -> None:
    """Small tiles, and no whole planes: what large pictures get, on small ones."""
    rows = {
        "instance_norm_fwd": (tuning.NormRow(1, l2, values, 1, 4, 3),),
        "instance_norm_bwd": (tuning.NormRow(1, l2, values // 2, 1, 4, 3),),
    }
    for table in ("NORM_PLANAR", "NORM_FLOAT32", "NORM_CHANNELS_LAST"):
        monkeypatch.setattr(tuning, table, rows)
    monkeypatch.setattr(tuning, "MIN_STEPS", 1)


def test_plans_are_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.empty(2, 48, 9, 7, device=DEVICE)
    plans = (
        lambda x: tuning.plane_plan(
            x, tuning.planes(x)[1], tuning.NORM_PLANAR["instance_norm_fwd"][0]
        ),
        lambda x: tuning.one_pass_plan(x, tuning.planes(x)[1]),
        tuning.gram_plan,
        lambda x: tuning.gram_plan(x, backward=True),
        lambda x: tuning.conv_rows(x, 48),
    )
    for plan in plans:
        made = plan(x)
        assert plan(torch.empty_like(x)) is made
        for other in (x[:1], x.half(), x.contiguous(memory_format=torch.channels_last)):
            assert plan(other) is not made
    monkeypatch.setattr(tuning, "PLANS", len(tuning._plans))
    tuning.gram_plan(x[..., 1:])
    assert 0 < len(tuning._plans) < tuning.PLANS


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("kind", "activation"), [
    ("split", "none"), ("split", "silu"), ("grouped", "silu"), ("looped", "silu"),
])  # fmt: skip
def test_planes_read_twice(
    monkeypatch: pytest.MonkeyPatch, layout: torch.memory_format, kind: str, activation: str
) -> None:
    split_everything(monkeypatch, l2=0.0 if kind == "split" else 1.0)
    monkeypatch.setattr(tuning, "l2_bytes", lambda device: 60_000 if kind == "looped" else 3_000)
    monkeypatch.setattr(tuning, "multiprocessors", lambda device: 2 if kind == "looped" else 132)
    torch.manual_seed(0)
    x, dy, r = (
        torch.randn(2, 3, 13, 17, device=DEVICE).contiguous(memory_format=layout) for _ in range(3)
    )
    x += 100
    _, strides = tuning.planes(x)
    plan = tuning.plane_plan(x, strides, tuning.norm_row("instance_norm_fwd", x))
    looped = kind == "looped" and layout == torch.contiguous_format  # in channels_last, never
    assert plan.kind == ("looped" if looped else "split")
    if kind != "looped":
        assert plan.splits > 2
        assert (13 * 17) % plan.chunk != 0  # the last chunk is shorter
        assert len(plan.steps(2)) > 2 if kind == "grouped" else len(plan.steps(2)) == 2
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


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["whole", "grouped", "looped"])
def test_hard_values(
    monkeypatch: pytest.MonkeyPatch, layout: torch.memory_format, kind: str
) -> None:
    """A mean of 1e4 with a deviation of 1; one value in a plane; NaN, which stays there."""
    if kind != "whole":
        split_everything(monkeypatch, l2=1.0)
    monkeypatch.setattr(tuning, "l2_bytes", lambda device: 60_000 if kind == "looped" else 3_000)
    monkeypatch.setattr(tuning, "multiprocessors", lambda device: 2 if kind == "looped" else 132)
    torch.manual_seed(2)
    x = torch.randn(2, 3, 13, 17, device=DEVICE) + 1e4
    x[0, 1] = 1e4 + 0.3
    x[1, 0, 7, 11] = torch.nan
    x = x.contiguous(memory_format=layout)
    row = tuning.norm_row("instance_norm_fwd", x)
    plan = tuning.plane_plan(x, tuning.planes(x)[1], row)
    looped = kind == "looped" and layout == torch.contiguous_format
    assert plan.kind == ("whole" if kind == "whole" else "looped" if looped else "split")
    bias = torch.tensor([0.0, 3.0, 0.0], device=DEVICE)
    y, mean, rstd = instance_norm.instance_norm_fwd(x, None, bias, None, 1e-5, "relu")
    dx, _, dweight, _ = instance_norm.instance_norm_bwd(
        y, x, mean, rstd, None, bias, None, "relu", False
    )
    assert torch.equal(y[0, 1], torch.full_like(y[0, 1], 3.0))
    bad = torch.zeros(2, 3, dtype=torch.bool, device=DEVICE)
    bad[1, 0] = True
    for t in (y, dx):
        assert torch.equal(t.isnan().flatten(2).any(2), bad)
        assert torch.equal(t.isnan().flatten(2).all(2), bad)
    for t in (mean, rstd, dweight):
        assert torch.equal(t.isnan(), bad)
    truth = reference.instance_norm_fwd(x.double(), None, bias.double(), None, 1e-5, "relu")
    good = ~bad
    good[0, 1] = False
    assert relative(mean[good], truth[1][good]) < 1e-6
    assert relative(rstd[good], truth[2][good]) < 1e-4
    # float32 holds 1e4 to 1e-3: the mean can be off by some of that.
    assert relative(y[good], truth[0][good]) < 2e-3


@pytest.mark.parametrize("c", [20, 40])
def test_split_grams(monkeypatch: pytest.MonkeyPatch, c: int) -> None:
    """Several tiles of channels, several splits, in both directions."""
    row = tuning.GramRow(16, 32, 4, 2, 2)
    monkeypatch.setattr(tuning, "GRAM_FLOAT32", ((1 << 30, row),))
    monkeypatch.setattr(tuning, "GRAM_BACKWARD", ((1 << 30, row),))
    monkeypatch.setattr(tuning, "GRAM_UNALIGNED", ((1 << 30, row),))
    monkeypatch.setattr(gram, "MERGE_PARTS", 2)
    monkeypatch.setattr(tuning, "LAUNCH", 0)
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


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("c", "groups"), [(3, 4), (5, 2), (16, 1), (40, 1), (57, 1)])
def test_grams_of_groups_and_tiles(
    monkeypatch: pytest.MonkeyPatch, layout: torch.memory_format, c: int, groups: int
) -> None:
    """Groups of pixels as channels; one, three (odd) and four (even) tiles in one launch."""
    row = ((1 << 30, tuning.GramRow(16, 32, 4, 1, 2)),)
    monkeypatch.setattr(tuning, "GRAM_FLOAT32", row)
    monkeypatch.setattr(tuning, "GRAM_UNALIGNED", row)
    torch.manual_seed(4)
    x = torch.randn(2, c, 6, 10, device=DEVICE).contiguous(memory_format=layout)
    plan = tuning.gram_plan(x)
    assert (plan.splits, plan.groups, plan.c_blocks) == (1, groups, -(-c * groups // 16))
    target = torch.randn(2, c, c, device=DEVICE)
    for mean in (None, x.mean((2, 3))):
        wide = [t if t is None else t.double() for t in (x, mean, target)]
        ours = gram.gram_fwd(x, mean)
        assert torch.equal(ours, ours.mT)
        assert relative(ours, reference.gram_fwd(*wide[:2])) < 1e-5
        for a, b in zip(
            gram.gram_loss_fwd(x, mean, target), reference.gram_loss_fwd(*wide), strict=True
        ):
            assert relative(a, b) < 1e-5


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
    split_everything(monkeypatch, values=16)
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


def test_steps_finish_every_unit_after_it_was_summed() -> None:
    for n, group in ((1, 1), (5, 3), (7, 2), (4, 4)):
        plan = tuning.Plan("split", 1, 128, 3, 256, 4, group, 8, 1)
        summed: list[int] = []
        finished: list[int] = []
        for first, finishes, sums in plan.steps(n):
            units = list(range(first, first + finishes + sums))
            assert set(units[:finishes]) <= set(summed)
            finished += units[:finishes]
            summed += units[finishes:]
            assert len(summed) - len(finished) <= group
        assert summed == finished == list(range(3 * n))


# What is read twice, and the share of the time that a copy would take, if reads from L2 are free.
@pytest.mark.parametrize(
    ("shape", "layout", "dtype", "kind"),
    [
        ((4, 64, 256, 256), LAYOUTS[0], torch.float32, "looped"),
        ((16, 64, 256, 256), LAYOUTS[0], torch.bfloat16, "looped"),
        ((16, 64, 256, 256), LAYOUTS[1], torch.bfloat16, "split"),
        ((16, 64, 256, 256), LAYOUTS[1], torch.float32, "split"),
        ((64, 128, 64, 64), LAYOUTS[1], torch.bfloat16, "split"),
        ((64, 128, 64, 64), LAYOUTS[0], torch.bfloat16, "whole"),
        ((1, 48, 540, 960), LAYOUTS[1], torch.float32, "split"),
        ((1, 32, 2160, 3840), LAYOUTS[0], torch.bfloat16, "split"),
        ((1, 32, 2160, 3840), LAYOUTS[0], torch.float32, "split"),
    ],
)
@pytest.mark.parametrize("backward", [False, True])
def test_what_is_read_twice_fits_into_l2(
    shape: Any, layout: torch.memory_format, dtype: torch.dtype, kind: str, backward: bool
) -> None:
    """Of tensors above 64 MB, on an H100, where groups pay."""
    x = torch.empty(shape, device="meta", dtype=dtype, memory_format=layout)
    assert x.nbytes > 64e6
    _, strides = tuning.planes(x)
    row = tuning.norm_row("instance_norm_bwd" if backward else "instance_norm_fwd", x)
    plan = tuning.plane_plan(x, strides, row, read=1 + backward)
    if not backward:
        assert plan.kind == kind
    pixels, units = shape[2] * shape[3], plan.units(shape[0])
    if row.l2 == 0:
        assert plan.group == units
        return
    programs = row.programs if plan.num_warps == row.num_warps else 1  # per multiprocessor
    under_way = {"whole": 0, "looped": 132 * programs, "split": plan.group}[plan.kind]
    live = under_way * (1 + backward) * min(plan.block_c, shape[1]) * pixels * dtype.itemsize
    frame = pixels > 500_000 and (backward or dtype == torch.float32)
    if frame and plan.group == 1:
        # A plane of a 4K frame is what it is, and backward 48 channels are left whole: README.md.
        assert live <= (200e6 if backward and pixels < 1_000_000 else 67e6)
    else:
        assert live <= 0.7 * 50 * 2**20
    if plan.kind == "split" and plan.group > 1:
        # And no launch is the whole of a pass, but long: two groups at the least.
        assert units / plan.group >= 2
        assert live >= 0.2 * 50 * 2**20


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
    for p, groups in ((plan, 1), (gram_plan, gram_plan.groups)):
        assert p.chunk % p.block_p == 0
        assert p.chunk * (p.splits - 1) < hw // groups <= p.chunk * p.splits
        assert hw % groups == 0
        assert p.c_blocks * p.block_c >= c * groups > (p.c_blocks - 1) * p.block_c
    if hw > 1_000_000:
        step = plan.steps(n)[0]
        assert plan.programs(step)[0] >= 132
        assert gram_plan.splits * gram_plan.c_blocks >= 132


@pytest.mark.parametrize(
    ("shape", "one_launch"),
    [
        ((64, 16, 248, 248), False),
        ((4, 64, 256, 256), False),
        ((64, 80, 62, 62), False),
        ((64, 160, 31, 31), True),
        ((4, 256, 64, 64), False),
        ((4, 512, 32, 32), True),
    ],
)
def test_splits_of_grams_fill_the_chip_and_cost_less_than_x(shape: Any, one_launch: bool) -> None:
    x = torch.empty(shape, device="meta", dtype=torch.bfloat16, memory_format=LAYOUTS[1])
    plan = tuning.gram_plan(x)
    tiles = plan.c_blocks * (plan.c_blocks + 1) // 2
    assert shape[0] * tiles * plan.splits >= 132
    assert (plan.splits == plan.groups == 1) == one_launch
    partial = 4 * shape[0] * plan.splits * tiles * plan.block_c**2
    assert one_launch or partial < x.nbytes
    assert plan.num_stages > 1  # not the row of unaligned tensors, though H·W be odd


@pytest.mark.parametrize("reach", [conv3x3.INT32, 0])
def test_convolution_in_small_tiles(monkeypatch: pytest.MonkeyPatch, reach: int) -> None:
    """Several blocks of channels, several columns a step, and offsets of large pictures."""
    row = tuning.ConvRow(2, 8, 16, 32, 4, 2)
    monkeypatch.setattr(tuning, "CONV_TABLE", ((1 << 30, row),))
    monkeypatch.setattr(tuning, "MERGE", 32)
    monkeypatch.setattr(conv3x3, "MERGE", 32)
    monkeypatch.setattr(conv3x3, "INT32", reach)
    torch.manual_seed(0)
    inputs = [torch.randn(2, c, 7, 19, device=DEVICE) for c in (5, 16)]
    weight, residual = torch.randn(37, 21, 3, 3), torch.randn(2, 37, 7, 19)
    weight, residual = weight.to(DEVICE), residual.to(DEVICE)
    scale = weight[:, 0, 0, 0].contiguous()
    ours = conv3x3.conv3x3_fwd(inputs, weight, scale, None, residual, 0.2, True)
    wide = [x.double() for x in (weight, scale, residual)]
    truth = reference.conv3x3_fwd(
        [x.double() for x in inputs], wide[0], wide[1], None, wide[2], 0.2, True
    )
    for a, b in zip(ours, truth, strict=True):
        assert relative(a, b) < 1e-5
