#!/usr/bin/env python3
"""How far an encoder can stand in for VGG-19, and what it saves: cost, speed, gradients, ranking.

    python benchmarks/encoder.py --teacher vgg19.safetensors --photos DIR --styles DIR [ENCODER…]

ENCODER is a file made by `tools/distill_encoder.py`; the shipped one by default; several give the
curve of cost against agreement. Photos and styles must be others than those it was distilled from.
Prints a table in Markdown; `--json FILE` keeps the numbers.

- *Speed*: forward and backward to the picture, 256², batches of 1 and of 4, interleaved with the
  teacher's in one run, the median of the ratios; channels last on a CPU, as training does. The
  teacher's convolutions are PyTorch's; what ours, which take it as well, make of it is told, too.
- *Gradients*: of the style loss (mean over the taps) and the content loss (relu3_1) with respect
  to pictures that the *teacher* optimised into the style: barely begun, half done, done, and done
  with noise. Cosine with the teacher's gradient at half resolution (2x2 means) and at full.
- *Ranking*: Spearman's correlation of style distances over all pairs of a picture (photos, and the
  stylized pictures) and a style; over all pairs, and the mean within each style.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from rich.console import Console
from rich.progress import track
from torch import Tensor

from faststy.errors import FaststyError, told
from faststy.evaluation.distances import content_distance, style_distance
from faststy.files import write_text
from faststy.nn.encoder import WEIGHTS, Encoder, PerceptualEncoder, load_encoder
from faststy.ops import conv3x3_train
from faststy.pictures import list_pictures, read_picture

SIZE = 256
STEPS = (4, 12, 36)  # moments of the optimisation that are judged
CONTENT_TAP = 2
BATCHES = (1, 4)  # that are timed

console = Console(stderr=True)


def load_square(path: Path, side: int = SIZE) -> Tensor:
    """The middle of a picture, `[3, side, side]` in 0…1."""
    picture = read_picture(path).rgb
    scale = side / min(picture.size)
    width, height = (max(side, round(s * scale)) for s in picture.size)
    x, y = (width - side) // 2, (height - side) // 2
    picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    pixels = np.array(picture.crop((x, y, x + side, y + side)))
    return torch.from_numpy(pixels).permute(2, 0, 1).float() / 255


def multiply_adds(net: PerceptualEncoder, side: int = SIZE) -> int:
    total = 0
    for t, stage in enumerate(net.stages):
        convs = [*stage, *([net.heads[t]] if len(net.heads) else [])]
        total += sum(conv.weight.numel() * (side >> t) ** 2 for conv in convs)
    return total


def seconds(net: PerceptualEncoder, x: Tensor) -> float:
    """Of one forward and one backward to the picture."""
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    if x.is_cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    taps = net(x)
    torch.autograd.grad(taps, x, [torch.ones_like(tap) for tap in taps])
    if x.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def speeds(
    teacher: PerceptualEncoder, net: PerceptualEncoder, x: Tensor, repeats: int
) -> dict[str, float]:
    """How many times as fast as the teacher `net` is, by PyTorch's convolutions and by ours."""
    rounds = []
    for _ in range(repeats + 1):
        with mock.patch.object(conv3x3_train, "by_extension", return_value=False):
            plain = seconds(teacher, x)
        rounds.append((plain, seconds(teacher, x), seconds(net, x)))
    rounds = rounds[1:]  # the first one warms up
    return {
        f"speed_{len(x)}": statistics.median(plain / own for plain, _, own in rounds),
        f"speed_by_ops_{len(x)}": statistics.median(fused / own for _, fused, own in rounds),
    }


def load_milliseconds(path: Path) -> float:
    times = []
    for _ in range(5):
        start = time.perf_counter()
        Encoder(path)
        times.append(time.perf_counter() - start)
    return 1000 * min(times)


def stylized(teacher: PerceptualEncoder, photos: Tensor, styles: Tensor) -> dict[str, Tensor]:
    """Photos `[N, 3, H, W]` on the way to the style of the same row, optimised with the teacher."""
    found: dict[str, list[Tensor]] = {f"after {n} steps": [] for n in STEPS}
    for photo, style in track(
        list(zip(photos.split(1), styles.split(1), strict=True)), "stylizing", console=console
    ):
        with torch.no_grad():
            content, target = teacher(photo), teacher(style)
        x = photo.clone(memory_format=torch.preserve_format).requires_grad_()
        adam = torch.optim.Adam([x], lr=0.03)
        for step in range(1, STEPS[-1] + 1):
            taps = teacher(x)
            style_loss = style_distance(taps, target).mean()
            content_loss = content_distance(taps[CONTENT_TAP:][:1], content[CONTENT_TAP:][:1])
            (x.grad,) = torch.autograd.grad(5 * style_loss + content_loss.mean(), x)
            adam.step()
            with torch.no_grad():
                x.clamp_(0, 1)
            if step in STEPS:
                found[f"after {step} steps"].append(x.detach().clone())
    pictures = {name: torch.cat(each) for name, each in found.items()}
    noise = torch.randn(photos.shape, generator=torch.Generator().manual_seed(0)).to(photos)
    last = pictures[f"after {STEPS[-1]} steps"]
    return pictures | {"with noise": (last + 0.05 * noise).clamp(0, 1)}


def gradients(
    net: PerceptualEncoder, pictures: Tensor, photos: Tensor, styles: Tensor
) -> dict[str, Tensor]:
    """Of the style and of the content loss, `[N, 3, H, W]` each."""
    rows: dict[str, list[Tensor]] = {"style": [], "content": []}
    for picture, photo, style in zip(
        pictures.split(1), photos.split(1), styles.split(1), strict=True
    ):
        x = picture.clone(memory_format=torch.preserve_format).requires_grad_()
        with torch.no_grad():
            content, target = net(photo), net(style)
        taps = net(x)
        style_loss = style_distance(taps, target).mean()
        content_loss = content_distance(taps[CONTENT_TAP:][:1], content[CONTENT_TAP:][:1]).mean()
        rows["style"] += torch.autograd.grad(style_loss, x, retain_graph=True)
        rows["content"] += torch.autograd.grad(content_loss, x)
    return {name: torch.cat(each) for name, each in rows.items()}


def cosine(a: Tensor, b: Tensor, pool: int) -> float:
    a, b = (F.avg_pool2d(g, pool).flatten(1).double() for g in (a, b))
    return F.cosine_similarity(a, b, eps=1e-30).mean().item()


@torch.no_grad()
def style_distances(net: PerceptualEncoder, pictures: Tensor, styles: Tensor) -> np.ndarray:
    """`[pictures, styles]`, the mean over the taps."""
    targets = [net(style) for style in styles.split(1)]
    rows = []
    for picture in pictures.split(1):
        taps = net(picture)
        rows.append([style_distance(taps, target).mean().item() for target in targets])
    return np.array(rows)


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    ranks = [np.argsort(np.argsort(x.ravel())) for x in (a, b)]
    return float(np.corrcoef(*ranks)[0, 1])


def measure(args: argparse.Namespace) -> dict[str, Any]:
    device = torch.device(args.device)
    layout = torch.channels_last if device.type == "cpu" else torch.contiguous_format
    teacher = load_encoder(f"vgg19:{args.teacher}").to(device, memory_format=layout)
    photo_files, style_files = list_pictures(args.photos), list_pictures(args.styles)
    if not photo_files or not style_files:
        raise FaststyError("no pictures in --photos or --styles")

    def pile(paths: list[Path]) -> Tensor:
        x = torch.stack([load_square(path) for path in paths])
        return x.to(device).contiguous(memory_format=layout)

    photos, styles = pile(photo_files), pile(style_files)
    some = photos[: args.pictures]
    theirs = styles[torch.arange(len(some)) % len(styles)].contiguous(memory_format=layout)
    states = stylized(teacher, some, theirs)
    truth = {name: gradients(teacher, x, some, theirs) for name, x in states.items()}
    everything = torch.cat([photos, *states.values()])
    reference = style_distances(teacher, everything, styles)
    pairs = reference.size
    console.print(f"{len(some)} stylized pictures, {pairs} pairs")

    rows = []
    for path in args.encoders or [WEIGHTS]:
        net = Encoder(path).to(device, memory_format=layout)
        row: dict[str, Any] = {
            "encoder": path.stem,
            "megabytes": path.stat().st_size / 1e6,
            "load_ms": load_milliseconds(path),
            "gmac": multiply_adds(net) / 1e9,
            "mac_ratio": multiply_adds(teacher) / multiply_adds(net),
            "by_kind": {},
        }
        for batch in BATCHES:
            row |= speeds(teacher, net, photos[:batch], args.repeats)
        for name, pictures in states.items():
            ours = gradients(net, pictures, some, theirs)
            row["by_kind"][name] = {
                f"{kind}_{label}": cosine(ours[kind], truth[name][kind], pool)
                for kind in ("style", "content")
                for label, pool in (("low", 2), ("full", 1))
            }
        for key in next(iter(row["by_kind"].values())):
            row[key] = statistics.mean(kind[key] for kind in row["by_kind"].values())
        distances = style_distances(net, everything, styles)
        row["spearman"] = spearman(distances, reference)
        row["spearman_within_style"] = statistics.mean(
            spearman(distances[:, s], reference[:, s]) for s in range(len(styles))
        )
        rows.append(row)
    return {
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "pictures": len(some),
        "pairs": pairs,
        "teacher_gmac": multiply_adds(teacher) / 1e9,
        "rows": rows,
    }


def table(result: dict[str, Any]) -> str:
    columns = {
        "GMAC at 256²": ("gmac", ".2f"),
        "MACs, VGG-19 / it": ("mac_ratio", ".1f"),
        "speed, batch 1": ("speed_1", ".1f"),
        "4": ("speed_4", ".1f"),
        "by our ops, 1": ("speed_by_ops_1", ".1f"),
        "4 ": ("speed_by_ops_4", ".1f"),
        "MB": ("megabytes", ".2f"),
        "load ms": ("load_ms", ".0f"),
        "style ½": ("style_low", ".3f"),
        "style full": ("style_full", ".3f"),
        "content ½": ("content_low", ".3f"),
        "content full": ("content_full", ".3f"),
        "Spearman": ("spearman", ".3f"),
        "within style": ("spearman_within_style", ".3f"),
    }
    lines = ["| encoder | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for row in result["rows"]:
        cells = [format(row[key], form) for key, form in columns.values()]
        lines.append("| " + " | ".join([row["encoder"], *cells]) + " |")
    lines += ["", "| encoder | pictures | style ½ | full | content ½ | full |", "|---" * 6 + "|"]
    for row in result["rows"]:
        for name, kind in row["by_kind"].items():
            cells = [f"{value:.3f}" for value in kind.values()]
            lines.append("| " + " | ".join([row["encoder"], name, *cells]) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("encoders", type=Path, nargs="*", metavar="ENCODER")
    parser.add_argument("--teacher", type=Path, required=True, help="VGG-19 in .safetensors")
    parser.add_argument("--photos", type=Path, required=True, help="photos to measure on")
    parser.add_argument("--styles", type=Path, required=True, help="paintings to measure on")
    parser.add_argument("--pictures", type=int, default=16, help="photos that are stylized")
    parser.add_argument("--repeats", type=int, default=10, help="of the timing")
    parser.add_argument("--json", type=Path, help="where the numbers go too")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    with told():
        result = measure(args)
    print(table(result))
    if args.json:
        write_text(args.json, json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
