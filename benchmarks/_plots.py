"""Charts of a report, as PNG and SVG: a roofline, and for each suite bars of its ratios.

Those of ops are a chart for each dtype.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from _bench import OURS, Report
from _timing import FEWEST_ROUNDS

from faststy.files import write_bytes

COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377")
ROOFLINE = "roofline"
MARKS = "os^Dvp*hX"


def draw(report: Report, folder: Path) -> list[Path]:
    """Write all charts that the report has numbers for into `folder`, and give their paths."""
    import matplotlib as mpl

    # The same numbers give the same bytes; letters stay letters.
    style = {"svg.hashsalt": "faststy", "svg.fonttype": "none", "font.size": 9}
    written = []
    with mpl.rc_context(style):
        for name, results in charts(report).items():
            drawn = _roofline if name == ROOFLINE else _bars
            written += _save(drawn(results, report), folder / name)
    return written


def charts(report: Report) -> dict[str, list[Any]]:
    """The charts that a report has numbers for: their names, and the results in each."""
    rooflined = [r for r in report["cases"] if r["operations"] and r["bytes"]]
    found = {ROOFLINE: rooflined} if rooflined else {}
    for r in report["cases"]:
        if r["ratios"]:
            found.setdefault(f"ratios-{_chart(r)}", []).append(r)
    return found


def _chart(result: Any) -> str:
    """The bar chart that a result is in; ops are too many for one."""
    return f"ops-{result['dtype']}" if result["suite"] == "ops" else str(result["suite"])


def _roofline(shown: list[Any], report: Report) -> Any:
    """Operations a second over operations per byte, below what the machine was measured to do."""
    figure, axes = _figure(8, 5.5)
    copy = report["rates"]["copy"]
    x = np.array([r["operations"] / r["bytes"] for r in shown])
    span = np.geomspace(x.min() / 3, x.max() * 3, 200)
    for name, colour in zip(dict.fromkeys(r["dtype"] for r in shown), COLOURS, strict=False):
        if name in report["rates"]:
            roof = np.minimum(span * copy, report["rates"][name])
            axes.plot(span, roof / 1e9, color=colour, label=f"{name}: copy, matrix product")
    kinds = list(dict.fromkeys(_kind(r) for r in shown))
    for i, kind in enumerate(kinds):
        of_kind = [r for r in shown if _kind(r) == kind]
        for name, face in (("eager", "none"), (OURS, None)):
            points = [
                (r["operations"] / r["bytes"], r["operations"] / r["median"][name] / 1e9)
                for r in of_kind
                if name in r["median"]
            ]
            if points:
                colour = COLOURS[i % len(COLOURS)]
                axes.scatter(
                    *zip(*points, strict=True),
                    s=28,
                    marker=MARKS[i % len(MARKS)],
                    edgecolors=colour,
                    facecolors=face or colour,
                    label=kind if name == OURS else None,
                )
    axes.set(xscale="log", yscale="log", xlabel="operations per byte", ylabel="GFLOP/s")
    axes.set_title(f"{_machine(report)}: filled ours, hollow eager PyTorch")
    axes.legend(fontsize=7)
    axes.grid(alpha=0.3)
    return figure


def _kind(result: Any) -> str:
    return str(result["name"].split(" [")[0]) if result["suite"] == "ops" else str(result["suite"])


def _bars(results: list[Any], report: Report) -> Any:
    """How many times as long each baseline takes, with the interval of the ratio, if it has one."""
    baselines = list(dict.fromkeys(name for r in results for name in r["ratios"]))
    figure, axes = _figure(9, 1.2 + 0.16 * len(results) * (len(baselines) + 0.6))
    height = 1 / (len(baselines) + 0.6)
    for i, name in enumerate(baselines):
        places = [k + i * height for k, r in enumerate(results) if name in r["ratios"]]
        found = [r["ratios"][name] for r in results if name in r["ratios"]]
        medians = np.array([f["median"] for f in found])
        error = np.array([[f["median"] - f["low"], f["high"] - f["median"]] for f in found]).T
        if len(results[0]["samples"][OURS]) < FEWEST_ROUNDS:
            error = np.zeros_like(error)
        axes.barh(
            places,
            medians - 1,
            height,
            left=1,
            xerr=np.maximum(error, 0),  # a median may lie at the very end of its interval
            color=COLOURS[i % len(COLOURS)],
            label=name,
            error_kw={"lw": 0.8},
        )
    axes.axvline(1, color="black", lw=0.8)
    axes.set_ylim(0 - height, len(results))
    axes.set_yticks(np.arange(len(results)) + 0.5 - 0.8 * height)
    axes.set_yticklabels([r["name"] for r in results], fontsize=7)
    axes.invert_yaxis()
    axes.set_xscale("log")
    what = "memory" if results[0]["unit"] == "B" else "time"
    axes.set_xlabel(f"times our {what} (right of 1: ours is better)")
    axes.set_title(f"{results[0]['suite']}: {_machine(report)}")
    axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    axes.grid(axis="x", which="both", alpha=0.3)
    return figure


def _machine(report: Report) -> str:
    about = report["machine"]
    return f"{about['device']}, {about['threads']} threads, {about['date'][:10]}"


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure  # no pyplot: nothing global, no window

    figure = Figure((width, height), layout="constrained")
    return figure, figure.add_subplot()


def _save(figure: Any, stem: Path) -> list[Path]:
    paths = []
    stem.parent.mkdir(parents=True, exist_ok=True)
    for suffix, metadata in ((".png", {"Software": None}), (".svg", {"Date": None})):
        data = io.BytesIO()
        figure.savefig(data, format=suffix[1:], dpi=120, metadata=metadata)
        write_bytes(stem.with_suffix(suffix), data.getvalue())
        paths.append(stem.with_suffix(suffix))
    return paths
