"""Paints what a camera sees while it sees it: the newest frame, never an old one."""

from __future__ import annotations

import io
import itertools
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, wait
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from faststy import assets
from faststy.errors import FaststyError
from faststy.pictures import read_picture
from faststy.stylization.clips import SMALLEST, Clip
from faststy.stylization.stylizer import Stylizer, mixing_weights

Frame = npt.NDArray[np.uint8]

JPEG_QUALITY = 85
IDLE = 3.0
"""Seconds without anyone who looks, after which nothing is painted."""
RETRY, RETRY_MOST = 1.0, 5.0
"""Seconds before a lost camera is opened again: doubled by each try in vain, and at most."""
LONGEST_GAP = 0.25
"""Seconds in which a film gives a frame all the same: where it is decoded too slowly a late one,
where it stands still, as slides do, the one that is seen: dials may be turned meanwhile."""
PATIENCE = 20.0
"""Seconds in which the first frame must come."""
SPEED_OVER = 1.0
"""Seconds over which the speed is measured."""


@dataclass(frozen=True)
class Shown:
    """A painted frame.

    Attributes:
        number: counts the painted frames, from 1 on.
        before, after: uint8 ``[H, W, 3]``, the frame and its painting.
        captured: when the frame came, as seconds since 1970.
        dropped: how many frames came while another was painted, up to here, and were not.
        fps: paintings in the last second.
    """

    number: int
    before: Frame
    after: Frame
    captured: float
    dropped: int
    fps: float

    @cached_property
    def both(self) -> bytes:
        """A JPEG file, twice as high: the frame above its painting."""
        return _jpeg(np.concatenate([self.before, self.after]))


class Live:
    """Paints the newest of the frames that come, as long as someone looks.

    Attributes:
        dials: as they are turned.
        error: why there are no more frames, or none for now; or None.
        is_painting: whether a frame is being painted: who sees nothing new waits for that.

    >>> with Live(stylizer, frames) as live:
    ...     live.set(style="ink", strength=0.8)
    ...     shown = live.next(after=0, timeout=2)
    """

    def __init__(
        self,
        stylizer: Stylizer,
        frames: Iterable[Frame],
        *,
        style: dict[str, float] | None = None,
        open_again: Callable[[], Iterable[Frame]] | None = None,
    ) -> None:
        """`frames` come at their own pace; an iterator that waits for a camera, for instance.

        Where they end or fail, `open_again` is asked for more until it has some: a camera that was
        unplugged comes back. Without it that is the end.
        """
        self.stylizer = stylizer
        self.painter = stylizer.painter(style=style)
        self.dials: dict[str, Any] = {
            "style": style or {stylizer.styles[0]: 1.0},
            "strength": 1.0,
            "repair": 0.0 if stylizer.model.repairer is None else 1.0,
            "keep_color": False,
            "stroke": None,
        }
        self.error: str | None = None
        self.is_painting = False
        self._frames, self._open_again = frames, open_again
        self._count = 0  # of the frames that came
        self._lost: str | None = None  # the error that a frame ends
        self._turning = threading.Lock()  # whoever turns dials does not wait for a painting
        self._changed = threading.Condition()
        self._newest: tuple[int, Frame, float] | None = None
        self._taken = 0
        self._shown: Shown | None = None
        self._looked = time.monotonic()
        self._waiting = 0  # those who look, for a painting
        self._rested = True  # nobody looked, so nothing was painted and nothing was dropped
        self._stopped = False
        self._reading, self._painting = (
            threading.Thread(target=self._guard, args=(work,), daemon=True)
            for work in (self._read, self._paint)
        )

    def __enter__(self) -> Live:
        self._reading.start()
        self._painting.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        self._painting.join()
        self._reading.join(0.5)  # a camera may give no frame any more

    def set(self, **dials: Any) -> None:
        """Turns dials: style, strength, repair, keep_color, stroke. Raises as a painter does."""
        with self._turning:
            self.painter.set(**dials)
            if dials.get("style") is not None:
                dials["style"] = mixing_weights(dials["style"], self.stylizer.styles)
            self.dials = {**self.dials, **dials}

    def next(self, after: int, timeout: float) -> Shown | None:
        """The newest painting, once its number is not `after`; None when it took too long."""
        with self._changed:
            if not self._is_looked_at():
                self._shown = None  # from when somebody looked last
                self._rested = True
            self._waiting += 1
            self._changed.notify_all()
            self._changed.wait_for(
                lambda: self.error or (self._shown and self._shown.number != after), timeout
            )
            self._waiting -= 1
            self._looked = time.monotonic()
            fresh = self._shown is not None and self._shown.number != after
            return self._shown if fresh else None

    def _guard(self, work: Callable[[], None]) -> None:
        """Runs a thread's work; what goes wrong is told to those who look."""
        try:
            work()
        except Exception as error:
            with self._changed:
                if self.error in (None, self._lost):  # a lost camera may come back, this does not
                    self.error = _reason(error)
                self._changed.notify_all()

    def _read(self) -> None:
        """Takes frames until they end for good, or nobody wants any."""
        pause = RETRY
        open_frames = None
        while True:
            before = self._count
            try:
                self._take(self._frames if open_frames is None else open_frames())
                return
            except Exception as error:
                if self._open_again is None:
                    raise
                lost = f"{_reason(error)}; trying again"
            pause = RETRY if self._count > before else min(2 * pause, RETRY_MOST)
            with self._changed:
                if self.error in (None, self._lost):  # else the painter broke
                    self.error = self._lost = lost
                    self._changed.notify_all()
                if self._changed.wait_for(lambda: self._stopped, pause):
                    return
            open_frames = self._open_again

    def _take(self, source: Iterable[Frame]) -> None:
        """Takes frames until it is stopped; raises where they end."""
        frames = iter(source)
        try:
            for frame in frames:
                with self._changed:
                    if self._stopped:
                        return
                    self._count += 1
                    self._newest = (self._count, frame, time.time())
                    if self.error == self._lost:
                        self.error = None
                    self._changed.notify_all()
        finally:
            if isinstance(frames, Generator):
                frames.close()
        raise FaststyError("the camera gives no more frames")

    def _paint(self) -> None:
        ends, dropped = [time.monotonic()], 0
        for painted in itertools.count(1):
            with self._changed:
                self._changed.wait_for(lambda: self._stopped or self._is_wanted())
                if self._stopped or self._newest is None:
                    return
                number, frame, captured = self._newest
                if self._rested:
                    ends, self._rested = [time.monotonic()], False
                else:
                    dropped += number - self._taken - 1
                self._taken = number
            self.is_painting = True
            after = self.painter(frame)
            self.is_painting = False
            now = time.monotonic()
            ends.append(now)
            while len(ends) > 2 and ends[1] < now - SPEED_OVER:
                del ends[0]
            fps = (len(ends) - 1) / (ends[-1] - ends[0])
            with self._changed:
                self._shown = Shown(painted, frame, after, captured, dropped, fps)
                self._changed.notify_all()

    def _is_wanted(self) -> bool:
        """Whether there is a new frame, and someone who looks."""
        fresh = self._newest is not None and self._newest[0] != self._taken
        return fresh and self._is_looked_at()

    def _is_looked_at(self) -> bool:
        return self._waiting > 0 or time.monotonic() < self._looked + IDLE


def thumbnails(stylizer: Stylizer, picture: Frame, side: int = 96) -> list[bytes]:
    """The middle of `picture` painted in each style, as JPEG files of `side` pixels."""
    image = Image.fromarray(picture)
    edge = min(image.size)
    left, top = (image.width - edge) // 2, (image.height - edge) // 2
    square = image.crop((left, top, left + edge, top + edge)).resize((2 * side, 2 * side))
    return [
        _jpeg(np.asarray(stylizer(square, style=style).resize((side, side))))
        for style in stylizer.styles
    ]


def in_real_time(open_again: Callable[[], Clip]) -> Iterator[Frame]:
    """The frames of a clip, each at its time, over and over; a single one is read only once.

    Those whose time has passed are left out, for LONGEST_GAP seconds at most.
    """
    count, begin, shown, pause = 0, 0.0, 0.0, 0.0
    frame: Frame | None = None

    def hold(until: float) -> Iterator[Frame]:
        """What is seen meanwhile."""
        while frame is not None and until > time.monotonic() + LONGEST_GAP:
            time.sleep(LONGEST_GAP)
            yield frame
        time.sleep(max(0.0, until - time.monotonic()))

    def is_late(at: Fraction) -> bool:
        nonlocal count
        count += 1
        return begin + float(at) + pause < time.monotonic() < shown + LONGEST_GAP

    while True:
        count = 0
        with closing(open_again()) as clip:
            clip.on_packets = clip.packets.clear  # nobody hears the sound
            begin = shown = time.monotonic()
            pause = 1 / float(clip.rate)
            for newest in clip.frames(is_late):
                yield from hold(begin + float(clip.times.popleft()))
                frame, shown = _of_square_pixels(newest, clip.aspect), time.monotonic()
                clip.packets.clear()
                yield frame
        while count == 1 and frame is not None:
            time.sleep(LONGEST_GAP)
            yield frame
        yield from hold(shown + pause)  # the last one has its time, too


def _of_square_pixels(frame: Frame, aspect: Fraction) -> Frame:
    """A frame whose pixels are `aspect` times as wide as high, as it is to be seen."""
    width = round(frame.shape[1] * min(max(aspect, Fraction(1, 4)), Fraction(4)))  # or nonsense
    if width == frame.shape[1]:
        return frame
    size = max(SMALLEST, width), frame.shape[0]
    return np.array(Image.fromarray(frame).resize(size, Image.Resampling.BILINEAR))


def first_frame(
    open_frames: Callable[[], Iterator[Frame]], patience: float = PATIENCE
) -> tuple[Frame, Iterator[Frame]]:
    """Opens what gives frames: the first one, and those that follow.

    A thread waits for it, so that a camera that opens and gives nothing holds nobody up.

    Raises what opening raises, and FaststyError after `patience` seconds.
    """
    opened: Future[tuple[Frame, Iterator[Frame]]] = Future()

    def work() -> None:
        try:
            frames = open_frames()
            opened.set_result((next(frames), frames))
        except Exception as error:
            opened.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    if not wait([opened], patience).done:
        raise FaststyError(f"no frame came within {patience:g} s")
    return opened.result()


def from_camera(camera: Clip) -> Iterator[Frame]:
    """The frames of an opened camera."""
    with closing(camera):
        for frame in camera.frames():
            camera.times.clear()
            yield frame


def moving_photo(size: int, fps: float = 30.0) -> Iterator[Frame]:
    """A stand-in for a camera: an eye that wanders over a sample photo, 16:9, `size` px high."""
    path = next(path for path in assets.photos() if path.stem == "chelsea")
    photo = read_picture(path).rgb
    width, height = round(size * 16 / 9 / 2) * 2, size
    begin = time.monotonic()
    count = 0
    while True:
        t = count / fps
        zoom = 0.94 + 0.05 * np.sin(0.37 * t)
        w, h = zoom * photo.width, zoom * photo.width * height / width
        x = (photo.width - w) * (0.5 + 0.5 * np.sin(0.23 * t))
        y = (photo.height - h) * (0.5 + 0.5 * np.sin(0.31 * t + 1))
        view = photo.resize((width, height), Image.Resampling.BILINEAR, (x, y, x + w, y + h))
        time.sleep(max(0.0, begin + t - time.monotonic()))
        yield np.array(view)
        count = max(count + 1, int((time.monotonic() - begin) * fps))


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, FaststyError) else f"{type(error).__name__}: {error}"


def _jpeg(pixels: Frame) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()
