"""The content/style curve: both drawings show the numbers where they are."""

import re

import numpy as np
import pytest
from PIL import ImageFont

from faststy.sweep.tradeoff import (
    CURVE,
    HEIGHT,
    SCALE,
    SMALL,
    WIDTH,
    Mark,
    draw,
    tradeoff_picture,
    tradeoff_svg,
)

MARKS = [Mark(0.4, 0.2, 5.0), Mark(0.6, 0.08, 15.0, chosen=True), Mark(1.0, 0.05, 45.0)]


def test_places_are_linear_and_more_is_right_and_up():
    (x1, y1), (x2, y2), (x3, y3) = draw(MARKS).curve
    assert (x2 - x1) / (x3 - x1) == pytest.approx(0.2 / 0.6)
    assert (y2 - y1) / (y3 - y1) == pytest.approx(0.12 / 0.15)
    assert x1 < x2 < x3
    assert y1 < y2 < y3  # downwards: less style distance


def test_ticks_stand_where_their_numbers_are():
    drawing = draw(MARKS)
    x1, x3 = drawing.curve[0][0], drawing.curve[2][0]
    ticks = [t for t in drawing.texts if t.kind == "tick" and t.anchor == "middle"]
    assert len(ticks) >= 3
    for tick in ticks:
        assert (tick.x - x1) / (x3 - x1) == pytest.approx((float(tick.text) - 0.4) / 0.6)


def test_long_numbers_leave_the_name_of_the_axis_alone():
    drawing = draw([Mark(0.4, 0.36081, 5.0), Mark(0.6, 0.36085, 15.0), Mark(1.0, 0.36089, 45.0)])
    name = next(t for t in drawing.texts if t.upright)
    ticks = [t for t in drawing.texts if t.kind == "tick" and t.anchor == "end"]
    assert max(len(t.text) for t in ticks) >= 7
    font = ImageFont.load_default(SMALL)
    for tick in ticks:
        assert tick.x - font.getlength(tick.text) > name.x + SMALL / 2


def test_svg_has_each_mark_once_and_the_chosen_one_filled():
    svg = tradeoff_svg(MARKS)
    assert svg.count("<circle class=dot") == 2
    assert svg.count("<circle class=chosen") == 1
    labels = re.findall(r"<text class=label [^>]*>([^<]*)</text>", svg)
    assert labels == ["5", "15", "45"]
    points = re.search(r'<polyline class=curve points="([^"]+)"', svg)[1].split()
    assert [tuple(map(float, p.split(","))) for p in points] == [
        pytest.approx(place, abs=0.06) for place in draw(MARKS).curve
    ]


def test_the_picture_has_the_same_dots():
    picture = np.asarray(tradeoff_picture(MARKS)).astype(int)
    assert picture.shape == (HEIGHT * SCALE, WIDTH * SCALE, 3)
    for (x, y), mark in zip(draw(MARKS).curve, MARKS, strict=True):
        middle = picture[round(y * SCALE), round(x * SCALE)]
        assert (abs(middle - CURVE).max() < 8) == mark.chosen
        rim = picture[round(y * SCALE), round((x + (6 if mark.chosen else 4.5)) * SCALE) - 2]
        assert abs(rim - CURVE).max() < 60


@pytest.mark.parametrize(
    "marks", [MARKS[:1], [MARKS[0], MARKS[0]], [Mark(0.0, 0.0, 1.0)], MARKS * 5]
)
def test_any_marks_can_be_drawn(marks):
    for x, y in draw(marks).curve:
        assert 0 < x < WIDTH
        assert 0 < y < HEIGHT
    assert "nan" not in tradeoff_svg(marks)
    tradeoff_picture(marks)
