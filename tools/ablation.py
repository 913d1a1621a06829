"""What each stage earns: trains styles with and without it, and measures the paintings.

    python tools/ablation.py STYLE STYLE STYLE STYLE --content photos/train --photos photos/val

Per style picture two runs from scratch: the perceptual stage alone, and all stages, where the
generator gets as many steps; the paintings of the second without its repairer show what the
adversarial stage adds. Interrupted, the same command goes on: finished runs are kept in --runs.
Writes ablation.md to --out, and ablation.jpg with a bundled photo in each variant. Judge with the
teacher: --encoder vgg19:FILE.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import torch
from PIL import Image

from faststy import assets
from faststy.errors import FaststyError, told
from faststy.evaluation.checkerboard import STRIDES
from faststy.evaluation.measure import Evaluation, Scores, evaluate, style_grams
from faststy.files import write_text
from faststy.model_file import Model, load_model
from faststy.nn.encoder import load_encoder
from faststy.pictures import list_pictures, read_picture, scale_down, write_picture
from faststy.stylization.contact_sheet import labelled
from faststy.stylization.stylizer import Stylizer
from faststy.tensors import device_named
from faststy.training.config import TrainConfig
from faststy.training.folder import was_made_by
from faststy.training.loop import Progress, train
from faststy.training.schedule import SHARES

VARIANTS = ("perceptual only", "+ adversarial", "+ repair")
TILE = 240  # px, longest side of a picture on the sheet
HEAD = """# What each stage earns

Made by `{command}`: {styles} styles, {steps:,} steps of the generator each, from scratch, on
{trained} photos; measured on {photos} others with the encoder `{encoder}`.

- *content*: relative distance of relu3_1 from the photo's.
- *inside*, *outside*: the same with the style normalised away, inside and outside of the
  lost-content map of the painting without repair.
- *style*: relative distance of the Gram matrices from the style's.
- *grid*: the checkerboard score at strides 2, 4, 8, less the photo's own.

| style | stages | content | inside | outside | style | grid 2 | grid 4 | grid 8 |
|---|---|---|---|---|---|---|---|---|
"""


def main() -> None:
    arguments = parse()
    with told():
        compare(arguments)


def compare(arguments: argparse.Namespace) -> None:
    """Train, measure and write what is compared."""
    device = device_named(arguments.device)
    judge = load_encoder(arguments.encoder).to(device)
    photos = list_pictures(arguments.photos)[: arguments.count]
    rows: dict[str, list[Scores]] = {}
    sheets, judged = [], set()
    for style in arguments.style:
        before, after = (trained(arguments, style, stages) for stages in (SHORT, FULL))
        targets = [style_grams(style, TrainConfig.style_size, judge, device)]
        results = []
        for model in (before, after):
            named = dict(zip(model.info.styles, targets, strict=True))
            results.append(evaluate(model, photos, named, judge, device, size=arguments.size))
        rows[style.stem] = list(means(*results))
        judged |= {entry.photo for result in results for entry in result.entries}
        sheets.append(pictures(style.stem, before, after, device, arguments.size))
        report(arguments, rows, sheets, len(judged))  # after each style: nothing is lost
    print(arguments.out / "ablation.md")


SHORT, FULL = ("perceptual",), tuple(SHARES)


def trained(arguments: argparse.Namespace, style: Path, stages: tuple[str, ...]) -> Model:
    """The model of one run, trained unless it is there already.

    Raises FaststyError when it was interrupted, has other settings, or lost its repairer.
    """
    run = arguments.runs / style.stem / "-".join(stages)
    model = run / "model.safetensors"
    steps = arguments.steps
    if "repair" in stages:  # the repairer's steps come on top
        steps = round(steps / (1 - SHARES["repair"]))
    # Whatever net training starts from otherwise has seen all stages.
    scratch = {f.name: "none" for f in fields(TrainConfig) if f.name == "base"}
    config = TrainConfig(
        style=(str(style),),
        content=str(arguments.content),
        out=str(run),
        steps=steps,
        stages=stages,
        device=arguments.device,
        **scratch,
    )
    if not model.exists():
        label = f"{style.stem}, {' '.join(stages)}"

        def show(progress: Progress) -> None:
            print(f"\r{label}: {progress.fraction:.0%}", end="", flush=True)

        result = train(config, show, resume=(run / "config.toml").exists())
        print()
        if not result.finished:
            raise FaststyError("interrupted; the same command goes on")
    if not was_made_by(run, config):
        raise FaststyError(f"{run}: holds a run with other settings; choose other --runs")
    found = load_model(model)
    if "repair" in stages and found.repairer is None:
        raise FaststyError(f"{run}: its repairer made paintings flat and was left out of the model")
    return found


def means(before: Evaluation, after: Evaluation) -> Iterator[Scores]:
    """The scores of the three variants."""
    for evaluation, repaired in ((before, False), (after, False), (after, True)):
        scores = evaluation.mean(repaired=repaired)
        assert scores is not None
        yield scores


def pictures(
    style: str, before: Model, after: Model, device: torch.device, size: int
) -> list[tuple[str, Image.Image]]:
    """A bundled photo as it is and in the three variants, each with its label."""
    photo = scale_down(read_picture(assets.photos()[0]).rgb, size)
    variants = ((before, 0), (after, 0), (after, 1))
    shown = [Stylizer(model, device)(photo, repair=repair) for model, repair in variants]
    return [(style, photo), *zip(VARIANTS, shown, strict=True)]


def report(
    arguments: argparse.Namespace,
    rows: dict[str, list[Scores]],
    sheets: list[list[tuple[str, Image.Image]]],
    photos: int,
) -> None:
    """Write the table and the sheet."""
    name, _, file = arguments.encoder.partition(":")
    judge = f"{name}:FILE" if file else name
    head = HEAD.format(
        command=(
            f"python tools/ablation.py STYLE… --content DIR --photos DIR --count {arguments.count} "
            f"--size {arguments.size} --steps {arguments.steps} --encoder {judge}"
        ),
        styles=len(rows),
        steps=arguments.steps,
        trained=f"{len(list_pictures(arguments.content)):,}",
        photos=photos,
        encoder=name,
    )
    lines = [
        line(name, variant, each)
        for name, scores in rows.items()
        for variant, each in zip(VARIANTS, scores, strict=True)
    ]
    changes = [change(name, *scores[1:]) for name, scores in rows.items()]
    text = head + "\n".join(lines) + "\n\n## What the repair changes\n\n"
    text += "| style | content inside | style distance |\n|---|---|---|\n" + "\n".join(changes)
    text += "\n\n![a bundled photo and its paintings](ablation.jpg)\n"
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_text(arguments.out / "ablation.md", text)
    cells = [(name, picture) for row in sheets for name, picture in row]
    for _, picture in cells:
        picture.thumbnail((TILE, TILE))
    write_picture(labelled(cells, columns=len(sheets[0])), arguments.out / "ablation.jpg")


def line(name: str, variant: str, scores: Scores) -> str:
    distances = (scores.content, scores.inside, scores.outside, scores.style)
    cells = [f"{value:.3f}" for value in distances]
    cells += [f"{scores.checkerboard.get(stride, float('nan')):+.2f}" for stride in STRIDES]
    return f"| {name.replace('_', ' ')} | {variant} | {' | '.join(cells)} |"


def change(name: str, without: Scores, repaired: Scores) -> str:
    inside, style = repaired.inside / without.inside - 1, repaired.style / without.style - 1
    return f"| {name.replace('_', ' ')} | {inside:+.0%} | {style:+.0%} |"


def parse() -> argparse.Namespace:
    raw = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("style", nargs="+", type=Path, help="style pictures, at least four")
    parser.add_argument("--content", required=True, type=Path, help="folder of photos to train on")
    parser.add_argument("--photos", required=True, type=Path, help="folder of photos to measure on")
    parser.add_argument("--count", type=int, default=30, help="how many of them (default 30)")
    parser.add_argument("--size", type=int, default=320, help="their short side, px (default 320)")
    parser.add_argument("--steps", type=int, default=1000, help="of each generator (default 1000)")
    parser.add_argument("--encoder", default="faststy", help="the judge: faststy or vgg19:FILE")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--runs", type=Path, default=Path("ablation-runs"))
    parser.add_argument("--out", type=Path, default=Path("docs"))
    arguments = parser.parse_args()
    names = [style.stem for style in arguments.style]
    if len({*names}) < len(names):
        parser.error("two styles have the same name, and a run is named after its style")
    return arguments


if __name__ == "__main__":
    main()
