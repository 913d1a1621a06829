"""The training run, top to bottom."""

from __future__ import annotations

import itertools
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

import torch
from torch import Tensor

import faststy
from faststy.assets import photos as bundled_photos
from faststy.errors import FaststyError
from faststy.files import remove_leftovers, write_text
from faststy.model_file import Model, ModelInfo, save_model
from faststy.nn.encoder import load_encoder
from faststy.tensors import device_named
from faststy.training.checkpoint import (
    Position,
    checkpoint_path,
    load_checkpoint,
    save_checkpoint,
)
from faststy.training.config import TrainConfig
from faststy.training.dataset import Pictures, generator, prefetch, random_crops
from faststy.training.pairs import Pairs
from faststy.training.preview import paint_preview
from faststy.training.report import write_report
from faststy.training.schedule import Schedule
from faststy.training.step import StyleTarget, Trainer

CHECKPOINT_EVERY = 15.0  # seconds
PREVIEW_EVERY = 10.0
LOG_EVERY = 0.5
PHOTO_ZOOM = (1.0, 2.2)  # photos are shown to the generator scaled down by these factors
PREVIEW_PHOTOS = 3
LICENSE = "The weights are yours; the style picture keeps the terms that it has."


@dataclass(frozen=True)
class Progress:
    """What a display needs to know; `terms` are means since the last report."""

    stage: str
    step: int
    fraction: float  # of the whole run, 0...1
    seconds: float
    images_per_second: float
    style_weight: float
    terms: dict[str, float]
    preview: Path | None = None


@dataclass(frozen=True)
class TrainResult:
    """Where the run is and what it took; `skipped` lists pictures that could not be read."""

    run: Path
    model: Path
    steps: int
    seconds: float
    images_per_second: float
    skipped: dict[Path, str]
    skipped_steps: int = 0  # whose loss was not finite
    finished: bool = True


def train(
    config: TrainConfig,
    on_progress: Callable[[Progress], None] | None = None,
    *,
    resume: bool = False,
) -> TrainResult:
    """Train the styles of `config` and leave the run in the folder `config.out`.

    With `resume`, goes on from the run's last checkpoint; on one machine the result has the same
    bytes as that of an undisturbed run of as many steps. SIGINT and SIGTERM save a checkpoint and
    return with `finished=False`.

    Raises:
        FaststyError: nothing to train on, an unwritable folder, a run that is already there.
    """
    began = time.monotonic()
    run = Path(config.out)
    model_path, checkpoint = run / "model.safetensors", checkpoint_path(run)
    _refuse_another(run, resume)
    device = device_named(config.device)

    photos = _content(config)
    encoder = load_encoder(config.encoder).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    sources = [Pictures.found(Path(style), config.style_size) for style in config.style]
    styles = [StyleTarget.of(source, encoder, device) for source in sources]
    pairs = Pairs.found(Path(config.pairs), config.size) if config.pairs else None
    trainer = Trainer(config, encoder, styles, device)
    schedule = Schedule(config)

    position = Position(0, 0.0)
    if resume and checkpoint.exists():
        position = load_checkpoint(checkpoint, trainer.nets, trainer.optimisers)
    _open_run(run, config)  # only now: settings that cannot be trained leave nothing behind
    began -= position.seconds
    log = _Log(run / "log.jsonl", position.step)

    def photo_batch(step: int) -> Tensor:
        rng = generator(config.seed, step)
        return random_crops(photos, config.batch, config.size, PHOTO_ZOOM, rng)

    def seconds() -> float:
        return time.monotonic() - began

    def save() -> None:
        save_checkpoint(checkpoint, Position(step, seconds()), trainer.nets, trainer.optimisers)

    step, first = position.step, position.step
    loop_began = last_log = last_checkpoint = time.monotonic()
    last_preview = -PREVIEW_EVERY
    preview_cost = 0.5  # seconds that the final preview and report will take; measured as it goes
    # On a CPU a second thread would bring OpenMP threads of its own, and they fight for the cores.
    if device.type == "cpu":
        batches = (photo_batch(i) for i in itertools.count(step))
    else:
        batches = prefetch(photo_batch, step)
    with _stop_signals() as stopped:
        while not stopped.is_set():
            fraction = schedule.fraction(step, seconds() + 2 * preview_cost)
            if fraction >= 1 and step > 0:
                break
            fraction = min(fraction, step)  # a budget too short for anything still takes one step
            stage = schedule.stage(fraction)
            style_weight = schedule.style_weight(fraction)
            trainer.set_learning_rate(schedule.learning_rate(fraction, step))
            photo = next(batches).to(device, non_blocking=True)
            if stage == "repair":
                terms = trainer.repair(step, photo, style_weight)
            else:
                pair = pairs.batch(generator(config.seed, step, stream=2)) if pairs else None
                adversarial = stage == "adversarial"
                terms = trainer.perceptual(step, photo, style_weight, pair, adversarial=adversarial)
            step += 1
            log.add(stage, terms)

            now = time.monotonic()
            if now - last_log >= LOG_EVERY or step in (first + 1, config.steps):
                last_log = now
                speed = (step - first) * config.batch / max(now - loop_began, 1e-6)
                preview = None
                if now - last_preview >= PREVIEW_EVERY:
                    preview = run / "preview.png"
                    _show(trainer, photos, run, stage)
                    preview_cost = time.monotonic() - now
                    last_preview = now
                progress = Progress(
                    stage, step, fraction, seconds(), speed, style_weight, log.means(), preview
                )
                log.write(progress)
                if on_progress is not None:
                    on_progress(progress)
            if now - last_checkpoint >= CHECKPOINT_EVERY:
                last_checkpoint = now
                save()
    batches.close()
    speed = (step - first) * config.batch / max(time.monotonic() - loop_began, 1e-6)
    skipped = {p: why for source in (photos, *sources) for p, why in source.skipped.items()}
    if stopped.is_set():
        save()
        return TrainResult(
            run, model_path, step, seconds(), speed, skipped, trainer.skipped_steps, finished=False
        )

    _show(trainer, photos, run, stage="repair" if "repair" in config.stages else "")
    save_model(_model(trainer, config, photos, step), model_path)
    write_report(run)
    save()
    return TrainResult(run, model_path, step, seconds(), speed, skipped, trainer.skipped_steps)


# -- the pieces --------------------------------------------------------------------------------


def _refuse_another(run: Path, resume: bool) -> None:
    """Do not write over another run."""
    if (run / "config.toml").exists() and not resume:
        raise FaststyError(
            f"{run}: holds a training run; go on with --resume or choose another --out"
        )


def _open_run(run: Path, config: TrainConfig) -> None:
    """Make the run folder, with the settings in it."""
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FaststyError(f"{run}: cannot be made a folder ({error.strerror})") from error
    for folder in (run, checkpoint_path(run).parent):
        remove_leftovers(folder)
    config.write(run / "config.toml")


def _content(config: TrainConfig) -> Pictures:
    """The photos of a run, decoded at a size that the largest zoom needs."""
    short_side = round(config.size * PHOTO_ZOOM[1])
    if config.content is None:
        return Pictures(bundled_photos(), short_side)
    folder = Path(config.content)
    if not folder.is_dir():
        raise FaststyError(f"{folder}: --content must be a folder of photos")
    return Pictures.found(folder, short_side)


def _show(trainer: Trainer, photos: Pictures, run: Path, stage: str) -> None:
    chosen = [
        photos.get(i * len(photos) // PREVIEW_PHOTOS)
        for i in range(min(PREVIEW_PHOTOS, len(photos)))
    ]
    repairer = trainer.repairer if stage == "repair" else None
    paint_preview(trainer.average, repairer, chosen, trainer.device, run / "preview.png")


def _model(trainer: Trainer, config: TrainConfig, photos: Pictures, steps: int) -> Model:
    repairer = trainer.repairer if "repair" in config.stages else None
    info = ModelInfo(
        styles=style_names(config.style),
        generator=asdict(trainer.average.config),
        repairer=repairer.config if repairer is not None else None,
        style_weight=config.style_weight,
        size=config.size,
        steps=steps,
        encoder=config.encoder.split(":")[0],
        content=f"{len(photos)} photos" + ("" if config.content else " bundled with faststy"),
        license=LICENSE,
        version=faststy.__version__,
    )
    return Model(trainer.average, repairer, info)


def style_names(styles: tuple[str, ...]) -> list[str]:
    """File and folder names without suffix, told apart by a number where they are the same."""
    names: list[str] = []
    for style in styles:
        # "," and ":" have a meaning where styles are mixed.
        name = stem = Path(style).resolve().stem.replace(",", "_").replace(":", "_")
        number = 1
        while name in names:
            number += 1
            name = f"{stem}-{number}"
        names.append(name)
    return names


class _Log:
    """`log.jsonl`: one object per report, terms averaged since the one before."""

    def __init__(self, path: Path, step: int) -> None:
        kept = []
        if path.exists():  # a resumed run drops what it will do again, and a torn last line
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    if json.loads(line)["step"] <= step:
                        kept.append(line)
                except (ValueError, KeyError, TypeError):
                    continue
        write_text(path, "".join(f"{line}\n" for line in kept))
        self.path = path
        self._stage = ""
        self._sums: dict[str, Tensor] = {}
        self._count: dict[str, int] = {}

    def add(self, stage: str, terms: dict[str, Tensor]) -> None:
        if stage != self._stage:  # terms of two stages are not averaged together
            self.means()
            self._stage = stage
        for name, value in terms.items():
            self._sums[name] = self._sums.get(name, torch.zeros_like(value)) + value
            self._count[name] = self._count.get(name, 0) + 1

    def means(self) -> dict[str, float]:
        means = {name: float(value) / self._count[name] for name, value in self._sums.items()}
        self._sums.clear()
        self._count.clear()
        return means

    def write(self, progress: Progress) -> None:
        entry = {k: v for k, v in asdict(progress).items() if k not in ("preview", "fraction")}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")


@contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set; a second signal acts as usual."""
    stopped = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def stop(number: int, frame: FrameType | None) -> None:
        stopped.set()
        for each, handler in previous.items():
            signal.signal(each, handler)

    for number in previous:
        signal.signal(number, stop)
    try:
        yield stopped
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
