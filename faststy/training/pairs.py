"""Before/after pictures for the paired term."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from faststy.errors import FaststyError
from faststy.pictures import list_pictures
from faststy.training.crops import Square, crops_of
from faststy.training.dataset import below, crop_box, square_of
from faststy.training.picture_cache import load_tensor

PAIRS_PER_STEP = 2
ZOOM = (1.0, 2.0)


class Pairs:
    """Photos `A` and their painted targets `B`, from the folders `before` and `after`."""

    def __init__(self, pairs: list[tuple[Tensor, Tensor]], size: int) -> None:
        self.pairs, self.size = pairs, size

    @classmethod
    def found(cls, folder: Path, size: int) -> Pairs:
        """The same-named pictures of `folder`/before and `folder`/after.

        Raises FaststyError when a folder is missing, a picture has no partner or another shape.
        """
        before, after = folder / "before", folder / "after"
        for each in (before, after):
            if not each.is_dir():
                raise FaststyError(
                    f"{each}: no such folder; pairs are read from before/ and after/"
                )
        partners = {p.relative_to(after).with_suffix(""): p for p in list_pictures(after)}
        pairs = []
        for path in list_pictures(before):
            partner = partners.get(path.relative_to(before).with_suffix(""))
            if partner is None:
                raise FaststyError(f"{path}: no picture of the same name in {after}")
            a, b = (load_tensor(p, round(size * ZOOM[1])) for p in (path, partner))
            height, width = (min(sides) for sides in zip(a.shape[1:], b.shape[1:], strict=True))
            pair = (a[:, :height, :width], b[:, :height, :width])
            # A pixel is lost to rounding where a picture was scaled down twice.
            if max(a.shape[1] + b.shape[1] - 2 * height, a.shape[2] + b.shape[2] - 2 * width) > 1:
                shapes = " and ".join(f"{t.shape[2]}x{t.shape[1]}" for t in (a, b))
                raise FaststyError(f"{path}: its pair has another shape ({shapes})")
            pairs.append(pair)
        return cls(pairs, size)

    def batch(self, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """The same random crops of photos and their targets: two [N, 3, size, size] in 0...1."""
        squares: tuple[list[Square], list[Square]] = ([], [])
        for _ in range(PAIRS_PER_STEP):
            pair = self.pairs[below(rng, len(self.pairs))]
            box = crop_box(pair[0].shape[1], pair[0].shape[2], self.size, ZOOM, rng)
            flip = below(rng, 2) == 1
            for side, picture in zip(squares, pair, strict=True):
                side.append(square_of(picture, box, flip))
        a, b = (crops_of(side, self.size) for side in squares)
        return a, b
