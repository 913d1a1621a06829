"""The frame of faststy's HTML pages: one file each, with every picture in it and no script."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from html import escape
from pathlib import Path

from faststy import __version__
from faststy.errors import FaststyError
from faststy.pictures import PictureSource, encode_picture, list_pictures, read_picture


def page(title: str, body: str, style: str = "", refresh: int | None = None) -> str:
    """A whole page around `body`; `style` is CSS of its own.

    A browser that shows it loads it anew every `refresh` seconds.
    """
    again = f"<meta http-equiv=refresh content={refresh}>" if refresh else ""
    footer = f"<footer>faststy {__version__}</footer>"
    text = TEMPLATE.format(
        title=escape(title), again=again, style=STYLE + style, body=f"{body}\n{footer}"
    )
    return text.encode(errors="replace").decode()  # names of files may be no Unicode


def embed(source: PictureSource, longest: int, alt: str) -> str:
    """An <img> that holds the picture itself as JPEG, at most `longest` px wide and high.

    Its metadata stay out: pages are shown to others, and photos know where they were taken.

    Raises FaststyError when `source` cannot be read.
    """
    shown = replace(read_picture(source).in_srgb(), exif=None).to_image()
    shown.thumbnail((longest, longest))
    data = base64.b64encode(encode_picture(shown, "JPEG")).decode()
    return (
        f'<img src="data:image/jpeg;base64,{data}" alt="{escape(alt)}" '
        f"width={shown.width} height={shown.height}>"
    )


def embed_style(path: Path, longest: int) -> str:
    """The picture of a style, of a folder the first that can be read; nothing where none can."""
    with suppress(FaststyError):
        for each in [path] if path.is_file() else list_pictures(path):
            with suppress(FaststyError):
                return embed(each, longest, "the style picture")
    return ""


def glossary(meaning: Mapping[str, str]) -> str:
    """Words of a page, and what they mean."""
    rows = "".join(f"<dt>{escape(word)}<dd>{escape(text)}" for word, text in meaning.items())
    return f'<dl class="quiet glossary">{rows}</dl>'


TEMPLATE = """<!doctype html>
<html lang=en>
<meta charset=utf-8>
<meta name=viewport content="width=device-width, initial-scale=1">{again}
<title>{title} · faststy</title>
<style>{style}</style>
<main>
{body}
</main>
</html>
"""

STYLE = """
:root { color-scheme: light dark;
  --paper: #fbfaf7; --ink: #22211e; --quiet: #75716a; --line: #e4e0d8; --curve: #b3402a; }
@media (prefers-color-scheme: dark) { :root {
  --paper: #161513; --ink: #e9e6df; --quiet: #979187; --line: #34312c; --curve: #ee8a66; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 40px 24px 24px; }
h1 { font: 400 40px/1.15 Georgia, serif; margin: 0; overflow-wrap: anywhere; }
h1::first-letter { text-transform: uppercase; }
h2 { font: 400 22px/1.2 Georgia, serif; margin: 44px 0 14px; }
p { margin: 6px 0 0; }
figure { margin: 0; }
img { display: block; max-width: 100%; height: auto; border-radius: 4px; }
figcaption, .quiet, .legend, footer { color: var(--quiet); }
figcaption { font-size: 13px; margin-top: 6px; }
.strip { display: flex; flex-wrap: wrap; gap: 14px; }
.strip img { height: 220px; width: auto; }
table { border-collapse: collapse; font-size: 14px; width: 100%; }
th { text-align: left; font-weight: 400; color: var(--quiet); }
th, td { padding: 5px 14px 5px 0; border-bottom: 1px solid var(--line); }
.numbers { font-variant-numeric: tabular-nums; }
.numbers td, .numbers tr:first-child th:not(:first-child) { text-align: right; }
.glossary { font-size: 13px; display: grid; grid-template-columns: max-content 1fr; gap: 2px 14px; }
.glossary dd { margin: 0; }
footer { margin-top: 44px; font-size: 13px; }
"""
