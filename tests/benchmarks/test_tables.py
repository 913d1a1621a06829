from __future__ import annotations

from pathlib import Path
from typing import Any

import _bench
import _tables
import pytest

RATES = {"copy": 1e10, "float32": 1e12}


def test_a_row(result: Any) -> None:
    (row,) = _tables.rows([result()], RATES)
    assert row == {
        "case": "gram",
        "median": "1.00 ms",
        "spread": "20%",
        "eager takes": "3.00× [2.50, 3.50]",
        "rate": "5.0 GB/s",
        "of the floor": "50%",
    }


def test_rates_and_floors(result: Any) -> None:
    of_operations = result(bytes=0, operations=500_000_000)
    assert _tables.rate(of_operations, RATES) == "0.5 TFLOP/s"
    assert _tables.floor_of(of_operations, RATES) == 5e-4
    assert _tables.rate(result(pictures=4), RATES) == "4e+03 pictures/s"
    unknown = result(bytes=0, operations=10, dtype="float16")
    assert (_tables.rate(unknown, RATES), _tables.floor_of(unknown, RATES)) == ("—", 0)


@pytest.mark.parametrize(
    ("value", "unit", "shown"),
    [
        (12.34, "s", "12.3 s"),
        (0.0123, "s", "12.3 ms"),
        (1.5e-6, "s", "1.50 µs"),
        (1e-8, "s", "0.01 µs"),
        (300 << 20, "B", "300 MiB"),
    ],
)
def test_amounts(value: float, unit: str, shown: str) -> None:
    assert _tables.amount(value, unit) == shown


def test_rows_of_different_baselines_share_their_columns(result: Any) -> None:
    other = result(ratios={}, missing={"compiled": "no compiler"}, steady=False)
    first, second = _tables.rows([result(), other], RATES)
    assert first.keys() == second.keys()
    assert (first["compiled takes"], second["eager takes"]) == ("—", "—")
    assert second["median"] == "1.00 ms ~"
    lines = _tables.markdown([first, second]).splitlines()
    assert len(lines) == 4
    assert len({line.count("|") for line in lines}) == 1


def test_of_three_samples_there_is_no_interval(report: Any, result: Any) -> None:
    few = result(samples={"ours": [1e-3] * 3, "eager": [3e-3] * 3})
    (row,) = _tables.rows([few], RATES)
    assert row["eager takes"] == "3.00×"


def test_comparison_judges_by_the_ratio_to_the_baseline(report: Any, result: Any) -> None:
    """The machine became twice as slow, and we in truth twice as fast."""
    before = result(samples={"ours": [1.0] * 9, "eager": [2.0] * 9})
    now = result(samples={"ours": [1.0] * 9, "eager": [4.0] * 9})
    (row,) = _tables.comparison(report(before), report(now))
    assert row["faster"] == "1.00× [1.00, 1.00]"
    assert row["faster against it"] == "2.00× [2.00, 2.00]"
    assert row[""] == "faster"
    (row,) = _tables.comparison(report(now), report(before))
    assert row[""] == "SLOWER"
    assert _tables.comparison(report(), report(now)) == []


def test_comparison_of_noise_finds_nothing(report: Any, result: Any) -> None:
    first, second = ([1.0, 2.0] * 9, [2.0, 1.0] * 9)
    before = result(samples={"ours": first, "eager": second})
    now = result(samples={"ours": second, "eager": first})
    assert _tables.comparison(report(before), report(now))[0][""] == ""


@pytest.mark.parametrize("path", _tables.SECTIONS)
def test_sections_of_readmes_are_generated(path: Any) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count(_tables.BEGIN) == text.count(_tables.END) == 1
    assert _tables.renewed(path) == text, "run: python benchmarks/_tables.py"


def test_a_readme_without_a_place_for_tables_keeps_its_text(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "README.md"
    path.write_text(f"before\n{_tables.BEGIN}\nafter\n", encoding="utf-8")
    monkeypatch.setattr(_tables, "SECTIONS", {path: lambda found: "tables"})
    with pytest.raises(SystemExit, match="are gone"):
        _tables.main()
    assert path.read_text(encoding="utf-8").endswith("after\n")


def test_sections_hold_every_number(
    report: Any, result: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_tables, "RESULTS", tmp_path / "results")
    assert "make bench" in _tables.whole(_tables.newest())
    old, new = report(result(name="old")), report(result(name="new"))
    new["machine"] = {**new["machine"], "date": "2026-02-01"}
    for made in (old, new):
        _bench.write(made, tmp_path / "results" / _bench.place_of(made))
    found = _tables.newest()
    assert [r["cases"][0]["name"] for _, r in found] == ["new"]
    assert "| new | 1.00 ms | 20% | 3.00× [2.50, 3.50] |" in _tables.whole(found)
    assert "| new | 1.00 ms | 3.00× |" in _tables.summary(found)


def test_the_summary_has_a_table_for_each_suite(report: Any, result: Any) -> None:
    wide = {"peer": {"median": 2.0, "low": 1.0, "high": 3.0}}
    one, two = result(), result(ratios=wide, steady=False)
    of_another = result(suite="training")
    told = _tables.summary([(Path("it.json"), report(one, two, of_another))])
    lines = [line for line in told.splitlines() if line.startswith("|")]
    assert lines == [
        "| `faststy bench training` | ours | eager |",
        "| --- | --: | --: |",
        "| gram | 1.00 ms | 3.00× |",
        "| `faststy bench ops` | ours | eager | peer |",
        "| --- | --: | --: | --: |",
        "| gram | 1.00 ms | 3.00× | — |",
        "| gram | 1.00 ms ~ | — | 2.00× [1.00, 3.00] |",
    ]


def test_a_part_of_the_cases_does_not_take_the_place_of_all(
    report: Any, result: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_tables, "RESULTS", tmp_path)
    every = {"suites": list(_tables.SUITES), "quick": False, "filter": ""}
    partial: list[Any] = [
        every | {"quick": True},
        every | {"filter": "gram"},
        every | {"suites": ["ops"]},
        {"suites": every["suites"], "parts": [every, every | {"quick": True}]},
    ]
    for day, settings in enumerate([every, *partial], 1):
        made = report(result(name=f"day {day}"))
        made["settings"] = settings
        made["machine"] = {**made["machine"], "date": f"2026-01-0{day}"}
        _bench.write(made, tmp_path / "device" / f"{day}.json")
    assert [path.name for path, _ in _tables.newest()] == ["1.json"]
    stopped = report(result(name="day 6")) | {"settings": every}
    stopped["left_out"] = {"ops: late": _bench.NOT_REACHED}
    stopped["machine"] = {**stopped["machine"], "date": "2026-01-06"}
    _bench.write(stopped, tmp_path / "device" / "6.json")
    assert [path.name for path, _ in _tables.newest()] == ["1.json"]
    (tmp_path / "device" / "1.json").unlink()
    assert [path.name for path, _ in _tables.newest()] == ["6.json"]


def test_charts_are_those_of_the_report(
    report: Any, result: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not of one before it, which had results of other kinds."""
    monkeypatch.setattr(_tables, "RESULTS", tmp_path / "results")
    path = tmp_path / "results" / _bench.place_of(report())
    _bench.write(report(result()), path)
    for name in ("ratios-ops-float32", "ratios-ops-float16", "roofline"):
        (path.parent / f"{name}.svg").touch()
    told = _tables.whole(_tables.newest())
    assert f"![ratios-ops-float32](results/{path.parent.name}/ratios-ops-float32.svg)" in told
    assert "float16" not in told
    assert "roofline" not in told  # nothing in it has operations


def test_the_head_tells_filter_and_load(report: Any) -> None:
    made = report()
    assert _tables.head(made).endswith("matrix product float32 1 TFLOP/s.")
    made["settings"] = {"suites": ["ops"], "quick": True, "filter": "gram|blur"}
    made["machine"] = {**made["machine"], "load": 2.0}
    told = " The quick form, only cases that match `gram|blur`, load 2.0 before."
    assert _tables.head(made).endswith(f"TFLOP/s.{told}")


def test_the_head_tells_what_is_measured_without_the_extension(report: Any) -> None:
    made = report()
    row = {"op": "gram", "device": "cuda", "name": "triton", "why": "Triton kernels"}
    made["implementations"] = [row]
    assert _tables.head(made).endswith("TFLOP/s. Without the C++ extension.")
    made["implementations"] = [row, {**row, "op": "combined_loss", "name": "native"}]
    assert _tables.head(made).endswith("TFLOP/s.")


def test_why_variants_have_no_number_is_told(report: Any, result: Any) -> None:
    wrong, gone = {"eager": "Wrong: off by 1.4"}, {"peer": "peer is not installed"}
    cases = [result(missing=gone), result(name="blur", missing=wrong | gone)]
    made = report(*cases)
    told = "peer of gram and 1 more (peer is not installed); eager of blur (Wrong: off by 1.4)"
    assert f"Without a number: {told}." in _tables.document(made)
    assert "Without a number" not in _tables.document(report(result()))


def test_a_reason_that_many_cases_have_is_told_once(report: Any) -> None:
    made = report()
    made["left_out"] = {"ops: a": "no time", "ops: b": "no time", "memory: c": "no time"}
    made["left_out"]["ops: d"] = "out of memory"
    told = ["ops: a and 1 more: no time", "memory: c: no time", "ops: d: out of memory"]
    assert _tables.reasons(made, "left_out") == told
    assert _tables.reasons(made, "wrong") == []
