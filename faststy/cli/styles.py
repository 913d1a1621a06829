"""`faststy styles`: the styles of a model, or the bundled pictures to train one from."""

from __future__ import annotations

import json

import click


@click.command()
@click.argument("model", required=False, type=click.Path())
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(model: str | None, as_json: bool) -> None:
    """List the styles that MODEL paints in, or the bundled ones.

    \b
    faststy styles run/model.safetensors
    faststy styles
    """
    if model is not None:
        from faststy.model_file import load_info

        names = load_info(model).styles
        click.echo(json.dumps({"model": model, "styles": names}) if as_json else "\n".join(names))
        return
    from faststy import assets

    pictures = {name: str(path) for name, path in assets.styles().items()}
    if as_json:
        click.echo(json.dumps({"pictures": pictures}))
        return
    width = max(map(len, pictures), default=0)
    for name, path in pictures.items():
        click.echo(f"{name:{width}}  {path}")
    click.echo("Train one of them:  faststy train PICTURE", err=True)
