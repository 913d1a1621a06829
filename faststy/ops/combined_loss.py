"""The whole objective in one op: values and gradients of every term from one pass over its inputs.

The terms are those of docs/method.md; each is relative, so that one set of weights suits any style.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor

from faststy.ops import checks
from faststy.ops.autograd import apply, once_differentiable
from faststy.ops.dispatch import define
from faststy.ops.instance_norm import instance_norm
from faststy.ops.reference import Pair, layout, loss_dtype

FORMS = ("bce", "hinge", "lsgan")
TERMS = ("adversarial", "style", "content", "variation", "colour", "repair")  # of combined_loss
MOST = 25  # tensors that get gradients, of what csrc/combined_loss_cuda.cu takes


class Losses(NamedTuple):
    """A loss, on the device of its inputs: reading a number from it is what waits for the device.

    `terms` and `finite` are parts of one tensor, and get no gradient.
    """

    total: Tensor  # [], differentiable
    terms: Tensor  # [6] in the order of TERMS (of discriminator_loss [2]: real, fake), unweighted
    finite: Tensor  # [], 1 where all terms and the total are finite, else 0


def combined_loss(
    weights: Tensor,
    *,
    logits: Sequence[Tensor] = (),
    form: str = "hinge",
    grams: Sequence[Pair] = (),
    features: Sequence[Pair] = (),
    normalized: bool = False,
    picture: Tensor | None = None,
    variation: float = 1.0,
    colours: Tensor | None = None,
    repair: tuple[Tensor, Tensor, Tensor] | None = None,
) -> Losses:
    """What a generator minimises: the weighted sum of the terms whose inputs are given.

    All tensors are float16, bfloat16, float32 or float64 on one device, in any memory layout, the
    two of a pair of one dtype; sums are in float32 (float64 for float64). The first of each pair
    gets gradients, as do `logits` and `picture`; everything else is a constant. Gradients are
    rounded to their dtypes before the total's own gradient scales them: in float16, put a loss
    scale into `weights`.

    Args:
        weights: [6], of the terms in the order of `TERMS`; those of absent terms are not looked at.
        logits: of any shape, one per scale of a discriminator: mean over the scales.
        form: "bce" (−log σ, Goodfellow et al. 2014), "hinge" (Lim & Ye 2017) or "lsgan" (Mao et
            al. 2017).
        grams: Gram matrices [N, C, C] with their targets, [C, C] or [N, C, C], as for `gram_loss`:
            style, mean over the pairs.
        features: [N, C, H, W] with their references of the same shape: content, `Σ(a − b)² / Σb²`
            over the batch, mean over the pairs.
        normalized: content of instance-normalised features.
        picture: [N, C, H, W]: variation, the mean squared difference of neighbouring pixels.
        variation: what it is divided by, for one that of the style's picture.
        colours: [4, 4] or [N, 4, 4], needs a `picture` of 3 channels: the target for the Gram
            matrix of (r, g, b, 1).
        repair: features, their references, both [N, C, H, W], and a map [N, 1, H, W] of where they
            count: content of instance-normalised features, weighted, relative per sample.

    Returns:
        Losses; float32 (float64 where an input is). An empty tensor counts nothing.
        Differentiable once.

    Raises:
        TypeError, ValueError: a wrong dtype, shape, device or form, with the term and the element.
    """
    _check_form(form)
    _check(weights, "weights", [(6,)], weights)
    checks.listed(logits, "adversarial: logits")
    for i, x in enumerate(logits):
        _check(x, f"adversarial: logits[{i}]", None, weights, partner=logits[0])
    checks.listed(grams, "style: grams")
    for i, pair in enumerate(grams):
        name = f"style: grams[{i}]"
        checks.listed(pair, name, 2)
        g, target = pair
        _check(g, name, None, weights, ndim=3)
        n, c = g.shape[:2]
        _check(g, name, [(n, c, c)], weights)
        _check(target, f"{name} target", [(n, c, c), (c, c)], weights, partner=g)
    checks.listed(features, "content: features")
    for i, pair in enumerate(features):
        name = f"content: features[{i}]"
        checks.listed(pair, name, 2)
        _check_features(*pair, name, weights)
    if picture is not None:
        _check(picture, "variation: picture", None, weights, ndim=4)
    if colours is not None:
        if picture is None or picture.shape[1] != 3:
            got = "none" if picture is None else list(picture.shape)
            raise ValueError(f"colour: picture: expected [N, 3, H, W], got {got}")
        _check(colours, "colour: colours", [(4, 4), (picture.shape[0], 4, 4)], weights)
    if repair is not None:
        checks.listed(repair, "repair", 3)
        a, b, where = repair
        _check_features(a, b, "repair", weights)
        n, _, h, w = a.shape
        _check(where, "repair: map", [(n, 1, h, w)], weights, partner=a)

    pairs = [(a, b.detach()) for a, b in features]
    if normalized:
        pairs = [(instance_norm(a), instance_norm(b)) for a, b in pairs]
    repairs = []
    if repair is not None:
        a, b, where = repair
        repairs = [(instance_norm(a), instance_norm(b.detach()), where.detach())]
    inputs = [
        [_dense(x) for x in logits],
        [_dense(g) for g, _ in grams],
        [_dense(a) for a, _ in pairs],
        [] if picture is None else [_dense(picture)],
        [_dense(a) for a, _, _ in repairs],
    ]
    constants = [
        [target.detach().expand_as(g).contiguous() for g, target in grams],
        [_dense(b, like=a) for a, b in pairs],
        [] if colours is None else [_colour_targets(colours, inputs[3][0])],
        [_dense(b, like=a) for a, b, _ in repairs],
        [where.contiguous() for _, _, where in repairs],
        [weights.detach().to(loss_dtype([weights]))],
    ]
    return _losses(form, float(variation), inputs, constants)


def discriminator_loss(
    real: Sequence[Tensor], fake: Sequence[Tensor], form: str = "hinge"
) -> Losses:
    """What a discriminator minimises: real patches up, generated ones down.

    Args:
        real: logits of any shape, one tensor per scale: mean over the scales.
        fake: likewise, of generated patches.
        form: as for `combined_loss`.

    Returns:
        Losses with two terms, real and fake; the total is their sum. Differentiable once.

    Raises:
        TypeError, ValueError: a wrong dtype, device or form, or no logits; with the element.
    """
    _check_form(form)
    for name, logits in (("real", real), ("fake", fake)):
        checks.listed(logits, name)
        if not logits:
            raise ValueError(f"{name}: expected the logits of at least one scale, got none")
        for i, x in enumerate(logits):
            _check(x, f"{name}[{i}]", None, real[0], partner=real[0], of="real[0]")
    return _losses(form, None, [[_dense(x) for x in real], [_dense(x) for x in fake]], [])


class _CombinedLoss(torch.autograd.Function):
    """Of tensors in lists, whose lengths are `counts`; the first `inputs` tensors get gradients."""

    @staticmethod
    def forward(
        ctx: Any,
        form: str,
        variation: float | None,
        counts: tuple[int, ...],
        inputs: int,
        gradients: bool,
        *tensors: Tensor,
    ) -> tuple[Tensor, Tensor]:
        total, losses, ctx.gradients = _raw(form, variation, counts, tensors, gradients)
        ctx.settings = form, variation, counts
        ctx.constants = len(tensors) - inputs
        ctx.save_for_backward(*tensors)
        ctx.mark_non_differentiable(losses)
        ctx.set_materialize_grads(False)
        return total, losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dtotal: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        if dtotal is None:
            counts: tuple[int, ...] = ctx.settings[2]
            return (None,) * (5 + sum(counts))
        if torch.compiler.is_compiling():
            # Not in half precision: a loss scale may be beyond it.
            gradients = [(g.to(dtotal.dtype) * dtotal).to(g.dtype) for g in ctx.gradients]
        else:
            # Scaled in place, so a second backward pass, of a retained graph, needs new ones.
            gradients, ctx.gradients = ctx.gradients, None
            if gradients is None:
                form, variation, counts = ctx.settings
                gradients = _raw(form, variation, counts, ctx.saved_tensors, True)[2]
            torch.ops.faststy.combined_loss_scale_(gradients, dtotal)
        return (*[None] * 5, *gradients, *[None] * ctx.constants)


def _losses(
    form: str, variation: float | None, inputs: list[list[Tensor]], constants: list[list[Tensor]]
) -> Losses:
    counts = tuple(len(tensors) for tensors in (*inputs, *constants))
    flat = [t for tensors in (*inputs, *constants) for t in tensors]
    count = sum(counts[: len(inputs)])
    gradients = torch.is_grad_enabled() and any(t.requires_grad for t in flat[:count])
    args = (form, variation, counts, count, gradients, *flat)
    total, losses = apply(_CombinedLoss, *args)
    return Losses(total, losses[:-2], losses[-1])


def _raw(
    form: str,
    variation: float | None,
    counts: tuple[int, ...],
    tensors: Sequence[Tensor],
    gradients: bool,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    rest: Iterator[Tensor] = iter(tensors)
    lists = [list(islice(rest, count)) for count in counts]
    raw = torch.ops.faststy
    if variation is None:
        return raw.discriminator_loss_fwd(*lists, form, gradients)  # type: ignore[no-any-return]
    *lists, [weights] = lists
    return raw.combined_loss_fwd(*lists, weights, form, variation, gradients)  # type: ignore[no-any-return]


# --------------------------------------------------------------------------- arguments


def _check_form(form: str) -> None:
    if form not in FORMS:
        raise ValueError(f"form: expected bce, hinge or lsgan, got {form!r}")


def _check(
    t: Tensor,
    name: str,
    shapes: list[tuple[int, ...]] | None,
    like: Tensor,
    *,
    ndim: int | None = None,
    partner: Tensor | None = None,
    of: str = "weights",
) -> None:
    """`t` must be floating point, in one of `shapes`, on the device of `like`, which is `of`, and
    of the dtype of `partner`, which may be itself."""
    checks.floating(t, name)
    if ndim is not None and t.ndim != ndim:
        expected = "[N, C, H, W]" if ndim == 4 else "[N, C, C]"
        raise ValueError(f"{name}: expected {expected}, got {list(t.shape)}")
    if shapes is not None and tuple(t.shape) not in shapes:
        expected = " or ".join(str(list(shape)) for shape in shapes)
        raise ValueError(f"{name}: expected {expected}, got {list(t.shape)}")
    if t.device != like.device:
        raise ValueError(f"{name}: expected on {like.device} as {of} is, got {t.device}")
    if partner is not None and t.dtype != partner.dtype:
        raise TypeError(f"{name}: expected {partner.dtype} as its partners are, got {t.dtype}")


def _check_features(a: Tensor, b: Tensor, name: str, like: Tensor) -> None:
    _check(a, name, None, like, ndim=4)
    _check(b, f"{name} reference", [tuple(a.shape)], like, partner=a)


def _dense(x: Tensor, like: Tensor | None = None) -> Tensor:
    """`x` without gaps, in the layout of `like`, or in its own where it has one of the two."""
    if x.ndim != 4:
        return x.contiguous()
    return x.contiguous(memory_format=layout(x if like is None else like))


def _colour_targets(colours: Tensor, picture: Tensor) -> Tensor:
    targets = colours.detach().to(loss_dtype([picture]))
    return targets.expand(picture.shape[0], 4, 4).contiguous()


# --------------------------------------------------------------------------- raw ops


def _gradients_fake(inputs: list[Tensor], gradients: bool) -> list[Tensor]:
    return [torch.empty_like(x) for x in inputs] if gradients else []


def _combined_loss_fake(
    logits: list[Tensor],
    grams: list[Tensor],
    features: list[Tensor],
    pictures: list[Tensor],
    repaired: list[Tensor],
    targets: list[Tensor],
    references: list[Tensor],
    colours: list[Tensor],
    kept: list[Tensor],
    maps: list[Tensor],
    weights: Tensor,
    form: str,
    variation: float,
    gradients: bool,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    inputs = [*logits, *grams, *features, *pictures, *repaired]
    losses = weights.new_empty(8, dtype=loss_dtype([weights, *inputs]))
    return losses.new_empty(()), losses, _gradients_fake(inputs, gradients)


def _discriminator_loss_fake(
    real: list[Tensor], fake: list[Tensor], form: str, gradients: bool
) -> tuple[Tensor, Tensor, list[Tensor]]:
    losses = real[0].new_empty(4, dtype=loss_dtype([*real, *fake]))
    return losses.new_empty(()), losses, _gradients_fake([*real, *fake], gradients)


def _few(*inputs: list[Tensor]) -> bool:
    return sum(map(len, inputs)) <= MOST


def _scale_fake(gradients: list[Tensor], scale: Tensor) -> None:
    return None


define(
    "combined_loss_fwd(Tensor[] logits, Tensor[] grams, Tensor[] features, Tensor[] pictures, "
    "Tensor[] repaired, Tensor[] targets, Tensor[] references, Tensor[] colours, Tensor[] kept, "
    "Tensor[] maps, Tensor weights, str form, float variation, bool gradients) "
    "-> (Tensor, Tensor, Tensor[])",
    _combined_loss_fake,
    lambda *args: _few(*args[:5]),
)
define(
    "discriminator_loss_fwd(Tensor[] real, Tensor[] fake, str form, bool gradients) "
    "-> (Tensor, Tensor, Tensor[])",
    _discriminator_loss_fake,
    lambda real, fake, *_: _few(real, fake),
)
define("combined_loss_scale_(Tensor(a!)[] gradients, Tensor scale) -> ()", _scale_fake)
