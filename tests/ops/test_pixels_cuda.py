"""Cells of pixels by CUDA where there is no GPU: as C++ (emulation.py), against the reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from faststy.ops import reference

from .emulation import GUARD, MARKS, build

pytestmark = MARKS
REWRITTEN = {
    **GUARD,
    r"THREADS = 256": "THREADS = 32",
    r"LIBRARY_IMPL\(faststy_native, CUDA, m\) \{": (
        "LIBRARY_FRAGMENT(faststy_cells, m) {\n"
        '  m.def("from_pixels(Tensor frames, ScalarType dtype, bool channels_last, int unshuffle, '
        'float low, float high) -> Tensor");\n}\n'
        "STABLE_TORCH_LIBRARY_IMPL(faststy_cells, CPU, m) {"
    ),
}


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Any:
    build(tmp_path_factory.mktemp("cells"), "pixels_cuda.cu", REWRITTEN)
    return torch.ops.faststy_cells


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("unshuffle", [2, 4])
@pytest.mark.parametrize(("height", "width"), [(8, 16), (9, 52), (3, 5), (1, 1)])
def test_from_pixels(
    emulated: Any, height: int, width: int, unshuffle: int, dtype: torch.dtype
) -> None:
    frames = torch.randint(256, (2, height, width + 3, 3), dtype=torch.uint8)
    for seen in (frames, frames[:, :, 1:-1]):  # the latter at odd addresses
        given = seen, dtype, True, unshuffle, -1.0, 1.0
        expected = reference.from_pixels(*given)
        found = emulated.from_pixels(*given)
        assert found.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(found, expected, rtol=0, atol=2 * torch.finfo(dtype).eps)
