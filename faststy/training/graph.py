"""Training steps as CUDA graphs.

A step has well over a thousand kernels, most of them so short that launching them one by one would
take longer than running them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from faststy.training.draws import Draws

Terms = dict[str, Tensor]
Move = Callable[[Draws], tuple[Terms, Tensor]]

WARM_UP = 2  # steps of a kind, in which kernels are compiled and libraries find their plans


class Recorder:
    """Takes steps on a CUDA device: the first of each kind as ever, the others as one graph.

    Nothing is undone after warming up, as those are steps like any other. The graphs share their
    memory: none runs beside another, and results are copied before the next.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._warm: Counter[tuple[object, ...]] = Counter()
        self._recorded: dict[tuple[object, ...], _Recorded] = {}
        self._pool: Any = torch.cuda.graph_pool_handle()
        self._side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def __call__(self, move: Move, drawn: Draws) -> tuple[Terms, Tensor]:
        """`move(drawn)`, which gives terms and a picture, with `drawn` on the device.

        The host waits only while a step is recorded, once for each `drawn.key`.
        """
        key = drawn.key
        with torch.cuda.device(self.device):
            if key not in self._recorded:
                self._warm[key] += 1
                if self._warm[key] <= WARM_UP:
                    return self._beside(move, drawn)
                self._recorded[key] = _Recorded(move, drawn, self._pool)
            return self._recorded[key](drawn)

    def _beside(self, move: Move, drawn: Draws) -> tuple[Terms, Tensor]:
        """On a stream of its own: nothing of autograd may be left on this one."""
        here = torch.cuda.current_stream()
        self._side.wait_stream(here)
        with torch.cuda.stream(self._side):
            results = move(drawn)
        here.wait_stream(self._side)
        return results


class _Recorded:
    """`move` for draws of one key; recording it moves nothing yet."""

    def __init__(self, move: Move, drawn: Draws, pool: Any) -> None:
        self._drawn = drawn.map(torch.clone)  # where the graph looks
        self._graph = torch.cuda.CUDAGraph()
        # Other threads may pin memory meanwhile.
        with torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local"):
            terms, self._painted = move(self._drawn)
            self._names, self._values = tuple(terms), torch.stack(list(terms.values()))

    def __call__(self, drawn: Draws) -> tuple[Terms, Tensor]:
        self._drawn.copy_(drawn)
        self._graph.replay()
        values = self._values.clone().unbind()
        return dict(zip(self._names, values, strict=True)), self._painted.clone()
