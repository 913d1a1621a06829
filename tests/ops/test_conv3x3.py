"""The fused 3x3 convolution against one in float64."""

import itertools
import os

import pytest
import torch
import torch.nn.functional as F

from faststy import ops
from faststy.ops import reference
from faststy.ops.conv3x3 import few_enough, weight_layout
from faststy.ops.dispatch import LIMITS

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
LAST = torch.channels_last
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 6e-2, torch.float16: 1e-2}


def arguments(n, channels, k, h, w, dtype=torch.float32, device="cpu"):
    generator = torch.Generator().manual_seed(n + k + h)
    make = lambda *size: torch.randn(*size, generator=generator).to(device, dtype)  # noqa: E731
    inputs = [make(n, c, h, w) for c in channels]
    weight = make(k, sum(channels), 3, 3) / (3 * sum(channels) ** 0.5)
    return inputs, weight, make(k), make(k), make(n, k, h, w)


def truth(inputs, weight, scale, bias, residual, activation):
    x = torch.cat([x.double() for x in inputs], 1)
    convolved = F.conv2d(F.pad(x, (1, 1, 1, 1), "reflect"), weight.double())
    y = convolved * scale.double()[..., None, None] + bias.double()[..., None, None]
    if residual is not None:
        y = y + residual.double()
    if activation is not None:
        y = F.leaky_relu(y, 0.2 if activation == "leaky_relu" else 0.0)
    variance, mean = torch.var_mean(convolved, (0, 2, 3), correction=0)
    return y, torch.stack([mean, variance])


@pytest.mark.parametrize(
    ("n", "channels", "k", "h", "w"),
    [
        (1, (48,), 48, 18, 35),
        (2, (16, 12), 16, 9, 7),  # two inputs
        (1, (24, 3), 5, 2, 2),  # the smallest
        (3, (3,), 12, 5, 33),
        (1, (7,), 33, 17, 4),  # whole vectors and a rest
        (1, (2,), 130, 3, 6),
        (2, (5, 1, 9), 20, 11, 19),  # three inputs, several tiles
        (1, (4,), 8, 2, 40),
    ],
)
@pytest.mark.parametrize("activation", [None, "relu", "leaky_relu"])
def test_against_float64(n, channels, k, h, w, activation, device):
    given = arguments(n, channels, k, h, w, device=device)
    inputs, weight, scale, bias, residual = given
    for added in (None, residual):
        expected, moments = truth(inputs, weight, scale, bias, added, activation)
        y, found = ops.conv3x3(
            inputs, weight, scale, bias, activation=activation, residual=added, moments=True
        )
        torch.testing.assert_close(y.double(), expected, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(found.double(), moments, atol=1e-5, rtol=1e-4)
        assert y.is_contiguous(memory_format=torch.channels_last)
    y, found = ops.conv3x3(inputs, weight)
    plain, _ = truth(inputs, weight, torch.ones_like(scale), torch.zeros_like(bias), None, None)
    torch.testing.assert_close(y.double(), plain, atol=1e-4, rtol=1e-4)
    assert found.shape == (0, k)


def test_scale_and_bias_of_each_sample(device):
    inputs, weight, *_, residual = arguments(3, (5, 2), 20, 9, 13, device=device)
    scale, bias = torch.randn(3, 2, 70, device=device)[:, :, 11:31].unbind(1)  # strided
    for s, b in ((scale, bias), (scale, bias[1]), (scale[2], bias)):
        expected, _ = truth(inputs, weight, s, b, residual, "relu")
        y, _ = ops.conv3x3(inputs, weight, s, b, activation="relu", residual=residual)
        torch.testing.assert_close(y.double(), expected, atol=1e-4, rtol=1e-4)


def test_moments_far_from_zero(device):
    """A mean much larger than the deviation must not cost the variance its digits."""
    x = torch.randn(1, 1, 64, 64, device=device) * 0.01 + 100
    weight = torch.zeros(1, 1, 3, 3, device=device)
    weight[..., 1, 1] = 1
    found = ops.conv3x3(x, weight, moments=True)[1]
    torch.testing.assert_close(found[0, 0], x.mean(), rtol=1e-6, atol=0)
    torch.testing.assert_close(found[1, 0], x.double().var(correction=0).float(), rtol=0.1, atol=0)


def test_nan_and_infinity_stay(device):
    x = torch.zeros(1, 2, 8, 8, device=device)
    x[0, 0, 4, 4] = float("nan")
    weight = torch.ones(3, 2, 3, 3, device=device)
    y, found = ops.conv3x3(x, weight, activation="relu", moments=True)
    assert y[0, :, 3:6, 3:6].isnan().all()
    assert found.isnan().all()


def test_relu_of_minus_infinity_is_zero(device):
    x, weight = torch.randn(1, 4, 6, 6, device=device), torch.randn(8, 4, 3, 3, device=device)
    bias = torch.full((8,), -torch.inf, device=device)
    y, _ = ops.conv3x3(x, weight, bias=bias, activation="relu")
    assert (y == 0).all()


def test_the_gpu_is_given_no_more_tiles_than_it_can_number():
    shapes = {(1, 16, 2160, 3840): True, (5, 16, 2160, 3840): False, (16, 16, 2048, 2048): False}
    for shape, fits in shapes.items():
        assert few_enough(torch.empty(shape, device="meta")) == fits


def test_what_the_gpu_is_given_fits_into_the_shared_memory_of_an_a100():
    """Weights and a tile of inputs, as csrc/conv3x3_cuda.cu lays them out."""
    x = torch.empty(1, 1, 64, 64, dtype=torch.float16, device="meta")
    taken = 0
    for c, k in itertools.product(range(1, 97), range(1, 65)):
        weight = torch.empty(k, c, 3, 3, dtype=torch.float16, device="meta")
        if LIMITS["conv3x3_fwd"]([x.expand(1, c, 64, 64)], weight, None, None, None):
            padded, filters = c + -c % 16, k + -k % 8
            weights, tile = filters * 2 * (9 * padded + 8), 10 * 34 * 2 * (padded + 8)
            assert weights + tile <= (163 - 6) << 10, (c, k)
            taken += 1
    assert taken > 3000


def test_nan_stays_where_it_is(device):
    """It does not come from places that no tap reads, and infinities have their sign."""
    x = torch.zeros(2, 3, 20, 37, device=device)
    x[1, 2, 9, 17] = float("nan")
    x[0, 1, 0, 0] = float("inf")
    y, _ = ops.conv3x3(x, -torch.ones(5, 3, 3, 3, device=device), activation="relu")
    bad = torch.zeros_like(y, dtype=torch.bool)
    bad[1, :, 8:11, 16:19] = True
    if device.type == "cuda" or INTERPRETED:  # minimal filtering takes whole tiles along
        assert torch.equal(y.isnan(), bad)
        assert torch.equal(y[0], torch.zeros_like(y[0]))
    assert y[bad].isnan().all()


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_layouts_and_dtypes(dtype, device):
    inputs, weight, scale, bias, residual = arguments(2, (8,), 12, 10, 14, dtype, device)
    expected, _ = truth(inputs, weight, scale, bias, residual, "relu")
    last = torch.channels_last
    weight = weight.to(memory_format=last)
    for x, added in [
        (inputs[0], residual),
        (inputs[0].to(memory_format=last), residual.to(memory_format=last)),
        (inputs[0].mT.contiguous().mT, residual),
    ]:
        y, _ = ops.conv3x3(x, weight, scale, bias, activation="relu", residual=added)
        tolerance = TOLERANCE[dtype]
        torch.testing.assert_close(y.double(), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_autocast_changes_nothing(dtype, device):
    inputs, weight, scale, bias, residual = arguments(1, (8,), 8, 9, 7, dtype, device)
    x, residual = (t.contiguous(memory_format=LAST) for t in (*inputs, residual))
    weight = weight.contiguous(memory_format=weight_layout(weight))
    for raw in (torch.ops.faststy.conv3x3_fwd, reference.conv3x3_fwd):
        plain = raw([x], weight, scale, bias, residual, 0.0, True)
        with torch.autocast(device.type, torch.bfloat16):
            found = raw([x], weight, scale, bias, residual, 0.0, True)
        assert found[0].dtype == dtype
        assert torch.equal(found[0], plain[0])
        assert torch.equal(found[1], plain[1])


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_moments_of_several_inputs(dtype, device):
    """In half precision they are those of sums that were not rounded yet."""
    inputs, weight, scale, bias, residual = arguments(3, (6, 3), 7, 19, 35, dtype, device)
    expected, moments = truth(inputs, weight, scale, bias, residual, "leaky_relu")
    y, found = ops.conv3x3(
        inputs, weight, scale, bias, activation="leaky_relu", residual=residual, moments=True
    )
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(y.double(), expected, atol=tolerance, rtol=tolerance)
    assert found.dtype == torch.float32
    if device.type == "cuda" or INTERPRETED or dtype == torch.float32:
        tolerance = 1e-5
    torch.testing.assert_close(found.double(), moments, atol=tolerance, rtol=tolerance)


def test_residual_of_another_dtype(device):
    inputs, weight, scale, bias, residual = arguments(1, (8,), 12, 10, 14, torch.float16, device)
    expected, _ = truth(inputs, weight, scale, bias, residual, None)
    for dtype in (torch.float32, torch.bfloat16):
        y, _ = ops.conv3x3(inputs, weight, scale, bias, residual=residual.to(dtype))
        assert y.dtype == torch.float16
        torch.testing.assert_close(y.double(), expected, atol=3e-2, rtol=1e-2)
        half = torch.empty_like(residual, device="meta")
        fits = LIMITS["conv3x3_fwd"]
        assert fits(inputs, weight, scale, bias, half)
        assert not fits(inputs, weight, scale, bias, half.to(dtype))


def test_the_same_bits_again_and_weights_of_now(device):
    inputs, weight, scale, bias, _ = arguments(2, (12,), 16, 21, 37, device=device)
    first, second = (ops.conv3x3(inputs, weight, scale, bias, moments=True) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    weight *= 2
    scale = scale.repeat_interleave(3)[::3]  # not contiguous
    expected, moments = truth(inputs, weight, scale, bias, None, None)
    y, found = ops.conv3x3(inputs, weight, scale, bias, moments=True)
    torch.testing.assert_close(y.double(), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.double(), moments, atol=1e-5, rtol=1e-4)


@pytest.mark.skipif(INTERPRETED, reason="the interpreter has one thread")
def test_any_number_of_threads_gives_the_same_bits():
    inputs, weight, scale, bias, _ = arguments(1, (48,), 48, 70, 61)
    results, threads = [], torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(ops.conv3x3(inputs, weight, scale, bias, moments=True))
    finally:
        torch.set_num_threads(threads)
    for y, moments in results[1:]:
        assert torch.equal(y, results[0][0])
        assert torch.equal(moments, results[0][1])


def test_opcheck(device):
    inputs, weight, scale, bias, residual = arguments(1, (4, 3), 6, 5, 7, device=device)
    inputs = [x.to(memory_format=torch.channels_last) for x in inputs]
    residual = residual.to(memory_format=torch.channels_last)
    raw = torch.ops.faststy.conv3x3_fwd
    torch.library.opcheck(raw, (inputs, weight, scale, bias, residual, 0.2, True))
    torch.library.opcheck(raw, (inputs, weight, None, None, None, 1.0, False))
    torch.library.opcheck(
        raw, ([inputs[0].double()], weight[:, :4].double(), *[None] * 3, 1.0, True)
    )


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"inputs": []}, ValueError, "inputs: expected a tensor, or several"),
        ({"inputs": torch.zeros(1, 4, 5)}, ValueError, r"inputs: expected \[N, C, H, W\]"),
        ({"inputs": torch.zeros(1, 4, 1, 5)}, ValueError, "two rows and columns or more, got 1 x"),
        ({"inputs": [torch.zeros(1, 2, 5, 5), torch.zeros(1, 2, 5, 6)]}, ValueError, "one batch"),
        ({"inputs": torch.zeros(1, 4, 5, 5).int()}, TypeError, "got torch.int32"),
        (
            {"inputs": [torch.zeros(1, 2, 5, 5), torch.zeros(1, 2, 5, 5).half()]},
            TypeError,
            "inputs: expected torch.float32 as the weight, got torch.float16",
        ),
        ({"weight": torch.zeros(6, 4, 3, 3).half()}, TypeError, "inputs: expected torch.float16"),
        ({"weight": None}, TypeError, "weight: expected a tensor, got NoneType"),
        ({"weight": torch.zeros(6, 5, 3, 3)}, ValueError, r"weight: .*\[6, 4, 3, 3\]"),
        ({"scale": torch.zeros(5)}, ValueError, r"scale: expected \[K\] = \[6\] or .* got \[5\]"),
        ({"bias": torch.zeros(2, 6)}, ValueError, r"bias: expected \[K\]"),
        ({"residual": torch.zeros(1, 6, 5, 4)}, ValueError, "residual: expected"),
        ({"activation": "silu"}, ValueError, "activation: expected relu"),
    ],
)
def test_mistakes(change, error, message):
    given = {"inputs": torch.zeros(1, 4, 5, 5), "weight": torch.zeros(6, 4, 3, 3), **change}
    with pytest.raises(error, match=message):
        ops.conv3x3(**given)
