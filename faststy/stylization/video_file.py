"""Writes painted frames as a video, with the sound and all else that the clip brought along."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import av
import numpy as np
import numpy.typing as npt
from av.codec.codec import UnknownCodecError
from av.video.reformatter import VideoReformatter

from faststy.errors import FaststyError
from faststy.files import reason_of
from faststy.stylization.clips import METADATA, Clip, Colors
from faststy.stylization.timeline import Packet

if TYPE_CHECKING:
    from av.container.core import Chapter

FORMATS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska", ".webm": "webm"}
"""Formats that are written, by suffix. AVI is not among them: it knows no variable frame rate."""

ENCODERS = {
    "h264": "libx264",
    "h265": "libx265",
    "hevc": "libx265",
    "vp9": "libvpx-vp9",
    "av1": "libsvtav1",
}
"""Encoders by the names of their codecs."""

# Name and default of the quality setting (equally good to the eye), and what makes them keep pace
# with the painter; x264 loses 3 % against its default preset and takes a third of the time.
_SETTINGS: dict[str, tuple[str, int, dict[str, str]]] = {
    "libx264": ("crf", 20, {"preset": "veryfast"}),
    "libx265": ("crf", 24, {"preset": "superfast", "x265-params": "log-level=error"}),
    "libvpx-vp9": ("crf", 32, {"deadline": "realtime", "cpu-used": "6", "row-mt": "1", "b": "0"}),
    "libsvtav1": ("crf", 32, {"preset": "9"}),
    "h264_nvenc": ("cq", 23, {"preset": "p4", "rc": "vbr", "b": "0"}),
    "hevc_nvenc": ("cq", 27, {"preset": "p4", "rc": "vbr", "b": "0"}),
    "av1_nvenc": ("cq", 32, {"preset": "p4", "rc": "vbr", "b": "0"}),
}
_SMALLEST = {"libsvtav1": 32}  # px a side; it waits for ever for smaller ones
_MOST_CRF = {"libx264": 51, "libx265": 51}  # the others take up to 63
_BITS_PER_PIXEL = 0.2  # for encoders without such a setting
_AUDIO_ENCODERS = {"opus": "libopus", "mp3": "libmp3lame"}
_FINEST_TIME = {"mpeg4": Fraction(1, 60_000)}  # its format has 16 bits for it
# What says how the old file and its streams were made, the second ones by mkvmerge; WebM's word
# for transparency, which is left out, would be believed.
_OWN_METADATA = (
    *("major_brand", "minor_version", "compatible_brands", "encoder", "software", "duration"),
    *("bps", "number_of_frames", "number_of_bytes", "alpha_mode"),
)
_NOT_COPIED = {("mov", "opus"), ("mov", "flac")}  # which FFmpeg refuses when all is said
_MOST_TIMECODES = 255  # frames per second, which .mp4 and .mov count in 8 bits
_NO_DATE = "1970-01-01T00:00:00"  # what is written where the date is not known
_PHONES = "com."  # tags like com.apple.quicktime.location.ISO6709


class VideoFile:
    """A video that is being written from the frames of `clip`, painted.

    Attributes:
        left_out: the clip's streams of sound and subtitles that could not be taken along, with the
            reason, in words; its tags that the format does not hold, known once it is finished.
        lost: how many of their packets were damaged, so that they could not be decoded, or the
            format could not hold them; complete once it is finished.
        lost_frames: how many painted frames the format could not hold; known once it is finished.

    >>> video = VideoFile(file, "painted.mp4", clip)
    >>> video.write(picture, time)
    >>> video.finish()
    """

    def __init__(
        self,
        file: BinaryIO,
        name: str,
        clip: Clip,
        *,
        codec: str | None = None,
        crf: int | None = None,
    ) -> None:
        """Writes the beginning of the video.

        Args:
            file: where to write; it must be able to seek.
            name: of the video, whose suffix says the format.
            clip: says the size, rate, times, colours, metadata and other streams.
            codec: one of ENCODERS, or the name of any encoder of FFmpeg; by default h264, or vp9
                in WebM.
            crf: quality in the encoder's own measure: the lower, the better and larger.

        Raises:
            FaststyError: no such codec, or one that does not go with the format or the clip.
        """
        self.name, self._clip, self._file = name, clip, file
        format = format_of(name)
        codec = codec or ("vp9" if format == "webm" else "h264")
        self.encoder = ENCODERS.get(codec, codec)
        tags = clip.container.metadata if clip.container is not None else {}
        options = {}
        if format in ("mp4", "mov") and any(tag.lower().startswith(_PHONES) for tag in tags):
            options["movflags"] = "use_metadata_tags"  # else it writes those alone that it knows
        self._container = av.open(file, "w", format=format, options=options)
        self._others: dict[int, _Copied | _Encoded] = {}
        self._audio: list[str] = []
        self.left_out: list[str] = []
        self.lost, self.lost_frames = 0, 0
        self._frames = 0
        self._held: Packet | None = None  # of the video, as it may be the last
        self._delay = 0  # from decoding the first frame to showing it
        self._seen: dict[int, int] = {}  # how long the frames in the encoder are seen, by `pts`
        self._writing = threading.RLock()
        self._is_closed = False
        try:
            self._video = self._add_video(codec, crf)
            if clip.width % 2 or clip.height % 2:
                self.left_out.append("its last row or column: the sides of films are even")
            self._open_encoder()
            self._take_along()
            self._container.start_encoding()
        except UnknownCodecError as error:
            self.abandon()
            raise FaststyError(
                f"there is no encoder for '{codec}' here; "
                f"use {', '.join(ENCODERS)}, or the name of one of FFmpeg's"
            ) from error
        except (av.FFmpegError, ValueError) as error:
            self.abandon()
            raise FaststyError(
                f"{name}: {Path(name).suffix} cannot hold {self.encoder} with the streams of "
                f"{clip.name} ({reason_of(error)}); {advice_for(name)}"
            ) from error
        except BaseException:
            self.abandon()
            raise
        self._to_yuv = VideoReformatter()
        self._last = -1

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, even: what most players need."""
        return self._video.width, self._video.height

    @property
    def audio(self) -> str | None:
        """ "copied", the codec that it was changed to, or None without sound."""
        changed = [how for how in self._audio if how != _Copied.how]
        return next(iter([*changed, *self._audio]), None)

    def write(self, picture: npt.NDArray[np.uint8], time: Fraction) -> None:
        """Appends a frame, uint8 ``[H, W, 3]``, at `time` seconds, and sound up to there."""
        self.take_packets()
        width, height = self.size
        pixels = np.ascontiguousarray(picture[:height, :width])
        video, colors = self._video, self._colors
        rgb = av.VideoFrame.from_numpy_buffer(pixels, "rgb24")
        rgb.colorspace = colors.matrix  # the conversion takes the one of its source
        frame = self._to_yuv.reformat(
            rgb, format=video.pix_fmt, dst_color_range=colors.range, threads=1
        )
        _tag(frame, colors)
        unit = self._unit
        # Rounding, and files out of order, must not bring two frames to one time.
        before, self._last = self._last, max(round(time / unit), self._last + 1)
        self._seen[before] = self._last - before
        frame.pts, frame.time_base = self._last, unit
        self._add_frames(video.encode(frame))

    def take_packets(self) -> None:
        """Appends the sound and subtitles that wait; any thread may do so."""
        with self._writing:
            while self._clip.packets and not self._is_closed:
                packet = self._clip.packets.popleft()
                other = self._others.get(packet.stream.index)
                if other is not None:
                    self._add(other.take(packet, self._clip.offset))

    def finish(self, last: Fraction | None = None) -> None:
        """Writes the end of the video, whose last frame is seen for `last` seconds."""
        last = last or 1 / self._clip.rate
        with self._writing:
            self.take_packets()
            self._is_closed = True
            self._seen[self._last] = max(1, round(last / self._unit))
            self._add_frames(self._video.encode(None), is_end=True)
            for other in self._others.values():
                self._add(other.rest())
                self.lost += other.lost
            with self._counting_lost():
                self._container.close()
        if self.lost:
            # What fails is not always what was given last: packets of all streams wait in turn.
            written = self._frames_written()
            if not written:
                suffix = ".mp4" if format_of(self.name) == "matroska" else ".mkv"
                raise FaststyError(
                    f"{self.name}: its end could not be written with the sound or subtitles of "
                    f"{self._clip.name}; use {suffix}"
                )
            self.lost_frames = self._frames - written
            self.lost -= self.lost_frames
        tags = self._lost_tags()
        if tags:
            self.left_out.append(f"the tag{'s' if len(tags) > 1 else ''} {', '.join(tags)}")

    def _frames_written(self) -> int:
        """How many frames are in what was written; none where that is no video."""
        self._file.seek(0)
        with suppress(av.FFmpegError, IndexError), av.open(self._file, "r") as written:
            return sum(packet.size > 0 for packet in written.demux(video=0))
        return 0

    def _lost_tags(self) -> list[str]:
        """The tags of the clip that the format does not hold: FFmpeg drops them without a word."""
        container = self._clip.container
        wanted = self._kept(container.metadata) if container is not None else {}
        if not wanted:
            return []
        self._file.seek(0)
        with suppress(av.FFmpegError, OSError), av.open(self._file, "r", **METADATA) as written:
            parts = (written, *written.streams)  # a timecode becomes one of a stream
            found = {_name_of(tag) for part in parts for tag in part.metadata}
            return sorted(tag for tag in wanted if _name_of(tag) not in found)
        return []

    def abandon(self) -> None:
        """Lets go of the file, whatever state it is in."""
        with self._writing, suppress(Exception):
            self._is_closed = True
            self._container.close()

    def _kept(self, metadata: dict[str, str]) -> dict[str, str]:
        """What of it is true of the painting, too."""

        def is_own(key: str) -> bool:  # BPS or BPS-eng, _STATISTICS_TAGS
            if key == "timecode":  # that of the first frame
                return self._clip.is_part or self._clip.rate > _MOST_TIMECODES
            return key.partition("-")[0] in _OWN_METADATA or key.startswith("_statistics_")

        return {
            key: value
            for key, value in metadata.items()
            if not is_own(key.lower()) and not value.startswith(_NO_DATE)
        }

    def _add_video(self, codec: str, crf: int | None) -> av.VideoStream:
        clip = self._clip
        setting, default, options = _SETTINGS.get(self.encoder, ("", 0, {}))
        if crf is not None and not setting:
            raise FaststyError(f"--crf does not go with the encoder {self.encoder}")
        if crf is not None and crf > (most := _MOST_CRF.get(self.encoder, 63)):
            raise FaststyError(f"--crf goes from 0 to {most} for {self.encoder}, got {crf}")
        if setting:
            options = {**options, setting: str(default if crf is None else crf)}
        encoder = av.Codec(self.encoder, "w")
        if encoder.type != "video":
            raise FaststyError(f"'{codec}' is no codec for video; use {', '.join(ENCODERS)}")
        formats = [format.name for format in encoder.video_formats or []]
        pixels = "yuv420p" if "yuv420p" in formats or not formats else formats[0]
        self._unit = max(clip.time_base, _FINEST_TIME.get(self.encoder, clip.time_base))
        colors = clip.colors
        is_rgb = av.VideoFormat(pixels).is_rgb
        self._colors = replace(colors, matrix=0, range=2) if is_rgb else colors
        try:
            video = self._container.add_stream(self.encoder, rate=clip.rate, options=options)
        except ValueError as error:
            suffix = Path(self.name).suffix
            raise FaststyError(
                f"{self.name}: {suffix} cannot hold {codec}; {advice_for(self.name)}"
            ) from error
        assert isinstance(video, av.VideoStream)
        video.width, video.height = clip.width // 2 * 2, clip.height // 2 * 2
        video.pix_fmt = pixels
        video.codec_context.time_base = self._unit
        if clip.aspect != 1:
            video.codec_context.sample_aspect_ratio = clip.aspect
        if not setting:
            video.bit_rate = round(_BITS_PER_PIXEL * clip.width * clip.height * float(clip.rate))
        if self.encoder == "libx265":
            video.codec_context.codec_tag = "hvc1"  # the only one that Apple's players take
        _tag(video.codec_context, self._colors)
        if clip.stream is not None:
            video.metadata.update(self._kept(clip.stream.metadata))
            video.disposition = clip.stream.disposition
        return video

    def _open_encoder(self) -> None:
        """Before anything else can fail: what fails here is the video's."""
        least = _SMALLEST.get(self.encoder, 0)
        if min(self.size) < least:
            raise FaststyError(
                f"{self.name}: {self.encoder} needs sides of at least {least} px, "
                f"got {self._clip.width} x {self._clip.height}; use --codec h264"
            )
        try:
            with _ordinary_priority():
                self._video.codec_context.open()
        except (av.FFmpegError, ValueError) as error:
            raise FaststyError(
                f"{self.name}: {self.encoder} cannot write {self._clip.width} x "
                f"{self._clip.height} as {Path(self.name).suffix} here ({reason_of(error)})"
            ) from error

    def _take_along(self) -> None:
        """Adds the clip's other streams, metadata and chapters."""
        clip = self._clip
        if clip.container is None:
            return
        self._container.metadata.update(self._kept(clip.container.metadata))
        for stream in clip.container.streams:
            if stream.type in ("audio", "subtitle"):
                self._take_stream(stream)
        self._container.set_chapters(_chapters(clip))

    def _take_stream(self, stream: av.stream.Stream) -> None:
        other = self._place_for(stream)
        if isinstance(other, str):
            codec = _codec_of(stream)
            facts = ", ".join(filter(None, (codec, stream.metadata.get("language"))))
            self.left_out.append(f"{stream.type} stream {stream.index} ({facts}): {other}")
            return
        other.target.metadata.update(self._kept(stream.metadata))
        other.target.disposition = stream.disposition
        self._others[stream.index] = other
        if stream.type == "audio":
            self._audio.append(other.how)

    def _place_for(self, stream: av.stream.Stream) -> _Copied | _Encoded | str:
        """Copies where the format can hold it, else encodes sound anew; or the reason why not."""
        if (self._container.format.name, _codec_of(stream)) not in _NOT_COPIED:
            with suppress(ValueError):
                copied = self._container.add_stream_from_template(stream)
                _name_layout(copied)
                return _Copied(copied)
        reason = f"{Path(self.name).suffix} cannot hold it"
        if not isinstance(stream, av.AudioStream):
            return reason
        can_decode = stream.codec_context is not None
        if not can_decode:
            return "it cannot be decoded"
        with suppress(av.FFmpegError, ValueError):
            return _Encoded(stream, self._container)
        return f"{reason}, nor can it be changed"

    def _add_frames(self, packets: Iterable[Packet], *, is_end: bool = False) -> None:
        """Appends packets of the video but the newest, whose frame is seen up to the next one."""
        held = [] if self._held is None else [self._held]
        found = [*held, *packets]
        self._held = None if is_end or not found else found.pop()
        end = self._last + self._seen.get(self._last, 0)
        for packet in found:
            packet.duration = self._seen.pop(packet.pts or 0, packet.duration or 0)
        if found and self._frames == 0:
            self._delay = (found[0].pts or 0) - (found[0].dts or 0)
        if is_end and found and self._container.format.name in ("mp4", "mov"):
            latest = found[-1]  # their length is said by what is decoded last
            latest.dts = max(latest.dts or 0, (latest.pts or 0) - self._delay)
            latest.duration = max(latest.duration or 0, end - self._delay - latest.dts)
        self._add(found)

    def _add(self, packets: Iterable[Packet]) -> None:
        for packet in packets:
            with self._writing, self._counting_lost():
                self._frames += packet.stream is self._video
                self._container.mux(packet)

    @contextmanager
    def _counting_lost(self) -> Iterator[None]:
        """Damaged packets do not cost the video: each waits for those of the other streams, and
        fails with one of them. A full disk is an error of the system's."""
        try:
            yield
        except av.FFmpegError as error:
            if isinstance(error, OSError) or not self._others:
                raise
            self.lost += 1


# By the number of channels, as FFmpeg takes them.
_LAYOUTS = {1: "mono", 2: "stereo", 3: "2.1", 4: "4.0", 5: "5.0", 6: "5.1", 7: "6.1", 8: "7.1"}


class _Copied:
    """A stream of sound or subtitles that goes into the new file as it is."""

    how = "copied"
    lost = 0

    def __init__(self, target: av.stream.Stream) -> None:
        self.target = target
        # Several subtitles may begin at one time, of sound each part has its own.
        self._step = 0 if target.type == "subtitle" else 1
        self._least: int | None = None  # time that the next packet may have

    def take(self, packet: Packet, offset: Fraction) -> list[Packet]:
        """What to write for `packet`, whose times lie `offset` seconds late."""
        if packet.dts is None or (self._least is not None and packet.dts < self._least):
            return []  # a damaged stream must not cost the video
        self._least = packet.dts + self._step
        shift = round(offset / packet.time_base)
        packet.dts -= shift
        packet.pts = None if packet.pts is None else packet.pts - shift
        packet.stream = self.target
        return [packet]

    def rest(self) -> list[Packet]:
        """What is still to be written at the end."""
        return []


class _Encoded:
    """Sound that the new format cannot hold as it is, encoded anew.

    Raises ValueError or FFmpegError where no encoder takes it.
    """

    def __init__(self, source: av.AudioStream, container: av.container.OutputContainer) -> None:
        self.how = container.default_audio_codec
        encoder = _AUDIO_ENCODERS.get(self.how, self.how)
        rates = av.Codec(encoder, "w").audio_rates
        rate = source.rate if not rates or source.rate in rates else max(rates)
        layout = _layout(encoder, rate, source.layout.name)
        target = container.add_stream(encoder, rate=rate)
        assert isinstance(target, av.AudioStream)
        target.layout = layout.name
        target.bit_rate = 64_000 * layout.nb_channels
        self.source, self.target = source, target
        self.lost = 0  # of its packets
        self._last: Fraction | None = None
        self._kind: tuple[str, str, int] | None = None
        self._resampler = av.AudioResampler(target.format, target.layout, target.rate)

    def take(self, packet: Packet, offset: Fraction) -> list[Packet]:
        try:
            frames = self.source.decode(packet)
        except av.FFmpegError:
            self.lost += 1
            return []
        if frames and self._kind is None:
            self.lost = 0  # before it: a recording may begin in the middle
        packets: list[Packet] = []
        for frame in frames:
            if frame.pts is not None and frame.time_base:
                frame.pts -= round(offset / frame.time_base)
                time = frame.pts * frame.time_base
                if self._last is not None and time <= self._last:
                    continue
                self._last = time
            kind = (frame.format.name, frame.layout.name, frame.sample_rate)
            if kind != self._kind:  # as broadcasts change it; a resampler takes one kind only
                packets += self._encoded(None)
                target = self.target
                self._resampler = av.AudioResampler(target.format, target.layout, target.rate)
                self._kind = kind
            packets += self._encoded(frame)
        return packets

    def rest(self) -> list[Packet]:
        return [*self._encoded(None), *self.target.encode(None)]

    def _encoded(self, frame: av.AudioFrame | None) -> list[Packet]:
        """`frame`, or what the resampler still holds, as far as it fills packets."""
        if frame is None and self._kind is None:
            return []
        parts = self._resampler.resample(frame)
        return [packet for part in parts for packet in self.target.encode(part)]


def _name_layout(stream: av.stream.Stream) -> None:
    """Give channels that are only counted, as PCM in Matroska, their usual places: .mp4 asks."""
    if isinstance(stream, av.AudioStream) and stream.layout.name.endswith(" channels"):
        usual = _LAYOUTS.get(stream.layout.nb_channels)
        if usual is not None:
            stream.codec_context.layout = usual


def _layout(encoder: str, rate: int, name: str) -> av.AudioLayout:
    """The layout of channels nearest to `name` that `encoder` takes. Raises ValueError."""
    for each in (name, name.replace("(side)", ""), "stereo"):  # 5.1 has its surrounds at the back
        context = av.CodecContext.create(encoder, "w")
        assert isinstance(context, av.AudioCodecContext)
        with suppress(av.FFmpegError, ValueError):
            formats = context.codec.audio_formats or [av.AudioFormat("fltp")]
            context.sample_rate, context.format, context.layout = rate, formats[0], each
            context.open()
            return context.layout
    raise ValueError(f"{encoder} takes no sound like {name}")


def _chapters(clip: Clip) -> list[Chapter]:
    """The chapters of the part, in its times."""
    assert clip.container is not None
    chapters: list[Chapter] = []
    for chapter in clip.container.chapters():
        unit = chapter["time_base"] or Fraction(1, av.time_base)
        start = chapter["start"] * unit - clip.offset
        end = chapter["end"] * unit - clip.offset
        if clip.length is not None:
            if start >= clip.length:
                continue
            end = min(end, clip.length)
        if start >= 0 or end > 0:
            shown: Chapter = {**chapter}
            shown["start"], shown["end"] = round(max(start, Fraction(0)) / unit), round(end / unit)
            chapters.append(shown)
    return chapters


def advice_for(name: str) -> str:
    """What to use where the format of `name` does not go with the encoder."""
    is_matroska = format_of(name) == "matroska"
    return "use another --codec" if is_matroska else "use .mkv, or another --codec"


def format_of(name: str | Path) -> str:
    """FFmpeg's name of the format that the suffix of `name` means. Raises FaststyError."""
    suffix = Path(name).suffix.lower()
    if suffix not in FORMATS:
        raise FaststyError(
            f"{name}: {suffix or 'a name without a suffix'} is no video format that faststy "
            f"writes; use {', '.join(FORMATS)}"
        )
    return FORMATS[suffix]


@contextmanager
def _ordinary_priority() -> Iterator[None]:
    """Undoes what SVT-AV1 does to a process of root: it puts it above all others, for good."""
    os.environ.setdefault("SVT_LOG", "1")  # errors only: it tells all that it does
    if not hasattr(os, "sched_setscheduler"):
        yield
        return
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    yield
    if os.sched_getscheduler(0) != policy:
        for thread in os.listdir("/proc/self/task"):
            with suppress(OSError):
                os.sched_setscheduler(int(thread), policy, parameters)


def _name_of(tag: str) -> str:
    """`tag` as any format has it, without the language behind it: TITLE-eng."""
    return tag.lower().partition("-")[0]


def _codec_of(stream: av.stream.Stream) -> str:
    context = getattr(stream, "codec_context", None)  # none without a decoder
    return context.codec.canonical_name if context else "unknown codec"


def _tag(target: av.VideoFrame | av.VideoCodecContext, colors: Colors) -> None:
    target.colorspace, target.color_range = colors.matrix, colors.range
    target.color_primaries, target.color_trc = colors.primaries, colors.transfer
