#!/usr/bin/env python3
"""Guards of the speed: ratios to a baseline that no change may bring below their floors.

    python benchmarks/guard.py                   # make bench-guard
    python benchmarks/guard.py --renew           # measure, and write guards.toml anew
    python benchmarks/guard.py --renew --seconds 60    # those that are begun in so long
    python benchmarks/guard.py --renew --filter gram   # those that match this expression
    python benchmarks/guard.py --without-extension     # where it is not to be had

A guard fails when the upper end of the ratio's interval is below its floor, three times in a row,
each with more rounds than the one before and after all other guards. One whose floor is within a
wide interval is measured again, too, as that says nothing: if it stays wide, it fails where the
median is below the floor, and else is said to be undecided, which is no failure, as a machine that
others use gives wide intervals, but is not held either. Its case must be one of the quick form of
its suite. A baseline that is not installed, or not for this machine, is said; one that fails, or is
no part of the case, fails. So does it where the C++ extension is missing, as most guards would not
be held, unless that is asked for. Headlines that have no guard yet for this kind of device are
added by --renew. What it has measured is on the disk.
Exit status: 0, or 1 if a guard fails, a result is wrong, or no guard matches --filter.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

import torch
from _bench import NOT_HERE, NOT_INSTALLED, OURS, Case, cases, expression, measured
from _timing import Ratio, device_name

from faststy import ops
from faststy.errors import FaststyError, told
from faststy.files import write_text

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FILE = Path(__file__).with_name("guards.toml")
# Of warm-up and of rounds, for each attempt. A whole step or painting takes so long that only the
# last gives it more rounds than the fewest.
SECONDS = (0.1, 0.4, 4.0)
ATTEMPTS = len(SECONDS)
RENEWING = 1.0  # likewise, for a new floor
WIDE = 1.3  # an interval whose upper end is more times the lower one tells no floor within it apart
NO_SUCH = "there is no such baseline"
AGAINST = {"ops": "eager", "training": "ops off", "stylization": "eager"}  # what new guards hold
MARGIN = 0.7  # a new floor is this much of the lower end of the interval: other machines differ
HEAD = """\
# Floors of ratios (how many times as long a baseline takes as we do), held by `make bench-guard`.
# `python benchmarks/guard.py --renew` measures the ratios and writes this file. A floor lies well
# below what was measured, as other machines and busy ones differ. Devices: cpu, cuda, cpu+native
# where the C++ extension is built, or the name of one device. `least` is set by hand: floors that
# are renewed do not go below.
"""


@dataclass(frozen=True)
class Guard:
    suite: str
    case: str
    against: str
    device: str
    floor: float
    measured: float  # the ratio when the floor was set
    date: str
    least: float = 0.0  # set by hand: no new floor is lower

    def __str__(self) -> str:
        return f"{self.suite}: {self.case}: {self.against} takes"


def load(file: Path) -> list[Guard]:
    """The guards in a file. Raises FaststyError for one that is not written as it must be."""
    try:
        return [Guard(**entry) for entry in tomllib.loads(file.read_text("utf-8"))["guard"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FaststyError(f"{file}: cannot be read as guards ({error})") from error


def save(guards: list[Guard], file: Path) -> None:
    entries = [
        "\n[[guard]]\n"
        f'suite = "{g.suite}"\ncase = "{g.case}"\nagainst = "{g.against}"\ndevice = "{g.device}"\n'
        f'floor = {g.floor:.2f}\nmeasured = {g.measured:.2f}\ndate = "{g.date}"\n'
        + (f"least = {g.least:.2f}\n" if g.least else "")
        for g in guards
    ]
    write_text(file, HEAD + "".join(entries))


def classes(device: torch.device) -> set[str]:
    """What a guard may name as its device to be held here."""
    rows = [i for i in ops.implementations() if i.device == device.type]
    native = {f"{device.type}+native"} if any(i.name == "native" for i in rows) else set()
    return {device.type, device_name(device), *native}


def lacking(guards: list[Guard], device: torch.device) -> str:
    """What to say where guards are not held because the extension does not compute; or nothing."""
    native = f"{device.type}+native"
    count = sum(g.device == native for g in guards)
    if not count or native in classes(device):
        return ""
    why = next(i.why for i in ops.implementations() if i.device == device.type)
    return f"{count} guards are for the C++ extension, which computes nothing here: {why}"


def find(guard: Guard, device: torch.device) -> Case:
    for case in cases(guard.suite, device, quick=True):
        if case.name == guard.case:
            return case
    raise FaststyError(f"guards.toml: {guard.suite} has no quick case {guard.case!r}")


def ratio_of(guard: Guard, device: torch.device, seconds: float) -> Ratio | str:
    """The ratio now, or why its baseline is missing here."""
    result = measured(find(guard, device), device, seconds, (OURS, guard.against))
    if guard.against not in result["ratios"]:
        return str(result["missing"].get(guard.against, NO_SUCH))
    return Ratio(**result["ratios"][guard.against])


def wide(found: Ratio) -> bool:
    return not found.high <= WIDE * found.low


def wrong(guard: Guard, error: Exception) -> str:
    """The line of a guard whose case raises."""
    return f"WRONG     {guard}: {type(error).__name__}: {error}".splitlines()[0]


def failing(guards: list[Guard], device: torch.device) -> tuple[int, int]:
    """How many guards fail or are wrong, and how many are undecided; each is said in a line.

    Those that do not hold are measured again after all others, as what slows a machine down for a
    while slows all that is measured then.
    """
    failed, undecided, left = 0, 0, guards
    for attempt, seconds in enumerate(SECONDS, 1):
        guards, left = left, []
        for guard in guards:
            try:
                found = ratio_of(guard, device, seconds)
            except FaststyError:  # the file names what is not there
                raise
            except Exception as error:  # one broken op must not hide what others became
                print(wrong(guard, error), flush=True)
                failed += 1
                continue
            if isinstance(found, str):
                absent = found.endswith((NOT_INSTALLED, NOT_HERE))
                print(f"{'not here' if absent else 'FAILS':9} {guard}: {found}", flush=True)
                failed += not absent
                continue
            shown = f"{found.median:.2f}× [{found.low:.2f}, {found.high:.2f}]"
            shown += f", floor {guard.floor:.2f}"
            if found.low >= guard.floor or (found.high >= guard.floor and not wide(found)):
                print(f"holds     {guard} {shown}", flush=True)
                continue
            if attempt < ATTEMPTS:
                left.append(guard)
                word = "again"
            elif found.high >= guard.floor and found.median >= guard.floor:
                undecided += 1
                word = "undecided"
            else:
                failed += 1
                word = "FAILS"
            was = f"{guard.measured:.2f}× on {guard.date}"
            print(f"{word:9} {guard} {shown}; it was {was}", flush=True)
    return failed, undecided


def added(guards: list[Guard], device: torch.device) -> list[Guard]:
    """Guards yet to be measured, of headlines that have none for this kind of device."""
    known = {(g.suite, g.case) for g in guards if g.device.startswith(device.type)}
    native = "cpu+native"  # nothing else is fast there
    kind = native if native in classes(device) else device.type
    return [
        Guard(suite, case.name, against, kind, 0.0, 0.0, "")
        for suite, against in AGAINST.items()
        for case in cases(suite, device, quick=True)
        if case.headline and (suite, case.name) not in known
    ]


def renewed(guard: Guard, device: torch.device) -> Guard:
    """The guard with the ratio and floor of now; as it is where its baseline is missing.

    A wide interval is measured once more, for longer: a floor far below what was measured holds
    little.
    """
    found = ratio_of(guard, device, RENEWING)
    if isinstance(found, Ratio) and wide(found):
        found = ratio_of(guard, device, 4 * RENEWING)
    if isinstance(found, str):
        print(f"not here  {guard}: {found}", flush=True)
        return guard
    today = datetime.now(timezone.utc).date().isoformat()
    floor = max(MARGIN * found.low, guard.least)
    new = replace(guard, floor=floor, measured=found.median, date=today)
    shown = f"{found.median:.2f}× [{found.low:.2f}, {found.high:.2f}], floor {new.floor:.2f}"
    print(f"renewed   {guard} {shown}", flush=True)
    return new


def renew(
    file: Path, device: torch.device, seconds: float = float("inf"), pattern: str = ""
) -> int:
    """Writes the guards of this device anew, and new ones, where they match the expression
    `pattern`; what is wrong keeps what it had.

    What is not begun within `seconds` keeps it, too. Each is saved when it is measured: what stops
    the rest does not take it.
    """
    end = time.perf_counter() + seconds
    guards, here, broken = load(file), classes(device), 0
    guards += added(guards, device)
    wanted = expression(pattern)
    for number, guard in enumerate(guards):
        if guard.device not in here or not wanted.search(str(guard)) or time.perf_counter() > end:
            continue
        try:
            guards[number] = renewed(guard, device)
        except Exception as error:  # one broken op must not cost all other floors
            print(wrong(guard, error), flush=True)
            broken += 1
        else:
            save([g for g in guards if g.measured], file)
    return 1 if broken else 0


def main(argv: list[str] | None = None, file: Path = FILE) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--renew", action="store_true", help="write floors from what is measured")
    parser.add_argument("--file", type=Path, default=file, help="where the guards are")
    parser.add_argument(
        "--seconds", type=float, default=float("inf"), help="renew none after so long"
    )
    parser.add_argument("--filter", default="", help="only guards that match this expression")
    parser.add_argument(
        "--without-extension", action="store_true", help="hold the guards that need none"
    )
    args = parser.parse_args(argv)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    guards, here = load(args.file), classes(device)
    wanted = expression(args.filter)
    there = [g for g in guards if g.device in here]
    held = [g for g in there if wanted.search(str(g))]
    matching = f", {len(held)} of these match" if args.filter else ""
    print(f"{len(there)} of {len(guards)} guards are for this device{matching}", flush=True)
    if args.filter and not held and not args.renew:  # a case that was renamed holds nothing
        return 1
    lack = lacking(guards, device)
    if lack and not args.without_extension and not args.renew:
        print(f"{lack}; --without-extension holds the others")
        return 1
    if lack:
        print(lack, flush=True)
    if args.renew:
        return renew(args.file, device, args.seconds, args.filter)
    failed, undecided = failing(held, device)
    if undecided:
        print(f"{undecided} of {len(held)} guards are not held: others use this machine too much")
    if failed:
        print(f"{failed} of {len(held)} guards fail: a change made these slower, or wrong")
    return 1 if failed else 0


if __name__ == "__main__":
    with told():
        sys.exit(main())
