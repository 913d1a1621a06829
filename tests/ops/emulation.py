"""CUDA sources of csrc/ as C++ on this machine, where there is no GPU (emulated/cuda_runtime.h)."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from .conftest import INTERPRETED

ROOT = Path(__file__).parents[2]
CXX = shutil.which("g++")
MARKS = [
    pytest.mark.skipif(INTERPRETED, reason="has no Triton kernel"),
    pytest.mark.skipif(sys.platform != "linux" or CXX is None, reason="needs g++ on Linux"),
    pytest.mark.skipif(torch.version.cuda is not None, reason="a GPU runs the kernels themselves"),
]
GUARD = {r"const torch::stable::accelerator::DeviceGuard guard\(.*\);": ""}
# Each of the blocks that run side by side has its own.
SHARED = {
    r"extern __shared__ uint4 (\w+)\[\];": r"uint4* const \1 = emulation::block->shared.data();"
}
STREAM = """
extern "C" AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void** stream) {
  *stream = nullptr;
  return 0;
}
extern "C" int launches() { return emulation::launches; }
extern "C" int limit() { return emulation::limit; }
"""


def build(folder: Path, source: str, rewritten: Mapping[str, str]) -> ctypes.CDLL:
    """Loads csrc/`source` with the `rewritten` patterns, of which each must be found, in place."""
    text = (ROOT / "csrc" / source).read_text(encoding="utf-8")
    for pattern, replacement in rewritten.items():
        text, count = re.subn(pattern, replacement, text)
        assert count, pattern
    (folder / "kernels.cpp").write_text(text + STREAM, encoding="utf-8")
    headers = Path(__file__).parent / "emulated"
    for header in (ROOT / "csrc").glob("*.h"):
        if not (headers / header.name).exists():
            shutil.copy(header, folder)
    torch_root, library = Path(torch.__file__).parent, folder / "kernels.so"
    command: list[str | Path | None] = [CXX, "-std=c++20", "-O1", "-w", "-fPIC", "-shared"]
    command += ["-pthread", "-DTORCH_TARGET_VERSION=0x020b000000000000"]
    command += [f"-I{headers}", f"-I{torch_root / 'include'}"]
    command += ["-o", library, folder / "kernels.cpp"]
    command += [f"-L{torch_root / 'lib'}", "-ltorch", "-ltorch_cpu"]
    subprocess.run([str(part) for part in command], check=True)
    torch.ops.load_library(str(library))
    return ctypes.CDLL(str(library))
