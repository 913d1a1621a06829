"""Times go on, whatever those of the packets do."""

from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest

from faststy.stylization.timeline import Timeline

STREAMS = {
    kind: SimpleNamespace(index=index, type=kind)
    for index, kind in enumerate(("video", "audio", "subtitle"))
}


def packet(kind, time, late=0.0, step=0.1):
    """In milliseconds; `late`: how far its picture is shown later."""
    dts = round(1000 * time)
    return SimpleNamespace(
        stream=STREAMS[kind],
        dts=dts,
        pts=dts + round(1000 * late),
        duration=round(1000 * step),
        time_base=Fraction(1, 1000),
    )


def laid_out(packets, is_joinable=True):
    """By kind, the times in seconds that packets get, and how many of these were damaged."""
    times, count = {kind: [] for kind in STREAMS}, 0
    for mended, is_damaged in Timeline(is_joinable=is_joinable).mended(packets):
        times[mended.stream.type].append(mended.pts / 1000)
        count += is_damaged
    return times, count


def recording(begin, seconds=3, kinds=("video", "audio"), step=0.1):
    count = round(seconds / step)
    return [packet(kind, begin + i * step, step=step) for i in range(count) for kind in kinds]


@pytest.mark.parametrize("second", [0, 1.5, 40, 5000])
@pytest.mark.parametrize("late", [0, 0.2])
def test_a_recording_follows_the_one_before(second, late):
    joined = recording(20) + recording(second)
    for each in joined:
        each.pts += round(1000 * late)
    times, damaged = laid_out(joined)
    for kind in ("video", "audio"):
        np.testing.assert_allclose(times[kind], 20 + late + np.arange(60) / 10, atol=1e-6)
    assert damaged == 0


def test_streams_move_alike_though_one_lies_behind_in_the_file():
    first, second = (
        [*recording(begin, kinds=("video",)), *recording(begin, kinds=("audio",))]
        for begin in (7, 0)
    )
    times, damaged = laid_out(first + second)
    for kind in ("video", "audio"):
        np.testing.assert_allclose(times[kind], 7 + np.arange(60) / 10, atol=1e-6)
    assert damaged == 0


def test_a_recording_without_sound_between_others():
    joined = recording(9) + recording(5, kinds=("video",)) + recording(1)
    times, damaged = laid_out(joined)
    np.testing.assert_allclose(times["video"], 9 + np.arange(90) / 10, atol=1e-6)
    sound = [*range(30), *range(60, 90)]
    np.testing.assert_allclose(times["audio"], 9 + np.array(sound) / 10, atol=1e-6)
    assert damaged == 0


@pytest.mark.parametrize(
    ("is_joinable", "first", "by"),
    [
        *((True, first, by) for first in (10, 40) for by in (3600, 11, -2, -1.2, -3600)),
        # Where dts is guessed, little disorder among the first packets is none.
        *((False, 40, by) for by in (3600, 11, -2, -1.2, -3600)),
        *((False, 10, by) for by in (3600, -3600)),
    ],
)
@pytest.mark.parametrize("count", [1, 4])
def test_times_that_come_back_were_damaged(is_joinable, first, by, count):
    packets = recording(5000, seconds=6)
    for each in packets[2 * first : 2 * (first + count) : 2]:
        each.dts, each.pts = (time + round(1000 * by) for time in (each.dts, each.pts))
    times, damaged = laid_out(packets, is_joinable)
    for kind in ("video", "audio"):
        np.testing.assert_allclose(times[kind], 5000 + np.arange(60) / 10, atol=1e-6)
    assert damaged == count


@pytest.mark.parametrize("field", ["pts", "dts"])
def test_one_of_the_times_of_a_packet_may_be_damaged(field):
    packets = recording(100)
    setattr(packets[20], field, getattr(packets[20], field) + 3_600_000)
    times, damaged = laid_out(packets)
    np.testing.assert_allclose(times["video"], 100 + np.arange(30) / 10, atol=1e-6)
    assert damaged == 1


def in_mpeg(each):
    """Its times are as .ts has them."""
    each.dts, each.pts = (90 * time % 2**33 for time in (each.dts, each.pts))
    each.duration, each.time_base = 90 * each.duration, Fraction(1, 90_000)
    return each


def test_sound_may_begin_just_before_0():
    first = [*recording(0, kinds=("video",)), *recording(-0.1, seconds=3.1, kinds=("audio",))]
    second = [*recording(0, kinds=("video",)), *recording(-0.1, seconds=3.1, kinds=("audio",))]
    mended = [*Timeline(is_joinable=True).mended(map(in_mpeg, first + second))]
    times = [each.pts / 90_000 for each, _ in mended if each.stream.type == "audio"]
    np.testing.assert_allclose(times[:31], np.arange(-1, 30) / 10, atol=1e-6)
    np.testing.assert_allclose(np.diff(times[31:]), 0.1, atol=1e-6)
    assert times[31] == pytest.approx(3, abs=0.11)
    assert not any(is_damaged for _, is_damaged in mended)


def test_the_clock_of_mpeg_goes_round():
    packets = recording(95_430, seconds=30)
    for each in map(in_mpeg, packets):
        each.dts, each.pts = (t + (2**33 if t < 2**32 else 0) for t in (each.dts, each.pts))
    mended = [*Timeline(is_joinable=True).mended(packets)]
    times = [each.pts / 90_000 for each, _ in mended if each.stream.type == "video"]
    np.testing.assert_allclose(times, 95_430 + np.arange(300) / 10, atol=1e-3)
    assert not any(is_damaged for _, is_damaged in mended)


@pytest.mark.parametrize("late", [0, 0.2])
def test_a_recording_may_pass_the_end_of_the_clock_of_mpeg(late):
    """FFmpeg goes on beyond it."""
    end = 2**33 / 90_000
    packets = recording(end - 15, seconds=30)
    for each in packets:
        each.dts, each.pts = 90 * each.dts, 90 * (each.pts + round(1000 * late))
        each.duration, each.time_base = 90 * each.duration, Fraction(1, 90_000)
    stamps = [(each.dts, each.pts) for each in packets]
    mended = [*Timeline(is_joinable=True).mended(packets)]
    assert [(each.dts, each.pts) for each, _ in mended] == stamps
    assert not any(is_damaged for _, is_damaged in mended)


def test_what_overlaps_by_little_moves_with_its_recording():
    first, video = recording(0, seconds=10), recording(8.7, seconds=10, kinds=("video",))
    sound = recording(9.05, seconds=9.6, kinds=("audio",))
    second = sorted(video + sound, key=lambda each: each.dts)
    times, damaged = laid_out(first + second)
    shifts = [times[kind][100] - begin for kind, begin in (("video", 8.7), ("audio", 9.05))]
    assert shifts[0] == pytest.approx(1.3, abs=0.01)
    assert shifts[1] == pytest.approx(1.3, abs=0.01)
    assert damaged == 0


def test_a_clock_that_stands_holds_nothing_up():
    stuck = [packet("video", 9000) for _ in range(5000)]
    timeline = Timeline(is_joinable=True)
    taken = 0

    def counted():
        nonlocal taken
        for each in recording(0) + stuck:
            taken += 1
            yield each

    for number, _ in enumerate(timeline.mended(counted())):
        assert taken - number <= 101


def test_the_first_time_of_a_stream_may_be_damaged():
    packets = recording(7)
    packets[1].dts, packets[1].pts = (time + 3_600_000 for time in (packets[1].dts, packets[1].pts))
    times, damaged = laid_out(packets)
    np.testing.assert_allclose(times["audio"], 7 + np.arange(30) / 10, atol=1e-6)
    assert damaged == 1


def test_sound_that_only_the_second_recording_has():
    first, second = recording(9, kinds=("video",)), recording(1)
    times, damaged = laid_out(first + second)
    np.testing.assert_allclose(times["video"], 9 + np.arange(60) / 10, atol=1e-6)
    np.testing.assert_allclose(times["audio"], 12 + np.arange(30) / 10, atol=1e-6)
    assert damaged == 0


def test_the_last_time_may_be_damaged():
    packets = recording(0)
    packets[-1].dts += 3_600_000
    packets[-1].pts += 3_600_000
    times, damaged = laid_out(packets)
    np.testing.assert_allclose(times["audio"], np.arange(30) / 10, atol=1e-6)
    assert damaged == 1


def test_a_gap_of_one_stream_is_no_new_recording():
    packets = recording(0, seconds=60)
    packets = [p for p in packets if p.stream.type == "video" or not 10_000 < p.dts < 50_000]
    expected = [p.pts / 1000 for p in packets if p.stream.type == "audio"]
    times, damaged = laid_out(packets)
    np.testing.assert_allclose(times["audio"], expected)
    np.testing.assert_allclose(times["video"], np.arange(600) / 10, atol=1e-6)
    assert damaged == 0


@pytest.mark.parametrize("is_joinable", [True, False])
def test_slides_stand_as_long_as_they_do(is_joinable):
    times, damaged = laid_out([packet("video", 60 * i) for i in range(4)], is_joinable)
    assert times["video"] == [0, 60, 120, 180]
    assert damaged == 0


def test_the_pictures_of_slides_may_be_reordered():
    shown = [0, 36, 24, 12, 72, 60, 48]
    slides = [packet("video", 12 * i, late=pts - 12 * i) for i, pts in enumerate(shown)]
    sound = recording(0, seconds=84, kinds=("audio",))
    times, damaged = laid_out(sorted(sound + slides, key=lambda each: each.dts))
    assert times["video"] == shown
    assert damaged == 0


@pytest.mark.parametrize("first", [(None, None), (0, 4), (0, 20)])
def test_the_first_dts_of_formats_without_them_may_be_any(first):
    """FFmpeg guesses them from pts, until it knows how pictures are reordered."""
    packets = [packet("video", 5 * i) for i in range(30)]
    for each, dts in zip(packets, first, strict=False):
        each.dts = None if dts is None else 1000 * dts
    packets[3].dts = None
    shown = [each.pts / 1000 for each in packets]
    times, damaged = laid_out(packets, is_joinable=False)
    assert times["video"] == shown
    assert damaged == 0


def test_subtitles_move_with_the_recording():
    first, second = recording(0), recording(40)
    times, _ = laid_out([*first, *second[:20], packet("subtitle", 41), *second[20:]])
    assert times["subtitle"] == [pytest.approx(4)]
    assert laid_out([packet("subtitle", 7), *first])[0]["subtitle"] == [7]


def test_packets_without_times_keep_their_order():
    packets = recording(10, kinds=("video",)) + recording(0, kinds=("video",))
    for number, each in enumerate(packets):
        each.number = number
    for at in (0, 7, 31, 32):
        packets[at].dts = packets[at].pts = None
    mended = [each for each, _ in Timeline(is_joinable=True).mended(packets)]
    assert [each.number for each in mended] == [*range(60)]
    assert mended[-1].pts == pytest.approx(15_900, abs=200)
