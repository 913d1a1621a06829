"""How a run looks on a terminal and in a log."""

import io

import pytest
from rich.console import Console

from faststy.cli import _display
from faststy.cli._display import Lines, Panel, clock
from faststy.training.log import Progress


def progress(step, fraction, seconds, **named):
    values = {"content": 0.51234, "style_share": 0.45}
    return Progress("adversarial", step, fraction, seconds, 31.25, 12.5, values, **named)


def console(terminal):
    return Console(file=io.StringIO(), force_terminal=terminal, width=100, color_system=None)


def test_the_panel_shows_stage_time_left_speed_λ_and_every_term():
    screen = console(terminal=True)
    with Panel(screen, 60.0, "faststy train") as show:
        show(progress(40, 0.25, 15.0, events=("step 40: something happened",)))
    text = screen.file.getvalue()
    for part in (
        *("faststy train", "adversarial", "25 %", "0:45 left", "images/s 31.2", "λ 12.50"),
        *("step 40", "content 0.512", "style_share 0.45", "step 40: something happened"),
    ):
        assert part in text, part


def test_plain_lines_say_the_same_and_come_now_and_then(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(_display.time, "monotonic", lambda: now[0])
    log = console(terminal=False)
    with Lines(log, 60.0, "faststy train") as show:
        show(progress(1, 0.1, 6.0))
        show(progress(2, 0.2, 12.0))
        now[0] += _display.LINE_EVERY
        show.label = "λ 5, 1 of 3"
        show(progress(3, 0.3, 18.0))
    assert log.file.getvalue().splitlines() == [
        "adversarial 10% step 1 31.2 images/s left 0:54 λ 12.50 content 0.512 style_share 0.45",
        "λ 5, 1 of 3: adversarial 30% step 3 31.2 images/s left 0:42 λ 12.50 content 0.512 "
        "style_share 0.45",
    ]


def test_what_was_told_is_known():
    with Lines(console(terminal=False), 60.0, "faststy train") as show:
        show(progress(1, 0.1, 6.0, events=("step 1: \x1b[2J [b] happened",)))
    assert show.told == {"step 1: \x1b[2J [b] happened"}
    assert "step 1: \\x1b[2J [b] happened\n" in show.console.file.getvalue()


def test_a_run_in_steps_is_estimated_from_what_was_done_since_the_first_report():
    show = Lines(console(terminal=False), None, "faststy train")
    assert show.left(progress(1, 0.0, 9.0)) is None  # nine seconds of preparations
    assert show.left(progress(11, 0.1, 19.0)) == pytest.approx(90)
    resumed = Lines(console(terminal=False), None, "faststy train")
    assert resumed.left(progress(500, 0.5, 1000.0)) is None
    assert resumed.left(progress(600, 0.6, 1020.0)) == pytest.approx(80)


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "–"), (0.0, "0:00"), (61.9, "1:01"), (3600, "1:00:00")]
)
def test_clock(seconds, text):
    assert clock(seconds) == text
