#!/usr/bin/env python3
"""What counts of an encoder in the end: the generators that are trained with it.

    python benchmarks/encoder_training.py --teacher vgg19.safetensors --train-photos DIR \\
        --photos DIR --work DIR STYLE STYLE STYLE

For every style picture, two generators are trained from the same seed for the same number of steps,
with VGG-19 and with the shipped encoder, and a third with the shipped encoder for as many steps as
fit into the processor seconds that VGG-19 took (another program on the machine moves the wall clock
by more than the encoder does). All start from noise, not from the bundled model, which was trained
with the shipped encoder; `--base` says otherwise. All paint `--photos`, which none of them saw, and
VGG-19 judges: style distance to the style picture at the size that training shows it, content
distance to the photo at relu3_1. What the shipped encoder makes of the same paintings stands
beside it. Prints a table in Markdown, and leaves a sheet of the paintings to look at, `STYLE.png`,
in `--work`: photos, VGG-19, ours after the same steps, ours after the same seconds. Interrupted,
the same command goes on with the generators that are not there yet.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path

import torch
from encoder import load_square
from PIL import Image
from rich.console import Console
from torch import Tensor

from faststy import ops
from faststy.errors import told
from faststy.evaluation.distances import content_distance
from faststy.files import write_text
from faststy.model_file import load_model
from faststy.nn.encoder import PerceptualEncoder, load_encoder
from faststy.nn.lost_content import CONTENT_TAP
from faststy.pictures import list_pictures, write_picture
from faststy.training.config import BATCH, TrainConfig
from faststy.training.dataset import Pictures
from faststy.training.folder import was_made_by
from faststy.training.loop import train
from faststy.training.objective import inner
from faststy.training.step import StyleTarget

console = Console(stderr=True)


def train_one(
    args: argparse.Namespace, style: Path, encoder: str, name: str, steps: int
) -> tuple[Path, float]:
    """Train the perceptual stage; the model file and the processor seconds it took."""
    out = args.work / f"{style.stem}-{name}"
    note = out / "benchmark.json"
    config = TrainConfig(
        style=(str(style),),
        content=str(args.train_photos),
        cache=str(args.work / "cache"),
        out=str(out),
        size=args.size,
        batch=args.batch,
        stages=("perceptual",),
        encoder=encoder,
        base=args.base,
        seed=args.seed,
        steps=steps,
    )
    if not note.is_file() or not was_made_by(out, config):
        shutil.rmtree(out, ignore_errors=True)
        start = time.process_time()
        result = train(config)
        if not result.finished:
            raise SystemExit("interrupted")
        seconds = time.process_time() - start
        write_text(note, json.dumps({"steps": result.steps, "seconds": seconds}) + "\n")
    return out / "model.safetensors", json.loads(note.read_text())["seconds"]


@torch.no_grad()
def paint(model: Path, photos: Tensor) -> Tensor:
    generator = load_model(model).generator
    return torch.cat([generator(photo) for photo in photos.split(1)]).clamp(0, 1)


@torch.no_grad()
def judge(
    encoder: PerceptualEncoder, painted: Tensor, photos: Tensor, grams: list[Tensor]
) -> dict[str, list[float] | float]:
    """Mean style and content distance of the paintings, and the style distance of every tap."""
    style, content = [], []
    for picture, photo in zip(painted.split(1), photos.split(1), strict=True):
        taps = encoder(picture)
        inside = inner(taps)  # as of the targets
        found = [ops.gram_loss(tap, gram) for tap, gram in zip(inside, grams, strict=True)]
        style.append(torch.stack(found))
        kept = encoder(photo)[CONTENT_TAP]
        content.append(content_distance([taps[CONTENT_TAP]], [kept]).mean())
    per_tap = torch.stack(style).mean(0)
    return {
        "style": per_tap.mean().item(),
        "content": torch.stack(content).mean().item(),
        "style_of_taps": per_tap.tolist(),
    }


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
    parser.add_argument("--base", default="none", help="model to start from: none, auto or a file")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--size", type=int, default=TrainConfig.size)
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--count", type=int, default=24, help="photos that are judged")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    vgg = f"vgg19:{args.teacher}"
    rows = []
    with told():
        judges = {
            name: load_encoder(spec).to(memory_format=torch.channels_last)
            for name, spec in (("vgg19", vgg), ("ours", args.encoder))
        }
        photos = torch.stack([load_square(p) for p in list_pictures(args.photos)[: args.count]])
        photos = photos.contiguous(memory_format=torch.channels_last)
        for path in args.styles:
            pictures = Pictures.found(path, TrainConfig(style=(str(path),)).style_size)
            grams = {
                name: StyleTarget.of(pictures, judge_, torch.device("cpu")).grams
                for name, judge_ in judges.items()
            }
            theirs, slow = train_one(args, path, vgg, "vgg19", args.steps)
            ours, fast = train_one(args, path, args.encoder, "same-steps", args.steps)
            more = round(args.steps * slow / fast)
            longer, long = train_one(args, path, args.encoder, "same-seconds", more)
            paintings = []
            for name, model, steps, seconds in (
                ("VGG-19", theirs, args.steps, slow),
                ("ours, same steps", ours, args.steps, fast),
                ("ours, same seconds", longer, more, long),
            ):
                painted = paint(model, photos)
                paintings.append(painted)
                row = {"style": path.stem, "encoder": name, "steps": steps, "seconds": seconds}
                row |= {who: judge(judges[who], painted, photos, grams[who]) for who in judges}
                rows.append(row)
                console.print(row)
            write_picture(sheet([photos, *paintings]), args.work / f"{path.stem}.png")
    print("| style | trained with | steps | CPU s | style, content | as ours sees it |")
    print("|---" * 6 + "|")
    for row in rows:
        seen = [f"{row[who]['style']:.3f}, {row[who]['content']:.3f}" for who in judges]
        cells = [row["style"], row["encoder"], str(row["steps"]), f"{row['seconds']:.0f}", *seen]
        print("| " + " | ".join(cells) + " |")
    write_text(args.work / "encoder_training.json", json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
