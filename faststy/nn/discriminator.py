"""The discriminator: judges patches of a picture at several scales as painted or generated."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from faststy import ops
from faststy.nn.spectral_norm import SpectralNorm


class PatchDiscriminator(nn.Module):
    """One scale: strided convolutions, a score per 38 px patch (PatchGAN, Isola et al. 2017)."""

    def __init__(self, channels: int, styles: int) -> None:
        super().__init__()
        widths = (3, channels, 2 * channels, 2 * channels)
        self.convs = nn.ModuleList(
            nn.Conv2d(c_in, c_out, 4, stride=2, padding=1) for c_in, c_out in pairwise(widths)
        )
        self.convs.append(nn.Conv2d(widths[-1], styles, 3, padding=1))

    def forward(self, x: Tensor, style: Tensor, weights: Sequence[Tensor]) -> Tensor:
        """As `Discriminator`, by `weights` in place of the convolutions' own."""
        biases = [conv.get_parameter("bias") for conv in self.convs]
        for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
            x = ops.convolve(x, weight, bias, "leaky_relu", stride=2, padding=1)
        # One score per style; a picture is judged as its own style only.
        scores = ops.convolve(x, weights[-1], biases[-1], padding=1)
        return (scores * style[:, :, None, None]).sum(1, keepdim=True)


class Discriminator(nn.Module):
    """Patch scores at full, half and quarter resolution (Wang et al. 2018), spectrally normalised
    (Miyato et al. 2018), so that strokes of every size are judged."""

    def __init__(self, styles: int = 1, channels: int = 24, scales: int = 3) -> None:
        super().__init__()
        self.styles = styles
        self.scales = nn.ModuleList(PatchDiscriminator(channels, styles) for _ in range(scales))
        self.norms = nn.ModuleList(SpectralNorm(weights) for weights in self._weights())

    def forward(self, x: Tensor, style: Tensor) -> list[Tensor]:
        """Score patches of `x` [N, 3, H, W] in 0...1 as the styles `style` [N, S] (one-hot).

        `x` is in the dtype of the weights, or any under autocast. Its sides are at least 8 px at
        the smallest scale, 32 px for three; where they are less than a patch, the zeros around the
        picture are judged, too.

        Returns one logit map [N, 1, h, w] per scale. Raises RuntimeError for smaller pictures,
        ValueError for a style of another shape.
        """
        if style.shape != (x.shape[0], self.styles):
            expected = f"[N, {self.styles}] = [{x.shape[0]}, {self.styles}]"
            raise ValueError(f"style: expected {expected}, got {list(style.shape)}")
        x = x * 2 - 1
        normalised = [norm(w) for norm, w in zip(self.norms, self._weights(), strict=True)]
        logits, seen = [], [x]
        for scale, (judge, *weights) in enumerate(zip(self.scales, *normalised, strict=True)):
            if scale == 1:  # not before: the order sets in which gradients of the picture add up
                seen += ops.averages(x, len(self.scales) - 1)
            logits.append(judge(seen[scale], style, weights))
        return logits

    def _weights(self) -> list[list[Tensor]]:
        """Those of all scales, layer by layer: of one shape each."""
        convs = zip(*(judge.convs for judge in self.scales), strict=True)
        return [[conv.weight for conv in layer] for layer in convs]
