"""The ends of the repairer against their definitions in plain PyTorch."""

import pytest
import torch

from faststy import ops
from faststy.ops import reference


def frames(n, h, w, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, h, w, 3), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("size", [(2, 20, 36), (1, 8, 8), (1, 12, 64), (1, 4, 4)])
def test_against_the_reference(size):
    painted, photo = frames(*size), frames(*size, seed=1)
    details, hints = ops.repair_hints(painted, photo)
    expected = reference.repair_hints(painted, photo)
    torch.testing.assert_close(details, expected[0], atol=2e-6, rtol=0)
    torch.testing.assert_close(hints, expected[1], atol=2e-5, rtol=0)
    n, h, w = size
    heads = torch.randn(n, 6, h // 4, w // 4)
    for strength in (0.0, 0.3, 1.0):
        got = ops.repair_apply(painted, details, heads, strength).int()
        want = reference.repair_apply(painted, details, heads, strength).int()
        assert (got - want).abs().max() <= 1
        assert (got != want).float().mean() < 0.01
        if strength == 0:
            assert torch.equal(got, painted.int())


def test_a_detail_lies_where_it_lies_in_any_larger_picture():
    """Otherwise tiles would show; sides that are no multiples of the block included."""
    picture = torch.rand(1, 3, 60, 84)
    whole = reference.detail(picture)
    part = reference.detail(picture[..., 8:44, 16:64])
    torch.testing.assert_close(part[..., 8:-8, 8:-8], whole[..., 16:36, 24:56])


def test_mistakes():
    good = frames(1, 8, 8)
    with pytest.raises(TypeError, match="painted: expected uint8"):
        ops.repair_hints(good.float(), good)
    with pytest.raises(ValueError, match="photo: expected sides in multiples of 4"):
        ops.repair_hints(good, frames(1, 8, 9))
    with pytest.raises(ValueError, match="photo: expected the shape"):
        ops.repair_hints(good, frames(1, 8, 12))
    with pytest.raises(ValueError, match=r"heads: expected \[N, 6, H/4, W/4\] = \[1, 6, 2, 2\]"):
        ops.repair_apply(good, torch.zeros(1, 2, 8, 8), torch.zeros(1, 4, 2, 2), 1.0)
