"""The training run, top to bottom."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor

import faststy
from faststy.assets import photos as bundled_photos
from faststy.errors import FaststyError
from faststy.model_file import Model, ModelInfo, save_model
from faststy.nn.encoder import load_encoder
from faststy.pictures import style_name
from faststy.tensors import device_named, is_out_of_memory
from faststy.training.checkpoint import (
    Position,
    Tensors,
    capture,
    checkpoint_path,
    decode,
    encode,
    fitting,
    newest_checkpoint,
    restore,
    save_checkpoint,
)
from faststy.training.chore import Chore
from faststy.training.config import TrainConfig
from faststy.training.crops import whole
from faststy.training.dataset import Pictures, generator, prefetch, random_crops
from faststy.training.distributed import Alone, default_batch, joined
from faststy.training.draws import Draws
from faststy.training.folder import (
    Claim,
    open_run,
    recorded_batch,
    refuse_another,
    refuse_closed,
    refuse_lost,
    refuse_sources,
)
from faststy.training.guards import Guards
from faststy.training.log import Log, Progress
from faststy.training.pairs import Pairs
from faststy.training.picture_cache import PictureCache, remove_cache
from faststy.training.preview import paint_preview, rows_of
from faststy.training.report import write_report
from faststy.training.schedule import Schedule
from faststy.training.signals import stop_signals
from faststy.training.step import StyleTarget, Trainer
from faststy.training.style_weight import StyleWeight, style_share
from faststy.training.tensorboard import Events
from faststy.training.warm_start import start

PREVIEW_EVERY = 10.0  # seconds
REPORT_EVERY = 30.0
LOG_EVERY = 0.5
LOG_OFTEN = 3600.0  # seconds of a run; then ever less often: the report reads all lines each time
PHOTO_ZOOM = (1.0, 2.2)  # photos are shown to the generator scaled down by these factors
PREVIEW_PHOTOS = 3
START_PHOTOS = 8  # crops that the styles to begin as are compared on
LAST_PHOTOS = 8  # that the model is judged on before it is saved, each as a whole, in every style
LOOK = 0.3  # of the time that a picture takes in a preview, where it is larger, takes one of these
LICENSE = "The weights are yours; the style picture keeps the terms that it has."


@dataclass(frozen=True)
class TrainResult:
    """Where the run is and what it took.

    Attributes:
        run: its folder.
        model: the file for `Stylizer.load`; an interrupted run may not have written it.
        steps: done, of the whole run.
        seconds: of the whole run, parts before a resume included.
        images_per_second: crops learned a second, in this call.
        skipped: pictures that could not be used, with the reason.
        skipped_steps: updates that were left out, as they were not finite.
        events: what went wrong and what was done, in words.
        finished: whether all of the run is done.
        interrupted: whether a signal ended it.
    """

    run: Path
    model: Path
    steps: int
    seconds: float
    images_per_second: float
    skipped: dict[Path, str]
    skipped_steps: int = 0
    events: tuple[str, ...] = ()
    finished: bool = True
    interrupted: bool = False


@contextmanager
def _as_it_starts() -> Iterator[None]:
    """torch as it is at its start, whatever a caller has switched: gradients, dtypes."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with (
            torch.inference_mode(False),
            torch.autocast("cpu", enabled=False),
            torch.autocast("cuda", enabled=False),
        ):
            yield
    finally:
        torch.set_default_dtype(before)


@_as_it_starts()
def train(
    config: TrainConfig,
    on_progress: Callable[[Progress], None] | None = None,
    *,
    resume: bool = False,
    until: float = 1.0,
) -> TrainResult:
    """Train the styles of `config` and leave the run in the folder `config.out`.

    With `resume`, goes on from the run's newest whole checkpoint; on one CPU the result has the
    same bytes as that of an undisturbed run of as many steps. SIGINT and SIGTERM save a checkpoint
    and return with `finished=False`; so does having done `until` of the run, above 0 and 1 at most,
    which leaves the model that there is by then, too. What goes wrong on the way is answered and
    told in words: see `guards`, `checkpoint` and `picture_cache`.

    Under torchrun every worker calls this, takes its samples of each batch, and returns; the first
    one writes the files and tells the progress: see `distributed`.

    Raises:
        FaststyError: nothing to train on, an unwritable folder, a run that is already there or has
            other settings, a worker that was lost, too little memory, an `until` out of range.
    """
    if not 0 < until <= 1:
        raise FaststyError(f"until is {until!r}; it must be above 0, and 1 at most")
    refuse_closed(Path(config.out))
    batch = config.batch or (recorded_batch(Path(config.out)) if resume else None)
    batch = batch or default_batch(config.device)
    config = replace(config, batch=batch)
    try:
        with (
            joined(batch, config.out, config.device) as world,
            closing(Claim(Path(config.out))) as claim,
        ):
            return _train(config, batch, on_progress, world, claim, resume, until)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        # Nothing is saved now: a step that is done by half is none of an undisturbed run.
        kept = checkpoint_path(Path(config.out)).exists()
        later = "resume the run (--resume, or resume=True) when there is more, or " if kept else ""
        raise FaststyError(
            f"not enough memory for steps of {batch} crops of {config.size} px with the "
            f"{config.model} model; {later}use a smaller batch, size or model and another out "
            "folder"
        ) from error


def _train(
    config: TrainConfig,
    batch: int,
    on_progress: Callable[[Progress], None] | None,
    world: Alone,
    claim: Claim,
    resume: bool,
    until: float,
) -> TrainResult:
    began = time.monotonic()
    run = Path(config.out)
    if world.leads:
        claim.take()
    model_path, checkpoint = run / "model.safetensors", checkpoint_path(run)
    refuse_sources(run, config)
    refuse_another(run, config, resume=resume)
    refuse_lost(run)
    device = device_named(world.device(config.device))
    if device.type not in ("cpu", "cuda"):
        raise FaststyError(f"device {config.device!r} cannot train, only paint; use cpu or cuda")
    events = Events(config.tensorboard and world.leads)

    cache = PictureCache(Path(config.cache or run / "cache"), always=config.cache is not None)
    photos = _content(config, cache)
    encoder = load_encoder(config.encoder).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    sources = [Pictures.found(Path(style), config.style_size, cache) for style in config.style]
    styles = [StyleTarget.of(source, encoder, device) for source in sources]
    pairs = Pairs.found(Path(config.pairs), config.size, cache) if config.pairs else None
    trainer = Trainer(config, encoder, styles, device, world)
    schedule = Schedule(config)
    weight = StyleWeight(config, schedule, device)

    def photo_batch(step: int) -> Tensor:
        rng = generator(config.seed, step)
        return random_crops(photos, batch, config.size, PHOTO_ZOOM, rng, world.mine, device)

    def draw(step: int, photo: Tensor | None = None) -> Draws:
        """What the step takes in the stage of now, which threads may be some steps ahead of."""
        photo = photo_batch(step) if photo is None else photo
        pair = None
        if pairs is not None and stage != "repair":
            pair = pairs.batch(generator(config.seed, step, stream=2))
        drawn = trainer.draw(step, stage, photo, pair)
        return drawn.pinned() if device.type == "cuda" else drawn

    found = newest_checkpoint(checkpoint) if resume and world.leads else None
    began_as = None
    if found is None and world.leads:
        rng = generator(config.seed, 0)
        photo = random_crops(photos, START_PHOTOS, config.size, PHOTO_ZOOM, rng)
        began_as = start(trainer, config.base, photo.to(device))
    guards = Guards(trainer)  # the first state that it can go back to is this one
    position, damage = Position(0, 0.0), None
    idle = 0.0  # seconds of the whole run before a first step
    style_weight = weight.at(0.0)  # λ of the last step, also where all had been taken before

    def load(position: Position, tensors: Tensors) -> None:
        nonlocal idle, style_weight
        restore(tensors, trainer.nets, trainer.optimisers)
        memory = dict(position.memory)
        trainer.repairer_pace = memory.pop("repairer_pace", 1.0)
        idle = memory.pop("idle", 0.0)
        style_weight = memory.pop("λ", style_weight)
        with fitting():
            weight.load_state(memory.pop("style_weight", None), tensors)
            guards.load_state(memory, tensors)

    def state(step: int, seconds: float) -> tuple[Position, Tensors]:
        (memory, tensors), (own, rows) = guards.state(), weight.state()
        tensors |= rows | capture(trainer.nets, trainer.optimisers)
        own |= {"repairer_pace": trainer.repairer_pace, "idle": idle, "λ": style_weight}
        return Position(step, seconds, memory | own), tensors

    if found is not None:
        position, tensors, damage = found
        load(position, tensors)
    # The first worker's state is the others', too; none of them has made the folder before all are
    # here and have looked at it.
    begun = world.received(lambda: encode(*state(position.step, position.seconds)))
    if begun is not None:
        position, tensors = decode(begun)
        load(position, tensors)
    if world.leads:
        refuse_another(run, config, resume=resume)  # that was begun meanwhile
        open_run(run, config)  # only now: settings that cannot be trained leave nothing behind
        claim.take()
    # Without a checkpoint even what was told of step 0 is told again.
    log = Log(run / "log.jsonl" if world.leads else None, position.step if found else -1)
    if found is None and log.undone:
        log.tell(0, f"no checkpoint was saved; after {log.undone} steps, the run begins anew")
    if damage is not None:
        log.tell(position.step, damage)
    if began_as is not None:
        log.tell(0, began_as)

    def seconds() -> float:
        return time.monotonic() - began + position.seconds

    def save() -> None:
        save_checkpoint(checkpoint, *state(step, seconds()))

    def save_at_last() -> bool:
        log.over = True
        return log.attempt(step, "checkpoint", save)

    def show() -> None:
        _show(trainer, photos, run, repaired=trainer.repairs() and sound)

    def grow() -> None:
        write_report(run, growing=True)

    step = first = position.step
    stage, sound = config.stages[0], True  # whether the repairer may be shipped
    loop_began, last_step = time.monotonic(), step
    last_log = loop_began
    saves, previews = Chore(config.checkpoint_every), Chore(PREVIEW_EVERY, at_once=True)
    reports = Chore(REPORT_EVERY, at_once=True)
    look = LOOK * LAST_PHOTOS * len(styles) / rows_of(PREVIEW_PHOTOS, len(styles))  # previews
    style_weights: list[float] = []  # since the last line of the log

    def write_line(*, last: bool = False) -> None:
        """Tell what was learned since the last line, to the log and to whoever watches."""
        nonlocal last_step, last_log
        now = time.monotonic()
        speed = (step - last_step) * batch / max(now - last_log, 1e-6)
        last_step, last_log = step, now
        # After the last one the report is made anyway, and the preview once more at the very end.
        shown = not last and previews.due()
        shown = shown and log.attempt(step, "preview", previews.timed(show))
        preview = run / "preview.png" if shown else None
        means = log.means()
        if (share := style_share(config, fmean(style_weights), means)) is not None:
            means["style_share"] = share
        style_weights.clear()
        progress = Progress(
            stage, step, min(fraction, until), seconds(), speed, style_weight, means, preview,
            log.untold(), trainer.learning_rate(stage),
        )  # fmt: skip
        log.write(progress)
        log.attempt(step, "TensorBoard events", partial(events.write, progress))
        if not last and reports.due():
            log.attempt(step, "report", reports.timed(grow))
        if on_progress is not None:
            try:
                on_progress(progress)
            except BaseException:  # a display that fails costs no steps
                save_at_last()
                raise

    draws, fraction = _ahead(draw, step, device), 0.0
    idle += seconds() - position.seconds
    if (told := schedule.complaint(idle)) is not None:
        log.tell(step, told)
    with stop_signals() as stopped, closing(draws), events.begin(run, step):
        while True:
            # What the end will cost is a guess that may fall; the run does not go back for it.
            last = (2 + look) * previews.cost + 2 * reports.cost
            fraction = max(fraction, schedule.fraction(step, seconds(), idle, last))
            fraction, interrupted = world.agree(fraction, stopped.is_set())
            if interrupted or (fraction >= until and step > 0):
                break
            fraction = min(fraction, step)  # a budget too short for anything still takes one step
            stage = schedule.stage(fraction)
            rate = schedule.learning_rate(fraction, step) * guards.memory.rate
            trainer.set_learning_rate(rate, guards.memory.pace)
            try:
                drawn = next(draws)
                if drawn.stage != stage:  # the stage has just begun
                    drawn = draw(step, drawn.photo)
            except FaststyError:  # no picture is left
                save_at_last()
                raise
            drawn, style_weight = drawn.to(device), weight.at(fraction)
            terms = trainer.take(drawn, style_weight)
            step += 1
            if world.leads:
                log.add(stage, terms)
                style_weights.append(style_weight)
            for event in guards.watch(step, stage, terms, drawn.photo):
                log.tell(step, event)
            for event in weight.watch(step, fraction, terms):
                log.tell(step, event)
            if cache.trouble is not None and cache.trouble not in log.events:
                log.tell(step, cache.trouble)

            due = LOG_EVERY * max(1.0, seconds() / LOG_OFTEN)
            if world.leads and (time.monotonic() - last_log >= due or step == first + 1):
                write_line()
            if saves.due():
                log.attempt(step, "checkpoint", saves.timed(save))
        if world.leads and step > last_step:
            write_line(last=True)
    speed = (step - first) * batch / max(time.monotonic() - loop_began, 1e-6)

    def result() -> TrainResult:
        return TrainResult(
            run, model_path, step, seconds(), speed, skipped, int(trainer.skipped),
            tuple(log.events), finished, interrupted,
        )  # fmt: skip

    saved = save_at_last()  # what comes now may be killed, or find no picture left
    finished = until >= 1 and not interrupted
    if world.leads and not (saved or finished or interrupted):  # a model alone cannot go on
        raise FaststyError(
            f"{run}: the checkpoint cannot be saved; with room for it, the run can be resumed "
            "(--resume, or resume=True)"
        )
    if finished:  # also when all steps were done before it was killed
        seen = [whole(photo, config.size).to(device) for photo in _spread(photos, LAST_PHOTOS)]
        settled, sound = guards.settle(step, seen)
        for event in settled:
            log.tell(step, event)
        if settled:  # the nets may be those of an earlier step now
            save_at_last()
    given: list[Pictures | Pairs] = [photos, *sources, *([] if pairs is None else [pairs])]
    own = {str(path): why for source in given for path, why in source.skipped.items()}
    parts = map(json.loads, world.gathered(json.dumps(own).encode()))
    skipped = {Path(path): why for part in parts for path, why in part.items()}
    if not world.leads:
        return result()
    if interrupted:
        log.attempt(step, "report", lambda: write_report(run))
        return result()
    repaired = trainer.repairs() and sound
    learned = sum(path not in skipped for path in photos.paths)
    model = _model(trainer, config, learned, step, style_weight, repaired=repaired)
    try:
        save_model(model, model_path)
    except FaststyError as error:
        raise FaststyError(
            f"{error}; with that mended, the run can be resumed (--resume, or resume=True)"
        ) from error
    log.attempt(step, "preview", show)
    log.attempt(step, "report", lambda: write_report(run))
    if finished and config.cache is None:
        remove_cache(run / "cache")  # only needed to go on
    return result()


# -- the pieces --------------------------------------------------------------------------------


def _ahead(
    draw: Callable[[int], Draws], first: int, device: torch.device
) -> Generator[Draws, None, None]:
    """`draw(first), draw(first + 1), …`, by threads while `device` is busy.

    On a CPU a second thread would bring OpenMP threads of its own, and they fight for the cores.
    """
    if device.type == "cpu":
        return (draw(step) for step in itertools.count(first))
    return prefetch(draw, first)


def _content(config: TrainConfig, cache: PictureCache) -> Pictures:
    """The photos of a run, decoded at a size that the largest zoom needs."""
    short_side = round(config.size * PHOTO_ZOOM[1])
    if config.content is None:
        return Pictures(bundled_photos(), short_side, cache)
    folder = Path(config.content)
    if not folder.is_dir():
        raise FaststyError(f"{folder}: content must be a folder of photos")
    return Pictures.found(folder, short_side, cache)


def _show(trainer: Trainer, photos: Pictures, run: Path, *, repaired: bool) -> None:
    chosen = _spread(photos, PREVIEW_PHOTOS)
    repairer = trainer.repairer if repaired else None
    paint_preview(trainer.average, repairer, chosen, trainer.device, run / "preview.png")


def _spread(photos: Pictures, count: int) -> list[Tensor]:
    """Some of the photos, uint8 [3, H, W], `count` at most."""
    count = min(count, len(photos))
    return [photos.get(i * len(photos) // count) for i in range(count)]


def _model(
    trainer: Trainer,
    config: TrainConfig,
    photos: int,
    steps: int,
    style_weight: float,
    *,
    repaired: bool,
) -> Model:
    repairer = trainer.repairer if repaired else None
    info = ModelInfo(
        styles=style_names(config.style),
        generator=asdict(trainer.average.config),
        repairer=repairer.config if repairer is not None else None,
        style_weight=style_weight,
        size=config.size,
        style_size=config.style_size,
        steps=steps,
        encoder=config.encoder.split(":")[0],
        content=f"{photos} photos" + ("" if config.content else " bundled with faststy"),
        license=LICENSE,
        version=faststy.__version__,
    )
    return Model(trainer.average, repairer, info)


def style_names(styles: tuple[str, ...]) -> list[str]:
    """File and folder names without suffix, told apart by a number where they are the same."""
    names: list[str] = []
    for style in styles:
        name = stem = style_name(Path(style))
        number = 1
        while name in names:
            number += 1
            name = f"{stem}-{number}"
        names.append(name)
    return names
