from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import stylization as suite
import torch
from torch.profiler import ProfilerActivity, profile

from faststy import Stylizer, ops
from faststy.stylization.realtime import FramePainter

CPU = torch.device("cpu")
PREPARED = [
    suite.prepare,
    suite.prepare_repaired,
    suite.prepare_batch,
    suite.prepare_on_device,
]


@pytest.mark.parametrize("activation", [None, "relu"])
def test_the_norm_that_is_exported_is_ours(activation: str | None) -> None:
    x, residual = torch.randn(2, 2, 5, 7, 6)
    weight, bias, mean, rstd = torch.randn(4, 5)
    settings = {"activation": activation, "residual": residual, "statistics": (mean, rstd.exp())}
    expected = ops.instance_norm(x, weight, bias, **settings)
    found = suite.exportable_norm(x, weight, bias, **settings)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_gpu_begins_with_the_largest_frames_and_paints_several_together() -> None:
    names = [case.name for case in suite.cases(torch.device("cuda"), quick=False)]
    largest = ["3840×2160", "3840×2160 on the device", "3840×2160, 5 together"]
    assert names[:4] == [*largest, "1920×1080"]
    assert {"256×256", "512×512, 5 together"} < set(names)
    quick = [case.name for case in suite.cases(CPU, quick=True)]
    assert quick == ["512×512", "512×512 repaired"]


def test_frames_on_the_device_are_painted_as_the_net_does() -> None:
    prepared = suite.prepare_on_device(48, 36, CPU)
    assert prepared.missing == {}
    assert set(prepared.calls) == {"ours", "repaired", "eager"}
    assert not torch.equal(prepared.calls["ours"](0), prepared.calls["ours"](1))


def test_repaired_frames_are_painted_as_the_nets_do() -> None:
    prepared = suite.prepare_repaired(48, 36, CPU)
    assert prepared.missing == {}
    assert set(prepared.calls) == {"ours", "eager"}
    assert prepared.operations > suite.prepare_on_device(48, 36, CPU).operations
    ours, plain = (prepared.calls["ours"](0), suite.painter(suite.scene(48, 36), CPU, repair=0)(0))
    assert not np.array_equal(np.asarray(ours), np.asarray(plain))
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        prepared.calls["eager"](0)
    assert not [e.key for e in seen.key_averages() if "faststy_native" in e.key]


def test_several_frames_are_painted_as_the_net_does() -> None:
    prepared = suite.prepare_batch(128, 96, CPU)
    assert prepared.missing == {}
    assert set(prepared.calls) == {"ours", "one by one", "eager"}
    assert prepared.operations == 5 * suite.prepare_on_device(128, 96, CPU).operations > 0


@pytest.mark.parametrize("prepare", PREPARED)
def test_frames_after_the_first_are_checked(prepare: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first one has a path of its own, which is not what is timed."""

    def black(self: FramePainter, frames: torch.Tensor, settings: Any) -> Any:
        return torch.zeros_like(frames), self._entrance[None].clone()

    monkeypatch.setattr(FramePainter, "_paint_slowly", black)
    with pytest.raises(suite.Wrong, match="levels, 3 are allowed"):
        prepare(48, 36, CPU)


def test_what_is_called_eager_has_nothing_of_ours() -> None:
    calls = [
        suite.eager(suite.scene(48, 36), CPU),
        suite.prepare_on_device(48, 36, CPU).calls["eager"],
    ]
    for call in calls:
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            call(0)
        names = {event.key for event in seen.key_averages()}
        assert "aten::conv2d" in names
        assert not [name for name in names if "faststy_native" in name]


@torch.inference_mode()
def test_torch_norms_compute_the_same() -> None:
    net, other = (Stylizer.load(device="cpu").model.generator for _ in range(2))
    suite.with_torch_norms(other)
    x = torch.rand(1, 3, 36, 48)
    torch.testing.assert_close(other(x), net(x), rtol=1e-3, atol=1e-3)
    half = suite.as_written(CPU, suite.HALF)(x.half())
    assert half.dtype == suite.HALF
    assert (half - net(x)).abs().mean() < 0.01


def test_onnx_runtime_that_cannot_use_its_provider_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    monkeypatch.setattr(onnxruntime.InferenceSession, "get_providers", lambda self: ["Other"])
    with pytest.raises(RuntimeError, match="cannot use its CPUExecutionProvider"):
        suite.onnxruntime(suite.scene(48, 36), CPU)


def test_onnx_runtime_paints_what_the_net_paints() -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    frames = suite.scene(48, 36)
    onnx, eager = suite.onnxruntime(frames, CPU), suite.eager(frames, CPU)
    off = np.abs(onnx(0).astype(int) - eager(0))
    assert off.max() <= 1  # level, where rounding is close
    assert off.mean() < 0.01
    assert onnx(1).shape == frames[1].shape  # which is painted with the first one's statistics
    assert onnx(1).dtype == np.uint8
    assert not np.array_equal(onnx(1), onnx(0))
