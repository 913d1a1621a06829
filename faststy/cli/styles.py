"""`faststy styles`: the styles that a model paints in, as a list or painted on one sheet."""

from __future__ import annotations

import json
from pathlib import Path

import click

from faststy.cli import _options, printable
from faststy.errors import FaststyError
from faststy.files import check_output


@click.command()
@click.option(
    "-m",
    "--model",
    type=_options.PATH,
    help="The model.safetensors of a training run.  [default: the bundled styles]",
)
@click.option("--sheet", metavar="PHOTO", type=_options.PATH, help="Paint PHOTO in all of them.")
@click.option("-o", "--out", type=_options.PATH, help="The sheet.  [default: PHOTO_styles.jpg]")
@click.option("--json", "as_json", is_flag=True, help="Print the styles as one JSON list.")
def command(model: Path | None, sheet: Path | None, out: Path | None, as_json: bool) -> None:
    """List the styles of a model, or show them all on one sheet.

    \b
    faststy styles
    faststy styles --sheet photo.jpg
    faststy styles -m run/model.safetensors
    """
    from faststy import assets
    from faststy.model_file import load_info

    if out is not None and sheet is None:
        raise FaststyError("-o is for a sheet; name its photo by --sheet")
    if sheet is not None and sheet.is_dir():
        raise FaststyError(f"{sheet}: is a folder; name one photo")
    path = assets.model() if model is None else model
    info = load_info(path)
    if as_json:
        values = [{"name": n, "description": info.descriptions.get(n, "")} for n in info.styles]
        click.echo(json.dumps(values))
    elif sheet is None:
        names = list(map(printable, info.styles))
        width = max(map(len, names))
        for name, style in zip(names, info.styles, strict=True):
            text = printable(info.descriptions.get(style, ""))
            click.echo(f"{name:{width}}  {text}".rstrip())
    if sheet is not None:
        target = sheet.with_name(f"{sheet.stem}_styles.jpg") if out is None else out
        _paint(path, sheet, target)
        click.echo(printable(str(target)), err=as_json)
    elif model is None and not as_json:
        click.echo("Paint in one:       faststy stylize PHOTO --style NAME", err=True)
        click.echo("Train any picture:  faststy train PICTURE", err=True)


def _paint(model: Path, photo: Path, target: Path) -> None:
    from rich.console import Console
    from rich.progress import Progress

    from faststy.pictures import format_of, read_picture, write_picture
    from faststy.stylization.contact_sheet import contact_sheet
    from faststy.stylization.stylizer import Stylizer

    format_of(target)  # a sheet that cannot be written is said before the work
    check_output(target, (photo,))
    picture = read_picture(photo)
    stylizer = Stylizer.load(model)
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("Painting", total=len(stylizer.styles))
        painted = contact_sheet(
            stylizer, picture, lambda done, total: progress.update(task, completed=done)
        )
    write_picture(painted, target)
