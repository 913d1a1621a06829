"""Frames in, painted frames out: video, cameras, and whatever comes as arrays."""

from __future__ import annotations

import atexit
import math
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Generic, TypedDict, TypeVar
from weakref import WeakSet

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from faststy import ops
from faststy.nn.plain import PlainGenerator, PlainRepairer
from faststy.stylization import batches, scenes, strokes
from faststy.stylization.statistics import NormStatistics, is_flat
from faststy.stylization.stylizer import (
    Style,
    Stylizer,
    blend,
    mixing_weights,
    with_colors_of,
)

if TYPE_CHECKING:
    from typing_extensions import Unpack

T = TypeVar("T")
Frame = npt.NDArray[np.uint8]
ENTRANCE = "stem_norm"  # the first norm: what it sees depends on the frame alone
AIM_EVERY = 10  # frames from one look at a frame's own statistics to the next: it takes a while
SETTLED = 0.05  # a frame whose entrance moved less since then, in deviations, needs no look
POLL = 0.1  # seconds from one look at somebody's wish to stop to the next, while nothing comes


class Dials(TypedDict, total=False):
    """What can be turned while frames are painted; as the arguments of `Stylizer.painter`."""

    style: Style | None
    strength: float
    repair: float | None
    keep_color: bool
    stroke: int | None
    half_life: float


@dataclass(frozen=True)
class _Settings:
    style: dict[str, float]
    strength: float = 1.0
    repair: float | None = None
    keep_color: bool = False
    stroke: int | None = None
    half_life: float = 12.0

    def stroke_of(self, frame: Frame | Tensor) -> int:
        """That of a frame [H, W, 3]."""
        return self.stroke or strokes.stroke_for(frame.shape[0], frame.shape[1])


class FramePainter:
    """Paints frames that belong together, one after the other; threads may share it.

    The statistics that the generator normalises by move slowly from frame to frame, so that what
    enters or leaves the picture does not change how everything else is painted. They start anew
    with another size, stroke or style, and at a cut. What fades does so in the painting, too.

    Args:
        stylizer: whose model paints.
        dials: style, strength, repair, keep_color and stroke as in a call of the stylizer, and
            half_life: after so many frames the statistics have gone half the way to those of new
            frames. 0: each frame has its own, as a picture has; infinite: those of the first one.

    Attributes:
        stylizer: as given.
        in_batches: it paints several frames together: on a GPU, as a CPU gains nothing by that.
    """

    def __init__(self, stylizer: Stylizer, **dials: Unpack[Dials]) -> None:
        self.stylizer = stylizer
        self._lock = threading.Lock()  # of those who paint
        self._turning = threading.Lock()  # of those who turn dials: they do not wait for a painting
        self.in_batches = stylizer.device.type == "cuda"
        model = stylizer.model
        self._repairer = None
        self._dtype = torch.float16 if stylizer.device.type == "cuda" else torch.float32
        if model.repairer is not None:
            self._repairer = PlainRepairer(model.repairer, self._dtype)
        self._settings = _Settings(mixing_weights(None, stylizer.styles))
        self._net: PlainGenerator | None = None
        self._style: dict[str, float] = {}  # that of the net
        self._watcher: PlainGenerator | None = None  # the same net, for frames' own statistics
        self._statistics = NormStatistics({})
        self._aim = NormStatistics({})  # what they move towards
        self._frames_since = 0
        self._entrance = torch.empty(0)  # what the first norm saw of the last frame
        self._looked_at = torch.empty(0)  # that of the frame whose own statistics are the aim
        self._stale = True  # those are of other frames
        self._dim = math.inf  # contrast of the frame before, while a scene appears from nothing
        self._waited = 0  # frames since that grew
        self._held = False  # those are for frames of all sizes
        self._size: Sequence[int] = ()
        self._step = batches.Recorder(self._paint_slowly)
        self.set(**dials)

    @property
    def backend(self) -> str:
        """What paints, for people."""
        device = self.stylizer.device.type
        if device == "cpu":
            return "C++ extension" if _is_native() else "PyTorch (the C++ extension is faster)"
        return f"{device}, {str(self._dtype).removeprefix('torch.')}"

    def set(self, **dials: Unpack[Dials]) -> None:
        """Turns dials, from the next frame on. Raises as a call does; then none turns."""
        for name in dials.keys() - Dials.__annotations__:
            raise TypeError(
                f"unknown dial '{name}'; expected one of {', '.join(Dials.__annotations__)}"
            )
        changes: dict[str, Any] = dict(dials)
        if "style" in dials:
            changes["style"] = mixing_weights(dials["style"], self.stylizer.styles)
        with self._turning:
            turned = replace(self._settings, **changes)
            self.stylizer.check_dials(turned.strength, turned.repair)
            if turned.stroke not in (None, *strokes.SIZES):
                raise ValueError(f"stroke is {turned.stroke}; expected 1, 2 or 4")
            if not turned.half_life >= 0:
                raise ValueError(f"half_life is {turned.half_life}; expected 0 or more frames")
            self._settings = turned

    def hold(self, frames: Tensor) -> None:
        """Takes the statistics of `frames`, uint8 ``[N, H, W, 3]``, all together, for good.

        If these are flat, of a single colour, it takes those of the first frame that is not.
        """
        with self._lock, torch.inference_mode():
            self.set(half_life=math.inf)
            self._make_net(self._settings.style)
            self._held, self._stale = True, False
            stroke = self._settings.stroke_of(frames[0])
            self._start_small(strokes.shrink(frames.to(self.stylizer.device), stroke))

    def reset(self) -> None:
        """Forgets the statistics, as after a jump in time."""
        self._dim, self._waited = math.inf, 0
        self._stale = True  # whoever paints looks at it once a frame: that needs no lock

    @property
    def at_a_time(self) -> int:
        """How many frames `batch` is best given next."""
        if not self.in_batches or self._stale:
            return 1
        return min(batches.SIZES[0], self._until_look(self._settings))

    def __call__(self, frame: Frame) -> Frame:
        """Paints `frame`, uint8 ``[H, W, 3]``, into a new array. Raises ValueError for another,
        and TypeError for what is no array."""
        return self.batch([frame])[0]

    def batch(self, frames: Sequence[Frame]) -> list[Frame]:
        """What calls with each of `frames` would give, which may differ in size; on a GPU sooner.

        Painted together there, frames also share memory: who keeps one keeps all.
        """
        for frame in frames:
            expected = "expected a NumPy array, uint8 [H, W, 3]"
            if not isinstance(frame, np.ndarray):
                raise TypeError(f"frame is a {type(frame).__name__}; {expected}")
            if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or not frame.size:
                raise ValueError(f"frame is {frame.dtype} {list(frame.shape)}; {expected}")
        painted: list[Frame] = []
        with self._lock, torch.inference_mode():
            while len(painted) < len(frames):
                some = self._paint_some(frames[len(painted) :], self._settings)
                painted.extend(some.cpu().contiguous().numpy())
        return painted

    def paint_picture(self, photo: Frame) -> tuple[Frame, npt.NDArray[np.float32] | None]:
        """Paints a single picture, uint8 ``[H, W, 3]``, by its own statistics.

        Also gives where the painting before repair lost content of the photo, float32 ``[H, W]`` in
        0…1; None when the model has no repairer.
        """
        lost = None
        with self._lock, torch.inference_mode():
            settings = self._settings
            self._make_net(settings.style)
            frame = self._on_device([photo])
            painted = self._start(frame, settings)
            if self._repairer is not None:
                painted = self._repairer(painted, frame, self._strength_of_repair(settings))
                lost = self._repairer.lost_content(*photo.shape[:2])[0, 0].cpu().numpy()
            self.reset()
            return self._tone(painted, frame, settings)[0].cpu().numpy(), lost

    def on_device(self, frames: Tensor) -> Tensor:
        """`batch` for frames that are on the stylizer's device already: uint8 ``[N, H, W, 3]``.

        What is painted stays there, too, as a new tensor like `frames`. Nobody waits for the device
        unless the statistics move: then for a look at them, a few numbers, once a batch.

        Raises ValueError for another dtype, shape or device.
        """
        device = next(self.stylizer.model.generator.parameters()).device  # with its number
        sound = frames.dtype == torch.uint8 and frames.ndim == 4 and frames.shape[3] == 3
        if not sound or 0 in frames.shape[1:] or frames.device != device:
            got = f"{frames.dtype} {list(frames.shape)} on {frames.device}"
            raise ValueError(f"frames are {got}; expected uint8 [N, H, W, 3] on {device}")
        painted: list[Tensor] = []
        with self._lock:
            while (done := sum(map(len, painted))) < len(frames):
                with torch.inference_mode():
                    some = self._paint_some(frames[done:], self._settings)
                # The next step overwrites it, and an inference tensor would refuse to be changed.
                painted.append(some.clone())
        return painted[0] if len(painted) == 1 else torch.cat(painted or [frames])

    def _paint_some(self, frames: Sequence[Frame] | Tensor, settings: _Settings) -> Tensor:
        """Paints the first of `frames`, or finds that there the scene changes; on the device where
        `frames` are."""
        if self._net is None or settings.style != self._style:
            self._make_net(settings.style)
        size = (*frames[0].shape, settings.stroke_of(frames[0]))
        if size != self._size and not self._held:
            self._size = size
            self.reset()
        if self._stale or settings.half_life == 0:
            return self._begin(self._on_device(frames[:1]), settings)
        # The statistics of a batch are known beforehand: those of a frame are looked at after it.
        most = self._until_look(settings) if self.in_batches else 1
        photos = self._on_device(frames[: batches.length(frames, most)])
        painted, *entrances = self._step(photos, settings)
        if isinstance(frames, Tensor):
            entrances = batches.to_host(*entrances) if entrances else []
        else:
            painted, *entrances = batches.to_host(painted, *entrances)
        cut = self._cut(entrances[0]) if entrances else None
        if cut is not None:
            self._stale = True  # what is left is painted again
        elif entrances:
            shares = scenes.shares_painted(entrances[0], self._looked_at)
            painted = _shown(frames[: len(photos)], painted, shares)
            self._entrance = entrances[0][-1]
            self._frames_since += len(photos)
            self._take_aim(photos[-1:], settings)
        return painted[:cut]

    def _on_device(self, frames: Sequence[Frame] | Tensor) -> Tensor:
        if isinstance(frames, Tensor):
            return frames
        if self.in_batches:
            return batches.to_device(frames, self.stylizer.device)
        return torch.from_numpy(np.require(frames[0], requirements=["C", "W"]))[None]

    def _paint_slowly(self, frames: Tensor, settings: _Settings) -> tuple[Tensor, ...]:
        """Paints by the statistics and moves these, in place; also what the first norm sees of
        each frame, [N, 2, C], unless they never move."""
        assert self._net is not None
        look = settings.half_life < math.inf
        share = 1 - 0.5 ** (1 / settings.half_life)  # 0 when it is infinite
        each = None
        if look and len(frames) > 1:
            each = self._statistics.on_the_way(self._aim, share, len(frames))
        else:  # one set of statistics, which convolutions take over
            self._statistics.approach(self._aim, share)
            self._net.fix(self._statistics.moments)
        stroke = settings.stroke_of(frames[0])
        small = strokes.shrink(frames, stroke)
        painted = self._net.paint(small, look=look, moments=each)
        painted = strokes.enlarge(painted, stroke, *frames.shape[1:3])
        done = self._finish(painted, frames, settings)
        seen = self._net.seen.get(ENTRANCE)
        if seen is None:
            return (done,)
        return done, seen.view(len(frames), *seen.shape[-2:])

    def _cut(self, entrances: Tensor) -> int | None:
        """The first frame of a batch that is of another scene than the one before it, if any."""
        before = torch.cat([self._entrance[None], entrances[:-1]])
        cuts = scenes.is_cut(self._looked_at, before, entrances)
        if not cuts.any():
            return None
        first = int(cuts.argmax())
        self._waited = 0
        self._dim = 0.0 if scenes.is_faded(before[first], self._looked_at) else math.inf
        return first

    def _finish(self, painted: Tensor, photo: Tensor, settings: _Settings) -> Tensor:
        """Repair, colours and strength, on uint8 [N, H, W, 3]."""
        repair = self._strength_of_repair(settings)
        if self._repairer is not None and repair > 0:
            painted = self._repairer(painted, photo, repair)
        return self._tone(painted, photo, settings)

    def _strength_of_repair(self, settings: _Settings) -> float:
        return 1.0 if settings.repair is None else settings.repair

    def _tone(self, painted: Tensor, photo: Tensor, settings: _Settings) -> Tensor:
        """Colours and strength, on uint8 [N, H, W, 3]."""
        if not settings.keep_color and settings.strength == 1:
            return painted
        x, y = (ops.from_pixels(frames, channels_last=True) for frames in (photo, painted))
        if settings.keep_color:
            y = with_colors_of(x, y)
        return ops.to_pixels(blend(x, y, settings.strength))

    def _begin(self, photo: Tensor, settings: _Settings) -> Tensor:
        """Paints the first frame of a scene, uint8 [1, H, W, 3], by its own statistics.

        Where a scene appears from black or another colour, by what its statistics may become: so it
        appears in the painting, too, instead of noise in full contrast. What grows begins anew;
        what does not has so little contrast, and the statistics move to its own.
        """
        self._stale = False
        film = settings.half_life > 0 and not self._held  # no picture, and no tile of one
        if film and is_flat(photo):
            self._stale, self._dim = True, 0.0
            return photo.clone()
        seen = scenes.contrast(photo) if film else math.inf
        dim, appears = seen < scenes.DIM, self._dim < math.inf
        grows = appears and seen > scenes.GROWS * self._dim
        self._waited = 0 if grows or seen < scenes.NOTHING else self._waited + 1
        self._stale = grows or (dim and self._waited < scenes.PATIENCE)
        self._dim = seen if self._stale else math.inf
        if not (dim or appears) or seen >= scenes.USUAL:
            return self._finish(self._start(photo, settings), photo, settings)
        later = scenes.unfaded(photo, scenes.USUAL / seen)
        self._start_small(strokes.shrink(later, settings.stroke_of(photo[0])))
        painted, *entrances = self._paint_slowly(photo, settings)
        if entrances:
            self._entrance = entrances[0][-1].cpu()
            if not self._stale:
                self._look_at(photo, settings)
        return _shown(photo, painted, [scenes.share_painted(seen / scenes.USUAL)])

    def _start(self, frames: Tensor, settings: _Settings) -> Tensor:
        """Paints by the frames' own statistics, and begins with these."""
        stroke = settings.stroke_of(frames[0])
        small = strokes.shrink(frames, stroke)
        return strokes.enlarge(self._start_small(small), stroke, *frames.shape[1:3])

    def _start_small(self, frames: Tensor) -> Tensor:
        assert self._net is not None
        if is_flat(frames):
            # All variances are 0, and norms would make pictures of rounding errors. The generator's
            # own convolutions have none here. What comes next starts anew.
            self._stale = True
            generator = self.stylizer.model.generator
            return ops.to_pixels(generator(ops.from_pixels(frames), self._weights()))
        painted = self._net.paint(frames, collect=True)
        seen = self._net.seen
        self._frames_since = 0
        self._entrance = self._looked_at = seen[ENTRANCE].cpu().clone()
        if not self._aim.moments:
            self._aim, self._statistics = NormStatistics(seen), NormStatistics(seen)
        else:  # in place, where a CUDA graph looks
            self._aim.approach(NormStatistics(seen), 1)
            self._statistics.approach(self._aim, 1)
        return painted

    def _until_look(self, settings: _Settings) -> int:
        """How many frames there are up to the one whose own statistics are looked at."""
        if settings.half_life == math.inf:
            return batches.SIZES[0]
        return max(1, _aim_every(settings.half_life) - self._frames_since)

    def _take_aim(self, frame: Tensor, settings: _Settings) -> None:
        """Now and then: the last frame's own statistics are what those that paint move towards.

        None are taken while the entrance stays where it was: no norm moves further than the first.
        What the norms of the painting net see will not do: each sees the delay of those before it,
        and a change would overshoot.
        """
        if self._frames_since < _aim_every(settings.half_life):
            return
        self._frames_since = 0
        if scenes.jump(self._looked_at, self._entrance) < SETTLED:
            return
        if not scenes.only_fades(self._entrance, self._looked_at):
            self._look_at(frame, settings)

    def _look_at(self, frame: Tensor, settings: _Settings) -> None:
        """Its own statistics are what those that paint move towards."""
        self._looked_at = self._entrance
        assert self._watcher is not None
        self._watcher(strokes.shrink(frame, settings.stroke_of(frame[0])), collect=True)
        self._aim.approach(NormStatistics(self._watcher.seen), 1)

    def _make_net(self, style: dict[str, float]) -> None:
        self._style = style
        generator = self.stylizer.model.generator
        self._net, self._watcher = (
            PlainGenerator(generator, self._weights(), self._dtype) for _ in range(2)
        )
        self._statistics, self._aim = NormStatistics({}), NormStatistics({})
        self._step = batches.Recorder(self._paint_slowly)
        self.reset()
        self._held = False

    def _weights(self) -> Tensor:
        weights = [self._style.get(name, 0.0) for name in self.stylizer.styles]
        return torch.tensor(weights, dtype=torch.float32, device=self.stylizer.device)


def _shown(frames: Sequence[Frame] | Tensor, painted: Tensor, shares: Sequence[float]) -> Tensor:
    """`painted`, uint8 [N, H, W, 3], where frames that fade show through; it is not changed."""
    if min(shares) == 1:
        return painted
    mixed = painted.clone()
    for frame, one, share in zip(frames, mixed, shares, strict=True):
        photo = torch.as_tensor(frame, device=one.device).float()
        one.copy_(torch.lerp(photo, one.float(), share).round_())
    return mixed


def _aim_every(half_life: float) -> int:
    """From how many frames the last one's own statistics are looked at."""
    return int(min(max(half_life, 1), AIM_EVERY))


def _is_native() -> bool:
    return any(i.op == "conv3x3" and i.name == "native" for i in ops.implementations())


def stream(
    frames: Iterable[Frame],
    painter: FramePainter,
    size: int | None = None,
    stop: threading.Event | None = None,
) -> Generator[Frame, None, None]:
    """`frames` painted, in their order: read in one thread, painted in another.

    `size` frames wait at most before and after the painter, by default 2, or a batch. One that
    paints in batches takes of what waits; it waits for no frame but the first. It ends once `stop`
    is set, and may be closed, also while `frames` gives nothing.
    """
    size = size or (batches.SIZES[0] if painter.in_batches else 2)
    reading = Prefetch(frames, size, _copy)  # some sources fill the same array again and again

    def paint() -> Iterator[Frame]:
        while group := reading.take(painter.at_a_time):
            yield from painter.batch(group)

    painting = Prefetch(paint(), size)

    def end() -> None:
        reading.stop()  # the painter's thread may wait for a frame
        painting.stop()
        painting.join()  # an interpreter that ends while torch works aborts
        reading.join(1)  # a camera or a pipe that gives no more must not hold us

    _ends.add(end)
    try:
        while painted := painting.take(1, stop):
            yield painted[0]
    finally:
        _ends.discard(end)
        end()


_ends: WeakSet[Callable[[], None]] = WeakSet()  # of the streams that are open


@atexit.register
def _end_all() -> None:
    """Who breaks a loop off seldom closes, and threads must not outlive the interpreter."""
    for end in list(_ends):
        end()


def _copy(frame: Any) -> Any:
    return frame.copy() if isinstance(frame, np.ndarray) else frame  # others are refused later


class Prefetch(Generic[T]):
    """`items`, taken by a thread of its own, up to `size` of them before they are asked for.

    They wait as `kept` makes them, in that thread.
    """

    def __init__(
        self, items: Iterable[T], size: int, kept: Callable[[T], T] = lambda item: item
    ) -> None:
        self._items, self._size, self._kept = items, size, kept
        self._ready: deque[T] = deque()
        self._changed = threading.Condition()
        self._ended = self._stopped = False
        self._problem: BaseException | None = None
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def take(self, most: int, stop: threading.Event | None = None) -> list[T]:
        """The next items as they wait, one or up to `most` together; none at the end.

        There it raises what `items` raised. None come after `stop`, either one.
        """
        with self._changed:
            # An event of somebody else's wakes nobody here: it is looked at now and then.
            while not (self._stopped or (stop is not None and stop.is_set())):
                if self._changed.wait_for(self._has_news, None if stop is None else POLL):
                    break
            else:
                return []
            group = [self._ready.popleft() for _ in range(min(most, len(self._ready)))]
            self._changed.notify_all()
        if not group and self._problem is not None:
            raise self._problem
        return group

    def stop(self) -> None:
        """Ends the thread once it has its item, and closes `items` there if it is a generator."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def join(self, patience: float | None = None) -> None:
        """Waits for the end of the thread, `patience` seconds at most."""
        if threading.current_thread() is not self._thread:  # which may be who drops the last stream
            self._thread.join(patience)

    def _has_news(self) -> bool:
        return bool(self._ready) or self._ended or self._stopped

    def _work(self) -> None:
        try:
            for item in map(self._kept, self._items):
                with self._changed:
                    self._changed.wait_for(lambda: len(self._ready) < self._size or self._stopped)
                    if self._stopped:
                        break
                    self._ready.append(item)
                    self._changed.notify_all()
            if isinstance(self._items, Generator):
                self._items.close()
        except BaseException as error:
            self._problem = error
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()
