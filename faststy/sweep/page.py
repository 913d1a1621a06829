"""sweep.html: the contact sheet, the content/style curve and the numbers on one page."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from faststy.evaluation.page import MEANING
from faststy.page import embed, embed_style, glossary, page
from faststy.pictures import style_name
from faststy.sweep.tradeoff import Mark, tradeoff_svg
from faststy.training.config import TrainConfig

if TYPE_CHECKING:
    from faststy.sweep.sweep import Point

REFRESH = 30  # seconds
LONGEST = 2200  # px, of the sheet on the page


def sweep_page(
    config: TrainConfig,
    points: Sequence[Point],
    chosen: Point,
    sheet: Image.Image,
    marks: Sequence[Mark],
    done: float,
) -> str:
    """A self-contained HTML page.

    Args:
        points: what each λ has come to, from small to large; one of them is `chosen`.
        sheet: the contact sheet.
        marks: the points on the curve.
        done: share of the sweep that is done, 0...1.
    """
    title = style_name(Path(config.style[0])).replace("_", " ")
    values = ", ".join(f"{p.style_weight:g}" for p in points)
    steps = " to ".join(f"{n:,}" for n in sorted({f(p.steps for p in points) for f in (min, max)}))
    state = "" if done >= 1 else f" · {done:.0%} done"
    style = embed_style(Path(config.style[0]), 420)
    parts = [
        f"<header><h1>{escape(title)}</h1>"
        f"<p class=quiet>λ {values} · {steps} steps each{state}</p></header>",
        f"<figure class=sheet>{embed(sheet, LONGEST, 'photos painted with each style weight')}"
        "<figcaption>Photos, and their paintings by λ, the style weight.</figcaption></figure>",
        "<div class=pair>"
        f"<section><h2>Content and style</h2>{tradeoff_svg(marks)}</section>"
        f"<section><h2>Numbers</h2>{_table(points, chosen)}{_words(points, chosen)}</section>"
        "</div>",
        f"<section><h2>Style</h2><div class=strip>{style}</div></section>",
    ]
    return page(title, "\n".join(parts), STYLE, REFRESH if done < 1 else None)


def _table(points: Sequence[Point], chosen: Point) -> str:
    rows = "".join(
        f"<tr{' class=picked' if p == chosen else ''}><th>{p.style_weight:g}"
        f"<td>{p.content:.3f}<td>{p.style:.3f}<td>{p.lost:.1%}<td>{p.steps:,}"
        for p in points
    )
    head = "<tr><th>λ<th>content<th>style<th>lost<th>steps"
    words = glossary({name: MEANING[name] for name in ("content", "style", "lost")})
    return f"<table class=numbers>{head}{rows}</table>{words}"


def _words(points: Sequence[Point], chosen: Point) -> str:
    if len(points) < 2:
        return ""
    command = f"faststy stylize photo.jpg -m {shlex.quote(str(chosen.model))}"
    return (
        f"<p><b>λ {chosen.style_weight:g}</b> is nearest to the best of both: least content lost "
        "and most style gained, each over the range of this sweep. Your eye decides.</p>"
        f"<pre>{escape(command)}</pre>"
    )


STYLE = """
.sheet { margin-top: 26px; }
.sheet img { width: 100%; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr));
  gap: 0 48px; align-items: start; }
.tradeoff { display: block; width: 100%; font-size: 12px; fill: var(--quiet);
  font-variant-numeric: tabular-nums; }
.tradeoff .grid { stroke: var(--line); }
.tradeoff .curve { stroke: var(--curve); stroke-width: 2; fill: none; stroke-linejoin: round; }
.tradeoff circle { stroke: var(--curve); stroke-width: 2; fill: var(--paper); }
.tradeoff .chosen { fill: var(--curve); }
.tradeoff .label { fill: var(--ink); font-size: 14px; }
.picked th, .picked td { color: var(--curve); }
pre { font: 13px/1.5 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere;
  margin: 14px 0 0; padding: 10px 12px; border: 1px solid var(--line); border-radius: 4px; }
"""
