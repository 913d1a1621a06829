from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import _bench
import pytest
import torch
from _bench import Case, Prepared

from faststy.errors import FaststyError

CPU = torch.device("cpu")
EVERY = {"suites": list(_bench.SUITES), "quick": False, "filter": ""}


def case(name: str = "it", **changes: Any) -> Case:
    calls = {"ours": lambda i: i, "eager": lambda i: sum(range(1000))}
    return Case("ops", name, lambda only=(): Prepared(calls, inputs=2)._replace(**changes))


def test_a_case_is_timed_side_by_side() -> None:
    result = _bench.measured(case(bytes=8, missing={"onnx": "no"}), CPU, 0.0)
    assert result["median"].keys() == result["samples"].keys() == {"ours", "eager"}
    assert result["ratios"].keys() == {"eager"}
    assert result["ratios"]["eager"]["low"] > 2
    assert (result["bytes"], result["inputs"], result["method"]) == (8, 2, "wall clock")
    assert result["missing"] == {"onnx": "no"}
    low, high = result["quartiles"]["ours"]
    assert low <= result["median"]["ours"] <= high


def test_variants_that_nobody_asks_for_are_not_made() -> None:
    def prepare(only: Sequence[str]) -> Prepared:
        def never() -> Any:
            raise MemoryError

        makers = {"ours": lambda: lambda i: i, "eager": lambda: lambda i: i, "large": never}
        return Prepared(*_bench.variants(makers, lambda name, call: None, only))

    result = _bench.measured(Case("ops", "it", prepare), CPU, 0.0, ["ours", "eager"])
    assert result["samples"].keys() == {"ours", "eager"}
    assert result["missing"] == {}
    result = _bench.measured(Case("ops", "it", prepare), CPU, 0.0)
    assert result["missing"] == {"large": "MemoryError: "}


@pytest.mark.parametrize("suite", _bench.SUITES)
def test_cases_prepare_only_what_is_asked_for(suite: str) -> None:
    """By their signatures: to prepare them all takes minutes."""
    for found in _bench.cases(suite, CPU, quick=False):
        assert "only" in inspect.signature(found.prepare).parameters


def test_bytes_are_told_not_timed() -> None:
    calls = {"ours": lambda i: 100, "classic": lambda i: 250}
    result = _bench.measured(case(calls=calls, unit="B"), CPU, 0.0)
    assert result["median"] == {"ours": 100, "classic": 250}
    assert result["ratios"]["classic"]["median"] == 2.5


def test_variants_are_checked_and_others_told() -> None:
    def absent() -> Any:
        import no_such_package

        return no_such_package

    def check(name: str, call: Any) -> None:
        if (result := call(0)) != 0:
            raise _bench.Wrong(f"{name}: {result}")

    makers = {"ours": lambda: lambda i: i, "peer": absent, "off": lambda: lambda i: 7}
    calls, missing = _bench.variants(makers, check)
    assert calls.keys() == {"ours"}
    assert missing == {"peer": "no_such_package is not installed", "off": "Wrong: off: 7"}
    with pytest.raises(_bench.Wrong):
        _bench.variants({"ours": makers["off"]}, check)


def test_a_run_fills_the_report(report: Any) -> None:
    def broken(only: Sequence[str]) -> Prepared:
        raise _bench.Wrong("result: off by 1")

    made = report()
    chosen = {"ops": [case("good"), Case("ops", "bad", broken)]}
    assert [c.name for c in _bench.run(chosen, CPU, made, seconds=0.0)] == ["good", "bad"]
    assert [r["name"] for r in made["cases"]] == ["good"]
    assert made["wrong"] == {"ops: bad": "Wrong: result: off by 1"}


def test_what_comes_after_a_lost_device_is_left_out(
    report: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(only: Sequence[str]) -> Prepared:
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nMore of it")

    made = report()
    chosen = {"ops": [case("good"), Case("ops", "bad", crash), case("late")], "memory": [case("z")]}
    monkeypatch.setattr(_bench, "usable", lambda device: not made["wrong"])
    list(_bench.run(chosen, CPU, made, seconds=0.0))
    assert [r["name"] for r in made["cases"]] == ["good"]
    why = "RuntimeError: CUDA error: an illegal memory access was encountered"
    assert made["wrong"] == {"ops: bad": why}
    assert made["left_out"] == {"ops: late": "the device is gone", "ops: z": "the device is gone"}


def test_an_interrupted_run_says_what_it_did_not_reach(report: Any) -> None:
    def stop(only: Sequence[str]) -> Prepared:
        raise KeyboardInterrupt

    made = report()
    chosen = {"ops": [case("good"), Case("ops", "slow", stop), case("late")], "memory": [case("z")]}
    with pytest.raises(KeyboardInterrupt):
        list(_bench.run(chosen, CPU, made, seconds=0.0))
    assert [r["name"] for r in made["cases"]] == ["good"]
    names = ("ops: slow", "ops: late", "ops: z")
    assert made["left_out"] == dict.fromkeys(names, "the run ended before")


def test_a_device_is_usable() -> None:
    assert _bench.usable(CPU)
    assert not _bench.usable(torch.device("meta"))  # no number comes back from there


def test_a_run_that_has_no_time_left_says_what_it_left_out(report: Any) -> None:
    made = report()
    list(_bench.run({"ops": [case()]}, CPU, made, seconds=0.0, until=0.0))
    assert made["left_out"] == {"ops: it": "no time"}
    assert made["cases"] == []


def test_reports_are_kept_by_device_date_and_commit(report: Any, tmp_path: Path) -> None:
    made = report(_bench.measured(case(), CPU, 0.0))
    made["settings"] = EVERY
    place = _bench.place_of(made)
    assert place == Path("A-CPU-R-2-threads", "2026-01-02-abc.json")
    _bench.write(made, tmp_path / place)
    assert _bench.read(tmp_path / place) == made


@pytest.mark.parametrize("part", [{"quick": True}, {"filter": "gram"}, {"suites": ["ops"]}])
def test_a_part_has_a_name_of_its_own(report: Any, part: dict[str, Any]) -> None:
    made = report() | {"settings": EVERY | part}
    assert not _bench.complete(made)
    assert _bench.place_of(made).name == "2026-01-02-abc-030405.json"


@pytest.mark.parametrize(
    ("why", "complete"),
    [("no time", True), ("out of memory", True), (_bench.NOT_REACHED, False), (_bench.GONE, False)],
)
def test_a_run_that_did_not_end_is_not_complete(report: Any, why: str, complete: bool) -> None:
    made = report() | {"settings": EVERY, "left_out": {"ops: gram": why}}
    assert _bench.complete(made) == complete


def test_what_is_no_report(tmp_path: Path) -> None:
    for text, why in (("{", "cannot be read as results"), ("[]", "no results of faststy bench")):
        (tmp_path / "it.json").write_text(text)
        with pytest.raises(FaststyError, match=why):
            _bench.read(tmp_path / "it.json")


def test_suites_know_their_cases() -> None:
    chosen = _bench.choose([], CPU, quick=True)
    assert tuple(chosen) == _bench.SUITES
    chosen = _bench.choose(["ops", "startup"], CPU, quick=True, pattern="gram|import")
    assert list(chosen) == ["startup", "ops"]
    assert all("gram" in c.name for c in chosen["ops"])
