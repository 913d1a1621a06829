"""The discriminator: judges patches of a picture at several scales as painted or generated."""

from __future__ import annotations

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm


class PatchDiscriminator(nn.Module):
    """One scale: strided convolutions, a score per 38 px patch (PatchGAN, Isola et al. 2017)."""

    def __init__(self, channels: int, styles: int) -> None:
        super().__init__()
        widths = (3, channels, 2 * channels, 2 * channels)
        layers: list[nn.Module] = []
        for c_in, c_out in pairwise(widths):
            layers += [spectral_norm(nn.Conv2d(c_in, c_out, 4, stride=2, padding=1))]
            layers += [nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(
            *layers, spectral_norm(nn.Conv2d(widths[-1], styles, 3, padding=1))
        )

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        # One score per style; a picture is judged as its own style only.
        scores: Tensor = self.layers(x)
        return (scores * style[:, :, None, None]).sum(1, keepdim=True)


class Discriminator(nn.Module):
    """Patch scores at full, half and quarter resolution (Wang et al. 2018), spectrally normalised
    (Miyato et al. 2018), so that strokes of every size are judged."""

    def __init__(self, styles: int = 1, channels: int = 24, scales: int = 3) -> None:
        super().__init__()
        self.scales = nn.ModuleList(PatchDiscriminator(channels, styles) for _ in range(scales))

    def forward(self, x: Tensor, style: Tensor) -> list[Tensor]:
        """Score patches of `x` [N, 3, H, W] in 0...1 as the styles `style` [N, S] (one-hot).

        Returns one logit map [N, 1, h, w] per scale.
        """
        x = x * 2 - 1
        logits = []
        for scale, judge in enumerate(self.scales):
            logits.append(judge(x if scale == 0 else F.avg_pool2d(x, 2**scale), style))
        return logits
