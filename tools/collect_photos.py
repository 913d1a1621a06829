"""Copy the sample photos of scikit-image that are in the public domain into the package.

Only files inside the scikit-image wheel are used, so nothing is downloaded.

    python tools/collect_photos.py [--out DIR]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import skimage.data
from PIL import Image

PHOTOS = ("astronaut", "chelsea", "coffee", "rocket")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    default = Path(__file__).parents[1] / "faststy" / "assets" / "photos"
    parser.add_argument("--out", type=Path, default=default, help="folder to write into")
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    for name in PHOTOS:
        photo = Image.fromarray(getattr(skimage.data, name)())
        photo.save(out / f"{name}.jpg", quality=90, optimize=True)


if __name__ == "__main__":
    main()
