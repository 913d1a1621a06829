"""The CUDA convolutions where there is no GPU: as C++ (emulation.py), against float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from .emulation import GUARD, MARKS, SHARED, build
from .test_conv3x3 import TOLERANCE, arguments, truth

pytestmark = MARKS
LAST = torch.channels_last
# What is not C++, and small tiles: 2 or 4 rows of 32 pixels.
REWRITTEN = {
    **GUARD,
    **SHARED,
    r"__shared__ float": "static float",
    r"WARPS = 8": "WARPS = 2",
    r"MERGERS = 128": "MERGERS = 32",
    r"STABLE_TORCH_LIBRARY_IMPL\(faststy_native, CUDA, m\)": (
        "STABLE_TORCH_LIBRARY_FRAGMENT(faststy_convolved, m) {\n"
        '  m.def("conv3x3_fwd(Tensor[] inputs, Tensor weight, Tensor? scale, Tensor? bias, '
        'Tensor? residual, float slope, bool moments) -> (Tensor, Tensor)");\n'
        '  m.def("conv3x3_train_fwd(Tensor x, Tensor weight, Tensor? bias, bool reflect, '
        'bool relu) -> Tensor");\n'
        '  m.def("conv3x3_train_input_grad(Tensor dy, Tensor turned, Tensor? gate, '
        'bool padded) -> Tensor");\n'
        "}\n"
        "STABLE_TORCH_LIBRARY_IMPL(faststy_convolved, CPU, m)"
    ),
}


ADDED = {
    **GUARD,
    **SHARED,
    r"HEIGHT = 8;": "HEIGHT = 2;",
    r"LIBRARY_FRAGMENT\(faststy_native, m\)": "LIBRARY_FRAGMENT(faststy_convolved, m)",
    r"LIBRARY_IMPL\(faststy_native, CUDA, m\)": "LIBRARY_IMPL(faststy_convolved, CPU, m)",
}


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Any:
    library = build(tmp_path_factory.mktemp("convolved"), "conv3x3_cuda.cu", REWRITTEN)
    torch.ops.faststy_convolved.limit = library.limit
    build(tmp_path_factory.mktemp("weights"), "conv3x3_weight_cuda.cu", ADDED)
    return torch.ops.faststy_convolved


@pytest.mark.parametrize(
    ("n", "channels", "k", "h", "w", "dtype"),
    [
        (1, (48,), 48, 6, 45, torch.float16),
        (2, (16, 12), 16, 9, 33, torch.float16),  # pieces of 16 and of 8 bytes, padding
        (1, (24, 3), 24, 5, 7, torch.bfloat16),  # of 2 bytes
        (1, (24,), 6, 2, 2, torch.float16),  # the smallest
        (2, (3,), 12, 5, 34, torch.bfloat16),
        (1, (48, 48), 24, 3, 4, torch.float16),
        (1, (10,), 62, 7, 3, torch.bfloat16),  # pieces of 4 bytes
    ],
)
def test_against_float64(
    emulated: Any, n: int, channels: tuple[int, ...], k: int, h: int, w: int, dtype: torch.dtype
) -> None:
    inputs, weight, scale, bias, residual = arguments(n, channels, k, h, w, dtype)
    inputs = [x.to(memory_format=LAST) for x in inputs]
    weight, residual = (x.to(memory_format=LAST) for x in (weight, residual))
    expected, moments = truth(inputs, weight, scale, bias, residual, "leaky_relu")
    y, found = emulated.conv3x3_fwd(inputs, weight, scale.float(), bias, residual, 0.2, True)
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(y.double(), expected, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(found.double(), moments, atol=1e-5, rtol=1e-4)
    assert y.dtype == dtype
    assert y.is_contiguous(memory_format=LAST)
    plain, none = emulated.conv3x3_fwd(inputs, weight, None, None, None, 1.0, False)
    one, zero = torch.ones(k), torch.zeros(k)
    expected, _ = truth(inputs, weight, one, zero, None, None)
    torch.testing.assert_close(plain.double(), expected, atol=tolerance, rtol=tolerance)
    assert none.shape == (0, k)


def test_a_residual_lies_at_whole_pairs(emulated: Any) -> None:
    inputs, weight, *_ = arguments(1, (8,), 4, 3, 5, torch.float16)
    inputs, weight = [inputs[0].to(memory_format=LAST)], weight.to(memory_format=LAST)
    residual = torch.zeros(61).half()[1:].view(1, 3, 5, 4).permute(0, 3, 1, 2)
    with pytest.raises(RuntimeError, match="residual: expected whole pairs of channels"):
        emulated.conv3x3_fwd(inputs, weight, None, None, residual, 1.0, False)


def test_no_launch_lowers_the_limit_of_shared_memory(emulated: Any) -> None:
    """It is one for all threads: another may be about to launch the same kernel with more."""
    limits = set()
    for c in (3, 96):
        inputs, weight, *_ = arguments(1, (c,), 24, 2, 2, torch.float16)
        inputs, weight = [inputs[0].to(memory_format=LAST)], weight.to(memory_format=LAST)
        emulated.conv3x3_fwd(inputs, weight, None, None, None, 1.0, False)
        limits.add(emulated.limit())
    assert len(limits) == 1


@pytest.mark.parametrize(
    ("n", "c", "k", "h", "w", "dtype"),
    [
        (1, 16, 32, 6, 45, torch.bfloat16),
        (2, 3, 16, 9, 33, torch.bfloat16),
        (1, 48, 48, 1, 1, torch.float16),
        (1, 20, 8, 1, 5, torch.float16),  # pieces of 8 bytes
    ],
)
@pytest.mark.parametrize("relu", [False, True])
def test_frozen(
    emulated: Any, n: int, c: int, k: int, h: int, w: int, dtype: torch.dtype, relu: bool
) -> None:
    (x,), weight, bias, _, dy = arguments(n, (c,), k, h, w, dtype)
    x, weight, dy = (t.contiguous(memory_format=LAST) for t in (x, weight, dy))
    y = emulated.conv3x3_train_fwd(x, weight, bias, False, relu)
    wide = x.double().requires_grad_()
    expected = F.conv2d(wide, weight.double(), bias.double(), padding=1)
    tolerance = TOLERANCE[dtype]
    shown = expected.relu() if relu else expected
    torch.testing.assert_close(y.double(), shown.detach(), atol=tolerance, rtol=tolerance)
    # By the gate that was, as rounding may have moved what is near 0.
    gate = y.double() > 0 if relu else torch.ones_like(expected)
    expected.backward(dy.double() * gate)
    turned = weight.flip(2, 3).transpose(0, 1).contiguous(memory_format=LAST)
    dx = emulated.conv3x3_train_input_grad(dy, turned, y if relu else None, False)
    torch.testing.assert_close(dx.double(), wide.grad, atol=tolerance, rtol=tolerance)
    assert dx.is_contiguous(memory_format=LAST)


@pytest.mark.parametrize(
    ("n", "c", "k", "h", "w"),
    [
        (1, 48, 48, 5, 37),
        (2, 28, 16, 4, 33),  # pieces of 8 bytes
        (1, 96, 24, 3, 2),  # two chunks of channels
        (3, 27, 12, 2, 5),  # pieces of 2 bytes
        (1, 16, 62, 6, 40),
    ],
)
def test_reflected(emulated: Any, n: int, c: int, k: int, h: int, w: int) -> None:
    (x,), weight, bias, _, dy = arguments(n, (c,), k, h, w, torch.bfloat16)
    x, weight, dy = (t.contiguous(memory_format=LAST) for t in (x, weight, dy))
    y = emulated.conv3x3_train_fwd(x, weight, bias.float(), True, False)
    wide = [t.double().requires_grad_() for t in (x, weight)]
    padded = F.pad(wide[0], (1, 1, 1, 1), "reflect")
    padded.retain_grad()
    expected = F.conv2d(padded, wide[1], bias.double())
    tolerance = TOLERANCE[torch.bfloat16]
    torch.testing.assert_close(y.double(), expected.detach(), atol=tolerance, rtol=tolerance)
    expected.backward(dy.double())
    turned = weight.flip(2, 3).transpose(0, 1).contiguous(memory_format=LAST)
    if c <= 64:
        dx = emulated.conv3x3_train_input_grad(dy, turned, None, True)
        torch.testing.assert_close(dx.double(), padded.grad, atol=tolerance, rtol=tolerance)
    dw = emulated.conv3x3_train_weight_grad(dy, x)
    assert dw.dtype == torch.float32
    torch.testing.assert_close(dw.double(), wide[1].grad, atol=1e-4, rtol=1e-4)
