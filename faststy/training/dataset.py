"""Training pictures: decoded once, cut into random crops, the same for the same seed and step.

Every random choice of a step is drawn from `generator(seed, step)`, so a resumed run needs no saved
random state, and a batch can be made ahead by another thread.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from faststy.errors import FaststyError
from faststy.pictures import list_pictures, read_picture, scale_down

MEMORY = 1 << 30  # bytes of decoded pictures kept
SMALLEST = 16  # px: there is nothing to learn from less, and the encoder needs 8


def generator(seed: int, step: int, stream: int = 0) -> torch.Generator:
    """The random numbers of one step; `stream` tells independent users apart."""
    mixed = np.random.SeedSequence([seed, step, stream]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(mixed) & (2**63 - 1))


def uniform(rng: torch.Generator, low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand((), generator=rng))


def below(rng: torch.Generator, n: int) -> int:
    return int(torch.randint(n, (), generator=rng))


def load_tensor(path: Path, short_side: int | None) -> Tensor:
    """A picture as uint8 [3, H, W], scaled down (never up) to `short_side`. Raises FaststyError."""
    image = scale_down(read_picture(path).rgb, short_side)
    if min(image.size) < SMALLEST:
        size = f"{image.width} x {image.height}"
        raise FaststyError(f"{path}: {size} px is too small to learn from; {SMALLEST} is the least")
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


class Pictures:
    """The pictures of a folder (or one file), decoded on first use, scaled down to `short_side`.

    Pictures that cannot be read are skipped and listed in `skipped`.
    """

    def __init__(self, paths: list[Path], short_side: int) -> None:
        self.paths, self.short_side = paths, short_side
        self.skipped: dict[Path, str] = {}
        self._decoded: dict[Path, Tensor] = {}
        self._bytes = 0

    @classmethod
    def found(cls, source: Path, short_side: int) -> Pictures:
        """The pictures under `source`. Raises FaststyError when there is none."""
        paths = list_pictures(source) if source.is_dir() else [source]
        pictures = cls(paths, short_side)
        pictures.get(0)  # a source without a single readable picture fails now, not in training
        return pictures

    def get(self, index: int) -> Tensor:
        """Picture `index` (modulo their number), or the next one that can be read: [3, H, W]."""
        for offset in range(len(self.paths)):
            path = self.paths[(index + offset) % len(self.paths)]
            if path in self._decoded:
                return self._decoded[path]
            if path in self.skipped:
                continue
            try:
                picture = load_tensor(path, self.short_side)
            except FaststyError as error:
                self.skipped[path] = str(error)
                continue
            if self._bytes + picture.nbytes <= MEMORY:
                self._decoded[path] = picture
                self._bytes += picture.nbytes
            return picture
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


def cut(picture: Tensor, box: tuple[int, int, int], size: int, flip: bool) -> Tensor:
    """The square `box` of a uint8 [3, H, W] picture as float [3, size, size] in 0...1."""
    top, left, side = box
    crop = picture[:, top : top + side, left : left + side].float().div_(255)
    if side != size:
        crop = F.interpolate(
            crop[None], (size, size), mode="bilinear", antialias=True, align_corners=False
        )[0]
    return crop.flip(-1) if flip else crop


def random_crops(
    pictures: Pictures, count: int, size: int, zoom: tuple[float, float], rng: torch.Generator
) -> Tensor:
    """`count` random crops as [count, 3, size, size] in 0...1, channels_last."""
    crops = []
    for _ in range(count):
        picture = pictures.get(below(rng, len(pictures)))
        box = crop_box(picture.shape[1], picture.shape[2], size, zoom, rng)
        crops.append(cut(picture, box, size, flip=below(rng, 2) == 1))
    return torch.stack(crops).contiguous(memory_format=torch.channels_last)


def prefetch(make: Callable[[int], Tensor], first: int) -> Generator[Tensor, None, None]:
    """`make(first), make(first + 1), …`, each made by a thread while the one before is used."""
    ready: queue.Queue[Tensor | BaseException] = queue.Queue(maxsize=2)
    done = threading.Event()

    def fill() -> None:
        step = first
        item: Tensor | BaseException
        while not done.is_set():
            try:
                item = make(step)
            except BaseException as error:  # handed to the consumer, which raises it
                item = error
            while not done.is_set():
                try:
                    ready.put(item, timeout=0.2)
                    break
                except queue.Full:
                    continue
            if isinstance(item, BaseException):
                return
            step += 1

    threading.Thread(target=fill, name="faststy-prefetch", daemon=True).start()
    try:
        while True:
            item = ready.get()
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        done.set()
