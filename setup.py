"""Packages faststy: kernels/ becomes faststy.kernels, csrc/ faststy._C where that can be built.

FASTSTY_BUILD_EXT says what to build:
  auto (default)  CUDA and CPU code where torch has CUDA and nvcc is there, otherwise CPU code; pure
                  Python, said plainly, where torch, a compiler or the sources are missing
  cpu, cuda       exactly that, or the build fails
  0               nothing: pure Python
"""

import os
import shlex
import shutil
import sys
import sysconfig
from pathlib import Path
from typing import Any

from setuptools import find_packages, setup

CPYTHON = "0x030A0000"  # the stable ABI of CPython 3.10: one binary for it and all later ones
TORCH = "0x020b000000000000"  # the stable ABI of torch 2.11, likewise
WANTED = os.environ.get("FASTSTY_BUILD_EXT", "auto").lower()


def say(sentence: str) -> None:
    print(f"faststy: {sentence}", file=sys.stderr, flush=True)


def what_is_missing(sources: list[str]) -> str | None:
    """Why the extension cannot be built here, or None."""
    if not sources:
        return "csrc/ holds no sources"
    try:
        import torch
    except (ImportError, OSError):
        return "torch is not importable during the build (pip needs --no-build-isolation for that)"
    if os.name == "posix":
        compiler = shlex.split(os.environ.get("CXX") or sysconfig.get_config_var("CXX") or "c++")[0]
        if shutil.which(compiler) is None:
            return f"there is no C++ compiler ({compiler})"
    if WANTED == "cuda":
        from torch.utils.cpp_extension import CUDA_HOME

        if CUDA_HOME is None:
            return f"torch {torch.__version__} has no CUDA, or nvcc is not to be found"
    return None


def extension(sources: list[str]) -> dict[str, Any]:
    """The arguments of setup() that build faststy._C from `sources`."""
    import torch
    from torch.utils.cpp_extension import (
        CUDA_HOME,
        BuildExtension,
        CppExtension,
        CUDAExtension,
    )

    with_cuda = WANTED == "cuda" or (WANTED == "auto" and bool(torch.version.cuda and CUDA_HOME))
    macros = [f"-DPy_LIMITED_API={CPYTHON}", f"-DTORCH_TARGET_VERSION={TORCH}"]
    if with_cuda:
        macros.append("-DFASTSTY_WITH_CUDA")
    else:
        sources = [s for s in sources if not s.endswith(".cu")]
    flags = {"cxx": ["-O3", "-fopenmp", *macros], "nvcc": ["-O3", *macros]}

    class BuildOrSay(BuildExtension):  # type: ignore[misc]
        """In auto mode an extension that does not compile is left out, not fatal."""

        def build_extensions(self) -> None:
            try:
                super().build_extensions()
            except Exception as error:
                if WANTED != "auto":
                    raise
                say(f"the extension does not compile here ({error}): this is pure Python")
                self.extensions = []

    make = CUDAExtension if with_cuda else CppExtension
    say(f"building the extension for {'CUDA and ' if with_cuda else ''}CPU")
    return {
        "ext_modules": [make("faststy._C", sources, extra_compile_args=flags, py_limited_api=True)],
        "cmdclass": {"build_ext": BuildOrSay},
        "options": {"bdist_wheel": {"py_limited_api": "cp310"}},
    }


def native() -> dict[str, Any]:
    if WANTED not in ("auto", "cpu", "cuda", "0"):
        raise SystemExit(f"faststy: FASTSTY_BUILD_EXT is auto, cpu, cuda or 0, not {WANTED!r}")
    if WANTED == "0":
        return {}
    sources = sorted(str(p) for pattern in ("*.cpp", "*.cu") for p in Path("csrc").glob(pattern))
    missing = what_is_missing(sources)
    if missing is None:
        return extension(sources)
    if WANTED != "auto":
        raise SystemExit(f"faststy: FASTSTY_BUILD_EXT={WANTED}, but {missing}")
    say(f"{missing}: this is pure Python")
    return {}


setup(
    packages=[*find_packages(include=["faststy", "faststy.*"]), "faststy.kernels"],
    package_dir={"faststy.kernels": "kernels"},
    **native(),
)
