"""Event files, read back by TensorBoard itself."""

import builtins

import numpy as np
import pytest
from PIL import Image

from faststy.errors import FaststyError
from faststy.training.log import Progress
from faststy.training.tensorboard import Events

PICTURE = np.random.default_rng(0).integers(0, 256, (24, 40, 3), np.uint8)


def progress(step, preview=None, **terms):
    return Progress(
        "perceptual", step, step / 10, 1.0, 40.0, 7.5, terms, preview, learning_rate=2e-3
    )


def test_without_the_wish_nothing_is_written_nor_imported(tmp_path, monkeypatch):
    forbid(monkeypatch)
    with Events(False).begin(tmp_path, 0) as events:
        events.write(progress(1, content=0.5))
    assert list(tmp_path.iterdir()) == []


def forbid(monkeypatch):
    real = builtins.__import__

    def without(name, *rest):
        if "tensorboard" in name and not name.startswith("faststy"):
            raise ModuleNotFoundError(f"No module named {name!r}")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)


def test_a_missing_package_is_one_sentence(monkeypatch):
    forbid(monkeypatch)
    with pytest.raises(
        FaststyError, match=r"^tensorboard needs its package .*pip install"
    ) as error:
        Events(True)
    assert "\n" not in str(error.value)


def test_scalars_and_the_preview_are_read_back(tmp_path):
    read = reader(tmp_path)
    Image.fromarray(PICTURE).save(tmp_path / "preview.png")
    with Events(True).begin(tmp_path, 0) as events:
        events.write(progress(1, tmp_path / "preview.png", content=0.5, style=0.25))
        events.write(progress(2, content=0.125))
    found = read()
    assert set(found.Tags()["scalars"]) == {
        *("terms/content", "terms/style", "style_weight", "learning_rate", "images_per_second")
    }
    assert [(e.step, e.value) for e in found.Scalars("terms/content")] == [(1, 0.5), (2, 0.125)]
    assert found.Scalars("style_weight")[1].value == 7.5
    assert found.Scalars("learning_rate")[0].value == pytest.approx(2e-3)
    (picture,) = found.Images("preview")
    (tmp_path / "read.png").write_bytes(picture.encoded_image_string)
    assert (np.asarray(Image.open(tmp_path / "read.png")) == PICTURE).all()


def test_what_is_done_again_counts_once(tmp_path):
    read = reader(tmp_path)
    with Events(True).begin(tmp_path, 0) as events:
        for step in range(1, 6):
            events.write(progress(step, content=1.0))
    with Events(True).begin(tmp_path, 3) as events:  # killed at 5, its checkpoint was that of 3
        for step in range(4, 7):
            events.write(progress(step, content=2.0))
    values = [(e.step, e.value) for e in read().Scalars("terms/content")]
    assert values == [(1, 1.0), (2, 1.0), (3, 1.0), (4, 2.0), (5, 2.0), (6, 2.0)]
    with Events(True).begin(tmp_path, 0) as events:  # another was killed before its first one
        events.write(progress(1, content=3.0))
    assert [(e.step, e.value) for e in read().Scalars("terms/content")] == [(1, 3.0)]


def reader(folder):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

    def read():
        found = accumulator.EventAccumulator(str(folder), size_guidance={"images": 0})
        found.Reload()
        return found

    return read
