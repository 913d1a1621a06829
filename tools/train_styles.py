"""Makes the bundled model of ready styles, faststy/assets/styles.safetensors.

    python tools/train_styles.py --content photos/ --seconds 640

One model for the style pictures below, on a folder of photos (the bundled ones are too few to be
general), stored in half precision. Interrupted, the same command with --resume goes on. The shipped
file: 1,310 photos (ImageNet samples, BSDS500), 11 minutes on two cores of an AMD EPYC, 2,399 steps.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from faststy import assets
from faststy.model_file import load_model, save_model
from faststy.training.config import TrainConfig
from faststy.training.loop import Progress, train

STYLES = ("swirl", "woodcut", "stained_glass", "palette_knife", "ink")
LICENSE = "Apache-2.0; trained on styles painted by tools/paint_styles.py"


def show(progress: Progress) -> None:
    print(f"\r{progress.stage} {progress.fraction:.0%} step {progress.step}", end="", flush=True)


def main() -> None:
    raw = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--content", required=True, help="folder of photos")
    parser.add_argument("--seconds", type=float, default=640)
    parser.add_argument("--run", default="styles-run", help="folder of the training run")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--out", type=Path, default=assets.model())
    arguments = parser.parse_args()
    pictures = tuple(str(assets.styles()[name]) for name in STYLES)
    config = TrainConfig(
        style=pictures, content=arguments.content, seconds=arguments.seconds, out=arguments.run
    )
    result = train(config, show, resume=arguments.resume)
    print()
    if result.finished:
        model = load_model(result.model)
        model.info.license = LICENSE
        save_model(model, arguments.out, torch.float16)
        print(arguments.out)


if __name__ == "__main__":
    main()
