"""An evaluation as people read it: a table, and a page with the worst and the best pictures."""

from __future__ import annotations

import math
from collections.abc import Callable
from html import escape

from PIL import Image

from faststy.evaluation.checkerboard import STRIDES
from faststy.evaluation.measure import Entry, Evaluation, Scores
from faststy.page import embed, glossary, page

HEAD = (
    *("", "repair", "content", "inside", "outside", "lost", "style"),
    *(f"grid {stride}" for stride in STRIDES),
    "motion",
)
NAMED = 3  # styles in the heading
SHOWN = 3  # pictures at each end of a ranking
LONGEST = 440  # px, of a picture on the page

MEANING = {
    "all of these": "the smaller, the better",
    "content": "relative distance of the encoder's relu3_1 from the photo's",
    "inside, outside": "the same with the style normalised away, inside the lost-content map of "
    "the painting without repair, and outside of it",
    "lost": "share of the picture where most of the photo's structure is gone",
    "style": "relative distance of the Gram matrices from the style picture's",
    "grid": "power at the frequencies of a grid of 2, 4, 8 px over that around them, in log2, less "
    "the photo's own",
    "motion": "what paintings of a moving photo change beside moving with it, in % of their "
    "contrast (the warp error)",
}


def table(evaluation: Evaluation) -> list[tuple[str, ...]]:
    """The means: rows of text under `HEAD`, for each style and all, without and with repair."""
    styles = list(dict.fromkeys(entry.style for entry in evaluation.entries))
    rows = []
    for style in [*styles, *([None] if len(styles) > 1 else [])]:
        for repaired in (False, True):
            scores = evaluation.mean(style, repaired=repaired)
            if scores is not None:
                name = style or "all"
                motion = evaluation.mean_motion(style, repaired=repaired)
                moved = "–" if motion is None else f"{motion:.1f}"
                rows.append((name, "yes" if repaired else "no", *_numbers(scores), moved))
    return rows


def speed(evaluation: Evaluation) -> str:
    """How fast it painted, in words."""
    return (
        f"{evaluation.images_per_second:.3g} images/s, "
        f"{evaluation.megapixels_per_second:.3g} megapixels/s"
    )


def evaluation_page(
    evaluation: Evaluation, model: str, show: Callable[[Entry], tuple[Image.Image, Image.Image]]
) -> str:
    """A self-contained HTML page: the table, and what is worst and best by each score.

    Args:
        model: its file, which is named below the heading; that names the styles.
        show: the photo and the painting of an entry, at the size that was judged.
    """
    photos = len({entry.photo for entry in evaluation.entries})
    styles = list(dict.fromkeys(entry.style for entry in evaluation.entries))
    heading = ", ".join(" ".join(style.replace("_", " ").split()) for style in styles[:NAMED])
    if len(styles) > NAMED:
        heading += f" and {len(styles) - NAMED} more"
    quiet = f"{model} · {photos} photos · {speed(evaluation)}"
    head = "".join(f"<th>{escape(name)}" for name in HEAD)
    body = "".join(f"<tr>{''.join(f'<td>{escape(c)}' for c in row)}" for row in table(evaluation))
    parts = [
        f"<header><h1>{escape(heading)}</h1><p class=quiet>{escape(quiet)}</p></header>",
        f"<section><h2>Means</h2><div class=wide><table class=numbers><tr>{head}{body}</table>"
        f"</div>{glossary(MEANING)}</section>",
    ]
    for name, key in RANKINGS.items():
        ranked = sorted((e for e in evaluation.entries if not math.isnan(key(e))), key=key)
        count = min(SHOWN, len(ranked) // 2)
        if not count or key(ranked[0]) == key(ranked[-1]):
            continue
        for title, chosen in (("worst", ranked[: -count - 1 : -1]), ("best", ranked[:count])):
            figures = "".join(_figure(entry, f"{name} {key(entry):.3g}", show) for entry in chosen)
            parts.append(
                f"<section><h2>{escape(name.capitalize())}: {title}</h2>"
                f"<div class=pairs>{figures}</div></section>"
            )
    if evaluation.skipped:
        reasons = "".join(f"<li>{escape(why)}" for why in evaluation.skipped.values())
        parts.append(f"<section><h2>Skipped</h2><ul>{reasons}</ul></section>")
    return page(heading, "\n".join(parts), STYLE)


def _worst_grid(entry: Entry) -> float:
    return max(entry.final.checkerboard.values(), default=math.nan)  # it is too small to tell


RANKINGS: dict[str, Callable[[Entry], float]] = {
    "content": lambda entry: entry.final.content,
    "style": lambda entry: entry.final.style,
    "grid": _worst_grid,
}


def _numbers(scores: Scores) -> list[str]:
    grids = [scores.checkerboard.get(stride) for stride in STRIDES]
    return [
        *(f"{value:.3f}" for value in (scores.content, scores.inside, scores.outside)),
        f"{scores.lost:.1%}",
        f"{scores.style:.3f}",
        *("–" if score is None else f"{score:+.2f}" for score in grids),
    ]


def _figure(
    entry: Entry, score: str, show: Callable[[Entry], tuple[Image.Image, Image.Image]]
) -> str:
    pictures = "".join(embed(picture, LONGEST, entry.photo.name) for picture in show(entry))
    caption = f"{entry.photo.name}, {entry.style}: {score}"
    return f"<figure><div>{pictures}</div><figcaption>{escape(caption)}</figcaption></figure>"


STYLE = """
.wide { overflow-x: auto; }
header p { overflow-wrap: anywhere; }
.numbers tr:first-child th:nth-child(2), .numbers td:nth-child(-n+2) { text-align: left; }
.pairs { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 340px), 1fr));
  gap: 18px; }
.pairs div { display: grid; grid-template-columns: 1fr 1fr; gap: 4px; }
"""
