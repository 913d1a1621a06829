"""benchmarks/gpu.sh; `REHEARSE=1 OUT=… benchmarks/gpu.sh` goes through all of it, in minutes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.sh"


@pytest.mark.skipif(os.name != "posix", reason="it is a shell script")
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_cuda_device_it_says_so_and_runs_nothing(tmp_path: Path) -> None:
    settings = {"PYTHON": sys.executable, "OUT": str(tmp_path / "out"), "REHEARSE": ""}
    done = subprocess.run(
        [SCRIPT], env={**os.environ, **settings}, capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 2
    assert "There is no CUDA device" in done.stderr
    assert "nothing was run" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name != "posix", reason="it is a shell script")
def test_a_suite_that_there_is_not_is_told_before_anything_runs(tmp_path: Path) -> None:
    settings = {"SUITES": "ops pos", "OUT": str(tmp_path / "out")}
    done = subprocess.run(
        [SCRIPT], env={**os.environ, **settings}, capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 2
    assert "got pos: nothing was run" in done.stderr
    assert list(tmp_path.iterdir()) == []
