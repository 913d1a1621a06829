"""What goes into a video beside its frames comes out again, and nothing is left half-written."""

import errno
import os
import re
import threading
from collections import Counter
from fractions import Fraction

import av
import numpy as np
import pytest
from av.video.frame import PictureType
from PIL import Image

from faststy.errors import FaststyError, UnwritableError
from faststy.stylization import clips
from faststy.stylization.clips import FASTEST, SLOWEST, open_clip
from faststy.stylization.video import HALF_LIFE, paint_video
from faststy.stylization.video_file import ENCODERS, FORMATS, VideoFile


class Echo:
    """Stands in for a stylizer: gives the frames as they are, or inverted, and notes the dials."""

    def __init__(self, invert=False):
        self.invert = invert

    def stream(self, frames, stop=None, **dials):
        self.dials = dials
        for frame in frames:
            yield 255 - frame if self.invert else frame


def frames_of(path):
    with av.open(str(path)) as file:
        return [(float(frame.time), frame) for frame in file.decode(video=0)]


def rgb(frame):
    return frame.to_ndarray(format="rgb24").astype(int)


def length_of(path):
    with av.open(str(path)) as file:
        return file.duration / av.time_base


def sound_of(path):
    """Samples of the first channel, float, and the time of the first one."""
    with av.open(str(path)) as file:
        frames = list(file.decode(audio=0))
        resampler = av.AudioResampler("fltp", "mono", 48000)
        parts = [part for frame in [*frames, None] for part in resampler.resample(frame)]
    return np.concatenate([part.to_ndarray()[0] for part in parts]), float(frames[0].time)


def test_frames_are_those_of_the_painter_in_order(film, tmp_path):
    source = film("a.mp4", frames=12)
    told = []
    report = paint_video(
        Echo(invert=True), source, tmp_path / "b.mp4", crf=5, on_frame=lambda *n: told.append(n)
    )
    before, after = frames_of(source), frames_of(tmp_path / "b.mp4")
    assert [time for time, _ in after] == [time for time, _ in before]
    for (_, old), (_, new) in zip(before, after, strict=True):
        assert np.abs(255 - rgb(old) - rgb(new))[8:16, 8:16].max() <= 8
    assert told == [(i, 12) for i in range(1, 13)]
    assert (report.frames, report.width, report.height, report.rate) == (12, 64, 48, 25.0)
    assert (report.encoder, report.audio, report.damage, report.stopped) == (
        "libx264",
        None,
        None,
        False,
    )


def test_dials_reach_the_stylizer(film, tmp_path):
    echo = Echo()
    dials = {"style": {"rain": 1.0}, "strength": 0.3, "repair": 0.2, "keep_color": True}
    dials["stroke"] = 2
    paint_video(echo, film("a.mp4", rate=50), tmp_path / "b.mp4", **dials)
    assert echo.dials == {**dials, "half_life": 50 * HALF_LIFE}


@pytest.mark.parametrize("suffix", FORMATS)
def test_every_format_holds_sound_and_variable_times(film, tmp_path, suffix):
    times = [0, 3, 10, 12, 30, 31, 33, 50, 77, 80]
    source = film("a.mkv", times=times, audio="aac", metadata={"title": "Rain", "artist": "Me"})
    target = tmp_path / f"b{suffix}"
    report = paint_video(Echo(), source, target)
    assert [time for time, _ in frames_of(target)] == [t / 100 for t in times]
    old, begin = sound_of(source)
    new, start = sound_of(target)
    assert start == pytest.approx(begin, abs=0.03)
    assert len(new) == pytest.approx(len(old), abs=2048)
    assert np.sqrt(np.mean(new**2)) == pytest.approx(np.sqrt(np.mean(old**2)), rel=0.1)
    with av.open(str(target)) as file:
        kind = file.streams.audio[0].codec_context.name
        tags = {key.lower(): value for key, value in file.metadata.items()}
    assert kind == ("opus" if suffix == ".webm" else "aac")
    assert report.audio == ("opus" if suffix == ".webm" else "copied")
    assert (tags["title"], tags["artist"]) == ("Rain", "Me")


def test_sound_that_is_copied_stays_in_time_with_the_part(film, tmp_path):
    source = film("a.mp4", frames=50, audio="aac")
    for target in (tmp_path / "b.mp4", tmp_path / "b.webm"):
        paint_video(Echo(), source, target, start=0.5, end=1.5)
        times = [time for time, _ in frames_of(target)]
        assert times[0] < 0.04
        assert times[-1] == pytest.approx(0.96, abs=0.03)
        samples, start = sound_of(target)
        assert start == pytest.approx(0, abs=0.04)
        assert len(samples) / 48000 == pytest.approx(1.0, abs=0.06)


@pytest.mark.parametrize("colors", [(1, 1, 1, 1), (1, 2, 1, 1), (6, 1, 6, 6), (9, 1, 9, 16)])
def test_colours_and_their_meaning_stay(film, tmp_path, colors):
    source = film("a.mp4", frames=2, colors=colors)
    paint_video(Echo(), source, tmp_path / "b.mp4", crf=5)
    _, frame = frames_of(tmp_path / "b.mp4")[0]
    got = (frame.colorspace, frame.color_range, frame.color_primaries, frame.color_trc)
    assert got == colors
    assert np.abs(rgb(frame) - rgb(frames_of(source)[0][1]))[8:16, 8:16].max() <= 6


def test_colours_of_no_matrix_are_written_with_the_one_that_was_taken(film, tmp_path):
    paint_video(Echo(), film("a.mp4", frames=2), tmp_path / "b.mp4", crf=5)
    before, after = (frames_of(tmp_path / name)[0][1] for name in ("a.mp4", "b.mp4"))
    assert (before.colorspace, after.colorspace) == (2, 5)
    assert np.abs(rgb(after) - rgb(before))[8:16, 8:16].max() <= 6


def test_a_turned_film_is_written_upright(film, tmp_path):
    source = film("a.mov", frames=2, turn=90)
    report = paint_video(Echo(), source, tmp_path / "b.mov")
    _, frame = frames_of(tmp_path / "b.mov")[0]
    assert (frame.width, frame.height, frame.rotation) == (48, 64, 0)
    assert (report.width, report.height) == (48, 64)
    assert rgb(frame)[16, 12, 1] > 120  # green, which was at the right, is at the top left


def test_odd_sizes_lose_a_row_or_column(film, tmp_path):
    source = film("a.mkv", frames=2, size=(64, 48), codec="ffv1", pixels="yuv444p")
    report = paint_video(Echo(), source, tmp_path / "b.mp4", size=35)  # 46.67 x 35
    assert (report.width, report.height) == (46, 34)
    assert frames_of(tmp_path / "b.mp4")[0][1].width == 46


@pytest.mark.parametrize("codec", [*ENCODERS, "mpeg4"])
def test_every_codec(film, tmp_path, codec):
    target = tmp_path / "b.mp4"
    report = paint_video(Echo(), film("a.mp4", frames=6, rate=30), target, codec=codec)
    assert len(frames_of(target)) == 6
    assert frames_of(target)[-1][0] == pytest.approx(5 / 30, abs=1e-3)
    with av.open(str(target)) as file:
        found = file.streams.video[0].codec_context
        assert found.name in (codec, "hevc", "libdav1d", "av1")
        assert codec not in ("h265", "hevc") or found.codec_tag == "hvc1"
    assert report.encoder == ENCODERS.get(codec, codec)


@pytest.mark.parametrize("size", [(200, 30), (16, 64)])
def test_av1_of_few_lines_is_refused(film, tmp_path, size):
    """Its encoder would wait for ever."""
    source = film("a.mkv", frames=2, size=size, codec="ffv1", pixels="yuv444p")
    with pytest.raises(FaststyError, match=r"at least 32 px, got .* use --codec h264"):
        paint_video(Echo(), source, tmp_path / "b.mp4", codec="av1")
    assert not (tmp_path / "b.mp4").exists()


@pytest.mark.skipif(not hasattr(os, "sched_getscheduler"), reason="Linux has such priorities")
def test_no_encoder_raises_our_priority(film, tmp_path, capfd):
    seen = set()

    def look(*_):
        seen.update(os.sched_getscheduler(int(thread)) for thread in os.listdir("/proc/self/task"))

    paint_video(Echo(), film("a.mp4"), tmp_path / "b.mkv", codec="av1", on_frame=look)
    assert seen == {os.sched_getscheduler(0)} == {os.SCHED_OTHER}
    assert capfd.readouterr() == ("", "")  # nor does it write to the terminal


def test_crf_is_the_quality(film, tmp_path):
    source = film("a.mp4", frames=5, size=(128, 96))
    sizes = []
    for crf in (1, 45):
        paint_video(Echo(), source, tmp_path / "b.mp4", crf=crf)
        sizes.append((tmp_path / "b.mp4").stat().st_size)
    assert sizes[0] > sizes[1]


def test_pictures_become_a_film(tmp_path):
    from PIL import Image

    for i in range(4):
        Image.new("RGB", (32, 32), (50 * i, 100, 0)).save(tmp_path / f"{i}.png")
    target = tmp_path / "film.mp4"
    report = paint_video(Echo(), tmp_path / "%d.png", target, rate=Fraction(30000, 1001))
    assert report.rate == pytest.approx(29.97, abs=0.01)
    frames = frames_of(target)
    assert [time for time, _ in frames] == pytest.approx([i * 1001 / 30000 for i in range(4)])
    assert frames[2][1].colorspace == 1
    assert np.abs(rgb(frames[2][1]) - [100, 100, 0]).max() <= 6


@pytest.mark.parametrize("rate", [SLOWEST, FASTEST])
@pytest.mark.parametrize("suffix", FORMATS)
def test_the_slowest_and_the_fastest_pictures(tmp_path, suffix, rate):
    from PIL import Image

    for i in range(3):
        Image.new("RGB", (32, 32), (50 * i, 100, 0)).save(tmp_path / f"{i}.png")
    target = tmp_path / f"film{suffix}"
    assert paint_video(Echo(), tmp_path / "%d.png", target, rate=rate).frames == 3
    assert [time for time, _ in frames_of(target)] == pytest.approx([i / rate for i in range(3)])


def test_a_stop_leaves_a_film_of_what_is_painted(film, tmp_path):
    stop, target = threading.Event(), tmp_path / "b.mp4"

    def after_five(count, _):
        if count == 5:
            stop.set()

    source = film("a.mp4", frames=40, audio="aac")
    report = paint_video(Echo(), source, target, stop=stop, on_frame=after_five)
    assert report.stopped
    assert report.frames == len(frames_of(target)) == 5
    assert sound_of(target)[0].size > 0


def test_a_damaged_film_is_painted_as_far_as_it_goes(film, tmp_path):
    source = film("a.mkv", frames=100, audio="aac")
    source.write_bytes(source.read_bytes()[: source.stat().st_size // 2])
    report = paint_video(Echo(), source, tmp_path / "b.mp4")
    assert 20 < report.frames < 80
    assert len(frames_of(tmp_path / "b.mp4")) == report.frames
    assert "cut off" in report.damage


def test_sound_without_a_decoder_is_left_out_and_told(film, tmp_path):
    source = film("a.mkv", frames=10, audio="aac")
    data = source.read_bytes()
    assert data.count(b"A_AAC") == 1
    source.write_bytes(data.replace(b"A_AAC", b"A_XXX"))
    for suffix in (".mp4", ".webm", ".mkv"):
        report = paint_video(Echo(), source, tmp_path / f"b{suffix}")
        assert report.left_out == ("audio stream 1 (unknown codec): it cannot be decoded",)
        assert (report.frames, report.audio, report.damage) == (10, None, None)
        assert len(frames_of(tmp_path / f"b{suffix}")) == 10


def test_a_row_that_even_sides_cost_is_told(film, tmp_path):
    odd = film("a.mkv", frames=2, size=(65, 47), codec="ffv1", pixels="yuv444p")
    report = paint_video(Echo(), odd, tmp_path / "b.mp4")
    assert (report.width, report.height) == (64, 46)
    assert report.left_out == ("its last row or column: the sides of films are even",)


@pytest.mark.parametrize(("layout", "codec"), [("stereo", "pcm_s24le"), ("5.1", "pcm_s16le")])
def test_channels_that_are_only_counted_get_places(film, tmp_path, monkeypatch, layout, codec):
    from faststy.stylization import video_file

    source = film("a.mkv", frames=25, audio=codec, layout=layout)
    with av.open(str(source)) as file:
        assert file.streams.audio[0].layout.name.endswith(" channels")
    report = paint_video(Echo(), source, tmp_path / "b.mp4")
    assert (report.audio, report.damage) == ("copied", None)
    with av.open(str(tmp_path / "b.mp4")) as file:
        assert file.streams.audio[0].layout.name == layout
    before = (tmp_path / "b.mp4").read_bytes()
    # Without, its end cannot be written: what was there before stays.
    monkeypatch.setattr(video_file, "_name_layout", lambda stream: None)
    with pytest.raises(FaststyError, match=r"b\.mp4: its end could not be written .*; use \.mkv"):
        paint_video(Echo(), source, tmp_path / "b.mp4")
    assert (tmp_path / "b.mp4").read_bytes() == before


@pytest.mark.parametrize(("layout", "expected"), [("5.1(side)", "5.1"), ("2.1", "stereo")])
def test_sound_in_a_layout_that_an_encoder_does_not_take(film, tmp_path, layout, expected):
    source = film("a.mkv", frames=25, audio="ac3", layout=layout)
    with av.open(str(source)) as file:
        assert file.streams.audio[0].layout.name == layout
    report = paint_video(Echo(), source, tmp_path / "b.webm")
    assert (report.audio, report.left_out) == ("opus", ())
    with av.open(str(tmp_path / "b.webm")) as file:
        assert file.streams.audio[0].layout.name == expected
    samples, _ = sound_of(tmp_path / "b.webm")
    assert len(samples) / 48000 == pytest.approx(1, abs=0.06)
    assert np.sqrt(np.mean(samples**2)) > 0.02


@pytest.mark.parametrize("suffix", [".webm", ".mkv"])
def test_sound_that_changes_its_kind(film, tmp_path, suffix):
    first = film("a.ts", frames=25, audio="aac")
    with (
        av.open(str(film("b.ts", audio="aac", layout="stereo"))) as file,
        av.open(str(tmp_path / "late.ts"), "w") as late,
    ):
        copies = [late.add_stream_from_template(stream) for stream in file.streams]
        for packet in file.demux():
            if packet.dts is not None:
                packet.pts, packet.dts = packet.pts + 90_000, packet.dts + 90_000  # a second
                packet.stream = copies[packet.stream.index]
                late.mux(packet)
    source = tmp_path / "c.ts"
    source.write_bytes(first.read_bytes() + (tmp_path / "late.ts").read_bytes())
    report = paint_video(Echo(), source, tmp_path / f"d{suffix}")
    assert report.frames == 35
    samples, _ = sound_of(tmp_path / f"d{suffix}")
    assert len(samples) / 48000 == pytest.approx(1.4, abs=0.15)
    assert np.sqrt(np.mean(samples[-9600:] ** 2)) > 0.1  # the second part is heard, too


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
@pytest.mark.parametrize(
    ("name", "codec", "audio"), [("a.ts", "libx264", "aac"), ("a.mpg", "mpeg2video", "mp2")]
)
def test_times_that_start_again_go_on(film, tmp_path, name, codec, audio, suffix):
    """Of recordings that were joined, each of 2 s."""
    part = film(name, frames=50, codec=codec, audio=audio).read_bytes()
    (tmp_path / name).write_bytes(3 * part)
    report = paint_video(Echo(), tmp_path / name, tmp_path / f"b{suffix}")
    assert (report.frames, report.damage) == (150, None)
    times = [time for time, _ in frames_of(tmp_path / f"b{suffix}")]
    assert np.diff(times).min() > 0.035
    assert np.diff(times).max() < 0.1
    assert times[-1] == pytest.approx(6, abs=0.2)
    samples, _ = sound_of(tmp_path / f"b{suffix}")
    assert len(samples) / 48000 == pytest.approx(6, abs=0.2)
    for second in range(1, 6):  # it is heard everywhere
        heard = samples[48000 * second - 9600 : 48000 * second + 9600]
        assert np.sqrt(np.mean(heard**2)) > 0.2
    report = paint_video(Echo(), tmp_path / name, tmp_path / f"b{suffix}", start=5)
    assert report.frames == pytest.approx(25, abs=3)


@pytest.mark.parametrize("clocks", [(0, 26), (26, 0), (0, 5000), (61, 0), (50_000, 0)])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_recordings_that_were_joined_may_have_any_clock(film, tmp_path, clocks, suffix):
    """One that is 60 s or more behind FFmpeg takes for one that went round, 26 h ahead."""
    parts = [film(f"{i}.ts", frames=50, audio="aac", clock=c) for i, c in enumerate(clocks)]
    (tmp_path / "a.ts").write_bytes(b"".join(part.read_bytes() for part in parts))
    report = paint_video(Echo(), tmp_path / "a.ts", tmp_path / f"b{suffix}")
    assert (report.frames, report.damage) == (100, None)
    times = [time for time, _ in frames_of(tmp_path / f"b{suffix}")]
    assert len(times) == 100
    assert np.diff(times).min() > 0.03
    assert np.diff(times).max() < 0.2
    assert times[-1] == pytest.approx(4, abs=0.2)
    samples, _ = sound_of(tmp_path / f"b{suffix}")
    assert len(samples) / 48000 == pytest.approx(4, abs=0.1)


@pytest.mark.parametrize("suffix", [".ts", ".mkv", ".mp4"])
@pytest.mark.parametrize("seconds", [[0.5] * 20, [4] * 8, [0.04, 15, 0.04, 6, 6, 1, 0.04, 9, 9, 9]])
def test_stills_whose_pictures_are_reordered_stand_as_long(film, tmp_path, suffix, seconds):
    begins = np.cumsum([0, *seconds[:-1]])
    source = film(
        f"a{suffix}",
        frames=len(seconds),
        times=[round(100 * begin) for begin in begins],
        rate=1,
        audio="aac",
        reordered=3,
    )
    assert any(PictureType(frame.pict_type) == PictureType.B for _, frame in frames_of(source))
    report = paint_video(Echo(), source, tmp_path / "b.mp4")
    assert report.damage is None
    times = np.array([time for time, _ in frames_of(tmp_path / "b.mp4")])
    np.testing.assert_allclose(times - times[0], begins, atol=0.002)
    report = paint_video(Echo(), source, tmp_path / "c.mp4", start=times[5])
    assert (report.frames, report.damage) == (len(seconds) - 5, None)


def move_stamp(data, stream, seconds):
    """Moves the times of the packet in the middle of one of the streams of a .ts, in place."""
    heads = []
    for packet in range(0, len(data), 188):
        head = packet + 4 + (1 + data[packet + 4] if data[packet + 3] & 0x20 else 0)
        if data[packet + 1] & 0x40 and data[head : head + 4] == bytes((0, 0, 1, stream)):
            heads.append(head)
    head = heads[len(heads) // 2]
    for at in range(head + 9, head + 9 + 5 * (data[head + 7] >> 6).bit_count(), 5):
        a, b, c, d, e = data[at : at + 5]
        stamp = (a >> 1 & 7) << 30 | b << 22 | c >> 1 << 15 | d << 7 | e >> 1
        stamp = (stamp + seconds * 90_000) % 2**33
        data[at : at + 5] = (
            a & 0xF1 | stamp >> 30 << 1,
            stamp >> 22 & 255,
            (stamp >> 15 & 127) << 1 | 1,
            stamp >> 7 & 255,
            (stamp & 127) << 1 | 1,
        )


@pytest.mark.parametrize("seconds", [3600, 30, -30])
@pytest.mark.parametrize("stream", [0xC0, 0xE0], ids=["audio", "video"])
@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_one_damaged_time_moves_nothing_else_and_is_told(film, tmp_path, stream, seconds, suffix):
    source = film("a.ts", frames=100, audio="aac")
    data = bytearray(source.read_bytes())
    move_stamp(data, stream, seconds)
    source.write_bytes(data)
    report = paint_video(Echo(), source, tmp_path / f"b{suffix}")
    assert report.frames == 100
    assert re.fullmatch(r"\d of its frames or packets are damaged", report.damage)
    times = [time for time, _ in frames_of(tmp_path / f"b{suffix}")]
    np.testing.assert_allclose(times, times[0] + np.arange(100) / 25, atol=0.002)
    samples, start = sound_of(tmp_path / f"b{suffix}")
    assert start == pytest.approx(0, abs=0.05)
    assert len(samples) / 48000 == pytest.approx(4, abs=0.1)
    assert paint_video(Echo(), source, tmp_path / f"b{suffix}", start=3).damage is None


@pytest.mark.parametrize("damage", [b"\0\0", b"\xff\xf1\x50\x80\x2f\x7f\xff"])
def test_damaged_sound_does_not_cost_the_video(film, tmp_path, damage):
    source = film("a.ts", frames=50, audio="aac")
    data = bytearray(source.read_bytes())
    starts = [i for i in range(0, len(data), 188) if data[i + 1 : i + 3] == b"\x41\x01"]
    header = data.index(b"\xff\xf1", starts[len(starts) // 2])  # of a frame of AAC
    data[header : header + len(damage)] = damage  # no header, or one of what FFmpeg cannot
    source.write_bytes(data)
    report = paint_video(Echo(), source, tmp_path / "b.mp4")
    assert (report.frames, report.audio) == (50, "copied")
    assert report.damage == "1 packets of its sound or subtitles are damaged"
    assert len(frames_of(tmp_path / "b.mp4")) == 50
    assert sound_of(tmp_path / "b.mp4")[0].size / 48000 == pytest.approx(2, abs=0.2)


def test_frames_that_cannot_be_written_are_told_apart_from_sound(film, tmp_path, monkeypatch):
    from faststy.stylization import video_file

    class Choosy:
        """PyAV with a file that does not take two frames, nor some packets of sound."""

        def __init__(self, file):
            self._file, self._given = file, Counter()

        def __getattr__(self, name):
            return getattr(self._file, name)

        def mux(self, packet):
            kind = packet.stream.type
            self._given[kind] += 1
            if self._given[kind] in self.refused[kind]:
                raise av.error.InvalidDataError(1, "refused")
            self._file.mux(packet)

    class Av:
        def __getattr__(self, name):
            return getattr(av, name)

        def open(self, file, mode="r", **options):
            opened = av.open(file, mode, **options)
            return Choosy(opened) if mode == "w" else opened

    monkeypatch.setattr(video_file, "av", Av())
    source = film("a.mkv", frames=50, audio="aac")
    for refused, damage in [
        ({"video": (5, 9), "audio": (7, 8, 9)}, "2 of its painted frames could not be written"),
        ({"video": (), "audio": (7, 8, 9)}, "3 packets of its sound or subtitles are damaged"),
    ]:
        Choosy.refused = refused
        report = paint_video(Echo(), source, tmp_path / "b.mp4")
        assert report.damage == damage
        assert report.frames == len(frames_of(tmp_path / "b.mp4")) == 50 - len(refused["video"])


@pytest.mark.parametrize("suffix", [".mkv", ".mp4", ".webm"])
def test_sound_after_the_last_frame_does_not_pile_up(film, tmp_path, monkeypatch, suffix):
    with (
        av.open(str(film("v.mkv", frames=100))) as pictures,
        av.open(str(film("s.mkv", frames=1000, audio="aac"))) as sound,
        av.open(str(tmp_path / "a.mkv"), "w") as both,
    ):
        streams = [pictures.streams.video[0], sound.streams.audio[0]]
        copies = [both.add_stream_from_template(stream) for stream in streams]
        for stream, copy in zip(streams, copies, strict=True):
            for packet in stream.container.demux(stream):
                if packet.dts is not None:
                    packet.stream = copy
                    both.mux(packet)
    waited, take = [], VideoFile.take_packets

    def noted(video):
        waited.append(sum(packet.size for packet in video._clip.packets))
        take(video)

    monkeypatch.setattr(clips, "MOST_PASSED", 20_000)
    monkeypatch.setattr(VideoFile, "take_packets", noted)
    report = paint_video(Echo(), tmp_path / "a.mkv", tmp_path / f"b{suffix}")
    assert (report.frames, report.damage) == (100, None)
    assert sum(waited) > 200_000  # bytes
    assert max(waited) < 60_000
    assert sound_of(tmp_path / f"b{suffix}")[0].size / 48000 == pytest.approx(40, abs=0.1)


def test_damaged_sound_that_is_changed_is_told(film, tmp_path):
    def damaged(name, first, last):
        """A copy of the film with noise instead of some packets of sound."""
        noise = np.random.default_rng(0)
        with av.open(str(source)) as file, av.open(str(tmp_path / name), "w") as copy:
            copies = [copy.add_stream_from_template(stream) for stream in file.streams]
            packets = [packet for packet in file.demux() if packet.size]
            sound = [packet for packet in packets if packet.stream.type == "audio"]
            for packet in packets:
                new = packet
                if packet in sound[first:last]:
                    new = av.Packet(noise.bytes(max(8, packet.size)))
                    new.pts, new.dts, new.time_base = packet.pts, packet.dts, packet.time_base
                new.stream = copies[packet.stream.index]
                copy.mux(new)
        return tmp_path / name

    source = film("a.mkv", frames=100, audio="aac")
    report = paint_video(Echo(), damaged("b.mkv", 40, 120), tmp_path / "b.webm")
    assert (report.frames, report.audio) == (100, "opus")
    count = int(re.fullmatch(r"(\d+) packets of its sound or .* are damaged", report.damage)[1])
    assert 40 < count <= 80
    # What lies before the first sound that can be heard is no loss: recordings begin anywhere.
    assert paint_video(Echo(), damaged("c.mkv", 0, 5), tmp_path / "c.webm").damage is None


def test_what_fails_at_the_video_and_at_its_sound_is_told_apart(film, tmp_path, monkeypatch):
    from faststy.stylization import video_file

    source = film("a.mkv", frames=5, audio="aac")
    with pytest.raises(FaststyError, match=r"b\.mov: h263 cannot write 64 x 48 as \.mov here"):
        paint_video(Echo(), source, tmp_path / "b.mov", codec="h263")
    # An encoder that takes nothing, as FFmpeg calls it experimental, costs the sound alone.
    monkeypatch.setitem(video_file._AUDIO_ENCODERS, "opus", "vorbis")
    report = paint_video(Echo(), source, tmp_path / "b.webm")
    assert report.left_out == ("audio stream 1 (aac): .webm cannot hold it, nor can it be changed",)
    assert sorted(os.listdir(tmp_path)) == ["a.mkv", "b.webm"]


def add_subtitles_and_chapters(path):
    """Writes the film anew with subtitles, with chapters at 0, 0.4 and 0.8 s, and with tags."""
    text = path.with_suffix(".srt")
    text.write_text("1\n00:00:00,100 --> 00:00:00,400\nHello\n")
    new = path.with_name("new.mkv")
    with av.open(str(path)) as film, av.open(str(text)) as lines, av.open(str(new), "w") as file:
        old = [*film.streams, *lines.streams]
        streams = {(s.container, s.index): file.add_stream_from_template(s) for s in old}
        video, _, subtitles = streams.values()
        video.metadata.update({"language": "fra", "title": "Rain", "BPS-eng": "1"})
        video.disposition = av.stream.Disposition.original
        subtitles.metadata["language"] = "deu"
        chapter = {"time_base": Fraction(1, 1000)}
        file.set_chapters(
            [
                {**chapter, "id": i + 1, "start": 400 * i, "end": 400 * (i + 1)}
                | {"metadata": {"title": f"part {i}"}}
                for i in range(3)
            ]
        )
        for container in (lines, film):
            for packet in container.demux():
                if packet.dts is not None:
                    packet.stream = streams[container, packet.stream.index]
                    file.mux(packet)
    new.replace(path)
    text.unlink()


def test_subtitles_that_the_format_cannot_hold_are_told(film, tmp_path):
    source = film("a.mkv", frames=30, audio="aac")
    add_subtitles_and_chapters(source)
    for suffix in (".mp4", ".webm", ".mov"):
        report = paint_video(Echo(), source, tmp_path / f"b{suffix}")
        assert report.left_out == (f"subtitle stream 2 (subrip, deu): {suffix} cannot hold it",)
    report = paint_video(Echo(), source, tmp_path / "b.mkv")
    assert report.left_out == ()
    with av.open(str(tmp_path / "b.mkv")) as file:
        assert [bytes(p) for p in file.demux(subtitles=0) if p.size] == [b"Hello"]


def test_subtitles_that_begin_together_stay(film, tmp_path):
    source = film("a.mkv", frames=30)
    lines = [(0.1, 0.4, "One"), (0.1, 0.4, "Two"), (0.6, 0.9, "Last")]
    text = tmp_path / "lines.ass"
    text.write_text(
        "[Script Info]\nScriptType: v4.00+\n\n[Events]\n"
        + "".join(f"Dialogue: 0,0:00:0{a:.2f},0:00:0{b:.2f},,,0,0,0,,{c}\n" for a, b, c in lines)
    )
    both = tmp_path / "both.mkv"
    with av.open(str(source)) as old, av.open(str(text)) as added, av.open(str(both), "w") as file:
        for container in (old, added):
            file.add_stream_from_template(container.streams[0])
        for container, target in reversed([*zip((old, added), file.streams, strict=True)]):
            for packet in container.demux():
                if packet.dts is not None:
                    packet.stream = target
                    file.mux(packet)
    paint_video(Echo(), both, tmp_path / "b.mkv")
    with av.open(str(tmp_path / "b.mkv")) as file:
        said = [bytes(p).rpartition(b",")[2] for p in file.demux(subtitles=0) if p.size]
    assert said == [b"One", b"Two", b"Last"]


def test_a_link_stays_a_link(film, tmp_path):
    (tmp_path / "link.mp4").symlink_to("real.mp4")
    paint_video(Echo(), film("a.mp4", frames=3), tmp_path / "link.mp4")
    assert (tmp_path / "link.mp4").is_symlink()
    assert (tmp_path / "real.mp4").stat().st_size > 100


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_tags_of_the_video_stream_stay(film, tmp_path, suffix):
    source = film("a.mkv", frames=30, audio="aac")
    add_subtitles_and_chapters(source)
    paint_video(Echo(), source, tmp_path / f"b{suffix}")
    with av.open(str(tmp_path / f"b{suffix}")) as file:
        video = file.streams.video[0]
        tags = {key.lower(): value for key, value in video.metadata.items()}
        assert tags["language"] in ("fra", "fre")
        assert "bps-eng" not in tags
        if suffix == ".mkv":  # the others have no place for these
            assert tags["title"] == "Rain"
            assert video.disposition & av.stream.Disposition.original


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        (0, None, [(0, 0.4), (0.4, 0.8), (0.8, 1.2)]),
        (0, 0.6, [(0, 0.4), (0.4, 0.6)]),
        (0, 0.4, [(0, 0.4)]),
        (0.6, None, [(0, 0.2), (0.2, 0.6)]),
        (0.2, 1.0, [(0, 0.2), (0.2, 0.6), (0.6, 0.8)]),
    ],
)
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_chapters_are_those_of_the_part(film, tmp_path, suffix, start, end, expected):
    source = film("a.mkv", frames=30, audio="aac")
    add_subtitles_and_chapters(source)
    paint_video(Echo(), source, tmp_path / f"b{suffix}", start=start, end=end)
    with av.open(str(tmp_path / f"b{suffix}")) as file:
        chapters = file.chapters()
    times = [(c["start"] * c["time_base"], c["end"] * c["time_base"]) for c in chapters]
    np.testing.assert_allclose(np.array(times, float), expected, atol=0.002)
    last = f"part {2 if end is None or end > 0.8 else len(expected) - 1}"
    assert chapters[-1]["metadata"]["title"] == last
    again = paint_video(Echo(), tmp_path / f"b{suffix}", tmp_path / "c.mkv")
    assert again.left_out == ()  # though .mp4 has a stream for its chapters


def test_films_that_cannot_be_painted_are_one_sentence_and_leave_nothing(film, tmp_path):
    source = film("a.mkv", frames=5, audio="aac")
    data = source.read_bytes()
    assert data.count(b"V_MPEG4/ISO/AVC") == 1
    (tmp_path / "codec.mkv").write_bytes(data.replace(b"V_MPEG4/ISO/AVC", b"V_XXXXX/ISO/AVC"))
    for name in ("none.mkv", "none.mp4"):  # streams of sound and of video, none of its frames
        with av.open(str(source)) as old, av.open(str(tmp_path / name), "w") as file:
            streams = {s: file.add_stream_from_template(s) for s in old.streams}
            for packet in old.demux(audio=0):
                if packet.dts is not None:
                    packet.stream = streams[packet.stream]
                    file.mux(packet)
    with av.open(str(tmp_path / "thin.mov"), "w") as file:
        video = file.add_stream("png", rate=25)
        video.width, video.height, video.pix_fmt = 1, 48, "rgb24"
        picture = av.VideoFrame.from_ndarray(np.zeros((48, 1, 3), np.uint8), "rgb24")
        file.mux([*video.encode(picture), *video.encode(None)])
    before = sorted(os.listdir(tmp_path))
    for name, sentence in [
        ("codec.mkv", "its video is in a format that faststy cannot decode$"),
        ("none.mkv", "there is no frame in it$"),
        ("none.mp4", "has no video in it, only audio$"),  # this format holds no such stream
        ("thin.mov", "its frames are 1 x 48; faststy paints from 16 x 16 pixels on$"),
    ]:
        with pytest.raises(FaststyError, match=f"^{tmp_path / name}: {sentence}"):
            paint_video(Echo(), tmp_path / name, tmp_path / "b.mp4")
        assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize("matrix", [8, 14])
def test_colours_that_ffmpeg_does_not_convert_are_told_of_the_film(film, tmp_path, matrix):
    """YCgCo, ICtCp: it is not the output that cannot be written."""
    source = tmp_path / "a.mkv"
    with av.open(str(source), "w") as file:
        video = file.add_stream("libx264", rate=25)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        video.codec_context.colorspace = matrix
        frame = av.VideoFrame(64, 48, "yuv420p")
        frame.colorspace = matrix
        file.mux([*video.encode(frame), *video.encode(None)])
    sentence = rf"a\.mkv: its colours \(yuv420p, matrix {matrix} of .* cannot be made RGB"
    with pytest.raises(FaststyError, match=sentence) as caught:
        paint_video(Echo(), source, tmp_path / "b.mp4")
    assert not isinstance(caught.value, UnwritableError)
    assert os.listdir(tmp_path) == ["a.mkv"]


def test_mistakes_are_one_sentence_and_leave_nothing(film, tmp_path):
    source = film("a.mp4", frames=3, audio="aac")
    (tmp_path / "old.mp4").write_bytes(b"old")
    (tmp_path / "folder.mp4").mkdir()
    one, two = film("1.h264", frames=9), film("2.h264", frames=3, size=(48, 48))
    (tmp_path / "both.h264").write_bytes(one.read_bytes() + two.read_bytes())
    before = sorted(os.listdir(tmp_path))
    for target, options, sentence in [
        ("none/b.mp4", {}, "the folder .*none does not exist"),
        ("folder.mp4", {}, "is a folder"),
        ("b.avi", {}, r"\.avi is no video format that faststy writes; use \.mp4"),
        ("b", {}, "a name without a suffix is no video format"),
        ("b.mp4", {"codec": "nonsense"}, "there is no encoder for 'nonsense' here; use h264"),
        ("b.mp4", {"codec": "aac"}, "'aac' is no codec for video"),
        ("b.webm", {"codec": "h264"}, r"\.webm cannot hold h264; use \.mkv, or another --codec"),
        ("b.mkv", {"codec": "gif"}, r"\.mkv cannot hold gif; use another --codec"),
        ("b.mov", {"codec": "vp9"}, r"\.mov cannot hold libvpx-vp9 with .*; use \.mkv, or another"),
        ("b.mp4", {"codec": "h265", "crf": 52}, "--crf goes from 0 to 51 for libx265, got 52"),
        ("b.mp4", {"codec": "mpeg4", "crf": 3}, "--crf does not go with the encoder mpeg4"),
        ("old.mp4", {"start": 5.0}, "there is no frame in it at or after 5 s"),
    ]:
        with pytest.raises(FaststyError, match=sentence):
            paint_video(Echo(), source, tmp_path / target, **options)
        assert sorted(os.listdir(tmp_path)) == before
    with pytest.raises(FaststyError, match="change their size"):
        paint_video(Echo(), tmp_path / "both.h264", tmp_path / "old.mp4")
    assert sorted(os.listdir(tmp_path)) == before
    assert (tmp_path / "old.mp4").read_bytes() == b"old"


def test_a_painter_that_fails_leaves_nothing(film, tmp_path):
    class Broken:
        def stream(self, frames, **_):
            yield next(iter(frames))
            raise RuntimeError("bug")

    source = film("a.mp4", frames=3)
    with pytest.raises(RuntimeError, match="bug"):
        paint_video(Broken(), source, tmp_path / "b.mp4")
    assert os.listdir(tmp_path) == ["a.mp4"]


def test_too_little_memory_is_one_sentence_and_leaves_nothing(film, tmp_path):
    class Large:
        def stream(self, frames, **_):
            yield next(iter(frames))
            raise MemoryError

    source = film("a.mp4", frames=3)
    with pytest.raises(FaststyError, match=r"a\.mp4: not enough memory to paint 64 x 48; use a sm"):
        paint_video(Large(), source, tmp_path / "b.mp4")
    assert os.listdir(tmp_path) == ["a.mp4"]


@pytest.mark.parametrize("after", [0, 2, 30])
def test_a_full_disk_is_one_sentence_and_leaves_nothing(film, tmp_path, monkeypatch, after):
    from faststy.stylization import video

    source = film("a.mkv", frames=60, size=(128, 96))
    real = video.replacing

    class Full:
        """A file on a disk that is full after some writes."""

        def __init__(self, file):
            self.file, self.writes = file, 0

        def __getattr__(self, name):
            return getattr(self.file, name)

        def write(self, data):
            self.writes += 1
            if self.writes > after:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return self.file.write(data)

    def full(path):
        import contextlib

        @contextlib.contextmanager
        def wrapped():
            with real(path) as file:
                yield Full(file)

        return wrapped()

    monkeypatch.setattr(video, "replacing", full)
    with pytest.raises(FaststyError, match=r"b\.mp4: cannot be written \(No space left"):
        paint_video(Echo(), source, tmp_path / "b.mp4", crf=0)
    assert os.listdir(tmp_path) == ["a.mkv"]


def test_the_clip_is_closed_whatever_happens(film, tmp_path, monkeypatch):
    from faststy.stylization import video

    opened = []
    monkeypatch.setattr(
        video, "open_clip", lambda *a, **k: opened.append(open_clip(*a, **k)) or opened[-1]
    )
    paint_video(Echo(), film("a.mp4", frames=2), tmp_path / "b.mp4")
    with pytest.raises(FaststyError):
        paint_video(Echo(), film("a.mp4", frames=2), tmp_path / "b.mp4", codec="nonsense")
    for clip in opened:
        with pytest.raises(AssertionError):
            clip.container.demux().__next__()


# ------------------------------------------------------------------ what muxers make of it


def written(path, frames=6, options=None, stream=None, rate=25, **tags):
    """A film with tags of the file, and of its stream."""
    with av.open(str(path), "w", options=options or {}) as file:
        file.metadata.update(tags)
        video = file.add_stream("libx264", rate=rate)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        video.metadata.update(stream or {})
        for i in range(frames):
            picture = np.full((48, 64, 3), 10 * i, np.uint8)
            picture[:, :32] = 200
            frame = av.VideoFrame.from_ndarray(picture, "rgb24").reformat(format="yuv420p")
            frame.pts = i
            file.mux(video.encode(frame))
        file.mux(video.encode(None))
    return path


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_rate_that_cannot_be_is_none(tmp_path, suffix):
    """FFmpeg says of raw DV that it has 60,000 frames a second on average."""
    with av.open(str(tmp_path / "a.dv"), "w", format="dv") as file:
        video = file.add_stream("dvvideo", rate=25)
        video.width, video.height, video.pix_fmt = 720, 576, "yuv420p"
        for i in range(30):
            picture = np.full((576, 720, 3), 5 * i, np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, "rgb24").reformat(format="yuv420p")
            frame.pts = i
            file.mux(video.encode(frame))
        file.mux(video.encode(None))
    report = paint_video(Echo(), tmp_path / "a.dv", tmp_path / f"b{suffix}", size=48)
    assert (report.rate, report.frames, report.damage) == (25, 30, None)
    assert [time for time, _ in frames_of(tmp_path / f"b{suffix}")][-1] == pytest.approx(29 / 25)


@pytest.mark.parametrize("suffix", FORMATS)
def test_the_last_picture_is_seen_as_long_as_it_was(tmp_path, suffix):
    pictures = [Image.new("RGB", (64, 48), colour) for colour in ("red", "green", "blue")]
    pictures[0].save(
        tmp_path / "a.gif", save_all=True, append_images=pictures[1:], duration=[200, 200, 3000]
    )
    first, second = tmp_path / f"b{suffix}", tmp_path / f"c{suffix}"
    paint_video(Echo(), tmp_path / "a.gif", first)
    paint_video(Echo(), first, second)
    assert (length_of(first), length_of(second)) == (3.4, 3.4)
    paint_video(Echo(), tmp_path / "a.gif", first, end=1.0)
    assert length_of(first) == 1.0


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_film_ends_where_it_did_though_its_times_vary(film, tmp_path, suffix):
    """The picture at 8 is seen for 1 s: that after the end begins there."""
    source = film("a.mkv", frames=5, times=[0, 4, 8, 108, 112])
    target = tmp_path / f"b{suffix}"
    paint_video(Echo(), source, target, end=1.08)
    assert length_of(target) == 1.08
    paint_video(Echo(), source, target, end=0.5)
    assert length_of(target) == 0.5


def test_a_film_of_a_steady_rate_is_one_again(film, tmp_path):
    for suffix in FORMATS:
        paint_video(Echo(), film("a.mkv", frames=10), tmp_path / f"b{suffix}")
        with av.open(str(tmp_path / f"b{suffix}")) as file:
            assert (file.streams.video[0].average_rate, file.duration) == (25, 400_000)
            packets = list(file.demux(video=0))
        assert {p.duration * p.time_base for p in packets if p.size} == {Fraction(1, 25)}


@pytest.mark.parametrize("codec", ["libopus", "flac"])
def test_sound_that_mov_takes_and_then_refuses_is_changed(film, tmp_path, codec):
    report = paint_video(Echo(), film("a.mkv", frames=12, audio=codec), tmp_path / "b.mov")
    assert report.audio == "aac"
    assert sound_of(tmp_path / "b.mov")[0].any()


@pytest.mark.parametrize("suffix", [".mov", ".mp4"])
def test_what_a_phone_says_of_a_film_stays(tmp_path, suffix):
    tags = {"com.apple.quicktime.make": "A", "com.apple.quicktime.location.ISO6709": "+48+011/"}
    source = written(
        tmp_path / "a.mov", options={"movflags": "use_metadata_tags"}, title="T", **tags
    )
    paint_video(Echo(), source, tmp_path / f"b{suffix}")
    with av.open(str(tmp_path / f"b{suffix}")) as file:
        assert {**tags, "title": "T"}.items() <= file.metadata.items()


@pytest.mark.parametrize(
    ("suffix", "lost"),
    [(".mp4", ("the tag DIRECTOR",)), (".mov", ("the tags ALBUM_ARTIST, DIRECTOR",)), (".mkv", ())],
)
def test_tags_that_the_format_does_not_hold_are_told(tmp_path, suffix, lost):
    tags = {"title": "T", "DIRECTOR": "D", "album_artist": "A", "timecode": "01:00:00:00"}
    dates = {"creation_time": "1970-01-01T00:00:00.000000Z", "date": "2020"}
    source = written(tmp_path / "a.mkv", **tags, **dates)
    assert paint_video(Echo(), source, tmp_path / f"b{suffix}").left_out == lost


def test_a_timecode_is_that_of_the_first_frame(tmp_path):
    source = written(tmp_path / "a.mov", stream={"timecode": "01:00:00:00"}, frames=20)
    whole = paint_video(Echo(), source, tmp_path / "b.mov")
    part = paint_video(Echo(), source, tmp_path / "c.mov", start=0.4)
    with av.open(str(tmp_path / "b.mov")) as b, av.open(str(tmp_path / "c.mov")) as c:
        assert b.streams.video[0].metadata["timecode"] == "01:00:00:00"
        assert "timecode" not in c.streams.video[0].metadata
    assert (whole.left_out, part.left_out) == ((), ("data stream 1",))


@pytest.mark.parametrize("suffix", [".mov", ".mp4"])
def test_a_timecode_that_cannot_count_the_frames_is_none(tmp_path, suffix):
    """FFmpeg would say so when all is painted."""
    source = written(tmp_path / "a.mkv", stream={"timecode": "01:00:00:00"}, rate=300)
    assert paint_video(Echo(), source, tmp_path / f"b{suffix}").frames == 6
    assert len(frames_of(tmp_path / f"b{suffix}")) == 6


def test_webm_with_transparency_is_one_without(tmp_path):
    with av.open(str(tmp_path / "a.webm"), "w") as file:
        video = file.add_stream("libvpx-vp9", rate=25)
        video.width, video.height, video.pix_fmt = 64, 48, "yuva420p"
        for i in range(3):
            picture = np.full((48, 64, 4), 90, np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, "rgba").reformat(format="yuva420p")
            frame.pts = i
            file.mux(video.encode(frame))
        file.mux(video.encode(None))
    report = paint_video(Echo(), tmp_path / "a.webm", tmp_path / "b.webm")
    assert report.left_out == ("its transparency",)
    assert b"\x53\xc0\x81\x01" in (tmp_path / "a.webm").read_bytes()  # AlphaMode
    assert b"\x53\xc0\x81\x01" not in (tmp_path / "b.webm").read_bytes()


def test_an_encoder_of_rgb_is_told_that_it_is_rgb(film, tmp_path):
    source = film("a.mp4", frames=2)
    paint_video(Echo(), source, tmp_path / "b.mkv", codec="libx264rgb")
    _, frame = frames_of(tmp_path / "b.mkv")[0]
    assert np.abs(rgb(frame) - rgb(frames_of(source)[0][1]))[8:16, 8:16].max() <= 8


@pytest.mark.parametrize(
    ("name", "advice"),
    [("b.mp4", "use .mkv, or another --codec"), ("b.MKV", "use another --codec")],
)
def test_what_ffmpeg_refuses_at_the_end_is_one_sentence(film, tmp_path, monkeypatch, name, advice):
    def refuse(self, last=None):
        raise av.error.ArgumentError(22, "Invalid argument")

    monkeypatch.setattr(VideoFile, "finish", refuse)
    said = re.escape(f"{name}: cannot be written (Invalid argument); {advice}")
    with pytest.raises(FaststyError, match=f"{said}$"):
        paint_video(Echo(), film("a.mp4"), tmp_path / name)
    assert os.listdir(tmp_path) == ["a.mp4"]
