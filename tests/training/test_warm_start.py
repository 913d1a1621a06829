"""A trainer that starts from a generator that can paint."""

from dataclasses import asdict

import pytest
import torch
from PIL import Image

from faststy import assets
from faststy.errors import FaststyError
from faststy.model_file import Model, ModelInfo, load_model, save_model
from faststy.nn.encoder import load_encoder
from faststy.nn.generator import Generator, GeneratorConfig
from faststy.nn.repairer import Repairer
from faststy.training.checkpoint import checkpoint_path, newest_checkpoint
from faststy.training.config import TrainConfig
from faststy.training.dataset import Pictures
from faststy.training.loop import train
from faststy.training.step import StyleTarget, Trainer
from faststy.training.warm_start import grow, start, warm_start

CPU = torch.device("cpu")
NAMES = ["red", "green", "blue"]


def base_of_flat_colours():
    """A generator whose styles paint everything red, green, or blue."""
    torch.manual_seed(0)
    generator = Generator(GeneratorConfig.named("nano", styles=3)).requires_grad_(False)
    generator.fine2_norm.weight.zero_()
    generator.fine2_norm.bias[:] = torch.eye(3, 16)
    generator.head.weight.zero_()
    generator.head.bias.fill_(-1.6)
    for colour in range(3):  # the centre of a dab, so that flat features give flat pixels
        generator.head.weight[4 * colour : 4 * colour + 4, colour, 1, 1] = 10.0
    repairer = Repairer()
    torch.nn.init.ones_(repairer.head.weight)
    info = ModelInfo(NAMES, asdict(generator.config), repairer.config)
    return Model(generator.eval(), repairer, info)


def test_a_style_starts_as_the_nearest_of_the_base(tmp_path):
    encoder = load_encoder()
    base = base_of_flat_colours()
    photo = torch.rand(2, 3, 64, 64)
    targets = []
    for name, colour in (("blueish", (30, 40, 220)), ("reddish", (210, 50, 40))):
        Image.new("RGB", (64, 64), colour).save(tmp_path / f"{name}.png")
        targets.append(StyleTarget.of(Pictures.found(tmp_path / f"{name}.png", 64), encoder, CPU))
    config = TrainConfig(style=("a", "b"), model="nano", size=64)
    trainer = Trainer(config, encoder, targets, CPU)
    assert warm_start(trainer, base, photo) == ["blue", "red"]
    for net in (trainer.generator, trainer.average):
        for ours, theirs in ((0, 2), (1, 0)):
            painted = net.eval()(photo, torch.eye(2)[ours])
            assert torch.equal(painted, base.generator(photo, torch.eye(3)[theirs]))
    repaired, known = trainer.repairer.state_dict(), base.repairer.state_dict()
    assert torch.equal(repaired.pop("head.weight")[:3], known.pop("head.weight")[:3])
    assert torch.equal(repaired.pop("head.bias")[:3], known.pop("head.bias")[:3])
    for key, value in known.items():
        assert torch.equal(repaired[key], value)
    rates = [optimiser.full_rate for optimiser in trainer.optimisers.values()]
    trainer.set_learning_rate(0.5)  # of which a repairer that can repair already takes a quarter
    found = [optimiser.rate for optimiser in trainer.optimisers.values()]
    assert found == [0.5 * rates[0], 0.5 * rates[1], 0.125 * rates[2]]


def test_the_base_paints_once_however_many_styles_are_compared(tmp_path, monkeypatch):
    encoder, base, targets = load_encoder(), base_of_flat_colours(), []
    colours = ((30, 40, 220), (210, 50, 40), (40, 200, 60), (20, 20, 240))
    for i, colour in enumerate(colours):
        Image.new("RGB", (64, 64), colour).save(tmp_path / f"{i}.png")
        targets.append(StyleTarget.of(Pictures.found(tmp_path / f"{i}.png", 64), encoder, CPU))
    trainer = Trainer(
        TrainConfig(style=tuple("abcd"), model="nano", size=64), encoder, targets, CPU
    )
    painted, forward = [], Generator.forward
    monkeypatch.setattr(
        Generator, "forward", lambda self, *given: painted.append(self) or forward(self, *given)
    )
    assert warm_start(trainer, base, torch.rand(2, 3, 64, 64)) == ["blue", "red", "green", "blue"]
    assert len(painted) == len(NAMES)


def test_the_repair_leaves_a_new_style_its_colours(tmp_path):
    """The base's colour correction was learned on other styles: one more of red, for these."""
    encoder, base = load_encoder(), base_of_flat_colours()
    with torch.no_grad():
        base.repairer.head.bias[:] = torch.tensor([9.0, 9.0, 9.0, 0.5, 0.0, 0.0])
    Image.new("RGB", (64, 64), (30, 40, 220)).save(tmp_path / "s.png")
    target = StyleTarget.of(Pictures.found(tmp_path / "s.png", 64), encoder, CPU)
    trainer = Trainer(TrainConfig(style=("s",), model="nano", size=64), encoder, [target], CPU)
    photo = torch.rand(2, 3, 64, 64)
    warm_start(trainer, base, photo)
    with torch.no_grad():
        painted = trainer.average(photo, torch.ones(2, 1))
        lost, residual = trainer.repairer(painted, photo)
    assert lost.min() > 0.9
    assert residual.std() > 0.1  # the photo's details do come back
    assert (residual - residual.mean(1, keepdim=True)).abs().max() < 1e-6  # and no colour


def test_training_goes_on_from_there(tmp_path):
    """The weights are the trainer's own: it moves them, and the base stays as it was."""
    encoder, base = load_encoder(), base_of_flat_colours()
    Image.effect_mandelbrot((64, 64), (-2, -1.5, 1, 1.5), 50).convert("RGB").save(
        tmp_path / "s.png"
    )
    target = StyleTarget.of(Pictures.found(tmp_path / "s.png", 64), encoder, CPU)
    trainer = Trainer(TrainConfig(style=("s",), model="nano", size=64), encoder, [target], CPU)
    photo = torch.rand(2, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    (name,) = warm_start(trainer, base, photo)
    before = base.generator.head.weight.clone()
    terms = trainer.step(0, "perceptual", photo, 1.0)
    assert torch.isfinite(terms["total"])
    assert name in NAMES
    assert not torch.equal(trainer.generator.head.weight, before)
    assert torch.equal(base.generator.head.weight, before)


def test_a_run_begins_there_says_so_and_can_go_back_there(tmp_path):
    """The state that the guards first fall back on is the base, not noise."""
    path, run = tmp_path / "base.safetensors", tmp_path / "run"
    save_model(base_of_flat_colours(), path)
    Image.new("RGB", (64, 64), (30, 40, 220)).save(tmp_path / "s.png")
    config = TrainConfig(
        style=(str(tmp_path / "s.png"),), model="nano", size=64, batch=1, steps=1, out=str(run),
        base=str(path), stages=("perceptual",),
    )  # fmt: skip
    result = train(config)
    assert result.events == (f"begins as 'blue' of {path}",)
    assert f"begins as &#x27;blue&#x27; of {path}" in (run / "report.html").read_text()
    _, tensors, _ = newest_checkpoint(checkpoint_path(run))
    kept = [k for k in tensors if k.startswith("good.") and k.endswith("generator.head.weight")]
    (name,) = kept
    assert torch.equal(tensors[name], load_model(path).generator.head.weight)


def test_noise_is_where_a_run_begins_where_the_base_is_larger(tmp_path):
    encoder = load_encoder()
    Image.new("RGB", (64, 64), (30, 40, 220)).save(tmp_path / "s.png")
    target = StyleTarget.of(Pictures.found(tmp_path / "s.png", 64), encoder, CPU)
    trainer = Trainer(TrainConfig(style=("s",), model="nano", size=64), encoder, [target], CPU)
    before, photo = trainer.generator.stem.weight.clone(), torch.rand(1, 3, 64, 64)
    for base in ("none", "auto"):  # the bundled one is larger than nano
        assert start(trainer, base, photo) is None
    assert torch.equal(trainer.generator.stem.weight, before)
    with pytest.raises(
        FaststyError, match="a larger generator than that of model nano; choose a larger"
    ):
        start(trainer, str(assets.model()), photo)


@pytest.mark.parametrize(("channels", "blocks"), [(40, 5), (32, 3), (32, 4), (48, 3)])
def test_a_grown_generator_paints_the_same_and_learns_with_what_is_new(channels, blocks):
    torch.manual_seed(1)
    small = Generator(GeneratorConfig.named("nano", styles=2)).double()
    with torch.no_grad():
        for name, parameter in small.named_parameters():
            if "norm" in name:
                parameter.normal_(1.0, 0.3)
    large = Generator(GeneratorConfig(channels, blocks, styles=2)).double()
    grow(large, small.state_dict())
    photo, style = torch.rand(2, 3, 32, 36, dtype=torch.float64), torch.tensor([0.3, 0.7])
    torch.testing.assert_close(large(photo, style), small(photo, style.double()))
    optimiser = torch.optim.SGD(large.parameters(), 1e-2)
    for _ in range(2):  # at first, weights of zero keep gradients from what is behind them
        optimiser.zero_grad()
        large(photo, style).square().mean().backward()
        optimiser.step()
    assert all(p.grad is not None and p.grad.abs().amax() > 0 for p in large.parameters())


def test_what_a_base_is_grown_to_comes_from_the_seed(tmp_path):
    encoder, photo = load_encoder(), torch.rand(1, 3, 64, 64)
    Image.new("RGB", (64, 64), (30, 40, 220)).save(tmp_path / "s.png")
    target = StyleTarget.of(Pictures.found(tmp_path / "s.png", 64), encoder, CPU)
    found = []
    for seed in (3, 3, 4):
        config = TrainConfig(style=("s",), model="fast", size=64, seed=seed)
        trainer = Trainer(config, encoder, [target], CPU)
        base = base_of_flat_colours()
        torch.rand(seed + len(found))  # whatever else draws numbers
        warm_start(trainer, base, photo)
        for net in (trainer.generator, trainer.average):
            blue = base.generator(photo, torch.eye(3)[2])
            torch.testing.assert_close(net.eval()(photo), blue, atol=1e-4, rtol=0)
        found.append(trainer.generator.state_dict())
    for name, value in found[0].items():
        assert torch.equal(value, found[1][name]), name
    assert not torch.equal(found[0]["stem.weight"], found[2]["stem.weight"])
