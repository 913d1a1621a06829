"""How a training run looks on the terminal."""

from __future__ import annotations

import time
from typing import Any

import numpy as np  # noqa: F401  before torch, which loses a Ctrl-C while it imports it
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel as Box
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from faststy.cli import printable
from faststy.training.log import Progress

LINE_EVERY = 5.0  # seconds between plain lines
STAGE_COLOURS = {"perceptual": "cyan", "adversarial": "magenta", "repair": "green"}


def clock(seconds: float | None) -> str:
    """Minutes and seconds, or hours, minutes and seconds; a dash for what is not known yet."""
    if seconds is None:
        return "–"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class _Display:
    """What both forms share: the estimate of the time that is left.

    Args:
        seconds: length of the run, where it is counted in seconds.
        title: of what is shown; `label` says which part of it.
    """

    def __init__(self, console: Console, seconds: float | None, title: str) -> None:
        self.console, self.seconds, self.title = console, seconds, title
        self.label = ""
        self.told: set[str] = set()  # what happened and is on the terminal by now
        self._first: Progress | None = None

    def left(self, progress: Progress) -> float | None:
        """Seconds, from what was done since the first report; None before there is a second."""
        if self.seconds is not None:
            return max(0.0, self.seconds - progress.seconds)
        self._first = self._first or progress
        done = progress.fraction - self._first.fraction
        if done <= 0:
            return None
        return (progress.seconds - self._first.seconds) / done * max(0.0, 1 - progress.fraction)

    def tell(self, progress: Progress) -> None:
        """What happened, in words; a panel is drawn below it."""
        self.told.update(progress.events)
        for event in progress.events:
            text = Text(printable(event), style="yellow")
            self.console.print(text, soft_wrap=True)

    def __exit__(self, *error: Any) -> None:
        """Nothing to put away."""


class Lines(_Display):
    """A plain line every few seconds, for logs and pipes."""

    def __enter__(self) -> Lines:
        self._next = 0.0
        return self

    def __call__(self, progress: Progress) -> None:
        self.tell(progress)
        left = self.left(progress)
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + LINE_EVERY
        terms = " ".join(f"{name} {value:.3g}" for name, value in progress.terms.items())
        self.console.print(
            f"{f'{self.label}: ' if self.label else ''}{progress.stage} "
            f"{100 * progress.fraction:.0f}% step {progress.step} "
            f"{progress.images_per_second:.1f} images/s left {clock(left)} "
            f"λ {progress.style_weight:.2f} {terms}",
            highlight=False,
            soft_wrap=True,
        )


class Panel(_Display):
    """A panel that is drawn over: stage, bar with ETA, speed, λ and every term."""

    def __enter__(self) -> Panel:
        self._live = Live(
            Text(
                "preparing pictures and style targets; on a GPU also kernels, the first time up to "
                "a minute …",
                style="dim",
            ),
            console=self.console,
            refresh_per_second=4,
        )
        self._live.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._live.__exit__(*error)

    def __call__(self, progress: Progress) -> None:
        self.tell(progress)
        self._live.update(self._draw(progress))

    def _draw(self, progress: Progress) -> RenderableType:
        colour = STAGE_COLOURS.get(progress.stage, "white")
        head = Table.grid(expand=True, padding=(0, 1))
        head.add_column(no_wrap=True)
        head.add_column(ratio=1)
        head.add_column(justify="right", no_wrap=True)
        head.add_row(
            Text(progress.stage, style=f"bold {colour}"),
            ProgressBar(total=1.0, completed=min(1.0, progress.fraction), complete_style=colour),
            f"{100 * progress.fraction:3.0f} %   {clock(self.left(progress))} left",
        )
        terms = Table.grid(expand=True, padding=(0, 2))
        for _ in range(4):
            terms.add_column(ratio=1)
        cells = [
            f"[dim]step[/] {progress.step}",
            f"[dim]images/s[/] {progress.images_per_second:.1f}",
            f"[dim]λ[/] {progress.style_weight:.2f}",
            *(f"[dim]{name}[/] {value:.3g}" for name, value in progress.terms.items()),
        ]
        for start in range(0, len(cells), 4):
            terms.add_row(*cells[start : start + 4])
        title = f"{self.title} · {self.label}" if self.label else self.title
        return Box(Group(head, Text(), terms), title=title, border_style="dim")


def display(seconds: float | None, title: str) -> Lines | Panel:
    """A live panel on a terminal, plain lines elsewhere; both on standard error."""
    console = Console(stderr=True)
    return (Panel if console.is_terminal else Lines)(console, seconds, title)
