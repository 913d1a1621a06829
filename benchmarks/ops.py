#!/usr/bin/env python3
"""The ops of `faststy.ops` against what people write in PyTorch, and against torch.compile of that.

    python benchmarks/ops.py [--quick] [--device cuda] [--filter 'gram .*bfloat16'] [--json FILE]

Every op × shapes × memory layouts × dtypes, forward and forward + backward. Before a number is
printed, the results (gradients too) are held against `faststy.ops.reference` in float64. The table
gives the median, how many times as long eager PyTorch and torch.compile take (with the interval
that holds the ratio with 95 % confidence), and the fraction of the *floor*: the time in which this
machine copies the bytes that the op must move or multiplies what it must multiply, whichever is
longer, at rates measured first. Bytes: each input read once and each result written once, forward;
and again what backward needs. Operations: a Gram matrix is symmetric, so half of a full product.

On a CPU the floor is no bound where tensors fit into its cache, and the ops are plain PyTorch too
unless the table's head says otherwise. Exit status: 0, or 1 if a result of ours was wrong.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from _timing import (
    Ratio,
    buffers,
    copy_bandwidth,
    machine,
    matrix_rate,
    measure,
    ratio,
    samplers,
)
from torch import Tensor

from faststy import ops
from faststy.files import write_text
from faststy.ops import reference

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32, "float16": torch.float16}
LAYOUTS = {"channels_last": torch.channels_last, "planar": torch.contiguous_format}
PACK = 4  # the generator takes cells of 4×4 pixels as channels
LOSS_SCALE = 2.0**13  # gradients of Gram matrices are too small for float16 without

# Relative error by norm that is allowed against float64. A ReLU's gradient jumps at zero: among
# millions of values a few lie within rounding of it.
TOLERANCES = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2, torch.uint8: 2e-3}
RELU_TOLERANCE = 2e-3
# Of the others: that they compute the same at all. Some sum gradients of weights in bfloat16.
BASELINE_TOLERANCE = 0.2


class Case(NamedTuple):
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
    inputs: Callable[[Case, torch.device], list[Any]]
    ours: Callable[..., Tensor]
    eager: Callable[..., Tensor]
    truth: Callable[..., Tensor]  # given float64 inputs
    cost: Callable[[Case], tuple[int, int]]  # bytes moved and operations, at least


# Training at 256², batch 4 and 8, and 4K frames, whole and at a quarter of the resolution; on a CPU
# few of them.
NORMS = Shapes(
    cuda=[
        (4, 48, 64, 64),
        (1, 48, 540, 960),
        (8, 128, 64, 64),
        (64, 128, 64, 64),
        (4, 64, 256, 256),
        (1, 32, 2160, 3840),
    ],
    cpu=[(4, 48, 64, 64), (1, 48, 540, 960)],
)
GRAMS = Shapes(
    cuda=[
        (8, 128, 64, 64),
        (1, 48, 540, 960),
        (4, 64, 256, 256),
        (4, 512, 32, 32),
        (4, 256, 64, 64),
    ],
    cpu=[(4, 48, 64, 64), (8, 128, 64, 64), (4, 512, 32, 32)],
)
FRAMES = Shapes(
    cuda=[(1, 2160, 3840, 3), (4, 256, 256, 3)], cpu=[(4, 256, 256, 3), (1, 1080, 1920, 3)]
)


# --------------------------------------------------------------------------- inputs


def features(case: Case, device: torch.device) -> Tensor:
    x = torch.randn(case.shape, device=device).to(DTYPES[case.dtype])
    return x.contiguous(memory_format=LAYOUTS[case.layout])


def norm_inputs(case: Case, device: torch.device) -> list[Any]:
    weight, bias = torch.randn(2, case.shape[1], device=device).to(DTYPES[case.dtype])
    return [features(case, device) * 2 + 1, weight + 1, bias]


def residual_inputs(case: Case, device: torch.device) -> list[Any]:
    return [*norm_inputs(case, device), features(case, device)]


def gram_inputs(case: Case, device: torch.device) -> list[Any]:
    return [features(case, device)]


def loss_inputs(case: Case, device: torch.device) -> list[Any]:
    c = case.shape[1]
    noise = torch.randn(c, c, device=device) * 0.1
    return [features(case, device), (torch.eye(c, device=device) * 2 + noise + noise.T) / c]


def from_inputs(case: Case, device: torch.device) -> list[Any]:
    frames = torch.randint(0, 256, case.shape, dtype=torch.uint8, device=device)
    return [frames, DTYPES[case.dtype], case.layout == "channels_last"]


def to_inputs(case: Case, device: torch.device) -> list[Any]:
    n, h, w, c = case.shape
    packed = case._replace(shape=(n, c * PACK**2, h // PACK, w // PACK))
    return [features(packed, device)]


# --------------------------------------------------------------------------- what people write


def eager_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.relu(F.instance_norm(x, weight=weight, bias=bias))


def eager_residual(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
    return residual + F.instance_norm(x, weight=weight, bias=bias)


def eager_gram(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    flat = x.reshape(n, c, h * w)
    if x.dtype == torch.float16:  # whose range the sums leave
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
    frames = F.pixel_shuffle(x.float() * 127.5 + 127.5, PACK).round().clamp(0, 255)
    return frames.to(torch.uint8).permute(0, 2, 3, 1).contiguous()


# --------------------------------------------------------------------------- bytes and operations


def _size(case: Case) -> int:
    size = DTYPES[case.dtype].itemsize
    for n in case.shape:
        size *= n
    return size


def norm_cost(case: Case) -> tuple[int, int]:
    return (2 + 3 * case.backward) * _size(case), 0  # x → y; x, dy → dx


def residual_cost(case: Case) -> tuple[int, int]:
    return (3 + 3 * case.backward) * _size(case), 0  # x, r → y; x, dy → dx, and dr is dy


def gram_cost(case: Case) -> tuple[int, int]:
    n, c, h, w = case.shape
    matrix, products = 4 * n * c * c, n * c * c * h * w
    moved = _size(case) + matrix
    return (
        moved + case.backward * (2 * _size(case) + matrix),
        products + case.backward * 2 * products,
    )


def pixels_cost(case: Case) -> tuple[int, int]:
    return _size(case) + _size(case) // DTYPES[case.dtype].itemsize, 0


OPS = {
    "instance_norm+relu": Op(
        NORMS,
        3,
        norm_inputs,
        lambda x, w, b: ops.instance_norm(x, w, b, activation="relu"),
        eager_norm,
        lambda x, w, b: reference.instance_norm(x, w, b, activation="relu"),
        norm_cost,
    ),
    "instance_norm+residual": Op(
        NORMS,
        4,
        residual_inputs,
        lambda x, w, b, r: ops.instance_norm(x, w, b, residual=r),
        eager_residual,
        lambda x, w, b, r: reference.instance_norm(x, w, b, residual=r),
        residual_cost,
    ),
    "gram": Op(GRAMS, 1, gram_inputs, ops.gram, eager_gram, reference.gram, gram_cost),
    "gram_loss": Op(
        GRAMS, 1, loss_inputs, ops.gram_loss, eager_loss, reference.gram_loss, gram_cost
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
}


# --------------------------------------------------------------------------- one case


class Wrong(Exception):
    """A result that is not what float64 says."""


def upstream(y: Tensor) -> Tensor:
    """The gradient that arrives at a result."""
    if y.ndim == 4:
        return torch.randn_like(y)
    return (torch.randn_like(y) if y.ndim else torch.ones_like(y)) * LOSS_SCALE


def variant(
    function: Callable[..., Tensor], leaves: int, sets: list[tuple[list[Any], Tensor | None]]
) -> Callable[[int], tuple[Tensor, ...]]:
    """Calls of `function` on the rotated inputs, backward too where a gradient is at hand."""

    def call(i: int) -> tuple[Tensor, ...]:
        inputs, dy = sets[i]
        if dy is None:
            with torch.no_grad():
                return (function(*inputs),)
        y = function(*inputs)
        return (y, *torch.autograd.grad(y, inputs[:leaves], dy))

    return call


def double(value: Any) -> Any:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    return value.detach().double().requires_grad_(value.requires_grad)


def compare(results: Any, truth: Any, tolerance: float) -> None:
    """Raises Wrong where a result, or a gradient, is off by more, relative to its norm."""
    for i, (a, b) in enumerate(zip(results, truth, strict=True)):
        name = f"gradient {i}" if i else "result"
        if a.shape != b.shape:
            raise Wrong(f"{name}: {list(a.shape)}, not {list(b.shape)}")
        a, b = a.detach().double(), b.detach().double()
        off = float((a - b).norm() / b.norm())
        if not off <= tolerance:  # NaN too
            raise Wrong(f"{name}: off by {off:.1e}, {tolerance:.0e} is allowed")


def tolerance_of(case: Case, result: Tensor) -> float:
    tolerance = TOLERANCES[result.dtype]
    tolerance = max(tolerance, TOLERANCES[DTYPES[case.dtype]])
    return max(tolerance, RELU_TOLERANCE) if "relu" in case.op and case.backward else tolerance


def run(case: Case, device: torch.device, seconds: float, compiled: bool) -> dict[str, Any]:
    """Check and time a case. Raises Wrong for a result of ours; baselines that fail are told."""
    torch.manual_seed(0)
    op = OPS[case.op]
    size = sum(t.nbytes for t in op.inputs(case, device) if isinstance(t, Tensor))
    sets = []
    for _ in range(buffers(size, device)):
        inputs = op.inputs(case, device)
        dy = None
        if case.backward:
            for t in inputs[: op.leaves]:
                t.requires_grad_()
            dy = upstream(op.ours(*inputs).detach())
        sets.append((inputs, dy))

    wide = [([double(t) for t in sets[0][0]], double(sets[0][1]))]
    truth = variant(op.truth, op.leaves, wide)(0)
    functions = {"ours": op.ours, "eager": op.eager}
    if compiled:
        torch._dynamo.reset()
        functions["compiled"] = torch.compile(op.eager, dynamic=False)
    calls, missing = {}, {}
    for name, function in functions.items():
        calls[name] = variant(function, op.leaves, sets)
        try:
            results = calls[name](0)
            ours = name == "ours"
            compare(results, truth, tolerance_of(case, results[0]) if ours else BASELINE_TOLERANCE)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            if name == "ours":
                raise
            missing[name] = f"{type(error).__name__}: {error}".splitlines()[0]
            del calls[name]
    del truth, wide, results

    timed, method = samplers(calls, len(sets), device)
    samples, steady = measure(timed, seconds)
    moved, operations = op.cost(case)
    return {
        **case._asdict(),
        "method": method,
        "buffers": len(sets),
        "rounds": len(samples["ours"]),
        "steady": steady,
        "seconds": {name: statistics.median(s) for name, s in samples.items()},
        "ratios": {
            n: ratio(s, samples["ours"])._asdict() for n, s in samples.items() if n != "ours"
        },
        "missing": missing,
        "bytes": moved,
        "operations": operations,
        "samples": samples,
    }


# --------------------------------------------------------------------------- all cases


def cases(device: torch.device, quick: bool) -> list[Case]:
    """The most telling first, as there may be no time for all."""
    cuda = device.type == "cuda"
    dtypes = list(DTYPES) if cuda else ["float32"]
    dtypes = dtypes[:1] if quick else dtypes
    found = []
    for dtype in dtypes:
        for layout in LAYOUTS:
            for name, op in OPS.items():
                shapes = op.shapes.cuda if cuda else op.shapes.cpu
                for shape in shapes[:1] if quick else shapes:
                    for backward in (False, True)[: 1 + bool(op.leaves)]:
                        found.append(Case(name, shape, layout, dtype, backward))
    return found


HEADER = (
    "| op | shape | layout | dtype | pass | median | eager takes | torch.compile takes | rate "
    "| of the floor |\n|---|---|---|---|---|--:|--:|--:|--:|--:|"
)


def row(result: dict[str, Any], rates: dict[str, float]) -> str:
    """A line of the table."""
    seconds: float = result["seconds"]["ours"]
    copying = result["bytes"] / rates["copy"]
    multiplying = result["operations"] / rates[result["dtype"]]
    if copying >= multiplying:
        rate = f"{result['bytes'] / seconds / 1e9:.1f} GB/s"
    else:
        rate = f"{result['operations'] / seconds / 1e12:.3g} TFLOP/s"

    def shown(name: str) -> str:
        if name not in result["ratios"]:
            return str(result["missing"].get(name, "not timed"))[:60]
        r = Ratio(**result["ratios"][name])
        return f"{r.median:.2f}× [{r.low:.2f}, {r.high:.2f}]"

    columns = (
        result["op"],
        "×".join(map(str, result["shape"])),
        result["layout"],
        result["dtype"],
        "forward+backward" if result["backward"] else "forward",
        f"{seconds * 1e6:.1f} µs" + ("" if result["steady"] else " (unsteady)"),
        shown("eager"),
        shown("compiled"),
        rate,
        f"{max(copying, multiplying) / seconds:.0%}",
    )
    return f"| {' | '.join(columns)} |"


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cuda = torch.cuda.is_available()
    parser.add_argument("--quick", action="store_true", help="few shapes, one dtype, shorter")
    parser.add_argument("--device", type=torch.device, default="cuda" if cuda else "cpu")
    parser.add_argument("--filter", type=re.compile, default="", help="a regular expression")
    parser.add_argument("--json", type=Path, help="where to keep all numbers")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop in time")
    args = parser.parse_args(argv)
    if args.device.type == "cuda" and not cuda:
        parser.error("--device cuda: there is no CUDA device here")
    if args.device.type not in ("cpu", "cuda"):
        parser.error(f"--device {args.device}: expected cpu or cuda")
    return args


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    device: torch.device = args.device
    deadline = time.perf_counter() + args.seconds
    chosen = [c for c in cases(device, args.quick) if args.filter.search(str(c))]
    if not chosen:
        print("no case matches --filter", file=sys.stderr)
        return 1
    on_cpu = device.type == "cpu"
    compiled = not (args.quick and on_cpu)  # compiling takes longer there than all the rest

    with torch.random.fork_rng(devices=[] if on_cpu else None):
        about = machine(device)
        dtypes = dict.fromkeys(c.dtype for c in chosen)
        rates = {
            "copy": copy_bandwidth(device),
            **{name: matrix_rate(device, DTYPES[name]) for name in dtypes},
        }
        print(f"{about['device']}, {about['threads']} threads, torch {about['torch']}, ", end="")
        print(f"Triton {about['triton']}, {about['date']}")
        print(f"copy {rates['copy'] / 1e9:.1f} GB/s, matrix product ", end="")
        print(", ".join(f"{name} {rates[name] / 1e12:.3g} TFLOP/s" for name in dtypes))
        implementations = [i._asdict() for i in ops.implementations() if i.device == device.type]
        for i in implementations:
            print(f"{i['op']}: {i['name']} ({i['why']})")
        if not compiled:
            print("torch.compile is left out of the quick form on a CPU")
        report: dict[str, Any] = {
            "machine": about,
            "settings": {"quick": args.quick, "filter": args.filter.pattern},
            "rates": rates,
            "implementations": implementations,
            "cases": [],
            "wrong": {},
            "left_out": {},
        }
        print(f"\n{HEADER}")
        for case in chosen:
            try:
                if time.perf_counter() > deadline:
                    raise TimeoutError
                result = run(case, device, 0.1 if args.quick else 0.3, compiled)
            except TimeoutError:
                report["left_out"][str(case)] = "no time"
            except torch.OutOfMemoryError:
                report["left_out"][str(case)] = "out of memory"
            except Exception as error:  # one broken kernel must not cost all other numbers
                report["wrong"][str(case)] = f"{type(error).__name__}: {error}"
            else:
                report["cases"].append(result)
                print(row(result, rates), flush=True)
            if args.json:  # after every case: what stops the run does not take the rest along
                write_text(args.json, json.dumps(report, indent=1) + "\n")
    print()
    for what in ("left_out", "wrong"):
        for name, why in report[what].items():
            print(f"{what.replace('_', ' ')}: {name}: {why.splitlines()[0]}")
    return 1 if report["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
