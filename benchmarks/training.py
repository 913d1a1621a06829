"""Whole training steps: ours, ours in float32, ours with the ops off, the classic recipe.

A step is forward, backward and the optimisers' step on a batch of the bundled photos; on a CPU, not
on a GPU where other threads do it, also the drawing of what is random in it. On a GPU ours are CUDA
graphs, in all variants, as in training; the classic recipe is eager, as people run it: its launches
count. Ours is in the default precision, and so is what has the ops off (FASTSTY_IMPL=reference);
where the default is float32 there is no variant of that name. Before they are timed, the terms of
our first step are held against those of the reference in float32. The floor: what the convolutions
of our step compute, forward and backward, at the matrix rate of this machine in their precision.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from _bench import OURS, Case, Prepared, Wrong, variants
from _timing import Call
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from faststy import assets
from faststy.nn.encoder import load_encoder
from faststy.ops import dispatch
from faststy.training.config import BATCH, TrainConfig
from faststy.training.dataset import Pictures, generator, random_crops
from faststy.training.precision import precision_named
from faststy.training.step import StyleTarget, Trainer

VARIANTS = (OURS, "float32", "ops off", "classic")
STAGES = ("adversarial", "perceptual", "repair")
BATCHES = 8  # that rotate
STYLE_WEIGHT = 5.0
TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 5e-2}  # of the terms of the first step


class Job(NamedTuple):
    stage: str
    batch: int
    size: int

    def __str__(self) -> str:
        return f"{self.stage} step, {self.batch} × {self.size}²"


def jobs(device: torch.device) -> list[Job]:
    """All stages at the defaults, on a GPU in steps so large that they are not all launches, and,
    after the first, at the size that people know from the classic recipe."""
    batch, size = (64, 256) if device.type == "cuda" else (BATCH, TrainConfig.size)
    first, *others = (Job(stage, batch, size) for stage in STAGES)
    smaller = [Job("adversarial", 16, 256)] if device.type == "cuda" else []
    return [first, Job("adversarial", 4, 256), *others, *smaller]


def headline(device: torch.device) -> Job:
    return jobs(device)[0]


def batches(job: Job, device: torch.device) -> list[Tensor]:
    photos = Pictures(assets.photos(), 2 * job.size)
    return [
        random_crops(photos, job.batch, job.size, (1.0, 2.0), generator(0, i)).to(device)
        for i in range(BATCHES)
    ]


def step(job: Job, implementation: str, precision: str, device: torch.device) -> Call:
    """Steps of our training; a call gives the terms of the loss."""
    style = str(assets.styles()["swirl"])
    config = TrainConfig(style=(style,), size=job.size, batch=job.batch, precision=precision)
    encoder = load_encoder().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    target = StyleTarget.of(Pictures([*assets.styles().values()][:1], 640), encoder, device)
    trainer = Trainer(config, encoder, [target], device)
    photos = batches(job, device)
    ahead = BATCHES if device.type == "cuda" else 0
    draws = [trainer.draw(i, job.stage, photos[i]).to(device) for i in range(ahead)]

    def call(i: int) -> Any:
        with computed_by(implementation):
            drawn = draws[i] if draws else trainer.draw(i, job.stage, photos[i])
            return trainer.take(drawn, STYLE_WEIGHT)

    return call


@contextmanager
def computed_by(implementation: str) -> Iterator[None]:
    """What computes the ops meanwhile, as FASTSTY_IMPL chooses at import."""
    before = dispatch.IMPL
    try:
        use(implementation)
        yield
    finally:
        use(before)


def use(implementation: str) -> None:
    if implementation != dispatch.IMPL:
        dispatch.IMPL = implementation
        dispatch._find.cache_clear()


def classic(job: Job, device: torch.device) -> Call:
    from classic_recipe import classic_step

    move, photos = classic_step(job.size, device), batches(job, device)
    return lambda i: move(photos[i])


def makers(job: Job, device: torch.device) -> dict[str, Callable[[], Call]]:
    every = {
        OURS: partial(step, job, "auto", "auto", device),
        "float32": partial(step, job, "auto", "float32", device),
        "ops off": partial(step, job, "reference", "auto", device),
        "classic": partial(classic, job, device),
    }
    if precision_named("auto", device) == torch.float32:
        del every["float32"]
    return every


def prepare(job: Job, device: torch.device) -> Prepared:
    precision = precision_named("auto", device)
    with FlopCounterMode(display=False) as counter:
        truth = step(job, "reference", "float32", device)(0)

    def check(name: str, terms: Any) -> None:
        tolerance = TOLERANCES[torch.float32 if name == "float32" else precision]
        for term, value in truth.items() if name != "classic" else ():
            off = float((terms[term] - value).abs() / (value.abs() + tolerance))
            if not off < tolerance:
                raise Wrong(f"{term} of the first step: {float(terms[term])}, not {float(value)}")

    calls, missing = variants(makers(job, device), check)
    return Prepared(
        calls,
        missing,
        inputs=BATCHES,
        pictures=job.batch,
        operations=counter.get_total_flops(),
        dtype=str(precision).removeprefix("torch."),
        clock="events",
    )


def cases(device: torch.device, quick: bool) -> list[Case]:
    chosen = [headline(device)] if quick else jobs(device)
    return [
        Case("training", str(job), partial(prepare, job, device), job.stage == "adversarial")
        for job in chosen
    ]


if __name__ == "__main__":  # two steps of a variant, for the suite `memory`
    here = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    move = makers(headline(here), here)[sys.argv[1]]()
    move(0), move(1)
