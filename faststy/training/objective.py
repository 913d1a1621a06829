"""The objective: terms of the method, relative, so that one set of weights suits any style.

Notation: `x` photo, `o = G(x)` painting, `s` style picture, `f` encoder features, `M` lost-content
map.
The generator minimises

    content + λ·(style + colour) + adversarial·V + stability + patches + tv + paired

and the repairer, with the generator held, `content weighted by M + λ·(style + excess) + V + map`.

In a step `ops.combined_loss` computes content, style, colour, V, tv and the weighted content; their
definitions are in `ops/reference.py`. Here are the other terms, and what is used beside steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from faststy import ops

EPS = 1e-6
PATCH = 24  # px, side of the cells of `patchiness`: as wide as a few strokes
ALIKE = 0.1  # cells of the photo nearer than about that in colour and contrast (of 1) are alike

RING = 2  # cells at the edge of each tap that see the encoder's zero padding, see `inner`

Whole = Callable[[Tensor], Tensor]


def as_it_is(part: Tensor) -> Tensor:
    return part


def inner(taps: Sequence[Tensor]) -> list[Tensor]:
    """Taps [N, C, h, w] without the RING of cells at their edges, which have zeros in them.

    Zeros are the mean colour to the encoder: a generator that is judged by them, too, learns to
    paint a dull frame, as that hides the edge. Of the smallest pictures a cell is kept.
    """
    return [_inside(tap, *(min(RING, (side - 1) // 2) for side in tap.shape[-2:])) for tap in taps]


def _inside(x: Tensor, rows: int, columns: int) -> Tensor:
    # By padding, whose gradient is one tensor in the layout of x; that of slices is two, planar.
    return F.pad(x, (-columns, -columns, -rows, -rows))


def _relative_distances(a: Tensor, b: Tensor) -> Tensor:
    """`Σ(a − b)² / Σb²` of each sample, [N]; `b` is the reference and gets no gradient."""
    b = b.detach()
    dims = tuple(range(1, a.dim()))
    return (a - b).square().sum(dims) / (b.square().sum(dims) + EPS)


def content_loss(painted: Tensor, photo: Tensor) -> Tensor:
    """`Σ(f(o) − f(x))² / Σf(x)²` at one tap [N, C, h, w], over the whole batch.

    Over the batch: among others, a flat photo may be painted freely; it has little content to keep.
    """
    photo = photo.detach()
    return (painted - photo).square().sum() / (photo.square().sum() + EPS)


def style_targets(taps: Sequence[Tensor]) -> list[Tensor]:
    """Gram targets [C, C] per tap, averaged over the batch of style pictures."""
    return [ops.gram(tap).mean(0).detach() for tap in taps]


def style_loss(taps: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
    """Mean over the taps of `‖Gram(f(o)) − T‖² / ‖T‖²` (Gatys et al. 2016, made relative)."""
    pairs = zip(taps, targets, strict=True)
    return torch.stack([ops.gram_loss(tap, target) for tap, target in pairs]).mean()


def style_distances(grams: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """The style loss of each sample, [N]; `grams` has, per tap, its Gram matrices and targets."""
    return torch.stack([_relative_distances(gram, target) for gram, target in grams]).mean(0)


def colour_moments(x: Tensor) -> Tensor:
    """`x` [N, 3, H, W] and a channel of ones: their Gram matrix holds means and covariances."""
    return torch.cat([x, torch.ones_like(x[:, :1])], dim=1)


def colour_loss(painted: Tensor, target: Tensor) -> Tensor:
    """Relative distance of the colour moments of `painted` [N, 3, H, W] from `target` [4, 4]."""
    return ops.gram_loss(colour_moments(painted), target)


def contrast(x: Tensor) -> Tensor:
    """Mean over pictures and channels of the deviation of the pixels of [N, 3, H, W], as shown."""
    return x.detach().float().clamp(0, 1).std((2, 3)).mean()


def patchiness(painted: Tensor, photo: Tensor) -> Tensor:
    """How differently places are painted that are alike in the photo, [N]; both [N, 3, H, W].

    The mean of `|c − d|² / 2` over pairs of cells, `c` and `d` their mean colours in the painting,
    weighted by how alike they are in the photo: `exp(−e² / 2·ALIKE²)`, `e` the distance of their
    mean colours and contrasts there. A quadratic form of the graph Laplacian of the likeness.
    """
    with torch.autocast(painted.device.type, enabled=False):
        colours = F.avg_pool2d(painted.float(), PATCH).flatten(2)
        seen = F.avg_pool2d(photo, PATCH)
        variance = (F.avg_pool2d(photo.square(), PATCH) - seen.square()).sum(1, keepdim=True)
        looks = torch.cat([seen, variance.clamp_min(0).sqrt()], dim=1).flatten(2).mT
        apart = torch.cdist(looks, looks, compute_mode="donot_use_mm_for_euclid_dist")
        alike = torch.exp(apart.square() / (-2 * ALIKE**2))
        laplacian = torch.diag_embed(alike.sum(1)) - alike
        return (colours @ laplacian * colours).sum((1, 2)) / alike.sum((1, 2))


def patches_of(picture: Tensor) -> Tensor:
    """The patchiness of pictures [N, 3, H, W] in which all cells may be alike: [N]."""
    cell = min(PATCH, *picture.shape[-2:])
    return F.avg_pool2d(picture, cell).flatten(2).var(2, correction=0).sum(1)


def total_variation(painted: Tensor, reference: float) -> Tensor:
    """Mean squared difference of neighbouring pixels, divided by that of the style picture."""
    dy = (painted[..., 1:, :] - painted[..., :-1, :]).square().mean()
    dx = (painted[..., :, 1:] - painted[..., :, :-1]).square().mean()
    return (dy + dx) / (reference + EPS)


def paired_loss(painted: Tensor, target: Tensor) -> Tensor:
    """`Σ(G(A) − B)² / ΣB²` for photos `A` that have a painted target `B`, the mean over them."""
    return _relative_distances(painted, target).mean()


def stability_loss(
    painted_moved: Tensor,
    moved_painting: Tensor,
    moved_photo: Tensor,
    valid: Tensor,
    whole: Whole = as_it_is,
) -> Tensor:
    """`Σ v·(G(W(x)) − W(G(x)))² / Σ v·((W(G(x)) − mean)² + (W(x) − mean)²)`, a small warp `W`.

    `valid` [N, 1, H, W] is 1 where the warp looked inside the picture. Both paintings get
    gradients. The photo's own variation is in the denominator for the start of the training, when
    the painting is still flat: its noise would drown every other term. Of a worker with a part of
    the batch this is its part of the loss, where `whole` makes the sum over all of a part's sum.
    """
    mean = moved_painting.mean((2, 3), keepdim=True)
    photo = moved_photo - moved_photo.mean((2, 3), keepdim=True)
    return _moved_distance(painted_moved - mean, moved_painting - mean, photo, valid, whole)


def fine_stability_loss(
    painted_moved: Tensor,
    moved_painting: Tensor,
    moved_photo: Tensor,
    valid: Tensor,
    whole: Whole = as_it_is,
) -> Tensor:
    """The stability loss of the finest details alone, for a `W` that shifts by whole pixels.

    A grid that is locked to the generator's cells is faint beside the strokes, but it is most of
    what differs here. Finest details: what a binomial 3x3 blur takes away.
    """
    fine = [x - ops.blur(x) for x in (painted_moved, moved_painting, moved_photo)]
    return _moved_distance(fine[0], fine[1], fine[2], valid, whole)


def _moved_distance(a: Tensor, b: Tensor, photo: Tensor, valid: Tensor, whole: Whole) -> Tensor:
    error = (valid * (a - b).square()).sum()
    energy = (valid * (b.detach().square() + photo.square())).sum()
    return error / (whole(energy) + EPS)
