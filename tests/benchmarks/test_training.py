from __future__ import annotations

from typing import Any

import pytest
import torch
import training as suite
from torch.profiler import ProfilerActivity, profile

from faststy.ops import dispatch
from faststy.training import precision
from faststy.training.graph import WARM_UP

CPU = torch.device("cpu")
SMALL = suite.Job("adversarial", 1, 64)


def test_all_steps_are_right_and_the_ops_are_on_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "processor", lambda: {"avx512_bf16": True})
    monkeypatch.setattr(suite, "BATCHES", 2)
    prepared = suite.prepare(SMALL, CPU)
    assert prepared.missing == {}
    assert tuple(prepared.calls) == suite.VARIANTS
    assert prepared.dtype == "bfloat16"
    assert prepared.operations > 0
    before = dispatch.IMPL
    prepared.calls["ops off"](0)
    assert before == dispatch.IMPL != "reference"


def test_where_float32_is_the_default_it_is_one_variant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "processor", dict)
    assert tuple(suite.makers(SMALL, CPU)) == ("ours", "ops off", "classic")


def test_a_wrong_step_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suite, "BATCHES", 2)
    right: Any = suite.Steps.__call__

    def wrong(self: suite.Steps, i: int) -> Any:
        off = 1.0 if self.implementation == "reference" else 1.1
        return {name: value * off for name, value in right(self, i).items()}

    monkeypatch.setattr(suite.Steps, "__call__", wrong)
    with pytest.raises(suite.Wrong, match="of the first step"):
        suite.prepare(SMALL, CPU)


def test_on_a_gpu_each_kind_of_step_is_checked_once_it_is_recorded() -> None:
    steps = suite.Steps(SMALL, "auto", "auto", CPU)
    assert steps.telling() == [0, 1]
    steps.draws = [steps.draw(i) for i in range(suite.BATCHES)]  # as they are made there
    numbers = steps.telling()
    kinds = {draws.key for draws in steps.draws}
    assert len(kinds) == 2
    assert numbers[0] == 0
    for kind in kinds:
        assert sum(steps.draws[i].key == kind for i in numbers) > WARM_UP + 1


@pytest.mark.parametrize(("stage", "net"), [("adversarial", "generator"), ("repair", "repairer")])
def test_steps_that_do_not_move_a_net_are_refused(
    stage: str, net: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suite, "BATCHES", 2)
    right: Any = suite.Steps.__init__

    def still(self: suite.Steps, job: suite.Job, implementation: str, *rest: Any) -> None:
        right(self, job, implementation, *rest)
        if implementation != "reference":
            self.trainer.optimisers[net].full_rate = self.trainer.optimisers[net].rate = 0.0

    monkeypatch.setattr(suite.Steps, "__init__", still)
    with pytest.raises(suite.Wrong, match=f"2 steps move the {net} elsewhere"):
        suite.prepare(SMALL._replace(stage=stage), CPU)


def test_memory_is_that_of_steps_that_are_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    suite.take_steps(taken.append)  # the classic recipe records nothing
    assert taken == [0, 1]
    steps = suite.Steps(SMALL, "auto", "auto", CPU)
    steps.draws = [steps.draw(i) for i in range(suite.BATCHES)]  # as they are made on a GPU
    kinds: list[object] = []
    monkeypatch.setattr(suite.Steps, "__call__", lambda self, i: kinds.append(self.draws[i].key))
    suite.take_steps(steps)
    assert {kinds.count(kind) for kind in kinds} == {WARM_UP + 2}


def test_the_classic_recipe_has_nothing_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suite, "BATCHES", 1)
    move = suite.classic(SMALL, CPU)
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        move(0)
    assert not [event.key for event in seen.key_averages() if "faststy" in event.key]


def test_the_size_of_the_classic_recipe_is_among_them() -> None:
    names = [case.name for case in suite.cases(CPU, quick=False)]
    ours = [f"{stage} step, 1 × 256²" for stage in suite.STAGES]
    assert names == [ours[0], "adversarial step, 4 × 256²", *ours[1:]]
    assert [case.name for case in suite.cases(CPU, quick=True)] == names[:1]
