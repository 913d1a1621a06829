"""Honest timing, shared by the suites.

Variants are timed side by side in rounds, each round every variant once, so that a clock that
drifts or a noisy neighbour hits all alike; what is reported is the ratio, with its interval.
Inputs rotate among buffers that together exceed the cache. On a GPU a sample is a replayed CUDA
graph between two events, so that neither Python nor launches are timed; on a CPU it is wall clock.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import os
import platform
import random
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

Call = Callable[[int], object]  # one run of a variant on the inputs of that number
Timer = Callable[[int], float]  # seconds of a number of passes over the inputs
Sampler = Callable[[], float]  # seconds per call, measured once
Clock = Literal["graphs", "events", "wall"]

STEADY = 0.02  # warm when the medians of three rounds and of the three before differ by less
MIN_ROUNDS, MAX_ROUNDS = 9, 200
FEWEST_ROUNDS = 5  # of what is too slow for more
PATIENCE = 3.0  # seconds: warm-up and rounds that take so much longer than asked for end early
SAMPLE_SECONDS = 2e-3  # shorter samples say more about clocks and launches
SAMPLE_SHARE = 0.05  # of the slowest variant's time: a single short call beside it is chance
RESAMPLES = 2000
CPU_CACHE = 32 << 20  # where the system does not tell


class Ratio(NamedTuple):
    """A ratio of medians, and the interval that holds it with 95 % confidence."""

    median: float
    low: float
    high: float


def ratio(baseline: Sequence[float], ours: Sequence[float]) -> Ratio:
    """How many times as long `baseline` takes; samples of a round are drawn together."""
    a, b = np.asarray(baseline), np.asarray(ours)
    if a.shape != b.shape or a.ndim != 1 or not len(a):
        raise ValueError(f"expected as many samples of both, at least one: {len(a)}, {len(b)}")
    drawn = np.random.default_rng(0).integers(len(a), size=(RESAMPLES, len(a)))
    ratios = np.median(a[drawn], 1) / np.median(b[drawn], 1)
    low, high = np.quantile(ratios, (0.025, 0.975))
    return Ratio(float(np.median(a) / np.median(b)), float(low), float(high))


def buffers(size: int, device: torch.device) -> int:
    """How many inputs of `size` bytes rotate: at least two, and twice the cache if 32 do."""
    return min(max(math.ceil(2 * cache_size(device) / max(size, 1)), 2), 32)


def cache_size(device: torch.device) -> int:
    """Bytes of the last level of cache."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).L2_cache_size)
    text = _read("/sys/devices/system/cpu/cpu0/cache/index3/size")
    # A virtual machine may tell the cache of a whole server, of which it has a share.
    return min(int(text[:-1]) << 10, CPU_CACHE) if text and text.endswith("K") else CPU_CACHE


def samplers(
    variants: Mapping[str, Call], count: int, device: torch.device, clock: Clock = "graphs"
) -> tuple[dict[str, Sampler], str]:
    """A sampler for each variant, all of one kind, and the name of that kind.

    Args:
        variants: each is called with 0 … count − 1, and has been called before.
        count: how many inputs rotate.
        clock: what can be used on a GPU: "wall" where calls end on the host, "events" where they
            cannot be captured. On a CPU always "wall".
    """
    if device.type == "cpu" or clock == "wall":
        timers = {name: _wall(call, count) for name, call in variants.items()}
        return _long_enough(timers, 1), "wall clock"
    if clock == "graphs":
        try:
            timers = {name: _graph(call, count) for name, call in variants.items()}
            return _long_enough(timers, count), "graph replays"
        except RuntimeError:  # a variant that cannot be captured: then none is, to be fair
            torch.cuda.synchronize()
    timers = {name: _events(call, count) for name, call in variants.items()}
    return _long_enough(timers, count), "events"


def measure(samplers: Mapping[str, Sampler], seconds: float) -> tuple[dict[str, list[float]], bool]:
    """Samples of each variant, a round at a time; and whether they had become steady before.

    `seconds` bounds the warm-up, and then the rounds beyond the first MIN_ROUNDS; with PATIENCE,
    these too. A first round that takes longer than PATIENCE counts: the calls that checked the
    results have warmed it up.
    """
    rounds, steady = _warm_up(samplers, seconds)
    order, shuffle = list(samplers), random.Random(0).shuffle
    end = time.perf_counter() + seconds
    while len(rounds) < MAX_ROUNDS:
        over = time.perf_counter() - end
        if over > 0 and len(rounds) >= (MIN_ROUNDS if over < PATIENCE else FEWEST_ROUNDS):
            break
        shuffle(order)  # who comes after whom must not matter
        rounds.append({name: samplers[name]() for name in order})
    return {name: [taken[name] for taken in rounds] for name in samplers}, steady


def _warm_up(
    samplers: Mapping[str, Sampler], seconds: float
) -> tuple[list[dict[str, float]], bool]:
    """The rounds that count already, at most one; and whether they became steady."""
    rounds: list[list[float]] = []
    start = time.perf_counter()
    while time.perf_counter() < start + seconds + PATIENCE * (len(rounds) < 6) or not rounds:
        rounds.append([sample() for sample in samplers.values()])
        if len(rounds) == 1 and time.perf_counter() > start + PATIENCE:
            return [dict(zip(samplers, rounds[0], strict=True))], False
        if len(rounds) >= 6:
            before, now = np.median(rounds[-6:-3], 0), np.median(rounds[-3:], 0)
            if np.all(np.abs(now / before - 1) < STEADY):
                return [], True
    return [], False


def _wall(call: Call, count: int) -> Timer:
    numbers = itertools.cycle(range(count))  # the rotation goes on from sample to sample

    def timed(calls: int) -> float:
        start = time.perf_counter()
        for _ in range(calls):
            call(next(numbers))
        return time.perf_counter() - start

    return timed


def _graph(call: Call, count: int) -> Timer:
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # what is made at first use must not be made while capturing
        for i in range(count):
            call(i)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = [call(i) for i in range(count)]  # each has its own memory, as inputs do
    del results
    return _between_events(graph.replay)


def _events(call: Call, count: int) -> Timer:
    def calls() -> None:
        for i in range(count):
            call(i)

    return _between_events(calls)


def _between_events(work: Callable[[], object]) -> Timer:
    start = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]

    def timed(passes: int) -> float:
        start.record()
        for _ in range(passes):
            work()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3

    return timed


def _long_enough(timers: Mapping[str, Timer], calls: int) -> dict[str, Sampler]:
    """Seconds per call of each variant, of as many passes of `calls` calls as a sample needs."""
    once = {}
    for name, timed in timers.items():
        first = timed(1)
        once[name] = timed(1) if first < 50 * SAMPLE_SECONDS else first  # it may do things once
    least = max(SAMPLE_SECONDS, SAMPLE_SHARE * max(once.values()))

    def sampler(timed: Timer, passes: int) -> Sampler:
        return lambda: timed(passes) / (passes * calls)

    return {
        name: sampler(timed, max(1, math.ceil(least / max(once[name], 1e-9))))
        for name, timed in timers.items()
    }


def copy_bandwidth(device: torch.device) -> float:
    """Bytes per second that a large copy reads and writes, the two added.

    By a kernel: a copy within a CUDA graph is a node of its own, which an H200 gave 2.8 TB/s where
    outside of graphs it had 4.2.
    """
    size = (1 << 30) if device.type == "cuda" else (1 << 27)
    pairs = [[torch.randn(size // 4, device=device) for _ in range(2)] for _ in range(2)]
    return 2 * size / _median(lambda i: torch.neg(pairs[i][1], out=pairs[i][0]), device)


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second of a large matrix product; float32 by tf32 where the chip has that."""
    n = 8192 if device.type == "cuda" else 1024
    pairs = [[torch.randn(n, n, device=device).to(dtype) for _ in range(2)] for _ in range(2)]
    settings = torch.backends.cuda.matmul
    before = settings.fp32_precision
    if device.type == "cuda":
        settings.fp32_precision = "tf32"
    try:
        return 2 * n**3 / _median(lambda i: pairs[i][0] @ pairs[i][1], device)
    finally:
        if device.type == "cuda":
            settings.fp32_precision = before


def _median(call: Call, device: torch.device) -> float:
    call(0)
    timed, _ = samplers({"it": call}, 2, device)
    return statistics.median(measure(timed, 0.2)[0]["it"])


def machine(device: torch.device) -> dict[str, Any]:
    """What the numbers depend on: device, clocks, threads, versions, commit and date."""
    try:
        import triton

        triton_version = triton.__version__
    except ImportError:
        triton_version = None
    found: dict[str, Any] = {
        "device": device_name(device),
        "cpu": _cpu(),
        "threads": torch.get_num_threads(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,  # of others, before
        "governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "boost": _read("/sys/devices/system/cpu/cpufreq/boost"),
        "mhz": _mhz(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": triton_version,
        "cuda": torch.version.cuda,
        "commit": _output("git", "describe", "--always", "--dirty") or _sources(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        asked = "clocks.sm,clocks.max.sm,clocks.mem,power.limit,temperature.gpu,driver_version"
        found |= {
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory": properties.total_memory,
            asked: _output("nvidia-smi", f"--query-gpu={asked}", "--format=csv,noheader"),
        }
    return found


def _sources() -> str:
    """A name of the sources by what they hold, where git tells none."""
    root, digest = Path(__file__).resolve().parents[1], hashlib.sha256()
    folders = ("faststy", "kernels", "csrc", "benchmarks")
    for path in sorted(path for folder in folders for path in (root / folder).rglob("*.*")):
        if path.suffix in (".py", ".cpp", ".cu", ".h"):
            digest.update(path.read_bytes())
    return f"sources-{digest.hexdigest()[:7]}"


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu()


def _cpu() -> str:
    names = _cpuinfo("model name")
    return names[0] if names else platform.processor() or platform.machine()


def _mhz() -> list[float]:
    return [float(mhz) for mhz in _cpuinfo("cpu MHz")]


def _cpuinfo(key: str) -> list[str]:
    """What Linux tells of each core."""
    lines = (_read("/proc/cpuinfo") or "").splitlines()
    return [line.split(":", 1)[1].strip() for line in lines if line.startswith(key)]


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None


def _output(*command: str) -> str | None:
    """What a command says, or None where it is missing or fails."""
    here = Path(__file__).parent
    try:
        run = subprocess.run(command, cwd=here, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return run.stdout.strip() if run.returncode == 0 else None
