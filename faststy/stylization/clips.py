"""Reads videos, and pictures in a row, as upright RGB frames with their times."""

from __future__ import annotations

import errno
import io
import math
import os
import re
import select
import shutil
import stat
import sys
import tempfile
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import av
import numpy as np
import numpy.typing as npt
from av.video.reformatter import Interpolation, VideoReformatter

from faststy.errors import FaststyError
from faststy.files import mode_of, reason_of
from faststy.pictures import frames_in, list_pictures, read_picture, scale_down
from faststy.stylization.timeline import Packet, Timeline

IsLate: TypeAlias = Callable[[Fraction], bool]

# Tags that are no UTF-8 refuse no film; from 19 on PyAV sees to it.
METADATA: dict[str, Any] = (
    {} if int(av.__version__.split(".")[0]) >= 19 else {"metadata_errors": "replace"}
)

SMALLEST = 16
"""Least width and height of a frame, in pixels: what encoders and the nets take."""

PICTURE_RATE = Fraction(25)
"""Frames per second of pictures in a row, unless told."""

SLOWEST, FASTEST = 0.01, 1000
"""Frames per second of pictures, at least and at most."""

LONGEST = 1e9
"""Seconds, the latest start and end: 31 years, which FFmpeg's 64 bits of microseconds hold."""

MOST_PASSED = 16_000_000
"""Bytes of sound and subtitles after which they are taken, though no frame came."""

_UNSPECIFIED = 2  # matrix of a frame
_DISCARDED = 48  # AVDISCARD_ALL of FFmpeg: what holds chapters, for instance
_NO_TIMES = 0x80  # AVFMT_NOTIMESTAMPS of FFmpeg: packets and nothing else, as .h264
_JOINABLE = 0x200  # AVFMT_TS_DISCONT of FFmpeg: recordings one behind the other are a film, as .ts
_POLL = 0.1  # seconds from one look at the wish to stop to the next, while a pipe gives nothing
_MOST_WAITING = 1000  # packets from one keyframe to the next
_COPIED = ("audio", "subtitle")
_FILMS = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".ts", ".mts", ".wmv", ".flv")
# Their headers say how long they are; elsewhere the duration is a guess.
_KNOW_THEIR_LENGTH = ("mov", "matroska", "flv", "avi")


@dataclass(frozen=True)
class Colors:
    """What the numbers of a frame mean, in the code points of ITU-T H.273; range 1 is limited."""

    matrix: int
    range: int
    primaries: int
    transfer: int


BT709 = Colors(matrix=1, range=1, primaries=1, transfer=1)


class StoppedError(FaststyError):
    """It was stopped before there was a frame."""


class Clip(ABC):
    """Frames of one size, with what a file needs to show them as they were.

    Attributes:
        name: what to call it in a message.
        width, height: of the upright frames as they are given, in pixels.
        rate: frames per second, on average.
        time_base: the unit, in seconds, that times are multiples of.
        count: how many frames are to be expected; None when nothing says so.
        colors: of the file that was read, and of the file to write.
        aspect: width of a pixel over its height.
        damage: what could not be read; None when all was.
        left_out: what its pictures have and the painted ones will not, in words.
        container: an opened file with other streams to be taken along, or None.
        stream: of that file, the one whose frames these are, or None.
        offset: seconds that lie before the start, in the times of `packets`.
        length: seconds from the start to where the part was to end; None: no end was asked for.
        is_part: it begins later than the film.
        last: seconds that the last frame which was given is seen; None: nothing says so.
        packets: of the other streams, that passed by and were not yet taken.
        on_packets: takes them, in the thread that reads, where a frame lets them wait for long.
        times: of the frames that were given and not yet taken, in seconds from the start.
    """

    name: str
    width: int
    height: int
    rate: Fraction
    time_base: Fraction
    count: int | None
    colors: Colors = BT709
    aspect: Fraction = Fraction(1)
    damage: str | None = None
    left_out: tuple[str, ...] = ()
    container: av.container.InputContainer | None = None
    stream: av.VideoStream | None = None
    offset: Fraction = Fraction(0)
    length: Fraction | None = None
    is_part: bool = False
    last: Fraction | None = None
    on_packets: Callable[[], None] | None = None

    def __init__(self, name: str) -> None:
        self.name = name
        self.packets: deque[Packet] = deque()
        self.times: deque[Fraction] = deque()

    @abstractmethod
    def frames(self, is_late: IsLate = lambda time: False) -> Iterator[npt.NDArray[np.uint8]]:
        """The frames, uint8 ``[H, W, 3]``; each one's time is in `times` before it is given.

        `is_late` is asked about each, by its time; those that are late are left out.

        Raises FaststyError for a frame of another size.
        """

    def close(self) -> None:
        """Closes the file, if there is one."""
        if self.container is not None:
            self.container.close()


def open_clip(
    source: str | os.PathLike[str] | BinaryIO,
    *,
    name: str | None = None,
    size: int | None = None,
    start: float = 0.0,
    end: float | None = None,
    rate: float | Fraction | None = None,
    stop: threading.Event | None = None,
) -> Clip:
    """Opens a video, a pattern like ``frame_%04d.png``, a folder of pictures, or a stream.

    Args:
        source: what to read.
        name: what to call it in messages.
        size: short side of the frames that come out; smaller ones stay as they are.
        start, end: seconds, the part to read.
        rate: frames per second of pictures in a row, PICTURE_RATE unless told.
        stop: once set, a pipe ends, even while it waits for more.

    Raises:
        FaststyError: there is nothing to read, no frame in it, or a `rate` for a video.
        StoppedError: it was stopped before there was one.
    """
    if not 0 <= start < (math.inf if end is None else end):
        raise FaststyError(f"there is nothing between {start:g} s and {end or 0:g} s")
    if max(start, end or 0) > LONGEST:
        raise FaststyError(
            f"start and end lie within {LONGEST:g} s; {max(start, end or 0):g} s does not"
        )
    if rate is not None and not SLOWEST <= rate <= FASTEST:
        raise FaststyError(
            f"pictures at {float(rate):g} frames per second; use {SLOWEST:g} to {FASTEST:g}"
        )
    begin = Fraction(start).limit_denominator(1_000_000)  # 0.1 is meant, not the float beside it
    until = None if end is None else Fraction(end).limit_denominator(1_000_000)
    # 23.976 is meant, not the float.
    pace = PICTURE_RATE if rate is None else Fraction(rate).limit_denominator(1001)
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        name = name or str(path)
        mode = mode_of(path)
        if stat.S_ISDIR(mode):
            pictures = sorted(list_pictures(path, recursive=False), key=_by_number)
            clip = PictureClip(pictures, name, size, begin, until, pace)
            clip.left_out += _moving(path, pictures)
            return clip
        if not mode and re.search(r"%\d*d", path.name):
            found = _matching(path)
            clip = PictureClip([*found.values()], name, size, begin, until, pace)
            clip.left_out += _gaps([*found])
            return clip
        # An absolute path is never taken for an address. Links stay: that of a pipe leads nowhere.
        path = path.absolute()
        is_pipe = stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)
        source = _open_pipe(path, name) if is_pipe else str(path)
    name = name or "the stream"
    if rate is not None:
        raise FaststyError(
            f"{name}: a video has its own rate; frames per second are told for pictures in a row"
        )
    try:
        file = _open(source if isinstance(source, str) else _seekable(source, stop), name)
        return VideoClip(file, name, size, begin, until, stop=stop)
    except FaststyError as error:
        if stop is not None and stop.is_set():
            raise StoppedError(f"{name}: stopped before there was a frame") from error
        raise


def open_camera(device: str | os.PathLike[str], *, size: int | None = None) -> Clip:
    """Opens a camera of Linux (V4L2), like ``/dev/video0``.

    Raises:
        FaststyError: there is none, it is busy, or it may not be used.
    """
    name = os.fspath(device)
    try:
        file = av.open(name, "r", format="v4l2", options={"framerate": "30"})
    except ValueError as error:  # FFmpeg knows no v4l2 here, or the device is something else
        raise FaststyError(f"{name}: is no camera that can be read through V4L2") from error
    except (av.FFmpegError, OSError) as error:
        reasons = {
            errno.ENOENT: "there is no such camera; try: faststy live demo",
            errno.ENODEV: "there is no camera behind this name",
            errno.EBUSY: "the camera is busy: another program uses it",
            errno.EACCES: "the camera may not be used; on most systems the group 'video' may",
        }
        reason = reasons.get(error.errno or 0, f"the camera cannot be read ({reason_of(error)})")
        raise FaststyError(f"{name}: {reason}") from error
    # Decoders that work on several frames at once would show each of them later.
    return VideoClip(file, name, size, threads="SLICE")


class VideoClip(Clip):
    """A video file or stream; see :class:`Clip`."""

    def __init__(
        self,
        file: av.container.InputContainer,
        name: str,
        size: int | None,
        start: Fraction = Fraction(0),
        end: Fraction | None = None,
        *,
        threads: str = "AUTO",
        stop: threading.Event | None = None,
    ) -> None:
        super().__init__(name)
        self._stop = stop or threading.Event()
        self.container = self._file = file
        self._reading = threading.Lock()
        try:
            self.stream = self._stream = _video_stream(file, name)
            self._others = [
                stream
                for stream in file.streams
                if stream is not self._stream and stream.type not in _COPIED
            ]
            self._stream.thread_type = threads
            self._prepare(size, start, end)
            self.left_out += tuple(
                f"{other.type} stream {other.index}{', a cover' if _is_cover(other) else ''}"
                for other in self._others
                if getattr(other, "discard", 0) != _DISCARDED
                # Of a whole film it is made anew, from the tag `timecode`.
                and (start or "timecode" not in other.metadata)
            )
        except BaseException:
            self.close()
            raise

    def _prepare(self, size: int | None, start: Fraction, end: Fraction | None) -> None:
        stream = self._stream
        rates = (stream.average_rate, stream.guessed_rate)  # of .dv the first is 60,000
        self.rate = next((rate for rate in rates if rate and rate <= FASTEST), PICTURE_RATE)
        self.time_base = stream.time_base or 1 / self.rate
        begin = Fraction(self._file.start_time or 0, av.time_base)
        self.offset = begin + start
        self.length = None if end is None else end - start
        self._start, self.is_part = start, start > 0
        self._is_timeless = bool(self._file.format.flags & _NO_TIMES)
        self._is_joinable = bool(self._file.format.flags & _JOINABLE)
        self._goes_on = False  # after the end
        self._undecodable = 0
        self._passed = 0  # bytes, since packets were taken
        self._seen = -start  # how far the packets of any stream went
        self._decoded = self._decode()
        first = self._seek() if start else next(self._decoded, None)
        if first is None:
            reason = f" ({self.damage})" if self.damage else ""
            if self._file.format.name == "webp_pipe":
                reason = "; animations in WebP cannot be read, those in GIF and APNG can"
            where = f" at or after {float(start):g} s" if start else ""
            raise FaststyError(f"{self.name}: there is no frame in it{where}{reason}")
        self._first: tuple[Fraction, av.VideoFrame] | None = first
        frame = first[1]
        self._read_size = (frame.width, frame.height)
        self._turn = _turn_of(frame)
        if min(self._read_size) < SMALLEST:
            raise FaststyError(
                f"{self.name}: its frames are {frame.width} x {frame.height}; "
                f"faststy paints from {SMALLEST} x {SMALLEST} pixels on"
            )
        ratio = 1.0 if size is None else min(1.0, size / min(self._read_size))
        self._size = (round(frame.width * ratio), round(frame.height * ratio))
        self._to_rgb = VideoReformatter()
        self.width, self.height = self._size
        self.aspect = stream.sample_aspect_ratio or Fraction(1)
        if self._turn[0]:
            self.width, self.height = self.height, self.width
            self.aspect = 1 / self.aspect
        self.colors = _colors_of(frame)
        self.left_out = _beyond_rgb24(frame)
        if stream.metadata.get("alpha_mode") == "1":  # of WebM, where FFmpeg decodes without it
            self.left_out += ("its transparency",)
        self.count = self._expected()

    def frames(self, is_late: IsLate = lambda time: False) -> Iterator[npt.NDArray[np.uint8]]:
        while True:
            with self._reading:
                found, self._first = self._first or next(self._decoded, None), None
            if found is None:
                return
            if not is_late(found[0]):
                yield self._take(*found)

    def close(self) -> None:
        # A thread may still wait for a pipe to give something: then the file is left to it.
        if self._reading.acquire(timeout=2):
            super().close()
            self._reading.release()

    def _seek(self) -> tuple[Fraction, av.VideoFrame] | None:
        """Goes to the start; the first frame from there on."""
        # FFmpeg would look for the time up to the end, or find that of another part.
        if self._is_timeless or self._is_joinable:
            return next(self._decoded, None)
        first = None
        for back in (0, 10):  # seconds: formats without an index may go too far
            try:
                self._file.seek(math.floor((self.offset - back) * av.time_base))
            except av.FFmpegError:  # a pipe: what lies before is read and dropped
                return first or next(self._decoded, None)
            self.packets.clear()
            self._decoded = self._decode()
            first = next(self._decoded, None)
            if first is not None and first[0] <= 1 / self.rate:
                break
        return first

    def _take(self, time: Fraction, frame: av.VideoFrame) -> npt.NDArray[np.uint8]:
        if (frame.width, frame.height) != self._read_size:
            width, height = self._read_size
            raise FaststyError(
                f"{self.name}: its frames change their size at {float(time + self._start):.2f} s, "
                f"from {width} x {height} to {frame.width} x {frame.height}; "
                "use --start and --end to paint the parts one by one"
            )
        width, height = self._size
        if frame.colorspace == _UNSPECIFIED:
            frame.colorspace = self.colors.matrix
        try:
            rgb = self._to_rgb.reformat(
                frame, width, height, "rgb24", interpolation=Interpolation.LANCZOS
            )
        except av.FFmpegError as error:
            if isinstance(error, MemoryError):
                raise
            raise FaststyError(
                f"{self.name}: its colours ({frame.format.name}, matrix {int(frame.colorspace)} of "
                f"ITU-T H.273) cannot be made RGB ({reason_of(error)}); convert the film to BT.709"
            ) from error
        self.times.append(time)
        pixels: npt.NDArray[np.uint8] = rgb.to_ndarray().astype(np.uint8, copy=False)
        return _turned(pixels, self._turn)

    def _decode(self) -> Iterator[tuple[Fraction, av.VideoFrame]]:
        """The frames between start and end with their times; fills `packets` and `damage`.

        Of a clip with gaps, the frame that is seen at the start, though it began before, is first.
        """
        time = (-self._start if self._is_timeless else 0) - 1 / self.rate
        shown = Fraction(0)  # when the last frame that was given begins
        newest: Packet | None = None  # of the video, by `pts`
        latest: Packet | None = None
        earlier: av.VideoFrame | None = None
        for packet in self._from_keyframe():
            if packet is not None and packet.stream is not self._stream:
                self._keep(packet)
                continue
            if packet is not None and packet.pts is not None:
                latest = packet
                if newest is None or packet.pts >= (newest.pts or 0):
                    newest = packet
            try:
                frames = self._stream.decode(packet)
            except av.FFmpegError:
                self._undecodable += 1
                continue
            for frame in frames:
                if frame.pts is None:
                    time += 1 / self.rate
                else:
                    time = frame.pts * (frame.time_base or self.time_base) - self.offset
                if self._start and time < 0:
                    earlier = frame
                    continue
                if earlier is not None and time > 1 / self.rate:
                    yield Fraction(0), earlier
                earlier = None
                if self.length is not None and time >= self.length:
                    self._goes_on = True
                    continue
                self._undecodable += frame.is_corrupt
                shown = max(time, Fraction(0))
                yield shown, frame
        if earlier is not None and self._goes_on:
            yield Fraction(0), earlier
        self._judge()
        self.last = self._rest(shown, newest, latest)

    def _rest(
        self, shown: Fraction, newest: Packet | None, latest: Packet | None
    ) -> Fraction | None:
        """Seconds that the last frame, `shown` from there on, is seen; None: nothing says so.

        Args:
            newest: packet of the video, by `pts`.
            latest: the one that was decoded last.
        """
        if self._goes_on and self.length is not None:
            return self.length - shown
        if newest is None:
            return None
        end = ((newest.pts or 0) + (newest.duration or 0)) * newest.time_base
        told = _end_of(self._stream)
        if told is not None and self.damage is None and self._file.format.name.startswith("mov"):
            # Its packets say the time to the next one, which may be of an earlier picture.
            end = max(told, end) if newest is latest else told
        seconds = end - self.offset - shown
        if self.length is not None:
            seconds = min(seconds, self.length - shown)
        return seconds if seconds > 0 else None  # of .wmv: packets say 0

    def _from_keyframe(self) -> Iterator[Packet | None]:
        """Packets without those of the video that no frame from the start on needs."""
        packets = self._demux()
        waiting: list[Packet] = []
        for packet in packets if self._start and not self._is_timeless else ():
            if packet is not None and packet.stream is not self._stream:
                yield packet
                continue
            stamp = None if packet is None else packet.dts if packet.pts is None else packet.pts
            if packet is None or (stamp or 0) * packet.time_base >= self.offset:
                yield from waiting
                yield packet
                break
            if len(waiting) == _MOST_WAITING:  # there are hardly any keyframes
                yield from waiting
                waiting = []
            if packet.is_keyframe:
                waiting = []
            waiting.append(packet)
        yield from packets

    def _demux(self) -> Iterator[Packet | None]:
        """Packets until all streams are past the end, then None, which empties the decoder."""
        streams = [s for s in self._file.streams if s.type in _COPIED]
        running = {self._stream.index, *(s.index for s in streams if s.type == "audio")}
        self._seen = -self._start
        timeline = Timeline(is_joinable=self._is_joinable)
        for packet, is_damaged in timeline.mended(self._read(streams)):
            time = self._time(packet)
            if time is None or self.length is None or time < self.length:
                self._undecodable += is_damaged and (not self._start or (time or 0) >= 0)
                yield packet
                continue
            self._goes_on |= packet.stream is self._stream
            running.discard(packet.stream.index)  # other streams may lie behind in the file
            if not running or time > self.length + 10:
                break
        yield None

    def _read(self, streams: list[av.stream.Stream]) -> Iterator[Packet]:
        """Packets as they are in the file, of the video and `streams`."""
        try:
            for packet in self._file.demux(self._stream, *streams):
                if packet.size:
                    yield packet
        except IndexError:
            pass  # PyAV at the end, of a stream that appeared on the way
        except (av.FFmpegError, OSError) as error:
            if not self._stop.is_set():  # which ends a pipe anywhere
                self.damage = f"it is damaged or cut off ({reason_of(error)})"

    def _time(self, packet: Packet) -> Fraction | None:
        """Seconds from the start; by `dts`, where there is one."""
        stamps = [stamp for stamp in (packet.dts, packet.pts) if stamp is not None]
        if not stamps:
            return None
        end = max(stamps) + (packet.duration or 0)  # `dts` lies behind by more than a frame
        self._seen = max(self._seen, end * packet.time_base - self.offset)
        return stamps[0] * packet.time_base - self.offset

    def _keep(self, packet: Packet) -> None:
        time = self._time(packet)
        if time is None or (self._start and time < 0):
            return
        self.packets.append(packet)
        self._passed += packet.size
        if self._passed > MOST_PASSED and self.on_packets is not None:
            self._passed = 0
            self.on_packets()

    def _judge(self) -> None:
        """Says in `damage` what was missing."""
        if self._stop.is_set():
            return
        if self.damage is None and self._undecodable:
            self.damage = f"{self._undecodable} of its frames or packets are damaged"
        whole = self._whole_length()
        if self.damage is None and whole:
            length = whole - self._start
            wanted = length if self.length is None else min(length, self.length)
            # Some formats count from the first frame, others what lies before it, too.
            late = max(self.offset - self._start, Fraction(0))
            if self._seen + late < wanted - min(max(Fraction(1, 2), length / 50), Fraction(1)):
                self.damage = (
                    f"it is cut off at {float(self._seen + self._start):.1f} s "
                    f"of {float(length + self._start):.1f} s"
                )

    def _whole_length(self) -> Fraction | None:
        """Seconds that the streams that are read go on, as the header says; None: it does not."""
        if self._file.format.name.split(",")[0] not in _KNOW_THEIR_LENGTH:
            return None
        if not self._file.duration:
            return None
        length, begin = Fraction(self._file.duration, av.time_base), self.offset - self._start
        read = [self._stream, *(s for s in self._file.streams if s.type in _COPIED)]
        ends = [end - begin for stream in read if (end := _end_of(stream)) is not None]
        if ends:
            return min(length, max(ends))
        # It may be that of a stream that is not read; pictures and fonts have none.
        still = all(other.type == "attachment" or _is_cover(other) for other in self._others)
        return length if still else None

    def _expected(self) -> int | None:
        stream, length = self._stream, None
        if stream.duration and stream.time_base:
            length = stream.duration * stream.time_base
        elif self._file.duration:
            length = Fraction(self._file.duration, av.time_base)
        if length is None:
            return stream.frames or None
        if not self._start and self.length is None and stream.frames:
            return stream.frames
        length -= self._start
        return max(
            1, round((length if self.length is None else min(length, self.length)) * self.rate)
        )


class PictureClip(Clip):
    """Pictures of one size in a row; see :class:`Clip`."""

    def __init__(
        self,
        paths: list[Path],
        name: str,
        size: int | None,
        start: Fraction,
        end: Fraction | None,
        rate: Fraction,
    ) -> None:
        super().__init__(name)
        self.rate, self.time_base = rate, 1 / rate
        stop = None if end is None else math.ceil(end * rate)
        self._paths = paths[math.ceil(start * rate) : stop]
        if not self._paths:
            raise FaststyError(f"{name}: there is no frame in it at or after {float(start):g} s")
        self._short_side = size
        picture = read_picture(self._paths[0])
        self.left_out = ("its transparency",) if picture.alpha is not None else ()
        first = scale_down(picture.in_srgb().rgb, size)
        self.width, self.height = first.size
        if min(first.size) < SMALLEST:
            raise FaststyError(
                f"{name}: its pictures are {self.width} x {self.height}; "
                f"faststy paints from {SMALLEST} x {SMALLEST} pixels on"
            )
        self.count = len(self._paths)

    def frames(self, is_late: IsLate = lambda time: False) -> Iterator[npt.NDArray[np.uint8]]:
        for i, path in enumerate(self._paths):
            if is_late(i / self.rate):
                continue
            try:
                picture = read_picture(path).in_srgb()
            except FaststyError as error:
                self.damage = f"it ends before {error}"
                return
            image = scale_down(picture.rgb, self._short_side)
            if image.size != (self.width, self.height):
                raise FaststyError(
                    f"{path}: is {image.width} x {image.height}, the pictures before it are "
                    f"{self.width} x {self.height}; frames of a video have one size"
                )
            self.times.append(i / self.rate)
            yield np.array(image)


def _matching(pattern: Path) -> dict[int, Path]:
    """The files of a pattern like ``frame_%04d.png``, by number, in order."""
    before, digits, after = re.split(r"%0?(\d*)d", pattern.name, maxsplit=1)
    number = re.compile(f"{re.escape(before)}(\\d{{{digits or 1},}}){re.escape(after)}")
    found = {}
    with suppress(OSError):
        for path in pattern.parent.iterdir():
            match = number.fullmatch(path.name)
            if match:
                found[int(match[1])] = path
    if not found:
        raise FaststyError(f"{pattern}: no file has such a name")
    return dict(sorted(found.items()))


def _by_number(path: Path) -> list[str | int]:
    """A key that sorts 9.png before 10.png."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", path.name)]


def _moving(folder: Path, pictures: list[Path]) -> tuple[str, ...]:
    """What moves among the pictures of a folder, in words: it is not a part of their row."""
    films = sum(path.suffix.lower() in _FILMS for path in folder.iterdir())
    found = [f"{films} of the files in it that are videos"] if films else []
    moving = (path for path in pictures if path.suffix.lower() in (".gif", ".apng", ".webp"))
    found += [
        f"all but the first of {path.name}'s pictures" for path in moving if frames_in(path) > 1
    ]
    return tuple(found)


def _gaps(numbers: list[int]) -> tuple[str, ...]:
    """What is missing between the first and the last of them, in words."""
    count = numbers[-1] - numbers[0] + 1 - len(numbers)
    if count == 0:
        return ()
    first = next(a + 1 for a, b in pairwise(numbers) if b > a + 1)
    if count == 1:
        return (f"{first}, a number that no picture has",)
    return (f"{count} numbers that no picture has, {first} and others",)


class _Pipe:
    """What comes through a pipe; it ends once `stop` is set, even while it waits for more."""

    def __init__(self, stream: io.BufferedReader, stop: threading.Event | None) -> None:
        self._stream, self._stop = stream, stop
        # Select does not see what other streams keep back, nor pipes of Windows.
        self._polled = isinstance(stream.raw, io.FileIO) and os.name == "posix"
        self._head = b""

    def peek(self, size: int) -> bytes:
        """The next `size` bytes, or less at the end; they are still to be read."""
        while len(self._head) < size and (more := self._next(size)):
            self._head += more
        return self._head[:size]

    def read(self, size: int = io.DEFAULT_BUFFER_SIZE) -> bytes:
        """What there is, `size` bytes at most; none at the end."""
        if not self._head:
            return self._next(size)
        data, self._head = self._head[:size], self._head[size:]
        return data

    def seekable(self) -> bool:
        return False

    def _next(self, size: int) -> bytes:
        while self._stop is None or not self._stop.is_set():
            if not self._polled or select.select([self._stream], [], [], _POLL)[0]:
                return self._stream.read1(size)  # waits for no more than there is
        return b""


def _open_pipe(path: Path, name: str) -> BinaryIO:
    """A named pipe or what a shell calls /dev/fd/63, opened without waiting for its writer."""
    try:
        # Elsewhere a pipe without a writer reads as one that ended.
        waits = os.O_NONBLOCK if sys.platform == "linux" else 0
        handle = os.open(path, os.O_RDONLY | waits)
        os.set_blocking(handle, True)
        return os.fdopen(handle, "rb")
    except OSError as error:
        raise FaststyError(f"{name}: cannot be read ({reason_of(error)})") from error


def _seekable(stream: BinaryIO, stop: threading.Event | None) -> BinaryIO | _Pipe:
    """`stream`, put down on disk if it is a pipe and MP4: its index may lie at its end."""
    if stream.seekable() or not isinstance(stream, io.BufferedReader):
        return stream
    pipe = _Pipe(stream, stop)
    if pipe.peek(8)[4:8] not in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
        return pipe
    file = tempfile.TemporaryFile()  # noqa: SIM115 - vanishes with its last reference
    shutil.copyfileobj(pipe, file)
    file.seek(0)
    return file


def _open(source: str | BinaryIO | _Pipe, name: str) -> av.container.InputContainer:
    try:
        if isinstance(source, str) and os.path.isfile(source) and os.path.getsize(source) == 0:
            raise FaststyError(f"{name}: the file is empty (zero bytes)")
        container: av.container.InputContainer = av.open(source, "r", **METADATA)
    except (av.FFmpegError, OSError) as error:
        if isinstance(error, ValueError):  # FFmpeg's "invalid data"
            if _has_lost_its_index(source):
                raise FaststyError(
                    f"{name}: is cut off: the index of its frames, at its end, is missing"
                ) from error
            raise FaststyError(
                f"{name}: not a video that faststy reads, or damaged at its beginning"
            ) from error
        raise FaststyError(f"{name}: cannot be read ({reason_of(error)})") from error
    if container.format.name == "tty":  # FFmpeg takes any text for a film of a terminal
        container.close()
        raise FaststyError(f"{name}: not a video but a text")
    return container


def _has_lost_its_index(source: str | BinaryIO | _Pipe) -> bool:
    """Whether it begins as an MP4 or MOV file, and has no box `moov` up to its end."""
    kinds = []
    with open(source, "rb") if isinstance(source, str) else nullcontext(source) as file:
        if isinstance(file, _Pipe) or not file.seekable():
            return False
        end = file.seek(0, io.SEEK_END)
        file.seek(0)
        while len(header := file.read(16)) >= 8:
            kinds.append(header[4:8])
            size = int.from_bytes(header[:4], "big")
            if size == 1:
                size = int.from_bytes(header[8:], "big")
            if size < 8:  # 0 is up to the end
                break
            file.seek(min(end, file.tell() - len(header) + size))
    return kinds[:1] == [b"ftyp"] and b"mdat" in kinds and b"moov" not in kinds


def _end_of(stream: av.stream.Stream) -> Fraction | None:
    """Where it ends, in the times of its packets, as the header says; None: it does not."""
    if not stream.duration or not stream.time_base:
        return None
    return ((stream.start_time or 0) + stream.duration) * stream.time_base


def _is_cover(stream: av.stream.Stream) -> bool:
    return bool(stream.disposition & av.stream.Disposition.attached_pic)


def _video_stream(container: av.container.InputContainer, name: str) -> av.VideoStream:
    """The stream to paint: never the cover of a song."""
    found = [stream for stream in container.streams.video if not _is_cover(stream)]
    best = container.streams.best("video")
    if not found:
        kinds = sorted({stream.type for stream in container.streams})
        raise FaststyError(f"{name}: has no video in it, only {' and '.join(kinds) or 'nothing'}")
    stream = best if best in found else found[0]
    if stream.codec_context is None:
        raise FaststyError(f"{name}: its video is in a format that faststy cannot decode")
    assert isinstance(stream, av.VideoStream)
    return stream


def _colors_of(frame: av.VideoFrame) -> Colors:
    if frame.format.is_rgb or frame.format.has_palette:
        return BT709
    matrix = int(frame.colorspace)
    if matrix == _UNSPECIFIED:  # as players take it: BT.709 for HD, else BT.601
        matrix = 1 if frame.height > 576 or frame.width >= 1280 else 5
    return Colors(matrix, frame.color_range, frame.color_primaries, frame.color_trc)


def _beyond_rgb24(frame: av.VideoFrame) -> tuple[str, ...]:
    """What its pixels say that three numbers of 8 bits do not, in words."""
    found, parts = list[str](), frame.format.components
    if any(part.is_alpha for part in parts):
        pixels = VideoReformatter().reformat(frame, format="rgba").to_ndarray()
        if pixels[..., 3].min() < 255:
            found.append("its transparency")
    if (bits := max(part.bits for part in parts)) > 8:
        found.append(f"the finer steps of its {bits} bits per colour")
    if frame.interlaced_frame:
        found.append("interlacing: both halves of a frame are painted as one")
    return tuple(found)


def _turn_of(frame: av.VideoFrame) -> tuple[bool, bool, bool]:
    """How to make the frame upright: transpose it, then mirror it left-right, and top-bottom."""
    try:
        side_data = frame.side_data["DISPLAYMATRIX"]  # type: ignore[typeddict-item]
        matrix = np.frombuffer(bytes(side_data), np.int32)
    except KeyError:
        return False, False, False
    a, b, _, c, d = (int(value) for value in matrix[:5])
    if abs(b) + abs(c) > abs(a) + abs(d):  # x' = c·y, y' = b·x; slants are made straight
        return True, c < 0, b < 0
    return False, a < 0, d < 0


def _turned(pixels: npt.NDArray[np.uint8], turn: tuple[bool, bool, bool]) -> npt.NDArray[np.uint8]:
    transpose, mirror, flip = turn
    if transpose:
        pixels = pixels.transpose(1, 0, 2)
    return np.ascontiguousarray(pixels[:: -1 if flip else 1, :: -1 if mirror else 1])
