"""The CUDA kernels of the combined loss where there is no GPU: as C++ (emulated/cuda_runtime.h)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from faststy.ops import reference

from .emulation import GUARD, MARKS, SHARED, build
from .test_combined_loss import TOLERANCES, relative

pytestmark = MARKS
PLANAR, LAST = torch.contiguous_format, torch.channels_last

# What is not C++, and sizes at which small tensors have several chunks of few threads.
REWRITTEN = {
    **GUARD,
    **SHARED,
    r"(\w+)<<<(\w+), THREADS, 0, stream>>>\(": r"launch(\1, \2, THREADS, ",
    r"STABLE_TORCH_LIBRARY_IMPL\(faststy_native, CUDA, m\)": (
        "STABLE_TORCH_LIBRARY_FRAGMENT(faststy_emulated, m) {\n"
        "  for (const char* schema : faststy::loss::SCHEMAS) m.def(schema);\n}\n"
        "STABLE_TORCH_LIBRARY_IMPL(faststy_emulated, CPU, m)"
    ),
    r"__shared__ (\w+) (\w+)(\[\w+\])?;": (
        r"static \1 all_\2[emulation::MOST_BLOCKS]\3; auto& \2 = all_\2[emulation::slot];"
    ),
    r"THREADS = 256": "THREADS = 64",
    r"SMALLEST_CHUNK = 1024, LARGEST_CHUNK = 12288": "SMALLEST_CHUNK = 256, LARGEST_CHUNK = 512",
}


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Any:
    library = build(tmp_path_factory.mktemp("emulated"), "combined_loss_cuda.cu", REWRITTEN)
    torch.ops.faststy_emulated.launches = library.launches
    torch.ops.faststy_emulated.limit = library.limit
    return torch.ops.faststy_emulated


def agree(ours: Any, truth: Any, inputs: list[Tensor], tolerance: float) -> None:
    total, losses, gradients = ours
    assert torch.equal(total, losses[-2])
    assert relative(losses, truth[1]) < 1e-6
    for x, a, b in zip(inputs if gradients else [], gradients, truth[2], strict=True):
        assert a.dtype == x.dtype
        assert a.stride() == x.stride()
        assert relative(a, b) < tolerance


def odd_address(x: Tensor) -> Tensor:
    """A copy that starts one number after where a pack of 16 bytes could."""
    memory = x.new_empty(x.numel() + 1)[1:]
    copy = memory.as_strided(x.shape, x.stride(), memory.storage_offset())
    return copy.copy_(x)


def arguments(
    dtype: torch.dtype,
    layout: torch.memory_format,
    channels: int,
    side: int,
    with_colours: bool,
    aligned: bool = True,
) -> list[list[Tensor]]:
    """The inputs of all terms, which get gradients, and what these are compared with."""

    def tensor(*shape: int) -> Tensor:
        x = (torch.randn(shape) + 0.5).to(dtype).contiguous(memory_format=layout)
        return x if aligned else odd_address(x)

    def features() -> list[Tensor]:
        return [tensor(2, channels, side, side + 1)]

    # Rows of whole packs in every dtype, and rows that are not.
    pictures = [tensor(2, 3, 7, 24), tensor(2, 3, side, side + 3)]
    colours = [torch.randn(2, 4, 4) for _ in pictures] if with_colours else []
    if not with_colours:
        pictures.append(tensor(1, 4, side, 8))
    return [
        [tensor(2, 1, 7, 5), tensor(2, 1, 3, 2)],
        [torch.randn(2, channels, channels), torch.randn(2, 3, 3)],
        features(),
        pictures,
        features(),
        [torch.randn(2, channels, channels), torch.randn(2, 3, 3)],
        features(),
        colours,
        features(),
        [torch.rand(2, 1, side, side + 1).to(dtype)],
    ]


WEIGHTS = torch.tensor([0.6, 15.0, 1.0, 0.3, 12.0, 4.0])


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize(
    ("form", "dtype", "layout", "channels", "side", "with_colours", "aligned"),
    [
        ("hinge", torch.float32, PLANAR, 4, 8, True, True),
        ("bce", torch.float32, PLANAR, 5, 9, False, True),
        ("lsgan", torch.float16, PLANAR, 6, 6, True, True),
        ("lsgan", torch.float16, PLANAR, 4, 8, False, False),
        ("hinge", torch.float32, LAST, 8, 8, True, True),
        ("lsgan", torch.float32, LAST, 5, 9, True, True),
        ("hinge", torch.float32, LAST, 8, 7, True, False),
        ("bce", torch.bfloat16, LAST, 8, 8, False, True),
        ("bce", torch.bfloat16, LAST, 8, 8, True, True),
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
    aligned: bool,
    gradients: bool,
) -> None:
    torch.manual_seed(0)
    lists = arguments(dtype, layout, channels, side, with_colours, aligned)
    ours = emulated.combined_loss_fwd(*lists, WEIGHTS, form, 0.7, gradients)
    wide = [[t.double() for t in tensors] for tensors in lists]
    truth = reference.combined_loss_fwd(*wide, WEIGHTS.double(), form, 0.7, gradients)
    agree(ours, truth, [t for tensors in lists[:5] for t in tensors], TOLERANCES[dtype])


@pytest.mark.parametrize(
    ("dtype", "layout", "aligned"),
    [
        (torch.float32, PLANAR, True),
        (torch.float32, LAST, False),
        (torch.float16, LAST, True),
        (torch.bfloat16, PLANAR, True),
    ],
)
def test_the_same_bits_in_one_launch_or_two(
    emulated: Any,
    monkeypatch: pytest.MonkeyPatch,
    dtype: torch.dtype,
    layout: torch.memory_format,
    aligned: bool,
) -> None:
    torch.manual_seed(0)
    lists = arguments(dtype, layout, 8, 8, True)
    if not aligned:  # references alone: what of them is kept does lie at whole packs
        lists[6] = [odd_address(b) for b in lists[6]]
    found = []
    # Of a multiprocessor's shared memory: all that the first pass reads fits, some, nothing.
    for cooperative, shared in ((1, 1 << 16), (1, 8 << 10), (1, 0), (0, 1 << 16)):
        monkeypatch.setenv("EMULATED_COOPERATIVE", str(cooperative))
        monkeypatch.setenv("EMULATED_SHARED", str(shared))
        before = emulated.launches()
        found.append(emulated.combined_loss_fwd(*lists, WEIGHTS, "bce", 0.7, True))
        assert emulated.launches() - before == (1 if cooperative else 2)
    for total, losses, gradients in found[1:]:
        assert torch.equal(total, found[0][0])
        assert torch.equal(losses, found[0][1])
        assert all(map(torch.equal, gradients, found[0][2]))


def test_no_launch_lowers_the_limit_of_shared_memory(emulated: Any) -> None:
    """It is one for all threads: another may be about to launch with more."""
    limits = set()
    for side in (2, 12):
        emulated.combined_loss_fwd(
            *arguments(torch.float32, PLANAR, 4, side, True), WEIGHTS, "bce", 0.7, True
        )
        limits.add(emulated.limit())
    assert len(limits) == 1


@pytest.mark.parametrize("form", ["bce", "hinge", "lsgan"])
def test_discriminator_loss(emulated: Any, form: str) -> None:
    torch.manual_seed(0)
    real, fake = [torch.randn(2, 1, 9, 11), torch.randn(700)], [torch.randn(2, 1, 30, 11) * 3]
    ours = emulated.discriminator_loss_fwd(real, fake, form, True)
    wide = [[t.double() for t in side] for side in (real, fake)]
    agree(ours, reference.discriminator_loss_fwd(*wide, form, True), [*real, *fake], 3e-6)
    before = emulated.launches()
    assert emulated.discriminator_loss_fwd([real[0] * torch.nan], fake, form, True)[1][-1] == 0
    assert emulated.launches() - before == 1


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
