"""Suites of cases, and how they are run: prepared and checked, timed side by side, reported.

A suite is a file beside this one with `cases(device, quick)`, the most telling case first. A case
prepares variants of one task: ours, and what ours is measured against. `faststy bench` runs suites,
`pytest benchmarks` hands them to pytest-benchmark, `guard.py` holds some of their ratios.
"""

from __future__ import annotations

import json
import re
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from _timing import (
    Call,
    Clock,
    copy_bandwidth,
    machine,
    matrix_rate,
    measure,
    ratio,
    samplers,
)

from faststy import ops
from faststy.cli.bench import SUITES
from faststy.errors import FaststyError
from faststy.files import write_text
from faststy.ops import dispatch

OURS = "ours"
NOT_INSTALLED = "is not installed"
NOT_HERE = "is not for this machine"
NOT_REACHED = "the run ended before"
GONE = "the device is gone"
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32, "float16": torch.float16}
# Relative error by norm that is allowed against float64.
TOLERANCES = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2, torch.uint8: 2e-3}
# Of the others: that they compute the same at all. Some sum gradients of weights in bfloat16.
BASELINE_TOLERANCE = 0.2
TOLD = 3  # numbers that a process tells: too few for an interval
RESULTS = Path(__file__).parent / "results"

Report = dict[str, Any]


class Wrong(Exception):
    """A result that is not what the reference says."""


class Prepared(NamedTuple):
    """Variants of one task that give the right result; OURS is one of them."""

    calls: Mapping[str, Call]
    missing: Mapping[str, str] = {}  # other variants, and why they are not there
    inputs: int = 1  # how many rotate
    pictures: int = 0  # that a call paints, or trains on
    bytes: int = 0  # that a call must move, at least
    operations: int = 0  # that it must compute, at least, in `dtype`
    dtype: str = "float32"
    clock: Clock = "graphs"  # how calls are timed on a GPU, see _timing.samplers
    unit: str = "s"  # "B": calls give bytes, and are not timed


class Case(NamedTuple):
    suite: str
    name: str
    prepare: Callable[..., Prepared]  # given `only`, the names of variants: of no others than these
    headline: bool = False  # shown in the README of the project

    def __str__(self) -> str:
        return f"{self.suite}: {self.name}"


def cases(suite: str, device: torch.device, quick: bool) -> list[Case]:
    """The cases of a suite, the most telling first."""
    found: list[Case] = import_module(suite).cases(device, quick)
    return found


def variants(
    makers: Mapping[str, Callable[[], Call]],
    check: Callable[[str, Call], None],
    only: Sequence[str] = (),
) -> tuple[dict[str, Call], dict[str, str]]:
    """The variants (of all, or of `only`) that can be made and are right, and why others are not.

    `check(name, call)` calls each until it does what will be timed, and raises Wrong. What OURS
    raises is raised.
    """
    calls: dict[str, Call] = {}
    missing: dict[str, str] = {}
    for name, make in makers.items():
        if only and name not in only:
            continue
        try:
            call = make()
            check(name, call)
        except Exception as error:
            if name == OURS:
                raise
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            gone = isinstance(error, ModuleNotFoundError)
            missing[name] = f"{error.name} {NOT_INSTALLED}" if gone else reason
        else:
            calls[name] = call
    return calls, missing


@contextmanager
def computed_by(implementation: str) -> Iterator[None]:
    """What computes the ops meanwhile, as FASTSTY_IMPL chooses at import."""
    before = dispatch.IMPL
    try:
        _use(implementation)
        yield
    finally:
        _use(before)


_found = {dispatch.IMPL: dispatch._find}  # each keeps what it found: to look again takes time


def _use(implementation: str) -> None:
    if implementation not in _found:
        _found[implementation] = cache(dispatch._find.__wrapped__)
    dispatch.IMPL, dispatch._find = implementation, _found[implementation]


def double(value: Any) -> Any:
    """The same in float64, leaves as leaves; tensors of integers and what is no tensor stay."""
    if isinstance(value, torch.Tensor):
        if not value.is_floating_point():
            return value
        return value.detach().double().requires_grad_(value.requires_grad)
    if isinstance(value, dict):
        return {k: double(v) for k, v in value.items()}
    return type(value)(map(double, value)) if isinstance(value, list | tuple) else value


def compiling(dtype: str, device: torch.device, quick: bool, headline: bool) -> bool:
    """Whether torch.compile is measured, which takes longer than all the rest of a case."""
    return not quick and (headline if device.type == "cuda" else dtype == "float32")


def compare(results: Sequence[Any], truth: Sequence[Any], tolerance: float) -> None:
    """Raises Wrong where a result, or a gradient after it, is off by more, relative to its norm."""
    for i, (a, b) in enumerate(zip(results, truth, strict=True)):
        name = f"gradient {i}" if i else "result"
        if a.shape != b.shape:
            raise Wrong(f"{name}: {list(a.shape)}, not {list(b.shape)}")
        a, b = a.detach().double(), b.detach().double()
        off = float((a - b).norm() / b.norm())
        if not off <= tolerance:  # NaN too
            raise Wrong(f"{name}: off by {off:.1e}, {tolerance:.0e} is allowed")


def measured(
    case: Case, device: torch.device, seconds: float, only: Sequence[str] = ()
) -> dict[str, Any]:
    """Prepare and time a case, or `only` some of its variants. Raises Wrong if ours is."""
    with torch.random.fork_rng(devices=None if device.type == "cuda" else []):
        torch.manual_seed(0)
        prepared = case.prepare(only=only)
        if prepared.unit == "s":
            timed, method = samplers(prepared.calls, prepared.inputs, device, prepared.clock)
            samples, steady = measure(timed, seconds)
        else:
            told = {
                name: [_number(call) for _ in range(TOLD)] for name, call in prepared.calls.items()
            }
            samples, method, steady = told, "told by the process", True
    ours = samples[OURS]
    others = {name: s for name, s in samples.items() if name != OURS}
    return {
        "suite": case.suite,
        "name": case.name,
        "headline": case.headline,
        "unit": prepared.unit,
        "method": method,
        "inputs": prepared.inputs,
        "rounds": len(ours),
        "steady": steady,
        "median": {name: statistics.median(s) for name, s in samples.items()},
        "quartiles": {name: list(np.quantile(s, (0.25, 0.75))) for name, s in samples.items()},
        "ratios": {name: ratio(s, ours)._asdict() for name, s in others.items()},
        "missing": dict(prepared.missing),
        "pictures": prepared.pictures,
        "bytes": prepared.bytes,
        "operations": prepared.operations,
        "dtype": prepared.dtype,
        "samples": {name: [float(f"{x:.5g}") for x in s] for name, s in samples.items()},
    }


def _number(call: Call) -> float:
    return float(call(0))  # type: ignore[arg-type]


def opened(device: torch.device, **settings: Any) -> Report:
    """A report without cases: the machine, what computes the ops, and the rates of the floors."""
    dtypes = DTYPES if device.type == "cuda" else ("float32", "bfloat16")
    return {
        "machine": machine(device),
        "settings": settings,
        "rates": {
            "copy": copy_bandwidth(device),
            **{name: matrix_rate(device, DTYPES[name]) for name in dtypes},
        },
        "implementations": [i._asdict() for i in ops.implementations() if i.device == device.type],
        "cases": [],
        "wrong": {},
        "left_out": {},
    }


def run(
    chosen: Mapping[str, Sequence[Case]],
    device: torch.device,
    report: Report,
    *,
    seconds: float,
    until: float = float("inf"),
) -> Iterator[Case]:
    """Fill `report`, and give each case just before it is run.

    Args:
        chosen: cases by suite.
        seconds: of warm-up, and of rounds, for each case.
        until: no case begins after this moment of `time.perf_counter`. Each suite may take its
            share of the time that is left, so the last gets what the others leave.
    """
    every = [str(case) for suite in chosen.values() for case in suite]
    report["left_out"] |= dict.fromkeys(every, NOT_REACHED)
    broken = False
    for done, suite in enumerate(chosen):
        now = time.perf_counter()
        end = now + (until - now) / (len(chosen) - done)
        for case in chosen[suite]:
            yield case
            if broken or time.perf_counter() > end:
                report["left_out"][str(case)] = GONE if broken else "no time"
                continue
            try:
                result = measured(case, device, seconds)
            except torch.OutOfMemoryError:
                report["left_out"][str(case)] = "out of memory"
            except Exception as error:  # one broken case must not cost all other numbers
                report["wrong"][str(case)] = f"{type(error).__name__}: {error}".splitlines()[0]
                del report["left_out"][str(case)]
                broken = not usable(device)
            else:
                report["cases"].append(result)
                del report["left_out"][str(case)]


def usable(device: torch.device) -> bool:
    """Whether a device computes: after an illegal access none does until the process ends."""
    try:
        return bool(torch.ones(1, device=device).item())
    except RuntimeError:
        return False


def choose(
    suites: Sequence[str], device: torch.device, quick: bool, pattern: str = ""
) -> dict[str, list[Case]]:
    """Cases of `suites` (of all, if none) whose name has the regular expression `pattern`.

    Raises FaststyError where it is none.
    """
    wanted = expression(pattern)
    chosen = {}
    for suite in [s for s in SUITES if s in suites or not suites]:
        found = [c for c in cases(suite, device, quick) if wanted.search(str(c))]
        if found:
            chosen[suite] = found
    return chosen


def expression(pattern: str) -> re.Pattern[str]:
    """`pattern`, compiled. Raises FaststyError where it is no regular expression."""
    try:
        return re.compile(pattern)
    except re.error as error:
        raise FaststyError(f"{pattern!r}: no regular expression ({error})") from error


# --------------------------------------------------------------------------- files


def settings_of(report: Report) -> list[dict[str, Any]]:
    """Settings, and the load before, of a report, or of each that was joined to it."""
    settings = report.get("settings", {})
    alone = [{**settings, "load": report["machine"].get("load")}]
    return list(settings.get("parts", alone))


def complete(report: Report) -> bool:
    """Whether a report is of all cases, and of a run that came to its end."""
    parts = settings_of(report)
    suites = {suite for part in parts for suite in part.get("suites", ())}
    some = any(part.get("quick") or part.get("filter") for part in parts)
    ended = {NOT_REACHED, GONE}.isdisjoint(report["left_out"].values())
    return suites >= set(SUITES) and not some and ended


def place_of(report: Report) -> Path:
    """<device>/<date>-<commit>.json; on a CPU the number of threads belongs to the device.

    One that is not complete has the time of day in its name, too: it takes nobody's place.
    """
    about = report["machine"]
    cuda = "capability" in about
    device = about["device"] if cuda else f"{about['device']} {about['threads']} threads"
    slug = re.sub(r"[^A-Za-z0-9.]+", "-", device).strip("-")
    name = f"{about['date'][:10]}-{about['commit'] or 'unknown'}"
    if not complete(report):
        name += "-" + about["date"][11:19].replace(":", "")
    return Path(slug, f"{name}.json")


def write(report: Report, path: Path) -> None:
    """Write a report as JSON, by rename, a case a line. Raises FaststyError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"{json.dumps(k)}: {json.dumps(v)}" for k, v in report.items() if k != "cases"]
    lines.append('"cases": [\n' + ",\n".join(map(json.dumps, report["cases"])) + "\n]")
    write_text(path, "{" + ",\n".join(lines) + "}\n")


def read(path: Path) -> Report:
    """Read a report. Raises FaststyError if it is none."""
    try:
        report: Report = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FaststyError(f"{path}: cannot be read as results ({error})") from error
    if not isinstance(report, dict) or not report.keys() >= {"machine", "rates", "cases"}:
        raise FaststyError(f"{path}: these are no results of faststy bench --json")
    return report
