from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import faststy
from faststy.cli import bench, group
from faststy.errors import FaststyError

GRAM = ("ops", "--quick", "--device=cpu", "--filter=^ops: gram .* planar float32 forward$")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """One small case, and no rates of the machine."""
    monkeypatch.syspath_prepend(str(bench.suites_folder()))
    import _bench
    import ops as suite

    monkeypatch.setattr(_bench, "copy_bandwidth", lambda device: 1e9)
    monkeypatch.setattr(_bench, "matrix_rate", lambda device, dtype: 1e9)
    monkeypatch.setattr(bench, "CASE_SECONDS", 0.0)
    shapes = suite.Shapes(cuda=[], cpu=[(1, 4, 8, 8)])
    monkeypatch.setitem(suite.OPS, "gram", suite.OPS["gram"]._replace(shapes=shapes))


def run(*arguments: str) -> Any:
    return CliRunner().invoke(group, ["bench", *arguments])


def test_table_json_charts_and_comparison(tmp_path: Path) -> None:
    done = run(*GRAM, "--json", str(tmp_path / "a.json"), "--plot")
    assert done.exit_code == 0, done.output
    (case,) = json.loads((tmp_path / "a.json").read_text())["cases"]
    assert case["name"] == "gram [1, 4, 8, 8] planar float32 forward"
    assert len(case["samples"]["eager"]) == case["rounds"]
    assert "| gram [1, 4, 8, 8] planar float32 forward |" in done.output
    assert "[1/1] ops: gram" in done.output
    assert (tmp_path / "ratios-ops-float32.svg").exists()
    assert (tmp_path / "roofline.png").exists()
    done = run(*GRAM, "--json", str(tmp_path / "results"), "--compare", str(tmp_path / "a.json"))
    assert done.exit_code == 0, done.output
    assert "since" in done.output
    (kept,) = (tmp_path / "results").glob("*/*.json")
    assert json.loads(kept.read_text())["settings"]["quick"] is True


def test_a_part_takes_the_place_of_no_other_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a folder, where those of the same day and commit are, with their charts."""
    suites = sys.modules["_bench"]
    seen: list[list[str]] = []
    write = suites.write

    def written(report: Any, path: Path) -> None:
        write(report, path)
        seen.append(sorted(p.name for p in path.parent.iterdir()))

    monkeypatch.setattr(suites, "write", written)
    done = run(*GRAM, "--json", str(tmp_path), "--plot")
    assert done.exit_code == 0, done.output
    (kept,) = tmp_path.glob("*/*.json")
    assert re.fullmatch(r"20\d\d-\d\d-\d\d-.*-\d{6}\.json", kept.name)
    assert seen == [[f"{kept.name}.part"]] * 2
    assert {p.name for p in kept.parent.iterdir()} == {kept.name, kept.stem}
    assert (kept.parent / kept.stem / "ratios-ops-float32.svg").exists()


def test_what_stops_a_run_leaves_what_it_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suites = sys.modules["_bench"]
    measured, met = suites.measured, []

    def stopped(case: Any, *arguments: Any) -> Any:
        met.append(case)
        if len(met) > 1:
            raise KeyboardInterrupt
        return measured(case, *arguments)

    monkeypatch.setattr(suites, "measured", stopped)
    done = run(*GRAM[:3], "--filter=^ops: gram ", "--json", str(tmp_path))
    assert done.exit_code != 0
    (part,) = tmp_path.glob("*/*")
    assert part.name.endswith(".json.part")
    assert [r["name"] for r in json.loads(part.read_text())["cases"]] == [met[0].name]


def test_a_wrong_result_is_exit_status_1(monkeypatch: pytest.MonkeyPatch) -> None:
    suite = sys.modules["ops"]
    wrong = suite.OPS["gram"]._replace(ours=lambda x: faststy.ops.gram(x) * 1.001)
    monkeypatch.setitem(suite.OPS, "gram", wrong)
    done = run(*GRAM)
    assert done.exit_code == 1
    assert "wrong: ops: gram [1, 4, 8, 8] planar float32 forward: Wrong: result" in done.output
    assert "| gram" not in done.output


def test_no_time() -> None:
    done = run(*GRAM, "--seconds=0")
    assert done.exit_code == 0
    assert "left out: ops: gram [1, 4, 8, 8] planar float32 forward: no time" in done.output


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--filter=nonsense"], "no case of .* matches 'nonsense'"),
        (["--filter=("], r"'\(': no regular expression"),
        (["--plot"], "--plot needs --json"),
        (["--tune"], "there are no Triton kernels to tune on cpu"),
        (["--compare=gone.json"], r"gone\.json: cannot be read"),
        (["--device=meta"], "it must be cpu or cuda|cannot be used"),
    ],
)
def test_mistakes_are_told(arguments: list[str], why: str) -> None:
    done = run(*GRAM[:3], *arguments)
    assert isinstance(done.exception, FaststyError)
    assert re.search(why, str(done.exception))


def test_charts_that_cannot_be_drawn_are_told_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "find_spec", lambda name: None)
    done = run(*GRAM, "--plot", f"--json={tmp_path / 'a.json'}")
    assert "--plot needs matplotlib" in str(done.exception)
    assert not (tmp_path / "a.json").exists()


def test_it_says_plainly_when_the_suites_are_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faststy, "__file__", str(tmp_path / "site-packages/faststy/__init__.py"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FaststyError, match="the benchmark suites are not installed"):
        bench.suites_folder()
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks/_bench.py").touch()
    assert bench.suites_folder() == tmp_path / "benchmarks"


def test_only_ops_are_tuned() -> None:
    done = run("startup", "--quick", "--tune")
    assert "faststy bench ops --tune" in str(done.exception)


def test_unknown_suite() -> None:
    done = run("nonsense")
    assert done.exit_code == 2
    assert "'startup', 'memory', 'stylization', 'training', 'ops'" in done.output
