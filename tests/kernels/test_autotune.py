"""Winners of measurements: kept, found again, and never a reason to fail. Timers are injected."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from faststy import ops
from faststy.errors import FaststyError
from faststy.kernels import autotune, tuning
from faststy.ops import dispatch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
X = torch.empty(2, 8, 20, 20)
ROWS = tuning.NORM_FLOAT32["instance_norm_fwd"]


@pytest.fixture(autouse=True)
def file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    monkeypatch.setenv("FASTSTY_TUNED", str(tmp_path / "cache" / "tuned.json"))
    autotune.winners.cache_clear()
    yield tmp_path / "cache" / "tuned.json"
    autotune.winners.cache_clear()


def seconds_by_row(seconds: dict[int, float]) -> Callable[[Callable[[], object]], float]:
    """A timer that says how long the rows of ROWS take, 1 s where nothing is given."""

    def timer(call: Callable[[], object]) -> float:
        call()
        return seconds.get(ROWS.index(tuning.norm_row("instance_norm_fwd", X)), 1.0)

    return timer


def measure(seconds: dict[int, float]) -> dict[Any, float]:
    timer = seconds_by_row(seconds)
    return autotune.measure("instance_norm_fwd", X, ROWS, lambda: None, timer)


def chosen(x: torch.Tensor = X) -> int:
    rows = tuning.rows("instance_norm_fwd", x)
    return rows.index(tuning.norm_row("instance_norm_fwd", x))


def test_the_fastest_row_is_used_from_then_on_and_by_later_processes(file: Path) -> None:
    assert chosen() == 0
    assert measure({2: 0.5, 4: 0.7}) == dict(zip(ROWS, (1.0, 1.0, 0.5, 1.0, 0.7), strict=True))
    assert chosen() == 2
    autotune.winners.cache_clear()  # as a new process
    assert chosen() == 2
    assert chosen(torch.empty(2, 7, 17, 19)) == 2  # the same powers of two
    for other in (X.half(), X.repeat(1, 4, 1, 1), X.to(memory_format=torch.channels_last)):
        assert chosen(other) == 0
    (name,) = json.loads(file.read_text())
    assert name == autotune.machine(X.device)
    assert not list(file.parent.glob(".*"))  # nothing temporary stays


def test_another_machine_has_its_own_winners(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    measure({2: 0.5})
    monkeypatch.setattr(autotune, "machine", lambda device: "another GPU, Triton 3.9.0")
    assert chosen() == 0
    measure({3: 0.5})
    assert chosen() == 3
    assert len(json.loads(file.read_text())) == 2


def test_noise_does_not_choose(file: Path) -> None:
    measure({1: 0.99})
    assert chosen() == 0
    assert file.exists()  # that it was measured is known


def test_rows_without_room_are_left_out() -> None:
    from triton.runtime.errors import OutOfResources

    def call() -> None:
        if chosen() == 0:
            raise OutOfResources(300, 227, "shared memory")

    seconds = autotune.measure("instance_norm_fwd", X, ROWS, call, seconds_by_row({1: 2.0}))
    assert list(seconds) == list(ROWS[1:])
    assert chosen() == 2


@pytest.mark.parametrize(
    "text", ["{", "[]", "", '{"a": 3}', '{"a": {"b": {"c": 1}}}', '{"a": {"b": []}}', "\x80"]
)
def test_a_corrupted_file_is_passed_over_once_with_a_warning(file: Path, text: str) -> None:
    file.parent.mkdir()
    file.write_text(text, encoding="latin-1")
    with pytest.warns(UserWarning, match=r"tuned\.json: measured block sizes cannot be read"):
        assert chosen() == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert chosen() == 0  # not again
    with pytest.warns(UserWarning, match="cannot be read"):
        measure({2: 0.5})
    assert chosen() == 2  # replaced by a good one


def test_a_folder_that_cannot_be_written_costs_only_the_memory(file: Path) -> None:
    file.parent.write_text("a file where the folder should be")
    with pytest.warns(UserWarning, match="cannot be written"):
        measure({2: 0.5})
    assert chosen() == 2


def test_a_row_that_is_not_in_the_table_is_passed_over(file: Path) -> None:
    measure({2: 0.5})
    file.write_text(file.read_text().replace("16384", "16383"))
    autotune.winners.cache_clear()
    assert chosen() == 0


def test_threads_keep_all_winners(file: Path) -> None:
    def keep(size: int) -> None:
        x = torch.empty(1, 1, 1, 1 << size)
        autotune.measure("instance_norm_fwd", x, ROWS, lambda: None, lambda call: 1.0)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(keep, range(16)))
    (kept,) = json.loads(file.read_text()).values()
    assert len(kept["instance_norm_fwd"]) == 16
    assert not list(file.parent.glob(".*"))


def test_where_the_file_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FASTSTY_TUNED")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert autotune.path() == Path("/somewhere/faststy/tuned.json")


@pytest.mark.skipif(not INTERPRETED, reason="launches kernels without a GPU")
def test_tune_runs_every_row_and_calls_measure_nothing(
    monkeypatch: pytest.MonkeyPatch, file: Path
) -> None:
    monkeypatch.setattr(dispatch, "IMPL", "triton")
    dispatch._find.cache_clear()
    try:
        x = torch.randn(1, 3, 6, 5)
        truth = ops.instance_norm(x), ops.gram(x)
        assert not file.exists()  # a user's call writes, and measures, nothing
        calls: list[int] = []

        def timer(call: Callable[[], object]) -> float:
            call()
            calls.append(1)
            return 1 / len(calls)  # the last is the fastest

        found = ops.tune(x, timer=timer)
        assert [f.kernel for f in found] == [
            "instance_norm_fwd", "instance_norm_bwd", "gram_fwd", "gram_bwd", "conv3x3_k16"
        ]  # fmt: skip
        for f in found:
            assert f.best == tuning.rows(f.kernel, x)[-1]
            assert f.rows == len(tuning.rows(f.kernel, x)) > 2
            assert f.seconds < f.default_seconds
        assert sum(f.rows for f in found) == len(calls)
        assert tuning.norm_row("instance_norm_bwd", x) == found[1].best
        torch.testing.assert_close((ops.instance_norm(x), ops.gram(x)), truth)
    finally:
        dispatch._find.cache_clear()


def test_bad_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "IMPL", "reference")
    for x, error, message in (
        (X[0], ValueError, r"x: expected \[N, C, H, W\], got \[8, 20, 20\]"),
        (X.double(), TypeError, "x: expected float16, bfloat16 or float32, got torch.float64"),
        (X[:0], ValueError, r"x: expected values to measure with, got \[0, 8, 20, 20\]"),
        (X, FaststyError, r"no Triton kernels to tune on cpu: .* \(FASTSTY_IMPL=reference\)"),
    ):
        with pytest.raises(error, match=message):
            ops.tune(x)
    with pytest.raises(ValueError, match=r"kernels: expected .*, got \['conv'\]"):
        ops.tune(X, kernels=("conv",))
