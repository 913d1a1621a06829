"""A picture in tiles is the picture as a whole, in less memory."""

import itertools
from dataclasses import asdict

import numpy as np
import pytest
import torch
from PIL import Image

from faststy import assets
from faststy.errors import FaststyError
from faststy.model_file import Model, ModelInfo
from faststy.nn.generator import Generator, GeneratorConfig
from faststy.nn.repairer import Repairer
from faststy.stylization import tiles
from faststy.stylization.stylizer import Stylizer

TOO_LITTLE = 1  # bytes: the smallest tiles


@pytest.fixture(scope="module")
def stylizer():
    """A net as deep as `fast`, that paints strongly."""
    torch.manual_seed(1)
    config = GeneratorConfig(channels=8, blocks=4, styles=2)
    generator, repairer = Generator(config).eval(), Repairer(8).eval()
    with torch.no_grad():
        for parameter in [*generator.parameters(), *repairer.head.parameters()]:
            parameter.add_(torch.randn_like(parameter) * 0.1)
    info = ModelInfo(["rain", "starry night"], asdict(config), {"channels": 8})
    model = Model(generator.requires_grad_(False), repairer.requires_grad_(False), info)
    return Stylizer(model, "cpu")


@pytest.fixture(scope="module")
def photo():
    """What differs from place to place, at all scales; no side is a multiple of anything."""
    rng = np.random.default_rng(0)
    picture = np.zeros((613, 787, 3))
    for size in (2, 8, 32, 128):
        small = rng.normal(0, 25, (613 // size + 2, 787 // size + 2, 3))
        picture += small.repeat(size, 0).repeat(size, 1)[:613, :787]
    return Image.fromarray(np.clip(picture + 128, 0, 255).astype(np.uint8))


@pytest.mark.parametrize(
    "dials",
    [
        {},
        {"repair": 0.0, "style": "rain:1,starry night:2"},
        {"strength": 0.4, "keep_color": True},
        {"stroke": 2},
        {"stroke": 4, "strength": 0.7},
    ],
)
def test_tiles_are_the_whole(stylizer, photo, dials):
    told = []
    painting = stylizer.paint(photo, memory=TOO_LITTLE, progress=told.append, **dials)
    painter = stylizer.painter(**dials)
    painter.hold(tiles.samples(photo, dials.get("stroke", 1)))
    whole = painter(np.asarray(photo)).astype(int)
    difference = np.abs(np.asarray(painting.picture.rgb) - whole)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.001  # rounding, not seams
    assert painting.lost_content is None
    assert len(told) == 4
    assert told == sorted(told)
    assert told[-1] == 1


def test_a_mask_is_that_of_the_whole(stylizer, photo):
    mask = Image.new("L", (100, 80))
    mask.paste(255, (40, 0, 100, 80))
    masked = stylizer.paint(photo, memory=TOO_LITTLE, mask=mask).picture.rgb
    full = np.asarray(stylizer.paint(photo, memory=TOO_LITTLE).picture.rgb)
    np.testing.assert_array_equal(np.asarray(masked)[:, :300], np.asarray(photo)[:, :300])
    np.testing.assert_array_equal(np.asarray(masked)[:, 340:], full[:, 340:])


def test_a_small_picture_in_tiles_has_its_own_statistics(stylizer, photo):
    """Then it is painted as without tiles."""
    small = photo.crop((0, 0, 300, 280))
    whole = np.asarray(stylizer(small)).astype(int)
    tiled = np.asarray(stylizer.paint(small, memory=TOO_LITTLE).picture.rgb)
    assert np.abs(tiled - whole).max() <= 1


def test_statistics_of_samples_are_close_to_those_of_the_whole():
    """Real photos and a ready style: of noise all samples are alike."""
    stylizer, differences = Stylizer.load(device="cpu"), []
    for path in assets.photos():
        large = Image.open(path).convert("RGB").resize((1300, 1100))
        assert tiles.samples(large).shape == (4, 512, 512, 3)
        whole = np.asarray(stylizer(large, repair=0, stroke=1)).astype(int)
        tiled = stylizer.paint(large, repair=0, stroke=1, memory=TOO_LITTLE).picture.rgb
        differences.append(np.abs(np.asarray(tiled) - whole).mean())
    assert np.mean(differences) < 4


def drawing():
    """On white, where no sample looks."""
    picture = Image.new("RGB", (1300, 1100), "white")
    rng = np.random.default_rng(0)
    drawn = Image.fromarray(rng.integers(0, 256, (12, 6, 3), np.uint8)).resize((80, 160))
    picture.paste(drawn, (612, 300))
    return picture


def test_a_drawing_that_no_sample_meets(stylizer):
    """The statistics are those of a thinned picture then, close to those of the whole."""
    picture = drawing()
    found = tiles.samples(picture)
    assert found.shape == (1, 550, 650, 3)
    np.testing.assert_array_equal(found[0], np.asarray(picture)[1::2, ::2])
    whole = np.asarray(stylizer(picture, repair=0, stroke=1)).astype(int)
    tiled = np.asarray(stylizer.paint(picture, repair=0, stroke=1, memory=TOO_LITTLE).picture.rgb)
    assert np.abs(tiled - whole).mean() < 3


@pytest.mark.parametrize("repair", [0.0, 1.0])
def test_a_flat_picture_is_that_of_the_whole(stylizer, repair):
    picture, dials = Image.new("RGB", (1300, 1100), (200, 100, 50)), {"repair": repair, "stroke": 1}
    whole = np.asarray(stylizer(picture, **dials)).astype(int)
    tiled = np.asarray(stylizer.paint(picture, memory=TOO_LITTLE, **dials).picture.rgb)
    assert np.abs(tiled - whole)[40:-40, 40:-40].max() <= 2
    picture.paste("black", (640, 600, 641, 601))  # a dot between the pixels that are looked at
    assert np.ptp(tiles.samples(picture).numpy(), axis=(0, 1, 2)).max() == 0
    tiled = np.asarray(stylizer.paint(picture, memory=TOO_LITTLE, **dials).picture.rgb)
    assert np.abs(tiled - whole)[40:400, 40:400].max() <= 2


@pytest.mark.parametrize("size", [(613, 787), (64, 64), (1, 2000), (257, 256)])
@pytest.mark.parametrize(("side", "halo"), [(256, 128), (64, 0)])
def test_tiles_cover_everything_once(size, side, halo):
    count = np.zeros(size, int)
    for tile in tiles.tiles(*size, side, halo):
        left, top, right, bottom = tile.kept
        count[top:bottom, left:right] += 1
        assert tile.seen[0] in (0, left - halo)
        assert tile.seen[0] % tiles.ALIGNMENT == 0
        assert tile.seen[3] in (size[0], bottom + halo)
        seen = np.zeros((tile.seen[3] - tile.seen[1], tile.seen[2] - tile.seen[0], 3), np.uint8)
        assert tile.cut(seen).shape == (bottom - top, right - left, 3)
    assert (count == 1).all()


@pytest.mark.parametrize(("stroke", "strength"), [(1, 1.0), (1, 0.5), (2, 1.0), (4, 1.0)])
def test_the_halo_is_what_the_nets_reach(stylizer, photo, stroke, strength):
    """A change just beyond the halo changes nothing; and the halo is not generous by far."""
    halo = stylizer.halo(photo.size, stroke=stroke, strength=strength)
    painter = stylizer.painter(stroke=stroke, strength=strength)
    painter.hold(tiles.samples(photo))
    before = np.array(photo.resize((3 * halo, 64)))
    after = before.copy()
    after[:, 2 * halo :] = 255 - after[:, 2 * halo :]
    changed = (painter(before) != painter(after)).any(axis=(0, 2))
    assert not changed[:halo].any()
    assert changed[: 2 * halo].any()


def test_memory_decides():
    picture = Image.new("RGB", (4000, 3000))
    assert tiles.side_within(64 << 30, 256, picture.size) is None
    sides = [tiles.side_within(m << 20, 256, picture.size) for m in (1, 1000, 2000, 3000)]
    assert sides == sorted(sides)
    assert sides[0] == tiles.SMALLEST
    assert tiles.SMALLEST < sides[1] <= tiles.LARGEST
    assert all(side % tiles.ALIGNMENT == 0 for side in sides)


def test_available_memory_is_sensible():
    assert 1 << 26 < tiles.available_memory() < 1 << 50


GB = 1 << 30
PROC = {"proc/meminfo": f"MemTotal: {64 << 20} kB\nMemAvailable:   {60 << 20} kB\n"}
V2, V1 = "sys/fs/cgroup", "sys/fs/cgroup/memory"


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({}, 60 * GB),
        ({"proc/self/cgroup": "0::/a\n", f"{V2}/a/memory.max": "max\n"}, 60 * GB),
        (  # a container of 2 GB: it sees itself as the topmost group
            {
                "proc/self/cgroup": "0::/\n",
                f"{V2}/memory.max": f"{2 * GB}\n",
                f"{V2}/memory.current": f"{GB}\n",
                f"{V2}/memory.stat": f"anon 5\ninactive_file {GB // 2}\nactive_file 7\n",
            },
            3 * GB // 2,
        ),
        (  # a parent has less left than the group itself
            {
                "proc/self/cgroup": "0::/user.slice/job\n",
                f"{V2}/user.slice/job/memory.max": f"{8 * GB}",
                f"{V2}/user.slice/job/memory.current": f"{GB}",
                f"{V2}/user.slice/job/memory.stat": "inactive_file 0\n",
                f"{V2}/user.slice/memory.max": f"{8 * GB}",
                f"{V2}/user.slice/memory.current": f"{5 * GB}",
                f"{V2}/user.slice/memory.stat": "inactive_file 0\n",
            },
            3 * GB,
        ),
        (  # more is held than a limit that was lowered
            {
                "proc/self/cgroup": "0::/\n",
                f"{V2}/memory.max": f"{GB}",
                f"{V2}/memory.current": f"{2 * GB}",
                f"{V2}/memory.stat": "",
            },
            0,
        ),
        (  # version 1, in a container that does not see the path of its group
            {
                "proc/self/cgroup": "9:name=systemd:/\n4:cpu,memory:/docker/12ab\n0::/\n",
                f"{V1}/memory.limit_in_bytes": f"{2 * GB}",
                f"{V1}/memory.usage_in_bytes": f"{GB}",
                f"{V1}/memory.stat": f"inactive_file 1\ntotal_inactive_file {GB // 4}\n",
            },
            5 * GB // 4,
        ),
        (  # version 1 without a limit
            {
                "proc/self/cgroup": "4:memory:/\n",
                f"{V1}/memory.limit_in_bytes": "9223372036854771712",
                f"{V1}/memory.usage_in_bytes": f"{GB}",
                f"{V1}/memory.stat": "",
            },
            60 * GB,
        ),
    ],
)
def test_control_groups_bound_what_is_available(tmp_path, files, free):
    for name, text in {**PROC, **files}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert tiles.available_memory(tmp_path) == free * 2 // 3


@pytest.fixture
def gpu(monkeypatch):
    """A GPU of 3 GB to ask for its memory: 1 GB is free, and half of one is kept by torch."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (GB, 3 * GB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: GB)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: GB // 2)
    return torch.device("cuda")


def test_a_gpu_bounds_the_memory_too(gpu, monkeypatch):
    monkeypatch.setattr(tiles, "available_memory", lambda: 40 * GB)
    assert tiles.limit(None, torch.device("cpu")) == 40 * GB
    assert tiles.limit(2 * GB, torch.device("cpu")) == 2 * GB
    assert tiles.limit(None, gpu) == GB
    assert tiles.limit(GB // 4, gpu) == GB // 4


def test_what_is_too_large_for_the_gpu_is_painted_in_tiles(stylizer, photo, gpu, monkeypatch):
    """The nets stay on the CPU; what is asked is how large the GPU is."""
    ask = tiles.limit
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (GB // 4, GB))
    monkeypatch.setattr(tiles, "limit", lambda memory, device: ask(memory, gpu))
    painting = stylizer.paint(photo, memory=40 * GB)
    assert painting.lost_content is None
    in_tiles = stylizer.paint(photo, memory=TOO_LITTLE).picture.rgb
    np.testing.assert_array_equal(np.asarray(painting.picture.rgb), np.asarray(in_tiles))


def test_out_of_memory_goes_on_in_smaller_tiles(stylizer, photo, monkeypatch):
    """As on a GPU that others use, too: what was free may be gone."""
    expected = np.asarray(stylizer.paint(photo, memory=TOO_LITTLE).picture.rgb)

    def fail(*_, **__):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.")

    in_tiles, sides = tiles.paint_tiles, []

    def tight(picture, side, *rest):
        sides.append(side)
        return in_tiles(picture, side, *rest) if side < 1000 else fail()

    monkeypatch.setattr(stylizer, "_paint_whole", fail)
    monkeypatch.setattr(tiles, "paint_tiles", tight)
    painting = stylizer.paint(photo, memory=64 * GB)
    assert sides == [2048, 1024, 512]
    np.testing.assert_array_equal(np.asarray(painting.picture.rgb), expected)
    monkeypatch.setattr(tiles, "paint_tiles", fail)
    with pytest.raises(FaststyError, match="not enough memory to paint 787 x 613; use a smaller"):
        stylizer.paint(photo)


@pytest.mark.parametrize("stroke", [1, 2, 4])
def test_samples_are_spread_and_do_not_overlap(stroke):
    for size in ((8000, 6000), (5000, 4900), (9000, 5000), (20000, 700), (90, 300000), (300, 9000)):
        corners, side = tiles.sample_corners(*size, stroke), tiles.sample_side(*size, stroke)
        if corners is None:
            assert size[0] * size[1] <= 4 * (512 * stroke) ** 2
            continue
        ends = [(x + side, y + side) for x, y in corners]
        assert (np.array(corners) >= 0).all()
        assert (np.array(ends) <= size).all()
        for (x, y), (across, down) in itertools.combinations(corners, 2):
            assert max(abs(x - across), abs(y - down)) >= side
        assert [y for _, y in corners] == sorted(y for _, y in corners)
        np.testing.assert_allclose(np.mean(corners + ends, 0) * 2, size, atol=2)  # in the middle
    picture = Image.new("RGB", (2500, 2100), "white")
    picture.paste("black", (600, 600, 700, 700))
    assert tiles.samples(picture, 2).shape == (4, 1024, 1024, 3)
