"""Every term against its formula, written out in float64."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter

from faststy.assets import photos
from faststy.nn.encoder import load_encoder
from faststy.nn.lost_content import lost_content
from faststy.tensors import to_tensor
from faststy.training import objective


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def taps(n=2):
    return [torch.randn(n, c, s, s) for c, s in ((3, 16), (4, 8), (5, 4), (6, 2))]


def close(value, expected, tolerance=1e-5):
    assert value.shape == ()
    assert float(value) == pytest.approx(float(expected), rel=tolerance, abs=1e-7)


def gram(x):
    """[N, C, H, W] in float64."""
    x = x.double().flatten(2)
    return torch.einsum("ncp,ndp->ncd", x, x) / (x.shape[1] * x.shape[2])


def falls(loss, x):
    """Following the gradient of `loss` from `x` makes it smaller."""
    x = x.clone().requires_grad_()
    before = loss(x)
    (slope,) = torch.autograd.grad(before, x)
    assert slope.abs().sum() > 0
    assert loss(x.detach() - 1e-3 * slope / slope.norm() * x.detach().norm()) < before


# ------------------------------------------------------------------------------- edges


@torch.no_grad()
def test_inner_taps_are_nearly_those_of_a_picture_that_goes_on():
    encoder = load_encoder()
    with Image.open(photos()[0]) as photo:
        x = to_tensor(photo.convert("RGB"))[..., :256, :256]
    goes_on, ends = encoder(x), encoder(x[..., 32:-32, 32:-32].contiguous())
    there = [tap[..., 32 >> t : -32 >> t, 32 >> t : -32 >> t] for t, tap in enumerate(goes_on)]
    for tap, whole, inner, of_whole in zip(
        ends, there, objective.inner(ends), objective.inner(there), strict=True
    ):
        edge = (tap - whole)[..., 0, :].square().mean() / whole[..., 0, :].square().mean()
        assert edge.sqrt() > 0.5  # the encoder's zeros
        off = (inner - of_whole).square().mean(1) / of_whole.square().mean()
        assert off.sqrt().max() < 0.5
        assert off.mean().sqrt() < 0.05


def test_of_the_smallest_taps_something_is_kept():
    sides = [(9, 5), (4, 5), (3, 2), (1, 4)]
    shapes = [tap.shape[-2:] for tap in objective.inner([torch.zeros(1, 2, *s) for s in sides])]
    assert shapes == [(5, 1), (2, 1), (1, 2), (1, 2)]


# ------------------------------------------------------------------------------- patches


def patchiness(painted, photo):
    """In float64, pair by pair."""
    size = objective.PATCH
    found = []
    for o, x in zip(painted.double(), photo.double(), strict=True):
        rows, columns = o.shape[1] // size, o.shape[2] // size
        cells = [
            (slice(None), slice(i * size, (i + 1) * size), slice(j * size, (j + 1) * size))
            for i in range(rows)
            for j in range(columns)
        ]
        colours = [o[cell].mean((1, 2)) for cell in cells]
        looks = []
        for cell in cells:
            contrast = x[cell].var((1, 2), correction=0).sum().sqrt()
            looks.append(torch.cat([x[cell].mean((1, 2)), contrast[None]]))
        error = weight = 0.0
        for c, e in zip(colours, looks, strict=True):
            for d, f in zip(colours, looks, strict=True):
                alike = torch.exp(-(e - f).square().sum() / (2 * objective.ALIKE**2))
                error = error + alike * (c - d).square().sum() / 2
                weight = weight + alike
        found.append(error / weight)
    return torch.stack(found)


def test_patches_are_what_is_painted_differently_where_the_photo_is_alike():
    # Of a height and a width that are no whole number of cells.
    painted, photo = torch.rand(2, 3, 80, 100), torch.rand(2, 3, 80, 100) * 0.4
    photo[:, :, :48, :48] += 0.5
    found = objective.patchiness(painted, photo)
    torch.testing.assert_close(found.double(), patchiness(painted, photo), atol=1e-9, rtol=1e-4)


def test_the_patches_of_a_picture_are_those_of_a_photo_that_is_alike_everywhere():
    picture = torch.rand(2, 3, 80, 100)
    expected = objective.patchiness(picture, torch.zeros_like(picture))
    torch.testing.assert_close(objective.patches_of(picture), expected)
    assert objective.patches_of(torch.rand(1, 3, 20, 90)).isfinite().all()  # narrower than a cell


def test_patches_cost_nothing_where_the_photo_differs_or_the_cells_agree():
    photo = torch.zeros(1, 3, 48, 96)
    photo[..., 48:] = 1.0
    stroke = torch.randn(1, 3, 24, 24).repeat(1, 1, 2, 4)  # strokes within cells are free
    assert objective.patchiness(stroke, photo) < 1e-6
    two = stroke + 0.5 * photo
    assert objective.patchiness(two, photo) < 1e-6
    assert objective.patchiness(two, torch.zeros_like(photo)) > 0.1
    falls(lambda x: objective.patchiness(x, photo).sum(), torch.rand(1, 3, 48, 96))


# ------------------------------------------------------------------------------- content, paired


def test_content_is_relative_over_the_whole_batch():
    a, b = torch.randn(2, 4, 8, 8), 3 * torch.randn(2, 4, 8, 8)
    d, e = a.double(), b.double()
    close(objective.content_loss(a, b), ((d - e) ** 2).sum() / (e**2).sum())
    assert objective.content_loss(b, b) == 0
    falls(lambda x: objective.content_loss(x, b), a)


def test_paired_is_the_mean_of_each_pairs():
    a, b = (
        torch.randn(2, 3, 5, 5),
        torch.randn(2, 3, 5, 5) * torch.tensor([1.0, 9.0])[:, None, None, None],
    )
    d, e = a.double(), b.double()
    each = [((d[i] - e[i]) ** 2).sum() / (e[i] ** 2).sum() for i in range(2)]
    close(objective.paired_loss(a, b), sum(each) / 2)
    assert objective.paired_loss(b, b) == 0
    falls(lambda x: objective.paired_loss(x, b), a)


def test_references_get_no_gradient():
    a, b = torch.randn(1, 3, 8, 8), torch.randn(1, 3, 8, 8, requires_grad=True)
    for loss in (objective.content_loss, objective.paired_loss):
        assert not loss(a, b).requires_grad
    assert not any(t.requires_grad for t in objective.style_targets([b]))
    assert not lost_content([b] * 4, [b] * 4).requires_grad


# ------------------------------------------------------------------------------- style, colour


def test_style_targets_are_mean_gram_matrices():
    for tap, target in zip(taps(3), objective.style_targets(taps_of := taps(3)), strict=True):
        assert target.shape == (tap.shape[1],) * 2
    for tap, target in zip(taps_of, objective.style_targets(taps_of), strict=True):
        torch.testing.assert_close(target.double(), gram(tap).mean(0), atol=1e-6, rtol=1e-5)


def test_style_is_the_mean_relative_distance_of_gram_matrices():
    painted, targets = taps(), [gram(tap).mean(0) for tap in taps(1)]
    each = [
        ((gram(p) - t) ** 2).sum((1, 2)) / (t**2).sum()
        for p, t in zip(painted, targets, strict=True)
    ]
    value = objective.style_loss(painted, [t.float() for t in targets])
    close(value, sum(each).mean() / 4, 1e-4)
    grams = [(gram(p).float(), t.float()[None]) for p, t in zip(painted, targets, strict=True)]
    for found, expected in zip(objective.style_distances(grams), sum(each) / 4, strict=True):
        close(found, expected, 1e-4)


def test_style_takes_a_target_per_sample():
    painted = taps(2)
    one, other = ([gram(tap)[0].float() for tap in taps(1)] for _ in range(2))
    both = objective.style_loss(
        painted, [torch.stack(pair) for pair in zip(one, other, strict=True)]
    )
    alone = [
        objective.style_loss([tap[i : i + 1] for tap in painted], t)
        for i, t in enumerate((one, other))
    ]
    close(both, (alone[0] + alone[1]) / 2, 1e-4)


def test_style_ignores_where_things_are_and_is_zero_for_the_style_itself():
    s = taps(1)
    targets = objective.style_targets(s)
    assert objective.style_loss(s, targets) < 1e-10
    assert objective.style_loss([tap.flip(-1).roll(3, 2) for tap in s], targets) < 1e-10
    falls(lambda x: objective.style_loss([x], targets[:1]), torch.randn_like(s[0]))


def test_colour_compares_means_and_covariances():
    painted, style = torch.rand(2, 3, 8, 8), torch.rand(1, 3, 6, 9)

    def moments(x):
        x = torch.cat([x.double(), torch.ones_like(x[:, :1]).double()], 1)
        return gram(x)

    target = moments(style)[0]
    expected = (((moments(painted) - target) ** 2).sum((1, 2)) / (target**2).sum()).mean()
    close(objective.colour_loss(painted, target.float()), expected, 1e-4)
    assert objective.colour_loss(style.flip(-1), target.float()) < 1e-10
    falls(lambda x: objective.colour_loss(x, target.float()), painted)
    channels = objective.colour_moments(painted)
    assert channels.shape == (2, 4, 8, 8)
    assert (channels[:, 3] == 1).all()


def test_total_variation_is_relative_to_the_styles():
    x = torch.rand(2, 3, 7, 9)
    d = x.double().numpy()
    expected = (np.diff(d, axis=2) ** 2).mean() + (np.diff(d, axis=3) ** 2).mean()
    close(objective.total_variation(x, 1.0), expected)
    close(objective.total_variation(x, 0.25), 4 * expected)
    assert objective.total_variation(torch.full((1, 3, 8, 8), 0.3), 0.1) == 0
    falls(lambda x: objective.total_variation(x, 1.0), x)


# ------------------------------------------------------------------------------- stability


def test_stability_is_relative_to_both_contrasts_where_it_is_valid():
    a, b, x = (torch.rand(2, 3, 8, 8) for _ in range(3))
    valid = (torch.rand(2, 1, 8, 8) > 0.3).float()
    d, e, p, v = a.double(), b.double(), x.double(), valid.double()
    energy = (v * (e - e.mean((2, 3), keepdim=True)) ** 2).sum()
    energy += (v * (p - p.mean((2, 3), keepdim=True)) ** 2).sum()
    close(objective.stability_loss(a, b, x, valid), (v * (d - e) ** 2).sum() / energy)
    assert objective.stability_loss(b, b, x, valid) == 0
    outside = b + (1 - valid) * 5
    assert objective.stability_loss(outside, b, x, valid) == 0


def test_fine_stability_sees_a_grid_that_the_whole_hardly_shows():
    strokes = torch.nn.functional.interpolate(torch.rand(1, 3, 6, 6), (48, 48), mode="bicubic")
    grid = torch.zeros(1, 3, 48, 48)
    grid[..., ::4, :] = 0.02
    valid = torch.ones(1, 1, 48, 48)
    seen = strokes + grid, strokes + grid.roll(1, 2), strokes, valid
    assert objective.fine_stability_loss(*seen) > 20 * objective.stability_loss(*seen)


def test_stability_moves_both_sides():
    a, b = torch.rand(1, 3, 8, 8, requires_grad=True), torch.rand(1, 3, 8, 8, requires_grad=True)
    objective.stability_loss(a, b, torch.rand(1, 3, 8, 8), torch.ones(1, 1, 8, 8)).backward()
    assert a.grad.abs().sum() > 0
    assert b.grad.abs().sum() > 0


# ------------------------------------------------------------------------------- lost content


def test_nothing_is_lost_where_painting_and_photo_agree():
    photo = taps()
    for painted in (photo, [3 * tap + 1 for tap in photo]):  # of the same or of another look
        assert lost_content(painted, photo).max() < 1e-4


def test_the_map_is_between_0_and_1_and_as_large_as_its_tap():
    lost = lost_content(taps(), taps())
    assert lost.shape == (2, 1, 4, 4)
    assert 0 <= lost.min() < lost.max() <= 1
    opposite = taps()
    assert lost_content([-tap for tap in opposite], opposite).max() <= 1


def box_of(mask):
    rows, columns = mask
    return (columns.start, rows.start, columns.stop, rows.stop)


@pytest.mark.parametrize("how", ["blurred", "erased"])
@pytest.mark.parametrize("name", ["astronaut", "chelsea", "coffee"])
def test_finds_what_was_taken_out_of_a_photo(name, how):
    path = next(p for p in photos() if p.stem == name)
    photo = Image.open(path).convert("RGB")
    photo.thumbnail((256, 256))
    grey = np.asarray(photo.convert("L"), dtype=np.float64)
    # The square with the most texture, on the lattice of the tap.
    side = 64
    corners = [
        (y, x)
        for y in range(32, photo.height - side - 31, 16)
        for x in range(32, photo.width - side - 31, 16)
    ]
    y, x = max(corners, key=lambda c: np.diff(grey[c[0] : c[0] + side, c[1] : c[1] + side]).std())
    region = (slice(y, y + side), slice(x, x + side))
    part = photo.crop(box_of(region))
    if how == "blurred":
        part = part.filter(ImageFilter.GaussianBlur(10))
    else:
        part = part.resize((1, 1), Image.Resampling.BOX).resize(part.size)
    painted = photo.copy()
    painted.paste(part, (x, y))

    encoder = load_encoder()
    with torch.no_grad():
        lost = lost_content(encoder(to_tensor(painted)), encoder(to_tensor(photo)))
    inside = torch.zeros(1, 1, photo.height, photo.width)
    inside[(..., *region)] = 1
    inside = F.adaptive_avg_pool2d(inside, lost.shape[-2:])
    within, without = lost[inside == 1].mean(), lost[inside == 0].mean()
    assert within > 0.15
    assert within > 4 * without
