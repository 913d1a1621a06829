"""Before/after pictures for the paired term."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from faststy.errors import FaststyError
from faststy.pictures import list_pictures
from faststy.training.crops import Square, crops_of
from faststy.training.dataset import DRAWN_AGAIN, below, crop_box, is_flat, square_of
from faststy.training.picture_cache import PictureCache

PAIRS_PER_STEP = 2
ZOOM = (1.0, 2.0)


class Pairs:
    """Photos `A` and their painted targets `B`, from the folders `before` and `after`.

    Pairs of which a picture cannot be read, is missing or has another shape are skipped and listed
    in `skipped`, by the photo.
    """

    def __init__(
        self, paths: list[tuple[Path, Path]], size: int, cache: PictureCache | None = None
    ) -> None:
        self.paths, self.size = paths, size
        self.cache = cache or PictureCache()
        self.skipped: dict[Path, str] = {}
        self._checked: set[Path] = set()

    @classmethod
    def found(cls, folder: Path, size: int, cache: PictureCache | None = None) -> Pairs:
        """The same-named pictures of `folder`/before and `folder`/after.

        Raises FaststyError when a folder is missing or there is no pair that can be used.
        """
        before, after = folder / "before", folder / "after"
        for each in (before, after):
            if not each.is_dir():
                raise FaststyError(
                    f"{each}: no such folder; pairs are read from before/ and after/"
                )
        partners = {p.relative_to(after).with_suffix(""): p for p in list_pictures(after)}
        skipped: dict[Path, str] = {}
        photos = list_pictures(before, left_out=skipped)
        names = [path.relative_to(before).with_suffix("") for path in photos]
        both = [(p, partners[n]) for p, n in zip(photos, names, strict=True) if n in partners]
        pairs = cls(both, size, cache)
        pairs.skipped |= skipped
        for path, name in zip(photos, names, strict=True):
            if name not in partners:
                pairs.skipped[path] = f"{path}: no picture of the same name in {after}"
        pairs.get(0)
        return pairs

    def get(self, index: int) -> tuple[Tensor, Tensor]:
        """Pair `index` (modulo their number), or the next one that can be used: [3, H, W] each."""
        for offset in range(len(self.paths)):
            paths = self.paths[(index + offset) % len(self.paths)]
            if paths[0] in self.skipped:
                continue
            try:
                return self._read(paths)
            except FaststyError as error:
                self.skipped[paths[0]] = str(error)
        reason = next(iter(self.skipped.values()))
        raise FaststyError(f"none of {len(self.skipped)} pairs can be used: {reason}")

    def _read(self, paths: tuple[Path, Path]) -> tuple[Tensor, Tensor]:
        short_side, check = round(self.size * ZOOM[1]), paths[0] not in self._checked
        a, b = (self.cache.get(path, short_side, check=check) for path in paths)
        height, width = (min(sides) for sides in zip(a.shape[1:], b.shape[1:], strict=True))
        # A pixel is lost to rounding where a picture was scaled down twice.
        if max(a.shape[1] + b.shape[1] - 2 * height, a.shape[2] + b.shape[2] - 2 * width) > 1:
            shapes = " and ".join(f"{t.shape[2]}x{t.shape[1]}" for t in (a, b))
            raise FaststyError(f"{paths[0]}: its pair has another shape ({shapes})")
        self._checked.add(paths[0])
        return a[:, :height, :width], b[:, :height, :width]

    def batch(self, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """The same random crops of photos and their targets: two [N, 3, size, size] in 0...1."""
        squares: tuple[list[Square], list[Square]] = ([], [])
        for _ in range(PAIRS_PER_STEP):
            pair = self._pair_of_squares(rng)
            for _ in range(DRAWN_AGAIN):  # see `photo_square`
                if not is_flat(pair[0].pixels):
                    break
                pair = self._pair_of_squares(rng)
            for side, square in zip(squares, pair, strict=True):
                side.append(square)
        a, b = (crops_of(side, self.size) for side in squares)
        return a, b

    def _pair_of_squares(self, rng: torch.Generator) -> tuple[Square, Square]:
        before, after = self.get(below(rng, len(self.paths)))
        box = crop_box(before.shape[1], before.shape[2], self.size, ZOOM, rng)
        flip = below(rng, 2) == 1
        return square_of(before, box, flip), square_of(after, box, flip)
