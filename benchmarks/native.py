#!/usr/bin/env python3
"""The C++ ops on the tensors of a real training step, against eager PyTorch and torch.compile.

    python benchmarks/native.py [--filter 'gram_loss .*120'] [--no-compile] [--json FILE]

Forward and backward on a CPU, batch 4, channels last as training has it: the features of the
generator and what the encoder's taps see of pictures of 256² and 128². The variants and checks are
those of the suite `ops`. A wrong result gets no number, and exit status 1.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from pathlib import Path
from typing import Any

import ops as suite
import torch
from _bench import OURS, Wrong, expression
from _timing import machine, measure, ratio, samplers

from faststy.errors import told
from faststy.files import write_text

CPU = torch.device("cpu")
GENERATOR = [(4, 48, 64, 64), (4, 48, 32, 32)]
TAPS = [
    *((4, 16, 248, 248), (4, 32, 124, 124), (4, 80, 62, 62), (4, 160, 31, 31)),
    *((4, 16, 120, 120), (4, 32, 60, 60), (4, 80, 30, 30), (4, 160, 15, 15)),
]
FRAMES = [(4, 256, 256, 3), (1, 1080, 1920, 3)]


SHAPES = {
    "instance_norm+relu+residual": GENERATOR,
    "instance_norm+relu": GENERATOR,
    "instance_norm+residual": GENERATOR,
    "gram_loss": TAPS,
    "from_pixels": FRAMES,
    "to_pixels": FRAMES,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--filter", type=expression, default="", help="a regular expression")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--seconds", type=float, default=0.5, help="of rounds, for each case")
    parser.add_argument("--json", type=Path, help="where to write all samples")
    args = parser.parse_args()
    torch.manual_seed(0)
    # As training does, hold larger tensors once: the C library then keeps memory of that size.
    torch.empty(28 << 20, dtype=torch.uint8)
    found: list[dict[str, Any]] = []
    wrong = 0
    print(f"{torch.get_num_threads()} threads, {machine(CPU)['cpu']}")
    print("| op | shape | ours | eager takes | torch.compile takes | |\n|---|---|--:|--:|--:|--:|")
    for op, shapes in SHAPES.items():
        for shape in shapes:
            backward = bool(suite.OPS[op].leaves)
            job = suite.Job(op, shape, "channels_last", "float32", backward)
            if not re.search(args.filter, str(job)):
                continue
            try:
                prepared = suite.prepare(job, CPU, not args.no_compile)
            except Wrong as error:
                print(f"{job}: {error}")
                wrong += 1
                continue
            timed, _ = samplers(prepared.calls, prepared.inputs, CPU)
            samples, _ = measure(timed, args.seconds)
            ours = statistics.median(samples[OURS])
            columns = [op, "×".join(map(str, shape)), f"{ours * 1e6:.0f} µs"]
            for other in ("eager", "compiled"):
                if other in samples:
                    r = ratio(samples[other], samples[OURS])
                    columns.append(f"{r.median:.2f}× [{r.low:.2f}, {r.high:.2f}]")
                else:
                    columns.append(prepared.missing.get(other, ""))
            columns.append(f"{prepared.bytes / ours / 1e9:.1f} GB/s")
            print(f"| {' | '.join(columns)} |", flush=True)
            found.append({"case": str(job), "samples": samples})
    if args.json:
        write_text(args.json, json.dumps({"machine": machine(CPU), "cases": found}) + "\n")
    return min(wrong, 1)


if __name__ == "__main__":
    with told():
        sys.exit(main())
