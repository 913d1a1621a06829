"""The same style learned with several λ side by side, so that a person can pick by eye.

Each λ is a run of its own, in a folder of its own, and all are trained in turns, a slice at a time:
after the first round there is something to see of each. After every round the contact sheet, the
content/style curve and the page are written anew.
"""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from faststy.assets import photos as bundled_photos
from faststy.errors import FaststyError
from faststy.evaluation.measure import evaluate, load_photo, style_grams
from faststy.files import replacing, write_text
from faststy.model_file import load_model
from faststy.nn.encoder import load_encoder
from faststy.pictures import list_pictures, read_picture
from faststy.stylization.contact_sheet import labelled
from faststy.stylization.stylizer import Stylizer
from faststy.sweep.page import sweep_page
from faststy.sweep.tradeoff import Mark, tradeoff_picture
from faststy.tensors import device_named
from faststy.training.config import TrainConfig
from faststy.training.distributed import workers
from faststy.training.folder import refuse_another, refuse_closed, refuse_sources
from faststy.training.log import Progress
from faststy.training.loop import train
from faststy.training.picture_cache import remove_cache

SLICES = 4  # of each run, at most,
LEAST_SLICE = 20.0  # seconds: to go on with a run takes some, too
JUDGED = 8  # photos that the distances are the means over,
JUDGED_SIZE = 384  # px, painted at this short side
SHOWN = 4  # photos on the sheet,
SHOWN_SIZE = 320  # px, squares
SHEET, CURVE, PAGE = "contact_sheet.png", "curve.png", "sweep.html"


@dataclass(frozen=True)
class Point:
    """What one λ has come to: means over photos, of the pictures that a user gets."""

    style_weight: float
    run: Path
    model: Path
    steps: int
    content: float  # relative distance from the photo, see `faststy.evaluation.measure.Scores`
    style: float  # and from the style
    lost: float  # share of the picture where most content is gone


@dataclass(frozen=True)
class SweepResult:
    """The λ that there is something of, and which of them is suggested."""

    out: Path
    points: tuple[Point, ...]
    suggested: float | None
    events: tuple[str, ...]  # what went wrong and what was done, in words, with the λ
    skipped: dict[Path, str]
    finished: bool

    @property
    def sheet(self) -> Path:
        return self.out / SHEET

    @property
    def curve(self) -> Path:
        return self.out / CURVE

    @property
    def page(self) -> Path:
        return self.out / PAGE


OnProgress = Callable[[str, Progress], None]


def sweep(
    config: TrainConfig,
    style_weights: Iterable[float] | None = None,
    on_progress: OnProgress | None = None,
    *,
    resume: bool = False,
) -> SweepResult:
    """Train the style of `config` once for each λ; its length is that of each run.

    Args:
        config: settings of all runs but `style_weight`; `out` is the folder of the sweep.
        style_weights: the λ; None, with `resume`, are those of the sweep that is gone on with.
        on_progress: called with which run it is, in words, and the progress of the whole sweep,
            with the run's events named after its λ.
        resume: go on with the sweep in `out`; λ can be added, and the runs made longer.

    SIGINT and SIGTERM save a checkpoint and return with `finished=False`.

    Raises:
        FaststyError: nothing to train on, λ that cannot be used, a folder that holds something else
            or has other settings, several workers.
    """
    if workers() > 1:
        raise FaststyError(
            "a sweep runs in one process, not under torchrun; start it without, or give each GPU a "
            "faststy train of its own"
        )
    if style_weights is not None:
        style_weights = list(style_weights)
    out = Path(config.out)
    refuse_closed(out)
    refuse_sources(out, config)
    record = _Record.opened(out, config, style_weights, resume=resume)
    runs = [
        replace(
            config,
            style_weight=weight,
            out=str(run_folder(out, weight)),
            cache=config.cache or str(out / "cache"),
        )
        for weight in record.style_weights
    ]
    for run in runs:  # those that are done, too, and before anything is written
        refuse_another(Path(run.out), run, resume=True)
    events: dict[str, None] = {}
    skipped: dict[Path, str] = {}
    began = time.monotonic()
    parts = [record.done.get(_key(run.style_weight), 0.0) for run in runs]

    def result(finished: bool) -> SweepResult:
        points = tuple(record.points)
        chosen = suggest(points).style_weight if points else None
        return SweepResult(out, points, chosen, tuple(events), skipped, finished)

    begun = False
    photos: list[Path] = []  # to judge by, chosen when there is something to judge

    def begin() -> None:
        nonlocal begun
        record.write()
        config.absolute().write(out / "config.toml")
        begun = True

    for until in _ends(config):
        for i, run in enumerate(runs):
            if record.done.get(_key(run.style_weight), 0.0) >= until:
                continue
            name = f"λ {run.style_weight:g}"

            def show(progress: Progress, i: int = i, name: str = name) -> None:
                if not begun:  # now it is known that all of it can be trained
                    begin()
                parts[i] = progress.fraction
                fraction, passed = sum(parts) / len(parts), time.monotonic() - began
                if on_progress is not None:
                    named = tuple(f"{name}: {event}" for event in progress.events)
                    progress = replace(progress, fraction=fraction, seconds=passed, events=named)
                    on_progress(f"{name}, {i + 1} of {len(runs)}", progress)

            try:
                done = train(run, show, resume=True, until=until)
            except FaststyError:
                if not record.path.exists():  # nothing was begun: leave nothing behind
                    remove_cache(out / "cache")
                    with suppress(OSError):
                        out.rmdir()
                raise
            events |= {f"{name}: {event}": None for event in done.events}
            skipped |= done.skipped
            if done.interrupted:
                return result(finished=False)
            parts[i] = record.done[_key(run.style_weight)] = until
            record.write()
        if not begun:  # nothing was left to train, but the length may be another one
            begin()
        if record.shown < record.least:
            photos = photos or _photos(config, JUDGED)
            record.points = _judge(runs, config, photos)
            shown = min(SHOWN, len(photos))
            try:
                _show(record, config, [photos[i * len(photos) // shown] for i in range(shown)])
            except FaststyError as error:  # it costs the next slices nothing
                events[f"{error}; sweep --resume makes it again"] = None
            else:
                record.shown = record.least
            record.write()
    if config.cache is None:
        remove_cache(out / "cache")  # only needed to go on
    return result(finished=True)


def run_folder(out: Path, style_weight: float) -> Path:
    return out / f"style-weight-{_key(style_weight)}"


def suggest(points: Sequence[Point]) -> Point:
    """The point of the curve that is nearest to the best of both, each scaled to its range.

    That is the compromise nearest to the utopia point (Yu 1973); of equals the weakest style.
    """
    content, style = [p.content for p in points], [p.style for p in points]

    def distance(point: Point) -> float:
        return math.hypot(_scaled(point.content, content), _scaled(point.style, style))

    return min(points, key=lambda point: (round(distance(point), 9), point.style_weight))


def _scaled(value: float, values: Sequence[float]) -> float:
    low, high = min(values), max(values)
    return (value - low) / (high - low) if high > low else 0.0


def _key(style_weight: float) -> str:
    return f"{style_weight:.12g}"


def _ends(config: TrainConfig) -> list[float]:
    """Shares of each run that are done at the end of each round."""
    count = SLICES
    if config.seconds_budget is not None:
        count = max(1, min(SLICES, int(config.seconds_budget / LEAST_SLICE)))
    return [(i + 1) / count for i in range(count)]


# -- what a sweep remembers --------------------------------------------------------------------


@dataclass
class _Record:
    """sweep.json: the λ, how far each has come, and the numbers of the last round."""

    path: Path
    style_weights: list[float]
    length: list[float | None]
    done: dict[str, float]
    shown: float  # share of the runs that is on the page
    points: list[Point]

    @property
    def least(self) -> float:
        """The share that is done of every run."""
        return min(self.done.get(_key(weight), 0.0) for weight in self.style_weights)

    @classmethod
    def opened(
        cls,
        out: Path,
        config: TrainConfig,
        style_weights: Sequence[float] | None,
        *,
        resume: bool,
    ) -> _Record:
        """Begin a sweep in `out`, or go on with it. Raises FaststyError."""
        path, length = out / "sweep.json", [config.steps, config.seconds_budget]
        values: dict[str, Any] = {}
        if style_weights:
            _checked(style_weights)  # before the folder: a slip there is no reason for another one
        if path.exists():
            if not resume:
                raise FaststyError(
                    f"{out}: holds a sweep; resume it (--resume, or resume=True) or choose another "
                    "out folder"
                )
            values = _read(path)
        elif (out / "config.toml").exists():
            raise FaststyError(
                f"{out}: holds a training run, not a sweep; choose another out folder"
            )
        try:
            known = values.get("style_weights") or ()
            weights = _checked([*known, *(style_weights or ())])
        except (TypeError, ValueError) as error:
            raise FaststyError(f"{path}: damaged; choose another out folder") from error
        if len(config.style) != 1:
            raise FaststyError("a sweep takes one style, a picture or a folder of them")
        if config.style_share is not None:
            raise FaststyError("style-share moves λ by itself; a sweep has no use for it")
        record = cls(path, weights, list(length), {}, 0.0, [])
        try:
            same_length = values.get("length") == record.length
            same_weights = values.get("style_weights") == weights
            if same_length:
                record.done = {
                    key: float(share)
                    for key, share in values["done"].items()
                    if (run_folder(out, float(key)) / "model.safetensors").exists()
                }
            whole = len(record.done) == len(values.get("done", ()))  # no model was removed
            whole = whole and all((out / name).exists() for name in (SHEET, CURVE, PAGE))
            points = [_point(out, **point) for point in values.get("points", ())]
            whole = whole and [point.style_weight for point in points] == weights
            if same_length and same_weights and whole:
                record.shown, record.points = float(values["shown"]), points
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise FaststyError(f"{path}: damaged; choose another out folder") from error
        return record

    def write(self) -> None:
        points = [{**asdict(p), "run": str(p.run), "model": str(p.model)} for p in self.points]
        values = {
            "style_weights": self.style_weights,
            "length": self.length,
            "done": self.done,
            "shown": self.shown,
            "points": points,
            "suggested": suggest(self.points).style_weight if self.points else None,
        }
        write_text(self.path, json.dumps(values, indent=1, ensure_ascii=False) + "\n")


def _read(path: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        values = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(values, dict):
            return values
    raise FaststyError(f"{path}: damaged or not of a sweep; choose another out folder")


def _point(out: Path, style_weight: float, run: str, model: str, **numbers: Any) -> Point:
    """A recorded point, in the folder that the sweep is in now. Raises TypeError, ValueError."""
    if not all(map(math.isfinite, numbers.values())):
        raise ValueError("a number that is none")
    folder = run_folder(out, style_weight)
    return Point(style_weight, folder, folder / Path(model).name, **numbers)


def _checked(style_weights: Any) -> list[float]:
    """Finite, positive, from small to large and each once. Raises FaststyError."""
    weights = sorted({float(_key(float(weight))) for weight in style_weights})
    if not weights:
        raise FaststyError("style-weights are missing; give some λ, like 5,15,45")
    if not all(0 < weight < math.inf for weight in weights):
        raise FaststyError("style-weights must be numbers above 0, like 5,15,45")
    return weights


# -- what there is to see ----------------------------------------------------------------------


def _photos(config: TrainConfig, count: int) -> list[Path]:
    """`count` photos that can be judged, or fewer, spread over those that were trained on.

    In place of one that cannot be read, or is too small, stands the next.
    """
    every = bundled_photos() if config.content is None else list_pictures(Path(config.content))
    count = min(count, len(every))
    tried: dict[Path, bool] = {}
    for i in range(count):
        place = i * len(every) // count
        for path in itertools.chain(every[place:], every[:place]):
            if path not in tried:
                tried[path] = _can_be_judged(path)
                if tried[path]:
                    break
    return [path for path, usable in tried.items() if usable]


def _can_be_judged(path: Path) -> bool:
    with suppress(FaststyError):
        load_photo(path, JUDGED_SIZE)
        return True
    return False


def _judge(runs: Sequence[TrainConfig], config: TrainConfig, photos: Sequence[Path]) -> list[Point]:
    device = device_named(config.device)
    encoder = load_encoder(config.encoder).to(device)
    grams = style_grams(Path(config.style[0]), config.style_size, encoder, device)
    points = []
    for run in runs:
        folder = Path(run.out)
        path = folder / "model.safetensors"
        model = load_model(path)
        name = model.info.styles[0]
        found = evaluate(
            model, photos, {name: grams}, encoder, device, size=JUDGED_SIZE, motion=False
        )
        scores = found.mean(repaired=model.repairer is not None)
        assert scores is not None
        steps, seen = model.info.steps, (scores.content, scores.style, scores.lost)
        points.append(Point(run.style_weight, folder, path, steps, *seen))
    return points


def _show(record: _Record, config: TrainConfig, photos: Sequence[Path]) -> None:
    """Write the contact sheet, the curve and the page."""
    out, points = record.path.parent, record.points
    chosen = suggest(points)
    marks = [Mark(p.content, p.style, p.style_weight, p == chosen) for p in points]
    sheet = contact_sheet(points, photos, config.device)
    _save(sheet, out / SHEET)
    _save(tradeoff_picture(marks), out / CURVE)
    write_text(out / PAGE, sweep_page(config, points, chosen, sheet, marks, record.least))


def contact_sheet(points: Sequence[Point], photos: Sequence[Path], device: str) -> Image.Image:
    """A row per photo that can be read: the photo, then painted with each λ."""
    cells = []
    stylizers = [Stylizer.load(point.model, device) for point in points]
    for path in photos:
        try:
            rgb = read_picture(path).in_srgb().rgb
        except FaststyError:
            continue
        photo = ImageOps.fit(rgb, (SHOWN_SIZE, SHOWN_SIZE), Image.Resampling.LANCZOS)
        cells.append((path.stem, photo))
        for point, stylizer in zip(points, stylizers, strict=True):
            cells.append((f"style weight {point.style_weight:g}", stylizer(photo)))
    if not cells:
        raise FaststyError("none of the photos can be read any more, so there is no sheet")
    return labelled(cells, columns=len(points) + 1)


def _save(picture: Image.Image, path: Path) -> None:
    with replacing(path) as file:
        picture.save(file, format="PNG")
