"""What FASTSTY_BUILD_EXT does where something is missing; building itself is seen by `make dev`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NO_COMPILER = {"CXX": "no-such-compiler"}


@pytest.fixture
def setup(tmp_path):
    """Reads the metadata by setup.py, in a copy of the project that has one C++ source."""
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "faststy", "kernels"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "csrc").mkdir()
    (tmp_path / "csrc" / "module.cpp").write_text("int main() {}")

    def setup(mode: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "setup.py", "--version"],
            cwd=tmp_path,
            env={**os.environ, "FASTSTY_BUILD_EXT": mode, **environment},
            capture_output=True,
            text=True,
        )

    return setup


@pytest.mark.skipif(os.name != "posix", reason="other systems find their compiler otherwise")
def test_auto_without_a_compiler_is_pure_python_and_says_so(setup):
    done = setup("auto", **NO_COMPILER)
    assert done.returncode == 0, done.stderr
    assert "no C++ compiler (no-such-compiler): this is pure Python" in done.stderr


@pytest.mark.skipif(os.name != "posix", reason="other systems find their compiler otherwise")
def test_an_explicit_choice_without_a_compiler_fails(setup):
    done = setup("cpu", **NO_COMPILER)
    assert done.returncode != 0
    assert "FASTSTY_BUILD_EXT=cpu, but there is no C++ compiler" in done.stderr


def test_auto_without_torch_is_pure_python_and_says_so(setup, tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError('blocked')")
    done = setup("auto", PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "torch is not importable during the build" in done.stderr


def test_zero_asks_for_nothing(setup):
    done = setup("0", **NO_COMPILER)
    assert done.returncode == 0
    assert "faststy:" not in done.stderr


def test_an_unknown_choice_fails(setup):
    done = setup("gpu")
    assert done.returncode != 0
    assert "FASTSTY_BUILD_EXT is auto, cpu, cuda or 0, not 'gpu'" in done.stderr
