"""The suites for pytest-benchmark, its tables, storage and comparisons:

    pytest benchmarks -k 'ops and gram' --benchmark-group-by=param:case

pytest-benchmark would time one variant after the other. So all variants of a case are timed in
turns by `_timing`, when the first of them is asked for, and pytest-benchmark is told the samples by
the clock that it reads.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.append(str(Path(__file__).parent))
import _bench

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SECONDS = 0.4
TIMED = [suite for suite in _bench.SUITES if suite != "memory"]


class Replay:
    """A clock between whose readings the samples pass."""

    readings: Iterator[float] = iter(())

    def play(self, samples: Sequence[float]) -> None:
        self.readings = iter([reading for s in samples for reading in (0.0, s)])

    def __call__(self) -> float:
        return next(self.readings)


CLOCK = Replay()
CASES = [case for suite in TIMED for case in _bench.cases(suite, DEVICE, quick=False)]


@cache
def result_of(case: _bench.Case) -> dict[str, Any]:
    return _bench.measured(case, DEVICE, SECONDS)


@pytest.mark.benchmark(timer=CLOCK)
@pytest.mark.parametrize(
    ("case", "variant"),
    [(c, name) for c in CASES for name in import_module(c.suite).VARIANTS],
    ids=lambda value: str(value),
)
def test_case(benchmark: Callable[..., Any], case: _bench.Case, variant: str) -> None:
    result = result_of(case)
    if variant not in result["samples"]:
        pytest.skip(result["missing"].get(variant, "not part of this case"))
    benchmark.group = str(case)  # type: ignore[attr-defined]
    benchmark.extra_info |= {k: v for k, v in result.items() if k != "samples"}  # type: ignore[attr-defined]
    samples = result["samples"][variant]
    CLOCK.play(samples)
    benchmark.pedantic(lambda: None, rounds=len(samples))  # type: ignore[attr-defined]
