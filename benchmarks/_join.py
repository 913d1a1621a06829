#!/usr/bin/env python3
"""Joins reports that were measured one after the other on one machine, and draws what they say.

    python benchmarks/_join.py WHOLE.json PART.json...

Writes WHOLE.json, and beside it the charts and tables.md. The machine and the rates of its floors
are those of the first part; settings and load of each part are kept. A part that is missing, no
report, or of another commit than the latest is told and left out: what was measured before
something broke is worth as much. Exit status 1 if all are.
"""

from __future__ import annotations

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path

from _bench import Report, read, write
from _plots import draw
from _tables import document

from faststy.cli.bench import SUITES
from faststy.errors import FaststyError, told
from faststy.files import write_text


def joined(parts: list[Report]) -> Report:
    """One report of all cases, suite by suite; `parts` has at least one."""
    first = min(parts, key=lambda part: str(part["machine"]["date"]))
    whole = {**first, "cases": [], "wrong": {}, "left_out": {}}
    for part in parts:
        whole["cases"] = [*whole["cases"], *part["cases"]]
        for what in ("wrong", "left_out"):
            whole[what] = whole[what] | part[what]
    whole["cases"].sort(key=lambda result: SUITES.index(result["suite"]))
    suites = {suite for part in parts for suite in part["settings"]["suites"]}
    conditions = [{**p["settings"], "load": p["machine"].get("load")} for p in parts]
    whole["settings"] = {"suites": [s for s in SUITES if s in suites], "parts": conditions}
    return whole


def commit(part: Report) -> str:
    """What was measured; charts and tables of a run before make a working tree "dirty", too.

    What has no name is the same as nothing else.
    """
    about = part["machine"]
    return str(about["commit"] or f"unknown, of {about['date']}").removesuffix("-dirty")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("whole", type=Path, metavar="WHOLE.json")
    parser.add_argument("parts", type=Path, nargs="+", metavar="PART.json")
    given = parser.parse_args(argv)
    target, parts = given.whole, []
    for path in given.parts:
        try:
            parts.append(read(path))
        except FaststyError as error:
            print(error, file=sys.stderr)
    if not parts:
        return 1
    latest = commit(max(parts, key=lambda part: str(part["machine"]["date"])))
    for part in parts:
        if (other := commit(part)) != latest:
            suites = ", ".join(part["settings"]["suites"])
            print(f"{suites}: measured at commit {other}, not {latest}: left out", file=sys.stderr)
    parts = [part for part in parts if commit(part) == latest]
    whole = joined(parts)
    write(whole, target)
    tables = document(whole)
    write_text(target.with_name("tables.md"), tables + "\n")
    print(tables)
    if find_spec("matplotlib") is None:
        print("matplotlib is not installed: there are no charts", file=sys.stderr)
        return 0
    for path in draw(whole, target.parent):
        print(f"Drawn: {path}")
    return 0


if __name__ == "__main__":
    with told():
        sys.exit(main())
