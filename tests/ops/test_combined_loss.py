from __future__ import annotations

import math
from collections.abc import Callable
from statistics import fmean
from typing import Any

import pytest
import torch
from torch import Tensor

from faststy import ops
from faststy.ops import dispatch, reference
from faststy.training import objective

from .conftest import INTERPRETED

pytestmark = pytest.mark.skipif(INTERPRETED, reason="has no Triton kernel")

# Relative error by norm, of terms and gradients against float64.
TOLERANCES = {torch.float32: 3e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}
LAYOUTS = (torch.contiguous_format, torch.channels_last)
FORMS = ("bce", "hinge", "lsgan")
WEIGHTS = (0.6, 15.0, 1.0, 0.3, 12.0, 4.0)


def arguments(
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    layout: torch.memory_format = torch.contiguous_format,
    *,
    n: int = 2,
    side: int = 37,
    channels: tuple[int, ...] = (5, 16),
    scales: int = 3,
) -> dict[str, Any]:
    """Inputs of every term."""

    def features(c: int, h: int, w: int) -> Tensor:
        x = torch.randn(n, c, h, w, device=device) + 0.5
        return x.to(dtype).contiguous(memory_format=layout)

    grams = []
    for i, c in enumerate(channels):
        g = torch.randn(n, c, c, device=device).to(dtype)
        shape = (n, c, c) if i % 2 else (c, c)
        grams.append((g, torch.randn(shape, device=device).to(dtype)))
    tap = channels[-1], side // 4, side // 4 + 1
    noise = torch.randn(4, 4, device=device)
    return {
        "weights": torch.tensor(WEIGHTS, device=device),
        "logits": [features(1, 2 * s + 3, s + 2) for s in range(scales)],
        "grams": grams,
        "features": [(features(*tap), features(*tap)), (features(3, 5, 8), features(3, 5, 8))],
        "picture": features(3, side, side + 2),
        "variation": 0.7,
        "colours": (noise @ noise.T / 8).to(dtype),
        "repair": (
            features(*tap),
            features(*tap),
            torch.rand(n, 1, *tap[1:], device=device).to(dtype),
        ),
    }


def leaves(kwargs: dict[str, Any]) -> list[Tensor]:
    """What gets gradients."""
    found = [*kwargs.get("logits", ())]
    found += [a for a, _ in (*kwargs.get("grams", ()), *kwargs.get("features", ()))]
    found += [kwargs["picture"]] if kwargs.get("picture") is not None else []
    return found + ([kwargs["repair"][0]] if kwargs.get("repair") is not None else [])


def mapped(value: Any, f: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return f(value)
    if isinstance(value, dict):
        return {k: mapped(v, f) for k, v in value.items()}
    return type(value)(mapped(v, f) for v in value) if isinstance(value, list | tuple) else value


def with_leaves(kwargs: dict[str, Any], dtype: torch.dtype | None = None) -> dict[str, Any]:
    copies = mapped(kwargs, lambda t: t.detach().clone().to(dtype or t.dtype))
    for leaf in leaves(copies):
        leaf.requires_grad_()
    return copies  # type: ignore[no-any-return]


def relative(a: Tensor, b: Tensor) -> float:
    a, b = a.detach().cpu().double(), b.detach().cpu().double()
    return float((a - b).norm() / b.norm().clamp_min(1e-12))


def check(kwargs: dict[str, Any], tolerance: float, scale: float = 1.0) -> ops.Losses:
    """Values and every gradient against the definition, in float64 and by autograd."""
    ours, truth = with_leaves(kwargs), with_leaves(mapped(kwargs, Tensor.cpu), torch.float64)
    losses, expected = ops.combined_loss(**ours), reference.combined_loss(**truth)
    for i, (a, b) in enumerate(zip([*losses.terms, losses.total], expected[:7], strict=True)):
        assert a.shape == ()
        assert relative(a, b) < tolerance, (i, float(a), float(b))
    assert losses.finite == expected[7] == 1
    grads = torch.autograd.grad(losses.total * scale, leaves(ours))
    slopes = torch.autograd.grad(expected[6] * scale, leaves(truth))
    for i, (a, b, x) in enumerate(zip(grads, slopes, leaves(ours), strict=True)):
        assert a.shape == x.shape
        assert a.dtype == x.dtype
        assert relative(a, b) < tolerance, (i, relative(a, b))
        if x.ndim == 4:
            assert a.is_contiguous(memory_format=reference.layout(x))
    return losses


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


# --------------------------------------------------------------------------- values and gradients


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("form", FORMS)
def test_every_term(device: torch.device, form: str, layout: torch.memory_format) -> None:
    kwargs = arguments(device, layout=layout) | {"form": form}
    check(kwargs, 3e-6)
    check(kwargs, 3e-6, scale=0.25)
    check(kwargs | {"normalized": True}, 3e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_half_precision(
    device: torch.device, dtype: torch.dtype, layout: torch.memory_format
) -> None:
    kwargs = arguments(device, dtype, layout)
    # Instance norms round to half precision on their way.
    kwargs.pop("repair")
    losses = check(kwargs, TOLERANCES[dtype], scale=2.0**10)
    assert losses.total.dtype == losses.terms.dtype == torch.float32


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("side", [1, 2, 4, 5, 64, 131])
def test_sizes(device: torch.device, side: int, layout: torch.memory_format) -> None:
    """Among them sizes whose planes are and are not multiples of a vector, and single pixels."""
    for c in (4, 7):
        kwargs = arguments(device, layout=layout, side=max(side, 4), channels=(c,), n=3)
        if side < 6:  # instance norms of one or two pixels magnify rounding
            kwargs.pop("repair")
        picture = torch.rand(3, 3, side, side, device=device).contiguous(memory_format=layout)
        check(kwargs | {"picture": picture}, 5e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_tensors_of_many_chunks(device: torch.device, layout: torch.memory_format) -> None:
    kwargs = arguments(device, layout=layout, side=300, channels=(24,), n=2)
    check(kwargs, 1e-5)


@pytest.mark.parametrize("name", ["logits", "grams", "features", "picture", "repair"])
def test_one_term_alone(device: torch.device, name: str) -> None:
    kwargs = arguments(device)
    alone = {key: kwargs[key] for key in ("weights", name)}
    weights = alone["weights"].clone()
    present = {"logits": 0, "grams": 1, "features": 2, "picture": 3, "repair": 5}[name]
    weights[[i for i in range(6) if i != present]] = torch.nan  # of absent terms: not looked at
    losses = check(alone | {"weights": weights}, 3e-6)
    torch.testing.assert_close(losses.total, weights[present] * losses.terms[present])
    assert all(losses.terms[i] == 0 for i in range(6) if i != present)


def test_the_terms_are_those_of_the_objective() -> None:
    kwargs = arguments()
    (a, b), target = kwargs["features"][0], kwargs["colours"]
    terms = ops.combined_loss(**kwargs | {"features": [(a, b)]}).terms
    torch.testing.assert_close(terms[2], objective.content_loss(a, b))
    torch.testing.assert_close(terms[3], objective.total_variation(kwargs["picture"], 0.7))
    torch.testing.assert_close(terms[4], objective.colour_loss(kwargs["picture"], target))
    taps = [torch.randn(2, c, 6, 7) for c in (3, 8)]
    targets = [torch.randn(c, c) for c in (3, 8)]
    pairs = [(ops.gram(tap), target) for tap, target in zip(taps, targets, strict=True)]
    style = ops.combined_loss(torch.ones(6), grams=pairs).terms[1]
    torch.testing.assert_close(style, objective.style_loss(taps, targets))


SOFTPLUS = {False: lambda x: math.log1p(math.exp(x)), True: lambda x: math.log1p(math.exp(-x))}


def judged(form: str, logits: list[float], real: bool) -> float:
    """What the discriminator loses by a map of logits."""
    if form == "bce":
        return fmean(SOFTPLUS[real](x) for x in logits)
    if form == "hinge":
        return fmean(max(0, 1 - x if real else 1 + x) for x in logits)
    return fmean((x - 1) ** 2 if real else x**2 for x in logits)


def generator_loss(logits: list[Tensor], form: str) -> Tensor:
    weights = torch.ones(6, device=logits[0].device)
    return ops.combined_loss(weights, logits=logits, form=form).total


@pytest.mark.parametrize("form", FORMS)
def test_adversarial_forms(device: torch.device, form: str) -> None:
    """By their formulas, logit by logit."""
    real, fake = ([torch.randn(2, 1, s, s, device=device) for s in (6, 3)] for _ in range(2))
    reals, fakes = ([x.flatten().tolist() for x in side] for side in (real, fake))
    each = [
        judged(form, r, True) + judged(form, f, False) for r, f in zip(reals, fakes, strict=True)
    ]
    loss = ops.discriminator_loss(real, fake, form)
    assert loss.total.item() == pytest.approx(fmean(each), rel=3e-6)
    if form == "hinge":
        expected = fmean(-fmean(f) for f in fakes)
    else:
        expected = fmean(judged(form, f, True) for f in fakes)
    assert generator_loss(fake, form).item() == pytest.approx(expected, rel=3e-6, abs=1e-7)


@pytest.mark.parametrize("form", FORMS)
def test_adversaries_pull_against_each_other(device: torch.device, form: str) -> None:
    fake, real = (torch.zeros(1, 1, 4, 4, device=device, requires_grad=True) for _ in range(2))
    (up,) = torch.autograd.grad(generator_loss([fake], form), fake)
    assert (up < 0).all()  # the generator wants its logits higher
    loss = ops.discriminator_loss([real], [fake + 0.5], form).total
    real_slope, fake_slope = torch.autograd.grad(loss, (real, fake))
    assert (real_slope < 0).all()
    assert (fake_slope > 0).all()


def test_the_log_form_does_not_saturate_for_the_generator(device: torch.device) -> None:
    x = torch.full((1, 1, 2, 2), -50.0, device=device, requires_grad=True)
    (slope,) = torch.autograd.grad(generator_loss([x], "bce"), x)
    assert slope.sum().item() == pytest.approx(-1.0, rel=1e-5)


def test_the_repairs_content_is_relative_and_counts_only_where_it_is_weighted(
    device: torch.device,
) -> None:
    a, b = (torch.randn(2, 4, 8, 8, device=device) for _ in range(2))
    weight = torch.rand(2, 1, 8, 8, device=device)

    def standard(x: Tensor) -> Tensor:
        x = x.double()
        x = x - x.mean((2, 3), keepdim=True)
        return x / (x.square().mean((2, 3), keepdim=True) + 1e-5).sqrt()

    def loss(x: Tensor, weight: Tensor = weight) -> Tensor:
        return ops.combined_loss(torch.ones(6, device=device), repair=(x, b, weight)).total

    d, e, w = standard(a), standard(b), weight.double()
    each = [(w * (d - e) ** 2)[i].mean() / (w * e**2)[i].mean() for i in range(2)]
    assert loss(a).item() == pytest.approx(float(sum(each) / 2), rel=1e-5)
    assert loss(b) == 0
    assert loss(2 * b + 7) < 1e-6  # a look, not a loss
    assert loss(a, torch.zeros_like(weight)) == 0
    x = a.clone().requires_grad_()
    (slope,) = torch.autograd.grad(loss(x), x)
    assert slope.abs().sum() > 0
    assert loss(a - 1e-3 * slope / slope.norm() * a.norm()) < loss(a)


@pytest.mark.parametrize("scales", [1, 10])
def test_scales(device: torch.device, scales: int) -> None:
    kwargs = arguments(device, scales=scales)
    check(kwargs, 3e-6)
    for form in FORMS:
        real, fake = kwargs["logits"], [x * 2 + 1 for x in kwargs["logits"]]
        check_discriminator(real, fake, form)


def test_more_tensors_than_a_kernel_takes(device: torch.device) -> None:
    logits = [torch.randn(2, 1, 3, 3, device=device) for _ in range(26)]
    check({"logits": logits, "weights": torch.ones(6, device=device)}, 3e-6)
    check_discriminator(logits[:13], logits[13:], "hinge")
    for count in (25, 26):
        lists = [logits[: count - 1], *[[]] * 3, logits[-1:], *[[]] * 5]
        assert dispatch.LIMITS["combined_loss_fwd"](*lists, logits[0]) == (count == 25)
        split = logits[:9], logits[9:count]
        assert dispatch.LIMITS["discriminator_loss_fwd"](*split, "bce", True) == (count == 25)


def check_discriminator(
    real: list[Tensor], fake: list[Tensor], form: str, tolerance: float = 3e-6
) -> None:
    ours = [[x.detach().clone().requires_grad_() for x in side] for side in (real, fake)]
    truth = [[x.detach().cpu().double().requires_grad_() for x in side] for side in (real, fake)]
    losses = ops.discriminator_loss(*ours, form)
    expected = reference.discriminator_loss(*truth, form)
    for a, b in zip([*losses.terms, losses.total, losses.finite], expected, strict=True):
        assert relative(a, b) < tolerance
    grads = torch.autograd.grad(losses.total * 3, [*ours[0], *ours[1]])
    for a, b in zip(
        grads, torch.autograd.grad(expected[2] * 3, [*truth[0], *truth[1]]), strict=True
    ):
        assert relative(a, b) < tolerance


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_discriminator(device: torch.device, form: str, dtype: torch.dtype) -> None:
    real, fake = (
        [torch.randn(2, 1, s, s + 1, device=device).to(dtype) * 2 for s in (33, 6)]
        for _ in range(2)
    )
    check_discriminator(real, fake, form, TOLERANCES[dtype])
    check_discriminator(real, fake[:1], form, TOLERANCES[dtype])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("logit", [-1e4, -100.0, 0.0, 100.0, 1e4])
def test_extreme_logits_stay_finite(device: torch.device, form: str, logit: float) -> None:
    x = torch.full((1, 1, 3, 3), logit, device=device)
    check({"weights": torch.ones(6, device=device), "logits": [x], "form": form}, 1e-6)
    check_discriminator([x], [x], form)


# --------------------------------------------------------------------------- nothing and not finite


def test_nothing_at_all(device: torch.device) -> None:
    losses = ops.combined_loss(torch.ones(6, device=device))
    assert losses.total == 0
    assert not losses.terms.any()
    assert losses.finite == 1


def test_empty_tensors_count_nothing(device: torch.device) -> None:
    kwargs = arguments(device, n=0)
    leafed = with_leaves(kwargs)
    losses = ops.combined_loss(**leafed)
    assert losses.total == 0
    assert losses.finite == 1
    for grad, x in zip(
        torch.autograd.grad(losses.total, leaves(leafed)), leaves(leafed), strict=True
    ):
        assert grad.shape == x.shape
    real = torch.randn(2, 1, 3, 3, device=device)
    check_discriminator([real, real[:0]], [real], "bce")


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("index", range(8))
def test_the_flag_tells_what_is_not_finite(device: torch.device, value: float, index: int) -> None:
    kwargs = with_leaves(arguments(device))
    assert ops.combined_loss(**kwargs).finite == 1
    with torch.no_grad():
        leaves(kwargs)[index].flatten()[1] = value
    for form in FORMS:
        if math.isinf(value) and index < 3 and form == "bce":
            continue  # sure of being real: no loss
        losses = ops.combined_loss(**kwargs, form=form)
        assert losses.finite == 0
        assert not losses.total.isfinite()
        assert losses.terms.isfinite().sum() >= 4
        wrong, fake = kwargs["logits"][0] * value, X.to(device)
        assert ops.discriminator_loss([wrong], [fake], form).finite == 0


# --------------------------------------------------------------------------- autograd


def test_gradcheck(device: torch.device) -> None:
    kwargs = arguments(device, side=8, channels=(2, 3), scales=2)
    for form in FORMS:
        wide = with_leaves(kwargs, torch.float64) | {"form": form}
        logits, wanted = wide["logits"], leaves(wide)
        assert torch.autograd.gradcheck(
            lambda *_, w=wide: ops.combined_loss(**w).total, wanted, fast_mode=True
        )
        assert torch.autograd.gradcheck(
            lambda a, b, f=form: ops.discriminator_loss([a], [b], f).total, logits
        )


def test_constants_get_no_gradient(device: torch.device) -> None:
    kwargs = mapped(arguments(device), lambda t: t.requires_grad_())
    ops.combined_loss(**kwargs).total.backward()
    assert all(leaf.grad is not None for leaf in leaves(kwargs))
    constants = [kwargs["weights"], kwargs["colours"], *kwargs["repair"][1:]]
    constants += [b for _, b in (*kwargs["grams"], *kwargs["features"])]
    assert all(constant.grad is None for constant in constants)
    losses = ops.combined_loss(**kwargs)
    assert losses.total.requires_grad
    assert not losses.terms.requires_grad
    assert not losses.finite.requires_grad
    with torch.no_grad():
        assert not ops.combined_loss(**kwargs).total.requires_grad


def test_weights_are_read_at_the_call(device: torch.device) -> None:
    kwargs = arguments(device)
    first = ops.combined_loss(**kwargs)
    kwargs["weights"].mul_(2)
    second = ops.combined_loss(**kwargs)
    assert torch.equal(first.terms, second.terms)
    torch.testing.assert_close(second.total, first.total * 2)


@pytest.mark.parametrize("scales", [(1.0, 1.0), (0.5, 1.0), (0.0, 3.0)])
def test_a_retained_graph_gives_the_same_again(
    device: torch.device, scales: tuple[float, float]
) -> None:
    kwargs = with_leaves(arguments(device))
    once = torch.autograd.grad(ops.combined_loss(**kwargs).total, leaves(kwargs))
    total = ops.combined_loss(**kwargs).total
    for scale in scales:
        factor = torch.tensor(scale, device=device)
        grads = torch.autograd.grad(total, leaves(kwargs), factor, retain_graph=True)
        for a, b in zip(grads, once, strict=True):
            torch.testing.assert_close(a, b * scale)


def test_double_backward_fails_loudly(device: torch.device) -> None:
    x = torch.randn(1, 1, 4, 4, device=device, requires_grad=True)
    total = ops.discriminator_loss([x], [x], "lsgan").total
    (dx,) = torch.autograd.grad(total, x, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivative of a faststy op"):
        torch.autograd.grad(dx.sum(), x, retain_graph=True)  # which leads through nothing else
    with pytest.raises(RuntimeError, match="second derivative of a faststy op"):
        dx.sum().backward()


def test_strides(device: torch.device) -> None:
    """Neither gaps nor mixed layouts change anything."""
    kwargs = arguments(device, side=20)
    wide = torch.randn(2, 12, 9, 11, device=device)
    a, b = wide[:, 3:9, 1:8], torch.randn(2, 6, 7, 11, device=device)
    last = b.contiguous(memory_format=torch.channels_last)
    kwargs |= {
        "features": [(a, b), (a, last), (last, b)],
        "repair": (last, a, torch.rand(2, 1, 7, 11, device=device).expand(2, 1, 7, 11)),
        "picture": torch.randn(2, 5, 9, 11, device=device)[:, 1:4],
        "logits": [wide[:, :1, ::2], wide[0, 0]],
    }
    ours, truth = (mapped(kwargs, lambda t, d=d: t.to(d)) for d in (torch.float32, torch.float64))
    for value, expected in zip(
        ops.combined_loss(**ours).terms, reference.combined_loss(**truth)[:6], strict=True
    ):
        assert relative(value, expected) < 3e-6


def test_opcheck(device: torch.device) -> None:
    kwargs = arguments(device, side=12, layout=torch.channels_last)
    a, b, where = kwargs["repair"]
    raw = torch.ops.faststy
    utils = ("test_schema", "test_faketensor", "test_autograd_registration")
    for gradients in (True, False):
        lists: list[Any] = [kwargs["logits"], [g for g, _ in kwargs["grams"]]]
        lists += [[f for f, _ in kwargs["features"]], [kwargs["picture"]], [a]]
        lists += [[t.expand_as(g).contiguous() for g, t in kwargs["grams"]]]
        lists += [[r for _, r in kwargs["features"]], [kwargs["colours"].repeat(2, 1, 1)]]
        args = (*lists, [b], [where], kwargs["weights"], "bce", 0.7, gradients)
        torch.library.opcheck(raw.combined_loss_fwd.default, args, test_utils=utils)
        args = (kwargs["logits"], kwargs["logits"][:2], "bce", gradients)
        torch.library.opcheck(raw.discriminator_loss_fwd.default, args, test_utils=utils)
    scale = torch.tensor(2.0, device=device)
    args = ([torch.randn(2, 3, device=device), torch.randn(5, device=device)], scale)
    torch.library.opcheck(raw.combined_loss_scale_.default, args, test_utils=utils)


def test_compile(device: torch.device) -> None:
    kwargs = arguments(device, side=12)

    def net(x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        picture = torch.sin(x)
        losses = ops.combined_loss(**(kwargs | {"picture": picture, "weights": weights}))
        judged = ops.discriminator_loss([x[:, :1]], [picture[:, 1:2]], "bce")
        return losses.total * 2 + judged.total, losses.terms

    torch._dynamo.reset()
    compiled = torch.compile(net, fullgraph=True, dynamic=True, backend="aot_eager")
    for size in (6, 8):
        x = torch.randn(2, 3, size, 5, device=device, requires_grad=True)
        results = []
        for f in (net, compiled):
            total, terms = f(x, kwargs["weights"] * size)
            results.append((total, terms, *torch.autograd.grad(total, x)))
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_compiled_scale_beyond_half_precision(device: torch.device, dtype: torch.dtype) -> None:
    """As GradScaler's: 65536 is infinite in float16."""
    leaf = torch.randn(4, 1, 64, 64, device=device).to(dtype).requires_grad_()

    def net(x: Tensor, scale: float) -> Tensor:
        return (
            ops.combined_loss(torch.ones(6, device=device), logits=[x], form="lsgan").total * scale
        )

    torch._dynamo.reset()
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    expected, found = (torch.autograd.grad(f(leaf, 2.0**17), leaf)[0] for f in (net, compiled))
    assert expected.isfinite().all()
    assert torch.equal(found, expected)


# --------------------------------------------------------------------------- threads and devices


def test_the_same_bits_whatever_the_threads() -> None:
    before = torch.get_num_threads()
    results = []
    kwargs = with_leaves(arguments(side=160, channels=(24, 48)))
    try:
        for threads in (1, 2, 2, 3):
            torch.set_num_threads(threads)
            losses = ops.combined_loss(**kwargs)
            results.append((losses.terms, *torch.autograd.grad(losses.total, leaves(kwargs))))
    finally:
        torch.set_num_threads(before)
    native = dispatch.choose("combined_loss", "cpu").name == "native"
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            # The reference sums in the order that torch chooses.
            assert torch.equal(a, b) if native else relative(a, b) < 1e-6


@pytest.mark.gpu
def test_cuda_graph() -> None:
    kwargs = with_leaves(arguments("cuda", side=64))
    kwargs.pop("repair")

    def step() -> tuple[Tensor, ...]:
        losses = ops.combined_loss(**kwargs)
        return (losses.terms, *torch.autograd.grad(losses.total, leaves(kwargs)))

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        kwargs["picture"].normal_()
        kwargs["weights"].mul_(3)  # λ changes without capturing again
    graph.replay()
    for a, b in zip(captured, step(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_real_sizes_on_a_gpu(dtype: torch.dtype, layout: torch.memory_format) -> None:
    kwargs = arguments("cuda", dtype, layout, n=8, side=256, channels=(64, 128))
    kwargs.pop("repair")
    check(kwargs, TOLERANCES[dtype] * 4, scale=2.0**13)
    first = ops.combined_loss(**kwargs)
    for _ in range(3):
        assert torch.equal(ops.combined_loss(**kwargs).terms, first.terms)


@pytest.mark.gpu
def test_the_extension_is_what_runs_on_a_gpu() -> None:
    for op in ("combined_loss", "discriminator_loss"):
        assert dispatch.choose(op, "cuda").name == "native"


@pytest.mark.gpu
def test_no_synchronisation() -> None:
    kwargs = with_leaves(arguments("cuda"))
    ops.combined_loss(**kwargs).total.backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        ops.combined_loss(**kwargs).total.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


# --------------------------------------------------------------------------- bad input

X = torch.zeros(2, 3, 4, 4)
EYE = torch.eye(3).expand(2, 3, 3)
BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"weights": torch.ones(5)}, ValueError, r"weights: expected \[6\], got \[5\]"),
    ({"form": "wgan"}, ValueError, "form: expected bce, hinge or lsgan, got 'wgan'"),
    ({"logits": [X, X, X.half()]}, TypeError, r"adversarial: logits\[2\]: expected torch.float32"),
    (
        {"logits": [X, X.to("meta")]},
        ValueError,
        r"adversarial: logits\[1\]: expected on cpu as weights is, got meta",
    ),
    ({"logits": [X, 1.0]}, TypeError, r"adversarial: logits\[1\]: expected a tensor, got float"),
    ({"grams": [(EYE, EYE), (X, X)]}, ValueError, r"style: grams\[1\]: expected \[N, C, C\]"),
    (
        {"grams": [(EYE, torch.eye(4))]},
        ValueError,
        r"style: grams\[0\] target: expected \[2, 3, 3\] or \[3, 3\], got \[4, 4\]",
    ),
    ({"grams": [(EYE[:, :2], EYE)]}, ValueError, r"style: grams\[0\]: expected \[2, 2, 2\], got"),
    (
        {"features": [(X, X), (X, X[:1])]},
        ValueError,
        r"content: features\[1\] reference: expected \[2, 3, 4, 4\], got \[1, 3, 4, 4\]",
    ),
    (
        {"features": [(X, X.double())]},
        TypeError,
        r"content: features\[0\] reference: expected torch.float32",
    ),
    ({"picture": X[0]}, ValueError, r"variation: picture: expected \[N, C, H, W\]"),
    ({"picture": X.int()}, TypeError, "variation: picture: expected float16.*got torch.int32"),
    (
        {"picture": X, "colours": torch.eye(3)},
        ValueError,
        r"colour: colours: expected \[4, 4\] or \[2, 4, 4\], got \[3, 3\]",
    ),
    ({"colours": torch.eye(4)}, ValueError, r"colour: picture: expected \[N, 3, H, W\], got none"),
    (
        {"picture": X[:, :2], "colours": torch.eye(4)},
        ValueError,
        r"colour: picture: expected \[N, 3, H, W\], got \[2, 2, 4, 4\]",
    ),
    (
        {"repair": (X, X, X)},
        ValueError,
        r"repair: map: expected \[2, 1, 4, 4\], got \[2, 3, 4, 4\]",
    ),
    ({"repair": (X, X[..., 1:], X)}, ValueError, r"repair reference: expected \[2, 3, 4, 4\]"),
    ({"logits": [None]}, TypeError, r"logits\[0\]: expected a tensor, got NoneType"),
    ({"logits": X}, TypeError, "adversarial: logits: expected tensors in a list, got Tensor"),
    ({"grams": [EYE]}, TypeError, r"style: grams\[0\]: expected tensors in a list, got Tensor"),
    ({"features": (X, X)}, TypeError, r"content: features\[0\]: expected tensors in a list"),
    ({"features": [(X, X, X)]}, ValueError, r"features\[0\]: expected 2 tensors, got 3"),
    ({"repair": (X, X)}, ValueError, "repair: expected 3 tensors, got 2"),
]


@pytest.mark.parametrize(("wrong", "error", "message"), BAD)
def test_bad_input(wrong: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ops.combined_loss(**{"weights": torch.ones(6), **wrong})


def test_bad_logits_of_a_discriminator() -> None:
    with pytest.raises(ValueError, match="fake: expected the logits of at least one scale"):
        ops.discriminator_loss([X], [])
    with pytest.raises(TypeError, match=r"real\[0\]: expected a tensor, got NoneType"):
        ops.discriminator_loss([None], [X])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="real: expected tensors in a list, got Tensor"):
        ops.discriminator_loss(X, X)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"fake\[1\]: expected on cpu as real\[0\] is, got meta"):
        ops.discriminator_loss([X], [X, X.to("meta")])
    with pytest.raises(TypeError, match=r"real\[1\]: expected torch.float32"):
        ops.discriminator_loss([X, X.half()], [X])
    with pytest.raises(ValueError, match="form: expected bce, hinge or lsgan"):
        ops.discriminator_loss([X], [X], "wgan")
