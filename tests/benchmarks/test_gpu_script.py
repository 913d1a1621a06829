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


def function(name: str) -> str:
    _, begin, rest = SCRIPT.read_text("utf-8").partition(f"\n{name}() {{")
    return begin + rest.partition("\n}\n")[0] + "\n}\n"


@pytest.mark.skipif(os.name != "posix", reason="it is a shell script")
@pytest.mark.parametrize("built", [False, True])
def test_without_an_extension_none_is_loaded_from_elsewhere(built: bool, tmp_path: Path) -> None:
    """As the finder of a package that is installed editable does: of an older source."""
    fake = tmp_path / "python"  # whose setup.py refuses the project, or leaves the extension out
    build = f"mkdir -p {tmp_path}/package && cp -r faststy {tmp_path}/package/"
    fake.write_text(f"#!/bin/sh\n{build if built else 'echo refused; exit 1'}\n")
    fake.chmod(0o755)
    repository, editable = tmp_path / "repository", tmp_path / "editable"
    for folder in (repository / "faststy", repository / "kernels", editable):
        folder.mkdir(parents=True)
    (repository / "faststy" / "__init__.py").touch()
    (editable / "_C.py").touch()
    if not built:
        (repository / "faststy" / "_C.abi3.so").touch()
    script = f"""set -uo pipefail
cd {repository} || exit 1
failed= python={fake} OUT={tmp_path} build={tmp_path}
{function("package")}
package
echo "failed:$failed"
"""
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == ("failed:" if built else "failed: build")
    package = tmp_path / "package" / "faststy"
    assert not list(package.glob("*.so"))
    load = f"""import importlib.util, sys
class Finder:  # as setuptools has it, after all others
    @staticmethod
    def find_spec(name, path, target=None):
        if name == "faststy._C":
            return importlib.util.spec_from_file_location(name, {str(editable / "_C.py")!r})
sys.meta_path.append(Finder)
import faststy._C"""
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "package")}
    command = [sys.executable, "-S", "-c", load]  # without packages of the machine
    loaded = subprocess.run(
        command, env=environment, capture_output=True, text=True, cwd=tmp_path / "package"
    )
    assert "ModuleNotFoundError: it was not built: see build.log" in loaded.stderr


@pytest.mark.skipif(os.name != "posix", reason="it is a shell script")
def test_all_that_needs_a_gpu_is_run(tmp_path: Path) -> None:
    """A mark in a conftest.py is one of every test in its folder."""
    for name in ("nn/conftest.py", "cli/test_a.py", "ops/conftest.py", "kernels/test_b.py"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("pytest.mark.gpu\n")
    (tmp_path / "nn" / "test_c.py").touch()
    (tmp_path / "cli" / "test_d.py").touch()
    script = f"{function('marked_in')}\nmarked_in {tmp_path}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert {*done.stdout.splitlines()} == {f"{tmp_path}/nn", f"{tmp_path}/cli/test_a.py"}


@pytest.mark.skipif(os.name != "posix", reason="it is a shell script")
def test_what_came_of_it_is_of_this_run(tmp_path: Path) -> None:
    (tmp_path / "ops.log").write_text("wrong: ops: gram: Wrong: off by 1\n")
    (tmp_path / "training.log").write_text("wrong: training: of a run before\n")
    script = f"""set -uo pipefail
suites=(ops memory) OUT={tmp_path}
{function("came_of_it")}
came_of_it
"""
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    assert done.stdout == "wrong: ops: gram: Wrong: off by 1\n"
    assert done.stderr == ""


@pytest.mark.skipif(os.name != "posix", reason="it is a shell script")
def test_a_step_ends_in_time_whoever_keeps_its_output_open(tmp_path: Path) -> None:
    """As workers of pytest do that was killed."""
    script = f"""set -uo pipefail
{function("step")}
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
