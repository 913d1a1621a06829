"""What the commands which paint have in common: options, and what they mean."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from faststy import assets
from faststy.errors import FaststyError

if TYPE_CHECKING:
    from faststy.stylization.stylizer import Stylizer

STREAM = "-"  # names standard input or output


class FiniteRange(click.FloatRange):
    """A range of numbers without NaN, which compares with no bound, and infinity."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is no finite number.", param, ctx)
        return number


def is_device(path: str | Path) -> bool:
    """Whether it names no file but a camera, say, or a pipe: <(a command) is /dev/fd/63."""
    return Path(path).is_relative_to("/dev") and not Path(path).is_relative_to("/dev/shm")


# Not for click to say what cannot be read: what reads does, and goes on with the rest.
NAME = click.Path(readable=False)
PATH = click.Path(readable=False, path_type=Path)

model = click.option(
    "-m",
    "--model",
    type=NAME,
    default=lambda: str(assets.model()),
    help="The model.safetensors of a training run.  [default: the bundled styles]",
)
style = click.option(
    "--style", help="A style of the model, or a mixture: NAME or NAME:0.7,OTHER:0.3."
)
repair = click.option(
    "--repair",
    type=FiniteRange(0, 1),
    help="How much lost content comes back: 0 is pure style, 1 all (the default).",
)
stroke = click.option(
    "--stroke",
    type=click.Choice(["1", "2", "4"]),
    callback=lambda context, parameter, value: value and int(value),
    help="How many times as large strokes are as the model learned them.  [default: so that they "
    "show: 1 up to a short side of 720 pixels, 2 up to 1440, then 4]",
)


def loaded(model: str, repair: float | None) -> Stylizer:
    """The stylizer of `model`. Raises FaststyError where it cannot repair and is to."""
    from faststy.stylization.stylizer import Stylizer

    stylizer = Stylizer.load(model)
    if repair and stylizer.model.repairer is None:
        raise FaststyError(f"{model}: has no repairer; leave --repair at 0")
    return stylizer


def label_of(weights: dict[str, float]) -> str:
    """The styles, as a part of a file name."""
    return re.sub(r"[^\w.+-]+", "-", "+".join(weights))
