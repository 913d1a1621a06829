"""Weights divided by their largest singular value, those of one shape all together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from faststy.ops.reference import without_autocast

FIRST = 15  # steps of the power iteration before the first use; then one at each use in training


class SpectralNorm(nn.Module):
    """Miyato et al., "Spectral Normalization for Generative Adversarial Networks", 2018.

    As `torch.nn.utils.parametrizations.spectral_norm`, but for several weights of one shape at the
    price of one: for small nets it is the number of launches that takes time.

    Args:
        weights: [K, C, h, w] each; what is remembered starts with them.
    """

    u: Tensor

    def __init__(self, weights: Sequence[Tensor]) -> None:
        super().__init__()
        matrices = _matrices(weights).detach()
        u = torch.randn(matrices.shape[:2]).to(matrices)
        self.register_buffer("u", F.normalize(u, dim=1))
        for _ in range(FIRST):
            self._follow(matrices @ self._v(matrices))

    def forward(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """The weights with singular values of at most 1, as far as the iteration has come.

        [K, C, h, w] each, as they were given, but channels_last.
        """
        with without_autocast(weights[0]):
            matrices = _matrices(weights)
            images = matrices @ self._v(matrices.detach())  # [S, K, 1]
            sigma = torch.linalg.vector_norm(images, dim=1, keepdim=True)
            if self.training:
                self._follow(images)
            k, c, h, w = weights[0].shape
            normalised = (matrices / sigma).view(-1, k, h, w, c)
        return list(normalised.permute(0, 1, 4, 2, 3).unbind())  # channels_last

    @torch.no_grad()
    def _v(self, matrices: Tensor) -> Tensor:
        """Right singular vectors [S, C·h·w, 1], as far as the left ones are known."""
        return F.normalize(matrices.mT @ self.u[..., None], dim=1)

    @torch.no_grad()
    def _follow(self, images: Tensor) -> None:
        self.u.copy_(F.normalize(images[..., 0], dim=1))


def _matrices(weights: Sequence[Tensor]) -> Tensor:
    """[S, K, h·w·C]: in the order of memory where weights are channels_last."""
    return torch.stack([weight.permute(0, 2, 3, 1).flatten(1) for weight in weights])
