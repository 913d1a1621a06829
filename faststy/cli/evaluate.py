"""`faststy evaluate`: how well a model keeps photos and paints its styles, in numbers."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from faststy.cli import _options, printable, skipped_entries, tell
from faststy.errors import FaststyError
from faststy.files import check_output, utf8
from faststy.training.config import TrainConfig

if TYPE_CHECKING:
    from rich.text import Text

    from faststy.evaluation.measure import Evaluation


NARROWEST = 80  # columns of a terminal that the numbers fit into


@click.command()
@click.argument("model", type=_options.PATH)
@click.argument("more", metavar="", nargs=-1, type=_options.PATH)
@click.option("--content", type=_options.PATH, required=True, help="Folder of photos to paint.")
@click.option(
    "--style",
    "styles",
    metavar="PICTURE...",
    multiple=True,
    required=True,
    type=_options.PATH,
    help="What the styles were learned from, named as they are or in their order.",
)
@click.option(
    "--size",
    metavar="PIXELS",
    type=click.IntRange(16),
    default=720,
    show_default=True,
    help="Short side to paint at; smaller photos stay as they are. Above 720 strokes are larger, "
    "as by stylize.",
)
@click.option(
    "--style-size",
    metavar="PIXELS",
    type=click.IntRange(16),
    help="Short side of the style pictures.  [default: as in the model's training]",
)
@click.option(
    "--encoder", default="faststy", show_default=True, help="faststy, vgg19 or vgg19:FILE."
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, …")
@click.option("--html", type=_options.PATH, help="Write a page with the worst and "
              "the best pictures to this file.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object at the end.")
def command(
    model: Path,
    more: tuple[Path, ...],
    content: Path,
    styles: tuple[Path, ...],
    size: int,
    style_size: int | None,
    encoder: str,
    device: str,
    html: Path | None,
    as_json: bool,
) -> None:
    """Measure MODEL: content, style, grid, steadiness and speed.

    Every photo of the folder is painted as by stylize in every style that a PICTURE (or a folder of
    them) is given for, without and with repair, and judged by the encoder.

    Pictures that cannot be read, or that memory does not suffice for, are skipped and listed. Exit
    status: 0 when all were judged, 1 when some were skipped, 2 when there is nothing to judge.

    \b
    faststy evaluate run/model.safetensors --content photos/ --style painting.jpg
    faststy evaluate pack.safetensors --content photos/ --style paintings/*.jpg --html pack.html
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as Remaining

    from faststy.evaluation.measure import evaluate, match_styles, style_grams
    from faststy.model_file import load_model
    from faststy.nn.encoder import load_encoder
    from faststy.pictures import list_pictures
    from faststy.tensors import device_named

    given = [*styles, *more]
    _check_order(model, given)
    if more and len(styles) > 1:  # click gives those last, wherever they stood
        raise FaststyError(
            f"{more[0]}: several --style and pictures without one; name each picture by a --style, "
            "or all after one"
        )
    net = load_model(model)
    pictures = match_styles(net.info.styles, given)
    photos = list_pictures(content, foreign=True)
    if html is not None:
        _check_page(html, [model, *given, *photos])
    where = device_named(device)
    judge = load_encoder(encoder).to(where)
    style_size = style_size or net.info.style_size or TrainConfig.style_size
    skipped: dict[Path, str] = {}
    targets = {
        name: style_grams(path, style_size, judge, where, skipped)
        for name, path in pictures.items()
    }

    console = Console(stderr=True)
    columns = (TextColumn("painting"), BarColumn(), MofNCompleteColumn(), Remaining())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=len(photos) * len(targets))

        def show(done: int, total: int) -> None:
            progress.update(task, completed=done)

        result = evaluate(net, photos, targets, judge, where, size=size, on_progress=show)
    result.skipped |= skipped
    for reason in result.skipped.values():
        tell(f"skipped {reason}")
    if as_json:
        values = {"model": str(model), "encoder": encoder, "device": str(where), **_values(result)}
        click.echo(json.dumps(values, ensure_ascii=False, allow_nan=False))
    else:
        _print(result)
    if html is not None:  # last: a full disk costs no numbers
        _write_page(html, result, model, net, size)
    if result.skipped:
        sys.exit(1)


def _check_page(path: Path, inputs: list[Path]) -> None:
    """Raises FaststyError where the page could not be written in the end."""
    check_output(path, inputs)
    if path.suffix.lower() not in (".html", ".htm"):
        raise FaststyError(f"{path}: no name of a page; end it in .html")


def _check_order(model: Path, given: list[Path]) -> None:
    """Raises FaststyError where a style picture stands in the model's place, after --style."""
    models = [path for path in given if path.suffix == ".safetensors"]
    if model.suffix != ".safetensors" and models:
        raise FaststyError(
            f"{model}: is no model, but {models[0]} is; name the model first, or --style for "
            "each picture"
        )


def _write_page(path: Path, result: Evaluation, model: Path, net: Any, size: int) -> None:
    from PIL import Image

    from faststy.evaluation.measure import Entry, load_photo
    from faststy.evaluation.page import evaluation_page
    from faststy.pictures import write_data
    from faststy.stylization.stylizer import Stylizer

    stylizer = Stylizer(net, next(net.generator.parameters()).device)

    def show(entry: Entry) -> tuple[Image.Image, Image.Image]:
        photo = load_photo(entry.photo, size)
        painted = stylizer.paint(photo, style=entry.style).picture
        return photo.in_srgb().rgb, painted.in_srgb().rgb

    name = "/".join(model.absolute().parts[-2:])  # others need not see where it lies
    write_data(utf8(path, evaluation_page(result, name, show)), path)


def _values(result: Evaluation) -> dict[str, Any]:
    """What `--json` prints: the means of each style, then every picture."""
    styles = dict.fromkeys(entry.style for entry in result.entries)
    variants = {"painted": False, "repaired": True}
    return {
        "styles": {
            style: {
                name: asdict(scores) | {"motion": result.mean_motion(style, repaired=repaired)}
                for name, repaired in variants.items()
                if (scores := result.mean(style, repaired=repaired)) is not None
            }
            for style in styles
        },
        "images_per_second": round(result.images_per_second, 3),
        "megapixels_per_second": round(result.megapixels_per_second, 3),
        "pictures": [{**asdict(entry), "photo": str(entry.photo)} for entry in result.entries],
        "skipped": skipped_entries(result.skipped),
    }


def _print(result: Evaluation) -> None:
    from rich.console import Console

    from faststy.evaluation.page import MEANING, speed, table

    console = Console()
    # A pipe has no width of its own: the table keeps its columns.
    console.width = max(console.width, NARROWEST) if console.is_terminal else 160
    for line in _lines(table(result), console.width):
        console.print(line, soft_wrap=True)
    console.print(speed(result), highlight=False)
    if console.is_terminal:
        for name, meaning in MEANING.items():
            console.print(f"{name}: {meaning}", style="dim", highlight=False)


def _lines(rows: list[tuple[str, ...]], width: int) -> Iterator[Text]:
    """The table; the names of styles stand above their rows where there is no room beside them."""
    from rich.cells import cell_len
    from rich.text import Text

    from faststy.evaluation.page import HEAD

    rows = [(printable(" ".join(name.split())), *cells) for name, *cells in rows]
    widths = [max(map(cell_len, column)) for column in zip(HEAD, *rows, strict=True)]
    above = sum(widths) + len(widths) - 1 > width
    if above:
        widths[0] = 1
    last = ""
    for name, *cells in (HEAD, *rows):
        if above and name != last:
            yield Text(name)
        last = name
        line = Text("" if above else name, style="" if name else "dim")
        line.pad_right(widths[0] - line.cell_len)
        numbers = [c.rjust(w) for c, w in zip(cells[1:], widths[2:], strict=True)]
        line.append(" ".join(["", cells[0].ljust(widths[1]), *numbers]))
        yield line
