"""Training pictures: decoded once, cut into random crops, the same for the same seed and step.

Every random choice of a step is drawn from `generator(seed, step)`, so a resumed run needs no saved
random state, and a batch can be made ahead by another thread.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from faststy.errors import FaststyError
from faststy.pictures import list_pictures
from faststy.training.crops import CPU, Square, crops_of
from faststy.training.picture_cache import PictureCache

T = TypeVar("T")

THREADS = 4  # that draw ahead: one GPU takes up to two for photos, two for patches of styles
FLAT = 0.4  # levels: of less deviation norms make noise, and gradients overflow
DRAWN_AGAIN = 20  # times; where all photos are flat, a flat one is taken after all


def generator(seed: int, step: int, stream: int = 0) -> torch.Generator:
    """The random numbers of one step; `stream` tells independent users apart."""
    mixed = np.random.SeedSequence([seed, step, stream]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(mixed) & (2**63 - 1))


def uniform(rng: torch.Generator, low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand((), generator=rng))


def below(rng: torch.Generator, n: int) -> int:
    return int(torch.randint(n, (), generator=rng))


class Pictures:
    """The pictures of a folder (or one file), decoded on first use, scaled down to `short_side`.

    Pictures that cannot be read, or vanish, are skipped and listed in `skipped`.
    """

    def __init__(
        self, paths: list[Path], short_side: int, cache: PictureCache | None = None
    ) -> None:
        self.paths, self.short_side = paths, short_side
        self.cache = cache or PictureCache()
        self.skipped: dict[Path, str] = {}
        self._checked = bytearray(len(paths))

    @classmethod
    def found(cls, source: Path, short_side: int, cache: PictureCache | None = None) -> Pictures:
        """The pictures under `source`. Raises FaststyError when there is none."""
        skipped: dict[Path, str] = {}
        paths = list_pictures(source, left_out=skipped) if source.is_dir() else [source]
        pictures = cls(paths, short_side, cache)
        pictures.skipped |= skipped
        pictures.get(0)  # a source without a single readable picture fails now, not in training
        return pictures

    def get(self, index: int) -> Tensor:
        """Picture `index` (modulo their number), or the next one that can be read: [3, H, W]."""
        return self.find(index)[1]

    def find(self, index: int) -> tuple[int, Tensor]:
        """As `get`, with the index that it has."""
        for offset in range(len(self.paths)):
            place = (index + offset) % len(self.paths)
            path = self.paths[place]
            if path in self.skipped:
                continue
            try:
                picture = self.cache.get(path, self.short_side, check=not self._checked[place])
            except FaststyError as error:
                self.skipped[path] = str(error)
                continue
            self._checked[place] = True
            return place, picture
        if len(self.paths) == 1:
            raise FaststyError(self.skipped[self.paths[0]])
        raise FaststyError(
            f"{self.paths[0].parent}: none of {len(self.paths)} pictures can be read"
        )

    def __len__(self) -> int:
        return len(self.paths)


def crop_box(
    height: int, width: int, size: int, zoom: tuple[float, float], rng: torch.Generator
) -> tuple[int, int, int]:
    """Top, left and side of a random square that a scale in `zoom` shrinks to `size` px."""
    side = round(size * uniform(rng, *zoom))
    side = max(1, min(side, height, width))
    return below(rng, height - side + 1), below(rng, width - side + 1), side


def of_samples(
    count: int, rng: torch.Generator, mine: slice = slice(None)
) -> list[torch.Generator]:
    """Random numbers for each of those in `mine` of `count` samples: others need not be made."""
    seeds = torch.randint(2**63 - 1, (count,), generator=rng)[mine]
    return [torch.Generator().manual_seed(seed) for seed in seeds.tolist()]


def random_square(
    pictures: Pictures,
    size: int,
    zoom: tuple[float, float],
    rng: torch.Generator,
    *,
    mirrored: bool = False,
) -> Square:
    """What a random crop of `size` px is made of.

    With `mirrored`, mirror images go on where a picture is too small for the largest crop; without,
    smaller crops are enlarged.
    """
    picture = pictures.get(below(rng, len(pictures)))
    if mirrored:
        picture = with_mirror_images(picture, round(size * zoom[1]))
    box = crop_box(picture.shape[1], picture.shape[2], size, zoom, rng)
    return square_of(picture, box, flip=below(rng, 2) == 1)


def with_mirror_images(picture: Tensor, least: int) -> Tensor:
    """[3, H, W], continued by its mirror images where a side is shorter than `least` px."""
    for axis in (1, 2):
        side = picture.shape[axis]
        if side < least:
            place = torch.arange(least) % (2 * side)
            picture = picture.index_select(axis, torch.minimum(place, 2 * side - 1 - place))
    return picture


def photo_square(
    pictures: Pictures, size: int, zoom: tuple[float, float], rng: torch.Generator
) -> Square:
    """As `random_square`, drawn again where it is flat, some times at most.

    Of a flat photo every norm of the generator divides by next to nothing: gradients overflow, and
    the whole step would be skipped. There is nothing to learn from one, either.
    """
    square = random_square(pictures, size, zoom, rng)
    for _ in range(DRAWN_AGAIN):
        if not is_flat(square.pixels):
            break
        square = random_square(pictures, size, zoom, rng)
    return square


def is_flat(pixels: Tensor) -> bool:
    """Whether the pixels of uint8 [3, H, W] are of one colour, but for a level here and there."""
    few = pixels[:, ::16, ::16]  # which tell of most pictures that they are not
    if int((few.amax((1, 2)) - few.amin((1, 2))).max()) > 2:
        return False
    return float(pixels.float().std((1, 2), correction=0).max()) < FLAT


def square_of(picture: Tensor, box: tuple[int, int, int], flip: bool) -> Square:
    """The square `box` of a uint8 [3, H, W] picture."""
    top, left, side = box
    return Square(picture[:, top : top + side, left : left + side], flip)


def random_crops(
    pictures: Pictures,
    count: int,
    size: int,
    zoom: tuple[float, float],
    rng: torch.Generator,
    mine: slice = slice(None),
    device: torch.device = CPU,
) -> Tensor:
    """Those in `mine` of `count` random crops, as [n, 3, size, size] in 0...1, channels_last."""
    squares = [photo_square(pictures, size, zoom, own) for own in of_samples(count, rng, mine)]
    return crops_of(squares, size, device)


def prefetch(make: Callable[[int], T], first: int) -> Generator[T, None, None]:
    """`make(first), make(first + 1), …` in order, made ahead by threads while one is used."""
    # OpenMP threads within these threads would be too many.
    with ThreadPoolExecutor(THREADS, "faststy-prefetch", torch.set_num_threads, (1,)) as pool:
        waiting = deque(pool.submit(make, first + i) for i in range(THREADS))
        try:
            for step in itertools.count(first + THREADS):
                batch = waiting.popleft().result()
                waiting.append(pool.submit(make, step))
                yield batch
        finally:
            pool.shutdown(cancel_futures=True)
