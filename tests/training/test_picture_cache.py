import errno
import os
import shutil
import sys
import threading

import numpy as np
import pytest
import torch
from PIL import Image

from faststy.errors import FaststyError
from faststy.training import picture_cache
from faststy.training.dataset import Pictures, generator, random_crops
from faststy.training.picture_cache import HEADER, PictureCache, load_tensor, remove_cache


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(4):
        pixels = np.random.default_rng(i).integers(0, 256, (70 + i, 90, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


@pytest.fixture(autouse=True)
def _room(monkeypatch):
    monkeypatch.setattr(picture_cache, "RESERVE", 0)


@pytest.fixture
def place(tmp_path):
    return tmp_path / "cache"


def cached(folder, place, size=40):
    pictures = Pictures.found(folder, size, PictureCache(place, always=True))
    return [pictures.get(i).clone() for i in range(len(pictures))]


def files(place):
    return sorted(p for p in place.rglob("*") if p.is_file()) if place.exists() else []


@pytest.fixture
def decoded(monkeypatch):
    """The pictures that were decoded."""
    seen = []

    def counting(path, *rest):
        seen.append(path.name)
        return load_tensor(path, *rest)

    monkeypatch.setattr(picture_cache, "load_tensor", counting)
    return seen


def test_colours_are_those_of_the_pictures_profile(tmp_path, dim_profile):
    green = np.full((40, 40, 3), (100, 200, 100), np.uint8)
    Image.fromarray(green).save(tmp_path / "a.png", icc_profile=dim_profile)
    assert load_tensor(tmp_path / "a.png", 40)[1].unique().item() < 160


def test_kept_pictures_need_no_open_files(folder, place):
    pictures = Pictures.found(folder, 40, PictureCache(place, always=True))
    before = len(os.listdir("/proc/self/fd"))
    held = [pictures.get(i) for i in range(4) for _ in range(20)]
    assert len(os.listdir("/proc/self/fd")) == before
    held[0].zero_()  # which changes nothing but this copy
    assert pictures.get(0).any()


@pytest.mark.skipif(sys.platform != "linux", reason="other file systems take Unicode only")
def test_a_name_that_is_not_unicode_is_kept_too(folder, place, decoded):
    (folder / "0.png").rename(folder / os.fsdecode(b"\xff.png"))
    for _ in range(2):
        cached(folder, place)
    assert len(decoded) == 4  # by the first run


def test_a_picture_comes_back_as_it_was_decoded(folder, place, decoded):
    expected = [load_tensor(folder / f"{i}.png", 40) for i in range(4)]
    for _ in range(2):
        found = cached(folder, place)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert sorted(decoded) == [f"{i}.png" for i in range(4)]  # once, by the first run


def test_without_a_folder_pictures_are_kept_in_memory(folder, decoded):
    pictures = Pictures.found(folder, 40)
    for i in range(8):
        pictures.get(i)
    assert len(decoded) == 4


def test_what_memory_does_not_hold_goes_to_the_folder(folder, place, decoded, monkeypatch):
    size = load_tensor(folder / "0.png", 40).nbytes
    monkeypatch.setattr(picture_cache, "MEMORY", int(2.3 * size))
    pictures = Pictures.found(folder, 40, PictureCache(place))
    expected = [load_tensor(folder / f"{i}.png", 40) for i in range(4)]
    for _ in range(3):
        assert all(torch.equal(pictures.get(i), expected[i]) for i in range(4))
    assert len(files(place)) == 2 * 2  # two pictures with two names each
    assert len(decoded) == 4 + 1  # the one that filled the memory
    monkeypatch.setattr(picture_cache, "MEMORY", 1 << 20)
    small = Pictures.found(folder, 40, PictureCache(place.with_name("other")))
    small.get(1)
    assert files(place.with_name("other")) == []


def test_copies_share_a_file_and_a_changed_picture_gets_a_new_one(folder, place, decoded):
    cached(folder, place)
    before = files(place)
    copy = folder.with_name("copy")
    shutil.copytree(folder, copy)
    for path in copy.iterdir():
        os.utime(path, (1, 1))
    decoded.clear()
    cached(copy, place)
    assert decoded == []
    assert len({p.stat().st_ino for p in files(place)}) == len({p.stat().st_ino for p in before})
    shutil.copy(folder / "1.png", copy / "0.png")
    Image.new("RGB", (60, 50), "red").save(copy / "2.png")
    found = cached(copy, place)
    assert torch.equal(found[0], load_tensor(folder / "1.png", 40))
    assert found[2].shape == (3, 40, 48)
    assert decoded == ["2.png"]


def test_other_sizes_do_not_mix(folder, place):
    assert cached(folder, place)[0].shape[1] == 40
    assert cached(folder, place, size=20)[0].shape[1] == 20
    assert cached(folder, place)[0].shape[1] == 40


@pytest.mark.parametrize("how", ["bit", "cut", "empty", "header", "garbage"])
def test_a_damaged_file_is_noticed_and_made_anew(folder, place, decoded, how):
    expected = cached(folder, place)
    decoded.clear()
    for path in files(place):
        data = bytearray(path.read_bytes())
        if how == "bit":
            data[HEADER.size + 777] ^= 4
        elif how == "cut":
            data = data[:-100]
        elif how == "empty":
            data = b""
        elif how == "header":
            data[9] ^= 1
        else:
            data = b"x"
        path.unlink()
        path.write_bytes(data)
    pictures = Pictures.found(folder, 40, PictureCache(place, always=True))
    for _ in range(2):
        found = [pictures.get(i) for i in range(4)]
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert sorted(decoded) == [f"{i}.png" for i in range(4)]
    cached(folder, place)
    assert len(decoded) == 4


def full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("how", ["full", "reserve", "file"])
def test_without_room_it_goes_on_without_the_folder_and_says_so(folder, place, monkeypatch, how):
    if how == "full":
        monkeypatch.setattr(os, "replace", full)
        monkeypatch.setattr("pathlib.Path.replace", full)
    elif how == "reserve":
        monkeypatch.setattr(picture_cache, "RESERVE", 1 << 60)
    else:
        place.write_text("in the way")
    cache = PictureCache(place, always=True)
    pictures = Pictures.found(folder, 40, cache)
    for i in range(4):
        assert torch.equal(pictures.get(i), load_tensor(folder / f"{i}.png", 40))
    assert f"{place}: no pictures can be kept there now (" in cache.trouble
    assert pictures.skipped == {}
    assert place.is_file() or files(place) == []


@pytest.mark.parametrize("links", [True, False])
def test_pictures_that_vanish_are_still_in_the_folder(folder, place, monkeypatch, links):
    if not links:  # as on some network drives
        monkeypatch.setattr(os, "link", full)
    for _ in range(2):  # decoded by this run, or by one before
        copy = shutil.copytree(folder, folder.with_name("copy"))
        pictures = Pictures.found(copy, 40, PictureCache(place, always=True))
        expected = [pictures.get(i).clone() for i in range(4)]
        shutil.rmtree(copy)
        assert all(torch.equal(pictures.get(i), expected[i]) for i in range(4))
        assert pictures.skipped == {}


def test_nothing_is_left_when_pictures_and_folder_vanish(folder, place):
    pictures = Pictures.found(folder, 40, PictureCache(place, always=True))
    pictures.get(1)
    shutil.rmtree(place)
    for path in folder.iterdir():
        path.unlink()
    with pytest.raises(FaststyError, match="none of 4 pictures can be read"):
        pictures.get(0)
    assert len(pictures.skipped) == 4


def test_threads_and_runs_side_by_side(folder, place):
    """Crops are the same whoever decoded the pictures first."""
    expected = random_crops(Pictures.found(folder, 40), 32, 16, (1, 2), generator(0, 0))
    found = []

    def run():
        pictures = Pictures.found(folder, 40, PictureCache(place, always=True))
        found.append(random_crops(pictures, 32, 16, (1, 2), generator(0, 0)))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert all(torch.equal(crops, expected) for crops in found)


def test_no_file_stays_open(folder, place):
    """A million pictures must not need a million descriptors."""
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("needs /proc")
    cached(folder, place)
    pictures = Pictures.found(folder, 40, PictureCache(place, always=True))
    before = len(os.listdir("/proc/self/fd"))
    for i in range(40):
        pictures.get(i)
    assert len(os.listdir("/proc/self/fd")) <= before + 1


@pytest.mark.parametrize("mode", ["L", "CMYK", "P", "RGBA", "I;16", "1"])
def test_every_kind_of_picture(tmp_path, place, mode):
    (tmp_path / "photos").mkdir()
    path = tmp_path / "photos" / ("a.jpg" if mode == "CMYK" else "a.png")
    gradient = Image.linear_gradient("L").resize((90, 70))
    (gradient.convert("I;16") if mode == "I;16" else gradient.convert(mode)).save(path)
    found = cached(path.parent, place)[0]
    assert found.shape == (3, 40, 51)
    assert found.float().std() > 20 or mode == "I;16"


def test_the_first_frame_of_an_animation_and_no_giants(tmp_path, place, monkeypatch):
    folder = tmp_path / "photos"
    folder.mkdir()
    frames = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue")]
    frames[0].save(folder / "a.gif", save_all=True, append_images=frames[1:])
    monkeypatch.setattr("faststy.pictures.PIXEL_LIMIT", 10_000)
    Image.new("RGB", (200, 200)).save(folder / "huge.png")
    Image.new("RGB", (200, 4)).save(folder / "tiny.png")
    pictures = Pictures.found(folder, 40, PictureCache(place, always=True))
    assert pictures.get(0)[0, 5, 5] > 250  # red
    assert torch.equal(pictures.get(1), pictures.get(0))
    assert torch.equal(pictures.get(2), pictures.get(0))
    reasons = {path.name: why for path, why in pictures.skipped.items()}
    assert "megapixels, more than the limit" in reasons["huge.png"]
    assert "too small to learn from" in reasons["tiny.png"]


def test_what_killed_runs_left_goes_but_not_what_another_writes(folder, place):
    file = PictureCache(place)._place((folder / "0.png").read_bytes(), 40)
    of_killed, of_another = (file.with_name(f".{file.name}-{process}-2") for process in (1, 3))
    file.parent.mkdir(parents=True)
    for path in (of_killed, of_another):
        path.touch()
    os.utime(of_killed, (1, 1))
    cached(folder, place)
    assert [path for path in files(place) if path.name[0] == "."] == [of_another]


def test_what_is_removed_is_the_caches_own(folder, place):
    cached(folder, place)
    own = next(path for path in place.rglob("*") if path.is_file())
    (own.parent / f".{own.name}-1-2").touch()  # of a killed run
    foreign = [place / "mine.txt", place / "ab" / "mine.txt", place / "ab.jpg"]
    for path in foreign:
        path.parent.mkdir(exist_ok=True)
        path.touch()
    remove_cache(place)
    assert sorted(path for path in place.rglob("*") if path.is_file()) == sorted(foreign)
    assert sorted(place.iterdir()) == [place / "ab", place / "ab.jpg", place / "mine.txt"]
    cached(folder, place / "new")
    remove_cache(place / "new")
    remove_cache(place / "new")  # nothing there is no error
    assert not (place / "new").exists()


def test_what_is_transparent_is_learned_as_white_paper(tmp_path):
    drawing = Image.new("RGBA", (40, 40), (0, 0, 0, 0))
    drawing.paste((0, 0, 0, 255), (10, 10, 30, 30))
    drawing.save(tmp_path / "a.png")
    for short_side in (None, 20):
        pixels = picture_cache.load_tensor(tmp_path / "a.png", short_side)
        half = pixels.shape[1] // 2
        assert pixels[:, 0, 0].tolist() == [255, 255, 255]
        assert pixels[:, half, half].tolist() == [0, 0, 0]
