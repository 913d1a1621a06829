"""What a generator's norms normalise by, as a thing of its own.

The painting of a frame depends on the statistics of the whole frame. Held slow they make video that
does not flicker; shared they make tiles without seams; fixed they fold into the convolutions.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from faststy import ops
from faststy.nn.generator import Generator
from faststy.nn.normalization import ConditionalInstanceNorm2d
from faststy.nn.plain import PlainGenerator
from faststy.ops.instance_norm import Activation


@dataclass(frozen=True)
class NormStatistics:
    """Mean and variance of what each norm of a generator sees.

    Attributes:
        moments: by the norm's name, float32 ``[2, C]``: means and (biased) variances.
    """

    moments: Mapping[str, Tensor]

    @classmethod
    def collect(cls, generator: Generator, frames: Tensor, style: Tensor) -> NormStatistics:
        """Those of uint8 frames ``[N, H, W, 3]``, of all N together: of a frame, of a thumbnail, of
        samples of a large picture. `style` is ``[S]`` mixing weights."""
        plain = PlainGenerator(generator, style)
        plain(frames, collect=True)
        return cls(plain.seen)

    def approach(self, others: Mapping[str, Tensor], share: float) -> None:
        """Moves these, in place, `share` (0…1) of the way to `others`: a step of a running mean."""
        for name, moments in self.moments.items():
            moments.lerp_(others[name], share)

    def on_the_way(
        self, others: Mapping[str, Tensor], share: float, steps: int
    ) -> dict[str, Tensor]:
        """The moments after each of so many steps of `approach`, float32 ``[steps, 2, C]``; takes
        these steps."""
        each = {}
        for name, moments in self.moments.items():
            step = torch.arange(1, steps + 1, device=moments.device)[:, None, None]
            each[name] = torch.lerp(others[name], moments, (1 - share) ** step)
            moments.copy_(each[name][-1])
        return each

    def given_to(self, generator: Generator) -> Generator:
        """A copy of `generator` that normalises by these, whatever it sees."""
        fixed = copy.deepcopy(generator)
        for name, norm in generator.named_modules():
            if isinstance(norm, ConditionalInstanceNorm2d):
                fixed.set_submodule(name, FixedNorm2d(norm, self.moments[name]))
        return fixed

    def folded_into(self, generator: Generator, style: Tensor) -> PlainGenerator:
        """`generator` in one style as plain convolutions, with these taken into their weights."""
        plain = PlainGenerator(generator, style)
        plain.fix(self.moments)
        plain.fold()
        return plain


def is_flat(frames: Tensor) -> bool:
    """Whether frames [N, H, W, 3] have a single colour, and their statistics no variance."""
    values = frames.flatten()
    return torch.equal(values[3:], values[:-3])


class FixedNorm2d(nn.Module):
    """`norm` with given moments float32 [2, C] in place of those of its input."""

    mean: Tensor
    rstd: Tensor

    def __init__(self, norm: ConditionalInstanceNorm2d, moments: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = norm.weight, norm.bias
        self.register_buffer("mean", moments[0])
        self.register_buffer("rstd", torch.rsqrt(moments[1] + norm.eps))

    def forward(
        self,
        x: Tensor,
        style: Tensor,
        activation: Activation | None = None,
        residual: Tensor | None = None,
    ) -> Tensor:
        style = style.to(self.weight.dtype)[..., None]
        weight, bias = (style * self.weight).sum(-2), (style * self.bias).sum(-2)
        return ops.instance_norm(
            x,
            weight,
            bias,
            activation=activation,
            residual=residual,
            statistics=(self.mean, self.rstd),
        )
