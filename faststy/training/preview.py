"""The preview of a run: photo, painting, lost-content map and repaired painting, side by side."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from faststy.files import replacing
from faststy.nn.generator import Generator
from faststy.nn.repairer import Repairer
from faststy.pictures import heat_map
from faststy.tensors import to_image

GAP = 8  # px between pictures
MOST_ROWS = 12
COLUMNS = ("photo", "painting", "lost-content map", "repaired painting")
PAPER = (250, 249, 246)


@torch.inference_mode()
def paint_preview(
    generator: Generator,
    repairer: Repairer | None,
    photos: list[Tensor],
    device: torch.device,
    path: Path,
) -> None:
    """Paint `photos` (uint8 [3, H, W]) and write the sheet to `path` by rename.

    The picture's description names its columns.

    A row per photo; with several styles they take turns, and photos are shown again until each of
    the first MOST_ROWS styles has had its own.
    """
    rows, count = [], generator.config.styles
    styles = torch.eye(count, device=device)
    for i in range(rows_of(len(photos), count)):
        photo, style = _square(photos[i % len(photos)]), styles[i % count][None]
        x = photo.to(device).float().div_(255)[None].contiguous(memory_format=torch.channels_last)
        painted = generator(x, style)
        row = [to_image(x[0]), to_image(painted[0])]
        if repairer is not None:
            lost, residual = repairer(painted, x)
            row.append(heat_map(np.asarray(lost[0, 0].cpu())))
            row.append(to_image(repairer.apply_repair(painted, lost, residual, 1.0)[0]))
        rows.append(row)
    about = PngInfo()
    about.add_text("Description", ", ".join(COLUMNS[: len(rows[0])]))
    with replacing(path) as file:
        sheet(rows).save(file, format="PNG", pnginfo=about)


def rows_of(photos: int, styles: int) -> int:
    return max(photos, min(styles, MOST_ROWS))


def _square(photo: Tensor) -> Tensor:
    """The middle square of [3, H, W], so that the rows of a sheet line up."""
    height, width = photo.shape[-2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return photo[:, top : top + side, left : left + side]


def sheet(rows: list[list[Image.Image]]) -> Image.Image:
    """Pictures in rows, each row as high as its first picture, with gaps of paper between."""
    width = max(sum(p.width for p in row) + GAP * (len(row) - 1) for row in rows)
    height = sum(row[0].height for row in rows) + GAP * (len(rows) - 1)
    canvas = Image.new("RGB", (width, height), PAPER)
    top = 0
    for row in rows:
        left = 0
        for picture in row:
            canvas.paste(picture, (left, top))
            left += picture.width + GAP
        top += row[0].height + GAP
    return canvas
