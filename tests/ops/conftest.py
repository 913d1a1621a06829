"""The ops' tests serve every implementation: the one that is active on this CPU, the kernels on a
CUDA device (`-m gpu`), and the kernels in Triton's interpreter (TRITON_INTERPRET=1)."""

import os
from collections.abc import Iterator

import pytest
import torch

from faststy.ops import dispatch

# torch's deterministic mode asks for it before it multiplies matrices on a GPU.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    if INTERPRETED and request.param == "cuda":
        pytest.skip("the interpreter runs on the CPU")
    return torch.device(request.param)


@pytest.fixture(autouse=True)
def implementation(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if INTERPRETED:
        pytest.importorskip("triton")
        monkeypatch.setattr(dispatch, "IMPL", "triton")
    forget = (dispatch._find.cache_clear, dispatch._is_native.cache_clear)
    for cache_clear in forget:
        cache_clear()
    yield
    for cache_clear in forget:
        cache_clear()


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """torch.empty is full of NaN, so that what is never written is noticed."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
