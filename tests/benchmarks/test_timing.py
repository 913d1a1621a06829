from __future__ import annotations

import itertools
import random
import re
import time
from pathlib import Path

import _timing
import pytest
import torch

CPU = torch.device("cpu")


def test_ratio_holds_the_truth_and_narrows_with_more_samples() -> None:
    noise = random.Random(0)

    def samples(n: int, scale: float) -> list[float]:
        return [scale * noise.lognormvariate(0, 0.1) for _ in range(n)]

    few = _timing.ratio(samples(10, 3.0), samples(10, 2.0))
    many = _timing.ratio(samples(400, 3.0), samples(400, 2.0))
    assert many.low < 1.5 < many.high
    assert many.low < many.median < many.high
    assert (many.high - many.low) < (few.high - few.low) / 2


def test_ratio_of_rounds_that_slow_both_down_alike() -> None:
    """Drawn round by round, a drift of the machine does not widen the interval."""
    drift = [1.0 + i / 10 for i in range(40)]
    found = _timing.ratio([2 * d for d in drift], drift)
    assert found == pytest.approx((2, 2, 2))


def test_ratio_needs_pairs() -> None:
    for a, b in (([], []), ([1.0], [1.0, 2.0])):
        with pytest.raises(ValueError, match="as many samples"):
            _timing.ratio(a, b)


def test_rounds_time_every_variant_once_in_changing_order() -> None:
    calls: list[str] = []

    def sampler(name: str, seconds: float) -> _timing.Sampler:
        return lambda: (calls.append(name), seconds)[1]

    samples, steady = _timing.measure({"a": sampler("a", 2.0), "b": sampler("b", 1.0)}, 0.0)
    assert steady  # always the same
    assert samples == {"a": [2.0] * _timing.MIN_ROUNDS, "b": [1.0] * _timing.MIN_ROUNDS}
    rounds = [tuple(calls[i : i + 2]) for i in range(0, len(calls), 2)]
    assert all(sorted(r) == ["a", "b"] for r in rounds)
    assert len(set(rounds)) == 2


def test_warm_up_waits_until_times_no_longer_fall() -> None:
    times = itertools.chain([16.0, 12.0, 9.0, 7.0, 5.5, 4.5], itertools.repeat(4.0))
    samples, steady = _timing.measure({"it": lambda: next(times)}, 0.05)
    assert steady
    assert set(samples["it"]) == {4.0}
    falling = iter(range(10**6, 0, -1000))
    samples, steady = _timing.measure({"it": lambda: float(next(falling)) ** 40}, 0.0)
    assert not steady


def test_a_first_round_that_takes_long_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_timing, "PATIENCE", -1.0)  # so every round takes long
    times = [float(n) for n in range(_timing.FEWEST_ROUNDS)]
    left = iter(times)
    samples, steady = _timing.measure({"it": lambda: next(left)}, 0.0)
    assert samples == {"it": times}
    assert not steady


def test_inputs_rotate_and_the_clock_is_right() -> None:
    seen: list[int] = []

    def call(i: int) -> None:
        seen.append(i)
        time.sleep(1e-3)

    timed, method = _timing.samplers({"it": call}, 3, CPU)
    samples = [timed["it"]() for _ in range(4)]
    assert method == "wall clock"
    assert all(1e-3 <= s < 0.1 for s in samples)
    assert seen == [i % 3 for i in range(len(seen))]  # goes on from sample to sample
    assert len(seen) > 5


def test_short_calls_are_repeated_beside_long_ones() -> None:
    """A sample of one short call beside a long one would be chance."""
    count = {"short": 0, "long": 0}

    def sleeps(name: str, seconds: float) -> _timing.Call:
        def call(_: int) -> None:
            count[name] += 1
            time.sleep(seconds)

        return call

    calls = {"short": sleeps("short", 2e-3), "long": sleeps("long", 0.4)}
    timed, _ = _timing.samplers(calls, 1, CPU)
    count["short"] = count["long"] = 0
    samples = {name: sample() for name, sample in timed.items()}
    assert count["long"] == 1
    assert 3 <= count["short"] <= 15  # some 20 ms
    assert 2e-3 <= samples["short"] < 0.2 < samples["long"]


def test_buffers_exceed_the_cache() -> None:
    cache = _timing.cache_size(CPU)
    assert _timing.buffers(10 * cache, CPU) == 2
    assert _timing.buffers(cache // 4, CPU) * (cache // 4) >= 2 * cache
    assert _timing.buffers(0, CPU) == 32


def test_machine_says_what_numbers_depend_on() -> None:
    about = _timing.machine(CPU)
    assert about["torch"] == torch.__version__
    assert about["threads"] == torch.get_num_threads()
    assert about["device"]
    assert about["date"].endswith("+00:00")


def test_sources_without_git_have_a_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(_timing, "_output", lambda *command: None)
    monkeypatch.setattr(_timing, "__file__", str(tmp_path / "benchmarks" / "_timing.py"))
    source = tmp_path / "csrc" / "gram_cpu.cpp"
    source.parent.mkdir()
    names = []
    for text in ("a", "b", "a"):
        source.write_text(text)
        names.append(_timing.machine(CPU)["commit"])
    assert names[0] == names[2] != names[1]
    assert re.fullmatch("sources-[0-9a-f]{7}", names[0])
