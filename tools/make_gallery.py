"""Paints the bundled photos in every style of a model, onto one sheet: the README's gallery.

python tools/make_gallery.py run/model.safetensors --out docs/gallery.jpg
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image, ImageOps

from faststy.assets import photos, styles
from faststy.files import replacing
from faststy.pictures import read_picture
from faststy.stylization.stylizer import Stylizer
from faststy.training.preview import sheet

TILE = (240, 192)  # px, of a picture on the sheet


def tile(picture: Image.Image) -> Image.Image:
    """The middle of `picture`, at the size of a tile."""
    return ImageOps.fit(picture, TILE, Image.Resampling.LANCZOS)


def gallery(stylizer: Stylizer, names: list[str]) -> Image.Image:
    """A row of photos, then a row per style: the style picture and the photos painted in it."""
    blank = Image.new("RGB", TILE, (250, 249, 246))
    rows = [[blank, *(tile(read_picture(path).rgb) for path in photos())]]
    for name in names:
        paintings = [tile(stylizer(path, style=name, size=480)) for path in photos()]
        rows.append([tile(read_picture(styles()[name]).rgb), *paintings])
    return sheet(rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model", type=Path, help="a model trained on bundled style pictures")
    parser.add_argument("--styles", nargs="+", help="which of its styles, all by default")
    parser.add_argument("--out", type=Path, default=Path("docs/gallery.jpg"))
    arguments = parser.parse_args()
    stylizer = Stylizer.load(arguments.model)
    with replacing(arguments.out) as file:
        gallery(stylizer, arguments.styles or stylizer.styles).save(file, "JPEG", quality=80)
    print(arguments.out)


if __name__ == "__main__":
    main()
