"""`faststy live`: paint what a camera sees, on a web page."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

import click

from faststy.cli import _options, printable

if TYPE_CHECKING:
    from faststy.stylization.live import Frame

DEMO = "demo"


@click.command()
@click.argument("source", metavar="[CAMERA]", default="/dev/video0", type=_options.NAME)
@_options.model
@_options.style
@click.option(
    "--size",
    metavar="PIXELS",
    type=click.IntRange(16, 4096),
    default=360,
    show_default=True,
    help="Short side to paint at.",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8765,
    show_default=True,
    help="Of the web page; 0 is any that is free.",
)
def command(source: str, model: str, style: str | None, size: int, port: int) -> None:
    """Paint what a camera sees, on a web page.

    CAMERA is a camera of Linux (/dev/video0, or just 0), a video file, which is shown over and
    over, or `demo`: a sample photo that moves. The page has buttons for the styles and sliders to
    mix and tune them. It is for this computer only: nothing leaves it. Nobody else can look, as
    the address that is printed holds a token, another one each time. Ctrl-C ends it.

    \b
    faststy live
    faststy live demo
    faststy live clip.mp4 --size 480
    """
    from faststy.stylization.live import Live, first_frame, thumbnails
    from faststy.stylization.live_server import LiveServer
    from faststy.stylization.stylizer import Stylizer, mixing_weights

    stylizer = Stylizer.load(model)
    weights = mixing_weights(style, stylizer.styles)
    if source.isdecimal():
        source = f"/dev/video{source}"
    open_frames = partial(_frames, source, size)
    first, frames = first_frame(open_frames)
    previews = thumbnails(stylizer, first)
    camera_again = open_frames if _options.is_device(source) else None
    with (
        Live(stylizer, _again(first, frames), style=weights, open_again=camera_again) as live,
        LiveServer(live, source=source, thumbnails=previews, port=port) as server,
    ):
        click.echo(f"{server.url}  shows {printable(source)}; Ctrl-C ends it")
        with suppress(KeyboardInterrupt):
            server.serve_forever(poll_interval=0.2)


def _frames(source: str, size: int) -> Iterator[Frame]:
    """What comes from a camera, a file or the demo; opened, so that a mistake is told at once."""
    from faststy.stylization.clips import open_camera, open_clip
    from faststy.stylization.live import from_camera, in_real_time, moving_photo

    if source == DEMO:
        return moving_photo(size)
    if _options.is_device(source):
        return from_camera(open_camera(source, size=size))
    return in_real_time(lambda: open_clip(source, size=size))


def _again(first: Frame, rest: Iterator[Frame]) -> Iterator[Frame]:
    yield first
    yield from rest
