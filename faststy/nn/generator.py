"""The generator: a feed-forward painter that works at a quarter of the resolution."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from faststy.nn.normalization import ConditionalInstanceNorm2d

SCALE = 4  # the generator's cell: one position of its feature maps stands for SCALE x SCALE pixels
MIN_SIDE = 2 * SCALE  # reflection padding needs at least two cells


@dataclass(frozen=True)
class GeneratorConfig:
    """Shape of a generator: feature channels, residual blocks, and how many styles it holds."""

    channels: int
    blocks: int
    styles: int = 1

    @classmethod
    def named(cls, name: str, styles: int = 1) -> GeneratorConfig:
        """The config called `name` in `SIZES`. Raises ValueError for an unknown name."""
        if name not in SIZES:
            raise ValueError(f"model must be one of {', '.join(SIZES)}, got {name!r}")
        channels, blocks = SIZES[name]
        return cls(channels, blocks, styles)


# name: (channels, residual blocks). `quality` has the 1.7 M parameters of Johnson et al. 2016.
SIZES = {"nano": (32, 3), "fast": (48, 4), "quality": (128, 5)}


def conv3x3(in_channels: int, out_channels: int, bias: bool = True) -> nn.Conv2d:
    """A 3x3 convolution that keeps the size; reflection makes borders like the rest."""
    return nn.Conv2d(in_channels, out_channels, 3, padding=1, padding_mode="reflect", bias=bias)


class SubpixelHead(nn.Module):
    """A 3x3 convolution to SCALE x SCALE pixels per position (sub-pixel, Shi et al. 2016).

    Where the features are flat the pixels are flat: the kernels of the pixels of a cell are kept at
    one common sum per input channel, and they share their bias. Otherwise a cell-sized pattern, the
    well-known grid, shows in every calm part of a picture. The start is flat everywhere (ICNR,
    Aitken et al. 2017).
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        cell = nn.init.kaiming_normal_(
            torch.empty(out_channels, in_channels, 3, 3), nonlinearity="linear"
        )
        self.weight = nn.Parameter(cell.repeat_interleave(SCALE**2, dim=0))
        self.bias = nn.Parameter(torch.zeros(out_channels))

    def kernel(self) -> tuple[Tensor, Tensor]:
        """Weight [C·SCALE², K, 3, 3] and bias [C·SCALE²] of the plain convolution that this is."""
        sums = self.weight.mean((2, 3), keepdim=True).view(-1, SCALE**2, *self.weight.shape[1:2], 1, 1)
        excess = (sums - sums.mean(1, keepdim=True)).flatten(0, 1)
        return self.weight - excess, self.bias.repeat_interleave(SCALE**2)

    def forward(self, x: Tensor) -> Tensor:
        """[N, K, h, w] to [N, C, h·SCALE, w·SCALE]."""
        return F.pixel_shuffle(F.conv2d(F.pad(x, (1, 1, 1, 1), "reflect"), *self.kernel()), SCALE)


class ResidualBlock(nn.Module):
    """conv - norm - relu - conv - norm, added to the input; the norms carry the style."""

    def __init__(self, channels: int, styles: int) -> None:
        super().__init__()
        # No bias before a norm: it would be subtracted again.
        self.conv1 = conv3x3(channels, channels, bias=False)
        self.norm1 = ConditionalInstanceNorm2d(styles, channels)
        self.conv2 = conv3x3(channels, channels, bias=False)
        self.norm2 = ConditionalInstanceNorm2d(styles, channels)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        h = self.norm1(self.conv1(x), style, activation="relu")
        out: Tensor = self.norm2(self.conv2(h), style, residual=x)
        return out


class Generator(nn.Module):
    """Paints photos in one of its styles, or in a mixture of them.

    Pixels are packed 4x4 into channels, pass residual blocks with conditional instance
    normalisation (one weight/bias pair per style, Dumoulin et al. 2017) at a quarter of the
    resolution, and are unpacked again.
    """

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.config = config
        packed, channels = 3 * SCALE**2, config.channels
        self.stem = conv3x3(packed, channels, bias=False)
        self.stem_norm = ConditionalInstanceNorm2d(config.styles, channels)
        self.blocks = nn.ModuleList(
            ResidualBlock(channels, config.styles) for _ in range(config.blocks)
        )
        self.head = SubpixelHead(channels, 3)

    def forward(self, x: Tensor, style: Tensor | None = None) -> Tensor:
        """Paint photos.

        Args:
            x: [N, 3, H, W] RGB in 0...1, float, any H and W from 1.
            style: [S] or [N, S] mixing weights of the S styles; the first style by default.
        Returns:
            [N, 3, H, W] RGB in 0...1.
        """
        if style is None:
            style = torch.eye(self.config.styles, dtype=x.dtype, device=x.device)[0]
        height, width = x.shape[-2:]
        h = F.pixel_unshuffle(pad_to_cells(x) * 2 - 1, SCALE)
        h = self.stem_norm(self.stem(h), style, activation="relu")
        for block in self.blocks:
            h = block(h, style)
        return torch.sigmoid(self.head(h))[..., :height, :width]


def pad_to_cells(x: Tensor) -> Tensor:
    """Extend [N, C, H, W] at the right and bottom to whole cells, at least two each way."""
    pads = [max(-side % SCALE, MIN_SIDE - side) for side in x.shape[-2:]]
    return F.pad(x, (0, pads[1], 0, pads[0]), mode="replicate") if any(pads) else x
