from __future__ import annotations

import numpy as np
import pytest
import stylization as suite
import torch

from faststy import ops

CPU = torch.device("cpu")


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
    assert [case.name for case in suite.cases(CPU, quick=True)] == ["512×512"]


def test_frames_on_the_device_are_painted_as_the_net_does() -> None:
    prepared = suite.prepare_on_device(48, 36, CPU)
    assert prepared.missing == {}
    assert set(prepared.calls) == {"ours", "repaired", "eager"}
    assert not torch.equal(prepared.calls["ours"](0), prepared.calls["ours"](1))


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
