"""The bundled photos and style pictures are there, whole, and documented."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from faststy import assets

FOLDER = Path(assets.__file__).parent


def test_photos_are_four_to_six_colour_pictures() -> None:
    photos = assets.photos()
    assert 4 <= len(photos) <= 6
    assert photos == sorted(photos)
    assert sum(path.stat().st_size for path in photos) < 500_000


def test_styles_are_named_by_their_file() -> None:
    styles = assets.styles()
    assert len(styles) >= 5
    assert list(styles) == sorted(styles)
    for name, path in styles.items():
        assert path == FOLDER / "styles" / f"{name}.jpg"
        assert path.stat().st_size <= 350_000


@pytest.mark.parametrize(
    "path", [*assets.photos(), *assets.styles().values()], ids=lambda path: path.stem
)
def test_every_picture_decodes_in_rgb_with_detail_all_over(path: Path) -> None:
    with Image.open(path) as picture:
        assert picture.format == "JPEG"
        assert picture.mode == "RGB"
        assert min(picture.size) >= (700 if path.parent.name == "styles" else 300)
        pixels = np.asarray(picture, dtype=np.float32)
    if path.parent.name == "styles":  # a flat area teaches a generator nothing
        side = 96
        rows, columns = (n // side for n in pixels.shape[:2])
        blocks = pixels[: rows * side, : columns * side].reshape(rows, side, columns, side, 3)
        assert blocks.std(axis=(1, 3)).max(axis=-1).min() > 4


def test_every_picture_has_its_source_and_licence_on_record() -> None:
    record = (FOLDER / "README.md").read_text(encoding="utf-8")
    for path in [*assets.photos(), *assets.styles().values()]:
        assert f"`{path.parent.name}/{path.name}`" in record


def test_the_bundled_model_holds_styles_on_record_and_repairs():
    from faststy.model_file import load_model

    model = load_model(assets.model())
    assert assets.model().stat().st_size < 1_000_000
    assert len(model.info.styles) >= 12
    record = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert all(f"`{style}`" in record for style in model.info.styles)
    assert model.repairer is not None
    assert model.info.license.startswith("Apache-2.0")


def test_no_ready_style_paints_a_dull_frame():
    """Near the edge of a picture it paints as vividly as if the picture went on there."""
    import torch

    from faststy.model_file import load_model
    from faststy.pictures import read_picture, scale_down
    from faststy.tensors import to_tensor

    def vividness(x):
        """Chroma and contrast of the outermost 8 px over those of 40 to 64 px inside."""
        rows, columns = (
            torch.minimum(place, len(place) - 1 - place) for place in map(torch.arange, x.shape[2:])
        )
        depth = torch.minimum(rows[:, None], columns)
        values = []
        for band in (depth < 8, (depth >= 40) & (depth < 64)):
            pixels = x[0].clamp(0, 1)[:, band]
            chroma = pixels.amax(0) - pixels.amin(0)
            values.append(torch.stack([chroma.mean(), pixels.mean(0).std()]))
        return values[0] / values[1]

    generator = load_model(assets.model()).generator
    photos = [to_tensor(scale_down(read_picture(p).rgb, 288)) for p in assets.photos()]
    inside = (..., slice(48, -48), slice(48, -48))
    with torch.no_grad():
        for style in torch.eye(generator.config.styles).split(1):
            ends = sum(vividness(generator(x[inside], style)) for x in photos)
            goes_on = sum(vividness(generator(x, style)[inside]) for x in photos)
            assert (ends / goes_on).min() > 0.75
