import pytest
import torch

from faststy.nn.repairer import Repairer, detail


def scrambled():
    torch.manual_seed(0)
    net = Repairer(channels=8)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return net.requires_grad_(False)


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (3, 5), (33, 65), (64, 64)])
def test_any_size_gives_a_map_and_a_residual(size):
    net = scrambled()
    painted, photo = torch.rand(2, 3, *size), torch.rand(2, 3, *size)
    lost, residual = net(painted, photo)
    assert lost.shape == (2, 1, *size)
    assert residual.shape == (2, 3, *size)
    assert 0 <= lost.min() <= lost.max() <= 1
    repaired = net.apply_repair(painted, lost, residual, 1.0)
    assert 0 <= repaired.min() <= repaired.max() <= 1


@pytest.mark.parametrize(
    ("painted", "photo", "message"),
    [
        ((1, 4, 8, 8), (1, 4, 8, 8), r"painted: expected RGB pictures \[N, 3, H, W\]"),
        ((1, 3, 8, 9), (1, 3, 8, 8), r"photo: expected the shape .*8, 9\], got \[1, 3, 8, 8\]"),
    ],
)
def test_other_pictures_are_refused(painted, photo, message):
    with pytest.raises(ValueError, match=message):
        scrambled()(torch.rand(painted), torch.rand(photo))


def test_at_the_start_nothing_is_done_where_nothing_is_missing():
    photo = torch.rand(1, 3, 40, 40)
    _, residual = Repairer()(photo, photo)
    torch.testing.assert_close(residual, torch.zeros_like(residual))


def test_the_start_brings_back_luminance_detail_and_no_colour():
    painted, photo = torch.rand(1, 3, 40, 40), torch.rand(1, 3, 40, 40)
    _, residual = Repairer()(painted, photo)
    torch.testing.assert_close(residual, residual[:, :1].expand_as(residual))
    missing = (detail(photo) - detail(painted)).expand_as(residual)
    assert torch.corrcoef(torch.stack([residual.flatten(), missing.flatten()]))[0, 1] > 0.99


def test_strength_is_the_users_dial():
    net, painted, photo = scrambled(), torch.rand(1, 3, 32, 32), torch.rand(1, 3, 32, 32)
    lost, residual = net(painted, photo)
    assert torch.equal(net.apply_repair(painted, lost, residual, 0.0), painted)
    full = (painted.double() + lost.double() * residual.double()).clamp(0, 1)
    whole = net.apply_repair(painted, lost, residual, 1.0)
    torch.testing.assert_close(whole.double(), full, atol=1e-6, rtol=0)
    half = net.apply_repair(painted, lost, residual, 0.5)
    assert 0 < (half - painted).abs().mean() < (whole - painted).abs().mean()


def test_detail_has_no_colour_and_no_flat_parts():
    flat = torch.tensor([0.8, 0.2, 0.5]).view(1, 3, 1, 1).expand(1, 3, 37, 50)
    torch.testing.assert_close(detail(flat), torch.zeros(1, 1, 37, 50), atol=1e-6, rtol=0)
    grey = torch.rand(1, 1, 32, 32).expand(1, 3, 32, 32)
    turned = grey + torch.tensor([0.114, 0.0, -0.299]).view(1, 3, 1, 1)  # of the same luminance
    torch.testing.assert_close(detail(turned), detail(grey), atol=1e-6, rtol=0)
    assert detail(grey).abs().mean() > 0.1


def test_every_parameter_can_learn_after_the_first_step():
    net = Repairer(channels=8)
    optimiser = torch.optim.SGD(net.parameters(), 1e-3)
    painted, photo = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32)
    for _ in range(2):  # the head starts from zero and holds the others' gradients back
        optimiser.zero_grad()
        lost, residual = net(painted, photo)
        ((lost - 0.9).square().sum() + (residual - 1).square().sum()).backward()
        optimiser.step()
    for name, p in net.named_parameters():
        assert p.grad.abs().sum() > 0, name


def test_all_features_and_gradients_stay_channels_last(layouts):
    def step(net, painted):
        lost, residual = net(painted, painted.detach().flip(0))
        return (lost * residual).square().sum()

    painted = torch.rand(2, 3, 32, 48)
    met = layouts(scrambled(), step, painted)
    assert {"stem input", "body1 input", "gradient at body1 input", "head output"} <= met
