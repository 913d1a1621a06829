"""A step of each stage, on two small style pictures and the shipped encoder."""

import copy
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from faststy import ops
from faststy.nn.encoder import load_encoder
from faststy.training import objective
from faststy.training.config import TrainConfig
from faststy.training.dataset import Pictures
from faststy.training.distributed import Alone
from faststy.training.picture_cache import load_tensor
from faststy.training.step import EVEN, StyleTarget, Trainer

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("styles")
    y, x = np.mgrid[:96, :80]
    stripes = np.stack([127 + 120 * np.sin(x / 2), 90 + 0 * x, 127 + 120 * np.cos(y / 5)], -1)
    checks = np.stack([(x // 6 + y // 6) % 2 * 200, 30 + 0 * x, 255 - y * 2], -1)
    for name, pixels in (("stripes", stripes), ("checks", checks)):
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{name}.png")
    return folder


@pytest.fixture(scope="module")
def encoder():
    return load_encoder()


@pytest.fixture(scope="module")
def targets(folder, encoder):
    found = [Pictures.found(folder / f"{name}.png", 64) for name in ("stripes", "checks")]
    return [StyleTarget.of(pictures, encoder, CPU) for pictures in found]


CONFIG = TrainConfig(
    style=("a",), model="nano", size=64, batch=2, steps=10, seed=1, precision="float32"
)


@pytest.fixture
def make(encoder, targets):
    def make(styles=1, **settings):
        config = replace(CONFIG, style=("a",) * styles, **settings)
        return Trainer(config, encoder, targets[:styles], CPU)

    return make


def test_shares_of_the_content_term_add_up_to_one_in_bfloat16(encoder, targets):
    features = torch.randn(4, 8, 24, 24, generator=torch.Generator().manual_seed(0)).bfloat16()

    class Shared(Alone):
        def batch(self, count):
            return len(features)

        def sum(self, part):
            return features.float().square().sum()

    trainer = Trainer(CONFIG, encoder, targets[:1], CPU, Shared())
    parts = [trainer._shares(len(part), part) for part in (features[:1], features[1:])]
    torch.testing.assert_close(sum(parts), torch.ones(len(ops.TERMS)), atol=1e-5, rtol=0)


@pytest.fixture
def photo():
    rng = torch.Generator().manual_seed(0)
    x = F.interpolate(torch.rand(2, 3, 9, 9, generator=rng), (64, 64), mode="bicubic")
    return x.clamp(0, 1).contiguous(memory_format=torch.channels_last)


def state(net):
    return {name: p.detach().clone() for name, p in net.named_parameters()}


def moved(before, net):
    return {name for name, p in net.named_parameters() if not torch.equal(before[name], p)}


@pytest.mark.parametrize("stage", ["perceptual", "adversarial", "repair"])
def test_bfloat16_gives_the_terms_of_float32_within_its_rounding(make, photo, stage):
    found = {}
    for precision in ("float32", "bfloat16"):
        trainer = make(precision=precision)
        found[precision] = trainer.step(0, stage, photo, 2.0)
        assert all(p.dtype == torch.float32 for p in trainer.generator.parameters())
        assert trainer.skipped == 0
    for name, value in found["float32"].items():
        half = found["bfloat16"][name]
        assert half.dtype == torch.float32, name
        assert abs(half - value) < 0.03 * abs(value) + 0.01, name
    assert any(found["bfloat16"][name] != value for name, value in found["float32"].items())


# --------------------------------------------------------------------------- style targets


def test_a_style_is_remembered_by_grams_colours_and_roughness(folder, encoder, targets):
    target = targets[0]
    s = load_tensor(folder / "stripes.png", 64).double()[None] / 255
    with torch.no_grad():
        taps = objective.inner(encoder(s.float()))
    for tap, kept in zip(taps, target.grams, strict=True):
        flat = tap[0].double().flatten(1)
        expected = flat @ flat.T / flat.numel()
        torch.testing.assert_close(kept.double(), expected, atol=1e-6, rtol=1e-3)
    colours = torch.cat([s[0], torch.ones_like(s[0, :1])]).flatten(1)
    torch.testing.assert_close(
        target.colours.double(), colours @ colours.T / colours.numel(), atol=1e-5, rtol=1e-4
    )
    rough = s.diff(dim=2).square().mean() + s.diff(dim=3).square().mean()
    assert target.variation == pytest.approx(float(rough), rel=1e-3)
    assert target.contrast == pytest.approx(float(s.std((2, 3)).mean()), rel=1e-3)
    cells = F.avg_pool2d(s, 24).flatten(2)
    assert target.patches == pytest.approx(float(cells.var(2, correction=0).sum()), rel=1e-3)


def test_a_folder_of_styles_is_averaged(folder, encoder, targets):
    both = StyleTarget.of(Pictures.found(folder, 64), encoder, CPU)
    for mean, one, other in zip(both.grams, targets[0].grams, targets[1].grams, strict=True):
        torch.testing.assert_close(mean, (one + other) / 2)
    torch.testing.assert_close(both.colours, (targets[0].colours + targets[1].colours) / 2)


def test_a_broken_picture_of_a_style_counts_for_no_other(folder, encoder, targets, tmp_path):
    for name, picture in (("a", "stripes"), ("c", "checks")):
        shutil.copy(folder / f"{picture}.png", tmp_path / f"{name}.png")
    (tmp_path / "b.png").write_bytes(b"")
    both = StyleTarget.of(Pictures.found(tmp_path, 64), encoder, CPU)
    torch.testing.assert_close(both.colours, (targets[0].colours + targets[1].colours) / 2)


# --------------------------------------------------------------------------- perceptual


def test_the_losses_fall(make, photo):
    trainer = make()
    trainer.set_learning_rate(1.0)
    terms = [trainer.step(step, "perceptual", photo, CONFIG.style_weight) for step in range(15)]
    for name in ("total", "style", "colour"):
        first, last = (sum(float(t[name]) for t in part) for part in (terms[:3], terms[-3:]))
        assert last < 0.8 * first, name
    assert trainer.skipped == 0


def test_a_perceptual_step_moves_the_generator_and_no_other_net(make, photo):
    trainer = make()
    before = {name: state(net) for name, net in trainer.nets.items()}
    terms = trainer.step(0, "perceptual", photo, 1.0)
    assert moved(before["generator"], trainer.generator) == set(before["generator"])
    assert moved(before["average"], trainer.average)
    assert not moved(before["discriminator"], trainer.discriminator)
    assert not moved(before["repairer"], trainer.repairer)
    assert {"content", "style", "colour", "total"} <= terms.keys()
    assert all(t.shape == () and not t.requires_grad for t in terms.values())
    assert not any(p.grad is not None for p in trainer.encoder.parameters())


def test_the_total_is_the_weighted_sum(make, photo):
    trainer = make(
        content_weight=0.7,
        colour_weight=1.3,
        adversarial_weight=0.4,
        variation_weight=0.2,
        stability_weight=0.6,
        patches_weight=1.7,
        paired_weight=0.9,
    )
    pair = (photo, photo.flip(1))
    terms = trainer.step(0, "adversarial", photo, 2.5, pair)
    weights = {
        "content": 0.7,
        "style": 2.5,
        "colour": 2.5 * 1.3,
        "adversarial": 0.4,
        "variation": 0.2,
        "stability": 0.6,
        "patches": 1.7,
        "paired": 0.9,
    }
    assert terms.keys() == {*weights, "total", "discriminator"}
    total = sum(weight * float(terms[name]) for name, weight in weights.items())
    assert float(terms["total"]) == pytest.approx(total, rel=1e-5)


def test_the_terms_are_those_of_the_objective(make, photo, targets):
    trainer = make(stability_weight=0.0)
    painted = trainer.generator(photo, torch.ones(2, 1)).detach()
    terms = trainer.step(0, "perceptual", photo, 1.0)
    assert "stability" not in terms
    patches = objective.patchiness(painted, photo).mean() / (targets[0].patches + EVEN)
    torch.testing.assert_close(terms["patches"], patches)
    colour = objective.colour_loss(painted, targets[0].colours)
    torch.testing.assert_close(terms["colour"], colour)
    # May pass black and white in training, hence the gradient.
    taps, photo_taps = (
        objective.inner(trainer.encoder(x)) for x in (painted.requires_grad_(), photo)
    )
    # On the encoder's own lattice; the step looks at a random one, 8 px smaller.
    content = objective.content_loss(taps[2], photo_taps[2])
    assert float(terms["content"]) == pytest.approx(content.item(), rel=0.3)
    style = objective.style_loss(taps, targets[0].grams)
    assert float(terms["style"]) == pytest.approx(style.item(), rel=0.3)


def test_the_same_step_is_the_same_bits(make, photo):
    states = []
    for _ in range(2):
        torch.manual_seed(int(torch.randint(1000, ())))  # no state outside the trainer matters
        trainer = make(styles=2)
        for step in range(2):
            trainer.step(step, "adversarial", photo, 1.0)
        trainer.step(2, "repair", photo, 1.0)
        states.append({k: v for n in trainer.nets.values() for k, v in n.state_dict().items()})
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name


def test_the_average_lags_behind_the_generator(make, photo):
    trainer = make()
    start = state(trainer.generator)
    assert not moved(start, trainer.average)
    trainer.step(0, "perceptual", photo, 1.0)
    for name, p in trainer.average.named_parameters():
        low = torch.minimum(start[name], dict(trainer.generator.named_parameters())[name])
        high = torch.maximum(start[name], dict(trainer.generator.named_parameters())[name])
        assert ((low - 1e-6 <= p) & (p <= high + 1e-6)).all()


# --------------------------------------------------------------------------- adversarial, pairs


@pytest.mark.parametrize("form", ["bce", "hinge", "lsgan"])
def test_an_adversarial_step_moves_both_adversaries(make, photo, form):
    trainer = make(adversarial=form)
    before = {name: state(net) for name, net in trainer.nets.items()}
    terms = trainer.step(0, "adversarial", photo, 1.0)
    assert {"adversarial", "discriminator"} <= terms.keys()
    weights = {name for name in before["discriminator"] if "weight" in name}
    assert weights <= moved(before["discriminator"], trainer.discriminator)
    assert moved(before["generator"], trainer.generator)
    assert not moved(before["repairer"], trainer.repairer)
    assert all(p.requires_grad for p in trainer.discriminator.parameters())


def test_the_discriminator_learns_to_tell_paintings_from_patches(make, photo):
    trainer = make(learning_rate=4e-3)
    trainer.set_learning_rate(1.0)
    trainer.optimisers["generator"].zero_grad()
    style = torch.ones(2, 1)
    losses = []
    for step in range(15):
        real = trainer.draw(step, "adversarial", photo).real
        losses.append(trainer._train_discriminator(real, photo, style).item())
    assert losses[-1] < 0.7 * losses[0]


def test_a_step_with_pairs_pulls_towards_the_targets(make, photo):
    trainer = make(paired_weight=1000.0, stability_weight=0.0)
    pair = (photo, photo.flip(1))
    terms = [trainer.step(step, "perceptual", photo, 0.01, pair)["paired"] for step in range(12)]
    assert terms[-1] < 0.8 * terms[0]


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_pairs_go_with_any_batch(make, batch):
    trainer = make(styles=2)
    pair = (torch.rand(2, 3, 64, 64), torch.rand(2, 3, 64, 64))
    terms = trainer.step(0, "perceptual", torch.rand(batch, 3, 64, 64), 1.0, pair)
    assert terms["paired"].isfinite()


def in_style(drawn, i):
    """`drawn` with all samples in style `i` of two."""
    index = torch.full_like(drawn.index, i)
    return replace(drawn, style=torch.eye(2)[index], index=index)


def test_several_styles_each_learn_their_own(make, photo):
    trainer = make(styles=2)
    before = state(trainer.generator)
    trainer.take(in_style(trainer.draw(0, "perceptual", photo), 1), 1.0)
    norm = trainer.generator.stem_norm.weight
    assert torch.equal(norm[0], before["stem_norm.weight"][0])
    assert not torch.equal(norm[1], before["stem_norm.weight"][1])


def test_each_style_has_its_own_targets(make, photo, targets):
    trainer = make(styles=2)
    colours = []
    for i in range(2):
        painted = trainer.generator(photo, torch.eye(2)[[i, i]]).detach()
        expected = objective.colour_loss(painted, targets[i].colours)
        fresh = copy.deepcopy(trainer.generator.state_dict())
        step = in_style(trainer.draw(0, "perceptual", photo), i)
        colours.append(trainer.take(step, 1.0)["colour"])
        trainer.generator.load_state_dict(fresh)
        torch.testing.assert_close(colours[i], expected)
    assert not torch.equal(*colours)


# --------------------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_step_that_is_not_finite_is_skipped(make, photo, value):
    trainer = make()
    trainer.step(0, "perceptual", photo, 1.0)
    before = state(trainer.generator)
    trainer._colours[:] = value
    terms = trainer.step(1, "perceptual", photo, 1.0)
    assert not terms["total"].isfinite()
    assert trainer.skipped == 1
    assert not moved(before, trainer.generator)
    assert all(p.isfinite().all() for p in trainer.average.parameters())


# --------------------------------------------------------------------------- repair


def test_a_repair_step_moves_the_repairer_and_its_judge_only(make, photo):
    trainer = make()
    before = {name: state(net) for name, net in trainer.nets.items()}
    for step in range(2):
        terms = trainer.step(step, "repair", photo, 1.0)
    assert {"map", "discriminator", "total"} <= terms.keys()
    assert terms["total"].isfinite()
    assert not moved(before["generator"], trainer.generator)
    assert not moved(before["average"], trainer.average)
    assert moved(before["repairer"], trainer.repairer) == set(before["repairer"])
    assert moved(before["discriminator"], trainer.discriminator)


def test_the_style_of_repaired_crops_counts_one_by_one(make, photo):
    """However many there are: their mean Gram matrix can be right where each is wrong."""
    photo = torch.cat([photo, photo.flip(-1).square()])

    def terms_of(*samples):
        trainer = make(styles=2)
        drawn = trainer.draw(0, "repair", photo)
        chosen = {
            name: value[list(samples)]
            for name, value in drawn.tensors().items()
            if name in ("photo", "style", "index", "real", "squares")
        }
        terms = trainer.take(replace(drawn, **chosen), 1.0)
        return [terms["style"], terms["style_excess"]]

    alone = torch.tensor([terms_of(sample) for sample in range(4)])
    assert alone[:, 1].max() > 0
    torch.testing.assert_close(torch.tensor(terms_of(0, 1, 2, 3)), alone.mean(0))


def test_the_repairer_learns_the_map(make, photo):
    trainer = make(learning_rate=1e-3)
    terms = [trainer.step(step, "repair", photo, 1.0) for step in range(25)]
    assert sum(t["map"] for t in terms[-3:]) < 0.8 * sum(t["map"] for t in terms[:3])


# --------------------------------------------------------------------------- rates


def test_the_learning_rate_is_a_share_of_each_nets_own(make):
    trainer = make(learning_rate=0.01)
    assert not trainer.repairs()
    for factor in (0.5, 0.1, 1.0):
        trainer.set_learning_rate(factor, pace=0.25)
        rates = {name: optimiser.rate for name, optimiser in trainer.optimisers.items()}
        own = {"generator": 0.01, "discriminator": 0.005 * 0.25, "repairer": 0.02}
        assert rates == pytest.approx({name: factor * rate for name, rate in own.items()})
        assert trainer.learning_rate("adversarial") == pytest.approx(factor * 0.01)
        assert trainer.learning_rate("repair") == pytest.approx(factor * 0.02)
