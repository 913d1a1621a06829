"""`faststy styles`: the styles that a model paints in, and bundled pictures to train from."""

from __future__ import annotations

import json

import click


@click.command()
@click.argument("model", required=False, type=click.Path())
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(model: str | None, as_json: bool) -> None:
    """List the styles that MODEL paints in, or the bundled ones.

    Without MODEL: the ready styles of `faststy stylize`, and the style pictures that come with
    faststy, to train from.

    \b
    faststy styles
    faststy styles run/model.safetensors
    """
    from faststy import assets
    from faststy.model_file import load_info

    names = load_info(assets.model() if model is None else model).styles
    if model is not None:
        click.echo(json.dumps({"model": model, "styles": names}) if as_json else "\n".join(names))
        return
    pictures = {name: str(path) for name, path in assets.styles().items()}
    if as_json:
        click.echo(json.dumps({"styles": names, "pictures": pictures}))
        return
    width = max(map(len, pictures), default=0)
    for name, path in pictures.items():
        click.echo(f"{name:{width}}  {'ready' if name in names else '     '}  {path}")
    click.echo("Paint in a ready one:  faststy stylize PHOTO --style NAME", err=True)
    click.echo("Train any picture:     faststy train PICTURE", err=True)
