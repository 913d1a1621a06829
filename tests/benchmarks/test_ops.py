from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ops as suite
import pytest
import torch

from faststy import ops

CPU = torch.device("cpu")
FILTER = r"^gram .* channels_last float32 forward$"


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds, not minutes: tiny tensors, no waiting, and no rates of the machine."""
    monkeypatch.setattr(suite, "copy_bandwidth", lambda device: 1e9)
    monkeypatch.setattr(suite, "matrix_rate", lambda device, dtype: 1e9)
    monkeypatch.setattr(suite, "buffers", lambda size, device: 2)
    shapes = suite.Shapes(cuda=[], cpu=[(1, 4, 8, 8)])
    for name, op in suite.OPS.items():
        monkeypatch.setitem(suite.OPS, name, op._replace(shapes=shapes))


@pytest.mark.parametrize("dtype", suite.DTYPES)
@pytest.mark.parametrize("op", suite.OPS)
def test_every_op_is_right_and_so_are_its_baselines(op: str, dtype: str) -> None:
    shape = (1, 8, 8, 3) if "pixels" in op else (2, 16, 12, 12)
    for layout in suite.LAYOUTS:
        case = suite.Case(op, shape, layout, dtype, bool(suite.OPS[op].leaves))
        result = suite.run(case, CPU, seconds=0.0, compiled=False)
        assert result["missing"] == {}
        assert result["seconds"].keys() == {"ours", "eager"}
        assert result["bytes"] > 0


def test_table_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "ops.json"
    assert suite.main(["--quick", "--device=cpu", f"--filter={FILTER}", f"--json={file}"]) == 0
    report = json.loads(file.read_text())
    (case,) = report["cases"]
    assert (case["op"], case["shape"], case["backward"]) == ("gram", [1, 4, 8, 8], False)
    assert case["bytes"] == 4 * 4 * 64 + 4 * 16
    assert case["operations"] == 16 * 64
    assert len(case["samples"]["eager"]) == case["rounds"]
    assert "| gram | 1×4×8×8 | channels_last | float32 | forward |" in capsys.readouterr().out


def test_a_wrong_result_gets_no_number(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong: Any = suite.OPS["gram"]._replace(ours=lambda x: ops.gram(x) * 1.001)
    monkeypatch.setitem(suite.OPS, "gram", wrong)
    assert suite.main(["--quick", "--device=cpu", f"--filter={FILTER}"]) == 1
    out = capsys.readouterr().out
    assert "wrong: gram [1, 4, 8, 8] channels_last float32 forward: Wrong: result: off by 1" in out
    assert "| gram |" not in out


def test_a_baseline_that_fails_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(suite.OPS, "gram", suite.OPS["gram"]._replace(eager=lambda x: x))
    case = suite.Case("gram", (1, 4, 8, 8), "planar", "float32", False)
    result = suite.run(case, CPU, seconds=0.0, compiled=False)
    assert result["missing"]["eager"].startswith("Wrong: result:")
    assert result["ratios"] == {}


def test_no_time_left(tmp_path: Path) -> None:
    file = tmp_path / "ops.json"
    arguments = ["--quick", "--device=cpu", f"--filter={FILTER}", "--seconds=0", f"--json={file}"]
    assert suite.main(arguments) == 0
    report = json.loads(file.read_text())
    assert list(report["left_out"].values()) == ["no time"]
    assert report["cases"] == []
