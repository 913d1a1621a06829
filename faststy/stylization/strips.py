"""Pictures too large for memory, from file to file: read, painted and written in strips.

libvips decodes and encodes (`pip install 'faststy[large]'`). Nobody holds a whole picture: a first
pass reads the samples that the norm statistics are of, a second one paints rows of tiles. These
wait on the disk, 3 bytes a pixel beside the target, until all are there and the encoder reads them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from PIL import ExifTags, Image
from torch import Tensor

from faststy.errors import FaststyError
from faststy.files import replacing, scratch, target_at
from faststy.pictures import format_of, kept_exif, without_pillow_limit
from faststy.stylization import tiles
from faststy.stylization.statistics import is_flat
from faststy.stylization.strokes import stroke_for
from faststy.stylization.stylizer import Stylizer

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from faststy.stylization.realtime import Dials

Rows = npt.NDArray[np.uint8]
_SAVE_OPTIONS: dict[str, dict[str, object]] = {  # as those of faststy.pictures
    "JPEG": {"Q": 95, "subsample_mode": "off"},
    "PNG": {"compression": 3, "filter": "all"},
    "TIFF": {"compression": "lzw"},
}
CHUNK = 64  # rows that libvips gives at a time
_LONGEST_SIDE = {"JPEG": 65_500}


@dataclass(frozen=True)
class Large:
    """A picture file that can be read in strips.

    Attributes:
        path: of the file.
        size: width and height, pixels.
        icc_profile, exif: see :class:`faststy.pictures.Picture`.
    """

    path: Path
    size: tuple[int, int]
    icc_profile: bytes | None
    exif: bytes | None


def is_available() -> bool:
    """Whether libvips is installed."""
    try:
        import pyvips  # noqa: F401
    except (ImportError, OSError):  # OSError: the module without the library
        return False
    return True


def look_at(path: Path, target: Path) -> Large | None:
    """The picture at `path` if it can be painted in strips into `target`, else None.

    That is an upright opaque one of RGB, in a JPEG, PNG or TIFF (the latter two also of 16 bits)
    that is not interlaced, larger than what the samples for its statistics take; and a target in
    one of these formats.
    """
    format = format_of(target)
    if format not in _SAVE_OPTIONS:
        return None
    try:
        with without_pillow_limit(), Image.open(path, formats=list(_SAVE_OPTIONS)) as image:
            if (
                image.mode != "RGB"
                or image.has_transparency_data
                or image.getexif().get(ExifTags.Base.Orientation, 1) != 1
                or image.info.get("progressive")  # such are decoded as a whole
                or image.info.get("interlace")
                or tiles.sample_corners(*image.size) is None
                or image.height < tiles.SAMPLES * tiles.SAMPLE_SIDE  # samples would overlap
                or max(image.size) > _LONGEST_SIDE.get(format, 1 << 31)
            ):
                return None
            profile = image.info.get("icc_profile") or None
            if profile is not None and profile[16:20] != b"RGB ":
                profile = None
            return Large(path, image.size, profile, kept_exif(image))
    except Exception:  # read_picture says what is wrong with it
        return None


def side_within(memory: int, halo: int, width: int) -> int:
    """Sides of tiles with which a picture of `width` is painted in at most `memory` bytes.

    Too little memory gives the smallest tiles, which take `least_memory`.
    """
    for side in range(tiles.LARGEST, tiles.SMALLEST, -tiles.ALIGNMENT):
        if _memory(side, halo, width) <= memory:
            return side
    return tiles.SMALLEST


def least_memory(halo: int, width: int) -> int:
    """Bytes that painting a picture of `width` takes in the smallest tiles."""
    return _memory(tiles.SMALLEST, halo, width)


def _memory(side: int, halo: int, width: int) -> int:
    seen = side + 2 * halo
    rows = (3 * seen + side) * width * 3  # read, joined to those before, and painted
    return tiles.PROGRAM + rows + tiles.PER_PIXEL_IN_TILES * seen**2


def paint_file(
    stylizer: Stylizer,
    picture: Large,
    target: Path,
    *,
    memory: int | None = None,
    progress: Callable[[float], None] | None = None,
    **dials: Unpack[Dials],
) -> None:
    """Paints `picture` into the file `target`, which appears when it is whole.

    Args:
        stylizer: paints.
        picture: from :func:`look_at`.
        target: a JPEG, PNG or TIFF.
        memory, progress: see :meth:`Stylizer.paint`.
        dials: style, strength, repair, keep_color and stroke, which is as in :meth:`Stylizer.paint`
            by default.

    Raises:
        FaststyError: the picture is damaged, memory does not suffice, or the target cannot be
            written. Then there is no target, or still the old one.
    """
    stroke = dials.get("stroke") or stroke_for(*picture.size)
    dials["stroke"] = stroke
    halo, place = stylizer.halo(picture.size, **dials), target_at(target)
    limit = tiles.limit(memory, stylizer.device)
    side = side_within(limit, halo, picture.size[0])
    painter = stylizer.painter(**dials)
    with replacing(place) as file, scratch(place.parent) as raw:

        def attempt(side: int | None) -> None:
            assert side is not None
            painter.hold(_samples(picture, stroke))
            with open(raw, "wb") as rows:
                for painted in _paint(picture, side, halo, painter, progress):
                    rows.write(painted.data)

        width, height = picture.size
        what = f"{picture.path}: not enough memory to paint {width} x {height}"
        tiles.with_less_memory(side, attempt, what)
        _encode(raw, picture, format_of(target), file.fileno())


def _samples(picture: Large, stroke: int) -> Tensor:
    """What `tiles.samples` takes of a picture in memory, in a pass from top to bottom, or two."""
    side = tiles.sample_side(*picture.size, stroke)
    corners = tiles.sample_corners(*picture.size, stroke)
    reader = _Reader(picture)
    if corners is None:  # large strokes' samples would cover all
        return torch.from_numpy(reader.rows(0, picture.size[1]))[None]
    parts = []
    for top in dict.fromkeys(y for _, y in corners):
        rows = reader.rows(top, top + side)
        parts += [rows[:, x : x + side].copy() for x, y in corners if y == top]
    found = torch.from_numpy(np.stack(parts))
    if is_flat(found):
        reader = _Reader(picture)
        return tiles.thinned(lambda y: reader.rows(y, y + 1), *picture.size)
    return found


def _paint(
    picture: Large,
    side: int,
    halo: int,
    paint: Callable[[Rows], Rows],
    progress: Callable[[float], None] | None,
) -> Iterator[Rows]:
    """Rows of the painting, from top to bottom, as many at a time as a tile has."""
    width, height = picture.size
    reader = _Reader(picture)
    seen, seen_top = np.empty((0, width, 3), np.uint8), 0
    rows = np.empty((0, width, 3), np.uint8)
    for tile in tiles.tiles(height, width, side, halo):
        left, top, right, bottom = tile.kept
        across, down, across_end, down_end = tile.seen
        if left == 0:
            known = seen_top + len(seen)
            kept = seen[down - seen_top :]
            more = known < down_end
            seen = np.concatenate([kept, reader.rows(known, down_end)]) if more else kept
            seen_top = down
            rows = np.empty((bottom - top, width, 3), np.uint8)
        rows[:, left:right] = tile.cut(paint(np.ascontiguousarray(seen[:, across:across_end])))
        if progress is not None:
            progress((top * width + (bottom - top) * right) / (height * width))
        if right == width:
            yield rows


class _Reader:
    """Reads rows of a picture, each once, from top to bottom."""

    def __init__(self, picture: Large) -> None:
        import pyvips

        self._picture = picture
        try:
            # As bytes: names need not be Unicode. As a source: they may end like libvips' options.
            source = pyvips.Source.new_from_file(os.fsencode(picture.path))
            image = pyvips.Image.new_from_source(
                source, "", access="sequential", fail_on="truncated"
            )
            if image.format == "ushort":  # 16 bits, of which Pillow, too, takes the upper ones
                image = image.cast("uchar", shift=True)
            if image.bands > 3:  # of a TIFF that does not say what the others are: no alpha
                image = image.extract_band(0, n=3)
            shape = (image.width, image.height, image.bands, image.format)
            if shape != (*picture.size, 3, "uchar"):
                raise FaststyError(f"{picture.path}: it is {shape} to libvips")
            self._region = pyvips.Region.new(image)
        except pyvips.Error as error:
            raise self._damaged(error) from error

    def rows(self, top: int, bottom: int) -> Rows:
        """Rows top … bottom − 1, uint8 [bottom − top, W, 3]."""
        import pyvips

        width = self._picture.size[0]
        rows = np.empty((bottom - top, width, 3), np.uint8)
        try:
            for y in range(top, bottom, CHUNK):  # each is held three times for a moment
                part = rows[y - top : y - top + CHUNK]
                pixels = self._region.fetch(0, y, width, len(part))
                part[:] = np.frombuffer(pixels, np.uint8).reshape(part.shape)
        except pyvips.Error as error:
            raise self._damaged(error) from error
        return rows

    def _damaged(self, error: Exception) -> FaststyError:
        return FaststyError(f"{self._picture.path}: damaged or cut off ({_last_line(error)})")


def _encode(raw: Path, picture: Large, format: str, descriptor: int) -> None:
    """Encodes the file `raw`, all rows one after the other, into an open file."""
    import pyvips

    width, height = picture.size
    keep = pyvips.enums.ForeignKeep
    kept = keep.ICC | keep.EXIF if picture.exif is not None else keep.ICC
    options: dict[str, object] = {**_SAVE_OPTIONS[format], "keep": int(kept)}
    if format == "TIFF" and width * height * 3 > 1 << 31:
        options["bigtiff"] = True
    try:
        image = pyvips.Image.rawload(os.fsencode(raw), width, height, 3, access="sequential")
        image = image.copy(interpretation="srgb")
        for name, data in (("icc-profile-data", picture.icc_profile), ("exif-data", picture.exif)):
            if data is not None:
                image.set_type(pyvips.GValue.blob_type, name, data)
        target = pyvips.Target.new_to_descriptor(descriptor)
        save = {"JPEG": "jpegsave", "PNG": "pngsave", "TIFF": "tiffsave"}[format]
        getattr(image, f"{save}_target")(target, **options)
    except pyvips.Error as error:
        raise OSError(_last_line(error)) from error


def _last_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__
