"""Which implementation computes a raw op: Triton or CUDA C++ on a GPU, C++ on a CPU, or PyTorch.

`FASTSTY_IMPL=auto|reference|triton|native` (read once, at import) forces one, where it has the op.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor

from faststy.errors import FaststyError
from faststy.ops import reference
from faststy.ops.autograd import is_transformed

CHOICES = ("auto", "reference", "triton", "native")
IMPL = os.environ.get("FASTSTY_IMPL", "auto").lower() or "auto"

# The library that all schemas are added to; a second import of this module would fail loudly.
LIBRARY = torch.library.Library("faststy", "DEF")  # type: ignore[no-untyped-call]

# op: where the kernels package keeps its launchers, or None where the extension alone computes it
KERNELS: dict[str, str | None] = {
    "gram": "faststy.kernels.gram",
    "gram_loss": "faststy.kernels.gram",
    "instance_norm": "faststy.kernels.instance_norm",
    "from_pixels": "faststy.kernels.pixels",
    "to_pixels": "faststy.kernels.pixels",
    "reflection_pad": "faststy.kernels.reflection_pad",
    "blur": "faststy.kernels.blur",
    "bias_activation": "faststy.kernels.bias_activation",
    "max_pool": "faststy.kernels.max_pool",
    "averages": "faststy.kernels.averages",
    "combined_loss": None,
    "discriminator_loss": None,
    "conv3x3": "faststy.kernels.conv3x3",
    "conv3x3_train": None,
    "conv3x3_train_weight_grad": None,
    "upsample": "faststy.kernels.upsample",
    "blur_cells": "faststy.kernels.upsample",
    "blur_cells_frames": "faststy.kernels.upsample",
    "repair_hints": "faststy.kernels.repair",
    "repair_apply": "faststy.kernels.repair",
}

# What the extension computes in float64, too.
NATIVE_FLOAT64 = ("gram", "gram_loss", "instance_norm")
# What it computes in float32 alone, on a CPU.
NATIVE_FLOAT32 = (
    "conv3x3",
    "conv3x3_train",
    "upsample",
    "blur_cells",
    "repair_hints",
    "repair_apply",
)
# What it also computes on a CUDA device, before Triton does, and of which arguments, by raw op.
NATIVE_FIRST = ("conv3x3", "conv3x3_train", "conv3x3_train_weight_grad", "from_pixels")
LIMITS: dict[str, Callable[..., bool]] = {}
LARGEST = 2**30  # values of a sample that kernels take: within it their offsets are int32
HALVES = (torch.float16, torch.bfloat16)
CAPABILITY = 8  # of CUDA devices, major: what the extension is compiled for
# Bytes of a multiprocessor's shared memory that convolutions ask for: an A100 has them and an H100,
# a GeForce has 100 KiB.
ROOM = dict.fromkeys(("conv3x3", "conv3x3_train", "conv3x3_train_weight_grad"), 160 << 10)


class Implementation(NamedTuple):
    """What computes the op `op` on tensors of `device`, and why that and nothing faster."""

    op: str
    device: str
    name: str
    why: str


def define(schema: str, fake: Callable[..., Any], limit: Callable[..., bool] | None = None) -> None:
    """Add a raw op to torch: its schema, its shapes, and an implementation chosen at the call.

    The raw ops know no gradient: the autograd Functions around them do. `limit` says which
    arguments the extension takes on a CUDA device.
    """
    name = schema[: schema.index("(")]
    if limit is not None:
        LIMITS[name] = limit
    LIBRARY.define(schema)  # type: ignore[no-untyped-call]
    LIBRARY.impl(  # type: ignore[no-untyped-call]
        name, lambda *args: implementation(name, args)(*args), "CompositeExplicitAutograd"
    )
    torch.library.register_fake(f"faststy::{name}", fake, lib=LIBRARY)


def implementation(raw: str, args: tuple[Any, ...]) -> Callable[..., Any]:
    """The function for the raw op `raw` (as `gram_fwd`) on arguments, of which some are tensors."""
    tensors: list[Tensor] = []
    for arg in args:
        if isinstance(arg, Tensor):
            tensors.append(arg)
        elif isinstance(arg, list):
            tensors += arg
    dtypes = set()
    for t in tensors:
        if not t.numel():  # there is nothing to do
            return getattr(reference, raw)  # type: ignore[no-any-return]
        dtypes.add(t.dtype)
    double, half = torch.float64 in dtypes, not dtypes.isdisjoint(HALVES)
    device = tensors[0].device.type
    fits = device != "cuda" or raw not in LIMITS or LIMITS[raw](*args)
    return _find(raw, device, double, half, fits)


@cache
def _find(raw: str, device: str, double: bool, half: bool, fits: bool) -> Callable[..., Any]:
    op = max((op for op in KERNELS if raw.startswith(op)), key=len)
    name = choose(op, device).name
    if name == "native" and not fits:
        name = "triton" if IMPL == "auto" and _no_triton(op, device) is None else "reference"
    if double and not (name == "native" and op in NATIVE_FLOAT64):  # it is for gradcheck
        name = "reference"
    if half and device == "cpu" and name == "native" and op in NATIVE_FLOAT32:
        name = "reference"
    if name == "triton":
        return launcher(op, raw, device)
    module: Any
    module = torch.ops.faststy_native if name == "native" else reference
    return getattr(module, raw)  # type: ignore[no-any-return]


def launcher(op: str, raw: str, device: str) -> Callable[..., Any]:
    """The Triton kernels' function for the raw op `raw` of `op`."""
    launch: Callable[..., Any] = getattr(import_module(str(KERNELS[op])), raw)
    return _on_its_device(launch) if device == "cuda" else launch


def _on_its_device(launcher: Callable[..., Any]) -> Callable[..., Any]:
    """Triton launches on the current device: make that the one of the first tensor."""

    def launch(*args: Any) -> Any:
        first = args[0][0] if isinstance(args[0], list) else args[0]
        with torch.cuda.device(first.device):
            return launcher(*args)

    return launch


def choose(op: str, device: str) -> Implementation:
    """The implementation of `op` on `device`. Raises FaststyError for one forced but missing."""
    if _impl() == "reference":
        return Implementation(op, device, "reference", "FASTSTY_IMPL=reference")
    missing = {"triton": _no_triton(op, device), "native": _no_native(op, device)}
    # Ops that the forced one does not have are chosen as ever.
    has = {
        "triton": KERNELS[op] is not None,
        "native": missing["native"] != _not_in_extension(op, device),
    }
    if IMPL != "auto" and has[IMPL]:
        if missing[IMPL] is not None:
            raise FaststyError(f"FASTSTY_IMPL={IMPL}: {op} on {device}: {missing[IMPL]}")
        return Implementation(op, device, IMPL, f"FASTSTY_IMPL={IMPL}")
    first = op in NATIVE_FIRST and missing["native"] is None  # before Triton
    if device == "cuda" and missing["triton"] is None and not first:
        return Implementation(op, device, "triton", "Triton kernels")
    if missing["native"] is None:
        return Implementation(op, device, "native", "C++ extension")
    wanted = "triton" if device == "cuda" and KERNELS[op] is not None else "native"
    why = missing[wanted] if device in ("cpu", "cuda") else None
    return Implementation(op, device, "reference", why or f"there are no kernels for {device}")


def _impl() -> str:
    """What FASTSTY_IMPL asks for. Raises FaststyError for what there is not."""
    if IMPL not in CHOICES:
        raise FaststyError(f"FASTSTY_IMPL={IMPL}: expected one of {', '.join(CHOICES)}")
    return IMPL


def by_kernels(x: Tensor, values: int = 0) -> bool:
    """Whether kernels take an op that torch has, too, on samples of `values` values like `x`.

    On a CPU torch's are taken, which tests and exports know; larger samples pass int32 offsets.
    """
    if is_watched():
        return False
    return (_impl() == "triton" or (IMPL == "auto" and x.is_cuda)) and values < LARGEST


def by_raw_op(op: str, x: Tensor, values: int) -> bool:
    """Whether the raw op `op` takes what torch has, too: as `by_kernels`, or by the extension.

    On a CPU torch is slow in channels_last; compilers know its own.
    """
    if by_kernels(x, values):
        return True
    suited = reference.layout(x) == reference.CHANNELS_LAST and x.dtype != torch.float64
    suited &= x.device.type == "cpu" and not (torch.compiler.is_compiling() or is_watched())
    return suited and by_extension(op, x)


def is_watched() -> bool:
    """Whether a trace, forward mode or a transform of torch.func is at work: torch's own ops alone
    are known to them."""
    return is_traced() or (is_transformed() and not torch.compiler.is_compiling())


def is_traced() -> bool:
    """Whether torch.jit.trace is at work; what it makes is to run where there is no faststy."""
    return not torch.compiler.is_compiling() and torch._C._get_tracing_state() is not None


def by_extension(op: str, x: Tensor) -> bool:
    """Whether the extension takes `op`, which torch has, too, on tensors like `x`."""
    device = x.device.type
    asked = _impl() in ("auto", "native") and device in ("cpu", "cuda")
    return asked and _is_native(op, device)


@cache
def _is_native(op: str, device: str) -> bool:
    return choose(op, device).name == "native"


def implementations() -> list[Implementation]:
    """What computes each op on each device of this machine, and why."""
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    found = []
    for device in devices:
        for op in KERNELS:
            try:
                found.append(choose(op, device))
            except FaststyError as error:
                found.append(Implementation(op, device, "none", str(error)))
    return found


def _no_triton(op: str, device: str) -> str | None:
    """Why the Triton kernels cannot be used on `device`, or None."""
    if KERNELS[op] is None:
        return f"there is no Triton kernel of {op}"
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if device != "cuda" and not interpreted:
        return "Triton needs a CUDA device (or TRITON_INTERPRET=1)"
    try:
        import_module("triton")
    except ImportError as error:
        return f"triton is not importable ({error})"
    try:
        import_module("faststy.kernels")
    except ImportError as error:
        return f"faststy.kernels is not installed ({error})"
    return None


def _no_native(op: str, device: str) -> str | None:
    """Why the C++ extension cannot be used on `device`, or None."""
    try:
        import_module("faststy._C")
    except ImportError as error:
        return f"the C++ extension is not built ({error})"
    for name in (f"{op}_fwd", op):
        if hasattr(torch.ops.faststy_native, name):
            key, qualified = device.upper(), f"faststy_native::{name}"
            if key in ("CPU", "CUDA") and _has_kernel(qualified, key):
                return _too_small(op) if device == "cuda" else None
    return _not_in_extension(op, device)


def _not_in_extension(op: str, device: str) -> str:
    return f"the C++ extension has no {op} for {device}"


@cache
def _too_small(op: str) -> str | None:
    """Why a GPU that is here cannot run the extension's `op`, or None."""
    if not torch.cuda.is_available():
        return None  # it is asked for, not used
    for gpu in map(torch.cuda.get_device_properties, range(torch.cuda.device_count())):
        if gpu.major < CAPABILITY:
            return f"the C++ extension needs GPUs of compute capability {CAPABILITY}.0"
        if gpu.shared_memory_per_multiprocessor < ROOM.get(op, 0):
            return f"{gpu.name} has too little shared memory for the C++ extension's {op}"
    return None


def _has_kernel(name: str, key: str) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(name, key)
