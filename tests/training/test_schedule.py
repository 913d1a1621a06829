from itertools import pairwise

import pytest

from faststy.training.config import STAGES, TrainConfig
from faststy.training.schedule import LAST_RATE, SHARES, WARM_UP, Schedule


def schedule(**settings):
    return Schedule(TrainConfig(**{"style": ("a",), "steps": 1000, **settings}))


CHOICES = [STAGES[:1], STAGES[:2], ("perceptual", "repair"), STAGES]


@pytest.mark.parametrize("stages", CHOICES)
def test_stages_follow_each_other_and_share_the_run(stages):
    plan = schedule(stages=stages)
    seen = [plan.stage(i / 1000) for i in range(1001)]
    order = list(dict.fromkeys(seen))
    assert order == list(stages)
    assert seen == sorted(seen, key=order.index)
    whole = sum(SHARES[stage] for stage in stages)
    for stage in stages:
        assert seen.count(stage) == pytest.approx(1000 * SHARES[stage] / whole, abs=2)


def test_the_fraction_is_of_steps_or_of_seconds():
    assert schedule(steps=200).fraction(50, 1e9) == 0.25
    plan = schedule(steps=None, seconds=60.0)
    assert plan.fraction(10**9, 15.0) == 0.25
    assert plan.fraction(1, 10.0, idle=10.0) == 0.0
    assert plan.fraction(1, 21.0, idle=10.0, last=6.0) == 0.25
    assert plan.fraction(1, 54.0, idle=10.0, last=6.0) == 1.0
    assert plan.fraction(1, 21.0, idle=10.0, last=100.0) == 0.25  # a slow preview ends no run
    assert plan.fraction(1, 70.0, idle=70.0) == 1.0  # nothing is left


def test_a_start_that_takes_most_of_the_seconds_is_told():
    plan = schedule(steps=None, seconds=8.0)
    assert plan.complaint(idle=3.9) is None
    assert "the start took 5 of 8 seconds" in plan.complaint(idle=5.0)
    assert schedule(steps=8).complaint(idle=1e3) is None


def test_stages_end_at_whole_steps():
    plan = schedule()
    assert [plan.stage(step / 1000) for step in (399, 400, 849, 850)] == [
        "perceptual", "adversarial", "adversarial", "repair",
    ]  # fmt: skip


@pytest.mark.parametrize("stages", CHOICES)
def test_the_style_weight_rises_from_its_start_to_its_largest(stages):
    plan = schedule(stages=stages, style_weight=8.0, style_weight_start=0.25)
    weights = [plan.style_weight(i / 1000) for i in range(1001)]
    assert weights[0] == pytest.approx(2.0)
    assert weights == sorted(weights)
    assert weights[-1] == 8.0
    assert plan.style_weight(plan.generator_end) == 8.0
    ratios = {round(b / a, 9) for a, b in pairwise(weights[:20])}
    assert len(ratios) == 1  # geometrically


@pytest.mark.parametrize("stages", CHOICES)
def test_the_learning_rate_warms_up_and_falls_at_the_end_of_each_net(stages):
    plan = schedule(stages=stages)
    rates = [plan.learning_rate(i / 1000, i) for i in range(1000)]
    assert rates[0] == pytest.approx(1 / WARM_UP)
    assert max(rates) == 1.0
    assert all(LAST_RATE / WARM_UP <= rate <= 1 for rate in rates)
    assert rates[-1] <= max(LAST_RATE, 0.1)
    last = round(1000 * plan.generator_end) - 1
    assert rates[last] <= max(LAST_RATE, 0.1)
    if "repair" in stages:
        assert rates[last + 2] < 0.2  # the repairer warms up too
        assert max(rates[last + 2 :]) == 1.0
