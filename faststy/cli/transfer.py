"""`faststy transfer`: the slow, training-free form of style transfer, for one picture."""

from __future__ import annotations

import json
import time
from pathlib import Path

import click

from faststy.cli import _options, printable
from faststy.errors import FaststyError
from faststy.files import check_output


@click.command()
@click.argument("photo", type=_options.PATH)
@click.argument("style", type=_options.PATH)
@click.option("-o", "--out", type=_options.PATH, required=True, help="The painting's file.")
@click.option(
    "--size",
    type=click.IntRange(16),
    metavar="PIXELS",
    default=512,
    show_default=True,
    help="Short side to paint at; smaller photos stay as they are.",
)
@click.option(
    "--style-size",
    type=click.IntRange(64),
    metavar="PIXELS",
    default=512,
    show_default=True,
    help="Short side of the style picture: the smaller, the smaller the strokes.",
)
@click.option(
    "--style-weight",
    type=_options.FiniteRange(0, min_open=True),
    default=20.0,
    show_default=True,
    help="λ, how strong the style gets.",
)
@click.option(
    "--steps",
    type=click.IntRange(1),
    default=150,
    show_default=True,
    help="Optimiser steps at each size.",
)
@click.option(
    "--encoder", default="faststy", show_default=True, help="faststy, vgg19 or vgg19:FILE."
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, …")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object at the end.")
def command(
    photo: Path,
    style: Path,
    out: Path,
    size: int,
    style_size: int,
    style_weight: float,
    steps: int,
    encoder: str,
    device: str,
    as_json: bool,
) -> None:
    """Paint PHOTO in the look of STYLE by optimising its pixels.

    No model is trained and none is left: minutes for one picture. It is the classic method, and
    makes targets for `faststy train --pairs`.

    \b
    faststy transfer photo.jpg painting.jpg -o painted.jpg
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from faststy.pictures import format_of, read_picture, write_picture

    format_of(out)  # an output that cannot be written is said before the work
    check_output(out, (photo, style))
    began = time.monotonic()
    source, painting = (read_picture(path).in_srgb() for path in (photo, style))

    import torch

    from faststy.nn.encoder import load_encoder
    from faststy.tensors import device_named, is_out_of_memory, to_image, to_tensor
    from faststy.training.transfer import transfer

    where = device_named(device)
    net = load_encoder(encoder).to(where, memory_format=torch.channels_last)  # type: ignore[call-overload]
    source = source.scaled_down(size)
    x = to_tensor(source.filled().rgb).to(where)
    s = to_tensor(painting.scaled_down(style_size).on_white().rgb).to(where)
    columns = (
        TextColumn("painting"),
        BarColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[loss]}"),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("", loss="")

        def show(done: int, total: int, loss: float) -> None:
            progress.update(task, completed=done, total=total, loss=f"loss {loss:.3f}")

        try:
            painted = transfer(x, s, net, style_weight=style_weight, steps=steps, on_progress=show)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            width, height = source.size
            raise FaststyError(
                f"{photo}: not enough memory to paint {width} x {height}; use a smaller --size"
            ) from error
    write_picture(source.with_rgb(to_image(painted[0])), out)
    seconds = time.monotonic() - began
    if as_json:
        values = {"out": str(out), "size": list(source.size), "seconds": round(seconds, 2)}
        click.echo(json.dumps(values))
    else:
        click.echo(f"{printable(str(out))}  {source.size[0]} x {source.size[1]} in {seconds:.0f} s")
