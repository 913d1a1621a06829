"""What goes wrong in adversarial training: noticed without slowing it down, and answered.

Each step leaves a row of numbers on the device. Every POLL_EVERY steps the rows are fetched at once
and judged, on a CUDA device while the next step is already under way there. The answers: a step
that is not finite is skipped (by the trainer itself); a run that is not well goes back to its last
good state, with a smaller learning rate; a discriminator that wins or loses outright learns slower
or faster. Everything depends on the steps alone, never on the clock, and what is remembered goes
into the checkpoint, so that a resumed run is the same run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from statistics import fmean, median
from typing import Any, NamedTuple

import torch
from torch import Tensor

from faststy.training.checkpoint import Tensors, capture, restore
from faststy.training.graph import Terms
from faststy.training.objective import contrast
from faststy.training.reading import Reading, lag
from faststy.training.step import Trainer

POLL_EVERY = 10  # steps
KEEP_EVERY = 5 * POLL_EVERY  # steps between the states that can be gone back to
DISTANCES = {  # from the photo and from the style; a blank picture is near 1
    "perceptual": ("content", "style"),
    "adversarial": ("content", "style"),
    "repair": ("repair", "style"),
}
EXPLODED = 4.0  # times the distance of the untrained nets
LEAST_REFERENCE = 5.0  # of that distance: a first batch can be an easy one
FLAT = 0.1  # contrast of the paintings as a share of their photos', or of a style's that has less
DULL = 2 * FLAT  # of the least of some photos, at the end: others may come out flatter
PLAIN = 0.02  # contrast of a photo or a style that shows next to nothing
FLAT_POLLS = 8  # in a row; a young generator is flat for some dozen steps
BLANK = 0.7  # distance from the photo and from the style of what shows neither
BLANK_POLLS = 12  # in a row; a young generator needs some dozen steps, too
SMALLER = 0.3  # times the learning rate, after going back,
SAFE = 2e-3  # or this one, which is known to work, if that is less
# The discriminator's loss as a share of what guessing costs: 0 never errs, 1 guesses.
WINS, ERRS_AGAIN, LOSES = 0.04, 0.25, 1.3
OUTRIGHT_POLLS = 5  # in a row
PACES = (1 / 32, 4.0)  # bounds of the factor of the discriminator's learning rate


@dataclass
class Memory:
    """What the guards know, but for the tensors."""

    rate: float = 1.0  # factor of all learning rates
    pace: float = 1.0  # factor of the discriminator's
    stage: str = ""
    reference: float = LEAST_REFERENCE  # distance at the first step of the stage
    flat: int = 0  # polls in a row
    blank: int = 0
    wins: int = 0
    loses: int = 0
    good_step: int = 0
    asked: int = 0  # step whose numbers are on their way, or 0
    skipped: int = 0  # updates, in the whole run
    returns: int = 0  # to a good state, in the whole run


class Seen(NamedTuple):
    """The last POLL_EVERY steps: medians of what was finite."""

    content: float
    style: float
    discriminator: float
    finite: int  # steps
    flat: bool
    skipped: int  # updates, in the whole run


class Look(NamedTuple):
    """What is to be shipped: the last steps, and the least contrasts as shares (see FLAT)."""

    seen: Seen
    painted: float
    repaired: float

    @property
    def flat(self) -> bool:
        return not (self.painted > DULL and self.repaired > DULL)  # nor if it is no number


class Guards:
    """Watches the steps of a trainer."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer, self.memory = trainer, Memory()
        form = trainer.config.adversarial
        self._guess = {"hinge": 2.0, "bce": 2 * math.log(2), "lsgan": 0.5}[form]
        self._rows = torch.zeros(POLL_EVERY, 3, device=trainer.device)
        self._asked = torch.zeros(3 * POLL_EVERY + 3, device=trainer.device)
        self._reading, self.lag = Reading(self._asked), lag(trainer.device)
        self._good = capture(trainer.nets, trainer.optimisers)
        # A plain style may be painted plainly.
        contrasts = [style.contrast for style in trainer.styles]
        self._style_contrast = fmean(c if c >= PLAIN else 0.0 for c in contrasts)

    # -- in the checkpoint ---------------------------------------------------------------------

    def state(self) -> tuple[dict[str, Any], Tensors]:
        """For the checkpoint: values and tensors."""
        good = {f"good.{name}": value for name, value in self._good.items()}
        own = {"guards.rows": self._rows, "guards.skipped": self.trainer.skipped}
        own["guards.asked"] = self._asked
        return asdict(self.memory), own | good

    def load_state(self, values: dict[str, Any], tensors: Tensors) -> None:
        self.memory = Memory(**values)
        self._rows.copy_(tensors["guards.rows"])
        self.trainer.skipped.copy_(tensors["guards.skipped"])
        self._asked = tensors.get("guards.asked", self._asked).to(self.trainer.device)
        self._reading = Reading(self._asked)
        good = {k[len("good.") :]: v for k, v in tensors.items() if k.startswith("good.")}
        self._good = {name: value.to(self.trainer.device) for name, value in good.items()}

    # -- each step -----------------------------------------------------------------------------

    def watch(self, step: int, stage: str, terms: Terms, photo: Tensor) -> list[str]:
        """Note the step that ended as number `step`; every POLL_EVERY steps, judge and answer.

        Args:
            terms: what the trainer returned for `photo` [N, 3, H, W].
        Returns:
            what was done, in words.
        """
        memory, events = self.memory, self._judge(step)
        if memory.stage not in ("", stage):
            events += self._last_look(step - 1, photo)
        content, style = (terms[name] for name in DISTANCES[stage])
        discriminator = terms.get("discriminator", torch.zeros_like(content))
        self._rows[step % POLL_EVERY] = torch.stack([content, style, discriminator])
        if stage != memory.stage:
            first = float(content + style)
            first = max(first if math.isfinite(first) else 0.0, LEAST_REFERENCE)
            if memory.stage:  # a step that begins much worse than the last stage did has gone wrong
                first = min(first, EXPLODED * memory.reference)
            memory.reference = first
            memory.stage, memory.blank, memory.wins, memory.loses = stage, 0, 0, 0
            self._rows[:] = self._rows[step % POLL_EVERY].clone()
        if step % POLL_EVERY == 0:
            memory.asked = step
            self._asked = self._numbers(contrast(self.trainer.painted), photo)
            self._reading = Reading(self._asked)
        return events + self._judge(step)

    def _last_look(self, step: int, photo: Tensor) -> list[str]:
        """Judge the last steps of a stage, up to `step`, before another takes their place."""
        seen = _seen(Reading(self._numbers(contrast(self.trainer.painted), photo)))
        why = self._complaint(seen, flat=False)
        return [] if why is None else [f"step {step}: {why}; {self._go_back()}"]

    def settle(self, step: int, photos: Sequence[Tensor]) -> tuple[list[str], bool]:
        """At the end, before the model is saved: what is not well goes back to its last good state.

        Judges what is shipped, the average and the repairer, on each of `photos` [1, 3, H, W].
        Where no state was good yet, flat paintings go back to the start of the training. Nothing
        goes back to what is no better.

        Returns:
            what was done, in words; and whether the repairer may be shipped: not if it makes flat
            what the generator did not.
        """
        look = self._look(photos)
        why = self._complaint(look.seen, flat=look.flat)
        if why is None:
            return [], True
        memory, state = replace(self.memory), capture(self.trainer.nets, self.trainer.optimisers)
        merely_flat = self._complaint(look.seen, flat=False) is None
        answer = self._go_back()
        look, before = self._look(photos), look
        if before.painted > DULL:  # the repairer alone does harm: was there a sound one?
            better = self.trainer.repairs() and not look.flat
        else:  # than dull paintings dull ones of before are no better, but than flat ones
            better = not look.flat or (memory.good_step > 0 and not before.painted > FLAT)
        if better or not merely_flat:
            events = [f"step {step}: {why}; {answer}"]
        else:
            restore(state, self.trainer.nets, self.trainer.optimisers)
            self.memory, look = memory, before
            events = []
        if look.painted > DULL and not look.repaired > DULL:
            return [*events, f"step {step}: repaired paintings are flat: saved unrepaired"], False
        return events, True

    @torch.no_grad()
    def _look(self, photos: Sequence[Tensor]) -> Look:
        """What the last steps were like, and what is shipped paints, in each style."""
        contrasts, repairs = [], self.trainer.repairs()
        codes = torch.eye(len(self.trainer.styles), device=self.trainer.device)[:, None]
        styles = list(zip(codes, self.trainer.styles, strict=True))
        for photo, (code, style) in product(photos, styles):
            painted = repaired = self.trainer.average(photo, code)
            if repairs:
                lost, residual = self.trainer.repairer(painted, photo)
                repaired = self.trainer.repairer.apply_repair(painted, lost, residual, 1.0)
            expected = contrast(photo).clamp_max(style.contrast)
            contrasts.append(torch.stack([contrast(painted), contrast(repaired), expected]))
        *shown, expected = torch.stack(contrasts, dim=1)
        plain = expected < PLAIN  # may be painted plainly
        least = torch.stack([(s / expected).masked_fill(plain, math.inf).min() for s in shown])
        # All workers look at the same photos: what they are told is the mean.
        numbers = self.trainer.mean(torch.cat([least, torch.ones_like(least[:1])]), 1)
        painted_share, repaired_share, count = numbers.tolist()
        seen = _seen(Reading(self._numbers(least[0], photos[0])))
        return Look(seen, painted_share / count, repaired_share / count)

    def _judge(self, step: int) -> list[str]:
        """Judge and answer what was asked for, once `step` is far enough beyond."""
        memory, asked = self.memory, self.memory.asked
        if not 0 < asked <= step - self.lag:
            return []
        seen, memory.asked, events = _seen(self._reading), 0, list[str]()
        if lost := seen.skipped - memory.skipped:
            memory.skipped += lost
            events.append(f"step {asked}: {lost} updates were not finite and were skipped")
        memory.flat = memory.flat + 1 if seen.flat else 0
        blank = memory.stage != "repair" and min(seen.content, seen.style) > BLANK
        memory.blank = memory.blank + 1 if blank else 0
        why = self._complaint(
            seen, flat=memory.flat >= FLAT_POLLS, blank=memory.blank >= BLANK_POLLS
        )
        if why is not None:
            return [*events, f"step {asked}: {why}; {self._go_back()}"]
        if memory.stage != "perceptual":
            events += self._balance(asked, seen.discriminator / self._guess)
        if asked % KEEP_EVERY == 0 and not (seen.flat or blank):
            self._good = capture(self.trainer.nets, self.trainer.optimisers)
            memory.good_step = step
        return events

    def _numbers(self, painted: Tensor, photo: Tensor) -> Tensor:
        """All that `_seen` wants to know, as one tensor on the device."""
        expected = contrast(photo).clamp_max(self._style_contrast)
        contrasts = self.trainer.mean(torch.stack([painted, expected]), len(photo))
        return torch.cat([self._rows.flatten(), contrasts, self.trainer.skipped[None]])

    def _complaint(self, seen: Seen, *, flat: bool, blank: bool = False) -> str | None:
        if 2 * seen.finite <= POLL_EVERY:
            return "the loss was not finite"
        if (distance := seen.content + seen.style) > EXPLODED * self.memory.reference:
            return f"the loss had exploded (distance {distance:.3g})"
        if flat:
            return "the paintings had become flat"
        # With a rate that is known to work, slow learning is no mistake.
        if blank and self.memory.rate * self.trainer.config.learning_rate > SAFE:
            return "the paintings showed neither the photo nor the style"
        return None

    # -- the answers ---------------------------------------------------------------------------

    def _go_back(self) -> str:
        memory = self.memory
        restore(self._good, self.trainer.nets, self.trainer.optimisers)
        memory.rate = min(SMALLER * memory.rate, SAFE / self.trainer.config.learning_rate)
        memory.returns += 1
        self._rows[:] = torch.tensor([0.0, 0.0, self._guess])  # what was judged is judged once
        memory.flat = memory.blank = 0
        return f"back to the state of step {memory.good_step}, learning rate x {memory.rate:.2g}"

    def _balance(self, step: int, share: float) -> list[str]:
        """Let the discriminator learn slower while it never errs, faster while it is worse than
        guessing, and as usual again when it is neither."""
        memory = self.memory
        memory.wins = memory.wins + 1 if share < WINS else 0
        memory.loses = memory.loses + 1 if share > LOSES else 0
        before = memory.pace
        if memory.wins >= OUTRIGHT_POLLS:
            memory.pace, memory.wins, what = max(PACES[0], before / 2), 0, "never errs"
        elif memory.loses >= OUTRIGHT_POLLS:
            memory.pace, memory.loses, what = min(PACES[1], before * 2), 0, "is worse than guessing"
        elif (before < 1 and share > ERRS_AGAIN) or (before > 1 and share < 1):
            memory.pace, what = 1.0, "is in balance again"
        if memory.pace == before:
            return []
        return [f"step {step}: the discriminator {what}; its learning rate x {memory.pace:.2g}"]


def _seen(reading: Reading) -> Seen:
    values = reading.tolist()  # the only wait for the device
    columns = [list(filter(math.isfinite, values[i:-3:3])) for i in range(3)]
    medians = [median(column) if column else math.nan for column in columns]
    painted_contrast, expected, skipped = values[-3:]
    return Seen(
        content=medians[0],
        style=medians[1],
        discriminator=medians[2],
        finite=min(map(len, columns)),
        flat=not painted_contrast >= FLAT * expected,
        skipped=int(skipped),
    )
