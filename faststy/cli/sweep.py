"""`faststy sweep`: the same style with several λ, to pick by eye and by numbers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any, NoReturn

import click

from faststy.cli import STOPPED, _options, skipped_entries, tell_events, tell_skipped
from faststy.errors import FaststyError
from faststy.training.config import MODELS, TrainConfig, read_config

if TYPE_CHECKING:
    from faststy.sweep.sweep import SweepResult


def _numbers(context: click.Context, option: click.Parameter, text: str | None) -> Any:
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise FaststyError(
            f"style-weights is {text!r}; it must be numbers with commas between, like 5,15,45"
        ) from None


@click.command()
@click.argument("style", required=False, type=_options.NAME)
@click.option("--style-weights", metavar="λ,λ,…", callback=_numbers, help="The style weights to "
              "try, like 5,15,45.  [required for a new sweep]")  # fmt: skip
@click.option(
    "--content", type=_options.NAME, help="Folder of photos to learn on.  [default: bundled]"
)
@click.option("--out", type=_options.NAME, help="Folder of the sweep.  [default: sweep]")
@click.option("--steps", type=int, help="Length of each run in steps, instead of --seconds.")
@click.option("--seconds", type=float, help="Length of each run in seconds.  [default: 180]")
@click.option("--model", type=click.Choice(MODELS), help="Size of the generator.")
@click.option("--size", type=int, help="Side of the training crops in pixels: 64 to 1024, in steps "
              "of 8.")  # fmt: skip
@click.option("--batch", type=int, help="Crops per step.")
@click.option("--style-size", type=int, help="Short side of the style pictures.")
@click.option("--seed", type=int, help="With --steps: same seed, machine and threads, same models.")
@click.option("--device", type=str, help="auto, cpu, cuda, cuda:1, …")
@click.option("--config", type=_options.PATH, help="All settings of `faststy train` "
              "from a TOML file; flags win.")  # fmt: skip
@click.option("--resume", is_flag=True, help="Go on with the sweep in --out; λ can be added.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object at the end.")
def command(
    style: str | None,
    style_weights: list[float] | None,
    config: Path | None,
    resume: bool,
    as_json: bool,
    **flags: Any,
) -> None:
    """Train the look of STYLE with several λ side by side.

    \b
    faststy sweep painting.jpg --style-weights 5,15,45
    faststy sweep --resume --out sweep

    The folder holds a run for each λ, contact_sheet.png, curve.png with the distance from the photo
    against that from the style, and both on the page sweep.html, which grows while it trains.
    """
    from faststy.cli._display import display
    from faststy.sweep.sweep import sweep
    from faststy.training.log import Progress

    if config is None:
        flags["out"] = flags["out"] or "sweep"
        recorded = Path(flags["out"]) / "config.toml"
        if resume and recorded.exists():
            config = recorded
        elif resume and not style and (recorded.parent / "sweep.json").exists():
            raise FaststyError(
                f"{flags['out']}: holds a sweep without its settings; name the style, and what "
                "else you chose, again"
            )
        elif resume and not style:
            raise FaststyError(f"{flags['out']}: holds no sweep to go on with; is --out right?")
        elif not style:
            raise FaststyError(
                "name the style, a picture or a folder, and some λ: "
                "faststy sweep painting.jpg --style-weights 5,15,45"
            )
    settings = read_config(config, style=(style,) if style else None, **flags)
    if flags["out"] is None and settings.out == TrainConfig.out:
        settings = replace(settings, out="sweep")
    with display(None, "faststy sweep") as show:

        def on_progress(label: str, progress: Progress) -> None:
            show.label = label
            show(progress)

        try:
            result = sweep(settings, style_weights, on_progress, resume=resume)
        except KeyboardInterrupt:  # while it judges; training ends by itself
            if not (Path(settings.out) / "sweep.json").exists():
                raise
            _stop(settings.out)
    _tell(result, as_json, show.told)


def _tell(result: SweepResult, as_json: bool, told: set[str]) -> None:
    """What was done; of the events those that are not `told` yet."""
    tell_skipped(result.skipped)
    tell_events(result.events, told)
    if as_json:
        click.echo(json.dumps(_values(result), ensure_ascii=False))
    elif result.points:
        _print(result)
    if not result.finished:
        _stop(str(result.out))


def _stop(out: str) -> NoReturn:
    click.echo(f"stopped; go on with: faststy sweep --resume --out {quote(out)}", err=True)
    raise SystemExit(STOPPED)


def _values(result: SweepResult) -> dict[str, Any]:
    return {
        "out": str(result.out),
        "finished": result.finished,
        "suggested": result.suggested,
        "points": [
            {
                "style_weight": p.style_weight,
                "model": str(p.model),
                "steps": p.steps,
                "content": round(p.content, 5),
                "style": round(p.style, 5),
                "lost": round(p.lost, 5),
            }
            for p in result.points
        ],
        "contact_sheet": str(result.sheet) if result.points else None,
        "curve": str(result.curve) if result.points else None,
        "page": str(result.page) if result.points else None,
        "skipped": skipped_entries(result.skipped),
        "events": list(result.events),
    }


def _print(result: SweepResult) -> None:
    click.echo(f"{'λ':>8} {'content':>9} {'style':>9} {'lost':>7} {'steps':>7}")
    for p in result.points:
        picked = "  nearest to the best of both" if p.style_weight == result.suggested else ""
        click.echo(
            f"{p.style_weight:8g} {p.content:9.3f} {p.style:9.3f} {p.lost:7.1%} {p.steps:7,}"
            + picked
        )
    model = next(p.model for p in result.points if p.style_weight == result.suggested)
    click.echo(
        f"sheet   {result.sheet}\ncurve   {result.curve}\npage    {result.page}\n"
        f"paint   faststy stylize photo.jpg -m {quote(str(model))}"
    )
