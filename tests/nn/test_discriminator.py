import pytest
import torch
import torch.nn.functional as F

from faststy.nn.discriminator import Discriminator, PatchDiscriminator


def test_scores_patches_at_full_half_and_quarter_resolution():
    net = Discriminator(channels=4)
    maps = net(torch.rand(2, 3, 64, 96), torch.ones(2, 1))
    assert [tuple(m.shape) for m in maps] == [(2, 1, 8, 12), (2, 1, 4, 6), (2, 1, 2, 3)]


def test_each_scale_judges_the_averaged_picture():
    torch.manual_seed(0)
    net = Discriminator(channels=4).eval()
    x, style = torch.rand(1, 3, 64, 64), torch.ones(1, 1)
    maps = net(x, style)
    weights = [norm(layer) for norm, layer in zip(net.norms, net._weights(), strict=True)]
    for i, judge in enumerate(net.scales):
        side = 64 // 2**i
        small = x.view(1, 3, side, 2**i, side, 2**i).mean((3, 5)) * 2 - 1
        torch.testing.assert_close(
            maps[i], judge(small, style, [w[i] for w in weights]), atol=1e-5, rtol=1e-4
        )


def test_a_picture_is_judged_as_its_own_style():
    torch.manual_seed(0)
    net = Discriminator(styles=3, channels=4).eval()
    x = torch.rand(1, 3, 64, 64)
    each = [net(x, style[None]) for style in torch.eye(3)]
    together = net(x.expand(3, -1, -1, -1), torch.eye(3))
    for scale, judged in enumerate(together):
        for i in range(3):
            torch.testing.assert_close(judged[i : i + 1], each[i][scale], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(each[0][0], each[1][0])


def test_a_patch_is_38_pixels():
    torch.manual_seed(0)
    net = PatchDiscriminator(4, 1).eval()
    x = torch.rand(1, 3, 96, 96, requires_grad=True)
    net(x, torch.ones(1, 1), [conv.weight for conv in net.convs])[0, 0, 6, 6].backward()
    seen = x.grad.abs().sum((0, 1))
    rows, columns = seen.sum(1).nonzero(), seen.sum(0).nonzero()
    assert rows.max() - rows.min() + 1 == 38
    assert columns.max() - columns.min() + 1 == 38


def test_gradients_reach_picture_and_parameters():
    torch.manual_seed(0)
    net = Discriminator(styles=2, channels=4)
    x = torch.rand(2, 3, 64, 64, requires_grad=True)
    sum(F.softplus(scale).mean() for scale in net(x, torch.eye(2))).backward()
    assert x.grad.abs().amin((0, 1)).count_nonzero() > 0.9 * 64 * 64
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


def test_another_number_of_styles_is_refused():
    net = Discriminator(styles=2, channels=4)
    for style in (torch.ones(2, 3), torch.ones(3, 2), torch.ones(2)):
        with pytest.raises(ValueError, match=r"style: expected \[N, 2\] = \[2, 2\], got"):
            net(torch.rand(2, 3, 64, 64), style)
