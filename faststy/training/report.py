"""report.html: one self-contained page about a training run, written from the run's own files.

Whatever a killed run left behind is enough: a missing picture or a torn last line of the log leaves
a gap on the page, never an error.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from html import escape
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import Any

from PIL import Image

from faststy.errors import FaststyError
from faststy.files import write_text
from faststy.page import embed, embed_style, page
from faststy.pictures import style_name
from faststy.training.axis import round_ticks
from faststy.training.config import read_toml

REFRESH = 30  # seconds

MEANING = {
    "total": "what is minimised",
    "content": "distance of the encoder features from the photo's, over their energy",
    "style": "distance of the Gram matrices from the style picture's, over their norm",
    "style_excess": "share by which the repair raises the style distance, past a slack",
    "colour": "distance of the colour moments from the style picture's",
    "paired": "Σ(G(A) − B)² / ΣB² over photos A with a painted target B",
    "style_share": "what λ multiplies, over the total without the adversarial term",
    "variation": "differences of neighbouring pixels, over the style picture's",
    "stability": "how far G(W(x)) is from W(G(x)) for a small motion W",
    "patches": "how differently places are painted that are alike in the photo",
    "adversarial": "what the discriminator's verdict costs the generator",
    "discriminator": "what its mistakes cost the discriminator",
    "map": "error of the predicted lost-content map",
    "repair": "content distance where content was lost",
    "λ": "the style weight",
}


@dataclass(frozen=True)
class Row:
    """One line of log.jsonl."""

    step: int
    seconds: float
    stage: str
    images_per_second: float
    style_weight: float
    terms: dict[str, float]


Points = list[tuple[int, float]]  # (step, value)
Bands = list[tuple[str, int, int]]  # (stage, first step, last step)


def write_report(run: str | os.PathLike[str], *, growing: bool = False) -> Path:
    """Write report.html into the run folder, by rename, and return its path.

    A browser that shows one that is `growing` loads it anew now and then.

    Reads log.jsonl, config.toml and preview.png, each where it is there, and the style pictures.
    Raises FaststyError when `run` is not a folder or cannot be written.
    """
    folder = Path(run)
    if not folder.is_dir():
        raise FaststyError(f"{folder}: no such run folder")
    rows, events = _read_log(folder / "log.jsonl")
    settings = _read_settings(folder / "config.toml")
    path = folder / "report.html"
    write_text(path, _page(folder, rows, events, settings, REFRESH if growing else None))
    return path


def _read_log(path: Path) -> tuple[list[Row], list[str]]:
    """The rows by step, of a step that was done twice (in a resumed run) the later one; events."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")  # as `Log` does
    except OSError:
        return [], []
    rows, events = {}, []
    for line in lines:
        try:
            value = json.loads(line)
            if "event" in value:
                events.append(str(value["event"]))
                continue
            row = Row(
                step=int(value["step"]),
                seconds=float(value["seconds"]),
                stage=str(value["stage"]),
                images_per_second=float(value["images_per_second"]),
                style_weight=float(value["style_weight"]),
                terms={  # null: was not finite
                    str(name): math.nan if term is None else float(term)
                    for name, term in value["terms"].items()
                },
            )
        except (ValueError, TypeError, KeyError, AttributeError):
            continue  # torn by a kill, or not ours
        rows[row.step] = row
    return [rows[step] for step in sorted(rows)], events


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        return read_toml(path)
    except (OSError, ValueError):
        return {}


# --- the page ---------------------------------------------------------------------------------


def _page(
    folder: Path,
    rows: list[Row],
    events: list[str],
    settings: dict[str, Any],
    refresh: int | None,
) -> str:
    styles = settings.get("style", [])
    styles = [styles] if isinstance(styles, str) else styles
    names = [style_name(Path(str(style))).replace("_", " ") for style in styles]
    title = ", ".join(names) or folder.name
    parts = [
        f"<header><h1>{escape(title)}</h1>{_summary(rows)}</header>",
        _preview(folder / "preview.png"),
        _side_by_side(styles, rows),
        _curves(rows),
        _events(events),
        _settings_list(settings),
    ]
    return page(title, "\n".join(filter(None, parts)), STYLE, refresh)


def _summary(rows: list[Row]) -> str:
    if not rows:
        return "<p class=quiet>Nothing was logged yet.</p>"
    last = rows[-1]
    speed = f"{_typical_speed(rows):.3g} images/s"
    words = [f"{last.step:,} steps", _duration(last.seconds), speed]
    return f"<p class=quiet>{' · '.join(words)}</p>"


def _preview(path: Path) -> str:
    image = _image(path, 2400, "photos beside their paintings")
    if not image:
        return ""
    caption = escape(_description(path).capitalize())
    return f"<figure class=preview>{image}<figcaption>{caption}.</figcaption></figure>"


def _side_by_side(styles: list[Any], rows: list[Row]) -> str:
    """The style pictures and the timings."""
    pictures = []
    for style in styles[:4]:
        path = Path(str(style))
        if image := _style_picture(path, _changed(path)):
            pictures.append(f"<figure>{image}<figcaption>{escape(path.name)}</figcaption></figure>")
    parts = []
    if pictures:
        heading = "Style" if len(pictures) == 1 else "Styles"
        strip = f"<div class=strip>{''.join(pictures)}</div>"
        parts.append(f"<section><h2>{heading}</h2>{strip}</section>")
    if rows:
        parts.append(f"<section><h2>Timings</h2>{_timings(rows)}</section>")
    return f"<div class=pair>{''.join(parts)}</div>" if parts else ""


def _timings(rows: list[Row]) -> str:
    cells = []
    begin_step, begin_seconds = 0, 0.0
    for stage, group in groupby(rows, key=lambda row: row.stage):
        part = list(group)
        steps, seconds = part[-1].step - begin_step, part[-1].seconds - begin_seconds
        cells.append((stage, f"{steps:,}", _duration(seconds), f"{_typical_speed(part):.3g}"))
        begin_step, begin_seconds = part[-1].step, part[-1].seconds
    if len(cells) > 1:
        last = rows[-1]
        speed = f"{_typical_speed(rows):.3g}"
        cells.append(("all", f"{last.step:,}", _duration(last.seconds), speed))
    body = "".join(
        f"<tr><th>{escape(stage)}<td>{steps}<td>{time}<td>{speed}"
        for stage, steps, time, speed in cells
    )
    return f"<table class=numbers><tr><th>stage<th>steps<th>time<th>images/s{body}</table>"


def _events(events: list[str]) -> str:
    """What happened on the way, in words."""
    if not events:
        return ""
    items = "".join(f"<li>{escape(event)}</li>" for event in events)
    return f"<section><h2>What happened</h2><ul>{items}</ul></section>"


def _settings_list(settings: dict[str, Any]) -> str:
    if not settings:
        return ""
    body = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(_shown(value))}</dd></div>"
        for name, value in settings.items()
    )
    return f"<section><h2>Settings</h2><dl>{body}</dl></section>"


def _shown(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _typical_speed(rows: list[Row]) -> float:
    return median(row.images_per_second for row in rows)


# --- pictures ---------------------------------------------------------------------------------


def _image(path: Path, longest: int, alt: str) -> str:
    """The picture as an <img>, or nothing where it cannot be read."""
    try:
        return embed(path, longest, alt)
    except FaststyError:
        return ""


@lru_cache(maxsize=8)
def _style_picture(path: Path, changed: int) -> str:
    """As `embed_style`, kept from report to report: a large picture takes half a second."""
    return embed_style(path, 640)


def _changed(path: Path) -> int:
    """When a file or folder was changed; 0 where there is none."""
    try:
        return path.stat().st_mtime_ns
    except (OSError, ValueError):
        return 0


def _description(path: Path) -> str:
    """What a picture says that it shows."""
    try:
        with Image.open(path) as picture:
            return str(picture.info["Description"])
    except (OSError, KeyError):
        return "photo, painting"


# --- curves -----------------------------------------------------------------------------------

WIDTH, HEIGHT = 320, 150  # of one plot, in SVG units
LEFT, RIGHT, TOP, BOTTOM = 44, 8, 8, 20  # margins around the curve
BINS = 120  # a longer log is drawn as means, with the range around them


def _curves(rows: list[Row]) -> str:
    if len(rows) < 2:
        return ""
    bands: Bands = []
    for stage, group in groupby(rows, key=lambda row: row.stage):
        part = list(group)
        bands.append((stage, bands[-1][2] if bands else part[0].step, part[-1].step))
    series = {
        name: [(row.step, row.terms[name]) for row in rows if name in row.terms]
        for name in dict.fromkeys(name for row in rows for name in row.terms)
    }
    series["λ"] = [(row.step, row.style_weight) for row in rows]
    series["images/s"] = [(row.step, row.images_per_second) for row in rows]
    plots = [_plot(name, points, bands) for name, points in series.items()]
    keys = [
        f'<span class="key {_band(i)}"></span>{escape(stage)}'
        for i, (stage, _, _) in enumerate(bands)
    ]
    return (
        f"<section><h2>Curves</h2><p class=legend>{''.join(keys)}</p>"
        f"<div class=plots>{''.join(plots)}</div></section>"
    )


def _band(index: int) -> str:
    return f"band{index % 3}"


def _plot(name: str, points: Points, bands: Bands) -> str:
    """One small multiple: stage bands behind, the range of the values pale, their mean on top."""
    finite = [(step, value) for step, value in points if math.isfinite(value)]
    lost = len(points) - len(finite)
    if not finite:
        return ""
    low, high = min(v for _, v in finite), max(v for _, v in finite)
    logarithmic = low > 0 and high / low > 20
    y, ticks = _log_axis(low, high) if logarithmic else _linear_axis(low, high)
    first, last = bands[0][1], bands[-1][2]

    def x(step: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (step - first) / max(1, last - first)

    drawing = [
        f'<rect class={_band(i)} x="{x(a):.1f}" y="{TOP}" width="{x(b) - x(a):.1f}" '
        f'height="{HEIGHT - TOP - BOTTOM}"/>'
        for i, (_, a, b) in enumerate(bands)
    ]
    for tick in ticks:
        drawing.append(f'<path class=grid d="M{LEFT} {y(tick):.1f}H{WIDTH - RIGHT}"/>')
        drawing.append(f'<text x="{LEFT - 5}" y="{y(tick) + 3.5:.1f}" class=y>{tick:g}</text>')
    for step, anchor in ((first, "start"), (last, "end")):
        place = f'x="{x(step):.1f}" y="{HEIGHT - 5}" text-anchor={anchor}'
        drawing.append(f"<text {place}>{step:,}</text>")
    bins = list(_binned(finite))
    mean = " ".join(f"{x(step):.1f},{y(centre):.1f}" for step, centre, _, _ in bins)
    if len(finite) > len(bins):
        upper = [f"{x(step):.1f},{y(top):.1f}" for step, _, _, top in bins]
        lower = [f"{x(step):.1f},{y(bottom):.1f}" for step, _, bottom, _ in reversed(bins)]
        drawing.append(f'<polygon class=range points="{" ".join(upper + lower)}"/>')
    drawing.append(f'<polyline class=mean points="{mean}"/>')
    notes = [MEANING[name]] if name in MEANING else []
    notes += ["logarithmic"] if logarithmic else []
    notes += [f"not finite: {lost} of {len(points)}"] if lost else []
    return (
        f"<figure class=plot><figcaption><b>{escape(name)}</b><output>{finite[-1][1]:.3g}</output>"
        f"<small>{escape('; '.join(notes))}</small></figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role=img aria-label="{escape(name)} by step">'
        f"{''.join(drawing)}</svg></figure>"
    )


def _binned(points: Points) -> Iterator[tuple[float, float, float, float]]:
    """(step, mean, lowest, highest) of up to BINS runs of neighbouring points."""
    size = math.ceil(len(points) / BINS)
    for i in range(0, len(points), size):
        part = points[i : i + size]
        values = [value for _, value in part]
        step = sum(step for step, _ in part) / len(part)
        yield step, sum(values) / len(values), min(values), max(values)


def _pixel(low: float, high: float) -> Callable[[float], float]:
    """From low…high to SVG units, upwards."""
    return lambda value: TOP + (HEIGHT - TOP - BOTTOM) * (high - value) / (high - low)


def _linear_axis(low: float, high: float) -> tuple[Callable[[float], float], list[float]]:
    """An axis that includes zero when that costs little, with a few round ticks."""
    if 0 < low < 0.4 * high:
        low = 0.0
    if high == low:
        low, high = low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1)
    margin = 0.04 * (high - low)
    return _pixel(low - margin, high + margin), round_ticks(low, high)


def _log_axis(low: float, high: float) -> tuple[Callable[[float], float], list[float]]:
    """A logarithmic axis with ticks at powers of ten, or at 1, 2, 5 where few powers fit."""
    bottom, top = math.log10(low), math.log10(high)
    powers = range(math.floor(bottom), math.ceil(top) + 1)
    every = math.ceil((top - bottom) / 4)
    ticks = [10.0**p for p in powers if p % every == 0]
    ticks = [t for t in ticks if low <= t <= high]
    if len(ticks) < 3:
        ticks = [t for p in powers for m in (1, 2, 5) if low <= (t := m * 10.0**p) <= high]
    margin = 0.04 * (top - bottom)
    pixel = _pixel(bottom - margin, top + margin)
    return lambda value: pixel(math.log10(value)), ticks


STYLE = """
:root { --band0: #f1efe9; --band1: #e8edf1; --band2: #edf0e5; }
@media (prefers-color-scheme: dark) { :root {
  --band0: #201e1b; --band1: #1c242b; --band2: #212619; } }
.preview { margin-top: 26px; }
.preview img { width: 100%; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 380px), 1fr));
  gap: 0 48px; align-items: start; }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 290px), 1fr));
  gap: 26px 28px; }
.plot { display: flex; flex-direction: column; }
.plot figcaption { display: grid; grid-template-columns: 1fr auto; color: var(--ink);
  margin: 0 0 4px; font-size: 15px; flex: 1; align-content: end; }
.plot small { grid-column: 1 / -1; color: var(--quiet); font-size: 12.5px; line-height: 1.35; }
output { font-variant-numeric: tabular-nums; color: var(--curve); }
svg { display: block; width: 100%; font-size: 10.5px; fill: var(--quiet);
  font-variant-numeric: tabular-nums; }
svg .y { text-anchor: end; }
svg .grid { stroke: var(--line); fill: none; }
svg .mean { stroke: var(--curve); stroke-width: 1.6; fill: none; stroke-linejoin: round; }
svg .range { fill: var(--curve); opacity: .18; }
.band0 { fill: var(--band0); background: var(--band0); }
.band1 { fill: var(--band1); background: var(--band1); }
.band2 { fill: var(--band2); background: var(--band2); }
.legend { margin: -4px 0 16px; font-size: 13px; }
.key { display: inline-block; width: 22px; height: 11px; margin: 0 7px 0 0;
  border: 1px solid var(--line); }
.key:not(:first-child) { margin-left: 14px; }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 440px), 1fr));
  gap: 0 40px; margin: 0; font: 13px/1.5 ui-monospace, monospace; }
dl div { display: grid; grid-template-columns: 12.5em 1fr; gap: 12px; padding: 5px 0;
  border-bottom: 1px solid var(--line); }
dt { color: var(--quiet); }
dd { margin: 0; overflow-wrap: anywhere; }
"""
