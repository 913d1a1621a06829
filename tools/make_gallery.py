"""Paints the bundled photos in every style of a model, onto one labelled sheet: README's gallery.

python tools/make_gallery.py --out docs/gallery.jpg
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from PIL import Image, ImageOps

from faststy.assets import model, photos
from faststy.errors import told
from faststy.files import replacing
from faststy.pictures import read_picture
from faststy.stylization.contact_sheet import labelled
from faststy.stylization.stylizer import Stylizer

TILE = (180, 144)  # px, of a picture on the sheet
SIZE = 360  # short side that the photos are painted at, px: strokes are seen at half their size


def block(painted: Callable[[Path], Image.Image]) -> Image.Image:
    """All bundled photos, through `painted`, side by side in two columns."""
    paths = photos()
    sheet = Image.new("RGB", (2 * TILE[0], (len(paths) + 1) // 2 * TILE[1]))
    for index, path in enumerate(paths):
        picture = ImageOps.fit(painted(path), TILE, Image.Resampling.LANCZOS)
        sheet.paste(picture, (index % 2 * TILE[0], index // 2 * TILE[1]))
    return sheet


def gallery(stylizer: Stylizer) -> Image.Image:
    """The photos, then the photos in each style of the model, with their names."""

    def inside(style: str) -> Image.Image:
        return block(lambda path: stylizer(path, style=style, size=SIZE))

    blocks = [("photo", block(lambda path: read_picture(path).rgb))]
    return labelled(blocks + [(style, inside(style)) for style in stylizer.styles])


def main() -> None:
    raw = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("-m", "--model", type=Path, default=model(), help="by default the bundled")
    parser.add_argument("--out", type=Path, default=Path("docs/gallery.jpg"))
    arguments = parser.parse_args()
    with replacing(arguments.out) as file:
        gallery(Stylizer.load(arguments.model)).save(file, "JPEG", quality=80)
    print(arguments.out)


if __name__ == "__main__":
    with told():
        main()
