"""Whole training steps: ours, ours in float32, ours with the ops off, the classic recipe.

A step is forward, backward and the optimisers' step on a batch of the bundled photos; on a CPU, not
on a GPU where other threads do it, also the drawing of what is random in it. On a GPU ours are CUDA
graphs, in all variants, as in training; the classic recipe is eager, as people run it: its launches
count. Ours is in the default precision, and so is what has the ops off (FASTSTY_IMPL=reference);
where the default is float32 there is no variant of that name. Before they are timed, the terms of
our first step, and how far some steps move each net, are held against those of the reference in
float32. The floor: what the convolutions of our step compute, forward and backward, at the matrix
rate of this machine in their precision.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from _bench import NOT_HERE, OURS, Case, Prepared, Wrong, computed_by, variants
from _timing import Call
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from faststy import assets
from faststy.nn.encoder import load_encoder
from faststy.training.config import BATCH, TrainConfig
from faststy.training.dataset import Pictures, generator, random_crops
from faststy.training.draws import Draws
from faststy.training.graph import WARM_UP, Terms
from faststy.training.precision import precision_named
from faststy.training.step import StyleTarget, Trainer

VARIANTS = (OURS, "float32", "ops off", "classic")
STAGES = ("adversarial", "perceptual", "repair")
BATCHES = 8  # that rotate
STYLE_WEIGHT = 5.0
TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 5e-2}  # of the terms of the first step
# Of how far some steps move each net. bfloat16 is off by 0.3: optimisers divide each gradient by
# its size, so that of a small one rounding errors count as much.
MOVED_TOLERANCE = 0.5


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


class Steps:
    """Steps of our training; a call gives the terms of the loss."""

    def __init__(self, job: Job, implementation: str, precision: str, device: torch.device) -> None:
        self.stage, self.implementation = job.stage, implementation
        style = str(assets.styles()["swirl"])
        config = TrainConfig(style=(style,), size=job.size, batch=job.batch, precision=precision)
        encoder = load_encoder().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        target = StyleTarget.of(Pictures([*assets.styles().values()][:1], 640), encoder, device)
        self.trainer = Trainer(config, encoder, [target], device)
        self.photos = batches(job, device)
        ahead = BATCHES if device.type == "cuda" else 0
        self.draws = [self.draw(i).to(device) for i in range(ahead)]
        self.start = self.weights()

    def draw(self, i: int) -> Draws:
        return self.trainer.draw(i, self.stage, self.photos[i])

    def __call__(self, i: int) -> Terms:
        with computed_by(self.implementation):
            return self.trainer.take(self.draws[i] if self.draws else self.draw(i), STYLE_WEIGHT)

    def telling(self) -> list[int]:
        """Numbers of calls, upon which all that is recorded on a GPU was replayed.

        Steps whose tensors have other shapes are graphs of their own: the third of a kind is
        recorded.
        """
        kinds: dict[object, int] = {}
        for i, draws in enumerate(self.draws):
            kinds.setdefault(draws.key, i)
        return [i for i in kinds.values() for _ in range(WARM_UP + 2)] or [0, 1]

    def weights(self) -> dict[str, Tensor]:
        """All weights of each net, one after the other."""
        return {
            name: torch.cat([p.detach().flatten() for p in net.parameters()])
            for name, net in self.trainer.nets.items()
        }

    def moved(self) -> dict[str, Tensor]:
        """How far all steps have moved each net."""
        return {name: now - self.start[name] for name, now in self.weights().items()}


def classic(job: Job, device: torch.device) -> Call:
    """With torch's own ops in its VGG, too: on a GPU those would otherwise be ours."""
    from classic_recipe import classic_step

    with computed_by("reference"):
        move, photos = classic_step(job.size, device), batches(job, device)

    def call(i: int) -> Tensor:
        with computed_by("reference"):
            return move(photos[i])

    return call


def makers(job: Job, device: torch.device) -> dict[str, Callable[[], Call]]:
    every = {
        OURS: partial(Steps, job, "auto", "auto", device),
        "float32": partial(Steps, job, "auto", "float32", device),
        "ops off": partial(Steps, job, "reference", "auto", device),
        "classic": partial(classic, job, device),
    }
    if precision_named("auto", device) == torch.float32:
        del every["float32"]
    return every


def prepare(job: Job, device: torch.device, only: Sequence[str] = ()) -> Prepared:
    precision = precision_named("auto", device)
    right = Steps(job, "reference", "float32", device)
    first, *others = right.telling()
    with FlopCounterMode(display=False) as counter:
        truth = right(first)
    for i in others:
        right(i)
    truly_moved = right.moved()
    del right  # and the memory that it takes

    def check(name: str, call: Call) -> None:
        terms: Any = call(first)
        if not isinstance(call, Steps):
            return
        tolerance = TOLERANCES[torch.float32 if name == "float32" else precision]
        for term, value in truth.items():
            off = float((terms[term] - value).abs() / (value.abs() + tolerance))
            if not off < tolerance:
                raise Wrong(f"{term} of the first step: {float(terms[term])}, not {float(value)}")
        for i in others:
            call(i)
        for net, moved in call.moved().items():
            off = float((moved - truly_moved[net]).norm())
            if not off <= MOVED_TOLERANCE * float(truly_moved[net].norm()):
                raise Wrong(f"{1 + len(others)} steps move the {net} elsewhere, by {off:.1e}")

    made = makers(job, device)
    calls, missing = variants(made, check, only)
    if "float32" not in made:
        missing["float32"] = f"another precision {NOT_HERE}"
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


def take_steps(move: Call) -> None:
    """Two, or, on a GPU, as many as until all that training records there is recorded."""
    for i in move.telling() if isinstance(move, Steps) else (0, 1):
        move(i)


if __name__ == "__main__":  # steps of a variant, for the suite `memory`
    here = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    take_steps(makers(headline(here), here)[sys.argv[1]]())
