from __future__ import annotations

from pathlib import Path
from typing import Any

import _plots
from PIL import Image


def test_charts_show_every_case(report: Any, result: Any, tmp_path: Path) -> None:
    made = report(
        result(name="gram [1]", operations=10**8),
        result(name="gram [2]", operations=10**9),
        result(name="gram [3]", dtype="bfloat16"),
        result(suite="memory", name="paint", unit="B", bytes=0),
    )
    paths = _plots.draw(made, tmp_path)
    stems = ["ratios-memory", "ratios-ops-bfloat16", "ratios-ops-float32", "roofline"]
    assert sorted(paths) == sorted(tmp_path / (s + x) for s in stems for x in (".png", ".svg"))
    for path in paths:
        if path.suffix == ".png":
            with Image.open(path) as picture:
                assert len(set(picture.convert("L").tobytes())) > 10
    svg = (tmp_path / "ratios-ops-float32.svg").read_text()
    assert "gram [1]" in svg
    assert "gram [2]" in svg
    assert "gram [3]" not in svg
    assert "copy, matrix product" in (tmp_path / "roofline.svg").read_text()


def test_the_same_numbers_give_the_same_charts(report: Any, result: Any, tmp_path: Path) -> None:
    for name in ("a", "b"):
        _plots.draw(report(result()), tmp_path / name)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_nothing_to_draw(report: Any, tmp_path: Path) -> None:
    assert _plots.draw(report(), tmp_path) == []
