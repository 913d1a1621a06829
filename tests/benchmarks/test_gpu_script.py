"""benchmarks/gpu.sh; `REHEARSE=1 OUT=… benchmarks/gpu.sh` goes through all of it, in minutes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
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


@pytest.mark.skipif(os.name != "posix", reason="it is a shell script")
def test_a_step_ends_in_time_whoever_keeps_its_output_open(tmp_path: Path) -> None:
    """As workers of pytest do that was killed."""
    _, begin, rest = SCRIPT.read_text("utf-8").partition("step() {")
    function = begin + rest.partition("\n}\n")[0] + "\n}\n"
    script = f"""set -uo pipefail
{function}
failed= OUT={tmp_path}
step slow 1 bash -c 'echo begun; sleep 30 & exec sleep 30'
step good 5 bash -c 'echo done'
echo "failed:$failed"
"""
    began = time.monotonic()
    with open(tmp_path / "told", "w") as told:  # a pipe would be open as long
        subprocess.run(["bash", "-c", script], stdout=told, stderr=told, check=True)
    assert time.monotonic() - began < 15
    assert (tmp_path / "told").read_text().splitlines()[-1] == "failed: slow"
    assert "begun" in (tmp_path / "slow.log").read_text()
    assert (tmp_path / "good.log").read_text() == "done\n"
