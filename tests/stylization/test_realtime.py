"""Frames: painted as pictures are, in order, steadily, and without threads left behind."""

import contextlib
import copy
import itertools
import math
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from faststy.errors import FaststyError
from faststy.model_file import Model, ModelInfo
from faststy.nn.generator import Generator, GeneratorConfig
from faststy.nn.repairer import Repairer
from faststy.stylization.realtime import Prefetch
from faststy.stylization.stylizer import Stylizer


@pytest.fixture(scope="module")
def stylizer():
    torch.manual_seed(1)
    config = GeneratorConfig(channels=8, blocks=1, styles=2)
    generator, repairer = Generator(config).eval(), Repairer(8).eval()
    with torch.no_grad():
        for parameter in [*generator.parameters(), *repairer.head.parameters()]:
            parameter.add_(torch.randn_like(parameter) * 0.1)
    info = ModelInfo(["rain", "starry night"], asdict(config), {"channels": 8})
    model = Model(generator.requires_grad_(False), repairer.requires_grad_(False), info)
    return Stylizer(model, "cpu")


def frame(phase=0.0, h=45, w=62, light=128):
    y, x = np.mgrid[:h, :w]
    waves = np.stack([np.sin(x / 7 + phase), np.cos(y / 5), np.sin((x + y) / 9)], axis=-1)
    noise = np.random.default_rng(0).normal(0, 8, waves.shape)
    return np.clip(light + 90 * waves + noise, 0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    "dials",
    [
        {},
        {"repair": 0.0},
        {"repair": 0.4, "style": "rain:1,starry night:3"},
        {"strength": 0.5, "keep_color": True},
        {"strength": 0.0},
    ],
)
@pytest.mark.parametrize("size", [(45, 62), (64, 96), (9, 1)])
def test_with_its_own_statistics_a_frame_is_painted_as_a_picture(stylizer, dials, size):
    one = frame(h=size[0], w=size[1])
    painter = stylizer.painter(half_life=0, **dials)
    expected = np.asarray(stylizer(one, **dials)).astype(int)
    for _ in range(2):
        painted = painter(one)
        assert painted.dtype == np.uint8
        assert np.abs(painted.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("color", [(0, 0, 0), (200, 100, 50), (255, 255, 254)])
def test_a_flat_frame_is_as_it_is_until_there_is_a_scene(stylizer, color):
    black = np.full((64, 64, 3), color, np.uint8)
    painter = stylizer.painter()
    assert np.array_equal(painter(black), black)
    later = np.asarray(stylizer(frame(), repair=0)).astype(int)
    painter.set(repair=0.0)
    assert np.abs(painter(frame()).astype(int) - later).max() <= 1  # black left no statistics


def still(stylizer, half_life, **dials):
    """How one half of the picture changes when only the other half does."""
    painter = stylizer.painter(half_life=half_life, repair=0.0, **dials)
    before, after = frame(w=160), frame(w=160)
    after[10:30, 100:140] = 230  # something bright comes in
    first = painter(before).astype(int)
    return np.abs(painter(after).astype(int) - first)[:, :40].mean()


def test_slow_statistics_keep_what_did_not_change(stylizer):
    per_frame, slow, fixed = (still(stylizer, h) for h in (0, 12, math.inf))
    assert per_frame > 1
    assert slow < 0.2 * per_frame
    assert fixed < 0.001  # of 255: a rounding here and there


def test_half_life_is_half_the_way(stylizer):
    """After so many frames of another kind the statistics lie in the middle."""
    painter = stylizer.painter(half_life=4, repair=0.0)
    brighter = frame()
    brighter[10:30, 10:40] = 230
    other = stylizer.painter(repair=0.0)
    other(brighter)
    for name in ("stem_norm", "fine2_norm"):  # the last as the first
        painter.reset()
        painter(frame())
        start = painter._statistics.moments[name].clone()
        for _ in range(4 + 4):  # it looks at each fourth frame
            painter(brighter)
        way = other._statistics.moments[name] - start
        gone = painter._statistics.moments[name] - start
        moved = way.abs() > 1e-4
        assert moved.sum() >= 8, name
        torch.testing.assert_close(gone[moved], way[moved] / 2, atol=1e-4, rtol=0.02)


def test_a_change_does_not_overshoot(stylizer):
    """What did not change is painted on the way from how it was to how it will be."""
    painter = stylizer.painter(half_life=3, repair=0.0)
    before, after = frame(w=160), frame(w=160)
    after[10:30, 100:140] = 230
    first = painter(before).astype(float)[:, :40]
    seen = [painter(after).astype(float)[:, :40] for _ in range(40)]
    total = np.abs(seen[-1] - first).mean()
    path = sum(np.abs(b - a).mean() for a, b in itertools.pairwise([first, *seen]))
    assert total > 1
    assert path < 1.5 * total  # rounding included


def test_a_calm_scene_is_not_looked_at_again(stylizer, monkeypatch):
    """Only what moved since the last look gets another one, however slowly it moves."""
    painter, rng = stylizer.painter(half_life=3.0), np.random.default_rng(0)
    noise = rng.integers(60, 120, (64, 64, 3))
    looks = []
    painter(noise.astype(np.uint8))
    watch = painter._watcher.forward
    monkeypatch.setattr(
        painter._watcher, "forward", lambda *a, **k: looks.append(1) or watch(*a, **k)
    )
    for _ in range(20):
        painter((noise + rng.integers(0, 2)).astype(np.uint8))
    assert not looks
    for i in range(40):
        painter((noise + i).astype(np.uint8))
    assert 3 <= len(looks) <= 40 // 3


def test_a_cut_starts_anew(stylizer):
    painter = stylizer.painter(repair=0.0)
    for phase in np.arange(0, 0.5, 0.1):
        painter(frame(phase))
    other = np.random.default_rng(1).integers(0, 60, (45, 62, 3), np.uint8)
    expected = np.asarray(stylizer(other, repair=0.0)).astype(int)
    assert np.abs(painter(other).astype(int) - expected).max() <= 1


def test_a_stream_may_end_in_the_thread_that_reads(stylizer):
    """Where who gives the frames also holds the stream, the last reference may go there."""
    told = []

    def frames():
        yield frame()
        told.append(reading.join())

    reading = Prefetch(frames(), 1)
    assert len(reading.take(1)) == 1
    assert reading.take(1) == []
    assert told == [None]


def test_reset_and_another_size_or_style_start_anew(stylizer):
    painter = stylizer.painter(repair=0.0)
    painter(frame())
    shifted = frame(0.3)
    lagging = painter(shifted)
    painter.reset()
    expected = np.asarray(stylizer(shifted, repair=0.0)).astype(int)
    assert np.abs(painter(shifted).astype(int) - expected).max() <= 1
    assert np.abs(lagging.astype(int) - expected).max() > 1
    small = frame(h=30, w=31)
    assert painter(small).shape == small.shape
    painter.set(style="starry night")
    expected = np.asarray(stylizer(shifted, repair=0.0, style="starry night")).astype(int)
    assert np.abs(painter(shifted).astype(int) - expected).max() <= 1


def test_dials_turn_together_or_not_at_all(stylizer):
    painter = stylizer.painter()
    before = painter(frame())
    for dials, error, message in [
        ({"strength": 0.5, "style": "rian"}, FaststyError, "unknown style 'rian'"),
        ({"strength": 2.0}, ValueError, "strength is 2.0; expected 0 to 1"),
        ({"strength": 0.5, "repair": -1.0}, ValueError, "repair is -1.0"),
        ({"strength": 0.5, "half_life": -1.0}, ValueError, "half_life is -1.0"),
        ({"half_life": math.nan}, ValueError, "half_life is nan"),
    ]:
        with pytest.raises(error, match=message):
            painter.set(**dials)
        with pytest.raises(error, match=message):
            stylizer.stream([], **dials)
    assert np.abs(painter(frame()).astype(int) - before).max() <= 1
    with pytest.raises(TypeError, match="strenght"):
        painter.set(strenght=0.5)


def test_dials_that_two_threads_turn_at_once_are_both_turned(stylizer, monkeypatch):
    painter = stylizer.painter()
    check, first = stylizer.check_dials, threading.Event()

    def slowly(strength, repair):
        """The first one to come here leaves the other time to overtake."""
        check(strength, repair)
        if not first.is_set():
            first.set()
            time.sleep(0.2)

    monkeypatch.setattr(stylizer, "check_dials", slowly)
    thread = threading.Thread(target=painter.set, kwargs={"strength": 0.25})
    thread.start()
    assert first.wait(10)
    painter.set(keep_color=True)
    thread.join()
    settings = painter._settings
    assert (settings.strength, settings.keep_color) == (0.25, True)


def test_dials_do_not_wait_for_a_painting(stylizer, monkeypatch):
    painter = stylizer.painter()
    begun, go = threading.Event(), threading.Event()

    def paint_some(frames, settings):
        begun.set()
        assert go.wait(10)
        return torch.from_numpy(np.stack(frames))

    monkeypatch.setattr(painter, "_paint_some", paint_some)
    thread = threading.Thread(target=painter, args=(frame(),))
    thread.start()
    assert begun.wait(10)
    turning = threading.Thread(target=lambda: (painter.set(strength=0.25), painter.reset()))
    turning.start()
    turning.join(10)
    assert not turning.is_alive()
    go.set()
    thread.join()


@pytest.mark.parametrize("shape", [(4, 5), (0, 5, 3), (4, 5, 4)])
def test_wrong_frames(stylizer, shape):
    painter = stylizer.painter()
    with pytest.raises(ValueError, match=r"frame is uint8 .*; expected a NumPy array, uint8"):
        painter(np.zeros(shape, np.uint8))
    with pytest.raises(ValueError, match="frame is float64"):
        painter(np.zeros((4, 5, 3)))


@pytest.mark.parametrize("in_batches", [False, True])
def test_the_default_dtype_does_not_matter(stylizer, in_batches):
    frames = [frame(phase) for phase in np.linspace(0, 0.5, 12)]

    def painted():
        painter = stylizer.painter(strength=0.5)
        painter.in_batches = in_batches
        return np.stack(painter.batch([*frames, np.full_like(frames[0], 200)]))

    expected = painted()
    torch.set_default_dtype(torch.float64)
    try:
        np.testing.assert_array_equal(painted(), expected)
    finally:
        torch.set_default_dtype(torch.float32)


def test_frames_that_are_no_arrays(stylizer):
    one = frame(h=8, w=8)
    for other in (Image.fromarray(one), torch.from_numpy(one)):
        expected = f"frame is a {type(other).__name__}; expected a NumPy array, uint8"
        with pytest.raises(TypeError, match=expected):
            stylizer.painter()(other)
        with pytest.raises(TypeError, match=expected):
            list(stylizer.stream([other]))


def test_unknown_dials(stylizer):
    for call in (stylizer.painter, stylizer.painter().set, partial(stylizer.stream, [])):
        with pytest.raises(
            TypeError, match="unknown dial 'sytle'; expected one of style, strength"
        ):
            call(sytle="rain")


def test_frames_of_any_memory_layout(stylizer):
    one = frame()
    expected = stylizer.painter()(one)
    np.testing.assert_array_equal(stylizer.painter()(one[:, ::-1][:, ::-1]), expected)
    np.testing.assert_array_equal(stylizer.painter()(np.asfortranarray(one)), expected)
    read_only = one.copy()
    read_only.flags.writeable = False
    np.testing.assert_array_equal(stylizer.painter()(read_only), expected)


def test_stream_gives_every_frame_in_its_order_and_size(stylizer):
    frames = [frame(h=20 + i, w=30) for i in range(7)]
    painter = stylizer.painter()
    expected = [painter(one) for one in frames]
    for got, want in zip(stylizer.stream(iter(frames)), expected, strict=True):
        np.testing.assert_array_equal(got, want)
    assert list(stylizer.stream([])) == []


def test_a_source_may_fill_the_same_array_again(stylizer):
    frames = [frame(phase) for phase in range(6)]

    def source():
        buffer = np.empty_like(frames[0])
        for one in frames:
            buffer[:] = one
            yield buffer

    for got, want in zip(stylizer.stream(source()), stylizer.stream(frames), strict=True):
        np.testing.assert_array_equal(got, want)


def test_dials_of_a_stream_can_be_turned(stylizer):
    painter = stylizer.painter(repair=0.0)
    one = frame()
    with contextlib.closing(stylizer.stream(itertools.repeat(one), painter=painter)) as painted:
        first = next(painted)
        painter.set(strength=0.0)
        seen = list(itertools.islice(painted, 8))
    np.testing.assert_array_equal(seen[-1], one)
    assert np.abs(first.astype(int) - one).max() > 5


def test_a_stream_drops_no_dials(stylizer):
    with pytest.raises(TypeError, match="style is given beside painter"):
        stylizer.stream([], painter=stylizer.painter(), style="rain")
    with pytest.raises(ValueError, match="painter is of another stylizer"):
        stylizer.stream([], painter=Stylizer(stylizer.model, "cpu").painter())


def test_an_exception_of_the_frames_comes_in_its_place(stylizer):
    def frames():
        yield frame()
        yield frame(0.1)
        raise OSError("the cable")

    painted = stylizer.stream(frames())
    assert next(painted).shape == next(painted).shape
    with pytest.raises(OSError, match="the cable"):
        next(painted)


def test_a_stream_needs_room_for_a_frame(stylizer):
    with pytest.raises(ValueError, match="ahead is 0; expected at least 1"):
        stylizer.stream([frame(h=8, w=8)], ahead=0)


def test_a_stream_reads_no_further_than_it_may(stylizer):
    read = []

    def frames():
        for i in range(100):
            read.append(i)
            yield frame(h=8, w=8)

    painted = stylizer.stream(frames(), ahead=2)
    next(painted)
    time.sleep(0.2)
    # One given, two painted and one in painting or waiting; two read and one waiting to be queued.
    assert len(read) <= 8
    painted.close()


def test_closing_ends_the_threads_and_the_source(stylizer):
    closed = threading.Event()

    def frames():
        try:
            while True:
                yield frame(h=8, w=8)
        finally:
            closed.set()

    before = set(threading.enumerate())
    painted = stylizer.stream(frames())
    next(painted)
    painted.close()
    assert closed.wait(5)
    for thread in set(threading.enumerate()) - before:
        thread.join(5)
        assert not thread.is_alive()


class Blocked:
    """A source that gives some frames and then nothing, as a camera or a pipe that pauses."""

    def __init__(self, count):
        self.count, self.waits, self.freed = count, threading.Event(), threading.Event()

    def __iter__(self):
        yield from itertools.repeat(frame(h=8, w=8), self.count)
        self.waits.set()
        self.freed.wait(60)


@pytest.mark.parametrize("way", ["close", "stop", "interrupt"])
@pytest.mark.parametrize("count", [1, 4])
def test_a_source_that_gives_nothing_holds_nobody(stylizer, count, way):
    before = set(threading.enumerate())
    source, stop, done = Blocked(count), threading.Event(), threading.Event()

    def use():
        painted = stylizer.stream(source, stop=None if way == "close" else stop)
        given = list(itertools.islice(painted, count))
        source.waits.wait(10)
        if way == "interrupt":  # while it waits for the next frame
            threading.Timer(0.2, stop.set).start()
        elif way == "stop":
            stop.set()
        if way == "close":
            painted.close()
        else:
            given += painted
        if len(given) == count:
            done.set()

    threading.Thread(target=use, daemon=True).start()
    try:
        assert done.wait(5)
        # Only the thread that waits for the source is left, and that ends with it.
        assert len(set(threading.enumerate()) - before) <= 2
    finally:
        source.freed.set()
    for thread in set(threading.enumerate()) - before:
        thread.join(5)
        assert not thread.is_alive()


@pytest.mark.parametrize(("count", "last"), [(9, ""), (9, "1 / 0"), (4, "")])
def test_a_program_may_end_while_a_stream_is_open(count, last):
    program = f"""
        import threading
        import numpy as np
        from faststy import Stylizer

        def frames():
            for seed in range({count}):
                yield np.random.default_rng(seed).integers(0, 256, (720, 1280, 3), np.uint8)
            threading.Event().wait()

        painted = Stylizer.load().stream(frames())
        for i, frame in enumerate(painted):
            if i == 3:
                break
        {last}
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == (1 if last else 0), ended.stderr


def test_what_the_readme_shows_runs(film, tmp_path, monkeypatch, capsys):
    film("clip.mp4", frames=4)
    monkeypatch.chdir(tmp_path)
    text = Path(__file__).parents[2].joinpath("README.md").read_text(encoding="utf-8")
    shown = text.split("### Real time")[1].split("```")[1].removeprefix("python")
    exec(shown, {})
    assert len(capsys.readouterr().out.split()) == 3  # one was painted before


def test_prefetch_of_nothing_and_errors_at_the_start():
    assert Prefetch([], 1).take(1) == []

    def broken():
        raise KeyError("first")
        yield

    with pytest.raises(KeyError, match="first"):
        Prefetch(broken(), 1).take(1)


@pytest.mark.gpu
def test_on_a_gpu_frames_are_painted_as_pictures(stylizer):
    """By the graph, too: statistics move, other sizes and dials are recorded anew."""
    there = Stylizer(copy.deepcopy(stylizer.model), "cuda")
    one, two = frame(), frame(0.2)
    here, painter = stylizer.painter(), there.painter()
    for shown in (one, two, one, frame(h=40, w=80), two, two):
        difference = np.abs(painter(shown).astype(int) - here(shown))
        assert difference.mean() < 1  # float16
    picture = np.asarray(there(one)).astype(int)
    assert np.abs(picture - np.asarray(stylizer(one))).mean() < 1
    for dials in (
        {"repair": 0.3},
        {"stroke": 2},
        {"half_life": math.inf},
        {"style": "starry night"},
    ):
        here.set(**dials)
        painter.set(**dials)
        for shown in (one, two):
            assert np.abs(painter(shown).astype(int) - here(shown)).mean() < 1


def test_threads_may_share_a_painter(stylizer):
    painter = stylizer.painter(half_life=math.inf)
    one = frame()
    expected = painter(one)
    expected = painter(one)
    results = []
    threads = [threading.Thread(target=lambda: results.append(painter(one))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        np.testing.assert_array_equal(result, expected)
