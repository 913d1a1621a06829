"""Packages faststy: kernels/ becomes faststy.kernels, csrc/ faststy._C where that can be built.

FASTSTY_BUILD_EXT says what to build:
  auto (default)  CUDA and CPU code where torch has CUDA and nvcc is there, otherwise, or where that
                  does not build, CPU code; pure Python, said plainly, where that does not either,
                  or torch, a compiler or the sources are missing
  cpu, cuda       exactly that, or the build fails; cuda needs nvcc, but no torch with CUDA
  0               nothing: pure Python

One binary serves CPython ≥ 3.10 and torch ≥ 2.11, and with CUDA in it also a torch without. CXX and
CXXFLAGS are obeyed, and CUDA_HOME.
"""

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

CPYTHON = "0x030A0000"  # the stable ABI of CPython 3.10: one binary for it and all later ones
TORCH = "0x020b000000000000"  # the stable ABI of torch 2.11, likewise
ARCHITECTURES = ("80", "90", "100")  # others run what is compiled for an older one, or from PTX
WANTED = os.environ.get("FASTSTY_BUILD_EXT", "auto").lower()


def say(sentence: str) -> None:
    print(f"faststy: {sentence}", file=sys.stderr, flush=True)


def cxx() -> list[str]:
    return shlex.split(os.environ.get("CXX") or sysconfig.get_config_var("CXX") or "c++")


def nvcc() -> Path | None:
    """The CUDA compiler: that of CUDA_HOME, on the PATH, or in the usual place."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    if home:
        places = [Path(home, "bin", "nvcc")]
    else:
        places = [Path(shutil.which("nvcc") or "nvcc"), Path("/usr/local/cuda/bin/nvcc")]
    return next((p for p in places if p.is_file()), None)


def toolkit(compiler: Path) -> Path:
    """Where the headers and libraries of a CUDA compiler are; it may be called through a link."""
    command = [compiler, "--dryrun", "-x", "cu", "-c", os.devnull]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stderr.splitlines()
    return Path(next(line.split("=", 1)[1] for line in lines if line.startswith("#$ TOP=")))


def what_is_missing(sources: list[str]) -> str | None:
    """Why the extension cannot be built here, or None."""
    if not sources:
        return "csrc/ holds no sources"
    if os.name != "posix":
        return "the extension builds on Linux and macOS only"
    try:
        import torch  # noqa: F401
    except (ImportError, OSError):
        return "torch is not importable during the build (pip needs --no-build-isolation for that)"
    if shutil.which(cxx()[0]) is None:
        return f"there is no C++ compiler ({cxx()[0]})"
    if WANTED == "cuda" and nvcc() is None:
        return "there is no nvcc: set CUDA_HOME"
    return None


class Build(build_ext):
    """Compiles all sources at a time, and lets setuptools link."""

    def build_extension(self, ext: Extension) -> None:
        import torch

        cuda = nvcc() if WANTED == "cuda" or (WANTED == "auto" and torch.version.cuda) else None
        sources = ext.sources
        for compiler in [cuda, None] if cuda else [None]:
            say(f"building the extension for {'CUDA and ' if compiler else ''}CPU")
            try:
                ext.sources, ext.extra_objects = [], self.compiled(ext, sources, compiler)
                super().build_extension(ext)
                return
            except Exception as error:
                if WANTED != "auto":
                    raise
                what, rest = (
                    ("CUDA code", "for the CPU") if compiler else ("extension", "pure Python")
                )
                say(f"{error}\nThe {what} does not build here: this is {rest}")
        self.extensions.remove(ext)

    def compiled(self, ext: Extension, sources: list[str], cuda: Path | None) -> list[str]:
        """What to link, of all sources or, without a CUDA compiler, of the CPU's; sets how."""
        import torch

        root = Path(torch.__file__).parent
        headers = [f"-I{root / 'include'}", f"-I{sysconfig.get_path('include')}"]
        macros = [f"-DPy_LIMITED_API={CPYTHON}", f"-DTORCH_TARGET_VERSION={TORCH}"]
        own = ["-std=c++20", "-O3", "-fPIC", "-fvisibility=hidden", "-Wall"]
        # SIMD directives without an OpenMP runtime: threads are torch's. Nobody reads errno, traps.
        own += ["-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math"]
        ext.libraries, ext.library_dirs = ["torch", "torch_cpu"], [str(root / "lib")]
        compilers: dict[str, list[str]] = {}
        linked = []
        if cuda:
            home = toolkit(cuda)
            macros += ["-DFASTSTY_WITH_CUDA", "-DUSE_CUDA"]  # the latter for torch's headers
            headers.append(f"-I{home / 'include'}")
            flags = ["-std=c++20", "-O3", *architectures(cuda), *macros, *headers]
            flags += ["--threads=0"]  # all architectures at a time
            compilers[".cu"] = [str(cuda), *flags, "-Xcompiler=-fPIC,-fvisibility=hidden"]
            # Its own runtime: nothing to be found at the import, with or without CUDA in torch.
            ext.libraries += ["cudart_static", "dl", "pthread", "rt"]
            ext.library_dirs += [str(home / "lib64")]
            linked = ["-Wl,--no-as-needed"]  # though unused, libtorch brings libtorch_cuda
        more = shlex.split(os.environ.get("CXXFLAGS", ""))
        compilers[".cpp"] = [*cxx(), *own, *macros, *headers, *more]

        folder = Path(self.build_temp)
        folder.mkdir(parents=True, exist_ok=True)
        sources = [source for source in sources if Path(source).suffix in compilers]
        objects = [str(folder / f"{Path(source).name}.o") for source in sources]

        def run(source: str, target: str) -> str:
            command = [*compilers[Path(source).suffix], "-c", source, "-o", target]
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            told = shlex.join(command) + "\n" + done.stdout.decode(errors="replace")
            if done.returncode:
                raise RuntimeError(f"{source} does not compile:\n{told}")
            return told

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for told in pool.map(run, sources, objects):
                print(told, flush=True)
        return [*objects, *linked]


def extension(sources: list[str]) -> dict[str, Any]:
    """The arguments of setup() that build faststy._C from `sources`."""
    ext = Extension(
        "faststy._C",
        sources,
        depends=[*sources, *map(str, Path("csrc").glob("*.h"))],
        language="c++",
        # A compiler may link libstdc++ statically. Two copies of it, ours and torch's, that share
        # half of their symbols lose or crash on the numbers in an error.
        extra_link_args=["-Wl,--exclude-libs,ALL"] if sys.platform == "linux" else [],
        py_limited_api=True,
    )
    return {
        "ext_modules": [ext],
        "cmdclass": {"build_ext": Build},
        "options": {"bdist_wheel": {"py_limited_api": "cp310"}},
    }


def architectures(compiler: Path) -> list[str]:
    """nvcc's flags for the ARCHITECTURES that it knows, with PTX of the newest."""
    command = [compiler, "--list-gpu-arch"]
    known = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    chosen = [a for a in ARCHITECTURES if f"compute_{a}" in known]
    flags = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in chosen]
    return [*flags, f"-gencode=arch=compute_{chosen[-1]},code=compute_{chosen[-1]}"]


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
