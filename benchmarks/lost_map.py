#!/usr/bin/env python3
"""Whether the lost-content map finds what a painting lost: F1 scores for docs/method.md.

    python benchmarks/lost_map.py [--photos DIR] [--count 6]

Squares are erased from paintings in all ready styles, by another painting or by a flat colour, and
looked for: by the encoder's map, and by the map that the repairer predicts without an encoder. What
was marked before the square was erased counts neither way, and, in the strict score, as wrong:
strong styles lose content elsewhere, too.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from faststy import assets
from faststy.errors import told
from faststy.model_file import load_model
from faststy.nn.encoder import Encoder
from faststy.nn.lost_content import CONTENT_TAP, lost_content, lost_regions
from faststy.pictures import list_pictures, read_picture, scale_down
from faststy.tensors import to_tensor

SIDE = 240  # px, of the photos


def squares(height: int, width: int, seed: int) -> Tensor:
    """Where three squares of a fifth to a third of the short side lie: bool [1, 1, H, W]."""
    rng = np.random.default_rng(seed)
    mask = torch.zeros(1, 1, height, width, dtype=torch.bool)
    for _ in range(3):
        side = int(min(height, width) * rng.uniform(0.2, 0.35))
        top, left = rng.integers(height - side), rng.integers(width - side)
        mask[..., top : top + side, left : left + side] = True
    return mask


def f1(found: Tensor, true: Tensor) -> float:
    return 2 * (found & true).sum().item() / max((found.sum() + true.sum()).item(), 1)


@torch.inference_mode()
def scores(photos: list[Tensor]) -> dict[tuple[str, str], list[tuple[float, float]]]:
    """F1, and the strict one, of each painting; by map and by what the squares are filled with."""
    model, encoder = load_model(assets.model()), Encoder()
    assert model.repairer is not None
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for number, photo in enumerate(photos):
        taps = encoder(photo, taps=CONTENT_TAP + 1)
        structured = lost_regions(torch.ones_like(taps[CONTENT_TAP][:, :1]), taps)
        another = F.interpolate(photos[number - 1], photo.shape[-2:], mode="bilinear")
        for index, style in enumerate(torch.eye(len(model.info.styles))):
            painted, other = (model.generator(x, style) for x in (photo, another))
            mask = squares(*photo.shape[-2:], seed=100 * number + index)
            place = F.interpolate(mask.float(), taps[CONTENT_TAP].shape[-2:], mode="area") > 0.5
            true = structured & place
            flat = painted.mean((2, 3), keepdim=True).expand_as(painted)
            for fill, with_what in (("another painting", other), ("a flat colour", flat)):
                damaged = torch.where(mask, with_what, painted)
                before, after = (
                    (lost_content(encoder(x), taps), _predicted(model.repairer, x, photo, place))
                    for x in (painted, damaged)
                )
                for name, old, new in zip(("encoder", "repairer"), before, after, strict=True):
                    was, now = lost_regions(old, taps), lost_regions(new, taps)
                    both = f1(now & (true | ~was), true), f1(now, true)
                    found.setdefault((name, fill), []).append(both)
    return found


def _predicted(repairer: torch.nn.Module, painted: Tensor, photo: Tensor, like: Tensor) -> Tensor:
    """The repairer's map at the encoder's resolution."""
    lost, _ = repairer(painted, photo)
    return F.interpolate(lost, like.shape[-2:], mode="area")


def main() -> None:
    raw = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--photos", type=Path, help="folder; the bundled photos by default")
    parser.add_argument("--count", type=int, default=6, help="how many of them, spread evenly")
    arguments = parser.parse_args()
    if arguments.count < 1:
        parser.error(f"--count {arguments.count}: it must be 1 or more")
    paths = list_pictures(arguments.photos) if arguments.photos else list(assets.photos())
    step = max(1, len(paths) // arguments.count)
    chosen = [read_picture(path).rgb for path in paths[::step][: arguments.count]]
    photos = [to_tensor(scale_down(picture, SIDE)) for picture in chosen]
    print("| map | squares filled with | F1 | strict |\n|---|---|--:|--:|")
    for (name, fill), values in scores(photos).items():
        loose, strict = (fmean(column) for column in zip(*values, strict=True))
        print(f"| {name} | {fill} | {loose:.2f} | {strict:.2f} |")


if __name__ == "__main__":
    with told():
        main()
