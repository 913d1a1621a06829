"""Mends the times of packets, where recordings were joined and where single ones are damaged."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TypeAlias

import av

Packet: TypeAlias = "av.Packet[av.stream.Stream]"

BACK, AHEAD = 1, 10
"""Seconds, the most from a packet to the next: less back is disorder, less ahead is a gap."""
DEPTH = 17
"""Packets, the most that a picture may wait for in a decoder, and the first that FFmpeg needs to
guess their order where a format does not tell it."""
MPEG_UNIT, MPEG_TIMES = Fraction(1, 90_000), 2**33
"""Seconds, and how many of them there are in .ts and .mpg before they begin anew at 0."""
SURE, MOST_HELD = Fraction(1, 2), 100
"""Seconds in which packets agree on new times, and how many of them do, of a clock that stands:
one that is damaged may be that of several."""


@dataclass
class _Part:
    """One of the recordings that were joined, in seconds of its own clock."""

    shift: Fraction  # to its place in the whole
    end: Fraction  # how far its packets go


@dataclass
class _Track:
    """A stream of pictures or of sound."""

    part: int
    last: Fraction  # time of its newest packet
    is_guessed: bool = False  # FFmpeg does not know yet how its pictures are reordered
    count: int = 0  # of its packets before this one
    has_gaps: bool = False
    held: list[tuple[Packet, Fraction]] = field(default_factory=list)  # since its times jumped


class Timeline:
    """Lays the times of a file out so that they go on.

    Where times jump, and those of the next packets of the stream go on from there, a part begins:
    it is moved to the end of the one before. All streams move alike, each from where its own times
    jump, as some lie behind in the file. Where times come back, those between were damaged.
    """

    def __init__(self, *, is_joinable: bool) -> None:
        """`is_joinable`: files of the format can be joined as they are; gaps are rare in it."""
        self._is_joinable = is_joinable
        self._parts = [_Part(Fraction(0), Fraction(0))]
        self._tracks: dict[int, _Track] = {}

    def mended(self, packets: Iterable[Packet]) -> Iterator[tuple[Packet, bool]]:
        """The packets, and whether the time of each was damaged."""
        for packet in packets:
            if packet.stream.type == "subtitle":  # too few to tell anything by
                yield _moved(packet, self._parts[-1].shift), False
            else:
                yield from self._next(packet)
        for track in self._tracks.values():
            yield from self._settled(track)

    def _next(self, packet: Packet) -> Iterator[tuple[Packet, bool]]:
        track = self._tracks.get(packet.stream.index)
        is_torn = False
        if self._is_joinable:
            if packet.time_base == MPEG_UNIT:
                _unwrap(packet, None if track is None else track.last)
            is_torn = _is_torn(packet)
            if is_torn:
                packet.pts = packet.dts
        time = _time(packet)
        if track is None:
            end = self._parts[-1].end
            begin = end if time is None else time
            if self._jumped_to(begin):  # it is of a part that begins
                begin = end
            elif self._tracks and begin > end + AHEAD:  # it is damaged, if the next comes back
                begin = end - AHEAD
            track = _Track(len(self._parts) - 1, begin)
            self._tracks[packet.stream.index] = track
        is_told = self._is_joinable or packet.stream.type == "audio" or track.count >= DEPTH
        track.is_guessed, track.count = not is_told, track.count + 1
        if track.held:
            (_, first), (_, last) = track.held[0], track.held[-1]
            time = last if time is None else time
            if abs(time - last) < abs(time - track.last) and -BACK <= time - last <= AHEAD:
                track.held.append((packet, time))
                if time - first >= SURE or len(track.held) == MOST_HELD:
                    yield from self._settled(track)
                return
            yield from self._settled(track, time)
        time = track.last if time is None else time
        if self._goes_on(track, time) and not self._follows(track, time):
            yield self._placed(track, packet, time), is_torn
        else:
            track.held = [(packet, time)]

    def _goes_on(self, track: _Track, time: Fraction) -> bool:
        if track.is_guessed:
            return abs(time - track.last) <= DEPTH * AHEAD
        # A gap of one stream is none where others went on.
        end = max(track.last, self._parts[track.part].end)
        return track.last - BACK <= time <= end + AHEAD

    def _follows(self, track: _Track, time: Fraction) -> bool:
        """Whether it goes back, if by little, to where another stream has begun a part."""
        if time >= track.last:
            return False
        begun = track.part < len(self._parts) - 1 and abs(time - self._parts[-1].end) < AHEAD
        return begun or bool(self._jumped_to(time))

    def _settled(
        self, track: _Track, after: Fraction | None = None
    ) -> Iterator[tuple[Packet, bool]]:
        """The packets that were held: those of a part that begins, of a gap's end, or mended.

        `after` is the time of the next, where it does not go on from them.
        """
        if not track.held:
            return
        held, single = track.held, len(track.held) == 1
        back = after if after is not None and self._goes_on(track, after) else None
        goes_ahead = held[0][1] > track.last
        # Each far ahead of the one before: slides. In a format that is joined several are a part.
        is_slide = single and (track.has_gaps or (after is not None and after > held[0][1]))
        is_gap = goes_ahead and back is None and (is_slide or not self._is_joinable)
        is_damaged = back is not None or (single and not is_gap)
        if not is_damaged and not is_gap:
            track.part = self._part_of(track)
        track.has_gaps |= is_gap
        track.held = []
        if back is not None:
            steps = sum(_step(packet) for packet, _ in held) + _step(held[0][0])
            track.last = max(track.last, back - steps)
        for packet, time in held:
            if is_damaged:
                time = track.last + _step(packet)
                _set_time(packet, time)
            yield self._placed(track, packet, time), is_damaged

    def _part_of(self, track: _Track) -> int:
        """The number of the part that begins; it is a new one for the first of its streams."""
        tracks = self._jumped_to(track.held[0][1])
        number = max(len(self._parts) - 1, *(each.part + 1 for each in tracks))
        if number == len(self._parts):
            begin = min(_begin(*each.held[0]) for each in tracks)
            end = max(part.end + part.shift for part in self._parts)
            self._parts.append(_Part(end - begin, begin))
        return number

    def _jumped_to(self, time: Fraction) -> list[_Track]:
        held = [track for track in self._tracks.values() if track.held]
        return [track for track in held if abs(track.held[0][1] - time) < AHEAD]

    def _placed(self, track: _Track, packet: Packet, time: Fraction) -> Packet:
        part = self._parts[track.part]
        track.last = time
        part.end = max(part.end, _end(packet, time))
        return _moved(packet, part.shift)


def _time(packet: Packet) -> Fraction | None:
    """By `dts`; by `pts` only where that does not leap, as it does where pictures are reordered."""
    stamp = packet.dts
    if stamp is None and packet.stream.type != "video":
        stamp = packet.pts
    return None if stamp is None else stamp * packet.time_base


def _unwrap(packet: Packet, before: Fraction | None) -> None:
    """Moves the last of all times to just before 0, where sound may begin, as FFmpeg writes it.

    Not those that go on from the packet `before`: a recording that passes the last of times.
    """
    time = packet.pts if packet.dts is None else packet.dts
    if time is None:
        return
    is_last = MPEG_TIMES - AHEAD / MPEG_UNIT <= time < MPEG_TIMES
    goes_on = before is not None and abs(time * MPEG_UNIT - before) <= AHEAD
    if is_last and not goes_on:
        time -= MPEG_TIMES
    packet.dts = None if packet.dts is None else time
    if packet.pts is not None:  # the one nearest to it
        packet.pts += round((time - packet.pts) / MPEG_TIMES) * MPEG_TIMES


def _is_torn(packet: Packet) -> bool:
    """Whether one of its times is damaged, as they are further apart than pictures can wait."""
    if packet.pts is None or packet.dts is None:
        return False
    return abs(packet.pts - packet.dts) * packet.time_base > DEPTH * AHEAD


def _begin(packet: Packet, time: Fraction) -> Fraction:
    return time if packet.pts is None else packet.pts * packet.time_base


def _end(packet: Packet, time: Fraction) -> Fraction:
    return max(time, _begin(packet, time)) + (packet.duration or 0) * packet.time_base


def _moved(packet: Packet, shift: Fraction) -> Packet:
    units = round(shift / packet.time_base)
    packet.dts = None if packet.dts is None else packet.dts + units
    packet.pts = None if packet.pts is None else packet.pts + units
    return packet


def _step(packet: Packet) -> Fraction:
    """Seconds to the next packet."""
    return max(packet.duration or 0, 1) * packet.time_base


def _set_time(packet: Packet, time: Fraction) -> None:
    late = 0 if packet.dts is None or packet.pts is None else packet.pts - packet.dts
    packet.dts = round(time / packet.time_base)
    packet.pts = packet.dts + late
