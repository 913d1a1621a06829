"""`faststy bench`: the speed of everything on this machine, beside what else there is."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

import faststy
from faststy.cli import _options
from faststy.errors import FaststyError

SUITES = ("startup", "memory", "stylization", "training", "ops")
CASE_SECONDS = 0.4  # of warm-up, and of rounds; of the quick form a quarter


@click.command()
@click.argument("suites", metavar="[SUITE]...", nargs=-1, type=click.Choice(SUITES))
@click.option("--quick", is_flag=True, help="Few cases, each shorter.")
@click.option(
    "--json",
    "json_path",
    type=_options.PATH,
    help="Keep all numbers in this file; in a folder, as <device>/<date>-<commit>.json once it has "
    "ended, with the time of day, too, where it is not of all cases.",
)
@click.option(
    "--compare",
    type=_options.PATH,
    metavar="FILE",
    help="Also tell what changed since the results in FILE.",
)
@click.option(
    "--plot",
    is_flag=True,
    help="Draw charts (PNG, SVG) beside the JSON file; in a folder of its name, where --json is a "
    "folder and the run not of all cases.",
)
@click.option(
    "--tune",
    is_flag=True,
    help="First measure the Triton kernels' block sizes for the cases of ops, and remember them.",
)
@click.option("--filter", "pattern", default="", help="Only cases that match this expression.")
@click.option("--seconds", type=float, default=float("inf"), help="Begin no case after so long.")
@click.option("--device", default="auto", help="cpu, cuda or auto.", show_default=True)
def command(
    suites: tuple[str, ...],
    quick: bool,
    json_path: Path | None,
    compare: Path | None,
    plot: bool,
    tune: bool,
    pattern: str,
    seconds: float,
    device: str,
) -> None:
    """Measure how fast everything is here, in suites.

    The floors are measured first: copy bandwidth and matrix products of this machine. Results are
    checked before they are timed, and variants are timed in turns. Exit status 1: a result was
    wrong. It needs a checkout of the sources: the suites are not installed.

    \b
    faststy bench
    faststy bench ops --quick --filter 'gram .*channels_last'
    """
    began = time.perf_counter()
    sys.path.insert(0, str(suites_folder()))
    bench, tables = import_module("_bench"), import_module("_tables")
    from faststy.tensors import device_named

    on = device_named(device)
    if on.type not in ("cpu", "cuda"):
        raise FaststyError(f"--device {device}: it must be cpu or cuda")
    before = bench.read(compare) if compare else None
    if plot and json_path is None:
        raise FaststyError("--plot needs --json, which says where the charts go")
    if plot and find_spec("matplotlib") is None:
        raise FaststyError("--plot needs matplotlib; pip install 'faststy[bench]' brings it")
    chosen = bench.choose(suites, on, quick, pattern)
    if not chosen:
        raise FaststyError(f"no case of {', '.join(suites or SUITES)} matches {pattern!r}")

    if tune:
        if "ops" not in chosen:
            raise FaststyError("--tune is for the suite ops: faststy bench ops --tune")
        for line in import_module("ops").tune(chosen["ops"], on, quick):
            click.echo(line)

    report = bench.opened(on, suites=list(chosen), quick=quick, filter=pattern)
    part = json_path
    folder = json_path is not None and (json_path.is_dir() or not json_path.suffix)
    if json_path is not None and folder:  # until it has ended it takes the place of no other
        part = json_path / f"{bench.place_of(report)}.part"
    click.echo(tables.head(report))
    for i in report["implementations"]:
        click.echo(f"{i['op']}: {i['name']} ({i['why']})")
    about = report["machine"]
    if (about["load"] or 0) > 0.5:
        click.echo(f"Others keep this machine busy (load {about['load']:.1f}): take care.")

    running = bench.run(
        chosen, on, report, seconds=CASE_SECONDS / (4 if quick else 1), until=began + seconds
    )
    for _ in _shown(running, sum(map(len, chosen.values()))):
        if part is not None:  # after every case: what stops the run does not take the rest
            bench.write(report, part)
    if json_path is not None and part is not None:
        whole = json_path / bench.place_of(report) if folder else json_path
        bench.write(report, part)
        part.replace(whole)
        click.echo(f"All numbers are in {whole}")
        if plot:
            beside = not folder or bench.complete(report)
            charts = whole.parent if beside else whole.with_suffix("")
            for path in import_module("_plots").draw(report, charts):
                click.echo(f"Drawn: {path}")

    for suite in chosen:
        results = [r for r in report["cases"] if r["suite"] == suite]
        if results:
            _print(f"faststy bench {suite}", tables.rows(results, report["rates"]), tables)
    for r in report["cases"]:
        for name, why in r["missing"].items():
            click.echo(f"missing: {r['suite']}: {r['name']}: {name}: {why}")
    for what in ("left_out", "wrong"):
        for reason in tables.reasons(report, what):
            click.echo(f"{what.replace('_', ' ')}: {reason}")
    if before is not None:
        changes = tables.comparison(before, report)
        if changes:
            _print(f"since {compare}", changes, tables)
        else:
            click.echo(f"{compare}: none of these cases are in it")
    if report["wrong"]:
        sys.exit(1)


def suites_folder() -> Path:
    """benchmarks/ of the sources: beside the package, or in the working folder.

    Raises FaststyError where there is none.
    """
    for root in (Path(faststy.__file__).parents[1], Path.cwd()):
        if (root / "benchmarks" / "_bench.py").is_file():
            return root / "benchmarks"
    raise FaststyError(
        "the benchmark suites are not installed: they come with the sources; "
        "go to a checkout of faststy and run faststy bench there"
    )


def _shown(cases: Iterable[Any], total: int) -> Iterable[Any]:
    """`cases`, with a bar on a terminal and otherwise a line for each, on standard error."""
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        for number, case in enumerate(cases, 1):
            click.echo(f"[{number}/{total}] {case}", err=True)
            yield case
        return
    columns = (MofNCompleteColumn(), TimeElapsedColumn(), "{task.description}")
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=total)
        for number, case in enumerate(cases):
            progress.update(task, completed=number, description=str(case))
            yield case


def _print(title: str, rows: list[dict[str, str]], tables: Any) -> None:
    """A table: drawn on a terminal, in Markdown elsewhere."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        click.echo(f"\n{title}\n\n{tables.markdown(rows)}\n")
        return
    table = Table(*rows[0], title=title)
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        table.add_row(*row.values())
    console.print(table)
