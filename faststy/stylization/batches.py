"""Batches of frames on a GPU: there and back with one synchronisation, painted by one launch."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

K = TypeVar("K")

SIZES = (5, 2, 1)
"""How many frames a batch has; few sizes, as each is recorded. Two of 5 lie between two looks at
the statistics of a frame."""
PIXELS = 2**24
"""Of all frames of a batch, at most: five of 2560 x 1300, two of 3840 x 2160."""
_GRAPHS = 6  # kept at a time: one for each size of a batch, and some for dials that are turned


def length(frames: Sequence[npt.NDArray[np.uint8]] | Tensor, most: int) -> int:
    """How many of the first `frames` [H, W, 3], at least 1 and at most `most`, make a batch."""
    height, width = frames[0].shape[:2]
    same = itertools.takewhile(lambda frame: frame.shape == frames[0].shape, frames[: SIZES[0]])
    most = min(sum(1 for _ in same), PIXELS // (height * width), most)
    return next((size for size in SIZES if size <= most), 1)


def to_device(frames: Sequence[npt.NDArray[np.uint8]], device: torch.device) -> Tensor:
    """Frames [H, W, 3] of one size as uint8 [N, H, W, 3] on `device`, without waiting for it."""
    shape = (len(frames), *frames[0].shape)
    batch = torch.empty(shape, dtype=torch.uint8, pin_memory=device.type == "cuda")
    for place, frame in zip(batch, frames, strict=True):  # by several threads, unlike NumPy's
        place.copy_(torch.from_numpy(np.require(frame, requirements=["C", "W"])))
    return batch.to(device, non_blocking=True)


def to_host(*tensors: Tensor) -> list[Tensor]:
    """`tensors` in memory of the host; waits, once, until all that was launched is done."""
    device = tensors[0].device
    if device.type != "cuda":
        return list(tensors)
    copies = [torch.empty(t.shape, dtype=t.dtype, pin_memory=True) for t in tensors]
    for copy, tensor in zip(copies, tensors, strict=True):
        copy.copy_(tensor, non_blocking=True)
    torch.cuda.current_stream(device).synchronize()
    return copies


class Recorder(Generic[K]):
    """`step(frames, key)` as a single launch, for what is asked for more than once.

    The first time it runs as it is, which also makes what must not be made in a recording (tuned
    kernels, workspaces); the second time it is recorded as a CUDA graph, which is replayed from
    then on. So `step` must be the same work for the same shape and key, on tensors that stay where
    they are, and must not ask the GPU for a number.

    Args:
        step: to be recorded; its results are overwritten by the next call.
    """

    def __init__(self, step: Callable[[Tensor, K], tuple[Tensor, ...]]) -> None:
        self._step = step
        self._seen: list[tuple[torch.Size, K]] = []
        self._graphs: list[_Graph[K]] = []
        self._pool: Any = None

    def __call__(self, frames: Tensor, key: K) -> tuple[Tensor, ...]:
        if frames.device.type != "cuda":
            return self._step(frames, key)
        kind = (frames.shape, key)
        if kind not in self._seen:
            self._seen = [*self._seen[1 - _GRAPHS :], kind]
            return self._step(frames, key)
        graph = next((graph for graph in self._graphs if graph.kind == kind), None)
        if graph is None:
            # They run one after the other: one memory is enough for what lies between.
            self._pool = self._pool or torch.cuda.graph_pool_handle()
            self._graphs = self._graphs[1 - _GRAPHS :]
            graph = _Graph(self._step, frames, key, self._pool)
            self._graphs.append(graph)
        return graph(frames)


class _Graph(Generic[K]):
    def __init__(
        self,
        step: Callable[[Tensor, K], tuple[Tensor, ...]],
        frames: Tensor,
        key: K,
        pool: Any,
    ) -> None:
        self.kind = (frames.shape, key)
        self._frames = frames.clone()
        self._graph = torch.cuda.CUDAGraph()
        stream = torch.cuda.Stream(frames.device)  # type: ignore[no-untyped-call]
        mode = "thread_local"  # other threads may use the GPU meanwhile
        with torch.cuda.graph(self._graph, pool, stream, capture_error_mode=mode):
            self._results = step(self._frames, key)

    def __call__(self, frames: Tensor) -> tuple[Tensor, ...]:
        self._frames.copy_(frames)
        self._graph.replay()
        return self._results
