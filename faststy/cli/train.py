"""`faststy train`: the look of a painting into a small model, in minutes."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

import click

from faststy.cli import STOPPED, _options, counted, skipped_entries, tell_events, tell_skipped
from faststy.errors import FaststyError
from faststy.training.config import ADVERSARIAL, BATCH, GPU_BATCH, MODELS, PRECISIONS, TrainConfig

if TYPE_CHECKING:
    from faststy.training.loop import TrainResult

DEFAULT = {field.name: field.default for field in fields(TrainConfig)}


@click.command()
@click.argument("style", nargs=-1, type=_options.NAME)
@click.option(
    "--content", type=_options.NAME, help="Folder of photos to learn on.  [default: bundled]"
)
@click.option("--out", type=_options.NAME, help="Folder of the run.  [default: run]")
@click.option("--steps", type=int, help="Length of the run in steps, instead of --seconds.")
@click.option("--seconds", type=float, help="Length in seconds of wall clock, the start "
              "included.  [default: 180]")  # fmt: skip
@click.option("--size", type=int, help="Side of the training crops in pixels: 64 to 1024, in steps "
              f"of 8.  [default: {DEFAULT['size']}]")  # fmt: skip
@click.option("--batch", type=int, help="Crops per step; with torchrun at least 2 a worker.  "
              f"[default: {BATCH}, on a GPU {GPU_BATCH}]")  # fmt: skip
@click.option(
    "--model",
    type=click.Choice(MODELS),
    help=f"Size of the generator.  [default: {DEFAULT['model']}]",
)
@click.option("--base", type=_options.NAME, help="Model to start from: FILE, none (noise), "
              "or auto: the bundled one; quality grows it, nano begins from noise.  "
              "[default: auto]")  # fmt: skip
@click.option("--style-size", type=int, help="Short side of the style pictures: the smaller, the "
              f"smaller the strokes.  [default: {DEFAULT['style_size']}]")  # fmt: skip
@click.option(
    "--style-weight",
    type=float,
    help=f"λ, how strong the style gets.  [default: {DEFAULT['style_weight']:g}]",
)
@click.option("--style-share", type=float, help="Let λ rise until the style has this share of the "
              "loss, 0...1.  [default: λ rises to --style-weight]")  # fmt: skip
@click.option(
    "--stages",
    help="perceptual, perceptual,adversarial or perceptual,adversarial,repair.  [default: all]",
)
@click.option("--adversarial", type=click.Choice(ADVERSARIAL), help="Form of the "
              f"adversarial term.  [default: {DEFAULT['adversarial']}]")  # fmt: skip
@click.option(
    "--pairs",
    type=_options.NAME,
    help="Folder whose before/ and after/ hold pictures of the same names: also learn the first "
    "style from them.",
)
@click.option("--encoder", type=str, help="faststy, vgg19 or vgg19:FILE.  [default: faststy]")
@click.option("--cache", type=_options.NAME, help="Folder that keeps decoded pictures for later "
              "runs, too.  [default: in memory; the rest beside the run]")  # fmt: skip
@click.option("--checkpoint-every", type=float, help="Seconds between checkpoints; "
              "more where one takes over a twentieth of that.  "
              f"[default: {DEFAULT['checkpoint_every']:g}]")  # fmt: skip
@click.option("--tensorboard/--no-tensorboard", default=None, help="Also write event files for "
              "TensorBoard into the run's folder.")  # fmt: skip
@click.option("--seed", type=int, help="With --steps: same seed, machine and threads, same model.  "
              f"[default: {DEFAULT['seed']}]")  # fmt: skip
@click.option("--device", type=str, help="auto, cpu, cuda, cuda:1, …  [default: auto]")
@click.option("--precision", type=click.Choice(PRECISIONS), help="Of the "
              "convolutions; auto: bfloat16 where that is faster.  [default: auto]")  # fmt: skip
@click.option("--config", type=_options.PATH, help="Settings from a TOML file; flags win.")
@click.option("--resume", is_flag=True, help="Go on with the run in --out; with one "
              "that is done, where --steps or --seconds is larger now.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object at the end.")
def command(
    style: tuple[str, ...],
    config: Path | None,
    resume: bool,
    as_json: bool,
    stages: str | None,
    **flags: Any,
) -> None:
    """Train the look of each STYLE, a picture or a folder of them.

    \b
    faststy train painting.jpg
    faststy train monet/ --content photos/ --seconds 600 --model quality --out run-monet
    faststy train --resume --out run-monet
    torchrun --nproc-per-node=8 -m faststy train painting.jpg --batch 64

    The run's folder holds model.safetensors, preview.png, report.html, log.jsonl and config.toml.
    Interrupted or killed, it goes on with --resume.
    """
    from faststy.cli._display import display
    from faststy.training.config import read_config
    from faststy.training.distributed import told_rank
    from faststy.training.loop import train

    flags["out"] = flags["out"] or None  # "" is no folder either
    out = Path(flags["out"] or "run")
    recorded = out / "config.toml"
    if resume and config is None and recorded.exists():
        config, flags["out"] = recorded, str(out)  # the folder may have been moved
    elif config is None and not style:
        if resume:
            raise FaststyError(f"{out}: holds no training run to go on with; is --out right?")
        raise FaststyError("name the style, a picture or a folder: faststy train painting.jpg")
    settings = read_config(
        config,
        style=style or None,
        stages=tuple(s.strip() for s in stages.split(",")) if stages is not None else None,
        **flags,
    )
    if told_rank() > 0:  # the first worker tells for all
        raise SystemExit(0 if train(settings, resume=resume).finished else STOPPED)
    with display(settings.seconds_budget, "faststy train") as show:
        result = train(settings, show, resume=resume)
    _tell(result, as_json, show.told)


def _tell(result: TrainResult, as_json: bool, told: set[str]) -> None:
    """What was done; of the events those that are not `told` yet."""
    tell_skipped(result.skipped)
    if result.skipped:
        click.echo(f"skipped {counted(len(result.skipped), 'picture')} in all", err=True)
    tell_events(result.events, told)
    if as_json:
        values = {
            "run": str(result.run),
            "model": str(result.model) if result.finished else None,
            "finished": result.finished,
            "steps": result.steps,
            "seconds": round(result.seconds, 2),
            "images_per_second": round(result.images_per_second, 2),
            "skipped": skipped_entries(result.skipped),
            "skipped_steps": result.skipped_steps,
            "events": list(result.events),
        }
        click.echo(json.dumps(values, ensure_ascii=False))
    if not result.finished:
        resume = f"faststy train --resume --out {quote(str(result.run))}"
        if result.steps:
            click.echo(f"for the model as it is: {resume} --steps {result.steps}", err=True)
        click.echo(f"stopped; go on with: {resume}", err=True)
        raise SystemExit(STOPPED)
    if not as_json:
        rate = result.images_per_second  # of this process, which may have had nothing to do
        click.echo(
            f"{result.steps} steps in {result.seconds:.0f} s"
            f"{f', {rate:.1f} images/s' if rate else ''}\n"
            f"model   {result.model}\n"
            f"report  {result.run / 'report.html'}\n"
            f"paint   faststy stylize photo.jpg -m {quote(str(result.model))}"
        )
