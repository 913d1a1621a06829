import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image

from faststy.errors import FaststyError
from faststy.training import picture_cache
from faststy.training.dataset import (
    Pictures,
    below,
    crop_box,
    generator,
    prefetch,
    random_crops,
    random_square,
    uniform,
    with_mirror_images,
)
from faststy.training.picture_cache import load_tensor

ZOOM = (1.0, 2.0)


def noise(path, size=(90, 70), seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return torch.from_numpy(pixels).permute(2, 0, 1)


@pytest.fixture
def folder(tmp_path):
    for i in range(3):
        noise(tmp_path / f"{i}.png", seed=i)
    return tmp_path


def crops(pictures, seed, step, stream=0):
    return random_crops(pictures, 4, 32, ZOOM, generator(seed, step, stream))


def test_the_same_seed_and_step_give_the_same_crops_in_any_process_order(folder):
    pictures, again = Pictures.found(folder, 70), Pictures.found(folder, 70)
    first = [crops(pictures, 3, step) for step in range(3)]
    for step in (2, 0, 1):
        assert torch.equal(crops(again, 3, step), first[step])


def test_another_seed_step_or_stream_gives_other_crops(folder):
    pictures = Pictures.found(folder, 70)
    base = crops(pictures, 3, 5)
    assert not torch.equal(base, crops(pictures, 3, 6))
    assert not torch.equal(base, crops(pictures, 4, 5))
    assert not torch.equal(base, crops(pictures, 3, 5, stream=1))
    assert not torch.equal(crops(pictures, 5, 3), crops(pictures, 3, 5))
    assert not torch.equal(base[0], base[1])


def test_some_of_the_crops_are_made_without_the_others(folder):
    every = crops(Pictures.found(folder, 70), 3, 5)
    pictures = Pictures.found(folder, 70)
    for mine in (slice(1, None, 2), slice(0, None, 2), slice(3)):
        own = random_crops(pictures, 4, 32, ZOOM, generator(3, 5), mine)
        assert torch.equal(own, every[mine])


def test_large_seeds_are_told_apart():
    draws = {uniform(generator(seed, 0), 0, 1) for seed in (0, 1, 2**32, 2**32 + 1, 2**63 - 1)}
    assert len(draws) == 5


def test_crops_are_pictures_in_channels_last(folder):
    x = crops(Pictures.found(folder, 70), 0, 0)
    assert x.shape == (4, 3, 32, 32)
    assert x.dtype == torch.float32
    assert 0 <= x.min() < x.max() <= 1
    assert x.is_contiguous(memory_format=torch.channels_last)


def test_boxes_lie_in_the_picture_and_have_the_zoom():
    rng = generator(0, 0)
    boxes = [crop_box(200, 300, 50, ZOOM, rng) for _ in range(500)]
    assert all(0 <= top <= 200 - side and 0 <= left <= 300 - side for top, left, side in boxes)
    sides = [side for *_, side in boxes]
    assert 50 <= min(sides) < 55
    assert 95 < max(sides) <= 100
    assert max(left for _, left, _ in boxes) > 150


def test_a_picture_smaller_than_the_crop_is_enlarged(tmp_path):
    noise(tmp_path / "a.png", size=(40, 20))
    x = random_crops(Pictures.found(tmp_path, 128), 3, 64, ZOOM, generator(0, 0))
    assert x.shape == (3, 3, 64, 64)
    assert 0 <= x.min() < x.max() <= 1
    assert crop_box(20, 40, 64, ZOOM, generator(0, 0))[2] == 20


def test_instead_of_enlarging_a_square_can_take_in_mirror_images(tmp_path):
    picture = noise(tmp_path / "a.png", (90, 20))
    mirrored = with_mirror_images(picture, 50)
    assert mirrored.shape == (3, 50, 90)
    assert torch.equal(mirrored[:, :40], torch.cat([picture, picture.flip(1)], 1))
    assert torch.equal(mirrored[:, 40:], picture[:, :10])
    assert with_mirror_images(picture, 20) is picture
    pictures = Pictures.found(tmp_path / "a.png", 20)
    sides = [
        random_square(pictures, 32, (0.5, 1.5), generator(0, i), mirrored=mirrored).pixels.shape[1]
        for i in range(50)
        for mirrored in (False, True)
    ]
    assert max(sides[::2]) <= 20 < 40 < max(sides[1::2]) <= 48


def test_a_crop_of_one_colour_is_drawn_again(tmp_path):
    half = np.zeros((70, 200, 3), np.uint8)
    half[:, 140:] = np.random.default_rng(0).integers(0, 256, (70, 60, 3), np.uint8)
    Image.fromarray(half).save(tmp_path / "half.png")
    pictures = Pictures.found(tmp_path, 70)
    every = torch.cat([crops(pictures, 1, step) for step in range(20)])
    assert (every.std((1, 2, 3)) > 0).all()
    Image.new("RGB", (90, 70), (9, 8, 7)).save(tmp_path / "half.png")
    flat = crops(Pictures.found(tmp_path, 70), 1, 0)  # there is no other
    torch.testing.assert_close(flat, flat[:, :, :1, :1].expand_as(flat))


def test_pictures_are_scaled_down_never_up(tmp_path):
    picture = noise(tmp_path / "a.png", size=(90, 70))
    assert torch.equal(load_tensor(tmp_path / "a.png", None), picture)
    assert torch.equal(load_tensor(tmp_path / "a.png", 200), picture)
    assert load_tensor(tmp_path / "a.png", 35).shape == (3, 35, 45)
    assert load_tensor(tmp_path / "a.png", 35).dtype == torch.uint8


def test_unreadable_pictures_are_skipped_and_listed(folder):
    (folder / "1.png").write_bytes(b"")
    (folder / "a.jpg").write_bytes(b"not a picture")
    noise(folder / "tiny.png", size=(3, 90))
    pictures = Pictures.found(folder, 70)
    assert len(pictures) == 5
    seen = [pictures.get(i) for i in range(5)]
    assert {path.name for path in pictures.skipped} == {"1.png", "a.jpg", "tiny.png"}
    assert "zero bytes" in pictures.skipped[folder / "1.png"]
    assert "too small" in pictures.skipped[folder / "tiny.png"]
    assert torch.equal(seen[1], pictures.get(2))  # the next one stands in
    assert torch.equal(seen[4], pictures.get(0))
    (folder / "IMG_1.HEIC").touch()
    found = Pictures.found(folder, 70)
    assert (len(found), list(found.skipped)) == (5, [folder / "IMG_1.HEIC"])


def test_a_source_without_a_readable_picture_fails_at_once(tmp_path):
    with pytest.raises(FaststyError, match="no pictures in this folder"):
        Pictures.found(tmp_path, 70)
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"broken")
    with pytest.raises(FaststyError, match=f"{tmp_path}: none of 2 pictures can be read"):
        Pictures.found(tmp_path, 70)
    with pytest.raises(FaststyError, match=r"a\.png: not a picture"):
        Pictures.found(tmp_path / "a.png", 70)
    with pytest.raises(FaststyError, match=r"absent\.png: .*No such file"):
        Pictures.found(tmp_path / "absent.png", 70)


def test_decoded_pictures_are_kept_up_to_a_limit(folder, monkeypatch):
    monkeypatch.setattr(picture_cache, "MEMORY", 2 * 3 * 70 * 90)
    pictures = Pictures.found(folder, 70)
    expected = [pictures.get(i).clone() for i in range(3)]
    for path in folder.iterdir():
        path.unlink()
    assert torch.equal(pictures.get(0), expected[0])
    assert torch.equal(pictures.get(1), expected[1])
    pictures.get(2)
    assert [path.name for path in pictures.skipped] == ["2.png"]  # was not kept


def prefetch_threads():
    return [t for t in threading.enumerate() if t.name.startswith("faststy-prefetch")]


def gone():
    deadline = time.monotonic() + 10
    while prefetch_threads() and time.monotonic() < deadline:
        time.sleep(0.02)
    return not prefetch_threads()


def test_prefetch_keeps_the_order_and_its_thread_ends():
    makers = set()

    def make(step):
        makers.add(threading.current_thread().name)
        time.sleep(0.001 * (step % 3))
        return torch.tensor(step)

    batches = prefetch(make, first=7)
    assert [int(next(batches)) for _ in range(20)] == list(range(7, 27))
    assert 1 < len(makers) <= 4
    assert all(name.startswith("faststy-prefetch") for name in makers)
    batches.close()
    assert gone()


def test_prefetch_hands_errors_over_after_what_came_before():
    def make(step):
        if step == 2:
            raise FaststyError("gone")
        return torch.tensor(step)

    batches = prefetch(make, first=0)
    assert [int(next(batches)), int(next(batches))] == [0, 1]
    with pytest.raises(FaststyError, match="gone"):
        next(batches)
    assert gone()


def test_prefetch_stays_few_steps_ahead():
    made = []
    batches = prefetch(lambda step: made.append(step) or torch.tensor(step), first=0)
    next(batches)
    time.sleep(0.3)
    assert len(made) <= 5
    batches.close()
    assert gone()


def test_draws_are_in_their_range():
    rng = generator(0, 0)
    assert {below(rng, 3) for _ in range(100)} == {0, 1, 2}
    values = [uniform(rng, -2, 5) for _ in range(200)]
    assert -2 <= min(values) < -1
    assert 4 < max(values) < 5
