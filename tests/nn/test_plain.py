"""The nets for painting give what the nets that were trained give."""

import copy

import pytest
import torch
from torch import nn

from faststy import ops
from faststy.nn.generator import Generator, GeneratorConfig
from faststy.nn.plain import PlainGenerator, PlainRepairer, plain_kernel
from faststy.nn.repairer import Repairer

STYLE = torch.tensor([0.3, 0.7])


def make_generator(channels=8, blocks=2):
    torch.manual_seed(0)
    generator = Generator(GeneratorConfig(channels, blocks, styles=2)).eval()
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return generator.requires_grad_(False)


def make_frames(n, h, w, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, h, w, 3), dtype=torch.uint8, generator=generator)


def as_floats(frames):
    return frames.permute(0, 3, 1, 2).float() / 255


@pytest.mark.parametrize("size", [(64, 96), (45, 62), (3, 9), (33, 4)])
def test_generator(size):
    generator, frames = make_generator(), make_frames(1, *size)
    expected = generator(as_floats(frames), STYLE)
    plain = PlainGenerator(generator, STYLE)
    collected = plain(frames, collect=True).clamp(0, 1)
    torch.testing.assert_close(collected, expected, atol=2e-4, rtol=0)
    fixed = plain(frames, look=True).clamp(0, 1)
    torch.testing.assert_close(fixed, expected, atol=2e-4, rtol=0)
    plain.fold()
    torch.testing.assert_close(plain(frames).clamp(0, 1), expected, atol=2e-4, rtol=0)


def test_what_is_seen_are_the_moments_of_each_norm():
    generator, frames = make_generator(), make_frames(1, 40, 52)
    seen = {}
    for name, module in generator.named_modules():
        if name.endswith(("norm", "norm1", "norm2")):
            module.register_forward_pre_hook(
                lambda _, args, name=name: seen.update({name: args[0]})
            )
    generator(as_floats(frames), STYLE)
    plain = PlainGenerator(generator, STYLE)
    plain(frames, collect=True)
    first = dict(plain.seen)
    assert first.keys() == seen.keys()
    for name, x in seen.items():
        variance, mean = torch.var_mean(x.double(), (0, 2, 3), correction=0)
        expected = torch.stack([mean, variance]).float()
        torch.testing.assert_close(first[name], expected, atol=2e-4, rtol=2e-3)
    plain(frames, look=True)  # by fixed statistics the first sees the same again
    assert plain.seen.keys() == {"stem_norm"}
    torch.testing.assert_close(plain.seen["stem_norm"], first["stem_norm"], atol=1e-5, rtol=1e-4)
    plain(frames)
    assert plain.seen == {}


def test_folded_for_good():
    plain, frames = PlainGenerator(make_generator(), STYLE), make_frames(2, 32, 40)
    plain(frames, collect=True)
    moments = plain.seen
    of_each = {name: torch.stack([m, m]) for name, m in moments.items()}
    plain.fold()
    painted = plain(frames)
    for change in (
        lambda: plain.fix(moments),
        lambda: plain(frames, collect=True),
        lambda: plain.paint(frames, moments=of_each),
    ):
        with pytest.raises(ValueError, match="folded: its statistics cannot change"):
            change()
    assert torch.equal(plain(frames), painted)


def test_nothing_of_a_net_in_training_is_held():
    plain = PlainGenerator(make_generator().requires_grad_(), STYLE)
    plain(make_frames(1, 32, 40), collect=True)
    plain.fix(plain.seen)
    assert not any(t.requires_grad for t in plain.buffers())
    plain.fold()
    copy.deepcopy(plain)  # refused where a tensor has a history
    assert {t.device.type for t in plain.to("meta").buffers()} == {"meta"}
    assert {c.norm_weight.device.type for c in plain.norms.values()} == {"meta"}


def test_fixed_statistics_do_not_depend_on_the_frame():
    plain = PlainGenerator(make_generator(), STYLE)
    frames = make_frames(1, 64, 96)
    plain(frames, collect=True)
    whole, part = plain(frames), plain(frames[:, :, :80])
    torch.testing.assert_close(part[..., :24], whole[..., :24], atol=1e-5, rtol=0)
    assert (PlainGenerator(make_generator(), STYLE)(frames) - whole).abs().max() > 0.01


def test_statistics_of_several_frames_are_of_all_together():
    plain = PlainGenerator(make_generator(), STYLE)
    twice = make_frames(1, 32, 40).repeat(2, 1, 1, 1)
    plain(twice, collect=True)
    both = plain.seen
    plain(twice[:1], collect=True)
    for name, moments in plain.seen.items():
        torch.testing.assert_close(both[name], moments, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("size", [(64, 96), (45, 62), (3, 9)])
def test_repairer(size):
    torch.manual_seed(1)
    repairer = Repairer(8).eval().requires_grad_(False)
    for parameter in repairer.head.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.3)
    painted, photo = make_frames(1, *size), make_frames(1, *size, seed=1)
    lost, residual = repairer(as_floats(painted), as_floats(photo))
    for strength in (0.0, 0.6, 1.0):
        repaired = repairer.apply_repair(as_floats(painted), lost, residual, strength)
        got = PlainRepairer(repairer)(painted, photo, strength).int()
        expected = ops.to_pixels(repaired).int()
        assert (got - expected).abs().max() <= 1
        assert (got != expected).float().mean() < 0.01


def test_unknown_layers_are_refused():
    with pytest.raises(TypeError, match="expected a CellStem, CellHead or reflecting Conv2d"):
        plain_kernel(nn.Conv2d(3, 3, 3, padding=1))
    generator = make_generator()
    generator.more = nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect")
    with pytest.raises(TypeError, match="layers that PlainGenerator does not know"):
        PlainGenerator(generator, STYLE)


@pytest.mark.parametrize("size", [(64, 96), (45, 62)])
def test_frames_of_a_batch_with_statistics_of_their_own(size):
    """As one after the other, each by its own fixed ones; and what is seen is of each frame."""
    plain, frames = PlainGenerator(make_generator(), STYLE), make_frames(3, *size)
    moments = []
    for i in range(3):
        plain(make_frames(1, *size, seed=10 + i), collect=True)
        moments.append(plain.seen)
    together = {name: torch.stack([m[name] for m in moments]) for name in moments[0]}
    painted = plain(frames, look=True, moments=together)
    seen = plain.seen
    assert seen.keys() == {"stem_norm"}
    for i in range(3):
        plain.fix(moments[i])
        expected = plain(frames[i : i + 1], look=True)
        torch.testing.assert_close(painted[i : i + 1], expected, atol=2e-4, rtol=0)
        torch.testing.assert_close(seen["stem_norm"][i], plain.seen["stem_norm"], atol=1e-5, rtol=0)


def test_half_precision_is_near():
    """With fixed statistics, too: these are not rounded to it."""
    frames = make_frames(1, 45, 62)
    whole, half = (PlainGenerator(make_generator(), STYLE, d) for d in (torch.float32, torch.half))
    expected = whole(frames, collect=True)
    for options in ({"collect": True}, {}):
        difference = (half(frames, **options).float() - expected).abs()
        assert difference.max() < 0.005
        assert difference.mean() < 0.001
    assert {c.scale.dtype for c in half.norms.values()} == {torch.float32}
