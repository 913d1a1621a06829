"""Guards beside a trainer of one weight, so that every number is known."""

import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from faststy.training.adam import Adam
from faststy.training.config import TrainConfig
from faststy.training.guards import (
    BLANK_POLLS,
    FLAT_POLLS,
    KEEP_EVERY,
    OUTRIGHT_POLLS,
    PACES,
    POLL_EVERY,
    SAFE,
    SMALLER,
    Guards,
)

PHOTO = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def trainer(form="hinge", rate=2e-3, contrast=0.3):
    net = nn.Linear(1, 1)
    nn.init.zeros_(net.weight)
    return SimpleNamespace(
        config=TrainConfig(style=("a",), adversarial=form, learning_rate=rate),
        device=torch.device("cpu"),
        nets={"generator": net},
        optimisers={"generator": Adam(net, 0.01, (0.9, 0.99))},
        painted=PHOTO,
        styles=[SimpleNamespace(contrast=contrast)],
        average=lambda photo, style: photo,
        repairs=lambda: False,
        mean=lambda own, count: own,
        skipped=torch.zeros(()),
        weight=net.weight,
    )


class Run:
    """Steps of a trainer whose weight is the number of the step."""

    def __init__(self, *settings, lag=0, **named):
        self.trainer = trainer(*settings, **named)
        self.guards = Guards(self.trainer)
        self.guards.lag = lag  # 1 on a CUDA device
        self.step = 0
        self.events = []

    def __call__(self, steps, stage="perceptual", style=0.5, **terms):
        for _ in range(steps):
            self.step += 1
            self.trainer.weight.data.fill_(self.step)
            if stage == "repair":
                terms = {"repair": 0.5, "style": style, **terms}
            else:
                terms = {"content": 0.5, "style": style, **terms}
            tensors = {name: torch.tensor(value) for name, value in terms.items()}
            self.events += self.guards.watch(self.step, stage, tensors, PHOTO)
        return self

    @property
    def memory(self):
        return self.guards.memory


def test_a_healthy_run_is_left_alone():
    run = Run()(120)(60, "adversarial", discriminator=1.4)(30, "repair", discriminator=0.8)
    assert run.events == []
    assert (run.memory.rate, run.memory.pace) == (1.0, 1.0)
    assert run.memory.good_step == 200
    assert run.trainer.weight == 210


def test_after_an_explosion_the_last_good_state_is_back_with_a_smaller_step():
    run = Run()(107)(3, style=1e6)  # three of ten: not yet
    assert run.events == []
    run(10, style=1e6)
    assert run.trainer.weight == 100
    assert run.memory.rate == SMALLER
    assert run.events == [
        "step 120: the loss had exploded (distance 1e+06); "
        "back to the state of step 100, learning rate x 0.3"
    ]
    run(10, style=1e6)
    assert run.memory.rate == pytest.approx(SMALLER**2)
    assert run.trainer.weight == 100
    assert len(run(100).events) == 2


def test_steps_that_were_answered_are_not_judged_again():
    run = Run()(10)(6, style=float("nan"))
    assert run.events == []
    events, sound = run.guards.settle(run.step, [PHOTO])
    assert len(events) == 1
    assert sound
    assert run.guards.settle(run.step, [PHOTO]) == ([], True)  # as a resumed run that was done
    assert run(5).events == []
    assert run.memory.returns == 1


def test_an_explosion_at_the_beginning_goes_back_to_the_first_weights():
    run = Run()(1)(9, style=1e3)
    assert run.trainer.weight == 0
    assert "back to the state of step 0" in run.events[0]


def test_a_hard_style_is_not_an_explosion():
    """What counts is the distance of the untrained net."""
    assert Run()(60, style=90.0)(60, style=300.0).events == []
    assert Run()(60, style=4.0)(60, style=18.0).events == []


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_losses_that_are_not_finite(value):
    run = Run()(100)(4, style=value)(6)
    assert run.events == []  # the trainer skips them
    run(5, style=value)(5)
    assert "the loss was not finite; back to the state of step 100" in run.events[0]
    assert run.trainer.weight == 100


def test_skipped_updates_are_told_and_counted():
    run = Run()(15)
    run.trainer.skipped += 3
    run(20)
    assert run.events == ["step 20: 3 updates were not finite and were skipped"]
    assert run.memory.skipped == 3


def test_flat_paintings():
    run = Run()(KEEP_EVERY)
    run.trainer.painted = 0.01 * PHOTO
    run(FLAT_POLLS * POLL_EVERY - 1)
    assert run.events == []  # young generators are flat for a while
    run(1)
    assert "the paintings had become flat; back to the state of step 50" in run.events[0]
    assert run.memory.good_step == KEEP_EVERY  # a flat state is not kept


@pytest.mark.parametrize("contrast", [0.05, 0.0])
def test_muted_styles_are_painted_as_muted(contrast):
    run = Run(contrast=contrast)
    run.trainer.painted = contrast * PHOTO  # a third of the style's contrast
    run.trainer.average = lambda photo, style: contrast * photo
    assert run(200).events == []
    assert run.memory.good_step == 200
    assert run.guards.settle(200, PHOTOS) == ([], True)


def test_paintings_that_are_flat_beside_a_muted_style_are_found_out():
    run = Run(contrast=0.05)
    run.trainer.painted = 0.01 * PHOTO
    run(FLAT_POLLS * POLL_EVERY)
    assert "the paintings had become flat" in run.events[0]


def test_a_rate_far_too_high_that_learns_nothing_becomes_the_safe_one():
    run = Run(rate=0.5)(BLANK_POLLS * POLL_EVERY - 1, content=0.9, style=0.8)
    assert run.events == []
    run(1, content=0.9, style=0.8)
    assert run.memory.rate * 0.5 == pytest.approx(SAFE)
    assert run.events == [
        "step 120: the paintings showed neither the photo nor the style; "
        "back to the state of step 0, learning rate x 0.004"
    ]
    assert Run()(300, content=0.9, style=0.9).events == []  # slow, but not too fast
    assert Run(rate=0.5)(300, content=0.9, style=0.3)(300, content=0.3, style=0.9).events == []


@pytest.mark.parametrize(("form", "guessing"), [("hinge", 2.0), ("bce", 1.386), ("lsgan", 0.5)])
def test_a_discriminator_that_never_errs_is_slowed_down_until_it_does(form, guessing):
    run = Run(form)(50, "adversarial", discriminator=0.03 * guessing)
    assert OUTRIGHT_POLLS * POLL_EVERY == 50
    assert run.memory.pace == 0.5
    assert "step 50: the discriminator never errs; its learning rate x 0.5" in run.events
    run(50, "adversarial", discriminator=0.03 * guessing)
    assert run.memory.pace == 0.25
    run(50, "adversarial", discriminator=0.1 * guessing)
    assert run.memory.pace == 0.25  # neither wins nor errs enough
    run(10, "adversarial", discriminator=0.5 * guessing)
    assert run.memory.pace == 1.0
    assert run.events[-1].endswith("is in balance again; its learning rate x 1")
    run(1000, "adversarial", discriminator=0.0)
    assert run.memory.pace == PACES[0]
    assert run.memory.rate == 1.0


def test_a_discriminator_worse_than_guessing_learns_faster():
    run = Run()(50, "adversarial", discriminator=3.0)
    assert run.memory.pace == 2.0
    assert "is worse than guessing; its learning rate x 2" in run.events[0]
    run(500, "adversarial", discriminator=3.0)
    assert run.memory.pace == PACES[1]
    run(10, "adversarial", discriminator=1.5)
    assert run.memory.pace == 1.0


def test_without_a_discriminator_nobody_wins():
    assert Run()(200).memory.pace == 1.0


def test_a_stage_begins_with_its_own_reference():
    run = Run()(60)(10, "repair", repair=60.0, style=0.0, discriminator=1.0)
    assert run.events == []
    run(10, "repair", repair=2.0, style=0.0, discriminator=1.0)
    assert run.memory.reference == 20  # 4 times the last stage's at most


@pytest.mark.parametrize("stage", ["adversarial", "repair"])
def test_the_last_steps_of_a_stage_are_judged_when_it_ends(stage):
    run = Run()(50)(7, style=1e9)
    assert run.events == []
    run(1, stage, discriminator=1.0)
    (event,) = run.events
    assert "step 57: the loss had exploded" in event
    assert "back to the state of step 50" in event
    assert run.trainer.weight == 50
    assert run.memory.stage == stage


def test_what_is_read_a_step_later_is_answered_a_step_later():
    run = Run(lag=1)(110)
    assert run.memory.good_step == 101  # what step 100 was like is known when 101 has begun
    assert run.memory.asked == 110
    run.trainer.skipped += 3
    run(1)
    assert run.memory.asked == 0
    assert run.events == []  # of after step 110
    run(9, style=1e6)
    assert run.events == []
    run(1)
    assert run.trainer.weight == 101
    assert run.memory.good_step == 101
    assert run.events == [
        "step 120: 3 updates were not finite and were skipped",
        "step 120: the loss had exploded (distance 1e+06); "
        "back to the state of step 101, learning rate x 0.3",
    ]


@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.parametrize("cut", [1, 45, 100, 104, 111, 120, 133, 171])
def test_broken_off_anywhere_it_goes_on_as_if_it_had_not(cut, lag):
    plan = [("perceptual", 0.5, 1.0)] * 103 + [("perceptual", 1e9, 1.0)] * 13
    plan += [("adversarial", 0.5, 0.0)] * 64 + [("repair", float("nan"), 1.0)] * 20
    plan += [("repair", 0.5, 1.0)] * 60

    def go_on(run, part):
        for stage, style, discriminator in part:
            run(1, stage, style=style, discriminator=discriminator)
        return run

    whole = go_on(Run(lag=lag), plan)
    first = go_on(Run(lag=lag), plan[:cut])
    values, tensors = first.guards.state()
    second = Run(lag=lag)
    second.step, second.events = first.step, first.events
    second.trainer.weight.data.copy_(first.trainer.weight)
    second.guards.load_state(json.loads(json.dumps(values)), tensors)
    go_on(second, plan[cut:])
    assert second.memory == whole.memory
    assert second.events == whole.events
    assert len(whole.events) >= 3
    assert torch.equal(second.trainer.weight, whole.trainer.weight)


PHOTOS = [PHOTO[:1], PHOTO[1:]]


def test_what_ships_is_judged_at_the_end():
    run = Run()(57)
    assert run.guards.settle(57, PHOTOS) == ([], True)
    run.trainer.average = lambda photo, style: photo * 0
    (event,), _ = run.guards.settle(57, PHOTOS)
    assert "flat; back to the state of step 50" in event
    assert run.trainer.weight == 50
    young = Run()(20)
    young.trainer.average = lambda photo, style: photo * 0
    assert young.guards.settle(20, PHOTOS) == ([], True)  # nothing better is known
    assert young.trainer.weight == 20
    assert young.guards.memory.returns == 0
    young.trainer.average = lambda photo, style: photo * (young.trainer.weight == 0)
    (event,), _ = young.guards.settle(20, PHOTOS)
    assert "flat; back to the state of step 0" in event
    assert young.trainer.weight == 0
    run = Run()(60)(7, style=1e9)
    assert "exploded" in run.guards.settle(67, PHOTOS)[0][0]


def test_each_photo_is_looked_at():
    run = Run()(57)
    run.trainer.average = lambda photo, style: photo * 0 if torch.equal(photo, PHOTOS[1]) else photo
    (event,), _ = run.guards.settle(57, PHOTOS)
    assert "flat; back to the state of step 50" in event


def test_each_style_is_looked_at():
    run = Run()(57)
    run.trainer.styles *= 3
    run.trainer.average = lambda photo, style: photo * (1 - style[0, 2])
    (event,), _ = run.guards.settle(57, PHOTOS)
    assert "flat; back to the state of step 50" in event


def test_a_plain_photo_may_be_painted_plainly():
    plain = torch.full_like(PHOTO[:1], 0.3)
    assert Run()(57).guards.settle(57, [*PHOTOS, plain]) == ([], True)
    assert Run()(57).guards.settle(57, [plain]) == ([], True)


def flattening(sound_from, white=1.0):
    """A repairer that makes everything `white`, unless the weight is `sound_from` or more."""

    class Repairer:
        def __call__(self, painted, photo):
            return None, None

        def apply_repair(self, painted, lost, residual, strength):
            return painted if run.trainer.weight >= sound_from else painted * 0 + white

    run = Run()(57, stage="repair")
    run.trainer.repairer, run.trainer.repairs = Repairer(), lambda: True
    return run


@pytest.mark.parametrize("white", [1.0, float("nan")])
def test_a_repairer_that_flattens_is_not_shipped(white):
    unrepaired = (["step 57: repaired paintings are flat: saved unrepaired"], False)
    run = flattening(sound_from=1000, white=white)
    assert run.guards.settle(57, PHOTOS) == unrepaired
    assert run.trainer.weight == 57  # nothing else was at fault
    run.trainer.repairs = lambda: run.trainer.weight > 50  # the good state is of the stage before
    assert run.guards.settle(57, PHOTOS) == unrepaired
    assert run.trainer.weight == 57
    run = flattening(sound_from=50, white=white)
    run.trainer.weight.data.fill_(49)
    (event,), sound = run.guards.settle(57, PHOTOS)
    assert "back to the state of step 50" in event
    assert sound


def test_of_dull_states_the_last_one_ships():
    run = Run()(57)
    run.trainer.average = lambda photo, style: photo * 0.15
    assert run.guards.settle(57, PHOTOS) == ([], True)
    assert (run.trainer.weight, run.memory.returns) == (57, 0)
    run.trainer.average = lambda photo, style: photo * (0.15 if run.trainer.weight == 50 else 0)
    (event,), _ = run.guards.settle(57, PHOTOS)
    assert "flat; back to the state of step 50" in event


def test_the_host_waits_once_in_ten_steps(monkeypatch):
    waits = []
    for name in ("tolist", "item", "__float__", "__bool__", "__int__", "cpu"):
        real = getattr(torch.Tensor, name)
        monkeypatch.setattr(
            torch.Tensor, name, lambda t, *a, real=real: (waits.append(1), real(t, *a))[1]
        )
    run = Run()(1)
    waits.clear()
    run(100)
    assert len(waits) == 10
