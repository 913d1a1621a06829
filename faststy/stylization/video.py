"""Paints videos; decoding, painting and encoding overlap."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import av

from faststy.errors import FaststyError
from faststy.files import reason_of, replacing, target_at
from faststy.stylization.clips import StoppedError, open_clip
from faststy.stylization.stylizer import Style, Stylizer
from faststy.stylization.video_file import VideoFile, advice_for
from faststy.tensors import is_out_of_memory

HALF_LIFE = 0.4
"""Seconds after which the statistics of a frame weigh half: calm pictures that follow a pan."""


@dataclass(frozen=True)
class VideoReport:
    """What became of a video.

    Attributes:
        frames: how many were painted and written.
        seconds: how long that took, from the first frame on, with the encoder's end.
        width, height: of the frames that were written.
        rate: frames per second of the video.
        encoder: FFmpeg's name of the one that wrote it.
        audio: "copied", the codec that it was changed to, or None without sound.
        left_out: what of the input is not in it, in words: streams of sound and subtitles, with the
            reason, all other streams, tags, transparency, more than 8 bits per colour, pictures
            missing from a row.
        damage: what of the input could not be read, or of its painting written, or None.
        stopped: it was stopped before its end.
    """

    frames: int
    seconds: float
    width: int
    height: int
    rate: float
    encoder: str
    audio: str | None
    left_out: tuple[str, ...]
    damage: str | None
    stopped: bool

    @property
    def fps(self) -> float:
        """Frames painted per second."""
        return self.frames / max(self.seconds, 1e-9)


def paint_video(
    stylizer: Stylizer,
    source: str | os.PathLike[str] | BinaryIO,
    target: str | os.PathLike[str],
    *,
    name: str | None = None,
    style: Style | None = None,
    strength: float = 1.0,
    repair: float | None = None,
    keep_color: bool = False,
    stroke: int | None = None,
    size: int | None = None,
    start: float = 0.0,
    end: float | None = None,
    rate: float | Fraction | None = None,
    codec: str | None = None,
    crf: int | None = None,
    on_frame: Callable[[int, int | None], None] | None = None,
    stop: threading.Event | None = None,
) -> VideoReport:
    """Paints the video `source` into the file `target`, which appears when it is whole.

    Sound and subtitles are copied. Where the format of `target` cannot hold them, sound is changed
    and subtitles are left out: see `left_out` in the report. Times, colours, the shape of pixels,
    metadata and chapters stay; turned videos come out upright. A damaged video is painted as far
    as it goes: see `damage`.

    Args:
        stylizer: paints the frames.
        source: a video file, a stream, a pattern like ``frame_%04d.png``, or a folder of pictures.
        target: .mp4, .m4v, .mov, .mkv or .webm.
        name: what to call `source` in messages.
        style, strength, repair, keep_color, stroke: see :meth:`Stylizer.__call__`.
        size: short side, in pixels, to paint at and to write; smaller frames stay as they are.
        start, end: seconds, the part to paint.
        rate: frames per second of pictures in a row, 25 unless told; a video has its own.
        codec, crf: see :class:`VideoFile`.
        on_frame: called after each frame with how many are painted and to be expected.
        stop: once set, the video ends with the frames that are painted, also while a pipe that is
            its source gives nothing.

    Raises:
        FaststyError: the source cannot be read, its frames change their size, memory does not
            suffice, or the target cannot be written. Then there is no target, or still the old one.
        StoppedError: it was stopped before a frame was painted; there is no target either.
    """
    target = Path(target)
    if not target.parent.is_dir():
        raise FaststyError(f"{target}: the folder {target.parent} does not exist")
    place = target_at(target)
    with (
        closing(
            open_clip(source, name=name, size=size, start=start, end=end, rate=rate, stop=stop)
        ) as clip,
        replacing(place) as file,
    ):
        painted = stylizer.stream(
            clip.frames(),
            stop=stop,
            style=style,
            strength=strength,
            repair=repair,
            keep_color=keep_color,
            stroke=stroke,
            half_life=HALF_LIFE * float(clip.rate),
        )
        video = VideoFile(file, str(target), clip, codec=codec, crf=crf)
        clip.on_packets = video.take_packets
        count, begin = 0, time.perf_counter()
        try:
            with closing(painted):
                for picture in painted:
                    video.write(picture, clip.times.popleft())
                    count += 1
                    if on_frame is not None:
                        on_frame(count, clip.count)
                    if stop is not None and stop.is_set():
                        break
            stopped = stop is not None and stop.is_set()
            if count == 0 and stopped:
                raise StoppedError(f"{clip.name}: stopped before a frame was painted")
            if count == 0:
                raise FaststyError(f"{clip.name}: there is no frame in it")
            video.finish(None if stopped else clip.last)
        except BaseException as error:
            video.abandon()
            if is_out_of_memory(error):
                raise FaststyError(
                    f"{clip.name}: not enough memory to paint {clip.width} x {clip.height}; "
                    "use a smaller size"
                ) from error
            if isinstance(error, av.FFmpegError) and not isinstance(error, OSError):
                raise FaststyError(
                    f"{target}: cannot be written ({reason_of(error)}); {advice_for(str(target))}"
                ) from error
            raise
        damage = clip.damage
        if damage is None and video.lost_frames:
            damage = f"{video.lost_frames} of its painted frames could not be written"
        if damage is None and video.lost:
            damage = f"{video.lost} packets of its sound or subtitles are damaged"
        return VideoReport(
            frames=count - video.lost_frames,
            seconds=time.perf_counter() - begin,
            width=video.size[0],
            height=video.size[1],
            rate=float(clip.rate),
            encoder=video.encoder,
            audio=video.audio,
            left_out=(*clip.left_out, *video.left_out),
            damage=damage,
            stopped=stopped,
        )
