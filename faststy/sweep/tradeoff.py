"""The content/style curve of a sweep: one drawing, as SVG for a page and as a picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from faststy.training.axis import round_ticks

WIDTH, HEIGHT = 560, 400  # SVG units, and points of the picture
RIGHT, TOP, BOTTOM = 22, 18, 54  # margins around the plot; on the left are ticks, and the axis
MARGIN = 0.14  # of the range of the values, around them
SCALE = 2  # pixels of the picture per point
SMOOTH = 3  # it is drawn this much larger, and scaled down
PAPER, INK, QUIET = (251, 250, 247), (34, 33, 30), (117, 113, 106)
LINE, CURVE = (228, 224, 216), (179, 64, 42)
TEXT, SMALL = 14, 12
AXIS, DIGIT = 32, 7  # what the name of the axis takes, and a digit of a tick


class Mark(NamedTuple):
    """A point of the curve; smaller is better on both axes."""

    content: float
    style: float
    style_weight: float
    chosen: bool = False


class Text(NamedTuple):
    x: float
    y: float
    text: str
    anchor: str  # start, middle or end
    kind: str  # tick, axis, or label
    upright: bool = False  # reads from below


class Drawing(NamedTuple):
    """In SVG units."""

    grid: list[tuple[float, float, float, float]]
    curve: list[tuple[float, float]]
    dots: list[tuple[float, float, bool]]
    texts: list[Text]


def draw(marks: Sequence[Mark]) -> Drawing:
    """Where everything is; the curve joins the marks in their order."""
    y, y_ticks = _axis([m.style for m in marks], HEIGHT - BOTTOM, TOP)
    start = AXIS + DIGIT * max(len(f"{t:g}") for t in y_ticks)
    x, x_ticks = _axis([m.content for m in marks], start, WIDTH - RIGHT)
    grid: list[tuple[float, float, float, float]] = [
        (x(t), TOP, x(t), HEIGHT - BOTTOM) for t in x_ticks
    ]
    grid += [(start, y(t), WIDTH - RIGHT, y(t)) for t in y_ticks]
    texts = [Text(x(t), HEIGHT - BOTTOM + 18, f"{t:g}", "middle", "tick") for t in x_ticks]
    texts += [Text(start - 8, y(t) + 4, f"{t:g}", "end", "tick") for t in y_ticks]
    middle = (start + WIDTH - RIGHT) / 2, (TOP + HEIGHT - BOTTOM) / 2
    texts.append(Text(middle[0], HEIGHT - 12, "distance from the photo", "middle", "axis"))
    texts.append(Text(16, middle[1], "distance from the style", "middle", "axis", upright=True))
    texts.append(Text(WIDTH - RIGHT - 10, TOP + 20, "numbers: style weight", "end", "axis"))
    places = [(x(m.content), y(m.style)) for m in marks]
    for (left, top), mark in zip(places, marks, strict=True):
        texts.append(Text(left + 10, top - 9, f"{mark.style_weight:g}", "start", "label"))
    dots = [(*place, mark.chosen) for place, mark in zip(places, marks, strict=True)]
    return Drawing(grid, places, dots, texts)


def _axis(
    values: Sequence[float], start: float, end: float
) -> tuple[Callable[[float], float], list[float]]:
    """From values to units between `start` and `end`, and round ticks."""
    low, high = min(values), max(values)
    spread = (high - low) or abs(high) or 1.0
    low, high = low - MARGIN * spread, high + MARGIN * spread
    return lambda v: start + (end - start) * (v - low) / (high - low), round_ticks(
        low, high, most=7
    )


def tradeoff_svg(marks: Sequence[Mark]) -> str:
    """For a page; its colours are the page's own."""
    drawing = draw(marks)
    parts = [
        f'<path class=grid d="M{a:.1f} {b:.1f}L{c:.1f} {d:.1f}"/>' for a, b, c, d in drawing.grid
    ]
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in drawing.curve)
    parts.append(f'<polyline class=curve points="{points}"/>')
    for x, y, chosen in drawing.dots:
        kind = "chosen" if chosen else "dot"
        parts.append(f'<circle class={kind} cx="{x:.1f}" cy="{y:.1f}" r="{6 if chosen else 4.5}"/>')
    for text in drawing.texts:
        turn = f' transform="rotate(-90 {text.x:.1f} {text.y:.1f})"' if text.upright else ""
        parts.append(
            f'<text class={text.kind} x="{text.x:.1f}" y="{text.y:.1f}" '
            f"text-anchor={text.anchor}{turn}>{escape(text.text)}</text>"
        )
    return (
        f'<svg class=tradeoff viewBox="0 0 {WIDTH} {HEIGHT}" role=img '
        f'aria-label="content and style distance by λ">{"".join(parts)}</svg>'
    )


def tradeoff_picture(marks: Sequence[Mark]) -> Image.Image:
    """The same as an RGB picture."""
    drawing, scale = draw(marks), SCALE * SMOOTH
    large = Image.new("RGB", (WIDTH * scale, HEIGHT * scale), PAPER)
    pen = ImageDraw.Draw(large)
    for line in drawing.grid:
        pen.line([v * scale for v in line], LINE, scale)
    path = [(x * scale, y * scale) for x, y in drawing.curve]
    pen.line(path, CURVE, 2 * scale, joint="curve")
    for x, y, chosen in drawing.dots:
        r = (6 if chosen else 4.5) * scale
        box = [x * scale - r, y * scale - r, x * scale + r, y * scale + r]
        pen.ellipse(box, CURVE if chosen else PAPER, CURVE, 2 * scale)
    for text in drawing.texts:
        _write(large, text, scale)
    return large.resize((WIDTH * SCALE, HEIGHT * SCALE), Image.Resampling.LANCZOS)


def _write(picture: Image.Image, text: Text, scale: int) -> None:
    pen = ImageDraw.Draw(picture)
    font = ImageFont.load_default((TEXT if text.kind == "label" else SMALL) * scale)
    fill = INK if text.kind == "label" else QUIET
    anchor = {"start": "ls", "middle": "ms", "end": "rs"}[text.anchor]
    if not text.upright:
        pen.text((text.x * scale, text.y * scale), text.text, fill, font, anchor=anchor)
        return
    width, height = round(pen.textlength(text.text, font)), 2 * SMALL * scale
    strip = Image.new("L", (width, height))
    ImageDraw.Draw(strip).text((0, height - SMALL * scale // 2), text.text, 255, font, anchor="ls")
    strip = strip.rotate(90, expand=True)
    left, top = text.x * scale - height + SMALL * scale / 2, text.y * scale - width / 2
    picture.paste(fill, (round(left), round(top)), strip)
