"""The command line: one file per command, each exposing `command`, imported when it is needed.

A command's file imports torch inside the function that uses it: `faststy --help` reads all files.
"""

import io
import os
import pkgutil
import signal
import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any, TextIO, cast

import click

from faststy import __version__
from faststy.errors import FaststyError

STOPPED = 130  # exit status after Ctrl-C, as shells have it
LISTED = 50  # skipped pictures, and events, that are told at the end
# As a newcomer meets them; any other file in this folder follows in alphabetical order.
FIRST = ("train", "sweep", "stylize", "video", "live", "transfer", "styles", "evaluate", "info")


class Commands(click.Group):
    """Finds a command `name` in faststy/cli/name.py."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        names = {m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_")}
        return [n for n in FIRST if n in names] + sorted(names.difference(FIRST))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if "" in args and not ctx.resilient_parsing:  # a path of it would be this folder
            raise click.UsageError("an argument is empty; is it a variable that is not set?")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo("faststy: stopped", err=True)
            ctx.exit(STOPPED)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in self.list_commands(ctx):
            return None
        command = import_module(f"faststy.cli.{name}").command
        assert isinstance(command, click.Command)
        return command


def is_terminal(stream: TextIO | None) -> bool:
    """Whether a person is at the stream, which is None where it was closed (`2>&-`)."""
    return stream is not None and stream.isatty()


def counted(number: int, thing: str) -> str:
    """1 picture, 2 pictures."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def printable(text: str) -> str:
    """`text` with what a terminal might obey written out, as `\\x1b`: a file's may be anyone's."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def tell(text: str) -> None:
    """On standard error, `printable`."""
    click.echo(printable(text), err=True)


def skipped_entries(skipped: dict[Path, str]) -> list[dict[str, str]]:
    """What JSON says of pictures that were skipped."""
    return [{"input": str(path), "reason": why} for path, why in sorted(skipped.items())]


def tell_skipped(skipped: dict[Path, str]) -> None:
    """Why pictures were skipped, each with its path."""
    for path, why in sorted(skipped.items())[:LISTED]:
        text = why if str(path) in why else f"{path}: {why}"
        tell(f"skipped {text}")


def tell_events(events: Iterable[str], told: set[str]) -> None:
    """What went wrong, but for what was `told` before."""
    for event in [event for event in events if event not in told][:LISTED]:
        tell(event)


@click.command(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="faststy")
def group() -> None:
    """Train the look of a painting into a small net in minutes, and paint pictures with it.

    \b
    faststy train painting.jpg --out run
    faststy stylize photo.jpg -m run/model.safetensors
    """


class _Stderr:
    """Standard error: what it does not take, as no disk or reader is left for it, ends no work."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        with suppress(OSError):
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self.stream.flush()


@contextmanager
def _patient_stderr() -> Iterator[None]:
    """Standard error is `_Stderr` within the block."""
    stderr = sys.stderr
    if stderr is None:  # closed
        yield
        return
    sys.stderr = cast(TextIO, _Stderr(stderr))
    try:
        yield
    finally:
        sys.stderr = stderr
        try:
            stderr.flush()
        except OSError:  # Python tries again at its end, and would make a failure of it
            os.dup2(os.open(os.devnull, os.O_WRONLY), stderr.fileno())


@_patient_stderr()
def main() -> None:
    """Run the command line; an error of the user's is one sentence and exit status 2."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # as standard error does it: names may be no text
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with _signals_as_exits():
            group(prog_name="faststy")
    except (FaststyError, OSError) as error:
        if os.environ.get("FASTSTY_DEBUG") == "1":
            traceback.print_exc()
        else:
            click.echo(f"faststy: {printable(_sentence(error))}", err=True)
        sys.exit(2)


@contextmanager
def _signals_as_exits() -> Iterator[None]:
    """SIGTERM and SIGHUP end the block as Ctrl-C does, so that nothing half-written is left."""

    def end(number: int, frame: FrameType | None) -> None:
        sys.exit(128 + number)

    names = [name for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    numbers = [signal.Signals[name] for name in names]
    # Those that nohup, or a program that calls this one, sees to stay with them.
    ours = [number for number in numbers if signal.getsignal(number) is signal.SIG_DFL]
    for number in ours:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(str(error).split())
