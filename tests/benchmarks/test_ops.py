from __future__ import annotations

from typing import Any

import _bench
import combined_loss
import ops as suite
import pytest
import torch

from faststy import ops
from faststy.ops import dispatch

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def two_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (suite, combined_loss):
        monkeypatch.setattr(module, "buffers", lambda size, device: 2)


CUDA_ONLY = {op for op in suite.OPS if not suite.OPS[op].shapes.cpu}  # right here all the same
JOBS = [
    (op, d) for op in suite.OPS for d in _bench.DTYPES if suite.cpu_shapes(op, d) or op in CUDA_ONLY
]


@pytest.mark.parametrize(("op", "dtype"), JOBS)
def test_every_op_is_right_and_so_are_its_baselines(op: str, dtype: str) -> None:
    shape = (1, 16, 16, 3) if "pixels" in op or op in suite.REPAIR else (2, 16, 32, 36)
    for layout in suite.OPS[op].layouts:
        job = suite.Job(op, shape, layout, dtype, bool(suite.OPS[op].leaves))
        prepared = suite.prepare(job, CPU, compiled=False)
        assert prepared.missing == {}
        assert prepared.calls.keys() == {"ours", "eager", *suite.OPS[op].others}
        assert {*prepared.calls} <= {*suite.VARIANTS}
        assert prepared.bytes > 0


@pytest.mark.parametrize(
    ("player", "dtype"),
    [*(("generator", dtype) for dtype in _bench.DTYPES), ("discriminator", "float32")],
)
def test_the_combined_losses_are_right_and_so_are_their_baselines(player: str, dtype: str) -> None:
    job = combined_loss.Job(player, "hinge", 2, 64, dtype)
    prepared = combined_loss.prepare(job, CPU, compiled=False)
    assert prepared.missing == {}
    assert prepared.calls.keys() == {"ours", "eager"}


def test_bytes_and_operations() -> None:
    job = suite.Job("gram", (1, 4, 8, 8), "planar", "float32", backward=False)
    prepared = suite.prepare(job, CPU, compiled=False)
    assert prepared.bytes == 4 * 4 * 64 + 4 * 16
    assert prepared.operations == 16 * 64


def test_bytes_of_what_is_not_returned_are_not_counted() -> None:
    shape = (2, 4, 8, 8)
    x, target = 4 * 2 * 4 * 64, 4 * 16  # one for all pictures
    for op, backward, moved in (
        ("gram_loss", False, x + target),
        ("gram_loss", True, 3 * x + 2 * target),
        ("instance_norm+residual", True, 6 * x),
        ("instance_norm+relu+residual", False, 3 * x),
        ("instance_norm+relu+residual", True, 8 * x),
    ):
        job = suite.Job(op, shape, "planar", "float32", backward)
        assert suite.OPS[op].cost(job)[0] == moved


@pytest.mark.parametrize("layout", suite.LAYOUTS)
def test_gradients_arrive_in_the_strides_of_each_result(layout: str) -> None:
    """Eager norms give planes: with another gradient, a transposition would be timed that their
    own net does not have."""
    arrived: list[tuple[int, ...]] = []

    def doubled(x: torch.Tensor) -> torch.Tensor:
        y = 2 * x.contiguous(memory_format=suite.LAYOUTS[layout])
        if y.requires_grad:
            y.register_hook(lambda dy: arrived.append(dy.stride()))
        return y

    x, dy = torch.randn(2, 2, 8, 12, 12)
    results: Any = suite.variant(doubled, 1, [([x.requires_grad_()], (dy,))])(0)
    assert arrived == [results[0].stride()]
    torch.testing.assert_close(results[1], 2 * dy)


def test_a_wrong_result_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong: Any = suite.OPS["gram"]._replace(ours=lambda x: ops.gram(x) * 1.001)
    monkeypatch.setitem(suite.OPS, "gram", wrong)
    job = suite.Job("gram", (1, 4, 8, 8), "planar", "float32", backward=False)
    with pytest.raises(_bench.Wrong, match=r"result: off by 1\.0e-03, 2e-05 is allowed"):
        suite.prepare(job, CPU, compiled=False)


def test_a_baseline_that_fails_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(suite.OPS, "gram", suite.OPS["gram"]._replace(eager=lambda x: x))
    job = suite.Job("gram", (1, 4, 8, 8), "planar", "float32", backward=False)
    prepared = suite.prepare(job, CPU, compiled=False)
    assert prepared.missing["eager"].startswith("Wrong: result:")
    assert prepared.calls.keys() == {"ours"}


def test_the_quick_form_is_part_of_the_whole() -> None:
    whole, quick = (suite.cases(CPU, quick) for quick in (False, True))
    assert {c.name for c in quick} < {c.name for c in whole}
    assert len({c.name for c in whole}) == len(whole)
    assert any(c.headline for c in quick)


def test_all_dtypes_are_measured_in_both_layouts_and_float32_comes_first() -> None:
    jobs = list(suite.jobs(CPU, quick=False))
    assert list(dict.fromkeys(job.dtype for job in jobs)) == ["float32", "bfloat16", "float16"]
    for dtype in _bench.DTYPES:
        ops_here = suite.OPS.keys() - CUDA_ONLY
        known = {(op, layout) for op in ops_here for layout in suite.OPS[op].layouts}
        known -= {(op, "planar") for op in suite.IN_LINES}
        missing = known - {(job.op, job.layout) for job in jobs if job.dtype == dtype}
        left = {*suite.IN_FLOAT32} if dtype == "bfloat16" else {*suite.IN_FLOAT32, *suite.IN_LINES}
        assert {op for op, _ in missing} == (set() if dtype == "float32" else left)


def test_on_a_gpu_every_op_comes_before_any_other_shape_and_headlines_before_all() -> None:
    """So that little time is enough for what is asked first; cases are only listed here."""
    gpu = torch.device("cuda")
    jobs = list(suite.jobs(gpu, quick=False))
    assert len(set(jobs)) == len(jobs)
    each = len(list(suite.jobs(gpu, quick=True)))  # every op once, in both layouts
    assert {(job.op, job.layout) for job in jobs[:each]} == {
        (op, layout) for op in suite.OPS for layout in suite.OPS[op].layouts
    }
    for job in jobs[:each]:
        assert job.dtype == ("float16" if job.op in suite.IN_FLOAT16 else "bfloat16")
        assert job.shape == suite.OPS[job.op].shapes.cuda[0]
    assert jobs[each].shape == (1, 48, 540, 960)
    cases = suite.cases(gpu, quick=False)
    headlines = [case.headline for case in cases]
    assert headlines == sorted(headlines, reverse=True)
    assert sum(headlines) == 1 + len(suite.OPS)


def test_on_a_gpu_torch_compile_is_measured_for_headlines_alone() -> None:
    gpu = torch.device("cuda")
    assert _bench.compiling("float32", gpu, quick=False, headline=True)
    assert not _bench.compiling("float32", gpu, quick=False, headline=False)
    assert not _bench.compiling("float32", gpu, quick=True, headline=True)
    assert _bench.compiling("float32", CPU, quick=False, headline=False)
    assert not _bench.compiling("float16", CPU, quick=False, headline=True)


def test_every_op_that_has_kernels_is_among_the_cases() -> None:
    """By the names of ops.dispatch; of a convolution that learns a part has one of its own."""
    covered = {op.partition("+")[0] for op in suite.OPS} | {"combined_loss", "discriminator_loss"}
    assert suite.CONVOLUTIONS == ("reflected_conv3x3+relu", "frozen_conv3x3+relu")
    covered |= {"conv3x3_train", "conv3x3_train_weight_grad", "bias_activation"}  # bias+relu
    assert dispatch.KERNELS.keys() <= covered


def test_a_compiled_loss_is_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """For all inputs that rotate: otherwise each would be timed with a compilation, or fail."""
    compiled: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        compiled.append(graph)
        return graph

    compile_it = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **kw: compile_it(f, **kw, backend=backend))
    monkeypatch.setattr(combined_loss, "buffers", lambda size, device: 3)
    for player in ("generator", "discriminator"):  # one after the other, as a suite has them
        compiled.clear()
        job = combined_loss.Job(player, "hinge", 1, 32, "float32")
        prepared = combined_loss.prepare(job, CPU, compiled=True)
        assert prepared.missing == {}
        for i in range(3):
            prepared.calls["compiled"](i)
        assert len(compiled) == 1


def test_tuning_takes_each_kind_of_tensor_once(monkeypatch: pytest.MonkeyPatch) -> None:
    met: list[Any] = []

    def tune(x: torch.Tensor, kernels: Any) -> list[ops.Tuned]:
        met.append((*kernels, tuple(x.shape)))
        return [ops.Tuned(f"{kernels[0]}_fwd", (64, 0.5), 1e-5, 2e-5, 3)]

    monkeypatch.setattr(ops, "tune", tune)
    shapes = suite.Shapes(cuda=[], cpu=[(1, 4, 8, 8)])
    for name in ("instance_norm+relu", "instance_norm+residual", "gram", "gram_loss"):
        monkeypatch.setitem(suite.OPS, name, suite.OPS[name]._replace(shapes=shapes))
    cases = [c for c in suite.cases(CPU, True) if "planar" in c.name and "+relu+" not in c.name]
    lines = list(suite.tune(cases, CPU, True))
    convolution = ("conv3x3", suite.OPS["conv3x3+relu"].shapes.cpu[0])
    assert met == [("instance_norm", (1, 4, 8, 8)), ("gram", (1, 4, 8, 8)), convolution]
    assert lines[1] == ("gram_fwd [1, 4, 8, 8] planar float32: 10 µs, 2.00× the default: (64, 0.5)")
