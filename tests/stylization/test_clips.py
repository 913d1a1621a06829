"""Frames come out upright, in right colours and with their times, whatever they came in."""

import io
import os
import threading
from collections import Counter
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from faststy.errors import FaststyError
from faststy.stylization import clips
from faststy.stylization.clips import BT709, StoppedError, open_clip

RED, GREEN, BLUE, WHITE = [200, 40, 40], [40, 180, 40], [40, 40, 190], [210, 210, 200]
PICTURE = np.array([[RED, GREEN], [BLUE, WHITE]])
DEFAULT = av.stream.Disposition.default


def read(source, **options):
    """All frames, their times in seconds, and the clip."""
    clip = open_clip(source, **options)
    frames = list(clip.frames())
    times = [float(time) for time in clip.times]
    clip.close()
    assert len(times) == len(frames)
    return frames, times, clip


def quadrants(frame):
    """The colours in the middle of the four quadrants, [2, 2, 3]."""
    height, width = frame.shape[:2]
    rows, columns = [height // 4, 3 * height // 4], [width // 4, 3 * width // 4]
    return frame[np.ix_(rows, columns)].astype(int)


def assert_close(got, expected, atol=6):
    np.testing.assert_allclose(got, expected, atol=atol)


def test_frames_times_and_what_is_known_of_them(film):
    frames, times, clip = read(film("a.mp4", frames=7))
    assert [frame.shape for frame in frames] == [(48, 64, 3)] * 7
    assert all(frame.dtype == np.uint8 and frame.flags.c_contiguous for frame in frames)
    assert times == [i / 25 for i in range(7)]
    assert (clip.width, clip.height, clip.rate, clip.count) == (64, 48, 25, 7)
    assert clip.damage is None
    for i, frame in enumerate(frames):
        assert_close(quadrants(frame), PICTURE * (1 - i / 40))


@pytest.mark.parametrize(
    ("matrix", "red", "blue"), [(1, 0.2126, 0.0722), (6, 0.299, 0.114), (9, 0.2627, 0.0593)]
)
@pytest.mark.parametrize("range", [1, 2])
def test_colours_of_every_matrix_and_range(tmp_path, matrix, red, blue, range):
    """Against the formulas of ITU-T H.273, in float64."""
    r, g, b = np.moveaxis(np.kron(PICTURE, np.ones((32, 32, 1))), -1, 0) / 255
    luma = red * r + (1 - red - blue) * g + blue * b
    chroma = [(b - luma) / (2 - 2 * blue), (r - luma) / (2 - 2 * red)]
    if range == 1:
        planes = [16 + 219 * luma, *(128 + 224 * c for c in chroma)]
    else:
        planes = [255 * luma, *(128 + 255 * c for c in chroma)]
    path = str(tmp_path / "a.mkv")
    with av.open(path, "w") as file:
        video = file.add_stream("ffv1", rate=25)
        video.width, video.height, video.pix_fmt = 64, 64, "yuv444p"
        context = video.codec_context
        context.colorspace, context.color_range, context.color_primaries = matrix, range, matrix
        levels = np.rint(np.clip(planes, 0, 255)).astype(np.uint8)
        file.mux([*video.encode(av.VideoFrame.from_ndarray(levels, "yuv444p")), *video.encode()])
    frames, _, clip = read(path)
    assert_close(quadrants(frames[0]), PICTURE, atol=3)
    assert (clip.colors.matrix, clip.colors.range, clip.colors.primaries) == (matrix, range, matrix)


@pytest.mark.parametrize(
    ("size", "matrix"), [((64, 48), 5), ((720, 576), 5), ((768, 578), 1), ((1280, 544), 1)]
)
def test_colours_of_no_matrix_are_those_that_players_show(film, size, matrix):
    source = film("a.mkv", frames=1, size=size, colors=(matrix, 1, 2, 2), codec="ffv1")
    data = source.read_bytes()
    told = bytes([0x55, 0xB1, 0x81, matrix])  # MatrixCoefficients of Matroska
    assert told in data
    source.write_bytes(data.replace(told, told[:-1] + b"\2"))
    frames, _, clip = read(source)
    assert clip.colors.matrix == matrix
    assert_close(quadrants(frames[0]), PICTURE)


def test_rgb_films_become_bt709(film):
    frames, _, clip = read(film("a.mkv", frames=1, codec="ffv1", pixels="bgr0"))
    assert_close(quadrants(frames[0]), PICTURE, atol=0)
    assert clip.colors == BT709


@pytest.mark.parametrize("turn", [0, 90, 180, -90])
@pytest.mark.parametrize("mirror", [False, True])
def test_turned_and_mirrored_films_come_out_upright(film, turn, mirror):
    path = film("a.mov", frames=1, turn=turn, mirror=mirror)
    with av.open(str(path)) as file:
        frame = next(file.decode(video=0))
        data = frame.side_data["DISPLAYMATRIX"] if turn or mirror else None
    a, b, _, c, d = (1, 0, 0, 0, 1) if data is None else np.frombuffer(data, np.int32)[:5] >> 16
    expected = np.zeros_like(PICTURE)
    for y in (0, 1):
        for x in (0, 1):  # each quadrant goes where the matrix takes its middle
            u, v = 2 * x - 1, 2 * y - 1
            expected[(b * u + d * v + 1) // 2, (a * u + c * v + 1) // 2] = PICTURE[y, x]
    if not mirror:
        np.testing.assert_array_equal(expected, np.rot90(PICTURE, turn // 90))
    frames, _, clip = read(path)
    assert_close(quadrants(frames[0]), expected)
    assert (clip.width, clip.height) == ((48, 64) if turn % 180 else (64, 48))


def test_variable_times_are_exact(film):
    times = [0, 3, 10, 12, 30, 31, 33, 50, 77, 80]
    assert read(film("a.mkv", times=times))[1] == [t / 100 for t in times]


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [(0.1, None, range(3, 20)), (0, 0.2, range(5)), (0.4, 0.5, [10, 11, 12])],
)
@pytest.mark.parametrize("name", ["a.mp4", "a.ts"])
def test_a_part(film, name, start, end, expected):
    path = film(name, frames=20)
    everything = read(path)[0]
    frames, times, clip = read(path, start=start, end=end)
    np.testing.assert_array_equal(frames, [everything[i] for i in expected])
    assert times == pytest.approx([i / 25 - start for i in expected])
    assert clip.count == pytest.approx(len(expected), abs=1)
    assert clip.damage is None


@pytest.mark.parametrize("clock", [0, 26])
def test_a_part_of_a_film_that_was_joined(film, tmp_path, clock):
    """FFmpeg would go to such a time in any of the recordings."""
    parts = [film(f"{i}.ts", frames=60, rate=5, audio="aac", clock=i * clock) for i in range(3)]
    data = b"".join(part.read_bytes() for part in parts)
    (tmp_path / "a.ts").write_bytes(data)
    whole, times, _ = read(tmp_path / "a.ts")
    assert len(whole) == 180
    assert times[-1] == pytest.approx(36, abs=0.5)
    for start in (5, 10, 13, 20, 25, 33):
        for source in (tmp_path / "a.ts", io.BytesIO(data)):
            frames, found, clip = read(source, start=start)
            first = next(i for i, time in enumerate(times) if time >= start)
            first += len(whole) - first - len(frames)  # or the one that is still seen
            assert times[first] == pytest.approx(start, abs=0.4)
            np.testing.assert_array_equal(frames, whole[first:])
            assert found[-1] == pytest.approx(times[-1] - start, abs=1e-3)
            assert clip.damage is None
            sound = [packet.pts * packet.time_base - clip.offset for packet in clip.packets]
            assert max(sound) - min(sound) == pytest.approx(36 - start, abs=0.5)


@pytest.mark.parametrize("name", ["a.mkv", "a.ts"])
def test_keyframes_that_are_far_apart_do_not_pile_up_packets(film, monkeypatch, name):
    path = film(name, frames=20)
    expected = read(path, start=0.5)[0]
    monkeypatch.setattr(clips, "_MOST_WAITING", 2)
    np.testing.assert_array_equal(read(path, start=0.5)[0], expected)


def test_size_is_that_of_the_short_side_and_never_enlarges(film):
    path = film("a.mov", frames=1, turn=90)
    frames, _, clip = read(path, size=24)
    assert frames[0].shape == (32, 24, 3)
    assert (clip.width, clip.height) == (24, 32)
    assert_close(quadrants(frames[0]), np.rot90(PICTURE))
    assert read(path, size=100)[0][0].shape == (64, 48, 3)


def test_packets_of_sound_pass_by(film):
    path = film("a.mp4", frames=50, audio="aac")
    _, _, clip = read(path)
    whole = len(clip.packets)
    assert whole > 90
    _, _, clip = read(path, start=0.5, end=1.0)
    first, last = clip.packets[0], clip.packets[-1]
    assert first.pts * first.time_base == pytest.approx(0.5, abs=0.03)
    assert last.pts * last.time_base == pytest.approx(1.0, abs=0.03)
    assert len(clip.packets) == pytest.approx(whole / 4, abs=2)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts"])
@pytest.mark.parametrize("start", [0, 0.2])
def test_seekable_streams_and_pipes(film, name, start):
    path = film(name, frames=20)
    expected = read(path, start=start)[0]
    stream = io.BytesIO(path.read_bytes())
    np.testing.assert_array_equal(read(stream, start=start)[0], expected)
    reading, writing = os.pipe()

    def feed():
        with open(writing, "wb") as pipe:
            pipe.write(path.read_bytes())

    feeder = threading.Thread(target=feed)
    feeder.start()
    with open(reading, "rb") as pipe:
        np.testing.assert_array_equal(read(pipe, start=start)[0], expected)
    feeder.join()


@pytest.mark.parametrize(
    ("start", "end", "times", "places"),
    [
        (0.5, 2.0, [0, 0.5, 0.54, 0.58], [2, 3, 4, 5]),
        (1.5, 2.5, [0], [5]),  # nothing changes
        (1.0, 2.0, [0, 0.04, 0.08], [3, 4, 5]),
    ],
)
def test_what_is_seen_at_the_start_is_there_where_a_clip_has_gaps(film, start, end, times, places):
    """As recordings of a screen: a frame stays until something changes."""
    path = film("a.mkv", frames=7, times=[0, 4, 8, 100, 104, 108, 300])
    whole = read(path)[0]
    frames, found, _ = read(path, start=start, end=end)
    assert found == pytest.approx(times, abs=1e-3)
    np.testing.assert_array_equal(frames, [whole[place] for place in places])


def test_pictures_in_a_row(tmp_path):
    for i in (8, 9, 10, 11):
        Image.new("RGB", (20, 30), (i, 0, 0)).save(tmp_path / f"f_{i:02d}.png")
    (tmp_path / "f_x.png").touch()
    for pattern in ("f_%02d.png", "f_%d.png"):
        frames, times, clip = read(tmp_path / pattern, rate=Fraction(10))
        assert [frame[0, 0, 0] for frame in frames] == [8, 9, 10, 11]
        assert times == [0.0, 0.1, 0.2, 0.3]
        assert (clip.width, clip.height, clip.count, clip.damage) == (20, 30, 4, None)
    (tmp_path / "f_x.png").unlink()
    frames, times, _ = read(tmp_path, rate=Fraction(10), start=0.1, end=0.3, size=16)
    assert [frame[0, 0, 0] for frame in frames] == [9, 10]
    assert frames[0].shape == (24, 16, 3)
    assert times == [0.0, 0.1]


def test_numbers_that_are_missing_in_a_row_are_told(tmp_path):
    for i in (2, 3, 5, 6):
        Image.new("RGB", (20, 20)).save(tmp_path / f"{i}.png")
    assert read(tmp_path / "%d.png")[2].left_out == ("4, a number that no picture has",)
    (tmp_path / "5.png").unlink()
    told = ("2 numbers that no picture has, 4 and others",)
    assert read(tmp_path / "%d.png")[2].left_out == told
    assert read(tmp_path)[2].left_out == ()  # in a folder any names will do


def test_what_rgb_of_8_bits_cannot_hold_is_told(film, tmp_path):
    for pixels, told in {
        "bgr0": (),
        "bgra": ("its transparency",),
        "yuv420p10le": ("the finer steps of its 10 bits per colour",),
    }.items():
        path = str(tmp_path / f"{pixels}.mkv")
        with av.open(path, "w") as file:
            video = file.add_stream("ffv1", rate=25)
            video.width, video.height, video.pix_fmt = 32, 32, pixels
            levels = np.full((32, 32, 4), 128, np.uint8)
            frame = av.VideoFrame.from_ndarray(levels, "rgba").reformat(format=pixels)
            file.mux([*video.encode(frame), *video.encode()])
        assert read(path)[2].left_out == told
    Image.new("RGBA", (20, 20), (1, 2, 3, 4)).save(tmp_path / "1.png")
    assert read(tmp_path / "%d.png")[2].left_out == ("its transparency",)
    opaque = Image.new("RGBA", (20, 20), (9, 9, 9, 255))
    opaque.save(tmp_path / "a.gif", save_all=True, append_images=[opaque.rotate(3)])
    assert read(tmp_path / "a.gif")[2].left_out == ()


def test_a_folder_is_in_the_order_of_its_numbers_and_tells_what_moves(film, tmp_path):
    for i in (1, 2, 9, 10, 11):
        Image.new("RGB", (20, 20), (i, 0, 0)).save(tmp_path / f"img{i}.png")
    frames, _, clip = read(tmp_path)
    assert [frame[0, 0, 0] for frame in frames] == [1, 2, 9, 10, 11]
    assert clip.left_out == ()
    film("a.mp4", frames=2)
    frame = Image.new("RGB", (20, 20), "red")
    frame.save(tmp_path / "z.gif", save_all=True, append_images=[Image.new("RGB", (20, 20))])
    assert read(tmp_path)[2].left_out == (
        "1 of the files in it that are videos",
        "all but the first of z.gif's pictures",
    )


def test_what_lies_before_an_end_beyond_the_cut_is_missed_too(film):
    path = film("a.mkv", frames=100, audio="aac")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert "cut off" in read(path, end=3.8)[2].damage
    assert read(path, end=0.5)[2].damage is None


def test_another_video_in_the_file_is_told(tmp_path):
    path = str(tmp_path / "a.mkv")
    with av.open(path, "w") as file:
        for _ in range(2):
            video = file.add_stream("ffv1", rate=25)
            video.width, video.height, video.pix_fmt = 32, 32, "yuv420p"
        for video in file.streams.video:
            frame = av.VideoFrame.from_ndarray(np.zeros((48, 32), np.uint8), "yuv420p")
            file.mux([*video.encode(frame), *video.encode()])
    assert read(path)[2].left_out == ("video stream 1",)


def test_covers_and_attachments_are_told(tmp_path):
    cover = io.BytesIO()
    Image.new("RGB", (32, 32)).save(cover, "JPEG")
    path = str(tmp_path / "a.mkv")
    with av.open(path, "w") as file:
        video = file.add_stream("ffv1", rate=25)
        video.width, video.height, video.pix_fmt = 32, 32, "yuv420p"
        file.add_attachment("cover.jpg", "image/jpeg", cover.getvalue())
        file.add_attachment("font.ttf", "font/ttf", b"letters")
        frame = av.VideoFrame.from_ndarray(np.zeros((48, 32), np.uint8), "yuv420p")
        file.mux([*video.encode(frame), *video.encode()])
    assert read(path)[2].left_out == ("video stream 1, a cover", "attachment stream 2")


def test_a_video_takes_no_rate(film):
    with pytest.raises(FaststyError, match=r"a\.mkv: a video has its own rate"):
        read(film("a.mkv", frames=2), rate=25)


def test_animations_in_webp_are_read_or_refused_with_a_reason(tmp_path):
    """PyAV reads them from 19 on."""
    frames = [Image.new("RGB", (32, 32), (90 * i, 0, 0)) for i in range(3)]
    options = {"duration": [100, 300, 100], "lossless": True}
    frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:], **options)
    if int(av.__version__.split(".")[0]) < 19:
        with pytest.raises(FaststyError, match="animations in WebP cannot be read"):
            read(tmp_path / "a.webp")
        return
    shown, times, clip = read(tmp_path / "a.webp")
    assert [round(frame[..., 0].mean()) for frame in shown] == [0, 90, 180]
    assert times == pytest.approx([0, 0.1, 0.4])
    assert clip.damage is None


def test_a_damaged_picture_ends_the_row_and_another_size_is_refused(tmp_path):
    for i in range(4):
        Image.new("RGB", (20, 30 + (i == 3))).save(tmp_path / f"{i}.png")
    with pytest.raises(
        FaststyError, match=r"3\.png: is 20 x 31, the pictures before it are 20 x 30"
    ):
        read(tmp_path)
    (tmp_path / "2.png").write_bytes(b"no picture")
    frames, _, clip = read(tmp_path)
    assert len(frames) == 2
    assert "2.png: not a picture" in clip.damage


def test_a_film_that_is_cut_off_gives_what_it_has(film):
    for name in ("a.mkv", "a.ts"):
        path = film(name, frames=100, audio="aac")
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        frames, _, clip = read(path)
        assert 20 < len(frames) < 80
        if name == "a.mkv":
            assert "cut off at" in clip.damage


def test_a_film_that_is_whole_is_not_called_cut_off(tmp_path):
    for name, times in [("still.mkv", [0, 1, 2, 3, 500]), ("late.mkv", [2000, 2004, 2008, 2012])]:
        with av.open(str(tmp_path / name), "w") as file:
            stream = file.add_stream("libx264", rate=25, options={"bf": "2"})  # which dts waits for
            stream.width, stream.height = 64, 48
            stream.codec_context.time_base = Fraction(1, 100)
            for time in times:
                frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), time % 251, np.uint8))
                frame.pts, frame.time_base = time, Fraction(1, 100)
                file.mux(stream.encode(frame))
            file.mux(stream.encode(None))
        _, found, clip = read(tmp_path / name)
        assert found == [(time - times[0]) / 100 for time in times]
        assert clip.damage is None


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_a_longer_stream_that_nobody_reads_is_no_damage(film, name):
    one, two = film(f"one-{name}", frames=10), film(f"two-{name}", frames=100)
    path = one.with_name(name)
    with av.open(str(one)) as short, av.open(str(two)) as long, av.open(str(path), "w") as file:
        for old in (short, long):
            stream = file.add_stream_from_template(old.streams.video[0])
            stream.disposition = DEFAULT if old is short else av.stream.Disposition(0)
        for old, stream in zip((short, long), file.streams, strict=True):
            for packet in old.demux(video=0):
                if packet.dts is not None:
                    packet.stream = stream
                    file.mux(packet)
    frames, _, clip = read(path)
    assert len(frames) == 10
    assert clip.damage is None


def test_a_part_of_a_film_without_times(film):
    frames, times, clip = read(film("a.h264", frames=20), start=0.4, end=0.6)
    assert times == pytest.approx([0, 0.04, 0.08, 0.12, 0.16])
    whole = read(clip.name)[0]
    np.testing.assert_array_equal(frames, whole[10:15])


def test_a_stream_that_appears_on_the_way_is_passed_by(film, monkeypatch):
    class Growing:
        """PyAV with a file that got another stream: by chance it asks for that at the end."""

        def __init__(self, file):
            self._file = file

        def __getattr__(self, name):
            return getattr(self._file, name)

        def demux(self, *streams):
            yield from self._file.demux(*streams)
            raise IndexError("list index out of range")

    opened = clips._open
    monkeypatch.setattr(clips, "_open", lambda *given: Growing(opened(*given)))
    frames, _, clip = read(film("a.ts", frames=10))
    assert len(frames) == 10
    assert clip.damage is None


def test_times_that_are_damaged_are_no_new_beginning(film, monkeypatch):
    class Damaged:
        """PyAV with a file of which some packets of sound, then a frame, carry nonsense."""

        def __init__(self, file):
            self._file = file

        def __getattr__(self, name):
            return getattr(self._file, name)

        def demux(self, *streams):
            counts = Counter()
            for packet in self._file.demux(*streams):
                kind = packet.stream.type
                counts[kind] += 1
                if counts[kind] in {"audio": range(60, 66), "video": (70,)}[kind] and packet.dts:
                    packet.dts -= round(1.2 / packet.time_base)
                    packet.pts -= round(1.2 / packet.time_base)
                yield packet

    opened = clips._open
    monkeypatch.setattr(clips, "_open", lambda *given: Damaged(opened(*given)))
    _, times, clip = read(film("a.ts", frames=100, audio="aac"))
    assert len(times) == 100
    assert np.sum(np.abs(np.array(times) - np.arange(100) / 25) > 0.1) <= 1
    sound = [packet.pts * packet.time_base for packet in clip.packets]
    late = np.abs(np.diff(np.array(sound, float)) - 1024 / 48000) > 0.005
    assert np.sum(late) <= 2
    assert max(sound) - min(sound) == pytest.approx(4, abs=0.1)


def test_damage_in_the_middle_is_told(film):
    path = film("a.mp4", frames=50)
    data = bytearray(path.read_bytes())
    middle = data.index(b"mdat") + (len(data) - data.index(b"mdat")) // 3
    data[middle : middle + 500] = os.urandom(500)
    path.write_bytes(data)
    frames, _, clip = read(path)
    assert len(frames) > 20
    assert "damaged" in clip.damage


def test_frames_that_change_their_size_are_refused(film, tmp_path):
    one, two = film("1.h264", frames=3), film("2.h264", frames=3, size=(48, 48))
    both = tmp_path / "both.h264"
    both.write_bytes(one.read_bytes() + two.read_bytes())
    clip = open_clip(both)
    with pytest.raises(FaststyError, match=r"change their size at .* from 64 x 48 to 48 x 48"):
        list(clip.frames())


def test_what_is_no_film_is_one_sentence(film, tmp_path):
    whole = film("a.mp4", frames=3)
    (tmp_path / "text.txt").write_text("hello\nyou")
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "cut.mp4").write_bytes(whole.read_bytes()[:200])
    (tmp_path / "noise.mp4").write_bytes(os.urandom(3000))
    with av.open(str(tmp_path / "song.m4a"), "w", format="mp4") as file:
        sound = file.add_stream("aac", rate=48000)
        wave = av.AudioFrame.from_ndarray(np.zeros((2, 4800), np.float32), "fltp", "stereo")
        wave.sample_rate = 48000
        file.mux([*sound.encode(wave), *sound.encode(None)])
    film("narrow.mkv", codec="ffv1", pixels="yuv444p", size=(2, 48))
    (tmp_path / "folder").mkdir()
    for name, reason in [
        ("missing.mp4", "No such file"),
        ("text.txt", "not a video"),
        ("empty.mp4", "zero bytes"),
        ("cut.mp4", "is cut off: the index of its frames, at its end, is missing"),
        ("noise.mp4", "not a video"),
        ("song.m4a", "has no video in it, only audio"),
        ("narrow.mkv", "its frames are 2 x 48; faststy paints from 16 x 16 pixels on"),
        ("folder", "no pictures in this folder"),
        ("frame_%03d.png", "no file has such a name"),
        (f"{'a' * 300}.mp4", "File name too long"),
    ]:
        with pytest.raises(FaststyError, match=reason) as caught:
            open_clip(tmp_path / name)
        assert str(caught.value).startswith(f"{tmp_path / name}: ")
    for data, reason in [(whole.read_bytes()[:-900], "is cut off"), (b"noise", "not a video")]:
        with pytest.raises(FaststyError, match=f"^the stream: {reason}"):
            open_clip(io.BytesIO(data))
    with pytest.raises(FaststyError, match="there is no frame in it at or after 9 s"):
        open_clip(whole, start=9)
    with pytest.raises(FaststyError, match="there is nothing between 2 s and 1 s"):
        open_clip(whole, start=2, end=1)


def test_named_pipes_are_read_and_a_stop_ends_them(film, tmp_path):
    """Also MP4, which must be put down first, and what a shell calls /dev/fd/63."""
    fifo = tmp_path / "fifo.mkv"
    os.mkfifo(fifo)
    for name in ("a.mkv", "a.mp4"):
        data = film(name, frames=5).read_bytes()
        feeder = threading.Thread(target=lambda data=data: fifo.write_bytes(data))
        feeder.start()
        assert len(read(fifo)[0]) == 5
        feeder.join()
        reading, writing = os.pipe()
        threading.Thread(target=os.write, args=(writing, data)).start()
        threading.Timer(0.5, os.close, [writing]).start()
        assert len(read(f"/dev/fd/{reading}")[0]) == 5
        os.close(reading)


@pytest.mark.parametrize("before", [0, 6, 900])
@pytest.mark.parametrize("name", ["a.mkv", "a.mp4"])
def test_a_stop_ends_the_wait_for_the_first_frame(film, tmp_path, name, before):
    stop = threading.Event()
    threading.Timer(0.3, stop.set).start()
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    data = film(name, frames=5, size=(128, 96)).read_bytes()[:before]
    writing = os.open(fifo, os.O_RDWR) if before else None  # else there is no writer at all
    if writing is not None:
        os.write(writing, data)
    with pytest.raises(StoppedError, match=f"{fifo}: stopped before there was a frame"):
        open_clip(fifo, stop=stop)
    if writing is not None:
        os.close(writing)


def test_times_and_rates_that_no_film_has_are_one_sentence(film, tmp_path):
    path = film("a.mp4", frames=2)
    for options in ({"start": 1e15}, {"end": 1e300}, {"start": 1e9, "end": 1e10}):
        with pytest.raises(FaststyError, match=r"start and end lie within 1e\+09 s; .* does not$"):
            open_clip(path, **options)
    with pytest.raises(FaststyError, match="there is no frame in it at or after 1e\\+09 s"):
        open_clip(path, start=1e9)
    assert len(read(path, end=1e9)[0]) == 2
    Image.new("RGB", (20, 30)).save(tmp_path / "0.png")
    for rate in (0, 1e-4, Fraction(1, 101), 1001, float("inf"), float("nan")):
        with pytest.raises(FaststyError, match=r"frames per second; use 0\.01 to 1000$"):
            open_clip(tmp_path / "%d.png", rate=rate)
    assert len(read(tmp_path / "%d.png", rate=0.01)[0]) == 1
