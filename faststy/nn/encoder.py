"""Perceptual encoders: the shipped small net and its teacher, VGG-19, behind the same four taps.

Both take `[N, 3, H, W]` RGB in 0…1 and return four feature maps at strides 1, 2, 4, 8 that stand
for relu1_1, relu2_1, relu3_1, relu4_1 of VGG-19 (Simonyan & Zisserman, "Very Deep Convolutional
Networks for Large-Scale Image Recognition", 2015), in units of VGG-19's own features / 255.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from faststy import assets, ops
from faststy.errors import FaststyError

WEIGHTS = assets.encoder()
FORMAT = 1
KEY = "faststy.encoder"  # the metadata entry that marks an encoder file

MEAN = (123.68 / 255, 116.779 / 255, 103.939 / 255)  # the pixel mean VGG-19 was trained with
DEVIATION = (0.229, 0.224, 0.225)  # what torchvision divides pictures in 0…1 by
# The first row of the first filter, for red, of the weights that VGG-19's authors published.
OXFORD = (0.3943, 0.3774, -0.0460)
MIN_SIDE = 8  # three poolings
VGG19_STAGES = ((64, 64), (128, 128), (256, 256, 256, 256), (512,))
# torchvision's names of the convolutions up to conv4_1, stage by stage
VGG19_NAMES = ((0, 2), (5, 7), (10, 12, 14, 16), (19,))


class _Conv2d(nn.Conv2d):
    """Unset until it is loaded: random weights would cost time and move the random state."""

    def reset_parameters(self) -> None:
        pass

    def forward(self, x: Tensor) -> Tensor:
        return ops.convolve(x, self.weight, self.bias)


class _Conv3x3(_Conv2d):
    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor, relu: bool = False, pool: bool = False) -> Tensor:
        """[N, C, H, W] to [N, K, H, W], its positive part if `relu`, or half the size if `pool`."""
        assert self.bias is not None
        return ops.frozen_conv3x3(x, self.weight, self.bias, relu=relu, pool=pool)


class PerceptualEncoder(nn.Module):
    """VGG's plan at any width: stages of 3x3 convolutions, max pooling between, a tap per stage.

    A stage's tap is taken after its first convolution; with `heads`, through a 1x1 convolution.
    Frozen and in eval mode: gradients flow to the picture only. Zero padding, as in VGG.
    The weights are left unset, to be loaded: no random number is drawn.

    Args:
        stages: output channels of the convolutions of each of the four stages.
        heads: channels of each tap, or None for taps straight from the convolutions.

    Raises ValueError for another number of stages, or one without a convolution.
    """

    mean: Tensor

    def __init__(self, stages: Sequence[Sequence[int]], heads: Sequence[int] | None = None) -> None:
        super().__init__()
        if len(stages) != 4 or not all(stages):
            raise ValueError(f"stages: expected convolutions in each of four, got {stages}")
        self.channels = list(heads) if heads else [widths[0] for widths in stages]  # of the taps
        self.stages = nn.ModuleList()
        channels = 3
        for widths in stages:
            stage = nn.ModuleList()
            for width in widths:
                stage.append(_Conv3x3(channels, width))
                channels = width
            self.stages.append(stage)
        self.heads = nn.ModuleList(
            _Conv2d(widths[0], head, 1)
            for widths, head in zip(stages, heads or (), strict=bool(heads))
        )
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self._range_checked = False
        self.requires_grad_(False).eval()

    def forward(self, x: Tensor, taps: int = 4) -> list[Tensor]:
        """`[N, 3, H, W]` RGB in 0…1, sides of at least 8, to four taps `[N, C_t, H/2^t, W/2^t]`.

        With `taps` below 4 only the first ones, at less cost.
        The memory format of `x` is kept. Raises ValueError or TypeError for any other input.
        """
        if not 1 <= taps <= 4:
            raise ValueError(f"taps: expected 1 to 4, got {taps}")
        self._check(x)
        found: list[Tensor] = []
        x = x - self.mean
        for t, stage in enumerate(self.stages):
            first, *others = stage.children()
            x = first(x, relu=True)
            found.append(self.heads[t](x) if len(self.heads) else x)
            if len(found) == taps:
                break
            for conv in others[:-1]:
                x = conv(x, relu=True)
            x = others[-1](x, relu=True, pool=True) if others else ops.max_pool(x)
        return found

    def _check(self, x: Tensor) -> None:
        if x.ndim != 4 or x.shape[1] != 3:
            raise ValueError(f"x: expected RGB pictures [N, 3, H, W], got {list(x.shape)}")
        if not x.is_floating_point():
            raise TypeError(f"x: expected floating point in 0..1, got {x.dtype}")
        if min(x.shape[2:]) < MIN_SIDE:
            raise ValueError(f"x: expected sides of at least {MIN_SIDE} px, got {list(x.shape)}")
        # Pictures from outside are checked, not a generator's; on a GPU once, as it waits.
        if torch.compiler.is_compiling() or x.requires_grad or x.numel() == 0:
            return
        if x.device.type == "cpu" or not self._range_checked:
            self._range_checked = True
            sample = x.detach()[..., ::4, ::4]
            outside = ((sample < -0.05) | (sample > 1.05)).float().mean().item()
            if outside > 0.25:
                raise ValueError(
                    f"x: expected values in 0..1, got {outside:.0%} outside "
                    f"({sample.min().item():.3g}..{sample.max().item():.3g})"
                )


class Encoder(PerceptualEncoder):
    """The small encoder distilled from VGG-19; its weights are shipped with the package.

    Its taps stand for the leading uncentred principal components of the teacher's taps, so that
    Gram matrices and feature distances keep their meaning and scale.

    Args:
        path: a file made by `tools/distill_encoder.py`; the shipped one by default.

    Raises FaststyError when the file is not a readable encoder.
    """

    def __init__(self, path: str | os.PathLike[str] = WEIGHTS) -> None:
        path = Path(path)
        tensors, metadata = _read(path)
        try:
            description = json.loads(metadata[KEY])
            if description["format"] > FORMAT:
                raise FaststyError(f"{path}: made by a newer faststy; upgrade faststy")
            super().__init__(description["stages"], description["heads"])
        except (KeyError, TypeError, ValueError) as error:
            raise FaststyError(
                f"{path}: not a faststy encoder; expected a file made by tools/distill_encoder.py"
            ) from error
        _load(self, tensors, path)


class VGG19Encoder(PerceptualEncoder):
    """The teacher: VGG-19 up to relu4_1, with 64, 128, 256 and 512 channels.

    Args:
        path: a `.safetensors` file with torchvision's names (`features.0.weight` …); by default
            torchvision's own weights. What the weights take is told by its metadata entry
            `input`: `RGB in [0,255]` for that minus the mean, as the authors of VGG-19 published
            them, which need no entry; or `torchvision` for RGB in 0…1 minus the mean, divided by
            the deviation.

    Raises FaststyError when the file does not hold VGG-19 or does not tell its input, or
    torchvision is not installed or cannot load its weights.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        super().__init__(VGG19_STAGES)
        names = [n for stage in VGG19_NAMES for n in stage]
        keys = [f"features.{n}.{kind}" for n in names for kind in ("weight", "bias")]
        if path is None:
            tensors, source, entry = _torchvision_vgg19(), "torchvision's VGG-19", "torchvision"
        else:
            tensors, metadata = _read(Path(path))
            source, entry = str(path), metadata.get("input", "")
        missing = [key for key in keys if key not in tensors]
        if missing:
            raise FaststyError(
                f"{source}: not VGG-19 up to conv4_1; expected torchvision's names, "
                f"{missing[0]} is missing"
            )
        divided = _takes_divided(entry, tensors["features.0.weight"], source)
        # Pictures are in 0…1 here. For weights made for 0…255, biases shrink as the input does,
        # features with them; for those made for a deviation of 1, weights are divided instead.
        shrink = 1 if divided else 255
        std = torch.tensor(DEVIATION if divided else (1.0, 1.0, 1.0)).view(1, 3, 1, 1)
        state = {}
        for t, stage in enumerate(VGG19_NAMES):
            for i, n in enumerate(stage):
                state[f"stages.{t}.{i}.weight"] = tensors[f"features.{n}.weight"].float()
                state[f"stages.{t}.{i}.bias"] = tensors[f"features.{n}.bias"].float() / shrink
        state["stages.0.0.weight"] = state["stages.0.0.weight"] / std
        _load(self, state, source)


@torch.inference_mode(False)  # of a caller's: such weights could not pass gradients on
def load_encoder(spec: str = "faststy") -> PerceptualEncoder:
    """Make the encoder that `spec` names: `faststy`, `vgg19` (torchvision's) or `vgg19:FILE`.

    Raises FaststyError for any other spec, and where the weights cannot be read; TypeError for
    what is no string.
    """
    if not isinstance(spec, str):
        raise TypeError(f"spec: expected a string, got {type(spec).__name__}")
    name, _, path = spec.partition(":")
    if name == "faststy":
        return Encoder(path) if path else Encoder()
    if name == "vgg19":
        return VGG19Encoder(path or None)
    raise FaststyError(f"unknown encoder {spec!r}: expected faststy, vgg19 or vgg19:FILE")


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    if not path.is_file():
        raise FaststyError(f"{path}: no such encoder file")
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise FaststyError(f"{path}: not a whole .safetensors file ({error})") from error


def _load(encoder: PerceptualEncoder, tensors: Mapping[str, Tensor], source: object) -> None:
    try:
        encoder.load_state_dict(tensors)
    except RuntimeError as error:
        reason = " ".join(str(error).split("\n\t")[1:2]).strip()
        raise FaststyError(f"{source}: the weights do not fit the encoder ({reason})") from error


def _torchvision_vgg19() -> dict[str, Tensor]:
    try:
        from torchvision.models import VGG19_Weights

        state: dict[str, Tensor] = VGG19_Weights.IMAGENET1K_V1.get_state_dict(check_hash=True)
    except ImportError as error:
        raise FaststyError(
            "--encoder vgg19 needs torchvision (pip install torchvision) or a file: vgg19:FILE"
        ) from error
    except (RuntimeError, OSError, EOFError) as error:  # for another torch; no network; damaged
        raise FaststyError(
            f"torchvision cannot load its VGG-19 ({error}); vgg19:FILE takes a file"
        ) from error
    return state


def _takes_divided(entry: str, first: Tensor, source: str) -> bool:
    """Whether weights are for pictures in 0…1 divided by their deviation, not for 0…255.

    The numbers themselves do not tell: both kinds have weights and biases of the same size.
    """
    if entry == "torchvision":
        return True
    row = first[:1, 0, 0].float().flatten()
    known = row.shape == (len(OXFORD),) and torch.allclose(row, torch.tensor(OXFORD), atol=1e-3)
    if known or entry.replace(" ", "").startswith("RGBin[0,255]"):
        return False
    raise FaststyError(
        f"{source}: does not tell what pictures its weights take; save it with the metadata "
        '{"input": "torchvision"} or {"input": "RGB in [0,255]"}'
    )
