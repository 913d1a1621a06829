"""Pictures of any size: painted tile by tile, in bounded memory, without seams.

All tiles share the norm statistics, which are collected from samples of the whole picture, and see
as much beyond their borders as the nets can reach: what is painted does not depend on the tiles.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from faststy.errors import FaststyError
from faststy.nn.generator import SCALE, Generator
from faststy.ops.reference import BLOCK
from faststy.stylization.statistics import is_flat
from faststy.tensors import is_out_of_memory

Painted = TypeVar("Painted")

ALIGNMENT = 64  # pixels: where tiles begin, cells of all kinds begin
SMALLEST, LARGEST = 512, 2048  # sides of tiles, pixels
PROGRAM = 450 << 20  # bytes that are held whatever is painted
PER_PIXEL = 8  # bytes for a pixel of the picture and of its painting
PER_PIXEL_WHOLE = 250  # bytes while a picture is painted as a whole; 200 were measured at 1080p
PER_PIXEL_IN_TILES = 200  # bytes while a tile is painted, for each pixel that it sees
LEVELS = 6  # of the pyramid that strength works in
# Statistics are of 2 x 2 samples of this side, so few and large since what the nets see beyond the
# border of one is made up.
SAMPLES, SAMPLE_SIDE = 2, 512


class _Group(NamedTuple):
    """Where a version of Linux's control groups lies, and its files."""

    mount: str
    limit: str
    used: str
    cached: str  # in memory.stat


_GROUP_V1 = _Group(
    "sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
)
_GROUP_V2 = _Group("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file")


class Tile(NamedTuple):
    """A part of a picture; boxes are (left, top, right, bottom)."""

    kept: tuple[int, int, int, int]
    seen: tuple[int, int, int, int]  # what is looked at for that

    def cut(self, painted: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """What is kept, of a painting of what is seen."""
        left, top, right, bottom = self.kept
        across, down = self.seen[:2]
        return painted[top - down : bottom - down, left - across : right - across]


def tiles(height: int, width: int, side: int, halo: int) -> Iterator[Tile]:
    """Tiles of `side` x `side` pixels that cover a picture, and see `halo` pixels beyond.

    Both are multiples of ALIGNMENT.
    """
    for top in range(0, height, side):
        for left in range(0, width, side):
            bottom, right = min(top + side, height), min(left + side, width)
            seen = (
                max(left - halo, 0),
                max(top - halo, 0),
                min(right + halo, width),
                min(bottom + halo, height),
            )
            yield Tile((left, top, right, bottom), seen)


def halo_of(generator: Generator, stroke: int = 1, blended: bool = True) -> int:
    """Pixels beyond its borders that a tile must see, for all that is done to it.

    `blended`: whether a strength between 0 and 1 mixes photo and painting, which looks far around.
    """
    coarse = 2 * generator.config.blocks + 3  # stem, rise and its interpolation, in cells
    fine = 5  # convolutions at half the resolution, and the blur
    repairer = 6 * SCALE + 2 * BLOCK  # its convolutions and interpolations; `detail`
    painter = stroke * (coarse * SCALE + fine * 2) + (3 * stroke if stroke > 1 else 0)  # scaling
    reach = painter + repairer + (3 << LEVELS if blended else 0)
    return reach + -reach % ALIGNMENT


def side_within(memory: int, halo: int, size: tuple[int, int]) -> int | None:
    """Sides of tiles with which painting takes at most `memory` bytes; None: no tiles are needed.

    Too little memory gives the smallest tiles, which take `least_memory`.
    """
    pixels = size[0] * size[1]
    left = memory - PROGRAM - PER_PIXEL * pixels
    if left >= PER_PIXEL_WHOLE * pixels:
        return None
    side = int((max(left, 0) / PER_PIXEL_IN_TILES) ** 0.5) - 2 * halo
    return min(max(side // ALIGNMENT * ALIGNMENT, SMALLEST), LARGEST)


def least_memory(halo: int, size: tuple[int, int]) -> int:
    """Bytes that painting takes in the smallest tiles, as the picture itself is held whole."""
    seen = SMALLEST + 2 * halo
    tile = min(seen, size[0]) * min(seen, size[1])
    return PROGRAM + PER_PIXEL * size[0] * size[1] + PER_PIXEL_IN_TILES * tile


def limit(memory: int | None, device: torch.device) -> int:
    """Bytes that painting on `device` may take: `memory`, by default what is available.

    On a GPU it is no more than two thirds of what that has free, too.
    """
    most = memory or available_memory()
    if device.type != "cuda":
        return most
    free, _ = torch.cuda.mem_get_info(device)
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return min(most, free * 2 // 3)


def with_less_memory(
    side: int | None, paint: Callable[[int | None], Painted], what: str
) -> Painted:
    """`paint(side)`, and where memory does not suffice the same with smaller and smaller tiles.

    Raises FaststyError where it does not suffice for the smallest ones; `what` says for what.
    """
    while True:
        try:
            return paint(side)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            if side is not None and side <= SMALLEST:
                raise FaststyError(f"{what}; use a smaller size") from error
        # Here, outside of the handler, nothing of the failed try is held any more.
        side = LARGEST if side is None else max(side // 2 // ALIGNMENT * ALIGNMENT, SMALLEST)
        torch.cuda.empty_cache()


def available_memory(root: str | os.PathLike[str] = "/") -> int:
    """Bytes that may be taken: two thirds of what the system and its control groups have free.

    `root` is the folder that proc and sys are in.
    """
    try:
        lines = Path(root, "proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
        return min([free * 1024, *_free_in_groups(Path(root))]) * 2 // 3
    except (OSError, StopIteration, ValueError):
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    except (AttributeError, OSError, ValueError):
        return 4 << 30


def _free_in_groups(root: Path) -> Iterator[int]:
    """Bytes that the control groups (v1, v2) of this process, and their parents, still allow."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for number, kinds, path in (line.split(":", 2) for line in lines):
        if number == "0" or "memory" in kinds.split(","):
            files = _GROUP_V2 if number == "0" else _GROUP_V1
            top = root / files.mount
            own = top / path.lstrip("/")
            # A container may not see its group by that path: then it is the topmost folder.
            for group in (own, *(parent for parent in own.parents if parent.is_relative_to(top))):
                with suppress(OSError, ValueError):  # "max" is no number, and no limit
                    limit = int((group / files.limit).read_text())
                    used = int((group / files.used).read_text())
                    cached = re.search(
                        rf"^{files.cached} (\d+)", (group / "memory.stat").read_text(), re.MULTILINE
                    )
                    # As in MemAvailable: what files left in memory makes room.
                    yield max(limit - used + int(cached[1] if cached else 0), 0)


def samples(picture: Image.Image, stroke: int = 1) -> Tensor:
    """Parts of a picture, spread over it, uint8 [N, h, w, 3]: all of it where it is small.

    Larger strokes take larger parts. Where these have a single colour, as of a drawing on white,
    they are `thinned` instead.
    """
    side, width = sample_side(*picture.size, stroke), picture.width
    corners = sample_corners(*picture.size, stroke)
    if corners is None:
        return torch.from_numpy(np.array(picture))[None]
    parts = [np.asarray(picture.crop((x, y, x + side, y + side))) for x, y in corners]
    found = torch.from_numpy(np.stack(parts))
    if is_flat(found):
        return thinned(lambda y: np.asarray(picture.crop((0, y, width, y + 1))), *picture.size)
    return found


def thinned(row: Callable[[int], npt.NDArray[np.uint8]], width: int, height: int) -> Tensor:
    """A small picture, uint8 [1, h, w, 3], of every so manieth pixel of rows [1, W, 3]."""
    step = -(-max(width, height) // (SAMPLES * SAMPLE_SIDE))
    rows = [row(y)[:, ::step].copy() for y in range(step // 2, height, step)]
    return torch.from_numpy(np.concatenate(rows))[None]


def sample_side(width: int, height: int, stroke: int = 1) -> int:
    """Sides of samples for strokes of this size, which need to see more."""
    return min(stroke * SAMPLE_SIDE, width, height)


def sample_corners(width: int, height: int, stroke: int = 1) -> list[tuple[int, int]] | None:
    """Left and top of each sample, from top to bottom; None where all of a picture is taken.

    They are spread evenly and do not overlap. Long pictures have more in a row, of their height.
    """
    most = (SAMPLES * stroke * SAMPLE_SIDE) ** 2  # pixels
    if width * height <= most:
        return None
    side = sample_side(width, height, stroke)
    short = min(SAMPLES, min(width, height) // side)
    long = min(max(width, height) // side, most // side**2 // short)
    across, down = (long, short) if width > height else (short, long)
    return [(x, y) for y in _spread(height, side, down) for x in _spread(width, side, across)]


def _spread(length: int, side: int, count: int) -> list[int]:
    """Where `count` parts of `side` begin, each in the middle of its share of `length`."""
    return [length * (2 * i + 1) // (2 * count) - side // 2 for i in range(count)]


def paint_tiles(
    picture: Image.Image,
    side: int,
    halo: int,
    paint: Callable[[npt.NDArray[np.uint8], Tile], npt.NDArray[np.uint8]],
    progress: Callable[[float], None] | None = None,
) -> Image.Image:
    """`picture`, painted.

    Args:
        picture: RGB.
        side, halo: of the tiles, multiples of ALIGNMENT.
        paint: paints what a tile sees, uint8 [h, w, 3].
        progress: is told the part that is done, 0 to 1.
    """
    width, height = picture.size
    result = Image.new("RGB", picture.size)
    done = 0
    for tile in tiles(height, width, side, halo):
        painted = tile.cut(paint(np.array(picture.crop(tile.seen)), tile))
        result.paste(Image.fromarray(painted), tile.kept)
        done += painted.shape[0] * painted.shape[1]
        if progress is not None:
            progress(done / (height * width))
    return result
