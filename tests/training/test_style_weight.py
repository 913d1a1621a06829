"""The controller of λ beside a made-up net whose every number is known."""

import json
import math
from dataclasses import asdict

import pytest
import torch

from faststy.training.config import TrainConfig
from faststy.training.guards import POLL_EVERY
from faststy.training.schedule import DECAY, RISE, Schedule
from faststy.training.style_weight import TENFOLD, StyleWeight, style_share

STEPS = 1000


def controller(share=0.5, **settings):
    config = TrainConfig(style=("a",), steps=STEPS, style_share=share, **settings)
    return StyleWeight(config, Schedule(config), torch.device("cpu"))


def terms(weight, style=0.1, rest=1.0, adversarial=None):
    """As the trainer gives them at λ = `weight`; a tenth of `style` is colour."""
    values = {"style": 0.9 * style, "colour": 0.1 * style, "total": weight * style + rest}
    if adversarial is not None:
        values["adversarial"] = adversarial
        values["total"] += TrainConfig(style=("a",)).adversarial_weight * adversarial
    return {name: torch.tensor(value) for name, value in values.items()}


def run(each, first=0, last=STEPS, style=lambda step, weight: 0.1, **named):
    """λ after each step, and what was told."""
    weights, events = [], []
    for step in range(first, last):
        weight = each.at(step / STEPS)
        made = terms(weight, style(step, weight), **named)
        events += each.watch(step + 1, step / STEPS, made)
        weights.append(each.at(step / STEPS))
    return weights, events


def test_without_a_share_it_is_the_schedule():
    each = controller(share=None)
    weights, events = run(each)
    assert weights == [each.schedule.style_weight(step / STEPS) for step in range(STEPS)]
    assert events == []
    assert each.state() == ({}, {})


def test_the_share_is_what_λ_multiplies_over_the_total_without_the_adversarial_term():
    config = TrainConfig(style=("a",), colour_weight=2.0, adversarial_weight=0.5)
    values = {"style": 0.1, "colour": 0.05, "adversarial": -0.8, "total": 2.0 + 1.0 - 0.5 * 0.8}
    assert style_share(config, 10.0, values) == pytest.approx(2 / 3)
    assert style_share(config, 10.0, {"repair": 1.0}) is None
    assert math.isnan(style_share(config, 10.0, {"style": 0.0, "colour": 0.0, "total": 0.0}))


@pytest.mark.parametrize(("share", "adversarial"), [(0.5, None), (0.6, -2.0), (0.75, 1.0)])
def test_λ_rises_until_the_style_has_its_share_then_holds(share, adversarial):
    """Style falls by 1/√λ, as a net's does: its share grows like √λ."""
    each = controller(share)

    def style(step, weight):
        return 0.3 / math.sqrt(weight)

    weights, events = run(each, style=style, adversarial=adversarial)
    assert weights == sorted(weights)
    styled = 0.3 * math.sqrt(weights[-1])  # λ·style
    assert styled / (styled + 1) == pytest.approx(share, abs=0.01)
    assert weights[0] < weights[-1] / 3
    held = round(STEPS * each.schedule.generator_end * (1 - DECAY))
    assert len(set(weights[held + POLL_EVERY :])) == 1
    assert len(events) == 1
    assert f"λ holds at {weights[-1]:.3g}" in events[0]
    assert f"{share:.0%} were asked for" in events[0]


def test_what_was_not_reached_is_told():
    each = controller(0.9, style_weight=0.1)
    _, events = run(each, style=lambda step, weight: 1e-6 / weight)
    assert "where the style has 0% of the loss; 90% were asked for" in events[0]


def test_a_share_that_is_large_because_nothing_was_learned_does_not_count():
    each = controller(0.5, style_weight=15.0)
    weights, _ = run(each, style=lambda step, weight: 10.0)
    schedule = [each.schedule.style_weight(step / STEPS) for step in range(STEPS)]
    reached = round(STEPS * RISE * each.schedule.generator_end)
    assert weights[: reached - 1] == schedule[: reached - 1]
    assert weights[-1] == pytest.approx(15.0, rel=0.05)


def test_once_the_style_is_learned_a_met_share_holds_λ_where_it_is():
    each = controller(0.5, style_weight=15.0)
    weights, _ = run(each, style=lambda step, weight: 10.0 if step < 100 else 4.0)
    assert weights[-1] < 5  # not the 15 of the schedule: the share was met on the way
    assert weights[-1] == weights[180]


def test_λ_rises_at_most_tenfold_in_its_time():
    each = controller(0.99)
    weights, _ = run(each, style=lambda step, weight: 1.0 if step < 20 else 1e-4)
    tenfold = round(STEPS * each.schedule.generator_end * TENFOLD)
    ratios = [b / a for a, b in zip(weights, weights[tenfold:], strict=False)]
    assert max(ratios) == pytest.approx(10.0, rel=0.02)


def test_steps_that_are_not_finite_do_not_count():
    clean, spoilt = controller(), controller()
    run(clean)
    run(spoilt, style=lambda step, weight: math.nan if step % 7 == 0 else 0.1)
    assert spoilt.memory.value == pytest.approx(clean.memory.value, rel=1e-6)


def test_what_is_read_a_step_later_is_answered_a_step_later():
    ends = []
    for lag in (0, 1):  # 1 on a CUDA device
        each = controller(0.75)
        each.lag = lag
        weights, events = run(each)
        rises = [i + 1 for i in range(1, STEPS) if weights[i] > weights[i - 1]]
        assert {step % POLL_EVERY for step in rises[-5:]} == {lag}
        assert len(events) == 1
        ends.append(weights[-1])
    assert ends[1] == pytest.approx(ends[0], rel=0.01)
    assert ends[0] > 20


@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.parametrize("cut", [3, 240, 247, 600])
def test_it_goes_on_from_a_checkpoint_as_if_nothing_had_been(cut, lag):
    def style(step, weight):
        return (0.3 + 0.1 * math.sin(step)) / math.sqrt(weight)

    whole, before, after = (controller() for _ in range(3))
    whole.lag = before.lag = after.lag = lag
    expected, told = run(whole, style=style)
    _, first = run(before, last=cut, style=style)
    values, tensors = before.state()
    values = json.loads(json.dumps(values, allow_nan=False))
    after.load_state(values["style_weight"], {name: t.clone() for name, t in tensors.items()})
    weights, last = run(after, first=cut, style=style)
    assert weights == expected[cut:]
    assert first + last == told
    assert asdict(after.memory) == asdict(whole.memory)


def test_the_steps_of_the_repair_are_not_looked_at():
    each = controller()
    before = asdict(each.memory)
    assert each.watch(POLL_EVERY, 0.9, {"repair": torch.tensor(1.0)}) == []
    assert asdict(each.memory) == before


def test_in_a_run_that_was_made_longer_λ_rises_again():
    short, long = controller(share=0.9), controller(share=0.9)
    weights, _ = run(short, style=lambda step, weight: 1e-4)
    memory, rows = short.state()
    long.load_state(memory["style_weight"], rows)
    long.schedule = Schedule(TrainConfig(style=("a",), steps=4 * STEPS, style_share=0.9))
    told, risen = [], weights[-1]
    for step in range(STEPS, 4 * STEPS):
        fraction = step / (4 * STEPS)
        told += long.watch(step + 1, fraction, terms(long.at(fraction), 1e-4))
        assert long.at(fraction) >= risen
        risen = long.at(fraction)
    assert risen > 1.5 * weights[-1]
    assert len(told) == 1
