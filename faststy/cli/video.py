"""`faststy video`: paint a video with a trained model."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from faststy.cli import STOPPED, _options, counted, printable, tell
from faststy.cli._options import STREAM
from faststy.errors import FaststyError
from faststy.files import redirected_input, without_links

if TYPE_CHECKING:
    from rich.progress import Progress

    from faststy.stylization.video import VideoReport


def _seconds(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    """Seconds, or minutes and hours before them: 90, 1:30, 0:01:30.5."""
    if value is None:
        return None
    if not re.fullmatch(r"(\d+:){0,2}\d+(\.\d*)?", value):
        raise click.BadParameter(f"{value!r} is no time; write 90, 1:30 or 0:01:30.5")
    seconds = 0.0
    for part in value.split(":"):
        seconds = 60 * seconds + float(part)
    return seconds


@click.command()
@click.argument("source", metavar="INPUT", type=_options.NAME)
@_options.model
@click.option("-o", "--out", type=_options.NAME, help="The painted video: .mp4, .mov, .mkv, .webm.")
@_options.style
@click.option(
    "--strength",
    type=_options.FiniteRange(0, 1),
    default=1.0,
    show_default=True,
    help="0 is the film, 1 the full style.",
)
@_options.repair
@click.option("--keep-color", is_flag=True, help="Keep the colours of the film.")
@_options.stroke
@click.option(
    "--size",
    metavar="PIXELS",
    type=click.IntRange(16),
    help="Short side to paint at and to write; smaller films stay as they are.",
)
@click.option("--start", metavar="TIME", callback=_seconds, help="Paint from here on, like 1:30.")
@click.option("--end", metavar="TIME", callback=_seconds, help="Paint up to here.")
@click.option(
    "--codec",
    help="h264, h265, vp9, av1, or an encoder of FFmpeg's like h264_nvenc.  "
    "[default: h264; vp9 in .webm]",
)
@click.option(
    "--crf",
    type=click.IntRange(0, 63),
    help="Quality of the encoder: the lower, the better and larger.  [default: 20 for h264]",
)
@click.option(
    "--fps",
    type=_options.FiniteRange(0.01, 1000),
    help="Frames per second when INPUT is pictures.  [default: 25]",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object at the end.")
def command(
    source: str,
    model: str,
    out: str | None,
    style: str | None,
    strength: float,
    repair: float | None,
    keep_color: bool,
    stroke: int | None,
    size: int | None,
    start: float | None,
    end: float | None,
    codec: str | None,
    crf: int | None,
    fps: float | None,
    as_json: bool,
) -> None:
    """Paint a video with a trained model.

    INPUT is a video, a pattern of pictures like frame_%04d.png, a folder of pictures, or - for
    standard input. Without -o, NAME_STYLE.mp4 appears beside it, or .mkv, .mov, .webm for those.

    Sound, times, colours and metadata of the video stay, and subtitles where the format of the
    output can hold them; a turned video comes out upright. Ctrl-C ends the video with what is
    painted. Exit status: 0 when all was painted, 1 when the input was damaged and what could be
    read was painted, 2 when nothing was, 130 after Ctrl-C.

    \b
    faststy video clip.mp4 --style ink
    faststy video clip.mp4 -m run/model.safetensors -o painted.mp4 --size 360
    faststy video frames/frame_%04d.png -o painted.mp4 --fps 30
    """
    from faststy.stylization.clips import StoppedError
    from faststy.stylization.stylizer import mixing_weights
    from faststy.stylization.video import paint_video
    from faststy.stylization.video_file import format_of
    from faststy.training.signals import stop_signals

    name = "standard input" if source == STREAM else source
    if source == STREAM and (sys.stdin is None or sys.stdin.isatty()):
        what = "closed" if sys.stdin is None else "a terminal"
        raise FaststyError(f"standard input is {what}; pipe a video into it, or name a file")
    stylizer = _options.loaded(model, repair)
    weights = mixing_weights(style, stylizer.styles)
    target = _target(source, name, out, _options.label_of(weights))
    format_of(target)
    if target.exists():
        inputs = [os.stat(path) for path in (source, model) if os.path.exists(path)]
        known = [(status.st_dev, status.st_ino) for status in inputs]
        redirected = redirected_input() if source == STREAM else None
        if (target.stat().st_dev, target.stat().st_ino) in (*known, redirected):
            raise FaststyError(f"{target}: is an input and will not be overwritten; change -o")

    with stop_signals() as stop, _progress() as progress:
        task = progress.add_task("painting", total=None)

        def show(done: int, expected: int | None) -> None:
            progress.update(task, completed=done, total=expected and max(done, expected))

        try:
            report = paint_video(
                stylizer,
                sys.stdin.buffer if source == STREAM else source,
                target,
                name=name,
                style=weights,
                strength=strength,
                repair=repair,
                keep_color=keep_color,
                stroke=stroke,
                size=size,
                start=start or 0.0,
                end=end,
                rate=fps,
                codec=codec,
                crf=crf,
                on_frame=show,
                stop=stop,
            )
        except StoppedError as error:
            tell(f"faststy: {error}")
            sys.exit(STOPPED)
    _tell(report, source, name, target, weights, as_json)
    if report.stopped:
        sys.exit(STOPPED)
    if report.damage is not None:
        sys.exit(1)


def _target(source: str, name: str, out: str | None, label: str) -> Path:
    """Where to write: beside the input under its name and the styles', unless `out` says so."""
    from faststy.stylization.video_file import FORMATS

    if source == STREAM or _options.is_device(source):
        if out is None or Path(out).is_dir():
            raise FaststyError(f"{name} has no name; name the output by -o painted.mp4")
        return Path(out)
    path = Path(source)
    if path.is_dir():
        path = without_links(path)  # . and .. have names, too
    suffix = path.suffix.lower() if path.suffix.lower() in FORMATS else ".mp4"
    stem = path.name if path.is_dir() else re.sub(r"[_.-]*%\d*d", "", path.stem)
    stem = stem or without_links(path.parent).name  # of %04d.png
    if out is None:
        return Path(source).parent / f"{stem}_{label}{suffix}"
    return Path(out, f"{stem}{suffix}") if Path(out).is_dir() else Path(out)


def _progress() -> Progress:
    """A bar with frames, frames per second and the time that is left, when a person watches."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Speed(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.speed:.1f} fps" if task.speed else "")

    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        Speed(),
        TimeRemainingColumn(),
        TextColumn("left"),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def _tell(
    report: VideoReport,
    source: str,
    name: str,
    target: Path,
    weights: dict[str, float],
    as_json: bool,
) -> None:
    painted = counted(report.frames, "frame")
    if report.damage is not None:
        tell(f"faststy: {name}: {report.damage}; {painted} painted")
    for stream in report.left_out:
        tell(f"faststy: {target}: without {stream}")
    if report.stopped:
        tell(f"faststy: stopped; {target} ends after {painted}")
    if as_json:
        values = {
            "input": source,
            "output": str(target),
            "style": weights,
            "frames": report.frames,
            "seconds": round(report.seconds, 3),
            "fps": round(report.fps, 2),
            "size": [report.width, report.height],
            "rate": round(report.rate, 3),
            "encoder": report.encoder,
            "audio": report.audio,
            "left_out": report.left_out,
            "damage": report.damage,
            "stopped": report.stopped,
        }
        click.echo(json.dumps(values))
    else:
        click.echo(
            f"{printable(str(target))}  {painted}, {report.width} x {report.height}, "
            f"in {report.seconds:.0f} s, {report.fps:.1f} fps"
        )
