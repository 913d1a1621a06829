"""One photo in every style of a model, on one labelled sheet."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from PIL import Image, ImageDraw, ImageFont

from faststy.pictures import Picture, PictureSource, read_picture
from faststy.stylization.stylizer import Stylizer

SIDE = 400  # px, the short side of a picture on the sheet, which is painted at that size
GAP = 12  # px between pictures
LABEL = 34  # px under a picture, for its name
ASPECT = 1.5  # of the sheet, width to height, as nearly as whole rows allow
PAPER, INK = (250, 249, 246), (60, 57, 52)


def contact_sheet(
    stylizer: Stylizer,
    photo: PictureSource | Picture,
    on_progress: Callable[[int, int], None] | None = None,
) -> Image.Image:
    """`photo`, then `photo` in each of the model's styles, with their names.

    `on_progress` is called after each painting with how many are done and how many there are.
    Raises FaststyError for a photo that cannot be read.
    """
    if not isinstance(photo, Picture):
        photo = read_picture(photo)
    small = photo.scaled_down(SIDE)
    pictures = [("photo", _on_paper(small))]
    for done, style in enumerate(stylizer.styles, 1):
        pictures.append((style, _on_paper(stylizer.paint(small, style=style).picture)))
        if on_progress is not None:
            on_progress(done, len(stylizer.styles))
    return labelled(pictures)


def _on_paper(picture: Picture) -> Image.Image:
    """The picture as it is seen on the sheet, which is sRGB and opaque."""
    rgb = picture.in_srgb().rgb
    if picture.alpha is None:
        return rgb
    return Image.composite(rgb, Image.new("RGB", rgb.size, PAPER), picture.alpha)


def labelled(
    pictures: Sequence[tuple[str, Image.Image]], columns: int | None = None
) -> Image.Image:
    """Pictures with their names below, in rows on one sheet; cells are as large as the largest."""
    width = max(picture.width for _, picture in pictures)
    height = max(picture.height for _, picture in pictures)
    cell = width + GAP, height + LABEL
    columns = columns or _columns(len(pictures), cell)
    rows = math.ceil(len(pictures) / columns)
    sheet = Image.new("RGB", (columns * cell[0] + GAP, rows * cell[1] + GAP), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(LABEL // 2)
    for index, (name, picture) in enumerate(pictures):
        left = GAP + index % columns * cell[0] + (width - picture.width) // 2
        top = GAP + index // columns * cell[1]
        sheet.paste(picture, (left, top))
        middle = left + picture.width // 2, top + picture.height + LABEL // 2 - GAP // 4
        name = " ".join(name.replace("_", " ").split())  # a line break cannot be measured
        name = _shortened(name, width, lambda text: draw.textlength(text, font))
        draw.text(middle, name, INK, font, anchor="mm")
    return sheet


def _shortened(name: str, width: float, length: Callable[[str], float]) -> str:
    """As much of a name as a label has room for."""
    if length(name) <= width:
        return name
    end = next((n for n in range(len(name), 0, -1) if length(name[:n] + "…") <= width), 0)
    return name[:end].rstrip() + "…"


def _columns(count: int, cell: tuple[int, int]) -> int:
    """How many columns bring the sheet near ASPECT and leave few cells empty."""

    def misfit(columns: int) -> float:
        rows = math.ceil(count / columns)
        aspect = columns * cell[0] / (rows * cell[1])
        return abs(math.log(aspect / ASPECT)) + (rows * columns - count) / count

    return min(range(1, count + 1), key=misfit)
