"""The suites are scripts in a folder of their own, not part of the package."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))


@pytest.fixture
def report() -> Callable[..., dict[str, Any]]:
    """Makes a report of some results."""
    about = {
        "device": "A  CPU (R)",
        "threads": 2,
        "date": "2026-01-02T03:04:05+00:00",
        "commit": "abc",
        "torch": "2",
        "triton": None,
        "python": "3",
    }

    def made(*results: Any) -> dict[str, Any]:
        return {
            "machine": about,
            "settings": {},
            "rates": {"copy": 1e10, "float32": 1e12},
            "implementations": [],
            "cases": list(results),
            "wrong": {},
            "left_out": {},
        }

    return made


@pytest.fixture
def result() -> Callable[..., dict[str, Any]]:
    """Makes the result of a case."""
    whole = {
        "suite": "ops",
        "name": "gram",
        "headline": True,
        "unit": "s",
        "steady": True,
        "median": {"ours": 1e-3, "eager": 3e-3},
        "quartiles": {"ours": [0.9e-3, 1.1e-3]},
        "ratios": {"eager": {"median": 3.0, "low": 2.5, "high": 3.5}},
        "missing": {},
        "pictures": 0,
        "bytes": 5_000_000,
        "operations": 0,
        "dtype": "float32",
        "samples": {"ours": [1e-3] * 9, "eager": [3e-3] * 9},
    }
    return lambda **changes: {**whole, **changes}
