"""The CUDA kernels of the combined loss where there is no GPU: as C++ (emulated/cuda_runtime.h)."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from faststy.ops import reference

from .conftest import INTERPRETED
from .test_combined_loss import TOLERANCES, relative

ROOT = Path(__file__).parents[2]
CXX = shutil.which("g++")
pytestmark = [
    pytest.mark.skipif(INTERPRETED, reason="has no Triton kernel"),
    pytest.mark.skipif(sys.platform != "linux" or CXX is None, reason="needs g++ on Linux"),
    pytest.mark.skipif(torch.version.cuda is not None, reason="a GPU runs the kernels themselves"),
]
PLANAR, LAST = torch.contiguous_format, torch.channels_last

# What is not C++, and sizes at which small tensors have several chunks of few threads.
REWRITTEN = {
    r"(\w+)<<<(\w+), THREADS, 0, stream>>>\(": r"launch(\1, \2, THREADS, ",
    r"const torch::stable::accelerator::DeviceGuard guard\(.*\);": "",
    r"STABLE_TORCH_LIBRARY_IMPL\(faststy_native, CUDA, m\)": (
        "STABLE_TORCH_LIBRARY_FRAGMENT(faststy_emulated, m) {\n"
        "  for (const char* schema : faststy::loss::SCHEMAS) m.def(schema);\n}\n"
        "STABLE_TORCH_LIBRARY_IMPL(faststy_emulated, CPU, m)"
    ),
    # Each of the blocks that run side by side has its own.
    r"extern __shared__ uint4 (\w+)\[\];": r"uint4* const \1 = emulation::block->shared.data();",
    r"__shared__ (\w+) (\w+)(\[\w+\])?;": (
        r"static \1 all_\2[emulation::MOST_BLOCKS]\3; auto& \2 = all_\2[emulation::slot];"
    ),
    r"THREADS = 256": "THREADS = 64",
    r"SMALLEST_CHUNK = 1024, LARGEST_CHUNK = 16384": "SMALLEST_CHUNK = 256, LARGEST_CHUNK = 512",
}
STREAM = """
extern "C" AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void** stream) {
  *stream = nullptr;
  return 0;
}
"""


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("emulated")
    text = (ROOT / "csrc" / "combined_loss_cuda.cu").read_text(encoding="utf-8")
    for pattern, replacement in REWRITTEN.items():
        text, count = re.subn(pattern, replacement, text)
        assert count, pattern
    (folder / "kernels.cpp").write_text(text + STREAM, encoding="utf-8")
    for header in ("combined_loss.h", "simd.h"):
        shutil.copy(ROOT / "csrc" / header, folder)
    torch_root, library = Path(torch.__file__).parent, folder / "kernels.so"
    command: list[str | Path | None] = [CXX, "-std=c++20", "-O1", "-w", "-fPIC", "-shared"]
    command += ["-pthread", "-DTORCH_TARGET_VERSION=0x020b000000000000"]
    command += [f"-I{Path(__file__).parent / 'emulated'}", f"-I{torch_root / 'include'}"]
    command += ["-o", library, folder / "kernels.cpp"]
    command += [f"-L{torch_root / 'lib'}", "-ltorch", "-ltorch_cpu"]
    subprocess.run([str(part) for part in command], check=True)
    torch.ops.load_library(str(library))
    return torch.ops.faststy_emulated


def agree(ours: Any, truth: Any, inputs: list[Tensor], tolerance: float) -> None:
    total, losses, gradients = ours
    assert torch.equal(total, losses[-2])
    assert relative(losses, truth[1]) < 1e-6
    for x, a, b in zip(inputs if gradients else [], gradients, truth[2], strict=True):
        assert a.dtype == x.dtype
        assert a.stride() == x.stride()
        assert relative(a, b) < tolerance


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize(
    ("form", "dtype", "layout", "channels", "side", "with_colours"),
    [
        ("hinge", torch.float32, PLANAR, 4, 8, True),
        ("bce", torch.float32, PLANAR, 5, 9, False),
        ("lsgan", torch.float16, PLANAR, 6, 6, True),
        ("hinge", torch.float32, LAST, 8, 8, True),
        ("lsgan", torch.float32, LAST, 5, 9, True),
        ("bce", torch.bfloat16, LAST, 8, 8, False),
    ],
)
def test_combined_loss(
    emulated: Any,
    form: str,
    dtype: torch.dtype,
    layout: torch.memory_format,
    channels: int,
    side: int,
    with_colours: bool,
    gradients: bool,
) -> None:
    torch.manual_seed(0)

    def tensor(*shape: int) -> Tensor:
        return (torch.randn(shape) + 0.5).to(dtype).contiguous(memory_format=layout)

    def features() -> list[Tensor]:
        return [tensor(2, channels, side, side + 1)]

    inputs = [
        [tensor(2, 1, 7, 5), tensor(2, 1, 3, 2)],
        [torch.randn(2, channels, channels), torch.randn(2, 3, 3)],
        features(),
        [tensor(2, 3, side, side + 3)],
        features(),
    ]
    constants = [
        [torch.randn(2, channels, channels), torch.randn(2, 3, 3)],
        features(),
        [torch.randn(2, 4, 4)] if with_colours else [],
        features(),
        [torch.rand(2, 1, side, side + 1).to(dtype)],
    ]
    weights = torch.tensor([0.6, 15.0, 1.0, 0.3, 12.0, 4.0])
    lists = [*inputs, *constants]
    ours = emulated.combined_loss_fwd(*lists, weights, form, 0.7, gradients)
    wide = [[t.double() for t in tensors] for tensors in lists]
    truth = reference.combined_loss_fwd(*wide, weights.double(), form, 0.7, gradients)
    agree(ours, truth, [t for tensors in inputs for t in tensors], TOLERANCES[dtype])


@pytest.mark.parametrize("form", ["bce", "hinge", "lsgan"])
def test_discriminator_loss(emulated: Any, form: str) -> None:
    torch.manual_seed(0)
    real, fake = [torch.randn(2, 1, 9, 11), torch.randn(700)], [torch.randn(2, 1, 30, 11) * 3]
    ours = emulated.discriminator_loss_fwd(real, fake, form, True)
    wide = [[t.double() for t in side] for side in (real, fake)]
    agree(ours, reference.discriminator_loss_fwd(*wide, form, True), [*real, *fake], 3e-6)
    assert emulated.discriminator_loss_fwd([real[0] * torch.nan], fake, form, True)[1][-1] == 0


def test_nothing_at_all(emulated: Any) -> None:
    lists: list[list[Tensor]] = [[]] * 10
    losses = emulated.combined_loss_fwd(*lists, torch.ones(6), "bce", 1.0, True)[1]
    assert losses.tolist() == [0.0] * 7 + [1.0]


def test_scaling(emulated: Any) -> None:
    gradients = [torch.randn(1200), torch.randn(33)[1:], torch.randn(100).half()]
    gradients.append(torch.randn(17).bfloat16())
    for scale in (2.5, 1.0):
        expected = [x * scale for x in gradients]
        emulated.combined_loss_scale_(gradients, torch.tensor(scale))
        for x, y in zip(gradients, expected, strict=True):
            assert torch.equal(x, y)
