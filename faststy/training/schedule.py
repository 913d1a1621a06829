"""What happens when: stages, λ and learning rate as functions of how much of the run is done."""

from __future__ import annotations

from faststy.training.config import TrainConfig

SHARES = {"perceptual": 0.4, "adversarial": 0.45, "repair": 0.15}
WARM_UP = 30  # steps
REPAIR_WARM_UP = 0.1  # of the repairer's training
RISE = 0.4  # λ reaches its largest value at this share of the generator's training
DECAY = 0.4  # the learning rate falls during this last share of each net's training
LAST_RATE = 0.05
LAST = 0.1  # of the seconds, at most, are kept for the end


class Schedule:
    """All in terms of `fraction`, the share of the run (its steps or seconds) that is done."""

    def __init__(self, config: TrainConfig) -> None:
        self.steps, self.seconds = config.steps, config.seconds_budget
        self.largest, self.start = config.style_weight, config.style_weight_start
        whole = sum(SHARES[stage] for stage in config.stages)
        self.ends: dict[str, float] = {}
        end = 0.0
        for stage in config.stages:
            end += SHARES[stage] / whole
            self.ends[stage] = round(end, 9)  # 0.4 + 0.45 is more than 0.85
        self.generator_end = max(self.ends[s] for s in config.stages if s != "repair")

    def fraction(self, step: int, seconds: float, idle: float = 0.0, last: float = 0.0) -> float:
        """The share that is done.

        Args:
            seconds: since the run began.
            idle: of them, went to starting: no stage's.
            last: the end is likely to take, no stage's either.
        """
        if self.steps is not None:
            return step / self.steps
        assert self.seconds is not None
        # What was slow once is no reason to end at once.
        learning = self.seconds - idle - min(last, LAST * self.seconds)
        return (seconds - idle) / learning if learning > 0 else 1.0

    def complaint(self, idle: float) -> str | None:
        """What there is to tell where starting took much of the seconds that there are."""
        if self.seconds is None or 2 * idle < self.seconds:
            return None
        return (
            f"the start took {idle:.0f} of {self.seconds:g} seconds: with more of them, "
            "more is learned"
        )

    def stage(self, fraction: float) -> str:
        return next((s for s, end in self.ends.items() if fraction < end), list(self.ends)[-1])

    def style_weight(self, fraction: float) -> float:
        """λ: rises geometrically from its start, then holds."""
        done = min(1.0, fraction / self.generator_end / RISE)
        return float(self.largest * self.start ** (1 - done))

    def learning_rate(self, fraction: float, step: int) -> float:
        """The factor of the full learning rate: a short warm-up, a plateau, a linear fall."""
        if fraction < self.generator_end:
            done = fraction / self.generator_end
            rise = (step + 1) / WARM_UP
        else:  # the repairer's turn
            done = (fraction - self.generator_end) / (1 - self.generator_end)
            rise = max(LAST_RATE, done / REPAIR_WARM_UP)
        fall = max(LAST_RATE, (1 - done) / DECAY)
        return min(1.0, rise) * min(1.0, fall)
