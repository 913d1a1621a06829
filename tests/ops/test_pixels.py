from __future__ import annotations

import mmap
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from faststy import ops
from faststy.ops import reference

TOLERANCES = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}


def frames(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8)


def sparse(dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """More than 2³¹ numbers; on a CPU they take no memory where nothing is written."""
    size = (1 << 31) + 4096
    if device.type == "cuda":
        return torch.empty(size, dtype=dtype, device=device)
    return torch.frombuffer(mmap.mmap(-1, size * dtype.itemsize), dtype=dtype)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("unshuffle", [1, 2, 4])
def test_there_and_back(
    device: torch.device, dtype: torch.dtype, channels_last: bool, unshuffle: int
) -> None:
    picture = frames(2, 13, 18, 3).to(device)
    x = ops.from_pixels(
        picture, dtype, channels_last=channels_last, unshuffle=unshuffle, value_range=(-1, 1)
    )
    assert x.dtype == dtype
    layout = torch.channels_last if channels_last else torch.contiguous_format
    assert x.is_contiguous(memory_format=layout)
    planar = picture.cpu().permute(0, 3, 1, 2).double() / 127.5 - 1
    right, bottom = -18 % unshuffle, -13 % unshuffle
    planar = F.pad(planar, (0, right, 0, bottom), mode="replicate")
    truth = F.pixel_unshuffle(planar, unshuffle)
    torch.testing.assert_close(x.cpu().double(), truth, atol=TOLERANCES[dtype], rtol=0)
    back = ops.to_pixels(x, shuffle=unshuffle, size=(13, 18), value_range=(-1, 1))
    assert torch.equal(back, picture)


def test_strides_and_channels(device: torch.device) -> None:
    picture = frames(9, 20, 4).to(device)
    truth = picture.permute(2, 0, 1)[None].float() / 255
    torch.testing.assert_close(ops.from_pixels(picture), truth)
    torch.testing.assert_close(
        ops.from_pixels(picture.flip(0)[:, ::2, :3]), truth.flip(2)[:, :3, :, ::2]
    )
    one = picture[..., 1:2].expand(9, 20, 3)
    torch.testing.assert_close(ops.from_pixels(one), truth[:, 1:2].expand(1, 3, 9, 20))
    x = truth.repeat(2, 1, 1, 1).mT
    assert torch.equal(ops.to_pixels(x), picture.transpose(0, 1).expand(2, 20, 9, 4))


def test_what_lies_far_apart(device: torch.device) -> None:
    """Colours, as those of a long clip [3, T, H, W], or columns: beyond offsets in int32."""
    far = (1 << 30) + 64
    picture = sparse(torch.uint8, device).as_strided((1, 2, 2, 3), (1, 7, 3, far))
    picture.copy_(frames(1, 2, 2, 3))
    x = ops.from_pixels(picture, value_range=(0, 255))
    assert torch.equal(x, picture.permute(0, 3, 1, 2).float())
    columns = sparse(torch.float16, device).as_strided((1, 3, 2, 3), (1, 3, 13, far))
    columns.copy_(frames(1, 3, 2, 3))
    y = ops.to_pixels(columns, value_range=(0, 255))
    assert torch.equal(y, columns.permute(0, 2, 3, 1).byte())


def test_rounds_and_clamps(device: torch.device) -> None:
    x = torch.tensor([-9.0, -0.1, 0.4, 0.5, 1.5, 254.5, 254.4, 300, torch.inf, -torch.inf])
    x = torch.cat([x, torch.tensor([torch.nan])]).view(1, 1, 1, -1).to(device)
    y = ops.to_pixels(x, value_range=(0, 255)).flatten().tolist()
    assert y == [0, 0, 0, 1, 2, 255, 254, 255, 255, 0, 0]


def test_empty(device: torch.device) -> None:
    assert ops.from_pixels(frames(0, 4, 4, 3).to(device), unshuffle=4).shape == (0, 48, 1, 1)
    assert ops.to_pixels(torch.empty(0, 3, 4, 4, device=device)).shape == (0, 4, 4, 3)


def test_opcheck(device: torch.device) -> None:
    picture = frames(1, 5, 6, 3).to(device)
    raw = torch.ops.faststy
    x = raw.from_pixels(picture, torch.float16, True, 2, 0.0, 1.0)
    utils = ("test_schema", "test_faketensor", "test_autograd_registration")
    for op, args in (
        (raw.from_pixels, (picture, torch.float16, True, 2, 0.0, 1.0)),
        (raw.to_pixels, (x, 2, 5, 6, 0.0, 1.0)),
    ):
        torch.library.opcheck(op.default, args, test_utils=utils)


def test_compile(device: torch.device) -> None:
    def net(picture: torch.Tensor) -> torch.Tensor:
        return ops.to_pixels(1 - ops.from_pixels(picture, unshuffle=2), shuffle=2)

    torch._dynamo.reset()
    compiled = torch.compile(net, fullgraph=True, dynamic=True, backend="aot_eager")
    for size in (6, 8):
        picture = frames(1, size, 4, 3).to(device)
        assert torch.equal(compiled(picture), 255 - picture)


PICTURE, X = torch.zeros(4, 4, 3, dtype=torch.uint8), torch.zeros(1, 12, 4, 4)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ops.from_pixels(X), TypeError, "frames: expected uint8, got torch.float32"),
        (lambda: ops.from_pixels([0]), TypeError, "frames: expected a tensor, got list"),
        (lambda: ops.from_pixels(PICTURE[0]), ValueError, r"frames: .*got \[4, 3\]"),
        (lambda: ops.from_pixels(PICTURE, torch.int8), TypeError, "dtype: .*got torch.int8"),
        (lambda: ops.from_pixels(PICTURE, unshuffle=0), ValueError, "unshuffle: .*got 0"),
        (lambda: ops.from_pixels(PICTURE, value_range=(1, 1)), ValueError, "value_range: "),
        (lambda: ops.from_pixels(PICTURE, value_range=1.0), ValueError, "value_range: .*got 1.0"),
        (lambda: ops.from_pixels(PICTURE, value_range=(0, 1, 2)), ValueError, "value_range: "),
        (lambda: ops.to_pixels(X, shuffle=4), ValueError, "x: .*multiples of 16, got 12"),
        (lambda: ops.to_pixels(X, shuffle=2, size=(9, 8)), ValueError, r"size: .*\(8, 8\)"),
        (lambda: ops.to_pixels(X, size=(-1, 3)), ValueError, r"size: .*got \(-1, 3\)"),
        (lambda: ops.to_pixels(X[0]), ValueError, r"x: expected \[N, C, H, W\]"),
    ],
)
def test_bad_input(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_reference_inverts_itself() -> None:
    picture = frames(1, 6, 5, 3)
    x = reference.from_pixels(picture, torch.float32, False, 2, 0.0, 1.0)
    assert torch.equal(reference.to_pixels(x, 2, 6, 5, 0.0, 1.0), picture)
