"""What FASTSTY_BUILD_EXT does where something is missing, and what it builds where nothing is."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NO_COMPILER = {"CXX": "no-such-compiler"}
CXX = shlex.split(os.environ.get("CXX") or sysconfig.get_config_var("CXX") or "c++")[0]
NVCC = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")

# An op that says numbers in an error.
FAILS = """
#include <torch/csrc/stable/library.h>
#include <torch/headeronly/util/Exception.h>
void fails(int64_t x) { STD_TORCH_CHECK(x == 13, "x: expected ", 13, ", got ", x); }
STABLE_TORCH_LIBRARY(fails, m) { m.def("at(int x) -> ()"); }
STABLE_TORCH_LIBRARY_IMPL(fails, CompositeExplicitAutograd, m) { m.impl("at", TORCH_BOX(&fails)); }
"""

NVCC_THAT_COMPILES_NOTHING = """case $* in
  *--dryrun*) echo '#$ TOP=/usr' >&2;;
  *--list-gpu-arch*) echo compute_80;;
  *) exit 1;;
esac"""

needs_compiler = pytest.mark.skipif(shutil.which(CXX) is None, reason="there is no C++ compiler")
needs_nvcc = pytest.mark.skipif(NVCC is None, reason="there is no nvcc")


@pytest.fixture
def setup(tmp_path):
    """Reads the metadata by setup.py, in a copy of the project that has one C++ source."""
    files = ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE")
    for name in (*files, "faststy", "kernels"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "csrc").mkdir()
    (tmp_path / "csrc" / "module.cpp").write_text("int main() {}")

    def setup(mode: str, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *(command or ("setup.py", "--version"))],
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


@needs_compiler
def test_cuda_without_nvcc_fails(setup, tmp_path):
    done = setup("cuda", CUDA_HOME=str(tmp_path))
    assert done.returncode != 0
    assert "FASTSTY_BUILD_EXT=cuda, but there is no nvcc: set CUDA_HOME" in done.stderr


@needs_compiler
def test_what_does_not_compile_is_left_out_or_fails(setup, tmp_path):
    (tmp_path / "csrc" / "broken.cpp").write_text("int main() { return none; }")
    done = setup("auto", "setup.py", "build_ext", "--build-lib", "out")
    assert done.returncode == 0, done.stderr
    assert "csrc/broken.cpp does not compile" in done.stderr
    assert "does not build here: this is pure Python" in done.stderr
    assert not list((tmp_path / "out").rglob("*.so"))
    assert setup("cpu", "setup.py", "build_ext").returncode != 0


@needs_compiler
@pytest.mark.parametrize("nvcc", ["exit 1", NVCC_THAT_COMPILES_NOTHING], ids=["broken", "compiles"])
def test_cuda_that_does_not_build_leaves_the_cpu_code(setup, tmp_path, nvcc):
    (tmp_path / "csrc" / "gpu.cu").write_text("")
    (tmp_path / "sitecustomize.py").write_text("import torch; torch.version.cuda = '13.0'")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "nvcc").write_text(f"#!/bin/sh\n{nvcc}\n")
    (tmp_path / "bin" / "nvcc").chmod(0o755)
    place = {"CUDA_HOME": str(tmp_path), "PYTHONPATH": str(tmp_path)}
    build = ("setup.py", "build_ext", "--build-lib", "out")
    done = setup("auto", *build, **place)
    assert done.returncode == 0, done.stderr
    assert "The CUDA code does not build here: this is for the CPU" in done.stderr
    assert len(list((tmp_path / "out").rglob("*.so"))) == 1
    assert setup("cuda", *build, **place).returncode != 0


@needs_compiler
def test_the_wheel_is_for_all_later_pythons(setup, tmp_path):
    pytest.importorskip("build")
    shutil.copy(ROOT / "csrc" / "module.cpp", tmp_path / "csrc")
    done = setup("cpu", "-m", "build", "--no-isolation", "--wheel", "--outdir", "wheels")
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = (tmp_path / "wheels").iterdir()
    assert re.search(r"-cp310-abi3-\w+\.whl$", wheel.name)
    assert wheel.stat().st_size <= 15_000_000
    names = zipfile.ZipFile(wheel).namelist()
    assert "faststy/_C.abi3.so" in names
    assert "faststy/kernels/gram.py" in names
    assert "faststy/kernels/README.md" not in names  # which an sdist holds
    assert {"faststy/py.typed", "faststy/assets/styles.safetensors"} <= {*names}


@needs_compiler
@pytest.mark.skipif(sys.platform != "linux", reason="other systems bind symbols by library")
def test_errors_are_errors_where_the_compiler_links_its_library_statically(setup, tmp_path):
    shutil.copy(ROOT / "csrc" / "module.cpp", tmp_path / "csrc")
    (tmp_path / "csrc" / "fails.cpp").write_text(FAILS)
    build = ("setup.py", "build_ext", "--build-lib", "out")
    done = setup("cpu", *build, LDFLAGS="-static-libstdc++")
    if "-lstdc++" in done.stderr:
        pytest.skip("there is no static libstdc++")
    assert done.returncode == 0, done.stderr
    call = "import sys, torch; sys.path.insert(0, 'out/faststy'); import _C; torch.ops.fails.at(12)"
    assert "RuntimeError: fails, " in (told := setup("0", "-c", call).stderr), told
    assert ", x: expected 13, got 12" in told


@needs_compiler
@needs_nvcc
def test_cuda_sources_compile_without_spills_and_import_without_a_gpu(setup, tmp_path):
    """For each of setup.py's architectures, with whatever torch is here."""
    sources = sorted((ROOT / "csrc").glob("*.cu"))
    for path in (ROOT / "csrc" / "module.cpp", *(ROOT / "csrc").glob("*.h"), *sources):
        shutil.copy(path, tmp_path / "csrc")
    if not sources:
        pytest.skip("there are no CUDA sources")
    build = ("setup.py", "build_ext", "--build-lib", "out")
    done = setup("cuda", *build, NVCC_APPEND_FLAGS="-Xptxas=-v")
    told = done.stdout + done.stderr
    assert done.returncode == 0, told
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", told)
    targets = set(re.findall(r"for '(sm_\d+)'", told))
    assert {"sm_80", "sm_90"} <= targets
    assert len(spills) >= len(targets) * len(sources)
    assert set(spills) == {("0", "0")}
    import_it = "import sys, torch; sys.path.insert(0, 'out/faststy'); import _C"
    assert setup("0", "-c", import_it).returncode == 0
