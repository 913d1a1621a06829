#!/usr/bin/env python3
"""What counts of an encoder in the end: the generators that are trained with it.

    python benchmarks/encoder_training.py --teacher vgg19.safetensors --train-photos DIR \\
        --photos DIR --work DIR STYLE STYLE STYLE

For every style picture, two generators are trained from the same seed for the same number of steps,
with VGG-19 and with the shipped encoder, and a third with the shipped encoder for the seconds that
VGG-19 took. All paint `--photos`, which none of them saw, and VGG-19 judges: style distance to the
style picture, content distance to the photo at relu3_1. Prints a table in Markdown, and leaves a
sheet of the paintings to look at, `STYLE.png`, in `--work`.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from encoder import load_square
from PIL import Image
from rich.console import Console
from torch import Tensor

from faststy.errors import FaststyError
from faststy.evaluation.distances import content_distance, style_distance
from faststy.model_file import load_model
from faststy.nn.encoder import PerceptualEncoder, load_encoder
from faststy.pictures import list_pictures, write_picture
from faststy.training.config import TrainConfig
from faststy.training.loop import train

CONTENT_TAP = 2

console = Console(stderr=True)


def train_one(
    args: argparse.Namespace, style: Path, encoder: str, name: str, **length: float
) -> tuple[Path, float]:
    """Train the perceptual stage; the model file and the seconds it took."""
    out = args.work / f"{style.stem}-{name}"
    start = time.perf_counter()
    result = train(
        TrainConfig(
            style=(str(style),),
            content=str(args.train_photos),
            out=str(out),
            size=args.size,
            batch=args.batch,
            stages=("perceptual",),
            encoder=encoder,
            seed=args.seed,
            **length,
        )
    )
    if not result.finished:
        raise SystemExit("interrupted")
    return result.model, time.perf_counter() - start


@torch.no_grad()
def paint(model: Path, photos: Tensor) -> Tensor:
    generator = load_model(model).generator
    return torch.cat([generator(photo) for photo in photos.split(1)]).clamp(0, 1)


@torch.no_grad()
def judge(
    teacher: PerceptualEncoder, painted: Tensor, photos: Tensor, style: Tensor
) -> tuple[float, float]:
    """Mean style and content distance, measured by the teacher."""
    target = teacher(style)
    found = []
    for picture, photo in zip(painted.split(1), photos.split(1), strict=True):
        taps, content = teacher(picture), teacher(photo)
        found.append(
            [
                style_distance(taps, target).mean().item(),
                content_distance(taps, content)[0, CONTENT_TAP].item(),
            ]
        )
    style_mean, content_mean = torch.tensor(found).mean(0).tolist()
    return style_mean, content_mean


def sheet(rows: list[Tensor], count: int = 6) -> Image.Image:
    """Rows of pictures `[N, 3, H, W]`, the first `count` of each, as one picture."""
    grid = torch.cat([torch.cat(list(row[:count]), dim=2) for row in rows], dim=1)
    return Image.fromarray((grid * 255).round().byte().permute(1, 2, 0).numpy())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("styles", type=Path, nargs="+", metavar="STYLE")
    parser.add_argument("--teacher", type=Path, required=True, help="VGG-19 in .safetensors")
    parser.add_argument("--encoder", default="faststy", help="ours: faststy or faststy:FILE")
    parser.add_argument("--train-photos", type=Path, required=True)
    parser.add_argument("--photos", type=Path, required=True, help="photos to paint and judge")
    parser.add_argument("--work", type=Path, required=True, help="runs and sheets")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--count", type=int, default=24, help="photos that are judged")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    vgg = f"vgg19:{args.teacher}"
    rows = []
    try:
        teacher = load_encoder(vgg).to(memory_format=torch.channels_last)
        photos = torch.stack([load_square(p) for p in list_pictures(args.photos)[: args.count]])
        photos = photos.contiguous(memory_format=torch.channels_last)
        for path in args.styles:
            style = load_square(path)[None].contiguous(memory_format=torch.channels_last)
            theirs, seconds = train_one(args, path, vgg, "vgg19", steps=args.steps)
            ours, fewer = train_one(args, path, args.encoder, "same-steps", steps=args.steps)
            longer, _ = train_one(args, path, args.encoder, "same-seconds", seconds=seconds)
            paintings = []
            for name, model in (
                ("VGG-19", theirs),
                ("ours, same steps", ours),
                ("ours, same seconds", longer),
            ):
                painted = paint(model, photos)
                paintings.append(painted)
                style_error, content_error = judge(teacher, painted, photos, style)
                rows.append(
                    {
                        "style": path.stem,
                        "encoder": name,
                        "seconds": fewer if model == ours else seconds,
                        "style_distance": style_error,
                        "content_distance": content_error,
                    }
                )
                console.print(rows[-1])
            write_picture(sheet([photos, *paintings]), args.work / f"{path.stem}.png")
    except FaststyError as error:
        raise SystemExit(f"error: {error}") from error
    print("| style | trained with | seconds | style distance | content distance |")
    print("|---" * 5 + "|")
    for row in rows:
        print(
            f"| {row['style']} | {row['encoder']} | {row['seconds']:.0f} "
            f"| {row['style_distance']:.3f} | {row['content_distance']:.3f} |"
        )
    (args.work / "encoder_training.json").write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
