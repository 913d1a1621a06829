"""The C++ extension against the reference in float64, raw op by raw op, in every dtype and layout.

The other tests see it through the public ops; this one sees the reference's raw ops, too.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from faststy.ops import dispatch, reference

pytest.importorskip("faststy._C", reason="the extension is not built")

native = torch.ops.faststy_native

# Relative error by norm. In float64 what parameters of float32 leave.
TOLERANCES = {
    torch.float32: 3e-6,
    torch.float64: 1e-6,
    torch.float16: 1e-3,
    torch.bfloat16: 8e-3,
}
LAYOUTS = (torch.contiguous_format, torch.channels_last)
# One pixel, rests of tiles, several tiles, several chunks, more channels than a part has columns.
SHAPES = [
    (3, 5, 1, 1),
    (2, 1, 13, 7),
    (2, 48, 8, 8),
    (2, 4, 67, 65),
    (1, 3, 90, 211),
    (1, 1100, 3, 4),
]
ACTIVATIONS = ("none", "relu", "leaky_relu", "silu")


def random(shape: Any, dtype: torch.dtype, layout: torch.memory_format) -> Tensor:
    return torch.randn(shape).to(dtype).contiguous(memory_format=layout)


def double(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) else value


def check(raw: str, *args: Any, tolerance: float) -> Any:
    """Results of the native op, which must be those of the reference in float64."""
    results = getattr(native, raw)(*args)
    truth = getattr(reference, raw)(*map(double, args))
    pairs = zip(results, truth, strict=True) if isinstance(truth, tuple) else [(results, truth)]
    for i, (a, b) in enumerate(pairs):
        assert a.shape == b.shape
        off = float((a.double() - b.double()).norm())
        # Where a plane is one pixel, gradients are nothing but what rounding leaves.
        assert off <= tolerance * max(float(b.double().norm()), 1e-3 * a.numel() ** 0.5), (i, off)
    return results


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def threads() -> Iterator[Any]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_the_extension_is_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "IMPL", "auto")
    for op in ("gram", "gram_loss", "instance_norm", "from_pixels", "to_pixels"):
        assert dispatch.choose(op, "cpu").name == "native"
    for dtype in (torch.float32, torch.float64):
        found = dispatch.implementation("gram_fwd", (torch.zeros(1, 1, 2, 2, dtype=dtype), None))
        assert found is native.gram_fwd


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_instance_norm(shape: Any, layout: torch.memory_format, dtype: torch.dtype) -> None:
    n, c = shape[:2]
    tolerance = TOLERANCES[dtype]
    x, dy, r = (random(shape, dtype, layout) for _ in range(3))
    weight, bias = torch.randn(n, c) + 1, torch.randn(c)
    mean, rstd = check("instance_norm_stats", x, 1e-5, tolerance=tolerance)
    for activation, residual in product(ACTIVATIONS, (None, r)):
        y, *_ = check(
            "instance_norm_fwd", x, weight, bias, residual, 1e-5, activation, tolerance=tolerance
        )
        assert y.dtype == dtype
        assert y.is_contiguous(memory_format=reference.layout(x))
        given = (mean, rstd, weight, bias, residual, activation)
        check("instance_norm_apply", x, *given, tolerance=tolerance)
        for fixed in (False, True):
            dx, *_ = check("instance_norm_bwd", dy, x, *given, fixed, tolerance=tolerance)
            assert dx.dtype == dtype
            assert dx.is_contiguous(memory_format=reference.layout(x))


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [*SHAPES, (2, 131, 9, 9), (1, 16, 64, 66)])
def test_gram(shape: Any, layout: torch.memory_format, dtype: torch.dtype) -> None:
    n, c, h, w = shape
    tolerance = TOLERANCES[dtype]
    x = random(shape, dtype, layout)
    target, symmetric = torch.randn(n, c, c), torch.randn(n, c, c)
    symmetric = (symmetric + symmetric.mT) * h * w  # so that float16 holds the gradients
    scale = torch.rand(n) + 0.5
    for mean in (None, x.mean((2, 3), dtype=reference.wide(dtype))):
        gram = check("gram_fwd", x, mean, tolerance=tolerance)
        assert torch.equal(gram, gram.mT)
        for t in (target, target[0]):
            check("gram_loss_fwd", x, mean, t.to(gram.dtype), tolerance=tolerance)
        for s in (None, scale):
            dx = check("gram_bwd", symmetric, x, mean, s, tolerance=tolerance)
            assert dx.dtype == dtype
            assert dx.is_contiguous(memory_format=reference.layout(x))


def test_gradients_of_grams_whose_features_require_them() -> None:
    x, symmetric = torch.randn(2, 3, 8, 8, requires_grad=True), torch.randn(2, 3, 3)
    dx = native.gram_bwd(symmetric, x, None, None)
    assert torch.equal(dx, native.gram_bwd(symmetric, x.detach(), None, None))
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("r", [1, 2, 3])
def test_pixels(r: int, channels_last: bool, dtype: torch.dtype) -> None:
    frames = torch.randint(0, 256, (2, 13, 17, 3), dtype=torch.uint8)
    for given in (frames, frames[:, :, ::2], frames[:1, ..., :1].expand(2, 13, 17, 3), frames.mT):
        x = native.from_pixels(given, dtype, channels_last, r, -1.0, 2.0)
        truth = reference.from_pixels(given, dtype, channels_last, r, -1.0, 2.0)
        torch.testing.assert_close(x, truth)
        assert x.stride() == truth.stride()
    x = random((2, 4 * r * r, 9, 11), dtype, LAYOUTS[channels_last])
    for given in (x, x[1:, ..., 2:], x[:, :, ::2], x.mT):
        height, width = given.shape[2] * r, given.shape[3] * r
        for size in ((height, width), (height - r, width - r + 1), (1, 1)):
            args = (given, r, *size, -2.0, 2.0)
            off = (native.to_pixels(*args).int() - reference.to_pixels(*args).int()).abs()
            assert int(off.max()) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_pixel_is_the_same_bits_in_any_cell(dtype: torch.dtype) -> None:
    """Whole cells are converted by another loop than the rest."""
    frames = torch.arange(256, dtype=torch.uint8).repeat(3).view(1, 16, 16, 3)
    for low, high in ((-1.0, 1.0), (0.0, 1.0), (-2.1, 2.6)):
        whole = native.from_pixels(frames, dtype, True, 4, low, high)
        ragged = native.from_pixels(frames[:, :15], dtype, True, 4, low, high)
        planar = native.from_pixels(frames, dtype, False, 4, low, high)
        assert torch.equal(whole[:, :, :3], ragged[:, :, :3])
        assert torch.equal(whole, planar)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize(("n", "c", "h", "w"), [*SHAPES[2:], (2, 16, 9, 9), (1, 131, 1, 40)])
def test_parts_of_channels_last(n: int, c: int, h: int, w: int, dtype: torch.dtype) -> None:
    """Read where they are; results are without gaps, in that layout."""
    wide = random((n, c + 5, h, w), dtype, torch.channels_last)
    large = random((n, c, h + 1, w + 2), dtype, torch.channels_last)
    mean, square = torch.randn(n, c), torch.randn(n, c, c)
    tolerance = TOLERANCES[dtype]
    for x in (wide[:, 3:-2], large[..., 1:, 1:-1]):
        given = (mean, mean.exp(), None, None, x, "silu")
        y, *_ = check("instance_norm_fwd", x, None, None, x, 1e-5, "silu", tolerance=tolerance)
        dx, *_ = check("instance_norm_bwd", x, x, *given, False, tolerance=tolerance)
        check("gram_fwd", x, None, tolerance=tolerance)
        check("gram_fwd", x, mean, tolerance=tolerance)
        dgram = check("gram_bwd", square, x, mean, None, tolerance=tolerance)
        dense = torch.empty_like(x, memory_format=torch.channels_last)
        assert y.stride() == dx.stride() == dgram.stride() == dense.stride()


def test_mixed_dtypes() -> None:
    shape = (2, 20, 11, 13)
    x = random(shape, torch.bfloat16, torch.channels_last)
    dy = random(shape, torch.float64, torch.contiguous_format)
    r = random(shape, torch.float32, torch.channels_last)
    weight, bias = torch.randn(20).half() + 1, torch.randn(2, 20).double()
    y, mean, rstd = check(
        "instance_norm_fwd", x, weight, bias, r, 1e-5, "silu", tolerance=TOLERANCES[x.dtype]
    )
    assert (y.dtype, mean.dtype) == (torch.bfloat16, torch.float32)
    args = (dy, x, mean, rstd, weight, bias, r, "silu", False)
    dx, dresidual, *_ = check("instance_norm_bwd", *args, tolerance=TOLERANCES[x.dtype])
    assert (dx.dtype, dresidual.dtype) == (torch.bfloat16, torch.float32)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("n", [1, 2, 3])
def test_one_thread_and_two_agree(threads: Any, n: int, layout: torch.memory_format) -> None:
    x, dy, r = (random((n, 20, 65, 67), torch.float32, layout) for _ in range(3))
    centred, square = x.mean((2, 3)), torch.eye(20).repeat(n, 1, 1)
    frames = torch.randint(0, 256, (n, 65, 67, 3), dtype=torch.uint8)

    def run() -> list[Tensor]:
        y, mean, rstd = native.instance_norm_fwd(x, None, None, r, 1e-5, "silu")
        grads = native.instance_norm_bwd(dy, x, mean, rstd, None, None, r, "silu", False)
        pixels = native.from_pixels(frames, torch.float32, True, 2, 0.0, 1.0)
        return [
            *(y, mean, rstd, *grads, pixels),
            *native.gram_loss_fwd(x, centred, square),
            native.gram_bwd(square, x, centred, None),
            native.to_pixels(pixels, 2, 65, 67, 0.0, 1.0),
        ]

    found = []
    for count in (1, 2, 2):
        threads(count)
        found.append(run())
    for results in found[1:]:
        for a, b in zip(results, found[0], strict=True):
            assert torch.equal(a, b)


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="where Linux tells the peak")
def test_gram_of_many_channels_takes_little_memory() -> None:
    """Beside the 16 MB of the result four times the 8 MB of the features."""
    code = """
import torch
from faststy import ops

def peak():
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) >> 10 for line in lines if line.startswith("VmHWM"))

x = torch.rand(1, 2048, 32, 32)
ops.gram(x[:, :8])
before = peak()
ops.gram(x)
print(peak() - before)
"""
    command = [sys.executable, "-c", code]
    grown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert int(grown) < 16 + 4 * 8 + 30


X = torch.zeros(2, 3, 4, 4)
P = torch.zeros(2, 3)


class MallInfo(ctypes.Structure):
    """What glibc's mallinfo2 tells."""

    _fields_ = (
        ("arena", ctypes.c_size_t),
        ("ordblks", ctypes.c_size_t),
        ("smblks", ctypes.c_size_t),
        ("hblks", ctypes.c_size_t),
        ("hblkhd", ctypes.c_size_t),  # bytes in mappings of their own
        ("usmblks", ctypes.c_size_t),
        ("fsmblks", ctypes.c_size_t),
        ("uordblks", ctypes.c_size_t),  # bytes in use beside them
        ("fordblks", ctypes.c_size_t),
        ("keepcost", ctypes.c_size_t),
    )


def allocated() -> int:
    """Bytes that are allocated in this process and not freed."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallinfo2"):
        pytest.skip("this C library does not count what is allocated")
    libc.mallinfo2.restype = MallInfo
    info = libc.mallinfo2()
    return int(info.uordblks) + int(info.hblkhd)


@pytest.mark.parametrize(
    ("raw", "args"),
    [
        ("instance_norm_stats", (X, 1e-5)),
        ("instance_norm_fwd", (X, None, None, None, 1e-5, "relu")),
        ("instance_norm_apply", (X, P, P, None, None, None, "leaky_relu")),
        ("instance_norm_bwd", (X, X, P, P, None, None, None, "silu", False)),
        ("gram_fwd", (X, None)),
        ("gram_bwd", (torch.zeros(2, 3, 3), X, None, None)),
        ("discriminator_loss_fwd", ([X], [X], "hinge", True)),
        ("combined_loss_fwd", ([X], *[[]] * 9, torch.ones(6), "hinge", 1.0, True)),
        ("from_pixels", (X.permute(0, 2, 3, 1).byte(), torch.float32, True, 1, 0.0, 1.0)),
        ("to_pixels", (X, 1, 4, 4, 0.0, 1.0)),
    ],
)
def test_calls_leave_no_memory_behind(raw: str, args: Any) -> None:
    call = getattr(native, raw)
    for _ in range(200):
        call(*args)
    before = allocated()
    for _ in range(1000):
        call(*args)
    assert allocated() - before < 10_000  # a leak of the smallest block is three times that


@pytest.mark.parametrize(
    ("raw", "args", "message"),
    [
        ("instance_norm_stats", (X[0], 1e-5), "x: expected"),
        ("instance_norm_stats", (X.int(), 1e-5), "x: expected a floating dtype"),
        ("instance_norm_fwd", (X, P[:, :2], None, None, 1e-5, "none"), "weight: expected"),
        ("instance_norm_fwd", (X, None, None, X[:1], 1e-5, "relu"), "residual: expected"),
        ("instance_norm_fwd", (X, None, None, None, 1e-5, "gelu"), "activation: .*got gelu"),
        ("instance_norm_apply", (X, P[:1], P, None, None, None, "none"), "mean: expected"),
        (
            "instance_norm_bwd",
            (X[..., 1:], X, P, P, None, None, None, "none", False),
            "dy: expected",
        ),
        ("gram_fwd", (X, P[:1]), "mean: expected"),
        ("gram_loss_fwd", (X, None, P), "target: expected"),
        ("gram_bwd", (X, X, None, None), "symmetric: expected"),
        ("gram_bwd", (torch.zeros(2, 3, 3), X, None, P), "scale: expected"),
        ("from_pixels", (X, torch.float32, True, 1, 0.0, 1.0), "frames: expected"),
        ("from_pixels", (X.byte(), torch.int8, True, 1, 0.0, 1.0), "dtype: expected"),
        ("to_pixels", (X, 2, 8, 8, 0.0, 1.0), "shuffle: expected"),
        ("to_pixels", (X, 1, 5, 4, 0.0, 1.0), "size: expected"),
        ("combined_loss_scale_", ([X[..., ::2]], torch.tensor(2.0)), "gradients: .* dense"),
    ],
)
def test_bad_input_is_an_error_and_no_crash(raw: str, args: Any, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        getattr(native, raw)(*args)
