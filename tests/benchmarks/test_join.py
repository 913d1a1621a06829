from __future__ import annotations

from pathlib import Path
from typing import Any

import _bench
import _join
import pytest


def test_parts_become_one_report_with_charts_and_tables(
    report: Any, result: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ops, memory = report(result()), report(result(suite="memory", name="paint", unit="B", bytes=0))
    ops["settings"] = {"suites": ["ops"], "quick": False, "filter": "gram"}
    memory["settings"] = {"suites": ["memory"], "quick": True, "filter": ""}
    memory["machine"] = {**memory["machine"], "load": 3.14, "date": "2026-01-03"}
    ops |= {"left_out": {"ops: late": "no time"}, "wrong": {"ops: bad": "Wrong: off by 1"}}
    parts = [tmp_path / "suites" / f"{name}.json" for name in ("ops", "memory", "broken", "none")]
    for part, path in zip((ops, memory), parts, strict=False):
        _bench.write(part, path)
    parts[2].write_text('{"machine": {}, "ca')
    whole = tmp_path / "whole.json"
    assert _join.main([str(whole), *map(str, parts)]) == 0
    told = capsys.readouterr()
    assert "broken.json: cannot be read" in told.err
    assert "none.json: cannot be read" in told.err

    joined = _bench.read(whole)
    assert [(r["suite"], r["name"]) for r in joined["cases"]] == [
        ("memory", "paint"),
        ("ops", "gram"),
    ]
    each = [{**ops["settings"], "load": None}, {**memory["settings"], "load": 3.14}]
    assert joined["settings"] == {"suites": ["memory", "ops"], "parts": each}
    assert joined["left_out"] == {"ops: late": "no time"}
    tables = (tmp_path / "tables.md").read_text()
    assert tables in told.out
    assert "Ops: only cases that match `gram`. Memory: the quick form, load 3.1 before." in tables
    assert "| gram | 1.00 ms |" in tables
    assert "Left out: ops: late: no time." in tables
    assert "Wrong: ops: bad: Wrong: off by 1." in tables
    assert (tmp_path / "ratios-memory.svg").is_file()


def test_what_another_commit_measured_is_left_out(
    report: Any, result: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = report(result()), report(result(suite="memory", name="paint", unit="B", bytes=0))
    old["settings"], new["settings"] = {"suites": ["ops"]}, {"suites": ["memory"]}
    old["machine"] = {**old["machine"], "commit": "0000000", "date": "2000-01-01T00:00:00+00:00"}
    parts = [tmp_path / "suites" / f"{name}.json" for name in ("memory", "ops")]
    for part, path in zip((new, old), parts, strict=True):
        _bench.write(part, path)
    whole = tmp_path / "whole.json"
    assert _join.main([str(whole), *map(str, parts)]) == 0
    assert "ops: measured at commit 0000000, not " in capsys.readouterr().err
    joined = _bench.read(whole)
    assert [r["name"] for r in joined["cases"]] == ["paint"]
    assert joined["machine"]["commit"] == new["machine"]["commit"]


def test_what_has_no_commit_is_not_joined(
    report: Any, result: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A copy of the sources without git may be another one than the day before."""
    parts = []
    for day, suite in enumerate(("ops", "memory"), 1):
        made = report(result(suite=suite)) | {"settings": {"suites": [suite]}}
        date = f"2026-01-0{day}T00:00:00+00:00"
        made["machine"] = {**made["machine"], "commit": None, "date": date}
        parts.append(tmp_path / "suites" / f"{suite}.json")
        _bench.write(made, parts[-1])
    whole = tmp_path / "whole.json"
    assert _join.main([str(whole), *map(str, parts)]) == 0
    assert "ops: measured at commit unknown, of 2026-01-01" in capsys.readouterr().err
    assert [r["suite"] for r in _bench.read(whole)["cases"]] == ["memory"]


def test_without_matplotlib_there_are_tables(
    report: Any,
    result: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    made = report(result())
    made["settings"] = {"suites": ["ops"]}
    _bench.write(made, tmp_path / "ops.json")
    monkeypatch.setattr(_join, "find_spec", lambda name: None)
    assert _join.main([str(tmp_path / "whole.json"), str(tmp_path / "ops.json")]) == 0
    assert "there are no charts" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"ops.json", "tables.md", "whole.json"}


def test_without_arguments_it_tells_its_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        _join.main([])
    assert end.value.code == 2
    assert "usage: " in capsys.readouterr().err


def test_nothing_was_measured(tmp_path: Path) -> None:
    assert _join.main([str(tmp_path / "whole.json"), str(tmp_path / "none.json")]) == 1
    assert list(tmp_path.iterdir()) == []
