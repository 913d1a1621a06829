import pytest
import torch
import torch.nn.functional as F

from faststy.nn.generator import (
    MIN_SIDE,
    SCALE,
    SIZES,
    CellHead,
    CellStem,
    Generator,
    GeneratorConfig,
    ResidualBlock,
    double,
    pad_to_cells,
    window,
)


def scrambled(styles=1, blocks=2):
    """A generator as training could leave it: no weight at its start."""
    torch.manual_seed(0)
    net = Generator(GeneratorConfig(channels=8, blocks=blocks, styles=styles))
    with torch.no_grad():
        for name, p in net.named_parameters():
            spread = 0.5 if "norm" in name or "bias" in name else 0.1
            p.add_(spread * torch.randn_like(p))
    return net.eval().requires_grad_(False)


def hann(scale, channels):
    """The window over 3x3 cells, packed as their pixels are: [channels·scale², 3, 3]."""
    places = (torch.arange(3 * scale, dtype=torch.float64) + 0.5) / (3 * scale)
    line = 2 * torch.sin(torch.pi * places) ** 2
    return F.pixel_unshuffle(torch.outer(line, line)[None], scale).repeat(channels, 1, 1)


def convolved(x, weight, border="reflect"):
    return F.conv2d(F.pad(x, (1, 1, 1, 1), border), weight)


def normalised(x, weight, bias):
    centered = x - x.mean((2, 3), keepdim=True)
    x = centered / (centered.square().mean((2, 3), keepdim=True) + 1e-5).sqrt()
    return x * weight[:, None, None] + bias[:, None, None]


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (3, 5), (8, 8), (33, 65), (40, 12)])
def test_paints_any_size_as_in_float64(size):
    net, x = scrambled(styles=2), torch.rand(2, 3, *size)
    style = torch.tensor([0.3, 0.7])
    painted = net(x, style)
    assert painted.shape == x.shape
    assert painted.dtype == torch.float32
    exact = net.double()(x.double(), style.double())
    torch.testing.assert_close(painted.double(), exact, atol=2e-3, rtol=0)


def test_no_photo_is_no_painting():
    assert scrambled()(torch.zeros(0, 3, 32, 31)).shape == (0, 3, 32, 31)


def test_without_numbers_shapes_come_out():
    net = scrambled(styles=2).to("meta")
    painted = net(torch.empty(2, 3, 33, 31, device="meta"))
    assert painted.shape == (2, 3, 33, 31)
    assert painted.is_meta


@pytest.mark.parametrize("size", [(5, 13), (33, 65)])
def test_a_photo_is_painted_as_one_with_repeated_borders(size):
    net, x = scrambled(), torch.rand(1, 3, *size)
    bottom, right = (max(-side % 4, 8 - side) for side in size)
    grown = F.pad(x, (0, right, 0, bottom), "replicate")
    torch.testing.assert_close(net(x), net(grown)[..., : size[0], : size[1]])


def test_a_residual_block_is_its_formula():
    torch.manual_seed(0)
    block = ResidualBlock(6, 2).requires_grad_(False)
    for norm in (block.norm1, block.norm2):
        norm.weight += torch.randn_like(norm.weight)
        norm.bias += torch.randn_like(norm.bias)
    x, style = torch.randn(2, 6, 7, 5), torch.tensor([0.4, 0.6])
    p = {name: value.double() for name, value in block.state_dict().items()}
    weights = {name: style.double() @ value for name, value in p.items() if "norm" in name}
    h = convolved(x.double(), p["conv1.weight"])
    h = normalised(h, weights["norm1.weight"], weights["norm1.bias"]).relu()
    h = convolved(h, p["conv2.weight"])
    expected = x + normalised(h, weights["norm2.weight"], weights["norm2.bias"])
    torch.testing.assert_close(block(x, style).double(), expected, atol=1e-4, rtol=1e-4)


def test_channels_last_paints_the_same():
    net, x = scrambled(), torch.rand(1, 3, 21, 34)
    last = x.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(net(last), net(x), atol=1e-5, rtol=0)


def test_values_stay_between_black_and_white():
    net = scrambled()
    net.head.weight *= 1000
    painted = net(torch.rand(1, 3, 16, 16))
    assert 0 <= painted.min() < painted.max() <= 1


@pytest.mark.parametrize("size", [(64, 64), (33, 65), (5, 9)])
def test_a_flat_photo_is_painted_flat_up_to_the_corners(size):
    # In float64: a cascade of norms would magnify the rounding of float32 to a picture.
    net = scrambled(blocks=1).double()
    x = torch.tensor([0.9, 0.35, 0.1]).double().view(1, 3, 1, 1).expand(1, 3, *size).contiguous()
    painted = net(x)
    spread = painted.amax((2, 3)) - painted.amin((2, 3))
    assert spread.max() < 1e-3  # of 1: no frame at the borders, no pattern in the cells


def test_padding_repeats_the_border_and_fills_two_cells():
    x = torch.rand(1, 2, 5, 13)
    padded = pad_to_cells(x)
    assert padded.shape == (1, 2, MIN_SIDE, 16)
    torch.testing.assert_close(padded[..., :5, :13], x)
    torch.testing.assert_close(padded[..., 7, :13], x[..., 4, :])
    torch.testing.assert_close(padded[..., :5, 15], x[..., 12])
    whole = torch.rand(1, 2, 8, 12)
    assert pad_to_cells(whole) is whole


def test_styles_mix_by_their_norm_parameters():
    net, x = scrambled(styles=3), torch.rand(1, 3, 24, 24)
    mixed = scrambled(styles=1)
    weights = torch.tensor([0.2, 0.5, 0.3])
    state = {
        name: weights[None] @ p if "norm" in name else p for name, p in net.state_dict().items()
    }
    mixed.load_state_dict(state)
    torch.testing.assert_close(net(x, weights), mixed(x), atol=1e-5, rtol=0)


def test_one_hot_picks_a_style_per_sample_and_the_first_is_the_default():
    net, x = scrambled(styles=3), torch.rand(1, 3, 24, 24)
    eye = torch.eye(3)
    alone = [net(x, eye[i]) for i in range(3)]
    together = net(x.expand(3, -1, -1, -1), eye)
    for i in range(3):
        torch.testing.assert_close(together[i : i + 1], alone[i], atol=1e-5, rtol=0)
    assert (alone[0] - alone[1]).abs().mean() > 0.01
    torch.testing.assert_close(net(x), alone[0])


def test_a_style_vector_of_another_length_is_refused():
    with pytest.raises(ValueError, match=r"style: expected \[2\]"):
        scrambled(styles=2)(torch.rand(1, 3, 8, 8), torch.ones(3))


@pytest.mark.parametrize("shape", [(1, 4, 8, 8), (3, 8, 8)])
def test_other_pictures_are_refused(shape):
    with pytest.raises(ValueError, match=r"x: expected RGB pictures \[N, 3, H, W\], got \["):
        scrambled()(torch.rand(shape))


@pytest.mark.parametrize("shape", [(2, 3, 0, 16), (1, 3, 16, 0)])
def test_pictures_without_pixels_are_refused(shape):
    with pytest.raises(ValueError, match="x: expected H and W of at least 1, got"):
        scrambled()(torch.rand(shape))


def test_gradients_reach_every_parameter():
    net = scrambled(styles=2).requires_grad_(True)
    net.train()  # where values are not clamped, gradients flow everywhere
    net(torch.rand(2, 3, 16, 16), torch.eye(2)).square().sum().backward()
    for name, p in net.named_parameters():
        assert p.grad is not None, name
        assert p.grad.abs().sum() > 0, name


def test_sizes_are_named():
    for name, (channels, blocks) in SIZES.items():
        assert GeneratorConfig.named(name, 5) == GeneratorConfig(channels, blocks, 5)
    with pytest.raises(ValueError, match="model must be one of nano, fast, quality, got 'huge'"):
        GeneratorConfig.named("huge")


def test_quality_has_the_parameters_of_johnson():
    counts = {
        name: sum(p.numel() for p in Generator(GeneratorConfig.named(name)).parameters())
        for name in SIZES
    }
    assert counts["nano"] < counts["fast"] < counts["quality"]
    assert 1.5e6 < counts["quality"] < 1.8e6


@pytest.fixture(params=[2, 4])
def head(request):
    torch.manual_seed(0)
    head = CellHead(6, 3, request.param).requires_grad_(False)
    head.weight += torch.randn_like(head.weight)
    head.bias += torch.randn_like(head.bias)
    return head


def test_the_stem_is_a_windowed_convolution_of_cells():
    torch.manual_seed(0)
    stem, x = CellStem(3, 5).requires_grad_(False), torch.randn(2, 3, 12, 20)
    weight = stem.weight.double() * hann(SCALE, 3)
    expected = convolved(F.pixel_unshuffle(x.double(), SCALE), weight)
    torch.testing.assert_close(stem(x).double(), expected, atol=1e-4, rtol=1e-4)


def test_the_head_is_the_plain_convolution_of_its_kernel(head):
    weight, bias = head.kernel()
    x = torch.randn(2, 6, 5, 7)
    plain = convolved(x.double(), weight.double()) + bias.double()[:, None, None]
    expected = F.pixel_shuffle(plain, head.scale)
    torch.testing.assert_close(head(x).double(), expected, atol=1e-4, rtol=1e-4)


def test_the_kernel_is_windowed_and_its_sums_agree_within_a_cell(head):
    raw = head.weight.double() * hann(head.scale, 3)[:, None]
    sums = raw.sum((2, 3)).view(3, head.scale**2, 6)
    assert sums.std(1).min() > 0.01
    excess = (sums - sums.mean(1, keepdim=True)).view(-1, 6, 1, 1) / 9
    weight, bias = head.kernel()
    torch.testing.assert_close(weight.double(), raw - excess, atol=1e-5, rtol=1e-5)
    common = weight.sum((2, 3)).view(3, head.scale**2, 6)
    torch.testing.assert_close(common, common[:, :1].expand_as(common), atol=1e-4, rtol=0)
    assert torch.equal(bias, head.bias.repeat_interleave(head.scale**2))


def test_the_head_makes_flat_pixels_of_flat_features_up_to_the_corners(head):
    pixels = head(torch.randn(1, 6, 1, 1).expand(1, 6, 5, 7))
    torch.testing.assert_close(pixels, pixels[..., :1, :1].expand_as(pixels), atol=1e-4, rtol=0)


@pytest.mark.parametrize("scale", [2, 4])
def test_the_windows_of_neighbouring_cells_add_up(scale):
    pixels = F.pixel_shuffle(window(scale)[None], scale)[0, 0]
    assert pixels.mean().item() == pytest.approx(1, abs=1e-6)
    cells = pixels.view(3, scale, 3, scale).sum((0, 2))
    torch.testing.assert_close(cells, torch.full((scale, scale), 9.0))


def test_doubling_makes_positions_that_vary_alike():
    torch.manual_seed(0)
    y = double(torch.randn(1, 1, 400, 400))
    assert y.shape == (1, 1, 800, 800)
    spread = F.pixel_unshuffle(y, 2).std((2, 3))  # of the four positions
    torch.testing.assert_close(spread, spread.mean().expand_as(spread), rtol=0.01, atol=0)
    assert torch.equal(double(torch.ones(1, 2, 3, 5)), torch.ones(1, 2, 6, 10))


def test_training_mode_keeps_what_is_outside_black_and_white():
    net = scrambled()
    net.head.weight *= 100
    x = torch.rand(1, 3, 16, 16)
    painted, free = net(x), net.train()(x)
    assert free.min() < 0
    assert free.max() > 1
    torch.testing.assert_close(free.clamp(0, 1), painted)


def test_all_features_and_gradients_stay_channels_last(layouts):
    photo = torch.rand(2, 3, 32, 48)
    met = layouts(scrambled().train(), lambda net, x: net(x).square().sum(), photo)
    assert {"fine1 input", "head output", "gradient at fine1 input", "rise output"} <= met


def test_export_for_any_batch():
    generator = Generator(GeneratorConfig(8, 1)).eval()
    batch = {0: torch.export.Dim("n", min=2, max=64)}
    exported = torch.export.export(generator, (torch.rand(2, 3, 16, 16),), dynamic_shapes=(batch,))
    x = torch.rand(5, 3, 16, 16)
    torch.testing.assert_close(exported.module()(x), generator(x))
