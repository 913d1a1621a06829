"""What a generator's norms normalise by, as a thing of its own.

The painting of a frame depends on the statistics of the whole frame. Held slow they make video that
does not flicker; shared they make tiles without seams; fixed they fold into the convolutions.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from faststy import ops
from faststy.nn.generator import Generator
from faststy.nn.normalization import ConditionalInstanceNorm2d
from faststy.nn.plain import PlainGenerator
from faststy.ops.instance_norm import Activation


@dataclass(frozen=True, eq=False)  # tensors have no single answer to ==
class NormStatistics:
    """Mean and variance of what each norm of a generator sees.

    Attributes:
        moments: by the norm's name, float32 ``[2, C]``: means and (biased) variances. What is given
            is copied, into one tensor, so that a step is one launch on a GPU whatever their number.
    """

    moments: Mapping[str, Tensor]
    _together: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        # In one order, so that those of the same norms lie at the same places.
        object.__setattr__(self, "moments", dict(sorted(self.moments.items())))
        object.__setattr__(self, "_together", self._joined(self.moments))
        object.__setattr__(self, "moments", self._parted(self._together))

    def __reduce__(self) -> tuple[Any, ...]:  # a pickle would part the views from their tensor
        return NormStatistics, (self.moments,)

    @classmethod
    def collect(cls, generator: Generator, frames: Tensor, style: Tensor) -> NormStatistics:
        """Those of uint8 frames ``[N, H, W, 3]``, of all N together: of a frame, of a thumbnail, of
        samples of a large picture. `style` is ``[S]`` mixing weights."""
        plain = PlainGenerator(generator, style)
        plain(frames, collect=True)
        return cls(plain.seen)

    def approach(self, others: NormStatistics, share: float) -> None:
        """Moves these, in place, `share` (0…1) of the way to `others`: a step of a running mean."""
        self._together.lerp_(others._together, share)

    def on_the_way(self, others: NormStatistics, share: float, steps: int) -> dict[str, Tensor]:
        """The moments after each of so many steps of `approach`, float32 ``[steps, 2, C]``; takes
        these steps."""
        step = torch.arange(1, steps + 1, dtype=torch.float32, device=self._together.device)
        each = torch.lerp(others._together, self._together, (1 - share) ** step[:, None, None])
        self._together.copy_(each[-1])
        return self._parted(each)

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

    @staticmethod
    def _joined(moments: Mapping[str, Tensor]) -> Tensor:
        return torch.cat([*moments.values()], dim=1) if moments else torch.empty(2, 0)

    def _parted(self, together: Tensor) -> dict[str, Tensor]:
        """Views [..., 2, C] of all together, by the names and sizes of `moments`."""
        sizes = [m.shape[1] for m in self.moments.values()]
        return dict(zip(self.moments, torch.split(together, sizes, dim=-1), strict=True))


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
        self.register_buffer("mean", moments[0].clone())
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
