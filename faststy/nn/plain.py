"""Generator and repairer for painting alone: one style, fixed norm statistics, few fused ops.

With fixed statistics a normalisation is a scale and a shift, which the convolution before it takes
over: what is left is a plain convolutional net. It reads uint8 frames, and sees on the way what the
statistics of each frame would have been.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from faststy import ops
from faststy.nn.generator import SCALE, CellHead, CellStem, Generator, ResidualBlock
from faststy.nn.normalization import ConditionalInstanceNorm2d
from faststy.nn.repairer import Repairer
from faststy.ops.bias_activation import Activation
from faststy.ops.conv3x3 import weight_layout
from faststy.ops.reference import wide

Moments = Mapping[str, Tensor]
"""Mean and variance, float32 [2, C], of what each norm of a generator sees, by the norm's name;
[N, 2, C] for a batch of N frames with statistics of their own."""


class PlainConv(nn.Module):
    """A 3x3 convolution with the norm that follows it.

    Args:
        layer: `Conv2d` with reflection, `CellStem` or `CellHead`. The pixels of a cell come out one
            after the other, as `ops.blur_cells` takes them.
        norm: the norm, or None.
        style: [S] mixing weights of the norm's styles.
        dtype: what is computed in.
    """

    weight: Tensor
    scale: Tensor | None
    bias: Tensor | None
    norm_weight: Tensor
    norm_bias: Tensor

    @torch.no_grad()
    def __init__(
        self,
        layer: nn.Module,
        norm: ConditionalInstanceNorm2d | None,
        style: Tensor,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        weight, bias = (None if t is None else t.to(dtype) for t in plain_kernel(layer))
        assert weight is not None
        self.normalised = norm is not None
        if norm is not None:  # which subtracts a bias again
            self.eps = norm.eps
            self.register_buffer("norm_weight", style @ norm.weight, persistent=False)
            self.register_buffer("norm_bias", style @ norm.bias, persistent=False)
        weight = weight.contiguous(memory_format=weight_layout(weight))
        self.register_buffer("weight", weight)
        # Not in half precision: where a mean is large, the two cancel each other.
        scale = torch.ones_like(weight[:, 0, 0, 0], dtype=wide(dtype)) if norm else None
        self.register_buffer("scale", scale)
        self.register_buffer("bias", bias if scale is None else torch.zeros_like(scale))
        self.seen: Tensor | None = None  # moments of the last frame or batch
        # Scale and bias [N, K] in place of those above, for each frame of the next batch.
        self.given: tuple[Tensor, Tensor] | None = None

    def fold(self) -> None:
        """Take the scale into the weights; there is no way back."""
        if self.scale is not None:
            weight = self.weight * self.scale[:, None, None, None]
            self.weight = weight.to(self.weight.dtype)
            self.scale = None

    def forward(
        self,
        *inputs: Tensor,
        activation: Activation | None = None,
        residual: Tensor | None = None,
        look: bool = False,
        collect: bool = False,
    ) -> Tensor:
        """[N, C, H, W], or several with C channels together, to [N, K, H, W].

        `look` notes the moments in `seen`, [N, 2, K] where each frame is given its own; `collect`
        notes them, too, and normalises by them, this once.
        """
        look = look and self.normalised
        scale, bias = self.given or (self.scale, self.bias)
        statistics = None
        if self.normalised and collect:
            x, self.seen = ops.conv3x3(inputs, self.weight, moments=True)
            scale, bias = self.norm_weight, self.norm_bias
            statistics = self.seen[0], torch.rsqrt(self.seen[1] + self.eps)
        elif look and self.given is not None:
            x, _ = ops.conv3x3(inputs, self.weight)
            self.seen = moments_of_each(x)
            statistics = torch.zeros_like(self.norm_bias), torch.ones_like(self.norm_bias)
        if statistics is not None:
            return ops.instance_norm(
                x, scale, bias, activation=activation, residual=residual, statistics=statistics
            )
        x, seen = ops.conv3x3(
            inputs,
            self.weight,
            scale,
            bias,
            activation=activation,
            residual=residual,
            moments=look,
        )
        self.seen = seen if look else None
        return x


def moments_of_each(x: Tensor) -> Tensor:
    """Mean and variance of each frame of [N, C, H, W], float32 [N, 2, C]."""
    mean, rstd = ops.instance_statistics(x, eps=0)
    return torch.stack([mean, rstd**-2], dim=1)


def plain_kernel(layer: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Weight [K, C, 3, 3] and bias [K] of the plain convolution that `layer` is."""
    if isinstance(layer, CellStem):
        return (layer.weight * layer.window).detach(), None
    if isinstance(layer, CellHead):
        weight, bias = (t.detach() for t in layer.kernel())
        order = torch.arange(len(bias)).view(-1, layer.scale**2).T.flatten()  # pixel by pixel
        return weight[order], bias[order]
    if isinstance(layer, nn.Conv2d) and layer.padding_mode == "reflect":
        return layer.weight.detach(), None if layer.bias is None else layer.bias.detach()
    raise TypeError(f"layer: expected a CellStem, CellHead or reflecting Conv2d, got {layer}")


class PlainGenerator(nn.Module):
    """`generator` for painting in one style, a mixture of its styles.

    Args:
        generator: it is not changed, and its weights are not copied where they can be shared.
        style: [S] mixing weights of its styles.
        dtype: what is computed in.
    """

    def __init__(
        self, generator: Generator, style: Tensor, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        names = {module: name for name, module in generator.named_modules()}
        self.norms: dict[str, PlainConv] = {}

        def plain(layer: nn.Module, norm: ConditionalInstanceNorm2d | None = None) -> PlainConv:
            conv = PlainConv(layer, norm, style, dtype)
            if norm is not None:
                self.norms[names[norm]] = conv
            return conv

        self.stem = plain(generator.stem, generator.stem_norm)
        self.eps = generator.stem_norm.eps  # of all norms
        self.blocks = nn.ModuleList()
        for block in generator.blocks:
            assert isinstance(block, ResidualBlock)
            self.blocks.append(plain(block.conv1, block.norm1))
            self.blocks.append(plain(block.conv2, block.norm2))
        self.rise = plain(generator.rise)
        self.fine1 = plain(generator.fine1, generator.fine1_norm)
        self.fine2 = plain(generator.fine2, generator.fine2_norm)
        self.head = plain(generator.head)
        # The blur leaves constants as they are: brightness and contrast can come before it.
        self.head.weight = self.head.weight * 0.25
        self.head.bias = self.head.bias * 0.25 + 0.5 if self.head.bias is not None else None
        known = sum(isinstance(m, PlainConv) for m in self.modules())
        if known != sum(isinstance(m, CellStem | CellHead | nn.Conv2d) for m in names):
            raise TypeError("generator: it has layers that PlainGenerator does not know")

    @property
    def seen(self) -> dict[str, Tensor]:
        """The moments of the last frame or batch, when they were looked at."""
        return {name: conv.seen for name, conv in self.norms.items() if conv.seen is not None}

    @torch.no_grad()
    def fix(self, moments: Moments) -> None:
        """Normalise by `moments` from now on. Raises ValueError once folded."""
        scales, biases = self._affine(moments)
        convs = self.norms.values()
        # In place, where a CUDA graph looks.
        torch._foreach_copy_([c.scale for c in convs if c.scale is not None], scales)
        torch._foreach_copy_([c.bias for c in convs if c.bias is not None], biases)

    def _affine(self, moments: Moments) -> tuple[list[Tensor], list[Tensor]]:
        """What makes norms of scales and biases, [C] each; [N, C] for moments [N, 2, C]."""
        if self.stem.scale is None:
            raise ValueError("this generator is folded: its statistics cannot change")
        convs = self.norms.values()
        mean, variance = torch.cat([moments[name] for name in self.norms], dim=-1).unbind(-2)
        weight = torch.cat([conv.norm_weight for conv in convs])
        bias = torch.cat([conv.norm_bias for conv in convs])
        scale = weight * torch.rsqrt(variance + self.eps)
        bias = torch.addcmul(bias, mean, scale, value=-1)
        sizes = [len(conv.weight) for conv in convs]
        return list(torch.split(scale, sizes, dim=-1)), list(torch.split(bias, sizes, dim=-1))

    def fold(self) -> None:
        """Become plain convolutions: the scales go into the weights for good."""
        for conv in self.norms.values():
            conv.fold()

    def _give(self, moments: Moments | None) -> None:
        """Have each frame of the next batch normalised by `moments` [N, 2, C] of its own."""
        for conv in self.norms.values():
            conv.given = None
        if moments is not None:
            affine = zip(*self._affine(moments), strict=True)
            for conv, given in zip(self.norms.values(), affine, strict=True):
                conv.given = given

    @torch.no_grad()
    def forward(
        self,
        frames: Tensor,
        look: bool = False,
        collect: bool = False,
        moments: Moments | None = None,
    ) -> Tensor:
        """Paint frames.

        Args:
            frames: [N, H, W, 3] uint8, any H and W from 1.
            look: note what the first norm sees, which depends on the frames alone, for `seen`.
            collect: take the statistics of these frames, of all together, and keep them fixed.
            moments: [N, 2, C] each, what to normalise each of the frames by, this once; what `look`
                notes is then of each frame, too.
        Returns:
            [N, 3, H, W] RGB in the dtype of the weights, channels_last. The photo's 0...255 are
            0...1; results are not clamped to it.
        Raises:
            ValueError: statistics, by `collect` or `moments`, for a generator that is folded.
        """
        height, width = frames.shape[1:3]
        painted = ops.blur_cells(self._cells(frames, look, collect, moments), 2)
        return painted[..., :height, :width]

    @torch.no_grad()
    def paint(
        self,
        frames: Tensor,
        look: bool = False,
        collect: bool = False,
        moments: Moments | None = None,
    ) -> Tensor:
        """As a call, from uint8 frames to uint8 frames [N, H, W, 3]."""
        cells = self._cells(frames, look, collect, moments)
        return ops.blur_cells_frames(cells, 2, (frames.shape[1], frames.shape[2]))

    def _cells(self, frames: Tensor, look: bool, collect: bool, moments: Moments | None) -> Tensor:
        """The paintings before the blur, [N, 12, H/2, W/2] of whole cells."""
        cells = whole_cells(frames)
        dtype = self.head.weight.dtype
        self._give(moments)
        pixels = cell_pixels(cells, SCALE, dtype)
        h = self.stem(pixels, activation="relu", look=look, collect=collect)
        for first, second in zip(self.blocks[::2], self.blocks[1::2], strict=True):
            h = second(first(h, activation="relu", collect=collect), residual=h, collect=collect)
        h = ops.upsample(self.rise(h), 2)
        h = self.fine1(h, cell_pixels(cells, 2, dtype), activation="relu", collect=collect)
        h = self.fine2(h, activation="relu", collect=collect)
        if collect:
            self.fix(self.seen)
        cells_of_pixels: Tensor = self.head(h)
        return cells_of_pixels


def whole_cells(frames: Tensor, cell: int = SCALE) -> Tensor:
    """Frames [N, H, W, C], extended at the right and bottom to whole cells, two at least."""
    height, width = frames.shape[1:3]
    down, across = (max(side + -side % cell, 2 * cell) for side in (height, width))
    if (down, across) == (height, width):
        return frames
    rows = torch.arange(down, device=frames.device).clamp_(max=height - 1)
    columns = torch.arange(across, device=frames.device).clamp_(max=width - 1)
    return frames[:, rows[:, None], columns]


class PlainRepairer(nn.Module):
    """`repairer` for painting alone: from uint8 frames to uint8 frames."""

    def __init__(self, repairer: Repairer, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()

        def plain(layer: nn.Module) -> PlainConv:
            return PlainConv(layer, None, torch.empty(0), dtype)

        self.stem, self.head = plain(repairer.stem), plain(repairer.head)
        self.body1, self.body2 = plain(repairer.body1), plain(repairer.body2)
        self.found: Tensor | None = None  # map and gates of the last frames, a position a cell

    @torch.no_grad()
    def forward(self, painted: Tensor, photo: Tensor, strength: float) -> Tensor:
        """The repaired painting; all uint8 [N, H, W, 3], any H and W from 1; strength 0 to 1."""
        height, width = photo.shape[1:3]
        painted, photo = whole_cells(painted), whole_cells(photo)
        cells = (cell_pixels(frames, SCALE, self.head.weight.dtype) for frames in (painted, photo))
        details, hints = ops.repair_hints(painted, photo)
        h = self.stem(*cells, activation="leaky_relu")
        h = self.body1(h, hints.to(h.dtype), activation="leaky_relu")
        h = h + self.body2(h, activation="leaky_relu")
        self.found = self.head(h)
        return ops.repair_apply(painted, details, self.found, strength)[:, :height, :width]

    @torch.no_grad()
    def lost_content(self, height: int, width: int) -> Tensor:
        """The lost-content map of the last frames, float32 [N, 1, height, width] in 0...1."""
        assert self.found is not None
        lost = self.found[:, :1].float()
        lost = F.interpolate(lost, scale_factor=SCALE, mode="bilinear", align_corners=False)
        return torch.sigmoid(lost)[..., :height, :width]


def cell_pixels(frames: Tensor, cell: int, dtype: torch.dtype) -> Tensor:
    """Frames [N, H, W, 3] of whole cells to [N, 3·cell², H/cell, W/cell] in −1...1."""
    return ops.from_pixels(frames, dtype, channels_last=True, unshuffle=cell, value_range=(-1, 1))
