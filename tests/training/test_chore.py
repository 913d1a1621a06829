import pytest

from faststy.training import chore
from faststy.training.chore import SHARE, Chore


def test_what_a_chore_costs_is_known_from_its_second_time(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(chore.time, "monotonic", lambda: now[0])

    def take(seconds):
        now[0] += seconds

    preview = Chore(10.0, at_once=True)
    guess = preview.cost
    assert preview.due()
    preview.timed(lambda: take(5.0))()  # and all that is done once
    assert preview.cost == guess
    now[0] = 100 + 5.0 / SHARE - 1  # but the time is gone
    assert not preview.due()
    now[0] += 1
    assert preview.due()
    preview.timed(lambda: take(0.5))()
    assert preview.cost == pytest.approx(0.5)
