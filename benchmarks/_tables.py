#!/usr/bin/env python3
"""Tables of results: for the terminal, for a comparison, and for the sections of README files.

    python benchmarks/_tables.py        # writes the sections anew, from the newest results

A section stands between `<!-- benchmarks -->` and `<!-- /benchmarks -->`; nobody types into it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from _bench import OURS, RESULTS, SUITES, Report, complete, read, settings_of
from _plots import charts
from _timing import FEWEST_ROUNDS, RESAMPLES, Ratio

from faststy.files import write_text

ROOT = Path(__file__).parents[1]
WIDE = 1.5  # an interval whose ends are so many times apart
BEGIN, END = "<!-- benchmarks -->", "<!-- /benchmarks -->"
Result = Mapping[str, Any]
Rows = list[dict[str, str]]


def rows(results: Iterable[Result], rates: Mapping[str, float]) -> Rows:
    """A row for each result, all with the same columns."""
    results = list(results)
    baselines = dict.fromkeys(n for r in results for n in (*r["ratios"], *r["missing"]))
    table = []
    for r in results:
        low, high = r["quartiles"][OURS]
        shown = {
            "case": r["name"],
            "median": amount(r["median"][OURS], r["unit"]) + ("" if r["steady"] else " ~"),
            "spread": f"{(high - low) / r['median'][OURS]:.0%}",
        }
        for name in baselines:
            shown[f"{name} takes"] = ratio_to(name, r) if name in r["ratios"] else "—"
        shown["rate"] = rate(r, rates)
        floor = floor_of(r, rates)
        shown["of the floor"] = f"{floor / r['median'][OURS]:.0%}" if floor else "—"
        table.append(shown)
    return table


def floor_of(result: Result, rates: Mapping[str, float]) -> float:
    """Seconds in which this machine moves the bytes, or computes the operations; 0 if unknown."""
    multiplying = result["operations"] / rates.get(result["dtype"], float("inf"))
    return max(result["bytes"] / rates["copy"], multiplying)


def rate(result: Result, rates: Mapping[str, float]) -> str:
    """What a second gives: pictures, or what the floor is made of."""
    seconds = result["median"][OURS]
    if result["pictures"]:
        return f"{result['pictures'] / seconds:.3g} pictures/s"
    floor = floor_of(result, rates)
    if not floor:
        return "—"
    if floor == result["bytes"] / rates["copy"]:
        return f"{result['bytes'] / seconds / 1e9:.1f} GB/s"
    return f"{result['operations'] / seconds / 1e12:.3g} TFLOP/s"


def amount(value: float, unit: str) -> str:
    """Three digits and a unit."""
    scales = ((1, "s"), (1e-3, "ms"), (1e-6, "µs")) if unit == "s" else ((2**20, "MiB"),)
    scale, name = next((x for x in scales if value >= x[0]), scales[-1])
    return f"{value / scale:.{max(0, 2 - int(np.log10(max(value / scale, 1))))}f} {name}"


def ratio_to(name: str, result: Result) -> str:
    """With its interval where there are samples enough: one of three holds next to nothing."""
    found = result["ratios"][name]
    enough = len(result["samples"][OURS]) >= FEWEST_ROUNDS
    return times(found) if enough else f"{found['median']:.2f}×"


def times(ratio: Mapping[str, float]) -> str:
    return "{median:.2f}× [{low:.2f}, {high:.2f}]".format(**ratio)


def markdown(table: Rows) -> str:
    head = list(table[0])
    rule = ["---", *["--:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *map(dict.values, table)))


def head(report: Report) -> str:
    """What the numbers depend on, in a sentence or two."""
    about, rates = report["machine"], report["rates"]
    products = ", ".join(f"{n} {v / 1e12:.3g}" for n, v in rates.items() if n != "copy")
    versions = f"torch {about['torch']}, Triton {about['triton']}, Python {about['python']}"
    return (
        f"{about['device']}, {about['threads']} threads, {versions}, commit {about['commit']}, "
        f"{about['date'][:10]}. Copy {rates['copy'] / 1e9:.1f} GB/s; "
        f"matrix product {products} TFLOP/s.{conditions(report)}"
    )


def conditions(report: Report) -> str:
    """What else the numbers depend on: no extension, fewer cases, and others on the machine."""
    parts = settings_of(report)
    each = []
    for part in parts:
        load = part.get("load")
        told = [
            "the quick form" if part.get("quick") else "",
            f"only cases that match `{part['filter']}`" if part.get("filter") else "",
            f"load {load:.1f} before" if load is not None else "",
        ]
        each.append(", ".join(filter(None, told)))
    if len(set(each)) > 1:
        names = [", ".join(part.get("suites", ())) for part in parts]
        each = [f"{name}: {text}" for name, text in zip(names, each, strict=True) if text]
    computed = {i["name"] for i in report["implementations"]}
    lack = "without the C++ extension" if computed and "native" not in computed else ""
    told = list(dict.fromkeys(filter(None, (lack, *each))))
    return "".join(f" {text[0].upper()}{text[1:]}." for text in told)


# --------------------------------------------------------------------------- before and now


def change(before: Result, now: Result) -> dict[str, str]:
    """The row of a case in two reports: times, and how they changed.

    Two runs are two days of a machine. Where both have a baseline, what counts is how the ratio to
    the first of them changed.
    """
    common = [n for n in now["ratios"] if n in before["ratios"]][:1]
    shown = {
        "case": f"{now['suite']}: {now['name']}",
        "before": amount(before["median"][OURS], before["unit"]),
        "now": amount(now["median"][OURS], now["unit"]),
        "faster": times(_faster(before, now, [])._asdict()),
        "against": "—",
        "faster against it": "—",
        "": "",
    }
    found = _faster(before, now, common)
    if common:
        shown |= {"against": common[0], "faster against it": times(found._asdict())}
    if found.low > 1 or found.high < 1:
        shown[""] = "faster" if found.low > 1 else "SLOWER"
    return shown


def _faster(before: Result, now: Result, against: list[str]) -> Ratio:
    """How many times as fast it is now, each run's rounds drawn as wholes."""
    rng = np.random.default_rng(0)

    def drawn(result: Result) -> tuple[float, Any]:
        values = [np.asarray(result["samples"][name]) for name in (OURS, *against)]
        index = rng.integers(len(values[0]), size=(RESAMPLES, len(values[0])))
        medians = [(np.median(v), np.median(v[index], 1)) for v in values]
        if not against:
            return medians[0]
        (one, many), (other_one, other_many) = medians
        return one / other_one, many / other_many

    (a, many_a), (b, many_b) = drawn(before), drawn(now)
    low, high = np.quantile(many_a / many_b, (0.025, 0.975))
    return Ratio(float(a / b), float(low), float(high))


def comparison(before: Report, now: Report) -> Rows:
    """Rows of the cases that both have."""
    old = {(r["suite"], r["name"]): r for r in before["cases"]}
    both = [(old[key], r) for r in now["cases"] if (key := (r["suite"], r["name"])) in old]
    return [change(*pair) for pair in both]


# --------------------------------------------------------------------------- README files


def newest() -> list[tuple[Path, Report]]:
    """The newest report of each device, of those of all cases where there is one."""
    folders = sorted(path for path in RESULTS.glob("*") if path.is_dir())
    files = [max(f.glob("*.json"), default=None, key=_completeness_and_date) for f in folders]
    return [(path, read(path)) for path in files if path is not None]


def _completeness_and_date(path: Path) -> tuple[bool, str]:
    report = read(path)
    return complete(report), str(report["machine"]["date"])


def whole(reports: list[tuple[Path, Report]]) -> str:
    """All tables and charts, for benchmarks/README.md."""
    parts = []
    for path, report in reports:
        folder = path.parent.relative_to(RESULTS.parent).as_posix()
        links = [f"All numbers: [{folder}/{path.name}]({folder}/{path.name})."]
        drawn = [name for name in sorted(charts(report)) if (path.parent / f"{name}.svg").is_file()]
        links += [f"![{name}]({folder}/{name}.svg)" for name in drawn]
        parts.append(document(report, links))
    return "\n\n".join(parts) or "No results are here yet: `make bench` makes them."


def document(report: Report, links: Iterable[str] = ()) -> str:
    """All tables of a report, in Markdown, and what is not in them; `links` after its head."""
    parts = [f"### {report['machine']['device']}\n\n{head(report)}", *links]
    for suite in SUITES:
        results = [r for r in report["cases"] if r["suite"] == suite]
        if results:
            table = markdown(rows(results, report["rates"]))
            parts.append(f"#### `faststy bench {suite}`\n\n{table}")
            if gone := missing(results):
                parts.append(f"Without a number: {'; '.join(gone)}.")
    for what in ("left_out", "wrong"):
        told = reasons(report, what)
        if told:
            parts.append(f"{what.replace('_', ' ').capitalize()}: {'; '.join(told)}.")
    return "\n\n".join(parts)


def reasons(report: Report, what: str) -> list[str]:
    """Why cases are "left_out" or "wrong"; where several of a suite have one reason, once."""
    groups: dict[tuple[str, str], list[str]] = {}
    for name, why in report[what].items():
        groups.setdefault((name.partition(":")[0], why), []).append(name)
    return [
        f"{names[0]}: {why}" if len(names) == 1 else f"{names[0]} and {len(names) - 1} more: {why}"
        for (_, why), names in groups.items()
    ]


def missing(results: Iterable[Result]) -> list[str]:
    """Why variants are missing; where several cases have one reason, once."""
    groups: dict[tuple[str, str], list[str]] = {}
    for r in results:
        for name, why in r["missing"].items():
            groups.setdefault((name, why), []).append(r["name"])
    return [
        f"{name} of {cases[0]}{f' and {len(cases) - 1} more' * (len(cases) > 1)} ({why})"
        for (name, why), cases in groups.items()
    ]


def summary(reports: list[tuple[Path, Report]]) -> str:
    """The cases that tell the most, for the project's README.md: a small table for each suite."""
    parts = []
    for _, report in reports:
        tables = []
        for suite in SUITES:
            results = [r for r in report["cases"] if r["headline"] and r["suite"] == suite]
            if results:
                tables.append(markdown(medians(suite, results)))
        if tables:
            parts += [head(report), *tables]
    return "\n\n".join(parts) or "No results are here yet: `make bench` makes them."


def medians(suite: str, results: list[Result]) -> Rows:
    """A row for each result of a suite: our time, and how many times as long the others take.

    With the interval where it is wide: there the median alone would say too much.
    """
    baselines = dict.fromkeys(name for r in results for name in r["ratios"])
    table = []
    for r in results:
        ours = amount(r["median"][OURS], r["unit"]) + ("" if r["steady"] else " ~")
        row = {f"`faststy bench {suite}`": r["name"], "ours": ours}
        for name in baselines:
            found = r["ratios"].get(name)
            row[name] = "—" if found is None else f"{found['median']:.2f}×"
            if found is not None and found["high"] > WIDE * found["low"]:
                row[name] = ratio_to(name, r)
        table.append(row)
    return table


SECTIONS = {ROOT / "benchmarks" / "README.md": whole, ROOT / "README.md": summary}


def renewed(path: Path) -> str:
    """The text of a README with its section made from the newest results."""
    before, begin, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"{path}: {BEGIN} and {END} are gone, so its tables have no place")
    return f"{before}{BEGIN}\n\n{SECTIONS[path](newest())}\n\n{END}{after}"


def main() -> int:
    for path in SECTIONS:
        write_text(path, renewed(path))
        print(f"{path.relative_to(ROOT)}: tables from results/ written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
