"""Whole training steps: ours, ours with the ops off (FASTSTY_IMPL=reference), the classic recipe.

A step is forward, backward and the optimisers' step on a batch of the bundled photos. Before it is
timed, the terms of our first step are held against those of the reference. The floor: what the
convolutions of our step compute, forward and backward, at the matrix rate of this machine.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from _bench import OURS, Case, Prepared, Wrong, variants
from _timing import Call
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from faststy import assets
from faststy.nn.encoder import load_encoder
from faststy.ops import dispatch
from faststy.training.config import TrainConfig
from faststy.training.dataset import Pictures, generator, random_crops
from faststy.training.step import StyleTarget, Trainer

VARIANTS = (OURS, "ops off", "classic")
STAGES = ("perceptual", "adversarial", "repair")
BATCHES = 8  # that rotate
STYLE_WEIGHT = 5.0
TOLERANCE = 1e-3  # of the terms of the first step


def settings(device: torch.device) -> TrainConfig:
    """The defaults; on a GPU a larger step, so that it is not all launches."""
    larger = {"size": 256, "batch": 16} if device.type == "cuda" else {}
    return TrainConfig(style=(str(assets.styles()["swirl"]),), **larger)


def batches(config: TrainConfig, device: torch.device) -> list[Tensor]:
    photos = Pictures(assets.photos(), 2 * config.size)
    return [
        random_crops(photos, config.batch, config.size, (1.0, 2.0), generator(0, i)).to(device)
        for i in range(BATCHES)
    ]


def step(stage: str, implementation: str, device: torch.device) -> Call:
    """Steps of our training; a call gives the terms of the loss."""
    config = settings(device)
    encoder = load_encoder().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    style = StyleTarget.of(Pictures([*assets.styles().values()][:1], 640), encoder, device)
    trainer = Trainer(config, encoder, [style], device)
    photos = batches(config, device)
    moves: dict[str, Callable[..., Any]] = {
        "perceptual": trainer.perceptual,
        "adversarial": partial(trainer.perceptual, adversarial=True),
        "repair": trainer.repair,
    }

    def call(i: int) -> Any:
        use(implementation)
        return moves[stage](i, photos[i], STYLE_WEIGHT)

    return call


def use(implementation: str) -> None:
    """What computes the ops from now on, as FASTSTY_IMPL does at import."""
    dispatch.IMPL = implementation
    dispatch._find.cache_clear()


def classic(device: torch.device) -> Call:
    from classic_recipe import classic_step

    config = settings(device)
    move, photos = classic_step(config.size, device), batches(config, device)
    return lambda i: move(photos[i])


def makers(stage: str, device: torch.device) -> dict[str, Callable[[], Call]]:
    return {
        OURS: partial(step, stage, "auto", device),
        "ops off": partial(step, stage, "reference", device),
        "classic": partial(classic, device),
    }


def prepare(stage: str, device: torch.device) -> Prepared:
    made = makers(stage, device)
    with FlopCounterMode(display=False) as counter:
        truth = made["ops off"]()(0)

    def check(name: str, terms: Any) -> None:
        for term, value in truth.items() if name != "classic" else ():
            off = float((terms[term] - value).abs() / (value.abs() + TOLERANCE))
            if not off < TOLERANCE:
                raise Wrong(f"{term} of the first step: {float(terms[term])}, not {float(value)}")

    calls, missing = variants(made, check)
    return Prepared(
        calls,
        missing,
        inputs=BATCHES,
        pictures=settings(device).batch,
        operations=counter.get_total_flops(),
        clock="events",
    )


def cases(device: torch.device, quick: bool) -> list[Case]:
    config = settings(device)
    return [
        Case(
            "training",
            f"{stage} step, {config.batch} × {config.size}²",
            partial(prepare, stage, device),
            headline=stage == "adversarial",
        )
        for stage in (STAGES[1:2] if quick else STAGES)
    ]


if __name__ == "__main__":  # two steps of a variant, for the suite `memory`
    here = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    move = makers("adversarial", here)[sys.argv[1]]()
    move(0), move(1)
