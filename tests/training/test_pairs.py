import re

import numpy as np
import pytest
import torch
from PIL import Image

from faststy.errors import FaststyError
from faststy.pictures import scale_down
from faststy.training.dataset import generator
from faststy.training.pairs import PAIRS_PER_STEP, Pairs
from faststy.training.picture_cache import PictureCache


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def folder(tmp_path):
    """Three photos of noise and their negatives."""
    for i, name in enumerate(("a.png", "b.png", "sub/c.png")):
        noise = np.random.default_rng(i).integers(0, 256, (120, 100, 3), np.uint8)
        save(tmp_path / "before" / name, noise)
        save(tmp_path / "after" / name, 255 - noise)
    return tmp_path


def test_crops_of_photo_and_target_are_the_same(folder):
    pairs = Pairs.found(folder, 64)
    assert len(pairs.paths) == 3
    for step in range(5):
        before, after = pairs.batch(generator(0, step))
        assert before.shape == after.shape == (PAIRS_PER_STEP, 3, 64, 64)
        assert before.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(before, 1 - after, atol=0.02, rtol=0)


def test_a_step_has_its_own_crops(folder):
    pairs = Pairs.found(folder, 64)
    one, same, other = (pairs.batch(generator(0, step))[0] for step in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_partners_may_differ_in_format(folder):
    Image.open(folder / "after" / "a.png").save(folder / "after" / "a.bmp")
    (folder / "after" / "a.png").unlink()
    pairs = Pairs.found(folder, 64)
    assert (len(pairs.paths), pairs.skipped) == (3, {})


@pytest.mark.parametrize(
    ("size", "side"), [((2481, 2765), 256), ((1570, 704), 512), ((458, 628), 300)]
)
def test_a_target_made_by_transfer_fits_its_photo(tmp_path, size, side):
    """`faststy transfer` scales photos down, which can round a side by a pixel."""
    photo = Image.new("RGB", size, "red")
    save(tmp_path / "before" / "a.png", np.asarray(photo))
    save(tmp_path / "after" / "a.png", np.asarray(scale_down(photo, side)))
    pairs = Pairs.found(tmp_path, 64)
    before, after = pairs.get(0)
    assert before.shape == after.shape
    assert pairs.batch(generator(0, 0))[0].shape == (PAIRS_PER_STEP, 3, 64, 64)


def test_a_pair_that_cannot_be_used_is_skipped_and_told(folder):
    b = folder / "before" / "b.png"

    def why():
        pairs = Pairs.found(folder, 64)
        for index in range(3):
            before, after = pairs.get(index)
            torch.testing.assert_close(before, 255 - after, atol=1, rtol=0)
        assert list(pairs.skipped) == [b]
        return pairs.skipped[b]

    (folder / "after" / "b.png").unlink()
    assert re.search(r"before/b\.png: no picture of the same name in .*after", why())
    save(folder / "after" / "b.png", np.zeros((100, 120, 3), np.uint8))
    assert re.search(r"b\.png: its pair has another shape \(1\d\dx1\d\d and", why())
    (folder / "after" / "b.png").write_bytes(b"broken")
    assert "after/b.png: not a picture" in why()
    (folder / "before" / "b.png").rename(folder / "before" / "b.heic")
    b = folder / "before" / "b.heic"
    assert "b.heic: of a format that faststy does not read" in why()


def test_no_pair_at_all_is_an_error(folder):
    for path in folder.glob("after/**/*.png"):
        path.write_bytes(b"broken")
    with pytest.raises(FaststyError, match=r"none of 3 pairs can be used: .*a\.png: not a picture"):
        Pairs.found(folder, 64)
    (folder / "after" / "d.png").write_bytes(b"")
    for path in folder.glob("after/**/[abc].png"):
        path.unlink()
    with pytest.raises(
        FaststyError, match=r"none of 3 pairs can be used: .* no picture of the same"
    ):
        Pairs.found(folder, 64)


def test_pairs_are_decoded_once_and_kept_in_the_cache(folder, tmp_path):
    cache = PictureCache(tmp_path / "cache", always=True)
    one = Pairs.found(folder, 64, cache).batch(generator(0, 0))
    assert (tmp_path / "cache").is_dir()
    two = Pairs.found(folder, 64).batch(generator(0, 0))
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_folders_that_are_not_there(tmp_path):
    with pytest.raises(FaststyError, match="before: no such folder; pairs are read from before/"):
        Pairs.found(tmp_path, 64)
    (tmp_path / "before").mkdir()
    with pytest.raises(FaststyError, match="after: no such folder"):
        Pairs.found(tmp_path, 64)
    (tmp_path / "after").mkdir()
    with pytest.raises(FaststyError, match="no pictures in this folder"):
        Pairs.found(tmp_path, 64)


def test_flat_crops_of_photos_are_drawn_again(tmp_path):
    sheet = np.full((100, 700, 3), 255, np.uint8)
    sheet[:, :300] = np.random.default_rng(0).integers(0, 256, (100, 300, 3))
    sheet[3, 600] = 254  # flat all the same
    save(tmp_path / "before" / "a.png", sheet)
    save(tmp_path / "after" / "a.png", 255 - sheet)
    pairs = Pairs.found(tmp_path, 64)
    for step in range(20):
        before, after = pairs.batch(generator(0, step))
        assert (before.std((1, 2, 3)) > 0.01).all()
        torch.testing.assert_close(after, 1 - before, atol=1e-5, rtol=0)
