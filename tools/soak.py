"""Short runs with settings that nobody should choose: none may end non-finite or dead.

    python tools/soak.py --runs 108 --out benchmarks/results

Every run draws its settings from its number: style, λ, learning rate (up to 450 times the usual
one), form and weight of the adversarial term, model, batch, precision and stages. What it leaves is
judged by painting the bundled photos: weights and paintings must be finite, and paintings must have
more than FLAT of the photos' contrast. Writes soak.json and soak.md; exit status 1 where a run
failed.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import random
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

import faststy
from faststy import assets
from faststy.errors import FaststyError
from faststy.files import write_text
from faststy.model_file import load_model
from faststy.training.config import STAGES, TrainConfig
from faststy.training.guards import FLAT
from faststy.training.loop import train
from faststy.training.picture_cache import load_tensor

STEPS = {"nano": 80, "fast": 40}
CHOICES: dict[str, tuple[Any, ...]] = {
    "style": tuple(sorted(assets.styles())),
    "style_weight": (0.1, 1.0, TrainConfig.style_weight, 150.0, 5000.0),
    "learning_rate": (5e-4, 2e-3, 1e-2, 5e-2, 0.2, 0.9),
    "adversarial": ("bce", "hinge", "lsgan"),
    "adversarial_weight": (0.0, 0.6, 20.0),
    "batch": (1, 2),
    "precision": ("float32", "bfloat16"),
    "stages": (STAGES[:1], STAGES[:2], STAGES, STAGES),
}
SIDE = 96  # px, short side of the photos that are painted at the end


@dataclass(frozen=True)
class Outcome:
    """What is left of a run."""

    settings: dict[str, Any]
    verdict: str  # "sound", "not finite", "flat", or the error
    contrast: float  # of the paintings, as a share of the photos': the least of all paintings
    skipped_steps: int
    events: list[str]
    seconds: float


def settings_of(number: int) -> dict[str, Any]:
    """The settings of a run. Every value of each setting comes up equally often."""
    drawn: dict[str, Any] = {"seed": number, "model": "fast" if number % 6 == 5 else "nano"}
    for name, values in CHOICES.items():
        turn, place = divmod(number, len(values))
        order = list(values)
        random.Random(f"{name} {turn}").shuffle(order)
        drawn[name] = order[place]
    return drawn


def soak(number: int, folder: Path) -> Outcome:
    """Train run `number` in `folder` and look at what it left."""
    drawn = settings_of(number)
    config = TrainConfig(
        **{**drawn, "style": (str(assets.styles()[drawn["style"]]),)},
        out=str(folder),
        steps=STEPS[drawn["model"]],
        size=64,
        style_size=96,
        device="cpu",
        checkpoint_every=1e9,
    )
    began = time.monotonic()
    try:
        result = train(config)
        if not result.finished:
            raise KeyboardInterrupt
        verdict, contrast = judged(result.model)
    except FaststyError as error:
        return Outcome(drawn, str(error), math.nan, 0, [], time.monotonic() - began)
    seconds = time.monotonic() - began
    return Outcome(drawn, verdict, contrast, result.skipped_steps, list(result.events), seconds)


@torch.no_grad()
def judged(path: Path) -> tuple[str, float]:
    """The verdict on a model file, and the least contrast of its paintings."""
    try:
        model = load_model(path)
    except FaststyError as error:  # weights that are not finite
        return str(error), math.nan
    least = math.inf
    for photo in assets.photos():
        x = load_tensor(photo, SIDE)[None].float().div(255)
        x = x.contiguous(memory_format=torch.channels_last)
        paintings = [model.generator(x)]
        if model.repairer is not None:
            lost, residual = model.repairer(paintings[0], x)
            paintings.append(model.repairer.apply_repair(paintings[0], lost, residual, 1.0))
        for painted in paintings:
            if not bool(painted.isfinite().all()):
                return "not finite", math.nan
            shown = painted.clamp(0, 1)  # what a picture file would hold
            least = min(least, float(shown.std((2, 3)).mean() / x.std((2, 3)).mean()))
    return ("sound" if least > FLAT else "flat"), least


def table(outcomes: list[Outcome], about: dict[str, str]) -> str:
    """The outcomes as Markdown."""
    bad = [o for o in outcomes if o.verdict != "sound"]
    ends = [(f"step {STEPS[o.settings['model']]}: ", o.events[-1:]) for o in outcomes]
    begun = sum(e[0].startswith(at) and "state of step 0," in e[0] for at, e in ends if e)
    answered = sum(any("back to the state" in event for event in o.events) for o in outcomes)
    lines = [
        "# Soak",
        "",
        f"{len(outcomes)} short runs of `tools/soak.py`: {len(bad)} ended non-finite or flat. In "
        f"{answered} the guards went back to an earlier state, in "
        f"{sum(o.skipped_steps > 0 for o in outcomes)} updates were skipped; {begun} ended back at "
        "their start, having learned nothing that was better.",
        "",
        ", ".join(f"{name} {value}" for name, value in about.items()) + ".",
        "",
        "Contrast: of the flattest painting, as a share of its photo's. Returns: to the last good "
        "state. Skipped: updates that were not finite.",
        "",
        "| # | model | style | λ | learning rate | adversarial | batch | precision | stages "
        "| returns | skipped | contrast | verdict |",
        "|--:|---|---|--:|--:|---|--:|---|--:|--:|--:|--:|---|",
    ]
    for o in outcomes:
        s = o.settings
        returns = sum("back to the state" in event for event in o.events)
        cells = [
            s["seed"], s["model"], s["style"], f"{s['style_weight']:g}", f"{s['learning_rate']:g}",
            f"{s['adversarial']} × {s['adversarial_weight']:g}", s["batch"],
            s["precision"], len(s["stages"]),
            returns, o.skipped_steps, f"{o.contrast:.2f}", o.verdict,
        ]  # fmt: skip
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def write(outcomes: list[Outcome], out: Path, core_seconds: float) -> None:
    """soak.json and soak.md in the folder `out`."""
    about = {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "device": f"{platform.machine()} CPU, {os.cpu_count()} cores",
        "faststy": faststy.__version__,
        "torch": torch.__version__,
        "Python": platform.python_version(),
        "core seconds": f"{core_seconds:.0f}",
    }
    out.mkdir(parents=True, exist_ok=True)
    rows = [{**vars(o), "contrast": o.contrast if math.isfinite(o.contrast) else None}
            for o in outcomes]  # fmt: skip
    data = json.dumps({"about": about, "runs": rows}, indent=1, ensure_ascii=False)
    write_text(out / "soak.json", data + "\n")
    write_text(out / "soak.md", table(outcomes, about))


def main() -> None:
    raw = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--runs", type=int, default=108)
    parser.add_argument("--first", type=int, default=0, help="number of the first run")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    began = time.process_time()
    outcomes = []
    for number in range(arguments.first, arguments.first + arguments.runs):
        with tempfile.TemporaryDirectory() as folder:
            outcome = soak(number, Path(folder) / "run")
        outcomes.append(outcome)
        print(f"{number} {outcome.verdict} {outcome.contrast:.2f}", flush=True)
        write(outcomes, arguments.out, time.process_time() - began)  # also if it is broken off
    sys.exit(any(outcome.verdict != "sound" for outcome in outcomes))


if __name__ == "__main__":
    main()
