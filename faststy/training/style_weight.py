"""λ, the weight of the style: by the fixed schedule, or by a controller of the style's share.

The share is `λ·style / total` of the weighted loss, where `style` is all that λ multiplies (style
and colour) and `total` leaves the adversarial term out, which is no distance and can be negative.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any, TypeVar

import torch
from torch import Tensor

from faststy.training.checkpoint import Tensors
from faststy.training.config import TrainConfig
from faststy.training.guards import POLL_EVERY
from faststy.training.reading import Reading, lag
from faststy.training.schedule import DECAY, RISE, Schedule

SMOOTHING = 0.7  # what an average keeps of itself from poll to poll
TENFOLD = 0.2  # λ rises at most tenfold during this share of the generator's training

EPS = 1e-9

Number = TypeVar("Number", float, Tensor)


def loss_parts(
    config: TrainConfig, style_weight: float, terms: Mapping[str, Number]
) -> tuple[Number, Number]:
    """What λ multiplies, and the rest of the weighted total but for the adversarial term."""
    style = terms["style"] + config.colour_weight * terms["colour"]
    rest = terms["total"] - style_weight * style
    if "adversarial" in terms:
        rest = rest - config.adversarial_weight * terms["adversarial"]
    return style, rest


def style_share(
    config: TrainConfig, style_weight: float, terms: Mapping[str, float]
) -> float | None:
    """The style's share of the loss, 0...1; None for the terms of the repair."""
    if "colour" not in terms:
        return None
    style, rest = loss_parts(config, style_weight, terms)
    whole = style_weight * style + rest
    return style_weight * style / whole if whole > 0 else math.nan


@dataclass
class Memory:
    """What the controller knows, but for the tensors."""

    value: float  # λ, once it is the controller's
    fraction: float = 0.0  # of the run, at the last poll
    style: float | None = None  # running means of what λ multiplies,
    rest: float | None = None  # and of the rest
    first: float | None = None  # style at the first poll
    learned: bool = False  # is the share the style's own yet?
    held: bool = False  # up to the end
    asked: int = 0  # step whose numbers are on their way, or 0


class StyleWeight:
    """λ of every step.

    Without `config.style_share` it is the schedule's. With it, λ rises as the schedule says until
    the style distance has halved, or λ has come to `config.style_weight`: the share of a style that
    nothing has been learned of yet is large, and says nothing. From then on, every POLL_EVERY
    steps, λ rises towards `λ* = share/(1 − share) · rest/style`, the value at which the style would
    have its share (running means), at most tenfold in TENFOLD of the generator's training. It never
    falls, and holds from where the learning rate begins to fall.

    Everything depends on the steps and their fraction of the run, and goes into the checkpoint.
    """

    def __init__(self, config: TrainConfig, schedule: Schedule, device: torch.device) -> None:
        self.config, self.schedule, self.target = config, schedule, config.style_share
        self.memory = Memory(schedule.style_weight(0.0))
        self._rows = torch.zeros(POLL_EVERY, 2, device=device)
        self._reading, self.lag = Reading(self._rows), lag(device)

    def at(self, fraction: float) -> float:
        """λ when `fraction` of the run is done."""
        own = self.target is not None and self.memory.learned
        return self.memory.value if own else self.schedule.style_weight(fraction)

    def watch(self, step: int, fraction: float, terms: Mapping[str, Tensor]) -> list[str]:
        """Note the terms of the step that ended as number `step`; every POLL_EVERY steps, adjust λ.

        The numbers wait on the device until then, and are read when `Guards.watch` reads its own.
        Returns what there is to tell, in words.
        """
        if self.target is None or "colour" not in terms:
            return []
        parts = loss_parts(self.config, self.at(fraction), terms)
        self._rows[step % POLL_EVERY] = torch.stack(parts)
        if step % POLL_EVERY == 0:
            self.memory.asked, self._reading = step, Reading(self._rows)
        due = 0 < self.memory.asked <= step - self.lag
        return self._adjust(step, fraction, self.target) if due else []

    def _adjust(self, step: int, fraction: float, target: float) -> list[str]:
        memory = self.memory
        memory.value, memory.asked = self.at(fraction), 0
        passed, memory.fraction = max(0.0, fraction - memory.fraction), fraction
        done = fraction / self.schedule.generator_end
        memory.held &= done > 1 - DECAY  # not in a run that was made longer
        rows = [row for row in self._reading.tolist() if all(map(math.isfinite, row))]
        if not rows or memory.held:
            return []
        style, rest = (fmean(column) for column in zip(*rows, strict=True))
        if memory.style is None or memory.rest is None:
            memory.style = memory.first = style
            memory.rest = rest
        else:
            memory.style += (1 - SMOOTHING) * (style - memory.style)
            memory.rest += (1 - SMOOTHING) * (rest - memory.rest)
        if done > 1 - DECAY:
            memory.learned = memory.held = True
            styled = memory.value * memory.style
            share = styled / max(styled + memory.rest, EPS)
            return [
                f"step {step}: λ holds at {memory.value:.3g}, where the style has {share:.0%} of "
                f"the loss; {target:.0%} were asked for"
            ]
        assert memory.first is not None
        if not memory.learned:
            memory.learned = memory.style < memory.first / 2 or done >= RISE
        else:
            wanted = target / (1 - target) * memory.rest / max(memory.style, EPS)
            pace = 10 ** (passed / self.schedule.generator_end / TENFOLD)
            memory.value = max(memory.value, min(wanted, memory.value * pace))
        return []

    # -- in the checkpoint ---------------------------------------------------------------------

    def state(self) -> tuple[dict[str, Any], Tensors]:
        """For the checkpoint: values and tensors; nothing without a controller."""
        if self.target is None:
            return {}, {}
        return {"style_weight": asdict(self.memory)}, {"style_weight.rows": self._rows}

    def load_state(self, values: dict[str, Any] | None, tensors: Tensors) -> None:
        """Values as `state` gives them by its name; None where the run had no controller."""
        if values is not None:
            self.memory = Memory(**values)
            self._rows.copy_(tensors["style_weight.rows"])
            self._reading = Reading(self._rows)
