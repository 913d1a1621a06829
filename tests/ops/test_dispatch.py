from __future__ import annotations

import os
import subprocess
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from faststy import ops
from faststy.errors import FaststyError
from faststy.ops import dispatch, reference


def run(code: str, **environment: str) -> str:
    env = {**os.environ, "TRITON_INTERPRET": "0", **environment}
    return subprocess.run(
        [sys.executable, "-c", code], env=env, check=True, capture_output=True, text=True
    ).stdout


def test_works_without_triton_and_the_extension() -> None:
    code = """
import sys
sys.modules["triton"] = sys.modules["faststy._C"] = None  # neither can be imported
import torch
from faststy import ops
x = torch.randn(1, 3, 4, 4, requires_grad=True)
ops.gram_loss(ops.instance_norm(x), torch.eye(3)).backward()
print({i.name for i in ops.implementations() if i.device == "cpu"})
print("triton" in {m for m, v in sys.modules.items() if v is not None})
"""
    assert run(code).split("\n")[:2] == ["{'reference'}", "False"]


def test_import_starts_no_cuda_and_loads_no_kernels() -> None:
    code = """
import sys, torch
from faststy import ops
print(torch.cuda.is_initialized(), "faststy.kernels" in sys.modules)
"""
    assert run(code).strip() == "False False"


def test_environment_forces_an_implementation() -> None:
    code = "from faststy import ops; print({i.name for i in ops.implementations()})"
    assert run(code, FASTSTY_IMPL="reference").strip() == "{'reference'}"
    code = (
        "from faststy import ops; print(*(i for i in ops.implementations() if i.device == 'cpu'))"
    )
    assert "Triton needs a CUDA device" in run(code, FASTSTY_IMPL="triton")


def test_every_op_is_listed_with_a_reason() -> None:
    listed = [i for i in ops.implementations() if i.device == "cpu"]
    assert [i.op for i in listed] == list(dispatch.KERNELS)
    assert all(i.name in dispatch.CHOICES and i.why for i in listed)


def test_forced_but_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "IMPL", "triton")
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(FaststyError, match="FASTSTY_IMPL=triton: gram on cpu: Triton needs"):
        ops.gram(torch.zeros(1, 3, 4, 4))
    monkeypatch.setattr(dispatch, "IMPL", "fastest")
    with pytest.raises(FaststyError, match="FASTSTY_IMPL=fastest: expected one of auto"):
        dispatch.choose("gram", "cpu")
    with pytest.raises(FaststyError, match="FASTSTY_IMPL=fastest: expected one of auto"):
        ops.blur(torch.zeros(1, 3, 4, 4))  # which torch computes on a CPU


def test_a_generator_trains_by_the_extension_and_what_it_lacks() -> None:
    if dispatch._no_native("gram", "cpu") is not None:
        pytest.skip("there is no extension")
    code = """
import torch
from faststy import ops
from faststy.nn.generator import Generator, GeneratorConfig
net = Generator(GeneratorConfig.named("nano")).to(memory_format=torch.channels_last)
net(torch.rand(1, 3, 160, 160)).sum().backward()
print({i.name for i in ops.implementations() if i.device == "cpu"} - {"native", "reference"})
"""
    assert run(code, FASTSTY_IMPL="native").strip() == "set()"


def test_float64_is_not_for_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    triton = dispatch.Implementation("gram", "cpu", "triton", "")
    monkeypatch.setattr(dispatch, "choose", lambda op, device: triton)
    x = torch.zeros(1, 1, 2, 2, dtype=torch.float64)
    assert dispatch.implementation("gram_fwd", (x, None)) is reference.gram_fwd


def test_kernels_are_launched_on_the_device_of_the_first_tensor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext(seen.append(device)))
    seen: list[torch.device] = []
    launch = dispatch._on_its_device(lambda *args: len(args))
    x = torch.empty(1, device="meta")
    assert launch(x, 2.0) == launch([x, x], None) == 2
    assert seen == [x.device, x.device]


def test_torch_keeps_what_it_does_well(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.zeros(1, 3, 4, 4)
    for choice, by_kernels in {"auto": False, "native": False, "triton": True}.items():
        monkeypatch.setattr(dispatch, "IMPL", choice)
        assert dispatch.by_kernels(x) == by_kernels
    assert not dispatch.by_kernels(x, 2**30)  # offsets are int32


@pytest.mark.parametrize(
    ("name", "major", "shared", "reason"),
    [
        ("H100", 9, 228 << 10, None),
        ("A100", 8, 164 << 10, None),
        ("RTX 4090", 8, 100 << 10, "RTX 4090 has too little shared memory"),
        ("V100", 7, 96 << 10, "compute capability 8.0"),
    ],
)
def test_gpus_that_are_too_small(
    monkeypatch: pytest.MonkeyPatch, name: str, major: int, shared: int, reason: str | None
) -> None:
    gpu = SimpleNamespace(name=name, major=major, shared_memory_per_multiprocessor=shared)
    large = SimpleNamespace(name="H200", major=9, shared_memory_per_multiprocessor=228 << 10)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: (large, gpu)[i])
    dispatch._too_small.cache_clear()
    found = dispatch._too_small("conv3x3"), dispatch._too_small("combined_loss")
    dispatch._too_small.cache_clear()
    if reason is None:
        assert found == (None, None)
    else:
        assert reason in str(found[0])
        assert (found[1] is None) == (major >= 8)
