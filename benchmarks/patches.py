#!/usr/bin/env python3
"""How patchy calm places are painted: a table for docs/experiments.md.

    python benchmarks/patches.py [MODEL ...] [--photos DIR] [--count 10]

Of the photos those with the most calm places are painted in all styles of the models (the bundled
one by default). Told is, in grey levels, how much the mean colours of cells differ that are alike
in the photo: the root of `faststy.training.objective.patchiness`. A photo's own is the floor.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import fmean

import torch
import torch.nn.functional as F
from torch import Tensor

from faststy import assets
from faststy.errors import told
from faststy.pictures import list_pictures, read_picture
from faststy.stylization.stylizer import Stylizer
from faststy.tensors import to_tensor
from faststy.training.objective import PATCH, patchiness

LONG_SIDE = 512  # px
CALM = 0.03  # deviation of a cell's pixels, of 1, up to which it is calm


def calmness(photo: Tensor) -> float:
    """The share of calm cells."""
    mean = F.avg_pool2d(photo, PATCH)
    variance = F.avg_pool2d(photo.square(), PATCH) - mean.square()
    return (variance.sum(1) < CALM**2).float().mean().item()


def read(path: Path) -> Tensor:
    picture = read_picture(path).rgb
    picture.thumbnail((LONG_SIDE, LONG_SIDE))
    return to_tensor(picture)


def levels(painted: Tensor, photo: Tensor) -> float:
    return 255 * patchiness(painted, photo).clamp_min(0).sqrt().item()


@torch.inference_mode()
def main() -> None:
    raw = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("models", nargs="*", type=Path, default=[assets.model()])
    parser.add_argument("--photos", type=Path, help="folder; the bundled photos by default")
    parser.add_argument("--count", type=int, default=10, help="how many of them, the calmest")
    arguments = parser.parse_args()
    if arguments.count < 1:
        parser.error(f"--count {arguments.count}: it must be 1 or more")
    paths = list_pictures(arguments.photos) if arguments.photos else assets.photos()
    photos = sorted(map(read, paths), key=calmness)[-arguments.count :]
    print(f"the photos' own: {fmean(levels(photo, photo) for photo in photos):.1f}")
    print("| style | painted | repaired |\n|---|--:|--:|")
    for path in arguments.models:
        stylizer = Stylizer.load(path)
        repairs = (0, 1) if stylizer.model.repairer is not None else (0,)
        for style in stylizer.styles:
            painted, *repaired = (
                fmean(levels(to_tensor(stylizer(p, style=style, repair=r)), p) for p in photos)
                for r in repairs
            )
            shown = f"{repaired[0]:.1f}" if repaired else "–"
            print(f"| {style.replace('_', ' ')} | {painted:.1f} | {shown} |", flush=True)


if __name__ == "__main__":
    with told():
        main()
