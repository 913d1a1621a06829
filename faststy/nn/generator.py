"""The generator: a feed-forward painter that works at a quarter of the resolution."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from faststy import ops
from faststy.nn.normalization import ConditionalInstanceNorm2d
from faststy.ops.bias_activation import Activation

SCALE = 4  # the generator's cell: one position of its feature maps stands for SCALE x SCALE pixels
FINE_CHANNELS = 16  # at half the resolution, where strokes get their exact place
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


# name: (channels, residual blocks). `quality` is about as large as the net of Johnson et al. 2016.
SIZES = {"nano": (32, 3), "fast": (48, 4), "quality": (128, 5)}


class ReflectedConv3x3(nn.Conv2d):
    """A 3x3 convolution that keeps the size; reflection makes borders like the rest."""

    def __init__(self, in_channels: int, out_channels: int, bias: bool = True) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1, padding_mode="reflect", bias=bias)

    def forward(self, x: Tensor, activation: Activation | None = None) -> Tensor:
        """[N, C, H, W] to [N, K, H, W]; as torch's, but sooner, and with an activation."""
        return ops.reflected_conv3x3(x, self.weight, self.bias, activation)


def window(scale: int) -> Tensor:
    """How much a pixel weighs by its place in the 3x3 cells of a convolution: [scale², 3, 3].

    A Hann window over 3·scale pixels each way, 1 on average. Its copies, a cell apart, add up to a
    constant, so what reads or paints through it has no seams between cells.
    """
    place = (torch.arange(3 * scale, dtype=torch.float32) + 0.5) / (3 * scale)
    line = 2 * torch.sin(torch.pi * place).square()
    square = (line[:, None] * line).view(3, scale, 3, scale)  # [cell, pixel, cell, pixel]
    return square.permute(1, 3, 0, 2).flatten(0, 1)


class CellStem(nn.Module):
    """A 3x3 convolution of 4x4 cells of pixels; each of its kernels is a soft dab of 12x12 pixels.

    Without the window a picture moved by one pixel would give other features, and other strokes.
    """

    window: Tensor

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels * SCALE**2, 3, 3))
        nn.init.kaiming_normal_(self.weight)
        self.register_buffer("window", window(SCALE).repeat(in_channels, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, h·SCALE, w·SCALE] to [N, K, h, w]."""
        cells = ops.pixel_unshuffle(x, SCALE)
        return ops.reflected_conv3x3(cells, self.weight * self.window)


class CellHead(nn.Module):
    """A 3x3 convolution to scale x scale pixels per position (sub-pixel convolution, Shi 2016).

    Each feature paints a soft dab of 3x3 cells. Where the features are flat the pixels are flat:
    the kernels of the pixels of a cell are kept at one common sum per input channel, and they share
    their bias. Otherwise a pattern of cells, the well-known grid, shows in all calm places.
    """

    window: Tensor

    def __init__(self, in_channels: int, out_channels: int, scale: int) -> None:
        super().__init__()
        self.scale = scale
        dab = nn.init.kaiming_normal_(
            torch.empty(out_channels, in_channels, 3, 3), nonlinearity="linear"
        )
        # The pixels of a cell start alike (ICNR, Aitken et al. 2017).
        self.weight = nn.Parameter(dab.repeat_interleave(scale**2, dim=0))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.register_buffer("window", window(scale).repeat(out_channels, 1, 1), persistent=False)

    def kernel(self) -> tuple[Tensor, Tensor]:
        """Weight [C·scale², K, 3, 3] and bias [C·scale²] of the plain convolution that this is."""
        weight = self.weight * self.window[:, None]
        means = weight.mean((2, 3), keepdim=True)
        cells = means.view(-1, self.scale**2, *means.shape[1:])
        excess = (cells - cells.mean(1, keepdim=True)).flatten(0, 1)
        return weight - excess, self.bias.repeat_interleave(self.scale**2)

    def forward(self, x: Tensor) -> Tensor:
        """[N, K, h, w] to [N, C, h·scale, w·scale]."""
        return ops.pixel_shuffle(ops.reflected_conv3x3(x, *self.kernel()), self.scale)


def double(x: Tensor) -> Tensor:
    """[N, C, h, w] to [N, C, 2h, 2w], bilinear.

    The four new positions are mirror images, so features vary alike at each. With sub-pixels they
    would not, the activation that follows would turn this into brightness, and a grid would show.
    """
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


class ResidualBlock(nn.Module):
    """conv - norm - relu - conv - norm, added to the input; the norms carry the style."""

    def __init__(self, channels: int, styles: int) -> None:
        super().__init__()
        # No bias before a norm: it would be subtracted again.
        self.conv1 = ReflectedConv3x3(channels, channels, bias=False)
        self.norm1 = ConditionalInstanceNorm2d(styles, channels)
        self.conv2 = ReflectedConv3x3(channels, channels, bias=False)
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
        channels = config.channels
        self.stem = CellStem(3, channels)
        self.stem_norm = ConditionalInstanceNorm2d(config.styles, channels)
        self.blocks = nn.ModuleList(
            ResidualBlock(channels, config.styles) for _ in range(config.blocks)
        )
        self.rise = ReflectedConv3x3(channels, FINE_CHANNELS)
        self.fine1 = ReflectedConv3x3(FINE_CHANNELS + 12, FINE_CHANNELS, bias=False)
        self.fine1_norm = ConditionalInstanceNorm2d(config.styles, FINE_CHANNELS)
        self.fine2 = ReflectedConv3x3(FINE_CHANNELS, FINE_CHANNELS, bias=False)
        self.fine2_norm = ConditionalInstanceNorm2d(config.styles, FINE_CHANNELS)
        self.head = CellHead(FINE_CHANNELS, 3, 2)

    def forward(self, x: Tensor, style: Tensor | None = None) -> Tensor:
        """Paint photos.

        Args:
            x: [N, 3, H, W] RGB in 0...1, float, any H and W from 1.
            style: [S] or [N, S] mixing weights of the S styles; the first style by default.
        Returns:
            [N, 3, H, W] RGB in 0...1; in training mode not clamped to it.
        Raises:
            TypeError, ValueError: another shape or dtype.
        """
        check_pictures(x, "x")
        if style is None:
            style = torch.eye(self.config.styles, dtype=x.dtype, device=x.device)[0]
        height, width = x.shape[-2:]
        photo = pad_to_cells(x) * 2 - 1
        h = self.stem_norm(self.stem(photo), style, activation="relu")
        for block in self.blocks:
            h = block(h, style)
        h = double(self.rise(h))
        # In the precision of the features: autocast would else go on with all in the photo's.
        h = torch.cat([h, ops.pixel_unshuffle(photo, 2).to(h.dtype)], dim=1)
        h = self.fine1_norm(self.fine1(h), style, activation="relu")
        h = self.fine2_norm(self.fine2(h), style, activation="relu")
        # The blur takes away what alternates from pixel to pixel: the grid of the last upsampling.
        painted = 0.5 + 0.25 * ops.blur(self.head(h))[..., :height, :width]
        # A squashing function would show a grid again; in training a clamp would stop gradients.
        return painted if self.training else painted.clamp(0, 1)


def check_pictures(x: Tensor, name: str) -> None:
    if x.ndim != 4 or x.shape[1] != 3:
        raise ValueError(f"{name}: expected RGB pictures [N, 3, H, W], got {list(x.shape)}")
    if not x.shape[2] or not x.shape[3]:
        raise ValueError(f"{name}: expected H and W of at least 1, got {list(x.shape)}")


def pad_to_cells(x: Tensor) -> Tensor:
    """Extend [N, C, H, W] at the right and bottom to whole cells, at least two each way."""
    pads = [max(-side % SCALE, MIN_SIDE - side) for side in x.shape[-2:]]
    return F.pad(x, (0, pads[1], 0, pads[0]), mode="replicate") if any(pads) else x
