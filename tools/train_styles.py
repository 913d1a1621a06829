"""Makes the bundled model, faststy/assets/styles.safetensors: the ready styles, and the base that
`faststy train` starts from.

    python tools/train_styles.py --content photos/ --paintings paintings/ --seconds 4200

One generator for the styles below, on a folder of photos (the bundled ones are too few to be
general), stored in half precision. Of these styles, seven are bundled; the others lie in the folder
of paintings under the same names: pictures, or a folder of them. Interrupted, the same command with
--resume goes on. With --on the generator of --out is trained on, on larger crops and with more
against a grid; with --repairer only the repairer is, and --resume begins anew; with --calm STYLE
only the norms of that style are, against patches of colour, and all other styles stay as they are;
with --mean nothing is, but --out becomes the mean of models that began as one (Wortsman et al.
2022, "Model soups").

The shipped file: 1,310 photos (ImageNet samples, BSDS500), one core of an AMD EPYC. 70 minutes from
noise, 11,419 steps of the generator; --on for 28 minutes, 15,458 steps, and the mean of 65 % of
that and 35 % of what was before; --on --style-weight 28 for 35 minutes, 17,500 steps, once with
--seed 7 and once with --seed 8, and the --mean of both. The repairer: 4,500 steps in the first of
these, 2,900 and 30 % of the weights that 2,050 more made after the second. After the last one:
7,150 with the excess of style weighing 16 (see `REPAIR_WEIGHTS` in faststy/training/step.py); from
48 % of these weights and 52 % of those before, twice 3,150 with 10; and 29 % of each of these two
with 42 % of those before are what is bundled. Then the patches term came, and for the generator
--on --style-weight 28 once more: 32 minutes with --seed 11, 8,021 steps, 6 minutes with --seed 9
(the weights of patches and lattice 2 and 3 there), and the --mean of both. Last, the repairer:
3,150 steps with FREE 0.001 and the weights of style and excess 0.1 and 0.3, 2,750 with 0.02 and
0.12, and 30 % of the 1,750 that followed with 0.02 and 0.09.

Then against the dull frame that all styles had, with two seeds, patches weighing 2, on one thread
each: --on --style-weight 28 for 2,440 steps; 1,930 at a rate of 1.5e-3 where the encoder saw
pictures that go on in mirror images, nothing left out of its taps; 4,730 more with a term that
the outermost 24 px of a painted crop have the colours and contrasts, in cells of 8 px, that they
have in the painting of the whole (weight 1.5); and the --mean of both. The repairer: 40 % of 1,800
steps at half of the full rate, with FREE 0.001 and 0.02 and 0.12, and 60 % of before.

Then --calm --style-weight 28 for watercolor, the_scream and contrast_of_forms, which had red and
orange patches on faces: 1,500 steps each, some six minutes on one thread, at a rate that fell by a
half cosine.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from faststy import assets
from faststy.errors import FaststyError, told
from faststy.model_file import load_model, save_model
from faststy.nn.encoder import load_encoder
from faststy.nn.generator import Generator
from faststy.nn.normalization import ConditionalInstanceNorm2d
from faststy.training.adam import Adam
from faststy.training.config import TrainConfig
from faststy.training.dataset import Pictures, generator, random_crops
from faststy.training.log import Log, Progress
from faststy.training.loop import PHOTO_ZOOM, train
from faststy.training.picture_cache import PictureCache
from faststy.training.schedule import Schedule
from faststy.training.step import StyleTarget, Trainer

STYLES = {
    "swirl": "night blue and yellow, in flowing strokes of thick paint",
    "woodcut": "lines cut into a block, printed in ink and faint colour",
    "stained_glass": "panes of coloured glass with light behind, held by lead",
    "palette_knife": "patches of oil paint laid on with a knife",
    "ink": "cross-hatching with a pen on cream paper",
    "mosaic": "small coloured stones set in mortar",
    "watercolor": "washes that bleed into each other on rough paper",
    "great_wave": "a print in Prussian blue on pale paper, after Hokusai",
    "the_scream": "orange and dark green in long waves, after Munch",
    "contrast_of_forms": "black, white and red on bare canvas, after Léger",
    "shipwreck_of_the_minotaur": "storm light in dark oil, after Turner",
    "vangogh_drawings": "reed pen and sepia, after the drawings of van Gogh",
}
ON: dict[str, Any] = {
    "size": 192,
    "batch": 2,
    "stages": ("perceptual", "adversarial"),
    "style_weight_start": 0.5,  # it can paint already
    "learning_rate": 8e-4,
    "lattice_weight": 3.0,
}
CALM: dict[str, Any] = {"size": 256, "batch": 1, "lattice_weight": 3.0, "patches_weight": 6.0}
NORMS_RATE = 4e-3  # of norms alone: the kernels, which would be lost at it, are held
FINE = 0.2  # of the full learning rate, to go on from what is trained already
CPU = torch.device("cpu")
LICENSE = "Apache-2.0; styles painted by tools/paint_styles.py, and old paintings and drawings"


def show(progress: Progress) -> None:
    print(f"\r{progress.stage} {progress.fraction:.0%} step {progress.step}", end="", flush=True)


def picture_of(style: str, paintings: Path) -> str:
    """The picture, or the folder of pictures, that shows `style`."""
    if style in assets.styles():
        return str(assets.styles()[style])
    for path in (paintings / style, paintings / f"{style}.jpg"):
        if path.exists():
            return str(path)
    raise FaststyError(f"{paintings}: holds neither {style}.jpg nor a folder {style}")


def prepared(config: TrainConfig) -> tuple[Pictures, Trainer]:
    """The photos of a run, and a trainer for its styles, whose nets are new."""
    assert config.content is not None
    cache, encoder = PictureCache(Path(config.out) / "cache"), load_encoder(config.encoder)
    photos = Pictures.found(Path(config.content), round(config.size * PHOTO_ZOOM[1]), cache)
    sources = [Pictures.found(Path(style), config.style_size, cache) for style in config.style]
    styles = [StyleTarget.of(source, encoder, CPU) for source in sources]
    return photos, Trainer(config, encoder, styles, CPU)


def learn(config: TrainConfig, photos: Pictures, trainer: Trainer, stage: str, rate: float) -> None:
    """Steps of a stage for the seconds of a run, at `rate` of the full learning rate."""
    assert config.seconds is not None
    schedule, log = Schedule(config), Log(None, 0)  # of means alone: the file is the generator's
    start, end = (schedule.generator_end, 1) if stage == "repair" else (0, schedule.generator_end)
    began, step = time.monotonic(), 0
    while (done := (time.monotonic() - began) / config.seconds) < 1:
        fraction = start + done * (end - start)
        trainer.set_learning_rate(rate * schedule.learning_rate(fraction, step))
        photo = random_crops(
            photos, config.batch, config.size, PHOTO_ZOOM, generator(config.seed, step)
        )
        log.add(stage, trainer.step(step, stage, photo, config.style_weight))
        step += 1
        if step % 50 == 0:
            terms = {name: round(value, 3) for name, value in log.means().items()}
            print(f"{done:.0%} step {step} {terms}", flush=True)


def train_repairer(config: TrainConfig, path: Path) -> None:
    """Train the repairer of the model at `path` on, with its generator held.

    Raises FaststyError for a model without one.
    """
    model = load_model(path)
    if model.repairer is None:
        raise FaststyError(f"{path}: has no repairer to train on")
    photos, trainer = prepared(config)
    trainer.average.load_state_dict(model.generator.state_dict())
    trainer.repairer.load_state_dict(model.repairer.state_dict())
    learn(config, photos, trainer, "repair", FINE)
    trainer.repairer.eval().requires_grad_(False)
    model.repairer = trainer.repairer
    save_model(model, path, torch.float16)


def train_norms(config: TrainConfig, path: Path, style: str) -> None:
    """Train the norms of one style of the model at `path` on; what all styles share is held, and
    the other styles with it. The picture of `style` is the only one of `config`.

    Raises FaststyError for a style that the model lacks.
    """
    model = load_model(path)
    if style not in model.info.styles:
        raise FaststyError(f"{path}: has no style {style}, only {', '.join(model.info.styles)}")
    row = model.info.styles.index(style)
    photos, trainer = prepared(config)
    norms = norms_of(trainer.generator)
    for net in (trainer.generator, trainer.average):
        weights = model.generator.state_dict()
        for name, own in net.state_dict().items():
            whole = weights[name]
            weights[name] = whole if whole.shape == own.shape else whole[row : row + 1]
        net.load_state_dict(weights)
    trainer.generator.requires_grad_(False)
    norms.requires_grad_(True)
    trainer.optimisers["generator"] = Adam(norms, NORMS_RATE, (0.9, 0.99))
    learn(config, photos, trainer, "perceptual", 1.0)
    for whole, own in zip(norms_of(model.generator), norms_of(trainer.average), strict=True):
        for into, found in zip(whole.parameters(), own.parameters(), strict=True):
            into[row] = found[0]
    save_model(model, path, torch.float16)


def norms_of(net: Generator) -> nn.ModuleList:
    return nn.ModuleList(m for m in net.modules() if isinstance(m, ConditionalInstanceNorm2d))


def save_mean(paths: list[Path], target: Path) -> None:
    """Save the first of the models with the mean weights of all their generators.

    Raises FaststyError where they differ in size or styles.
    """
    models = [load_model(path) for path in paths]
    first = models[0].info
    for path, model in zip(paths, models, strict=True):
        if (model.info.generator, model.info.styles) != (first.generator, first.styles):
            raise FaststyError(f"{path}: is of other sizes or styles than {paths[0]}; no mean")
    for weights in zip(*(model.generator.parameters() for model in models), strict=True):
        weights[0].copy_(torch.stack([*weights]).mean(0))
    save_model(models[0], target, torch.float16)


def main() -> None:
    raw = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--content", help="folder of photos")
    parser.add_argument("--paintings", type=Path, help="folder of style pictures")
    parser.add_argument("--seconds", type=float, default=4200)
    parser.add_argument("--run", default="styles-run", help="folder of the training run")
    parser.add_argument("--resume", action="store_true", help="go on with the generator")
    parser.add_argument("--on", action="store_true", help="train the generator of --out on")
    parser.add_argument("--repairer", action="store_true", help="train only the repairer of --out")
    parser.add_argument("--calm", metavar="STYLE", help="train only the norms of that style on")
    parser.add_argument("--mean", nargs="+", type=Path, help="make --out the mean of these models")
    parser.add_argument("--style-weight", type=float, default=15.0, help="λ, 15 by default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=assets.model())
    arguments = parser.parse_args()
    if arguments.mean:
        save_mean(arguments.mean, arguments.out)
        return
    if arguments.content is None or arguments.paintings is None:
        parser.error("--content and --paintings are needed")
    pictures = tuple(picture_of(style, arguments.paintings) for style in STYLES)
    config = TrainConfig(
        style=pictures,
        content=arguments.content,
        seconds=arguments.seconds,
        out=arguments.run,
        base="none",
        size=128,
        batch=4,  # of several styles in a step
        style_size=640,  # larger strokes than by default: there is time to learn them
        style_weight=arguments.style_weight,
        seed=arguments.seed,
    )
    if arguments.calm:
        picture = picture_of(arguments.calm, arguments.paintings)
        train_norms(replace(config, style=(picture,), **CALM), arguments.out, arguments.calm)
        return
    if arguments.repairer:
        train_repairer(replace(config, size=192, batch=3), arguments.out)
        return
    if arguments.on:
        config = replace(config, base=str(arguments.out), **ON)
    result = train(config, show, resume=arguments.resume)
    print()
    if not result.finished:
        raise FaststyError("interrupted; the same command with --resume goes on")
    model = load_model(result.model)
    if arguments.on:
        before = load_model(arguments.out)
        model.repairer, model.info.repairer = before.repairer, before.info.repairer
        model.info.steps += before.info.steps
    model.info.license, model.info.descriptions = LICENSE, STYLES
    save_model(model, arguments.out, torch.float16)
    print(arguments.out)


if __name__ == "__main__":
    with told():
        main()
