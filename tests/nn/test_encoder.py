"""The encoders: numbers against a float64 reference, layouts, sizes, and what bad input says."""

from __future__ import annotations

import json
import sys
import types
import urllib.error
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from faststy.errors import FaststyError
from faststy.nn.encoder import (
    KEY,
    MEAN,
    OXFORD,
    VGG19_NAMES,
    VGG19_STAGES,
    WEIGHTS,
    Encoder,
    PerceptualEncoder,
    VGG19Encoder,
    load_encoder,
)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder()


@pytest.fixture(scope="module")
def teacher_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of VGG-19's shapes, under torchvision's names."""
    generator = torch.Generator().manual_seed(0)
    tensors, channels = {}, 3
    for names, widths in zip(VGG19_NAMES, VGG19_STAGES, strict=True):
        for n, width in zip(names, widths, strict=True):
            weight = torch.randn(width, channels, 3, 3, generator=generator)
            bias = 10 * torch.randn(width, generator=generator)
            tensors[f"features.{n}.weight"] = (weight * (2 / channels / 9) ** 0.5).half()
            tensors[f"features.{n}.bias"] = bias.half()
            channels = width
    path = tmp_path_factory.mktemp("teacher") / "vgg19.safetensors"
    save_file(tensors, path, {"input": "RGB in [0,255] minus the mean"})
    return path


def picture(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1))


def conv64(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A convolution written as a matrix product of patches, in float64."""
    k = weight.shape[-1]
    patches = F.unfold(x, k, padding=k // 2)
    y = weight.double().flatten(1) @ patches + bias.double()[:, None]
    return y.unflatten(2, x.shape[2:])


def taps64(net: PerceptualEncoder, x: Tensor) -> list[Tensor]:
    x = x.double() - torch.tensor(MEAN).double().view(3, 1, 1)
    taps = []
    for t, stage in enumerate(net.stages):
        if t:
            h, w = x.shape[2] // 2 * 2, x.shape[3] // 2 * 2
            x = x[..., :h, :w].unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).amax((3, 5))
        for i, conv in enumerate(stage):
            x = conv64(x, conv.weight, conv.bias).clamp_min(0)
            if i == 0:
                head = net.heads[t] if len(net.heads) else None
                taps.append(conv64(x, head.weight, head.bias) if head is not None else x)
    return taps


@pytest.mark.parametrize("size", [(32, 48), (37, 21), (8, 8)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_taps_match_float64(
    encoder: Encoder, size: tuple[int, int], layout: torch.memory_format
) -> None:
    x = picture(2, 3, *size).contiguous(memory_format=layout)
    taps = encoder(x)
    assert [tap.shape[1] for tap in taps] == encoder.channels
    for t, (tap, expected) in enumerate(zip(taps, taps64(encoder, x), strict=True)):
        assert tap.shape[2:] == (size[0] >> t, size[1] >> t)
        scale = expected.square().mean().sqrt().item()
        torch.testing.assert_close(tap.double(), expected, rtol=1e-4, atol=1e-4 * scale)


def test_channels_last_is_kept(encoder: Encoder) -> None:
    x = picture(2, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    assert all(tap.is_contiguous(memory_format=torch.channels_last) for tap in encoder(x))
    assert all(tap.is_contiguous() for tap in encoder(x.contiguous()))


def test_gradient_reaches_the_picture_only(encoder: Encoder) -> None:
    x = picture(1, 3, 16, 16).requires_grad_()
    sum(tap.square().mean() for tap in encoder(x)).backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
    assert not encoder.training
    assert all(not p.requires_grad and p.grad is None for p in encoder.parameters())


def test_gradient_matches_finite_differences() -> None:
    double = Encoder().double()
    x = picture(1, 3, 8, 8).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: double(x)[3].square().mean(), x, eps=1e-7, rtol=1e-2)


def test_loading_draws_no_random_number() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    Encoder()
    assert torch.equal(torch.rand(3), expected)


def test_shipped_file_is_small() -> None:
    assert WEIGHTS.stat().st_size <= 3_000_000


def test_cost_is_a_tenth_of_vgg19(encoder: Encoder) -> None:
    def multiply_adds(net: PerceptualEncoder) -> int:
        total = 0
        for t, stage in enumerate(net.stages):
            convs = [*stage, net.heads[t]] if len(net.heads) else list(stage)
            total += sum(conv.weight.numel() * (256 >> t) ** 2 for conv in convs)
        return total

    assert multiply_adds(encoder) * 10 <= multiply_adds(PerceptualEncoder(VGG19_STAGES))


def test_vgg19_matches_its_original_units(teacher_file: Path) -> None:
    """Taps are those of VGG-19 fed with 0…255 minus the mean, divided by 255."""
    net = load_encoder(f"vgg19:{teacher_file}")
    assert isinstance(net, VGG19Encoder)
    original = VGG19Encoder(teacher_file)
    for parameter in (p for n, p in original.named_parameters() if n.endswith("bias")):
        parameter *= 255
    x = picture(1, 3, 16, 24)
    mean = torch.tensor(MEAN).view(3, 1, 1)
    expected = taps64(original, 255 * (x - mean) + mean)  # taps64 takes the mean off again
    for tap, raw in zip(net(x), expected, strict=True):
        scale = raw.square().mean().sqrt().item() / 255
        torch.testing.assert_close(tap.double(), raw / 255, rtol=1e-4, atol=1e-4 * scale)
    assert net.channels == [64, 128, 256, 512]


def test_load_encoder_knows_its_names(teacher_file: Path) -> None:
    assert isinstance(load_encoder("faststy"), Encoder)
    assert isinstance(load_encoder(f"faststy:{WEIGHTS}"), Encoder)
    with pytest.raises(FaststyError, match="expected faststy, vgg19 or vgg19:FILE"):
        load_encoder("resnet")
    with pytest.raises(TypeError, match="spec: expected a string, got NoneType"):
        load_encoder(None)  # type: ignore[arg-type]


def test_vgg19_without_torchvision_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    with pytest.raises(FaststyError, match="pip install torchvision"):
        load_encoder("vgg19")


def install_torchvision(monkeypatch: pytest.MonkeyPatch, weights: object) -> None:
    """A torchvision that has nothing but `VGG19_Weights.IMAGENET1K_V1.get_state_dict`."""

    def get_state_dict(**_: object) -> object:
        if isinstance(weights, Exception):
            raise weights
        return dict(weights)

    models = types.ModuleType("torchvision.models")
    entry = types.SimpleNamespace(get_state_dict=get_state_dict)
    models.VGG19_Weights = types.SimpleNamespace(IMAGENET1K_V1=entry)
    monkeypatch.setitem(sys.modules, "torchvision", types.ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.models", models)


@pytest.mark.parametrize("saved", [False, True])
def test_torchvisions_vgg19_sees_pictures_divided_by_their_deviation(
    monkeypatch: pytest.MonkeyPatch, teacher_file: Path, tmp_path: Path, saved: bool
) -> None:
    weights = {name: tensor.float() for name, tensor in load_file(teacher_file).items()}
    if saved:
        save_file(weights, tmp_path / "saved.safetensors", {"input": "torchvision"})
        net = load_encoder(f"vgg19:{tmp_path / 'saved.safetensors'}")
    else:
        install_torchvision(monkeypatch, weights)
        net = load_encoder("vgg19")
    plain = PerceptualEncoder(VGG19_STAGES)
    for t, names in enumerate(VGG19_NAMES):
        for i, n in enumerate(names):
            for kind in ("weight", "bias"):
                getattr(plain.stages[t][i], kind).copy_(weights[f"features.{n}.{kind}"])
    x = picture(1, 3, 16, 24)
    mean = torch.tensor(MEAN).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    expected = taps64(plain, (x - mean) / std + mean)  # taps64 takes the mean off again
    for tap, truth in zip(net(x), expected, strict=True):
        scale = truth.square().mean().sqrt().item()
        torch.testing.assert_close(tap.double(), truth, rtol=1e-4, atol=1e-4 * scale)


def test_a_vgg19_that_does_not_tell_its_input_is_refused(
    tmp_path: Path, teacher_file: Path
) -> None:
    path = tmp_path / "vgg19.safetensors"
    weights = load_file(teacher_file)
    for metadata in ({}, {"input": "BGR in [0,255]"}):
        save_file(weights, path, metadata)
        with pytest.raises(FaststyError, match=r"does not tell what pictures its weights take; "):
            VGG19Encoder(path)


def test_the_published_weights_of_vgg19_need_no_label(tmp_path: Path, teacher_file: Path) -> None:
    weights = load_file(teacher_file)
    weights["features.0.weight"][0, 0, 0] = torch.tensor(OXFORD)
    save_file(weights, tmp_path / "vgg19.safetensors")
    net = VGG19Encoder(tmp_path / "vgg19.safetensors")
    expected = weights["features.0.bias"].float() / 255
    torch.testing.assert_close(net.stages[0][0].bias, expected)
    weights["features.0.weight"] = weights["features.0.weight"].flip(1)  # BGR
    save_file(weights, tmp_path / "vgg19.safetensors")
    with pytest.raises(FaststyError, match="does not tell"):
        VGG19Encoder(tmp_path / "vgg19.safetensors")


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("operator torchvision::nms does not exist"),  # made for another torch
        urllib.error.URLError("no network"),
    ],
)
def test_torchvision_that_cannot_load_vgg19_says_why(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    install_torchvision(monkeypatch, error)
    with pytest.raises(FaststyError, match=r"(nms|no network).*vgg19:FILE takes a file"):
        load_encoder("vgg19")


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.rand(3, 32, 32), ValueError, r"\[N, 3, H, W\], got \[3, 32, 32\]"),
        (torch.rand(1, 4, 32, 32), ValueError, r"got \[1, 4, 32, 32\]"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), TypeError, "floating point in 0..1, got"),
        (torch.rand(1, 3, 7, 32), ValueError, "at least 8 px"),
        (torch.rand(1, 3, 32, 32) * 255, ValueError, "values in 0..1"),
        (torch.rand(1, 3, 32, 32) * 2 - 1, ValueError, "values in 0..1"),
    ],
)
def test_wrong_pictures_are_refused(
    encoder: Encoder, x: Tensor, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        encoder(x)


@pytest.mark.parametrize("taps", [0, 5])
def test_another_number_of_taps_is_refused(encoder: Encoder, taps: int) -> None:
    with pytest.raises(ValueError, match=f"taps: expected 1 to 4, got {taps}"):
        encoder(picture(1, 3, 16, 16), taps)


def test_slight_overshoot_is_accepted(encoder: Encoder) -> None:
    encoder(picture(1, 3, 16, 16) * 1.2 - 0.1)


def test_broken_files_are_refused(tmp_path: Path, teacher_file: Path) -> None:
    path = tmp_path / "encoder.safetensors"
    with pytest.raises(FaststyError, match="no such encoder file"):
        Encoder(path)
    for size in (0, 7, 5000):
        path.write_bytes(WEIGHTS.read_bytes()[:size])
        with pytest.raises(FaststyError, match=r"not a whole \.safetensors file"):
            Encoder(path)
    with pytest.raises(FaststyError, match="not a faststy encoder"):
        Encoder(teacher_file)
    with pytest.raises(FaststyError, match=r"features\.0\.weight is missing"):
        VGG19Encoder(WEIGHTS)


def test_files_that_lie_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "encoder.safetensors"

    def write(**plan: object) -> None:
        save_file({"x": torch.zeros(1)}, path, {KEY: json.dumps(plan)})

    plan = {"stages": [[4], [4], [4], [4]], "heads": [2, 2, 2, 2]}
    write(format=1, **plan)
    with pytest.raises(FaststyError, match="the weights do not fit"):
        Encoder(path)
    write(format=99, **plan)
    with pytest.raises(FaststyError, match="newer faststy"):
        Encoder(path)
    for empty in ([[], [4], [4], [4]], [[4], [4], [], [4]], []):
        write(format=1, stages=empty, heads=plan["heads"][: len(empty)])
        with pytest.raises(FaststyError, match="not a faststy encoder"):
            Encoder(path)
    write(format=1, stages="none")
    with pytest.raises(FaststyError, match="not a faststy encoder"):
        Encoder(path)


def test_the_first_taps_alone_are_the_same():
    x = torch.rand(1, 3, 40, 24)
    encoder = Encoder()
    whole, first = encoder(x), encoder(x, taps=3)
    assert len(first) == 3
    assert all(torch.equal(a, b) for a, b in zip(whole, first, strict=False))
