"""The ends of the repairer against their definitions in plain PyTorch, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from faststy import ops
from faststy.ops import reference
from faststy.ops.reference import CELL, GATE

SIZES = [(2, 20, 36), (1, 8, 8), (1, 12, 64), (1, 4, 4), (3, 8, 4), (1, 4, 524)]


def frames(n: int, h: int, w: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, h, w, 3), dtype=torch.uint8, generator=generator)


def planar(picture: Tensor) -> Tensor:
    return picture.permute(0, 3, 1, 2).double() / 255


@pytest.mark.parametrize("size", SIZES)
def test_hints(device: torch.device, size: tuple[int, int, int]) -> None:
    painted, photo = frames(*size), frames(*size, seed=1)
    painted[0] //= 16  # hardly any contrast
    details, hints = ops.repair_hints(painted.to(device), photo.to(device))
    assert hints.is_contiguous(memory_format=torch.channels_last)
    a, b = reference.detail(planar(painted)), reference.detail(planar(photo))
    torch.testing.assert_close(details.cpu().double(), torch.cat([a, b], 1), atol=2e-6, rtol=0)
    structure = reference.structure(a, b)
    torch.testing.assert_close(hints.cpu().double(), structure, atol=2e-5, rtol=0)


def test_hints_of_flat_frames(device: torch.device) -> None:
    flat = torch.full((1, 12, 20, 3), 77, dtype=torch.uint8, device=device)
    details, hints = ops.repair_hints(flat, flat)
    assert details.abs().max() < 1e-6
    contrast = torch.tensor(1e-5).log().item() / 4 + 1
    expected = torch.tensor([contrast, contrast, 0.0], device=device)
    torch.testing.assert_close(hints, expected.view(1, 3, 1, 1).expand(1, 3, 3, 5))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_apply(device: torch.device, size: tuple[int, int, int], dtype: torch.dtype) -> None:
    painted, (n, h, w) = frames(*size), size
    details = torch.randn(n, 2, h, w) / 4
    heads = torch.randn(n, 6, h // CELL, w // CELL).to(dtype)
    wide = reference.upsample_fwd(heads.double(), CELL)
    gates = GATE * torch.sigmoid(wide[:, 1:3])
    residual = gates[:, :1] * details[:, 1:] - gates[:, 1:] * details[:, :1] + wide[:, 3:]
    added = torch.sigmoid(wide[:, :1]) * residual
    for strength in (0.0, 0.3, 1.0):
        arguments = (t.to(device) for t in (painted, details, heads))
        got = ops.repair_apply(*arguments, strength).cpu()
        exact = ((planar(painted) + strength * added) * 255).clamp(0, 255).permute(0, 2, 3, 1)
        assert (got - exact).abs().max() < 0.5 + 1e-3  # halves go either way
        if strength == 0:
            assert torch.equal(got, painted)


def test_what_is_not_a_number_is_black(device: torch.device) -> None:
    painted = frames(1, 8, 12).clamp(min=1)
    heads = torch.zeros(1, 6, 2, 3)
    heads[0, 4, 0, 2] = torch.nan
    got = ops.repair_apply(
        painted.to(device), torch.zeros(1, 2, 8, 12, device=device), heads.to(device), 1.0
    ).cpu()
    expected = painted.clone()
    expected[0, :6, 6:, 1] = 0
    assert torch.equal(got, expected)


def test_empty(device: torch.device) -> None:
    none = frames(0, 8, 12).to(device)
    details, hints = ops.repair_hints(none, none)
    assert details.shape == (0, 2, 8, 12)
    assert hints.shape == (0, 3, 2, 3)
    heads = torch.empty(0, 6, 2, 3, device=device)
    assert ops.repair_apply(none, details, heads, 1.0).shape == none.shape


def test_opcheck(device: torch.device) -> None:
    painted = frames(1, 8, 12).to(device)
    heads = torch.randn(1, 6, 2, 3).to(device).to(memory_format=torch.channels_last)
    details, _ = ops.repair_hints(painted, painted)
    utils = ("test_schema", "test_faketensor", "test_autograd_registration")
    raw = torch.ops.faststy
    torch.library.opcheck(raw.repair_hints.default, (painted, painted), test_utils=utils)
    arguments = (painted, details, heads, 0.5)
    torch.library.opcheck(raw.repair_apply.default, arguments, test_utils=utils)


def test_a_detail_lies_where_it_lies_in_any_larger_picture() -> None:
    """Otherwise tiles would show; sides that are no multiples of the block included."""
    picture = torch.rand(1, 3, 60, 84)
    whole = reference.detail(picture)
    part = reference.detail(picture[..., 8:44, 16:64])
    torch.testing.assert_close(part[..., 8:-8, 8:-8], whole[..., 16:36, 24:56])


def test_mistakes() -> None:
    good = frames(1, 8, 8)
    with pytest.raises(TypeError, match="painted: expected a tensor, got NoneType"):
        ops.repair_hints(None, good)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="photo: expected on cpu as painted is, got meta"):
        ops.repair_hints(good, good.to("meta"))
    with pytest.raises(TypeError, match="painted: expected uint8"):
        ops.repair_hints(good.float(), good)
    with pytest.raises(ValueError, match="photo: expected sides in multiples of 4"):
        ops.repair_hints(good, frames(1, 8, 9))
    with pytest.raises(ValueError, match="photo: expected the shape"):
        ops.repair_hints(good, frames(1, 8, 12))
    with pytest.raises(ValueError, match=r"heads: expected \[N, 6, H/4, W/4\] = \[1, 6, 2, 2\]"):
        ops.repair_apply(good, torch.zeros(1, 2, 8, 8), torch.zeros(1, 4, 2, 2), 1.0)
    for strength in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="strength: expected 0 to 1, got"):
            ops.repair_apply(good, torch.zeros(1, 2, 8, 8), torch.zeros(1, 6, 2, 2), strength)
