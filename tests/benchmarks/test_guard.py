from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import _bench
import guard
import ops as suite
import pytest
import torch

from faststy import ops
from faststy.errors import FaststyError
from faststy.ops import dispatch

CPU = torch.device("cpu")
CASE = "gram [1, 4, 32, 32] planar float32 forward"


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """On a busy machine an op this small waits a thousandfold for a second thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Guards of one small case; on a machine without a CUDA device."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(guard, "SECONDS", (0.0,) * guard.ATTEMPTS)
    monkeypatch.setattr(guard, "RENEWING", 0.0)
    monkeypatch.setattr(guard, "WIDE", float("inf"))  # rounds so few say little, and need not
    shapes = suite.Shapes(cuda=[], cpu=[(1, 4, 32, 32)])
    monkeypatch.setitem(suite.OPS, "gram", suite.OPS["gram"]._replace(shapes=shapes))
    path = tmp_path / "guards.toml"
    guard.save([guard.Guard("ops", CASE, "eager", "cpu", 0.1, 123.0, "2026-01-01")], path)
    return path


def test_the_guard_holds_until_an_op_becomes_slow(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert guard.main([], file) == 0
    assert "holds     ops: gram [1, 4, 32, 32]" in capsys.readouterr().out

    def slow(x: torch.Tensor) -> torch.Tensor:
        for _ in range(100):
            ops.gram(x)
        return ops.gram(x)

    planted: Any = suite.OPS["gram"]._replace(ours=slow)
    monkeypatch.setitem(suite.OPS, "gram", planted)
    assert guard.main([], file) == 1
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == "1 of 1 guards are for this device"
    assert [line.split()[0] for line in lines] == ["again", "again", "FAILS", "1"]
    assert "floor 0.10; it was 123.00× on 2026-01-01" in lines[2]


def test_what_is_below_its_floor_is_measured_again_after_the_others(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    guards = [dataclasses.replace(guard.load(file)[0], case=name) for name in "abc"]
    guard.save(guards, file)
    ratios = {"a": iter([0.05, 0.2]), "b": iter([0.2]), "c": iter([0.05, 0.05, 0.05])}

    def ratio_of(held: guard.Guard, *_: object) -> guard.Ratio:
        ratio = next(ratios[held.case])
        return guard.Ratio(ratio, ratio, ratio)

    monkeypatch.setattr(guard, "ratio_of", ratio_of)
    assert guard.main([], file) == 1
    lines = [line.split()[:3] for line in capsys.readouterr().out.splitlines()[1:-1]]
    assert [(word, case) for word, _, case in lines] == [
        ("again", "a:"), ("holds", "b:"), ("again", "c:"),
        ("holds", "a:"), ("again", "c:"), ("FAILS", "c:"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("ratios", "words", "status"),
    [
        (["wide", "wide", "narrow"], ["again", "again", "holds"], 0),
        (["above"], ["holds"], 0),  # however wide
        (["wide", "wide", "wide"], ["again", "again", "undecided", "1"], 0),
        (["wide", "wide", "sunk"], ["again", "again", "FAILS", "1"], 1),  # it is wide, too
        (["wide", "wide", "below"], ["again", "again", "FAILS", "1"], 1),
    ],
)
def test_a_wide_interval_holds_nothing(
    file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    ratios: list[str],
    words: list[str],
    status: int,
) -> None:
    """As that of a painting that was once measured: 2.9× [1.4, 5.8]."""
    guard.save([dataclasses.replace(guard.load(file)[0], floor=2.0)], file)
    monkeypatch.setattr(guard, "WIDE", 1.3)
    known = {
        "wide": guard.Ratio(2.9, 1.4, 5.8),
        "above": guard.Ratio(2.9, 2.0, 5.8),
        "narrow": guard.Ratio(1.95, 1.9, 2.1),
        "sunk": guard.Ratio(1.95, 1.4, 5.8),
        "below": guard.Ratio(1.5, 1.1, 1.9),
    }
    given, asked = iter(ratios), []

    def ratio_of(held: guard.Guard, device: torch.device, seconds: float) -> guard.Ratio:
        asked.append(seconds)
        return known[next(given)]

    monkeypatch.setattr(guard, "ratio_of", ratio_of)
    monkeypatch.setattr(guard, "SECONDS", (0.1, 0.4, 4.0))
    assert guard.main([], file) == status
    told = capsys.readouterr().out.splitlines()[1:]
    assert [line.split()[0] for line in told] == words
    assert asked == [0.1, 0.4, 4.0][: len(ratios)]
    if "undecided" in words:
        assert told[-1] == "1 of 1 guards are not held: others use this machine too much"


def test_a_wide_interval_gives_no_floor_at_once(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "AGAINST", {})
    monkeypatch.setattr(guard, "WIDE", 1.3)
    given = iter([guard.Ratio(3.0, 1.0, 4.0), guard.Ratio(3.0, 2.0, 4.0)])
    monkeypatch.setattr(guard, "ratio_of", lambda *_: next(given))
    assert guard.main(["--renew"], file) == 0
    assert [g.floor for g in guard.load(file)] == [pytest.approx(1.4)]


def test_only_guards_that_match(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (kept,) = guard.load(file)
    other = dataclasses.replace(kept, against="compiled")
    guard.save([kept, other], file)
    monkeypatch.setattr(guard, "AGAINST", {})
    monkeypatch.setattr(guard, "ratio_of", lambda *_: guard.Ratio(3.0, 2.0, 4.0))
    assert guard.main(["--filter", "gram.*eager"], file) == 0
    assert "2 of 2 guards are for this device, 1 of these match" in capsys.readouterr().out
    assert guard.main(["--filter", "gone"], file) == 1
    told = capsys.readouterr().out
    assert told == "2 of 2 guards are for this device, 0 of these match\n"
    assert guard.main(["--renew", "--filter", "gram.*eager"], file) == 0
    new, same = guard.load(file)
    assert (new.measured, same) == (3.0, other)
    with pytest.raises(FaststyError, match="no regular expression"):
        guard.main(["--filter", "("], file)


def test_a_wrong_result_does_not_pass_and_hides_no_other_guard(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong: Any = suite.OPS["gram"]._replace(ours=lambda x: ops.gram(x) * 2)
    monkeypatch.setitem(suite.OPS, "gram", wrong)
    (kept,) = guard.load(file)
    other = dataclasses.replace(kept, against="compiled")
    guard.save([kept, other], file)
    real = guard.ratio_of
    monkeypatch.setattr(
        guard,
        "ratio_of",
        lambda held, *rest: guard.Ratio(3.0, 2.0, 4.0) if held == other else real(held, *rest),
    )
    assert guard.main([], file) == 1
    first, second, last = capsys.readouterr().out.splitlines()[1:]
    assert first.startswith(f"WRONG     {kept}: Wrong: ")
    assert second.startswith(f"holds     {other}")
    assert last == "1 of 2 guards fail: a change made these slower, or wrong"


def test_other_devices_and_missing_baselines(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    there, peer = (
        guard.Guard("ops", CASE, against, device, 1e9, 1.0, "2026-01-01")
        for against, device in (("eager", "cuda"), ("peer", "cpu"))
    )
    guard.save([there, peer], file)
    missing = {"peer": f"peer {_bench.NOT_INSTALLED}"}
    monkeypatch.setattr(guard, "measured", lambda *args: {"ratios": {}, "missing": missing})
    for missing["peer"] in (f"peer {_bench.NOT_INSTALLED}", f"bfloat16 {_bench.NOT_HERE}"):
        assert guard.main([], file) == 0
        first, second = capsys.readouterr().out.splitlines()
        assert first == "1 of 2 guards are for this device"
        assert second.startswith("not here  ops: gram")
    missing.clear()  # a baseline that the case does not know: who renamed it has no guard left
    assert guard.main([], file) == 1
    assert "FAILS     ops: gram" in capsys.readouterr().out


def test_without_the_extension_guards_do_not_vanish(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = guard.load(file)
    native = guard.Guard("ops", CASE, "eager", "cpu+native", 1e9, 1.0, "2026-01-01")
    guard.save([*kept, native, native], file)
    monkeypatch.setattr(dispatch, "_no_native", lambda op, device: "it is not built")
    assert guard.main([], file) == 1
    told = capsys.readouterr().out
    assert "2 guards are for the C++ extension, which computes nothing here: it is not" in told
    assert "holds  " not in told
    assert guard.main(["--without-extension"], file) == 0
    told = capsys.readouterr().out
    assert "1 of 3 guards are for this device" in told
    assert "holds     ops: gram" in told
    monkeypatch.setattr(dispatch, "IMPL", "reference")
    assert guard.main([], file) == 1
    assert "FASTSTY_IMPL=reference" in capsys.readouterr().out


def test_a_baseline_that_fails_is_no_pass(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(x: torch.Tensor) -> torch.Tensor:
        raise ValueError("broken")

    monkeypatch.setitem(suite.OPS, "gram", suite.OPS["gram"]._replace(eager=broken))
    assert guard.main([], file) == 1
    assert "FAILS     ops: gram" in capsys.readouterr().out


def test_renew_measures(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "AGAINST", {})
    assert guard.main(["--renew"], file) == 0
    (new,) = guard.load(file)
    assert new.date > "2026-01-01"
    assert 0 < new.floor < new.measured < 100
    assert guard.main([], file) == 0


def test_renew_keeps_what_was_set_by_hand(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "AGAINST", {})
    (kept,) = guard.load(file)
    guard.save([dataclasses.replace(kept, least=99.0)], file)
    assert guard.main(["--renew"], file) == 0
    (new,) = guard.load(file)
    assert new.date > "2026-01-01"
    assert (new.floor, new.least) == (99.0, 99.0)


def test_what_stops_renew_does_not_take_what_was_measured(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (kept,) = guard.load(file)
    guard.save([kept, dataclasses.replace(kept, against="compiled")], file)

    def stopped(held: guard.Guard, device: torch.device, seconds: float) -> guard.Ratio:
        if held.against == "compiled":
            raise KeyboardInterrupt
        return guard.Ratio(3.0, 2.0, 4.0)

    monkeypatch.setattr(guard, "ratio_of", stopped)
    with pytest.raises(KeyboardInterrupt):
        guard.main(["--renew"], file)
    assert [g.measured for g in guard.load(file)] == [3.0, 123.0]


def test_renew_ends_in_time_and_keeps_what_it_did_not_begin(file: Path) -> None:
    before = file.read_text("utf-8")
    assert guard.main(["--renew", "--seconds", "-1"], file) == 0
    assert file.read_text("utf-8") == before


def test_renew_on_a_device_without_guards_adds_the_headlines(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As on a machine with a CUDA device, which is only told here: what it measures is given."""
    kept = guard.load(file)

    def measured(
        case: _bench.Case, device: torch.device, seconds: float, only: Any
    ) -> dict[str, Any]:
        assert device.type == "cuda"
        if "upsample" in case.name:
            raise _bench.Wrong("result: off by 1")
        if "gram_loss" in case.name:
            return {"ratios": {}, "missing": {"eager": "gone"}}
        ratio = {"median": 4.0, "low": 3.0, "high": 5.0}
        return {"ratios": dict.fromkeys(only[1:], ratio), "missing": {}}

    monkeypatch.setattr(guard, "measured", measured)
    monkeypatch.setattr(guard, "device_name", lambda device: "A100")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(ops, "implementations", list)
    assert guard.main(["--renew", "--file", str(file)]) == 1
    told = capsys.readouterr().out
    assert "WRONG     ops: upsample [1, 16, 540, 960] channels_last float16 forward" in told
    first, *new = guard.load(file)
    assert [first] == kept
    assert {g.device for g in new} == {"cuda"}
    assert {(g.measured, round(g.floor, 2)) for g in new} == {(4.0, 2.1)}
    held = {(g.suite, g.against): g.case for g in new}
    assert held.keys() == {("ops", "eager"), ("training", "ops off"), ("stylization", "eager")}
    assert held["training", "ops off"] == "adversarial step, 64 × 256²"
    names = " ".join(g.case for g in new)
    assert "instance_norm+relu [16, 64, 256, 256] channels_last bfloat16 forward+backward" in names
    assert not any(gone in names for gone in ("upsample", "gram_loss"))

    assert guard.main(["--file", str(file)]) == 0
    assert guard.main(["--renew"], file) == 1  # nothing is added twice, and what is right stays
    assert guard.load(file) == [first, *new]
    guard.save([first, *(g for g in new if "norm" not in g.case)], file)
    assert guard.main(["--renew"], file) == 1  # what was not measured here yet comes in
    assert {*guard.load(file)} == {first, *new}


def test_renew_on_a_cpu_adds_guards_of_the_extension(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "AGAINST", {"ops": "eager"})
    monkeypatch.setattr(guard, "ratio_of", lambda *_: guard.Ratio(4.0, 3.0, 5.0))
    for device in ("cpu+native", "cpu"):
        assert guard.main(["--renew", "--filter", "upsample"], file) == 0
        _, new = guard.load(file)
        assert (new.device, new.floor, new.measured) == (device, pytest.approx(2.1), 4.0)
        guard.save(guard.load(file)[:1], file)
        monkeypatch.setattr(dispatch, "_no_native", lambda op, device: "it is not built")


def test_a_case_that_is_not_there(file: Path) -> None:
    guard.save([guard.Guard("ops", "gone", "eager", "cpu", 1.0, 1.0, "2026-01-01")], file)
    with pytest.raises(FaststyError, match="ops has no quick case 'gone'"):
        guard.main([], file)


def test_a_broken_file(tmp_path: Path) -> None:
    path = tmp_path / "guards.toml"
    for text in ("[[guard]", '[[guard]]\nsuite = "ops"\n'):
        path.write_text(text)
        with pytest.raises(FaststyError, match="cannot be read as guards"):
            guard.load(path)


def test_the_guards_that_are_kept() -> None:
    """Each names a case and a baseline that its suite has, and its floor is below what was."""
    for kept in guard.load(guard.FILE):
        device = CPU if kept.device.startswith("cpu") else torch.device("cuda")  # to list cases
        case = guard.find(kept, device)
        assert kept.against in __import__(case.suite).VARIANTS
        assert 0 < kept.floor < kept.measured
        assert kept.least <= kept.floor
