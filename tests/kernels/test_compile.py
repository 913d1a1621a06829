"""Every kernel is compiled for GPUs that need not be there, in the configurations that launchers
choose: they run on meta tensors, their launches are recorded, and Triton compiles each."""

from __future__ import annotations

import functools
import itertools
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import pytest
import torch

triton = pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter compiles nothing", allow_module_level=True)

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402
from triton.runtime.jit import JITFunction  # noqa: E402

from faststy.kernels import (  # noqa: E402
    autotune,
    averages,
    bias_activation,
    blur,
    conv3x3,
    gram,
    instance_norm,
    max_pool,
    pixels,
    reflection_pad,
    repair,
    upsample,
)

# Compute capability: shared memory that one program may use, in bytes.
CHIPS = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
TYPES = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.uint8: "*u8",
}
OPTIONS = ("num_warps", "num_stages")


class Launch(NamedTuple):
    """A launch, as far as the compiler sees it; hashable, so that equal ones compile once."""

    kernel: JITFunction
    arguments: tuple[Any, ...]  # per parameter: (type, whether a multiple of 16 or the value)
    options: tuple[tuple[str, int], ...]

    def __str__(self) -> str:
        values = dict(zip(self.kernel.arg_names, self.arguments, strict=True))
        shown = {k: v[1] for k, v in values.items() if k.isupper() and v[0] == "constexpr"}
        return f"{self.kernel.fn.__name__} {self.arguments[0]} {shown} {dict(self.options)}"


class Resources(NamedTuple):
    registers: int
    stack: int  # bytes of local memory: spills and arrays
    shared: int
    ptx: str


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Launches within are recorded instead of run."""
    launches: list[Launch] = []

    def run(kernel: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        options = tuple((k, kwargs.pop(k)) for k in OPTIONS if k in kwargs)
        values = [*args, *(kwargs.pop(p.name) for p in kernel.params[len(args) :])]
        assert not kwargs
        pairs = zip(kernel.params, values, strict=True)
        arguments = tuple(
            ("constexpr", v) if p.is_constexpr else _typed(v, not p.do_not_specialize)
            for p, v in pairs
        )
        launches.append(Launch(kernel, arguments, options))

    with mock.patch.object(JITFunction, "run", run):
        yield launches


def _typed(value: Any, specialise: bool = True) -> Any:
    """How Triton specialises a run-time argument."""
    if isinstance(value, tuple):
        return tuple(_typed(v) for v in value)
    if not specialise:
        return ("i32", False)
    if value is None or (isinstance(value, int) and value == 1):
        return ("constexpr", value)
    if isinstance(value, torch.Tensor):
        return (TYPES[value.dtype], True)
    if isinstance(value, float):
        return ("fp32", False)
    return ("i32" if abs(value) < 2**31 else "i64", value % 16 == 0)


def compiled(launch: Launch, chip: int) -> Resources:
    """Compile a launch to machine code and read what it needs."""
    signature: dict[str, Any] = {}
    constexprs: dict[tuple[int, ...], Any] = {}
    attrs: dict[tuple[int, ...], Any] = {}

    def describe(argument: Any, path: tuple[int, ...]) -> Any:
        if not isinstance(argument[0], str):
            return tuple(describe(a, (*path, i)) for i, a in enumerate(argument))
        kind, extra = argument
        if kind == "constexpr":
            constexprs[path] = extra
        elif extra:
            attrs[path] = [["tt.divisibility", 16]]
        return kind

    for i, (name, argument) in enumerate(
        zip(launch.kernel.arg_names, launch.arguments, strict=True)
    ):
        signature[name] = describe(argument, (i,))
    source = ASTSource(launch.kernel, signature, constexprs, attrs)
    target = GPUTarget("cuda", chip, 32)
    binary = triton.compile(source, target=target, options=dict(launch.options))
    return Resources(*_usage(binary.asm["cubin"]), binary.metadata.shared, binary.asm["ptx"])


def _usage(cubin: bytes) -> tuple[int, int]:
    """Registers and bytes of stack, by the tool that comes with Triton."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool), "--dump-resource-usage", file.name]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) .*?LOCAL:(\d+)", text)
    assert found is not None, text
    registers, stack, local = map(int, found.groups())
    return registers, stack + local


# Shapes that between them make the heuristics choose every tile and plan, aligned or not; and in
# which layouts, where not both tell something.
PLANAR, LAST = False, True
NORM_SHAPES = [
    ((4, 48, 32, 32), (PLANAR, LAST)),
    ((1, 32, 1080, 1920), (PLANAR, LAST)),
    ((1, 513, 33, 31), (PLANAR, LAST)),
    ((1, 64, 127, 127), (PLANAR, LAST)),
    ((2, 132, 144, 144), (PLANAR,)),  # looped
    ((8, 131, 131, 129), (PLANAR,)),
    ((32, 128, 60, 48), (LAST,)),
    ((8, 131, 60, 45), (LAST,)),
    ((1, 48, 540, 960), (LAST,)),
]
GRAM_SHAPES = [
    (4, 16, 64, 64),
    (4, 32, 64, 64),
    (4, 48, 64, 64),
    (1, 128, 40, 40),
    (1, 512, 32, 32),
    (1, 131, 9, 9),
    (64, 80, 62, 62),
    (64, 160, 31, 31),
    (4, 3, 40, 40),
    (1, 63, 9, 9),
    (1, 27, 9, 9),
    (1, 11, 9, 9),
]
# Channels of the inputs and of the result: the generator's, the repairer's, and awkward ones.
CONV_SHAPES = [
    ((48,), 48),
    ((48,), 16),
    ((16, 12), 16),
    ((16,), 12),
    ((48, 48), 24),
    ((24, 3), 24),
    ((24,), 6),
    ((128,), 128),
    ((70,), 130),
]
BORDER_SHAPES = [(16, 48, 64, 64), (16, 28, 128, 128), (2, 3, 45, 31)]
# What follows convolutions: the encoder's, the discriminator's, the generator's head, and awkward.
AFTER_SHAPES = [
    (64, 16, 248, 248),
    (64, 80, 62, 62),
    (128, 24, 128, 128),
    (96, 12, 128, 128),
    (128, 1, 32, 32),
    (2, 513, 45, 31),
]
DTYPES = (torch.float32, torch.bfloat16)
PARTS = 6  # of all launches, for processes to share


def meta(*shape: int, dtype: torch.dtype = torch.float32, last: bool = False) -> torch.Tensor:
    layout = torch.channels_last if last else torch.contiguous_format
    return torch.empty(shape, dtype=dtype, device="meta", memory_format=layout)


def norm(shape: tuple[int, ...], dtype: torch.dtype, last: bool) -> None:
    """Launch instance norm forward and backward, with everything switched on."""
    n, c = shape[:2]
    x, w, m = meta(*shape, dtype=dtype, last=last), meta(c), meta(n, c)
    instance_norm.instance_norm_fwd(x, w, w, x, 1e-5, "silu")
    instance_norm.instance_norm_bwd(x, x, m, m, w, w, x, "silu", False)
    instance_norm.instance_norm_bwd(x, x, m, m, w, w, None, "relu", False)


def painting(height: int, width: int, dtype: torch.dtype) -> None:
    """Launch what paints and repairs a frame, beside convolutions."""
    frame = meta(1, height, width, 3, dtype=torch.uint8)
    h, w = height // 4, width // 4
    details, _ = repair.repair_hints(frame, frame)
    repair.repair_apply(frame, details, meta(1, 6, h, w, dtype=dtype, last=True), 0.5)
    upsample.upsample_fwd(meta(1, 16, h, w, dtype=dtype, last=True), 2)
    upsample.upsample_fwd(meta(1, 5, h, w, dtype=dtype, last=True), 3)
    upsample.blur_cells_fwd(meta(1, 12, 2 * h, 2 * w, dtype=dtype, last=True), 2)
    upsample.blur_cells_fwd(meta(1, 48, h, w, dtype=dtype, last=True), 4)
    upsample.blur_cells_frames(meta(1, 12, 2 * h, 2 * w, dtype=dtype, last=True), 2, 4 * h, 4 * w)


def grams(shape: tuple[int, ...], dtype: torch.dtype, last: bool) -> None:
    n, c = shape[:2]
    x, square = meta(*shape, dtype=dtype, last=last), meta(n, c, c)
    gram.gram_fwd(x, None)
    gram.gram_loss_fwd(x, meta(n, c), square)
    gram.gram_bwd(square, x, meta(n, c), meta(n))


def convolution(channels: tuple[int, ...], k: int, dtype: torch.dtype, everything: bool) -> None:
    make = lambda *shape: meta(*shape, dtype=dtype, last=len(shape) == 4)  # noqa: E731
    inputs = [make(1, c, 270, 480) for c in channels]
    weight, bias, residual = make(k, sum(channels), 3, 3), make(k), make(1, k, 270, 480)
    if everything:
        conv3x3.conv3x3_fwd(inputs, weight, bias, bias, residual, 0.2, True)
    else:
        conv3x3.conv3x3_fwd(inputs, weight, None, bias, None, 1.0, False)


def borders(shape: tuple[int, ...], dtype: torch.dtype, last: bool) -> None:
    x = meta(*shape, dtype=dtype, last=last)
    reflection_pad.reflection_pad_bwd(reflection_pad.reflection_pad_fwd(x, 1), 1, last)
    blur.blur_fwd(x)
    averages.averages_bwd(*averages.averages_fwd(x), *shape[2:], last)


def after_convolutions(shape: tuple[int, ...], dtype: torch.dtype, last: bool) -> None:
    x, bias = meta(*shape, dtype=dtype, last=last), meta(shape[1])
    for activation in ("relu", "leaky_relu"):
        bias_activation.bias_activation_fwd(x, bias, activation)
        for wanted in (False, True):
            bias_activation.bias_activation_bwd(x, x, activation, wanted)
    bias_activation.bias_activation_fwd(x, bias.to(dtype), "none")
    bias_activation.bias_activation_bwd(x, None, "none", True)
    max_pool.max_pool_bwd(max_pool.max_pool_fwd(x), x)


@functools.cache
def every_launch() -> list[Launch]:
    """The distinct launches of all ops over the shapes above, by the first rows of all tables."""
    with recorded() as launches:
        for (shape, layouts), dtype in itertools.product(NORM_SHAPES, DTYPES):
            for last in layouts:
                norm(shape, dtype, last)
        for dtype, last in itertools.product(DTYPES, (PLANAR, LAST)):
            x, m = meta(1, 64, 127, 127, dtype=dtype, last=last), meta(1, 64)
            instance_norm.instance_norm_stats(x, 1e-5)
            instance_norm.instance_norm_apply(x, m, m, m[0], m[0], x, "silu")
        # With nothing switched on: other registers, as fewer tensors are at hand.
        instance_norm.instance_norm_fwd(x, None, None, None, 1e-5, "none")
        instance_norm.instance_norm_bwd(x, x, m, m, None, None, None, "relu", True)
        for shape, dtype, last in itertools.product(GRAM_SHAPES, DTYPES, (PLANAR, LAST)):
            grams(shape, dtype, last)
        for c in (48, 128):
            half = meta(2, c, 32, 32, dtype=torch.float16)
            gram.gram_fwd(half, None)
            gram.gram_bwd(meta(2, c, c), half, None, None)
        for shape, dtype, last in itertools.product(BORDER_SHAPES, DTYPES, (PLANAR, LAST)):
            borders(shape, dtype, last)
        for shape, dtype, last in itertools.product(AFTER_SHAPES, DTYPES, (PLANAR, LAST)):
            after_convolutions(shape, dtype, last)
        reflection_pad.reflection_pad_bwd(meta(2, 16, 40, 40, last=LAST), 3, LAST)
        frames = meta(1, 1080, 1920, 3, dtype=torch.uint8)
        for last in (False, True):
            packed = pixels.from_pixels(frames, torch.float16, last, 4, 0.0, 1.0)
            pixels.to_pixels(packed, 4, 1080, 1920, 0.0, 1.0)
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            painting(1080, 1920, dtype)
        painting(4, 4, torch.float32)  # a single cell: sizes of 1 are constants to the compiler
        painting(28, 44, torch.float16)
        for (channels, k), everything in itertools.product(CONV_SHAPES, (True, False)):
            for dtype in (torch.float16, torch.float32):
                convolution(channels, k, dtype, everything)
        with mock.patch.object(conv3x3, "INT32", 0):
            convolution((48,), 48, torch.bfloat16, True)
    return list(dict.fromkeys(launches))


@functools.cache
def other_launches() -> list[Launch]:
    """What only tuning can choose: the other rows, on the shapes that need most registers."""
    chosen: dict[str, int] = {}
    met: set[int] = set()

    def nth(kernel: str, x: torch.Tensor, rows: tuple[Any, ...]) -> Any:
        met.add(len(rows))
        return rows[min(chosen["row"], len(rows) - 1)]

    with recorded() as launches, mock.patch.object(autotune, "fastest", nth):
        for row in range(1, 5):
            chosen["row"] = row
            for shape, layouts in NORM_SHAPES[2:4]:
                norm(shape, torch.float32, layouts[0])
                norm(shape, torch.bfloat16, layouts[-1])
            for shape in GRAM_SHAPES[:6]:
                grams(shape, torch.float32, LAST)
                grams(shape, torch.bfloat16, LAST)
            for channels, k in CONV_SHAPES[::2]:
                convolution(channels, k, torch.float16, True)
    assert max(met) == 5  # no row is left out
    known = set(every_launch())
    return [launch for launch in dict.fromkeys(launches) if launch not in known]


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("launches", [every_launch, other_launches])
def test_no_spills_and_shared_memory_within_the_chip(launches: Any, chip: int, part: int) -> None:
    bad = []
    for launch in launches()[part::PARTS]:
        needs = compiled(launch, chip)
        if needs.stack or needs.shared > CHIPS[chip]:
            bad.append(f"{launch}: {needs.stack} bytes spilled, {needs.shared} bytes shared")
    assert not bad, "\n".join(bad)


@pytest.mark.parametrize(("chip", "instruction"), [(80, "mma"), (90, "wgmma"), (100, "tcgen05")])
def test_convolutions_are_made_on_tensor_cores(chip: int, instruction: str) -> None:
    """And both factors are read 16 bytes at a time where channels allow it."""
    with recorded() as launches:
        convolution((48,), 48, torch.float16, True)
    ptx = compiled(launches[0], chip).ptx
    assert f"{instruction}." in ptx
    sizes = re.findall(r"cp\.async\.c[ag]\.shared\.global [^;]*, 0x([0-9a-f]+)[,;]", ptx)
    assert sizes
    assert set(sizes) == {"10"}


def test_what_follows_convolutions_moves_16_bytes_at_a_time() -> None:
    """In channels_last and half precision, at every number of channels that is used."""
    with recorded() as launches:
        for c in (16, 24, 48, 80):
            x, bias = meta(64, c, 62, 62, dtype=torch.bfloat16, last=LAST), meta(c)
            bias_activation.bias_activation_fwd(x, bias, "relu")
            bias_activation.bias_activation_bwd(x, x, "relu", False)
            bias_activation.bias_activation_bwd(x, x, "relu", True)
            max_pool.max_pool_bwd(max_pool.max_pool_fwd(x), x)
    for launch in launches:
        ptx = compiled(launch, 90).ptx
        if "merge" not in str(launch):
            assert "ld.global.v4.b32" in ptx, launch
            assert "st.global.v4.b32" in ptx, launch
            assert not re.findall(r"(?:ld|st)\.global\.b16", ptx), launch
