import json
import math
import os
import re
from html.parser import HTMLParser
from itertools import pairwise

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from faststy.errors import FaststyError
from faststy.training import report
from faststy.training.report import _linear_axis, _log_axis, write_report

UNCLOSED = {"meta", "img", "tr", "td", "th"}


def row(step, stage="perceptual", **terms):
    return {
        "step": step,
        "seconds": step / 10,
        "stage": stage,
        "images_per_second": 40.0,
        "style_weight": min(1.0, step / 50),
        "terms": terms or {"content": 0.5, "style": 3.0 / step},
    }


def write_log(folder, rows, torn=""):
    text = "".join(json.dumps(r) + "\n" for r in rows)
    (folder / "log.jsonl").write_text(text + torn)


@pytest.fixture
def full(tmp_path):
    """A run of all three stages, with everything that the report can show."""
    rows = [row(s) for s in range(1, 51)]
    rows += [row(s, "adversarial", content=0.4, adversarial=-0.1) for s in range(51, 81)]
    rows += [row(s, "repair", repair=0.3) for s in range(81, 101)]
    write_log(tmp_path, rows)
    Image.new("RGB", (64, 32), "red").save(tmp_path / "preview.png")
    Image.new("RGB", (40, 40), "blue").save(tmp_path / "painted_waves.png")
    style = json.dumps(str(tmp_path / "painted_waves.png"))
    (tmp_path / "config.toml").write_text(f'style = [{style}]\nmodel = "<fast>"\nsize = 128\n')
    return tmp_path


def page(folder) -> str:
    path = write_report(folder)
    assert path == folder / "report.html"
    return path.read_text(encoding="utf-8")


def plot(html: str, name: str) -> str:
    found = re.search(rf"<figure class=plot><figcaption><b>{name}</b>.*?</figure>", html, re.DOTALL)
    assert found, name
    return found[0]


def test_shows_pictures_curves_settings_and_timings(full):
    html = page(full)
    assert html.count("data:image/jpeg;base64,") == 2  # preview, style
    for name in ("content", "style", "adversarial", "repair", "λ", "images/s"):
        assert "<polyline" in plot(html, name)
    assert "<h1>painted waves</h1>" in html
    assert "100 steps · 10.0 s · 40 images/s" in html
    assert "<tr><th>adversarial<td>30<td>3.0 s<td>40" in html
    assert "<dt>model</dt><dd>&lt;fast&gt;</dd>" in html


def test_the_caption_is_of_what_the_preview_shows(full):
    assert "<figcaption>Photo, painting.</figcaption>" in page(full)  # though there was a repair
    about = PngInfo()
    about.add_text("Description", "photo, painting, lost-content map, <b>")
    Image.new("RGB", (64, 32)).save(full / "preview.png", pnginfo=about)
    assert "<figcaption>Photo, painting, lost-content map, &lt;b&gt;.</figcaption>" in page(full)


def test_is_self_contained(full):
    html = page(full)
    references = re.findall(r'(?:src|href|url)\s*[=(]\s*"?([^" >)]{0,40})', html)
    assert references
    assert all(reference.startswith("data:image/jpeg;base64,") for reference in references)
    assert "<script" not in html
    assert "://" not in html


def test_only_a_growing_report_is_loaded_anew(full):
    again = "<meta http-equiv=refresh content=30>"
    assert again in write_report(full, growing=True).read_text(encoding="utf-8")
    assert again not in page(full)


def test_tags_are_balanced(full):
    stack = []

    class Checker(HTMLParser):
        def handle_starttag(self, tag, attributes):
            if tag not in UNCLOSED:
                stack.append(tag)

        def handle_endtag(self, tag):
            assert stack.pop() == tag

        def handle_startendtag(self, tag, attributes):
            """Opens and closes nothing."""

    Checker().feed(page(full))
    assert stack == []


def test_bands_follow_the_stages(full):
    bands = re.findall(r'<rect class=(band\d) x="([\d.]+)" y="\d+" width="([\d.]+)"', page(full))[
        :3
    ]
    assert [name for name, _, _ in bands] == ["band0", "band1", "band2"]
    for (_, x, width), (_, following, _) in pairwise(bands):
        assert float(x) + float(width) == pytest.approx(float(following), abs=0.11)
    assert float(bands[0][2]) / float(bands[1][2]) == pytest.approx(49 / 30, rel=0.01)


def test_the_curve_is_where_the_numbers_are(tmp_path):
    write_log(tmp_path, [row(s, content=float(s)) for s in (1, 2, 3)])
    points = re.search(r'<polyline class=mean points="([^"]+)"', plot(page(tmp_path), "content"))[1]
    (x1, y1), (x2, y2), (x3, y3) = (map(float, p.split(",")) for p in points.split())
    assert x2 - x1 == pytest.approx(x3 - x2, abs=0.11)
    assert y1 - y2 == pytest.approx(y2 - y3, abs=0.11)
    assert x1 < x2 < x3
    assert y1 > y2 > y3  # larger values are higher up


def test_a_long_log_is_drawn_as_means_in_their_range(tmp_path):
    write_log(tmp_path, [row(s, content=1.0 + s % 2) for s in range(1, 5001)])
    html = plot(page(tmp_path), "content")
    points = re.search(r'<polyline class=mean points="([^"]+)"', html)[1].split()
    assert len(points) <= 120
    assert "<polygon class=range" in html
    assert len(html) < 20_000


def test_a_run_that_was_killed_at_any_byte_of_the_log_still_has_a_report(tmp_path):
    whole = json.dumps(row(3)) + "\n"
    for cut in range(len(whole)):
        write_log(tmp_path, [row(1), row(2)], torn=whole[:cut])
        assert ("2 steps" if cut < len(whole) - 1 else "3 steps") in page(tmp_path)


def test_of_a_step_that_was_done_twice_the_later_counts(tmp_path):
    rows = [row(1, content=1.0), row(2, content=9.0), row(2, content=5.0)]
    write_log(tmp_path, rows)
    assert "<output>5</output>" in plot(page(tmp_path), "content")


def test_values_that_are_not_finite_are_left_out_and_counted(tmp_path):
    values = [1.0, math.nan, 2.0, math.inf, 3.0]
    write_log(tmp_path, [row(s + 1, content=v) for s, v in enumerate(values)])
    html = plot(page(tmp_path), "content")
    assert "not finite: 2 of 5" in html
    assert "nan" not in html
    assert "inf" not in html.replace("info", "")


def test_a_term_that_is_never_finite_has_no_plot(tmp_path):
    write_log(tmp_path, [row(s, content=math.nan, style=1.0) for s in (1, 2)])
    html = page(tmp_path)
    assert "<b>content</b>" not in html
    assert "<b>style</b>" in html


def test_only_curves_over_decades_are_logarithmic(tmp_path):
    write_log(tmp_path, [row(s, a=10.0**-s, b=-(10.0**-s), c=1.0 + s) for s in range(1, 5)])
    html = page(tmp_path)
    assert "logarithmic" in plot(html, "a")
    assert "logarithmic" not in plot(html, "b")  # negative values have no logarithm
    assert "logarithmic" not in plot(html, "c")


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (-3, 7), (5, 5), (0, 0), (0.0101, 0.0109), (1e-9, 1e-8), (30, 31)]
)
def test_linear_axis(low, high):
    y, ticks = _linear_axis(low, high)
    assert 2 <= len(ticks) <= 7
    assert y(low) >= y(high)
    assert all(8 <= y(v) <= 130 for v in (low, high, *ticks))


@pytest.mark.parametrize(("low", "high"), [(1e-6, 1), (0.04, 3), (1, 25), (1e-30, 1e30)])
def test_log_axis(low, high):
    y, ticks = _log_axis(low, high)
    assert 2 <= len(ticks) <= 7
    assert all(8 <= y(v) <= 130 for v in (low, high, *ticks))
    middle = math.sqrt(low * high)
    assert y(middle) == pytest.approx((y(low) + y(high)) / 2)


def test_a_style_picture_is_decoded_once_and_anew_when_it_changes(full, monkeypatch):
    decoded, real = [], report.embed_style
    monkeypatch.setattr(
        report, "embed_style", lambda path, *given: decoded.append(path) or real(path, *given)
    )
    blue = page(full)
    assert page(full) == blue
    assert len(decoded) == 1
    Image.new("RGB", (40, 40), "green").save(decoded[0])
    os.utime(decoded[0], ns=(0, 1))  # however coarse the clock of the disk is
    assert page(full) != blue
    decoded[0].unlink()
    assert page(full).count("data:image/") == 1


def test_an_empty_run_says_so(tmp_path):
    html = page(tmp_path)
    assert "Nothing was logged yet." in html
    assert f"<h1>{tmp_path.name}</h1>" in html
    assert "<svg" not in html


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("preview.png", b""),
        ("preview.png", b"\x89PNG\r\n\x1a\n torn"),
        ("config.toml", b"style = ["),
        ("config.toml", b"\xff\xfe"),
        ("log.jsonl", b"\xff\n[]\n3\nnull\n{}\n"),
    ],
)
def test_damaged_files_leave_a_gap(full, name, content):
    (full / name).write_bytes(content)
    html = page(full)
    assert "</html>" in html


def test_events_with_any_line_break_are_told(tmp_path):
    text = json.dumps({"step": 1, "event": "a\u2028b\x85c"}, ensure_ascii=False)
    (tmp_path / "log.jsonl").write_text(text + "\n", encoding="utf-8")
    assert "<li>a\u2028b\x85c</li>" in page(tmp_path)


def test_names_are_escaped(tmp_path):
    write_log(tmp_path, [row(1, **{"<b>&": 1.0}), row(2, **{"<b>&": 2.0})])
    assert "<b>&lt;b&gt;&amp;</b>" in page(tmp_path)


def test_no_such_folder(tmp_path):
    with pytest.raises(FaststyError, match="no such run folder"):
        write_report(tmp_path / "absent")
