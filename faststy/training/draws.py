"""What a step takes from outside its nets: all that is random, and all that comes from the host.

Drawn from (seed, step) alone, so that a resumed run needs no random state, and threads can draw
ahead. What is left of a step is a function of tensors of fixed shapes, as a CUDA graph records it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from faststy.training.config import TrainConfig
from faststy.training.crops import crops_of
from faststy.training.dataset import Pictures, below, generator, of_samples, random_square
from faststy.training.distributed import Alone

ENCODER_LATTICE = 8  # the encoder's coarsest stride, px
STYLE_ZOOM = (0.7, 1.4)  # real patches are so many times as large as what they are scaled to


@dataclass(frozen=True)
class Draws:
    """One step's, of this worker's N samples; None is what the step has no use for."""

    stage: str
    photo: Tensor  # [N, 3, H, W] in 0...1
    style: Tensor  # [N, S] one-hot
    index: Tensor  # [N] of the styles
    pace: Tensor  # [], how far the moving average goes towards the generator
    weights: Tensor | None = None  # of the terms, in the order of step.WEIGHED
    real: Tensor | None = None  # [N, 3, H, W] patches of the styles
    rows: Tensor | None = None  # [H − ENCODER_LATTICE] that the encoder sees,
    columns: Tensor | None = None  # [W − ENCODER_LATTICE]
    shift: Tensor | None = None  # [n, 2, 1, 1] of the first n samples, px,
    linear: Tensor | None = None  # [n, 2, 2], None where the shift is by whole pixels,
    wobble: Tensor | None = None  # [n, 2, 4, 4], likewise
    before: Tensor | None = None  # [P, 3, H, W] photos of pairs,
    after: Tensor | None = None  # as they are painted,
    pair_share: float = 1.0  # and which share they are of the step's pairs
    squares: Tensor | None = None  # [N, 4], see `random_squares`

    @property
    def key(self) -> tuple[object, ...]:
        """Steps of one key compute the same, but for the numbers in the tensors."""
        shapes = [(name, tuple(value.shape)) for name, value in self.tensors().items()]
        return self.stage, self.pair_share, *shapes

    def tensors(self) -> dict[str, Tensor]:
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in found.items() if isinstance(value, Tensor)}

    def map(self, change: Callable[[Tensor], Tensor]) -> Draws:
        """The same with each tensor changed."""
        changed = {name: change(value) for name, value in self.tensors().items()}
        return replace(self, **changed)  # type: ignore[arg-type]

    def pinned(self) -> Draws:
        """In memory that a CUDA device copies from while the host goes on."""
        return self.map(lambda t: t if t.is_cuda else t.pin_memory())

    def to(self, device: torch.device) -> Draws:
        """On `device`; of a CUDA device the host does not wait for the copies."""
        drawn = self.pinned() if device.type == "cuda" else self
        return drawn.map(lambda t: t.to(device, non_blocking=device.type == "cuda"))

    def copy_(self, other: Draws) -> None:
        """Put the numbers of `other`, of the same key, in place of these."""
        torch._foreach_copy_(list(self.tensors().values()), list(other.tensors().values()))


def draw(
    config: TrainConfig,
    styles: Sequence[Pictures],
    world: Alone,
    step: int,
    stage: str,
    photo: Tensor,
    pair: tuple[Tensor, Tensor] | None = None,
) -> Draws:
    """What the step numbered `step` takes, but for the weights.

    Args:
        styles: the pictures of each style.
        world: the workers that share the batch.
        photo: [N, 3, H, W], this worker's of the batch.
        pair: photos and their painted targets in the first style, all workers'.
    """
    rng, count = generator(config.seed, step, stream=1), len(photo)
    batch = world.batch(count)
    pace = torch.tensor(1 - min(0.98, (step + 1) / (step + 10)))
    style, index = (t[world.mine] for t in random_styles(batch, len(styles), rng))
    if stage == "repair":
        squares = random_squares(of_samples(batch, rng, world.mine), *photo.shape[-2:])
        real = _real_patches(styles, index, photo, of_samples(batch, rng, world.mine))
        return Draws(stage, photo, style, index, pace, real=real, squares=squares)

    drawn = Draws(stage, photo, style, index, pace)
    if stage == "adversarial":
        real = _real_patches(styles, index, photo, of_samples(batch, rng, world.mine))
        drawn = replace(drawn, real=real)
    # A random offset keeps the encoder's lattice off the generator's: a grid would show.
    rows, columns = (
        torch.arange(side - ENCODER_LATTICE) + below(rng, ENCODER_LATTICE)
        for side in photo.shape[-2:]
    )
    drawn = replace(drawn, rows=rows, columns=columns)
    if config.stability_weight > 0:
        motion = random_shift if below(rng, 2) == 1 else random_warp
        shift, linear, wobble = motion(max(1, batch // 2), rng, world.mine)
        drawn = replace(drawn, shift=shift, linear=linear, wobble=wobble)
    if pair is not None:
        before, after = (t[world.mine] for t in pair)
        share = len(before) / len(pair[0])
        drawn = replace(drawn, before=before, after=after, pair_share=share)
    return drawn


def random_styles(count: int, styles: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """A random style per sample: one-hot [N, S] and index [N]."""
    index = torch.randint(styles, (count,), generator=rng)
    return F.one_hot(index, styles).float(), index


def _real_patches(
    styles: Sequence[Pictures], index: Tensor, photo: Tensor, random: Sequence[torch.Generator]
) -> Tensor:
    """Random crops of the styles `index` as large as `photo`, where that is."""
    size = photo.shape[-1]
    squares = [
        random_square(styles[i], size, STYLE_ZOOM, rng, mirrored=True)
        for i, rng in zip(index.tolist(), random, strict=True)
    ]
    return crops_of(squares, size, photo.device)


# -- where the encoder looks -------------------------------------------------------------------


def crop(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Those rows and columns of `x` [N, C, H, W], channels_last.

    As quick on a CPU as a slice, whose place would have to be known there.
    """
    last = x.permute(0, 2, 3, 1).index_select(1, rows).index_select(2, columns)
    return last.permute(0, 3, 1, 2)


# -- content that is lost for sure -------------------------------------------------------------


def random_squares(random: Sequence[torch.Generator], height: int, width: int) -> Tensor:
    """A square in about half of the samples, as `erased` takes them: int64 [N, 4].

    Top, left, side (0 for none), and whether it is to be flat. `random` are each sample's numbers.
    """
    squares, side = [], min(height, width)
    for rng in random:
        square = (0, 0, 0, 0)
        if below(rng, 2):
            size = side // 8 + below(rng, side // 3)
            top, left = (below(rng, length - size) for length in (height, width))
            square = top, left, size, below(rng, 2)
        squares.append(square)
    return torch.tensor(squares)


def erased(painted: Tensor, squares: Tensor) -> Tensor:
    """`painted` [N, C, H, W] with squares painted over, by flat colour or by another part of it.

    Content that is lost for sure, to learn the map from.
    """
    height, width = painted.shape[-2:]
    y = torch.arange(height, device=painted.device)[:, None]
    x = torch.arange(width, device=painted.device)
    top, left, size, flat = squares.T[..., None, None, None]
    inside = (y >= top) & (y < top + size) & (x >= left) & (x < left + size)
    elsewhere = painted.roll((height // 2, width // 2), (2, 3))
    over = torch.where(flat > 0, painted.mean((2, 3), keepdim=True), elsewhere)
    return torch.where(inside, over, painted).contiguous(memory_format=torch.channels_last)


# -- small motions -----------------------------------------------------------------------------

Motion = tuple[Tensor, Tensor | None, Tensor | None]
"""`shift` [N, 2, 1, 1] in px and, of a smooth motion, `linear` [N, 2, 2], `wobble` [N, 2, 4, 4]."""


def random_shift(count: int, rng: torch.Generator, mine: slice = slice(None)) -> Motion:
    """Random shifts by up to 4 whole pixels, those in `mine` of `count`."""
    return torch.randint(-4, 5, (count, 2, 1, 1), generator=rng)[mine].float(), None, None


def random_warp(count: int, rng: torch.Generator, mine: slice = slice(None)) -> Motion:
    """Smooth random motions of a few pixels, those in `mine` of `count`.

    A shift of up to 4 px, a turn and zoom of up to 3 %, and a low-frequency wobble.
    """
    shift = (torch.rand(count, 2, 1, 1, generator=rng)[mine] * 2 - 1) * 4
    linear = (torch.rand(count, 2, 2, generator=rng)[mine] * 2 - 1) * 0.03
    wobble = (torch.rand(count, 2, 4, 4, generator=rng)[mine] * 2 - 1) * 1.5
    return shift, linear, wobble


def moves(motion: Motion, size: int) -> tuple[Tensor, Tensor]:
    """Sampling grid [N, H, W, 2] and validity [N, 1, H, W] of a motion in squares of `size` px."""
    shift, linear, wobble = motion
    positions = _positions(size, shift.device)
    flow = shift.expand(-1, -1, size, size)
    if linear is not None and wobble is not None:
        with torch.autocast(shift.device.type, enabled=False):
            flow = torch.einsum("nij,jhw->nihw", linear, positions) + flow
        flow = flow + F.interpolate(wobble, (size, size), mode="bicubic", align_corners=True)
    position = (positions + flow) * (2 / size)
    valid = (position.abs() < 1 - 16 / size).all(1, keepdim=True).float()
    return position.permute(0, 2, 3, 1), valid


def _positions(size: int, device: torch.device) -> Tensor:
    """Pixel centres from the middle of a square: x and y as [2, size, size]."""
    axis = torch.arange(size, dtype=torch.float32, device=device) - (size - 1) / 2
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return torch.stack([x, y])


def warp(x: Tensor, grid: Tensor) -> Tensor:
    """Sample `x` [N, C, H, W] at `grid` [N, H, W, 2], borders repeated."""
    moved = F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return moved.contiguous(memory_format=torch.channels_last)
