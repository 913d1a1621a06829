"""The ops of `faststy.ops` against what people write in PyTorch, and against torch.compile of that.

Every op × shapes × memory layouts × dtypes, forward and forward + backward; on a CPU fewer shapes
in half precision, see `cpu_shapes`. Results, gradients too, are held against
`faststy.ops.reference` in float64. The floor by bytes: each input read once and each result written
once, forward; and again what backward needs. Operations: a Gram matrix is symmetric, so half of a
full product.

On a CPU the floor is no bound where tensors fit into its cache, and where it is that of a matrix
product in bfloat16: ours sum up in float32, and give Gram matrices in it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import combined_loss
import torch
import torch.nn.functional as F
from _bench import (
    BASELINE_TOLERANCE,
    DTYPES,
    OURS,
    TOLERANCES,
    Case,
    Prepared,
    compare,
    compiling,
    double,
    variants,
)
from _timing import Call, buffers
from torch import Tensor

from faststy import ops
from faststy.ops import reference

VARIANTS = (OURS, "eager", "group_norm", "compiled")
LAYOUTS = {"channels_last": torch.channels_last, "planar": torch.contiguous_format}
PACK = 4  # the generator takes cells of 4×4 pixels as channels
PAINTING = ("conv3x3+relu", "upsample", "blur_cells")
REPAIR = ("repair_hints", "repair_apply")
IN_FLOAT16 = (*PAINTING, *REPAIR, "blur_cells_frames", "from_pixels", "to_pixels")  # on a GPU
CONVOLUTIONS = ("reflected_conv3x3+relu", "frozen_conv3x3+relu")
# What a CPU computes by PyTorch in half precision.
IN_FLOAT32 = (*PAINTING, *REPAIR, *CONVOLUTIONS)
IN_LINES = ("reflection_pad", "max_pool", "averages")  # in channels_last; planes by PyTorch
LARGE = 2**23  # numbers; norms of so many take PyTorch up to a second, in bfloat16 on a CPU
LOSS_SCALE = 2.0**13  # gradients of Gram matrices are too small for float16 without

# A ReLU's gradient jumps at zero: among millions of values a few lie within rounding of it.
RELU_TOLERANCE = 2e-3


Results = Tensor | tuple[Tensor, ...]


class Job(NamedTuple):
    op: str
    shape: tuple[int, ...]  # [N, C, H, W]; of frames [N, H, W, C]
    layout: str
    dtype: str
    backward: bool

    def __str__(self) -> str:
        passes = "forward+backward" if self.backward else "forward"
        return f"{self.op} {list(self.shape)} {self.layout} {self.dtype} {passes}"


class Shapes(NamedTuple):
    cuda: list[tuple[int, ...]]
    cpu: list[tuple[int, ...]]


class Op(NamedTuple):
    """What is timed: `inputs` makes the arguments of the three others."""

    shapes: Shapes
    leaves: int  # the first so many inputs get gradients; 0: there is no backward
    inputs: Callable[[Job, torch.device], list[Any]]
    ours: Callable[..., Results]
    eager: Callable[..., Results]
    truth: Callable[..., Results]  # given float64 inputs
    cost: Callable[[Job], tuple[int, int]]  # bytes moved and operations, at least
    others: Mapping[str, Callable[..., Results]] = {}  # other ways to write it, by variant
    layouts: Sequence[str] = tuple(LAYOUTS)  # that make a difference


# Training at 256², batch 4 to 64, and 4K frames, whole and at a quarter of the resolution, the most
# telling first; on a CPU few of them.
NORMS = Shapes(
    cuda=[
        (16, 64, 256, 256),
        (1, 48, 540, 960),
        (4, 48, 64, 64),
        (8, 128, 64, 64),
        (64, 128, 64, 64),
        (4, 64, 256, 256),
        (1, 32, 2160, 3840),
    ],
    cpu=[(4, 48, 64, 64), (1, 48, 540, 960)],
)
GRAMS = Shapes(
    cuda=[
        (16, 64, 256, 256),
        (1, 48, 540, 960),
        (8, 128, 64, 64),
        (4, 64, 256, 256),
        (4, 512, 32, 32),
        (4, 256, 64, 64),
    ],
    cpu=[(4, 16, 248, 248), (4, 80, 62, 62), (4, 160, 31, 31)],  # what the encoder's taps see
)
FRAMES = Shapes(
    cuda=[(1, 2160, 3840, 3), (4, 256, 256, 3)], cpu=[(4, 256, 256, 3), (1, 1080, 1920, 3)]
)
# What painting a frame of 1080p takes, and of 4K.
FEATURES = Shapes(cuda=[(1, 48, 540, 960)], cpu=[(1, 48, 270, 480)])
RISING = Shapes(cuda=[(1, 16, 540, 960)], cpu=[(1, 16, 135, 240), (1, 16, 270, 480)])
# Of 540p, and of 1080p: there eager's temporaries are so large that malloc gives them back to the
# system each time, and new pages may take far longer than the arithmetic, as the machine likes.
CELLS = Shapes(cuda=[(1, 12, 1080, 1920)], cpu=[(1, 12, 270, 480), (1, 12, 540, 960)])
# What training at 256² pads, in steps of 16 on CUDA and of 2 on a CPU, and looks at.
PADS = Shapes(cuda=[(16, 48, 64, 64), (16, 28, 128, 128)], cpu=[(2, 48, 64, 64)])
PICTURES = Shapes(cuda=[(16, 3, 256, 256)], cpu=[(2, 3, 256, 256)])
# What follows the encoder's convolutions there.
AFTER = Shapes(cuda=[(16, 16, 248, 248), (16, 80, 62, 62)], cpu=[(2, 16, 248, 248)])
# What the generator's convolutions take in training, and the encoder's.
LEARNING = Shapes(cuda=[(16, 48, 64, 64)], cpu=[(4, 48, 64, 64)])
FROZEN = Shapes(cuda=[(16, 32, 124, 124)], cpu=[(4, 80, 62, 62)])
REPAIRED = Shapes(cuda=[(1, 2160, 3840, 3)], cpu=[(1, 720, 1280, 3)])


# --------------------------------------------------------------------------- inputs


def features(job: Job, device: torch.device) -> Tensor:
    x = torch.randn(job.shape, device=device).to(DTYPES[job.dtype])
    return x.contiguous(memory_format=LAYOUTS[job.layout])


def norm_inputs(job: Job, device: torch.device) -> list[Any]:
    weight, bias = torch.randn(2, job.shape[1], device=device).to(DTYPES[job.dtype])
    return [features(job, device) * 2 + 1, weight + 1, bias]


def residual_inputs(job: Job, device: torch.device) -> list[Any]:
    return [*norm_inputs(job, device), features(job, device)]


def gram_inputs(job: Job, device: torch.device) -> list[Any]:
    return [features(job, device)]


def loss_inputs(job: Job, device: torch.device) -> list[Any]:
    c = job.shape[1]
    noise = torch.randn(c, c, device=device) * 0.1
    return [features(job, device), (torch.eye(c, device=device) * 2 + noise + noise.T) / c]


def bias_inputs(job: Job, device: torch.device) -> list[Any]:
    return [features(job, device), torch.randn(job.shape[1], device=device).to(DTYPES[job.dtype])]


def from_inputs(job: Job, device: torch.device) -> list[Any]:
    frames = torch.randint(0, 256, job.shape, dtype=torch.uint8, device=device)
    return [frames, DTYPES[job.dtype], job.layout == "channels_last"]


def to_inputs(job: Job, device: torch.device) -> list[Any]:
    n, h, w, c = job.shape
    packed = job._replace(shape=(n, c * PACK**2, h // PACK, w // PACK))
    return [features(packed, device)]


def blur_inputs(job: Job, device: torch.device) -> list[Any]:
    line = torch.tensor([0.25, 0.5, 0.25], dtype=DTYPES[job.dtype], device=device)
    kernel = (line[:, None] * line).repeat(job.shape[1] // 4, 1, 1, 1)  # eager takes it, on a GPU
    return [features(job, device), kernel]


def conv_inputs(job: Job, device: torch.device) -> list[Any]:
    k = job.shape[1]
    weight = torch.randn(k, k, 3, 3, device=device) / (9 * k) ** 0.5
    bias = torch.randn(k, device=device)
    return [features(job, device), *(t.to(DTYPES[job.dtype]) for t in (weight, bias))]


def hints_inputs(job: Job, device: torch.device) -> list[Any]:
    return [torch.randint(0, 256, job.shape, dtype=torch.uint8, device=device) for _ in range(2)]


def apply_inputs(job: Job, device: torch.device) -> list[Any]:
    n, h, w, _ = job.shape
    cells = job._replace(shape=(n, 6, h // reference.CELL, w // reference.CELL))
    details = torch.randn(n, 2, h, w, device=device) / 10
    return [hints_inputs(job, device)[0], details, features(cells, device), 1.0]


# --------------------------------------------------------------------------- what people write


def eager_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.relu(F.instance_norm(x, weight=weight, bias=bias))


def eager_residual(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
    return residual + F.instance_norm(x, weight=weight, bias=bias)


def group_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Instance norm as so many groups: on a CPU, forward, a fraction of F.instance_norm's time."""
    return F.group_norm(x, x.shape[1], weight, bias)


def eager_gram(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    flat = x.reshape(n, c, h * w)
    if x.dtype == torch.float16 and x.device.type == "cpu":  # which multiplies 100 times as slowly
        flat = flat.float()
    elif x.dtype == torch.float16:  # whose range the sums leave
        flat = flat / (c * h * w) ** 0.5
        return torch.bmm(flat, flat.mT).float()
    return torch.bmm(flat, flat.mT).float() / (c * h * w)


def eager_loss(x: Tensor, target: Tensor) -> Tensor:
    distance: Tensor = (eager_gram(x) - target).square().sum((1, 2))
    return (distance / target.square().sum()).mean()


def eager_from(frames: Tensor, dtype: torch.dtype, channels_last: bool) -> Tensor:
    x = F.pixel_unshuffle(frames.permute(0, 3, 1, 2).float() / 127.5 - 1, PACK).to(dtype)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return x.contiguous(memory_format=layout)


def eager_to(x: Tensor) -> Tensor:
    levels = (x.float() * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)
    return F.pixel_shuffle(levels, PACK).permute(0, 2, 3, 1).contiguous()  # of bytes, not of floats


def eager_conv(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.relu(F.conv2d(F.pad(x, (1, 1, 1, 1), "reflect"), weight, bias))


def eager_upsample(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear")


def eager_blur(x: Tensor, kernel: Tensor) -> Tensor:
    n, k, h, w = x.shape
    cells = x.reshape(n, 2, 2, k // 4, h, w).permute(0, 3, 4, 1, 5, 2)
    pixels = F.pad(cells.reshape(n, k // 4, 2 * h, 2 * w), (1, 1, 1, 1), "replicate")
    if x.device.type == "cuda":
        return F.conv2d(pixels, kernel, groups=k // 4)
    # Sums of shifted pictures: a convolution of each channel takes up to four times as long.
    y = 0.25 * (pixels[..., :-2] + pixels[..., 2:]) + 0.5 * pixels[..., 1:-1]
    return 0.25 * (y[..., :-2, :] + y[..., 2:, :]) + 0.5 * y[..., 1:-1, :]


def eager_frames(x: Tensor, kernel: Tensor) -> Tensor:
    levels = (eager_blur(x, kernel).float() * 255).round().clamp(0, 255).to(torch.uint8)
    return levels.permute(0, 2, 3, 1).contiguous()


def eager_averages(x: Tensor) -> tuple[Tensor, Tensor]:
    return F.avg_pool2d(x, 2), F.avg_pool2d(x, 4)


def eager_frozen(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.relu(F.conv2d(x, weight, bias, padding=1))


def true_hints(painted: Tensor, photo: Tensor) -> tuple[Tensor, Tensor]:
    """`reference.repair_hints` in float64."""
    a, b = (reference.detail(x.permute(0, 3, 1, 2).double() / 255) for x in (painted, photo))
    return torch.cat([a, b], dim=1), reference.structure(a, b)


def eager_pad(x: Tensor) -> Tensor:
    return F.pad(x, (1, 1, 1, 1), "reflect")


def eager_bias(x: Tensor, bias: Tensor) -> Tensor:
    return F.relu(x + bias[:, None, None])


# --------------------------------------------------------------------------- bytes and operations


def _values(job: Job) -> int:
    return math.prod(job.shape)


def _size(job: Job) -> int:
    return DTYPES[job.dtype].itemsize * _values(job)


def norm_cost(job: Job) -> tuple[int, int]:
    # x → y, by a sum, squares, a product and a sum; x, dy → dx, by two sums of products and three
    return (2 + 3 * job.backward) * _size(job), (6 + 8 * job.backward) * _values(job)


def residual_cost(job: Job) -> tuple[int, int]:
    moved, operations = norm_cost(job)
    # r is read, and dr is dy; after a ReLU, y says where, and dr is written
    again = 2 * (job.backward and "relu" in job.op)
    return moved + (1 + again) * _size(job), operations + (1 + again // 2) * _values(job)


def gram_cost(job: Job) -> tuple[int, int]:
    n, c, h, w = job.shape
    matrix, products = 4 * n * c * c, n * c * c * h * w
    moved = _size(job) + matrix
    return (
        moved + job.backward * (2 * _size(job) + matrix),
        products + job.backward * 2 * products,
    )


def loss_cost(job: Job) -> tuple[int, int]:
    # x, target → a number; x, target → dx
    target = 4 * job.shape[1] ** 2
    moved = (1 + 2 * job.backward) * _size(job) + (1 + job.backward) * target
    return moved, gram_cost(job)[1]


def pixels_cost(job: Job) -> tuple[int, int]:
    return _size(job) + _values(job), 2 * _values(job)


def conv_cost(job: Job) -> tuple[int, int]:
    k = job.shape[1]
    return 2 * _size(job) + 9 * k * k * DTYPES[job.dtype].itemsize, 18 * k * _values(job)


def upsample_cost(job: Job) -> tuple[int, int]:
    return 5 * _size(job), 4 * 8 * _values(job)


def blur_cost(job: Job) -> tuple[int, int]:
    return 2 * _size(job), 6 * _values(job)


def pad_cost(job: Job) -> tuple[int, int]:
    n, c, h, w = job.shape
    padded = n * c * (h + 2) * (w + 2) * DTYPES[job.dtype].itemsize
    return (1 + job.backward) * (_size(job) + padded), job.backward * _values(job)


def bias_cost(job: Job) -> tuple[int, int]:
    # x → y; y, dy → dx, and its sums
    return (2 + 3 * job.backward) * _size(job), (2 + 2 * job.backward) * _values(job)


def max_cost(job: Job) -> tuple[int, int]:
    n, c, h, w = job.shape
    pooled = n * c * (h // 2) * (w // 2)
    moved = _size(job) + pooled * DTYPES[job.dtype].itemsize  # x → y; dy and the places → dx
    return (1 + job.backward) * moved, 3 * pooled


def picture_blur_cost(job: Job) -> tuple[int, int]:
    return (1 + job.backward) * 2 * _size(job), (1 + job.backward) * 12 * _values(job)


def averages_cost(job: Job) -> tuple[int, int]:
    # x → a quarter and a sixteenth; these → dx
    moved = _size(job) + _size(job) // 4 + _size(job) // 16
    return (1 + job.backward) * moved, (1 + job.backward) * 2 * _values(job)


def training_cost(job: Job) -> tuple[int, int]:
    """Of a convolution that learns: x, w → y; dy, y, x, w → dx, dw."""
    moved, products = conv_cost(job)
    return (1 + 2 * job.backward) * moved, (1 + 2 * job.backward) * products


def frozen_cost(job: Job) -> tuple[int, int]:
    """Of one that does not: x, w → y; dy, y, w → dx."""
    moved, products = conv_cost(job)
    again = job.backward * (moved + _size(job))
    return moved + again, (1 + job.backward) * products


def frames_cost(job: Job) -> tuple[int, int]:
    return _size(job) + _values(job), 8 * _values(job)


def hints_cost(job: Job) -> tuple[int, int]:
    # two frames → two details and, of each cell, three numbers, in float32
    pixels = _values(job) // 3
    return 2 * _values(job) + 4 * (2 * pixels + 3 * pixels // 16), 28 * pixels


def apply_cost(job: Job) -> tuple[int, int]:
    # a frame, two details, six numbers of each cell → a frame
    pixels = _values(job) // 3
    heads = DTYPES[job.dtype].itemsize * 6 * pixels // 16
    return 2 * _values(job) + 8 * pixels + heads, 50 * pixels


OPS = {
    "instance_norm+relu": Op(
        NORMS,
        3,
        norm_inputs,
        lambda x, w, b: ops.instance_norm(x, w, b, activation="relu"),
        eager_norm,
        lambda x, w, b: reference.instance_norm(x, w, b, activation="relu"),
        norm_cost,
        {"group_norm": lambda x, w, b: F.relu(group_norm(x, w, b))},
    ),
    "instance_norm+residual": Op(
        NORMS,
        4,
        residual_inputs,
        lambda x, w, b, r: ops.instance_norm(x, w, b, residual=r),
        eager_residual,
        lambda x, w, b, r: reference.instance_norm(x, w, b, residual=r),
        residual_cost,
        {"group_norm": lambda x, w, b, r: r + group_norm(x, w, b)},
    ),
    "instance_norm+relu+residual": Op(
        NORMS,
        4,
        residual_inputs,
        lambda x, w, b, r: ops.instance_norm(x, w, b, activation="relu", residual=r),
        lambda x, w, b, r: F.relu(eager_residual(x, w, b, r)),
        lambda x, w, b, r: reference.instance_norm(x, w, b, activation="relu", residual=r),
        residual_cost,
        {"group_norm": lambda x, w, b, r: F.relu(r + group_norm(x, w, b))},
    ),
    "gram": Op(GRAMS, 1, gram_inputs, ops.gram, eager_gram, reference.gram, gram_cost),
    "gram_loss": Op(
        GRAMS, 1, loss_inputs, ops.gram_loss, eager_loss, reference.gram_loss, loss_cost
    ),
    "reflection_pad": Op(
        PADS, 1, gram_inputs, ops.reflection_pad, eager_pad, reference.reflection_pad, pad_cost
    ),
    "bias+relu": Op(
        AFTER._replace(cpu=[]),  # which leaves that to PyTorch
        2,
        bias_inputs,
        lambda x, b: ops.bias_activation(x, b, "relu"),
        eager_bias,
        lambda x, b: reference.bias_activation(x, b, "relu"),
        bias_cost,
    ),
    "max_pool": Op(
        AFTER, 1, gram_inputs, ops.max_pool, reference.max_pool, reference.max_pool, max_cost
    ),
    "blur": Op(
        PICTURES._replace(cpu=[]),
        1,
        gram_inputs,
        ops.blur,
        reference.blur,
        reference.blur,
        picture_blur_cost,
    ),
    "from_pixels": Op(
        FRAMES,
        0,
        from_inputs,
        lambda frames, dtype, last: ops.from_pixels(
            frames, dtype, channels_last=last, unshuffle=PACK, value_range=(-1, 1)
        ),
        eager_from,
        lambda frames, _, last: reference.from_pixels(frames, torch.float64, last, PACK, -1.0, 1.0),
        pixels_cost,
    ),
    "to_pixels": Op(
        FRAMES,
        0,
        to_inputs,
        lambda x: ops.to_pixels(x, shuffle=PACK, value_range=(-1, 1)),
        eager_to,
        lambda x: reference.to_pixels(x, PACK, x.shape[2] * PACK, x.shape[3] * PACK, -1.0, 1.0),
        pixels_cost,
    ),
    "conv3x3+relu": Op(
        FEATURES,
        0,
        conv_inputs,
        lambda x, w, b: ops.conv3x3(x, w, None, b, activation="relu")[0],
        eager_conv,
        lambda x, w, b: reference.conv3x3_fwd([x], w, None, b, None, 0.0, False)[0],
        conv_cost,
    ),
    "upsample": Op(
        RISING,
        0,
        gram_inputs,
        lambda x: ops.upsample(x, 2),
        eager_upsample,
        lambda x: reference.upsample_fwd(x, 2),
        upsample_cost,
    ),
    "blur_cells": Op(
        CELLS,
        0,
        blur_inputs,
        lambda x, kernel: ops.blur_cells(x, 2),
        eager_blur,
        lambda x, kernel: reference.blur_cells_fwd(x, 2),
        blur_cost,
    ),
    "blur_cells_frames": Op(
        CELLS._replace(cpu=[]),  # which takes blur_cells, then to_pixels
        0,
        blur_inputs,
        lambda x, kernel: ops.blur_cells_frames(x, 2, (2 * x.shape[2], 2 * x.shape[3])),
        eager_frames,
        lambda x, kernel: reference.blur_cells_frames(x, 2, 2 * x.shape[2], 2 * x.shape[3]),
        frames_cost,
    ),
    "averages": Op(
        PICTURES,
        1,
        gram_inputs,
        lambda x: tuple(ops.averages(x)),
        eager_averages,
        eager_averages,
        averages_cost,
    ),
    "reflected_conv3x3+relu": Op(
        LEARNING,
        3,
        conv_inputs,
        lambda x, w, b: ops.reflected_conv3x3(x, w, b, "relu"),
        eager_conv,
        eager_conv,
        training_cost,
        layouts=("channels_last",),
    ),
    "frozen_conv3x3+relu": Op(
        FROZEN,
        1,
        conv_inputs,
        lambda x, w, b: ops.frozen_conv3x3(x, w, b, relu=True),
        eager_frozen,
        eager_frozen,
        frozen_cost,
        layouts=("channels_last",),
    ),
    "repair_hints": Op(
        REPAIRED,
        0,
        hints_inputs,
        ops.repair_hints,
        reference.repair_hints,
        true_hints,
        hints_cost,
        layouts=("channels_last",),
    ),
    "repair_apply": Op(
        REPAIRED,
        0,
        apply_inputs,
        ops.repair_apply,
        reference.repair_apply,
        reference.repair_apply,
        apply_cost,
        layouts=("channels_last",),
    ),
}

MOST_SHAPES = max(len(shapes) for op in OPS.values() for shapes in op.shapes)


# --------------------------------------------------------------------------- one case


def upstream(y: Tensor) -> Tensor:
    """The gradient that arrives at a result."""
    if y.ndim == 4:
        return torch.randn_like(y)
    return (torch.randn_like(y) if y.ndim else torch.ones_like(y)) * LOSS_SCALE


def as_it_arrives(dy: Tensor, y: Tensor) -> Tensor:
    """`dy` in the strides of the result `y`: what comes after a variant in its own net takes, and
    gives back, tensors as that variant lays them out."""
    if dy.dtype == y.dtype and dy.stride() == y.stride():
        return dy
    return torch.empty_like(y).copy_(dy)


def tensors(y: Results) -> tuple[Tensor, ...]:
    return (y,) if isinstance(y, Tensor) else y


Sets = list[tuple[list[Any], tuple[Tensor, ...] | None]]  # inputs, and the gradients that arrive


def variant(function: Callable[..., Results], leaves: int, sets: Sets) -> Call:
    """Calls of `function` on the rotated inputs, backward too where gradients are at hand."""
    own: Sets = []
    for inputs, arriving in sets:
        if arriving is not None:
            results = [y.detach() for y in tensors(function(*inputs))]
            arriving = tuple(map(as_it_arrives, arriving, results))
        own.append((inputs, arriving))

    def call(i: int) -> tuple[Tensor, ...]:
        inputs, arriving = own[i]
        if arriving is None:
            with torch.no_grad():
                return tensors(function(*inputs))
        results = tensors(function(*inputs))
        return (*results, *torch.autograd.grad(results, inputs[:leaves], arriving))

    return call


def tolerance_of(job: Job, result: Tensor) -> float:
    tolerance = TOLERANCES[result.dtype]
    tolerance = max(tolerance, TOLERANCES[DTYPES[job.dtype]])
    return max(tolerance, RELU_TOLERANCE) if "relu" in job.op and job.backward else tolerance


def prepare(job: Job, device: torch.device, compiled: bool, only: Sequence[str] = ()) -> Prepared:
    op = OPS[job.op]
    # As training does, hold larger tensors once: the C library then keeps memory of that size.
    torch.empty(28 << 20, dtype=torch.uint8)
    sets: Sets = []
    count = 1
    while len(sets) < count:
        inputs = op.inputs(job, device)
        count = buffers(sum(t.nbytes for t in inputs if isinstance(t, Tensor)), device)
        arriving = None
        if job.backward:
            for t in inputs[: op.leaves]:
                t.requires_grad_()
            arriving = tuple(upstream(y.detach()) for y in tensors(op.ours(*inputs)))
        sets.append((inputs, arriving))

    truth: Any = variant(op.truth, op.leaves, double(sets[:1]))(0)

    def check(name: str, call: Call) -> None:
        results: Any = call(0)
        ours = name == OURS
        compare(results, truth, tolerance_of(job, results[0]) if ours else BASELINE_TOLERANCE)

    def compile_it() -> Call:
        torch._dynamo.reset()
        return variant(torch.compile(op.eager, dynamic=False), op.leaves, sets)

    makers: dict[str, Callable[[], Call]] = {
        OURS: partial(variant, op.ours, op.leaves, sets),
        "eager": partial(variant, op.eager, op.leaves, sets),
        **{name: partial(variant, write, op.leaves, sets) for name, write in op.others.items()},
    }
    if compiled:
        makers["compiled"] = compile_it
    calls, missing = variants(makers, check, only)
    moved, operations = op.cost(job)
    return Prepared(
        calls, missing, inputs=len(sets), bytes=moved, operations=operations, dtype=job.dtype
    )


# --------------------------------------------------------------------------- all cases


def jobs(device: torch.device, quick: bool) -> Iterator[Job]:
    """Every op before any other shape, in both layouts before any other dtype."""
    for i in range(1 if quick else len(DTYPES)):
        for nth in range(1 if quick else MOST_SHAPES):
            for layout, (name, op) in product(LAYOUTS, OPS.items()):
                if layout not in op.layouts:
                    continue
                if device.type == "cpu" and name in IN_LINES and layout == "planar":
                    continue
                dtype = dtypes_of(name, device)[i]
                shapes = op.shapes.cuda if device.type == "cuda" else cpu_shapes(name, dtype)
                for shape in shapes[nth : nth + 1]:
                    for backward in (False, True)[: 1 + bool(op.leaves)]:
                        yield Job(name, shape, layout, dtype, backward)


def dtypes_of(name: str, device: torch.device) -> tuple[str, ...]:
    """The dtypes of an op, that in which it is used first."""
    if device.type == "cpu":
        return ("float32", "bfloat16", "float16")
    return ("float16", "bfloat16", "float32") if name in IN_FLOAT16 else tuple(DTYPES)


def cpu_shapes(name: str, dtype: str) -> list[tuple[int, ...]]:
    """The shapes of an op that are measured on a CPU; in half precision fewer."""
    shapes = OPS[name].shapes.cpu
    if dtype == "float32":
        return shapes
    if name in IN_FLOAT32:
        return []
    if dtype == "float16":  # as no CPU trains in it
        return [] if name in IN_LINES else shapes[:1]
    return [shape for shape in shapes if math.prod(shape) < LARGE]


def cases(device: torch.device, quick: bool) -> list[Case]:
    found = []
    for job in jobs(device, quick):
        op = OPS[job.op]
        shapes = op.shapes.cuda if device.type == "cuda" else op.shapes.cpu
        telling = (dtypes_of(job.op, device)[0], "channels_last", shapes[0], bool(op.leaves))
        headline = (job.dtype, job.layout, job.shape, job.backward) == telling
        compiled = compiling(job.dtype, device, quick, headline)
        found.append(Case("ops", str(job), partial(prepare, job, device, compiled), headline))
    whole, *losses = combined_loss.cases(device, quick)
    each = sum(1 for _ in jobs(device, quick=True))
    found = [whole, *found[:each], *losses, *found[each:]]
    return sorted(found, key=lambda case: not case.headline)


def tune(chosen: Sequence[Case], device: torch.device, quick: bool) -> Iterator[str]:
    """Tune the kernels for the tensors of the `chosen` cases, and tell what came of each."""
    names = {case.name for case in chosen}
    tensors: dict[tuple[Any, ...], Job] = {}
    for job in jobs(device, quick):
        kernel = job.op.partition("+")[0].removesuffix("_loss")
        if str(job) in names and kernel in ("instance_norm", "gram", "conv3x3"):
            tensors.setdefault((kernel, job.shape, job.layout, job.dtype), job)
    for (kernel, *_), job in tensors.items():
        for t in ops.tune(features(job, device), kernels=(kernel,)):
            gain = t.default_seconds / t.seconds
            where = f"{list(job.shape)} {job.layout} {job.dtype}"
            row = tuple(t.best)
            yield f"{t.kernel} {where}: {t.seconds * 1e6:.0f} µs, {gain:.2f}× the default: {row}"
