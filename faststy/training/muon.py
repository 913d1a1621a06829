"""Muon: convolutions learn all directions of their kernels alike, not the loudest ones first."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from faststy.training.adam import Adam

MOMENTUM = 0.9
SIZE = 0.2  # root mean square of a step, in learning rates: about that of Adam's
# Of an odd polynomial that takes singular values from nearly 0...1 to 0.7...1.2 when it is
# applied ITERATIONS times (Jordan 2024, who lets it overshoot, so that small ones rise quickly).
LINEAR, CUBIC, QUINTIC = 3.4445, -4.7750, 2.0315
ITERATIONS = 5
TINY = 1e-30  # added to what is divided by: a gradient of zeros is a step of zeros


class Muon(Adam):
    """Jordan 2024 (https://kellerjordan.github.io/posts/muon) for kernels; Adam for other weights.

    The momentum of a kernel [K, C, h, w], as a matrix of K rows, is moved along with all its
    singular values made about 1. All kernels are stacked, with zeros around the smaller ones, so
    that products are one launch for all of them.

    Args:
        net, full_rate, betas: as `Adam`. No kernel may have more rows than columns.
    """

    def __init__(self, net: nn.Module, full_rate: float, betas: tuple[float, float]) -> None:
        super().__init__(net, full_rate, betas)
        self._is_kernel = [weight.ndim == 4 for weight in self.weights]
        self.means, self.squares = self._others(self.means), self._others(self.squares)
        matrices = [(len(w), w[0].numel()) for w in self._kernels(self.weights)]
        if any(rows > columns for rows, columns in matrices):
            raise ValueError("net: expected no kernel with more rows than columns")
        rows, columns = (max(sides) for sides in zip(*matrices, strict=True))
        device = self._rate.device
        self.momentum = torch.zeros(len(matrices), rows, columns, device=device)
        self._stack = torch.zeros_like(self.momentum)
        self._places = [
            _as_kernel(place[:rows, :columns], kernel)
            for place, kernel, (rows, columns) in zip(
                self._stack, self._kernels(self.weights), matrices, strict=True
            )
        ]
        sizes = [SIZE * columns**0.5 for _, columns in matrices]
        self._sizes = torch.tensor(sizes, device=device)[:, None, None]

    def state_dict(self) -> dict[str, Tensor]:
        return super().state_dict() | {"momentum": self.momentum}

    def _kernels(self, values: list[Tensor]) -> list[Tensor]:
        return [v for v, chosen in zip(values, self._is_kernel, strict=True) if chosen]

    def _others(self, values: list[Tensor]) -> list[Tensor]:
        return [v for v, chosen in zip(values, self._is_kernel, strict=True) if not chosen]

    def _move(
        self, weights: list[Tensor], gradients: list[Tensor], scale: Tensor, skip: Tensor
    ) -> None:
        super()._move(self._others(weights), self._others(gradients), scale, skip)
        torch._foreach_copy_(self._places, self._kernels(gradients))
        gradient = (self._stack / scale).masked_fill_(skip > 0, 0.0)
        self.momentum.lerp_(gradient, (1 - MOMENTUM) * (1 - skip))
        ahead = gradient.lerp(self.momentum, MOMENTUM)  # as in Nesterov's
        sizes = self._sizes * self._rate * (1 - skip)
        torch.mul(orthogonal(ahead), sizes, out=self._stack)
        torch._foreach_sub_(self._kernels(weights), self._places)


def orthogonal(x: Tensor) -> Tensor:
    """Matrices [n, r, c], r <= c, with all singular values brought near 1 (0.7...1.2).

    Each iteration is `x ← LINEAR·x + CUBIC·(x xᵀ)x + QUINTIC·(x xᵀ)²x`. All of them together are a
    matrix times x, and it is made of x xᵀ alone, [n, r, r], which is much smaller than x.
    """
    with torch.autocast(x.device.type, enabled=False):
        gram = x @ x.mT
        square = gram.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None] + TINY  # Frobenius norm²
        gram = gram / square
        whole = each = _factor(gram)
        for _ in range(ITERATIONS - 1):
            gram = each @ gram @ each
            each = _factor(gram)
            whole = each @ whole
        return (whole * square.rsqrt()) @ x


def _factor(gram: Tensor) -> Tensor:
    """What an iteration multiplies x with, by x xᵀ [n, r, r]."""
    one = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    return LINEAR * one + torch.baddbmm(CUBIC * gram, gram, gram, alpha=QUINTIC)


def _as_kernel(matrix: Tensor, like: Tensor) -> Tensor:
    """A view of `matrix` [K, h·w·C] as a kernel [K, C, h, w]; in this order channels_last is."""
    channels, height, width = like.shape[1:]
    return matrix.view(len(matrix), height, width, channels).permute(0, 3, 1, 2)
