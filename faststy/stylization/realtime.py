"""Frames in, painted frames out: video, cameras, and whatever comes as arrays."""

from __future__ import annotations

import contextlib
import math
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from faststy import ops
from faststy.nn.plain import PlainGenerator, PlainRepairer
from faststy.stylization.statistics import NormStatistics
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
CUT = 0.5  # statistics that differ by more from one frame to the next are of another scene


class Dials(TypedDict, total=False):
    """What can be turned while frames are painted; as the arguments of `Stylizer.painter`."""

    style: Style | None
    strength: float
    repair: float | None
    keep_color: bool
    half_life: float


@dataclass(frozen=True)
class _Settings:
    style: dict[str, float]
    strength: float = 1.0
    repair: float | None = None
    keep_color: bool = False
    half_life: float = 12.0


class FramePainter:
    """Paints frames that belong together, one after the other; threads may share it.

    The statistics that the generator normalises by move slowly from frame to frame, so that what
    enters or leaves the picture does not change how everything else is painted. They start anew
    with another size or style, and at a cut.

    Args:
        stylizer: whose model paints.
        dials: style, strength, repair and keep_color as in a call of the stylizer, and
            half_life: after so many frames the statistics have gone half the way to those of new
            frames. 0: each frame has its own, as a picture has; infinite: those of the first one.
    """

    def __init__(self, stylizer: Stylizer, **dials: Unpack[Dials]) -> None:
        self._stylizer, self._lock = stylizer, threading.Lock()
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
        self._aim: dict[str, Tensor] = {}  # what they move towards
        self._frames_since = 0
        self._entrance = torch.empty(0)  # what the first norm saw of the last frame
        self._looked_at = torch.empty(0)  # that of the frame whose own statistics are the aim
        self._stale = True  # those are of other frames
        self._held = False  # those are for frames of all sizes
        self._size: tuple[int, ...] = ()
        self._graph: _Graph | None = None
        self.set(**dials)

    @property
    def backend(self) -> str:
        """What paints, for people."""
        device = self._stylizer.device.type
        if device == "cpu":
            return "C++ extension" if _is_native() else "PyTorch (the C++ extension is faster)"
        return f"{device}, {str(self._dtype).removeprefix('torch.')}"

    def set(self, **dials: Unpack[Dials]) -> None:
        """Turns dials, from the next frame on. Raises as a call does; then none turns."""
        changes: dict[str, Any] = dict(dials)
        if "style" in dials:
            changes["style"] = mixing_weights(dials["style"], self._stylizer.styles)
        turned = replace(self._settings, **changes)
        self._stylizer.check_dials(turned.strength, turned.repair)
        if not turned.half_life >= 0:
            raise ValueError(f"half_life is {turned.half_life}; expected 0 or more frames")
        self._settings = turned

    def hold(self, frames: Tensor) -> None:
        """Takes the statistics of `frames`, uint8 ``[N, H, W, 3]``, all together, for good."""
        with self._lock, torch.inference_mode():
            self._settings = replace(self._settings, half_life=math.inf)
            self._make_net(self._settings.style)
            self._start(frames.to(self._stylizer.device))
            self._held, self._stale = True, False

    def reset(self) -> None:
        """Forgets the statistics, as after a jump in time."""
        self._stale = True

    def __call__(self, frame: Frame) -> Frame:
        """Paints `frame`, uint8 ``[H, W, 3]``, into a new array. Raises ValueError for another."""
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or 0 in frame.shape:
            expected = "expected uint8 [H, W, 3]"
            raise ValueError(f"frame is {frame.dtype} {list(frame.shape)}; {expected}")
        with self._lock, torch.inference_mode():
            settings = self._settings
            frames = torch.from_numpy(np.require(frame, requirements=["C", "W"]))[None]
            frames = frames.to(self._stylizer.device)
            painted = self._paint(frames, settings)
            if settings.keep_color or settings.strength < 1:
                painted = _finish(frames, painted, settings)
            return np.ascontiguousarray(painted[0].cpu().numpy())

    def _paint(self, frames: Tensor, settings: _Settings) -> Tensor:
        """By the model alone, uint8 as `frames`, [1, H, W, 3]."""
        if self._net is None or settings.style != self._style:
            self._make_net(settings.style)
        if frames.shape != self._size and not self._held:
            self._size = frames.shape
            self._stale = True
        stale, self._stale = self._stale, False
        if not stale and settings.half_life > 0:
            step = self._step if frames.device.type == "cpu" else self._replayed
            painted, moved = step(frames, settings)
            if float(moved) <= CUT:
                self._take_aim(frames, settings)
                return painted
        return self._repair(self._start(frames), frames, settings)

    def _step(self, frames: Tensor, settings: _Settings) -> tuple[Tensor, Tensor]:
        """Paints by the statistics, moves these, and tells how far what the first norm sees moved.

        All that is kept is changed in place, so that a CUDA graph can do it again.
        """
        assert self._net is not None
        if settings.half_life == math.inf:
            painted = ops.to_pixels(self._net(frames))
            return self._repair(painted, frames, settings), torch.zeros(())
        self._statistics.approach(self._aim, 1 - 0.5 ** (1 / settings.half_life))
        self._net.fix(self._statistics.moments)
        painted = ops.to_pixels(self._net(frames, look=True))
        moved = jump(self._entrance, self._net.seen[ENTRANCE])
        self._entrance.copy_(self._net.seen[ENTRANCE])
        return self._repair(painted, frames, settings), moved

    def _replayed(self, frames: Tensor, settings: _Settings) -> tuple[Tensor, Tensor]:
        """`_step` as one launch."""
        if self._graph is None or self._graph.key != (frames.shape, settings):
            self._graph = None  # its memory first
            self._graph = _Graph(self._step, frames, settings)
        return self._graph(frames)

    def _repair(self, painted: Tensor, frames: Tensor, settings: _Settings) -> Tensor:
        strength = 1.0 if settings.repair is None else settings.repair
        if self._repairer is None or strength == 0:
            return painted
        repaired: Tensor = self._repairer(painted, frames, strength)
        return repaired

    def _start(self, frames: Tensor) -> Tensor:
        """Paints by the frames' own statistics, and begins with these."""
        assert self._net is not None
        if _is_flat(frames):
            # All variances are 0, and norms would make pictures of rounding errors. The generator's
            # own convolutions have none here. What comes next starts anew.
            self._stale = True
            generator = self._stylizer.model.generator
            return ops.to_pixels(generator(ops.from_pixels(frames), self._weights()))
        painted = ops.to_pixels(self._net(frames, collect=True))
        seen = self._net.seen
        self._frames_since, self._looked_at = 0, seen[ENTRANCE].clone()
        if not self._aim:
            self._aim = {name: moments.clone() for name, moments in seen.items()}
            self._statistics = NormStatistics(
                {name: moments.clone() for name, moments in seen.items()}
            )
            self._entrance = seen[ENTRANCE].clone()
        else:  # in place, where a CUDA graph looks
            NormStatistics(self._aim).approach(seen, 1)
            self._statistics.approach(seen, 1)
            self._entrance.copy_(seen[ENTRANCE])
        return painted

    def _take_aim(self, frames: Tensor, settings: _Settings) -> None:
        """Now and then: the frame's own statistics are what those that paint move towards.

        None are taken while the entrance stays where it was: no norm moves further than the first.
        What the norms of the painting net see will not do: each sees the delay of those before it,
        and a change would overshoot.
        """
        self._frames_since += 1
        if settings.half_life < math.inf and (
            self._frames_since >= min(max(int(settings.half_life), 1), AIM_EVERY)
        ):
            self._frames_since = 0
            assert self._net is not None
            assert self._watcher is not None
            entrance = self._net.seen[ENTRANCE]
            if float(jump(self._looked_at, entrance)) < SETTLED or _is_flat(frames):
                return
            self._looked_at = entrance.clone()
            self._watcher(frames, collect=True)
            NormStatistics(self._aim).approach(self._watcher.seen, 1)

    def _make_net(self, style: dict[str, float]) -> None:
        self._style = style
        generator = self._stylizer.model.generator
        self._net, self._watcher = (
            PlainGenerator(generator, self._weights(), self._dtype) for _ in range(2)
        )
        self._statistics, self._aim = NormStatistics({}), {}
        self._graph = None
        self._stale, self._held = True, False

    def _weights(self) -> Tensor:
        weights = [self._style.get(name, 0.0) for name in self._stylizer.styles]
        return torch.tensor(weights, device=self._stylizer.device)


class _Graph:
    """`step(frames, settings)`, recorded once for frames of one shape and replayed."""

    def __init__(
        self,
        step: Callable[[Tensor, _Settings], tuple[Tensor, Tensor]],
        frames: Tensor,
        settings: _Settings,
    ) -> None:
        self.key = (frames.shape, settings)
        self._frames = frames.clone()
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # what is made at the first call must not be recorded
            step(self._frames, settings)
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._results = step(self._frames, settings)

    def __call__(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        self._frames.copy_(frames)
        self._graph.replay()
        return self._results


def jump(before: Tensor, after: Tensor) -> Tensor:
    """How far moments [2, C] moved, in deviations: 0 for none, near 1 for another scene."""
    (mean, variance), (new_mean, new_variance) = before, after
    deviation = ((variance + new_variance) / 2).sqrt() + 1e-6
    ratio = ((new_variance + 1e-6) / (variance + 1e-6)).log().abs() / 2
    distance: Tensor = ((new_mean - mean).abs() / deviation + ratio).mean()
    return distance


def _is_flat(frames: Tensor) -> bool:
    return bool(frames.amin() == frames.amax())


def _finish(photo: Tensor, painted: Tensor, settings: _Settings) -> Tensor:
    """Colours and strength, on uint8 [1, H, W, 3]."""
    x, y = (ops.from_pixels(frames, channels_last=True) for frames in (photo, painted))
    if settings.keep_color:
        y = with_colors_of(x, y)
    return ops.to_pixels(blend(x, y, settings.strength))


def _is_native() -> bool:
    return any(i.op == "conv3x3" and i.name == "native" for i in ops.implementations())


def stream(
    frames: Iterable[Frame], painter: FramePainter, size: int
) -> Generator[Frame, None, None]:
    """`frames` painted, in their order: read in one thread, painted in another.

    `size` frames wait at most before and after the painter.
    """

    def painted() -> Iterator[Frame]:
        # A camera that gives no more frames must not hold us.
        with contextlib.closing(ahead(frames, size, patience=1)) as ready:
            yield from map(painter, ready)

    return ahead(painted(), size)


def ahead(items: Iterable[T], size: int, patience: float | None = None) -> Generator[T, None, None]:
    """`items`, taken by a thread of its own, up to `size` of them before they are asked for.

    An exception comes in its place. Closing the iterator ends the thread, and closes `items` there
    if it is a generator; it waits for that, `patience` seconds at most.
    """
    ready: deque[T] = deque()
    changed = threading.Condition()
    ended = stopped = False
    problem: BaseException | None = None

    def work() -> None:
        nonlocal ended, problem
        try:
            for item in items:
                with changed:
                    changed.wait_for(lambda: len(ready) < size or stopped)
                    if stopped:
                        break
                    ready.append(item)
                    changed.notify_all()
            if isinstance(items, Generator):
                items.close()
        except BaseException as error:
            problem = error
        finally:
            with changed:
                ended = True
                changed.notify_all()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while True:
            with changed:
                changed.wait_for(lambda: ready or ended)
                if not ready:
                    break
                item = ready.popleft()
                changed.notify_all()
            yield item
        if problem is not None:
            raise problem
    finally:
        with changed:
            stopped = True
            changed.notify_all()
        thread.join(patience)  # an interpreter that ends while torch works aborts
