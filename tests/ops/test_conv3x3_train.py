"""Convolutions of nets in training against torch's in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from faststy import ops
from faststy.ops import conv3x3_train, dispatch, reference
from faststy.ops.conv3x3 import weight_layout

CASES = [
    (2, 3, 16, 30, 45),
    (1, 16, 16, 17, 64),
    (3, 16, 32, 9, 7),
    (1, 32, 48, 20, 33),
    (1, 5, 7, 1, 1),
    (2, 17, 3, 4, 9),
    (1, 80, 80, 6, 5),  # too many for the extension on a GPU
]
LAST = torch.channels_last
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 6e-2, torch.float16: 1e-2}


@pytest.fixture(autouse=True)
def float32_is_float32(monkeypatch):
    """On a GPU torch's own convolutions, which take what the extension does not, are tf32 else."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture(autouse=True)
def few_pixels_are_enough(monkeypatch):
    """For the extension, on a CPU."""
    monkeypatch.setattr(conv3x3_train, "LEAST", 0)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize(("n", "c", "k", "h", "w"), CASES)
def test_frozen(n, c, k, h, w, relu, dtype, device):
    torch.manual_seed(n + c)
    x = torch.randn(n, c, h, w, device=device).to(dtype, memory_format=LAST).requires_grad_()
    weight = (torch.randn(k, c, 3, 3, device=device) / (3 * c**0.5)).to(dtype)
    bias = torch.randn(k, device=device).to(dtype)
    y = ops.frozen_conv3x3(x, weight, bias, relu=relu)
    wide = x.detach().double().requires_grad_()
    expected = F.conv2d(wide, weight.double(), bias.double(), padding=1)
    shown = expected.relu() if relu else expected
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(y.double(), shown, atol=tolerance, rtol=tolerance)
    assert y.dtype == dtype
    dy = torch.randn_like(y)
    gate = y.double() > 0 if relu else 1.0  # rounding may have moved what is near 0
    (expected * gate).backward(dy.double())
    y.backward(dy)
    torch.testing.assert_close(x.grad.double(), wide.grad, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(
    ("n", "c", "k", "h", "w"),
    [
        (2, 48, 48, 17, 33),
        (1, 28, 16, 9, 7),
        (2, 96, 24, 5, 6),
        (1, 27, 24, 2, 2),
        (1, 16, 12, 20, 3),
        (1, 100, 5, 3, 3),  # too many for the extension on a GPU
    ],
)
def test_reflected(n, c, k, h, w, dtype, device):
    torch.manual_seed(n + c)
    x = torch.randn(n, c, h, w, device=device).to(dtype, memory_format=LAST).requires_grad_()
    weight = (torch.randn(k, c, 3, 3, device=device) / (3 * c**0.5)).to(dtype).requires_grad_()
    bias = torch.randn(k, device=device).to(dtype).requires_grad_()
    wide = [t.detach().double().requires_grad_() for t in (x, weight, bias)]
    expected = F.conv2d(F.pad(wide[0], (1, 1, 1, 1), "reflect"), *wide[1:])
    y = ops.reflected_conv3x3(x, weight, bias)
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(y.double(), expected, atol=tolerance, rtol=tolerance)
    dy = torch.randn_like(y)
    expected.backward(dy.double())
    y.backward(dy)
    for ours, theirs in zip((x, weight, bias), wide, strict=True):
        off = (ours.grad.double() - theirs.grad).norm() / theirs.grad.norm()
        assert ours.grad.dtype == dtype
        assert off < tolerance


def whole_numbers(*shape, device, most=1):
    """What bfloat16 knows exactly, and so do its sums: equal maxima are equal in any precision."""
    return torch.randint(-most, most + 1, shape, device=device).bfloat16()


@pytest.fixture(params=["", "extension"])
def route(request, monkeypatch, device):
    """As chosen here, and as if the extension took bfloat16 on this device."""
    if request.param and device.type == "cpu":
        monkeypatch.setattr(conv3x3_train, "_fits", lambda x, weight, learns: x.shape[1] < 64)


@pytest.mark.usefixtures("route")
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("c", [16, 80])  # for the extension, and too many for it
def test_frozen_and_pooled(c, relu, device):
    torch.manual_seed(c)
    given = [whole_numbers(*s, device=device) for s in ((2, c, 9, 12), (c, c, 3, 3), (c,))]
    given[0].requires_grad_()
    y = ops.frozen_conv3x3(*given, relu=relu, pool=True)
    wide = [t.detach().double() for t in given]
    wide[0].requires_grad_()
    expected = F.max_pool2d(F.conv2d(*wide, padding=1), 2)
    expected = expected.relu() if relu else expected
    torch.testing.assert_close(y.double(), expected, atol=0, rtol=0)
    dy = whole_numbers(*y.shape, device=device)
    y.backward(dy)
    expected.backward(dy.double())
    torch.testing.assert_close(given[0].grad.double(), wide[0].grad, atol=0, rtol=4e-3)


@pytest.mark.usefixtures("route")
@pytest.mark.parametrize("activation", [None, "relu", "leaky_relu"])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("c", [24, 66])
def test_reflected_and_activated(c, biased, activation, device):
    torch.manual_seed(c)
    shapes = [(2, c, 5, 7), (24, c, 3, 3), (24,)][: 2 + biased]
    given = [whole_numbers(*s, device=device).requires_grad_() for s in shapes]
    y = ops.reflected_conv3x3(*given, activation=activation)
    wide = [t.detach().double().requires_grad_() for t in given]
    padded = F.pad(wide[0], (1, 1, 1, 1), "reflect")
    expected = F.conv2d(padded, *wide[1:])
    slope = {None: 1.0, "relu": 0.0, "leaky_relu": 0.2}[activation]
    expected = torch.where(expected > 0, expected, slope * expected)
    # cuDNN takes what the extension does not, and need not add whole numbers up exactly.
    exact = c == 24 or device.type == "cpu"
    atol = 0 if exact else 4e-3 * float(expected.abs().max())
    torch.testing.assert_close(y.double(), expected, atol=atol, rtol=8e-3)
    dy = whole_numbers(*y.shape, device=device, most=2)
    y.backward(dy)
    expected.backward(dy.double())
    for ours, theirs in zip(given, wide, strict=True):
        off = (ours.grad.double() - theirs.grad).norm() / theirs.grad.norm()
        assert off < 1e-2


@pytest.mark.parametrize("half", [False, True])
def test_reflected_under_autocast(half, device):
    x = torch.randn(1, 6, 8, 9, device=device, requires_grad=True)
    weight = torch.randn(5, 6, 3, 3, device=device, requires_grad=True)
    with torch.autocast(device.type, torch.bfloat16, enabled=half):
        y = ops.reflected_conv3x3(x, weight)
    assert y.dtype == (torch.bfloat16 if half else torch.float32)
    y.float().square().sum().backward()
    assert x.grad.dtype == weight.grad.dtype == torch.float32


def test_autocast_and_empty_batches(device):
    weight, bias = torch.randn(4, 3, 3, 3, device=device), torch.randn(4, device=device)
    with torch.autocast(device.type, torch.bfloat16):
        weight, bias = weight.bfloat16(), bias.bfloat16()
        y = ops.frozen_conv3x3(torch.randn(1, 3, 5, 5, device=device), weight, bias, relu=True)
    assert y.dtype == torch.bfloat16
    none = torch.empty(0, 3, 5, 5, device=device, dtype=torch.bfloat16)
    assert ops.frozen_conv3x3(none, weight, bias).shape == (0, 4, 5, 5)


def test_the_reference_keeps_dtypes_under_autocast(device):
    x, dy, w = (torch.randn(2, 4, *side, device=device) for side in ((6, 7), (6, 7), (3, 3)))
    w = w.repeat(2, 1, 1, 1)
    calls = (
        lambda: reference.conv3x3_train_fwd(x, w, None, True, False),
        lambda: reference.conv3x3_train_input_grad(dy, w, None, True),
        lambda: reference.conv3x3_train_weight_grad(dy, x),
    )
    for call in calls:
        plain = call()
        with torch.autocast(device.type, torch.bfloat16):
            assert torch.equal(call(), plain)


def test_opcheck(device):
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    x, weight, bias = torch.randn(2, 4, 6, 5), torch.randn(6, 4, 3, 3), torch.randn(6)
    x, weight = x.to(device, dtype, memory_format=LAST), weight.to(device, dtype)
    weight = weight.contiguous(memory_format=weight_layout(weight))
    raw = torch.ops.faststy
    for reflect, relu in ((True, False), (False, True)):
        given = (x, weight, bias.to(device, dtype), reflect, relu)
        torch.library.opcheck(raw.conv3x3_train_fwd, given)
    turned = conv3x3_train._turned(weight)
    dy = torch.randn(2, 6, 6, 5).to(x).contiguous(memory_format=LAST)
    for gate, padded in ((None, True), (dy, False)):
        torch.library.opcheck(raw.conv3x3_train_input_grad, (dy, turned, gate, padded))
    torch.library.opcheck(raw.conv3x3_train_weight_grad, (dy, x))


def test_on_a_cpu_the_extension_takes_float32_in_channels_last():
    if dispatch.IMPL == "triton" or dispatch.choose("conv3x3_train", "cpu").name != "native":
        pytest.skip("the extension is not built, or not asked")
    x = torch.randn(1, 6, 8, 9, requires_grad=True)
    weight, bias = torch.randn(5, 6, 3, 3), torch.randn(5)
    last = x.contiguous(memory_format=LAST)
    assert "FrozenConv3x3" in type(ops.frozen_conv3x3(last, weight, bias).grad_fn).__name__
    assert "ReflectedConv3x3" in type(ops.reflected_conv3x3(last, weight, bias).grad_fn).__name__
    learns = weight.clone().requires_grad_()
    others = (
        ops.frozen_conv3x3(x, weight, bias),
        ops.frozen_conv3x3(last, learns, bias),  # a net that is distilled is differentiated twice
        ops.reflected_conv3x3(x, weight, bias),
    )
    with torch.autocast("cpu", torch.bfloat16):
        others += (ops.frozen_conv3x3(last, weight, bias), ops.reflected_conv3x3(last, weight))
    assert all("Conv3x3" not in type(y.grad_fn).__name__ for y in others)


def test_a_second_derivative_is_refused_for_weights_too(device):
    x = torch.randn(1, 8, 12, 12, device=device).to(memory_format=LAST).requires_grad_()
    weight = torch.randn(8, 8, 3, 3, device=device, requires_grad=True)
    half = torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")
    with half:
        if not conv3x3_train._fits(x, weight, True):
            pytest.skip("torch's own ops know it")
        y = ops.reflected_conv3x3(x, weight).square().sum()
    (dx,) = torch.autograd.grad(y, x, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivative"):
        torch.autograd.grad(dx.square().sum(), weight)


def test_a_checkpointed_step_unpacks_once(device):
    torch.manual_seed(0)
    x = torch.randn(1, 8, 12, 12, device=device).to(memory_format=LAST).requires_grad_()
    weight = torch.randn(8, 8, 3, 3, device=device, requires_grad=True)
    y = checkpoint(ops.reflected_conv3x3, x, weight, use_reentrant=False).square().sum()
    expected = torch.autograd.grad(ops.reflected_conv3x3(x, weight).square().sum(), x)
    found = torch.autograd.grad(y, x, create_graph=True)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_a_bias_that_learns_is_not_frozen(device):
    x = torch.randn(1, 3, 40, 40, device=device).to(memory_format=LAST)
    bias = torch.zeros(4, device=device, requires_grad=True)
    ops.frozen_conv3x3(x, torch.randn(4, 3, 3, 3, device=device), bias).sum().backward()
    torch.testing.assert_close(bias.grad, torch.full_like(bias, 1600.0))


@pytest.mark.parametrize(
    ("c", "side", "fits"), [(48, 512, True), (48, 6800, False), (16, 12000, False)]
)
def test_on_a_gpu_pictures_are_those_that_kernels_can_count(monkeypatch, c, side, fits):
    """Borders and biases of the backward pass are Triton's, with offsets in int32."""
    monkeypatch.setattr(conv3x3_train, "by_extension", lambda op, x: True)
    with FakeTensorMode():
        x, weight = (
            torch.empty(*size, device="cuda", dtype=torch.bfloat16)
            for size in ((1, c, side, side), (16, c, 3, 3))
        )
        assert conv3x3_train._fits(x, weight, True) == fits


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu_the_extension_takes_them():
    assert dispatch.choose("conv3x3_train", "cuda").name == "native"
    x = torch.randn(16, 16, 248, 248, device="cuda", dtype=torch.bfloat16)
    x = x.to(memory_format=torch.channels_last).requires_grad_()
    weight = torch.randn(16, 16, 3, 3, device="cuda", dtype=torch.bfloat16) / 12
    bias = torch.zeros(16, device="cuda", dtype=torch.bfloat16)
    y = ops.frozen_conv3x3(x, weight, bias, relu=True)
    assert "FrozenConv3x3" in type(y.grad_fn).__name__
    expected = F.conv2d(x.detach().float(), weight.float(), padding=1).relu()
    torch.testing.assert_close(y.float(), expected, atol=6e-2, rtol=6e-2)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.zeros(4, 5, 5)}, ValueError, r"x: expected \[N, C, H, W\]"),
        ({"x": torch.zeros(1, 4, 5, 5).int()}, TypeError, "got torch.int32"),
        ({"weight": torch.zeros(6, 5, 3, 3)}, ValueError, r"weight: .*\[K, 4, 3, 3\]"),
        ({"weight": [1]}, TypeError, "weight: expected a tensor, got list"),
        ({"bias": torch.zeros(5)}, ValueError, r"bias: expected \[K\]"),
    ],
)
def test_mistakes(change, error, message):
    given = {
        "x": torch.zeros(1, 4, 5, 5),
        "weight": torch.zeros(6, 4, 3, 3),
        "bias": torch.zeros(6),
        **change,
    }
    with pytest.raises(error, match=message):
        ops.frozen_conv3x3(**given)
