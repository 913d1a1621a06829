"""Live painting shows the newest frame, rests when nobody looks, and says what went wrong."""

import io
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from faststy.errors import FaststyError
from faststy.stylization import live as live_module
from faststy.stylization.clips import open_clip
from faststy.stylization.live import (
    Live,
    first_frame,
    from_camera,
    in_real_time,
    moving_photo,
    thumbnails,
)


class Inverter:
    """Stands in for a stylizer: inverts frames, each only after `gate` was opened."""

    styles = ("rain", "night")
    model = SimpleNamespace(repairer=object())

    def __init__(self):
        self.gate, self.begun = threading.Semaphore(0), threading.Semaphore(0)
        self.painted = 0
        self.dials = {}

    def painter(self, **dials):
        self.dials = dials
        return self

    def set(self, **dials):
        if dials.get("strength") == 0.5:
            raise FaststyError("not 0.5")
        self.dials |= dials

    def __call__(self, frame, **_):
        self.begun.release()
        self.gate.acquire()
        self.painted += 1
        return 255 - frame


class Frames:
    """Frames that come when they are pushed; `taken` counts those that were put down."""

    def __init__(self):
        self.ready = threading.Semaphore(0)
        self.number = self.taken = 0

    def __iter__(self):
        while True:
            self.ready.acquire()
            if self.number < 0:
                raise FaststyError("unplugged")
            self.number += 1
            yield np.full((16, 24, 3), self.number, np.uint8)
            self.taken = self.number

    def push(self, count):
        wanted = self.number + count
        for _ in range(count):
            self.ready.release()
        end = time.monotonic() + 10
        while self.taken < wanted and time.monotonic() < end:
            time.sleep(0.001)
        assert self.taken == wanted


def test_the_newest_frame_is_painted_and_the_others_are_dropped():
    stylizer, frames = Inverter(), Frames()
    with Live(stylizer, frames) as live:
        live.next(0, 0)  # someone looks
        frames.push(1)
        assert stylizer.begun.acquire(timeout=10)
        frames.push(5)  # while the first is being painted
        stylizer.gate.release()
        first = live.next(0, 10)
        stylizer.gate.release()
        second = live.next(first.number, 10)
        assert (first.before[0, 0, 0], first.after[0, 0, 0]) == (1, 254)
        assert (second.before[0, 0, 0], second.after[0, 0, 0]) == (6, 249)
        assert (first.dropped, second.dropped) == (0, 4)
        assert time.time() - 60 < first.captured <= second.captured <= time.time()
        assert second.fps > 0
        assert live.next(second.number, 0.05) is None
        stylizer.gate.release(100)


def test_files_of_a_shown_frame():
    stylizer, frames = Inverter(), Frames()
    stylizer.gate.release(9)
    with Live(stylizer, frames) as live:
        live.next(0, 0)
        frames.push(1)
        shown = live.next(0, 10)
    both = np.asarray(Image.open(io.BytesIO(shown.both))).astype(int)
    assert both.shape == (32, 24, 3)
    assert np.abs(both[:16] - 1).max() <= 3
    assert np.abs(both[16:] - 254).max() <= 3


def test_nothing_is_painted_while_nobody_looks(monkeypatch):
    monkeypatch.setattr(live_module, "IDLE", 0.1)
    stylizer, frames = Inverter(), Frames()
    stylizer.gate.release(100)
    with Live(stylizer, frames) as live:
        time.sleep(0.2)
        frames.push(3)
        time.sleep(0.1)
        assert stylizer.painted == 0
        shown = live.next(0, 10)
        assert shown.before[0, 0, 0] == 3
        assert stylizer.painted == 1
        time.sleep(0.2)
        frames.push(1)
        assert live.next(0, 10).before[0, 0, 0] == 4  # not the old painting once more


def test_who_waits_for_a_frame_looks(monkeypatch):
    monkeypatch.setattr(live_module, "IDLE", 0.1)
    stylizer, frames = Inverter(), Frames()
    stylizer.gate.release(100)
    with Live(stylizer, frames) as live, ThreadPoolExecutor() as pool:
        waiting = pool.submit(live.next, 0, 10)
        time.sleep(0.5)
        frames.push(1)
        assert waiting.result().before[0, 0, 0] == 1
        assert time.time() - waiting.result().captured < 5  # and not once it is asked for again


def test_a_pause_without_anyone_who_looks_is_neither_slow_nor_drops_frames(monkeypatch):
    monkeypatch.setattr(live_module, "IDLE", 0.2)
    stylizer, frames = Inverter(), Frames()
    stylizer.gate.release(100)
    with Live(stylizer, frames) as live:
        for _ in range(2):
            time.sleep(0.5)
            frames.push(5)
            shown = live.next(0, 10)
            assert shown.dropped == 0
            assert shown.fps > 10


def test_whether_a_frame_is_being_painted():
    stylizer, frames = Inverter(), Frames()
    with Live(stylizer, frames) as live:
        assert live.next(0, 0.05) is None
        assert not live.is_painting  # no frame came
        frames.push(1)
        assert stylizer.begun.acquire(timeout=10)
        assert live.next(0, 0.05) is None
        assert live.is_painting
        stylizer.gate.release(100)
        assert live.next(0, 10).number == 1
        assert not live.is_painting


def test_a_style_in_any_form_is_remembered_as_weights():
    with Live(Inverter(), Frames()) as live:
        for style in ("night", {"night": 3.0}, "night:2"):
            live.set(style=style)
            assert live.dials["style"] == {"night": 1.0}
        with pytest.raises(FaststyError, match="unknown style 'snow'"):
            live.set(style="snow")
        assert live.dials["style"] == {"night": 1.0}


def test_dials_reach_the_painter_and_are_remembered():
    stylizer = Inverter()
    with Live(stylizer, Frames(), style={"night": 1.0}) as live:
        assert stylizer.dials == {"style": {"night": 1.0}}
        live.set(strength=0.2, keep_color=True)
        assert stylizer.dials == {"style": {"night": 1.0}, "strength": 0.2, "keep_color": True}
        before = dict(live.dials)
        assert before == {**stylizer.dials, "repair": 1.0, "stroke": None}
        with pytest.raises(FaststyError, match=r"not 0\.5"):
            live.set(strength=0.5)
        assert live.dials == before


def test_dials_that_two_pages_turn_at_once_are_both_remembered():
    class Slow(Inverter):
        begun_to_turn = threading.Event()

        def set(self, **dials):
            super().set(**dials)
            if not self.begun_to_turn.is_set():
                self.begun_to_turn.set()
                time.sleep(0.2)

    stylizer = Slow()
    with Live(stylizer, Frames()) as live:
        thread = threading.Thread(target=live.set, kwargs={"strength": 0.25})
        thread.start()
        assert stylizer.begun_to_turn.wait(10)
        live.set(strength=0.75)  # the last word
        thread.join()
        assert stylizer.dials["strength"] == 0.75
        assert live.dials["strength"] == 0.75


def test_a_camera_that_fails_is_told_to_those_who_look():
    stylizer, frames = Inverter(), Frames()
    with Live(stylizer, frames) as live:
        frames.number = -1
        frames.ready.release()
        assert live.next(0, 10) is None
        assert live.error == "unplugged"


def test_a_painter_that_fails_is_told_too():
    class Broken(Inverter):
        def __call__(self, frame):
            raise RuntimeError("bug")

    frames = Frames()
    with Live(Broken(), frames) as live:
        live.next(0, 0)
        frames.push(1)
        assert live.next(0, 10) is None
        assert live.error == "RuntimeError: bug"


def test_a_camera_that_ends_is_told():
    with Live(Inverter(), iter([])) as live:
        assert live.next(0, 10) is None
        assert live.error == "the camera gives no more frames"


def test_a_camera_that_comes_back_is_shown_again(monkeypatch):
    """Meanwhile those who look are told; each try in vain makes the next one wait for longer."""
    monkeypatch.setattr(live_module, "RETRY", 0.1)
    monkeypatch.setattr(live_module, "RETRY_MOST", 0.2)
    frames, tries, told, stylizer = Frames(), [], [], Inverter()
    stylizer.gate.release(100)

    def open_again():
        tries.append(time.monotonic())
        told.append(live.error)
        if len(tries) < 4:
            raise FaststyError(f"no camera {len(tries)}")
        frames.number = 100
        return frames

    with Live(stylizer, frames, open_again=open_again) as live:
        live.next(0, 0)
        frames.push(1)
        shown = live.next(0, 10)
        frames.number = -1  # it is unplugged
        frames.ready.release()
        end = time.monotonic() + 10
        while len(tries) < 4 and time.monotonic() < end:
            assert live.next(shown.number, 10) is None
            time.sleep(0.01)
        assert told == [
            f"{why}; trying again" for why in ("unplugged", *(f"no camera {i}" for i in (1, 2, 3)))
        ]
        assert np.diff(tries).min() > 0.15  # 0.2, as 0.1 was in vain
        frames.ready.release()
        end = time.monotonic() + 10
        while (again := live.next(shown.number, 10)) is None and time.monotonic() < end:
            time.sleep(0.01)
        assert again.before[0, 0, 0] == 101
        assert again.number > shown.number
        assert live.error is None


def test_a_camera_that_comes_back_does_not_hide_that_the_painter_broke(monkeypatch):
    class Broken(Inverter):
        def __call__(self, frame):
            raise RuntimeError("bug")

    monkeypatch.setattr(live_module, "RETRY", 0.02)
    frames = Frames()
    with Live(Broken(), frames, open_again=lambda: frames) as live:
        live.next(0, 0)
        frames.push(1)
        assert live.next(0, 10) is None
        frames.number = -1
        frames.ready.release()
        end = time.monotonic() + 10
        while frames.number < 0 and time.monotonic() < end:
            time.sleep(0.05)
            frames.number = 5
        frames.push(1)
        assert live.error == "RuntimeError: bug"


def test_a_painter_that_breaks_while_the_camera_is_lost_is_told():
    class Broken(Inverter):
        def __call__(self, frame):
            self.begun.release()
            self.gate.acquire()
            raise RuntimeError("bug")

    stylizer, frames = Broken(), Frames()
    with Live(stylizer, frames, open_again=lambda: frames) as live:
        live.next(0, 0)
        frames.push(1)
        assert stylizer.begun.acquire(timeout=10)
        frames.number = -1
        frames.ready.release()
        assert live.next(0, 10) is None
        assert live.error == "unplugged; trying again"
        stylizer.gate.release()
        live._painting.join(10)
        assert live.error == "RuntimeError: bug"


def test_leaving_does_not_wait_for_a_camera_that_is_looked_for():
    opened = threading.Event()
    with Live(Inverter(), iter([]), open_again=opened.set) as live:
        assert live.next(0, 10) is None
        assert live.error == "the camera gives no more frames; trying again"
    assert not live._reading.is_alive()
    assert not opened.is_set()


def test_the_first_frame_and_a_camera_that_gives_none():
    first, rest = first_frame(lambda: iter([1, 2, 3]))
    assert (first, list(rest)) == (1, [2, 3])

    def fail():
        raise FaststyError("busy")

    with pytest.raises(FaststyError, match="busy"):
        first_frame(fail)
    asleep = threading.Event()
    with pytest.raises(FaststyError, match=r"no frame came within 0\.05 s"):
        first_frame(asleep.wait, patience=0.05)
    asleep.set()


def test_leaving_closes_the_frames():
    closed = threading.Event()

    def frames():
        try:
            while True:
                time.sleep(0.01)
                yield np.zeros((16, 16, 3), np.uint8)
        finally:
            closed.set()

    with Live(Inverter(), frames()):
        pass
    assert closed.wait(10)


def test_thumbnails_show_the_middle_in_each_style():
    class Styles:
        styles = ("dark", "bright")

        def __call__(self, image, style):
            assert image.size == (64, 64)
            return Image.new("RGB", image.size, {"dark": "black", "bright": "white"}[style])

    dark, bright = thumbnails(Styles(), np.zeros((20, 50, 3), np.uint8), side=32)
    assert Image.open(io.BytesIO(dark)).size == (32, 32)
    assert Image.open(io.BytesIO(dark)).getpixel((9, 9)) == (0, 0, 0)
    assert Image.open(io.BytesIO(bright)).getpixel((9, 9)) == (255, 255, 255)


def test_a_film_runs_at_its_speed_over_and_over(film):
    path = film("a.mp4", frames=4, rate=20)
    frames = in_real_time(lambda: open_clip(path))
    begin = time.monotonic()
    taken = [next(frames) for _ in range(8)]
    # 0, 50, 100, 150 ms, and the same again from the first frame on
    assert 0.28 < time.monotonic() - begin < 5
    np.testing.assert_array_equal(taken[:4], taken[4:])
    assert not np.array_equal(taken[0], taken[3])


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass by sleeping only, in a list."""
    now = [0.0]
    fake = SimpleNamespace(
        time=time.time,
        monotonic=lambda: now[0],
        sleep=lambda seconds: now.__setitem__(0, now[0] + seconds),
    )
    monkeypatch.setattr(live_module, "time", fake)
    return now


def test_the_last_frame_of_a_film_has_its_time_too(film, clock):
    path = film("a.mp4", frames=12, rate=25)
    frames = in_real_time(lambda: open_clip(path))
    times = [(next(frames), clock[0])[1] for _ in range(37)]
    np.testing.assert_allclose(times, np.arange(37) / 25, atol=1e-6)


@pytest.mark.parametrize(
    ("aspect", "turn", "shape"),
    [(Fraction(16, 15), 0, (48, 68, 3)), (Fraction(2), 90, (64, 24, 3)), (None, 0, (48, 64, 3))],
)
def test_pixels_of_a_film_that_are_not_square(film, aspect, turn, shape):
    path = film("a.mp4", frames=2, aspect=aspect, turn=turn)
    frame = next(in_real_time(lambda: open_clip(path)))
    assert frame.shape == shape
    plain = next(open_clip(path).frames())
    assert np.abs(frame[:, -1].astype(int) - plain[:, -1]).max() <= 4


def test_frames_of_a_film_whose_time_has_passed_are_left_out(film, clock):
    path = film("a.mp4", frames=12, rate=25)
    every = list(open_clip(path).frames())
    frames = in_real_time(lambda: open_clip(path))
    np.testing.assert_array_equal(next(frames), every[0])
    clock[0] += 0.21  # as if it took that long to decode
    np.testing.assert_array_equal(next(frames), every[5])
    clock[0] += 9  # then something is shown all the same
    np.testing.assert_array_equal(next(frames), every[6])


def test_a_frame_that_is_seen_for_long_is_given_again(film, clock):
    """As slides are: dials that are turned meanwhile show."""
    path = film("a.mp4", frames=3, times=[0, 100, 104])  # hundredths
    frames = in_real_time(lambda: open_clip(path))
    first, second, third = open_clip(path).frames()
    for at in (0, 0.25, 0.5, 0.75):
        np.testing.assert_array_equal(next(frames), first)
        assert clock[0] == pytest.approx(at)
    np.testing.assert_array_equal(next(frames), second)
    assert clock[0] == pytest.approx(1)
    np.testing.assert_array_equal(next(frames), third)
    assert clock[0] == pytest.approx(1.04)


def test_a_photo_is_read_once_and_given_again_as_slides_are(tmp_path, clock):
    Image.new("RGB", (32, 24), "red").save(tmp_path / "a.jpg")
    opened = []
    frames = in_real_time(lambda: opened.append(1) or open_clip(tmp_path / "a.jpg"))
    times = [(next(frames), clock[0])[1] for _ in range(5)]
    np.testing.assert_allclose(times, np.arange(5) / 4, atol=1e-6)
    assert len(opened) == 1


def test_a_camera_is_read_until_it_ends(film):
    clip = open_clip(film("a.mp4", frames=4))
    assert len(list(from_camera(clip))) == 4
    assert not clip.times


def test_the_moving_photo_moves_and_keeps_its_pace(clock):
    frames = moving_photo(36, fps=10)
    first, second = next(frames), next(frames)
    assert first.shape == (36, 64, 3)
    assert not np.array_equal(first, second)
    assert clock[0] == pytest.approx(0.1)
    clock[0] = 5.0  # nobody asked for a while
    third = next(frames)
    fourth = next(frames)
    assert clock[0] == pytest.approx(5.1, abs=0.11)
    assert not np.array_equal(third, fourth)
