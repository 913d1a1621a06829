from types import SimpleNamespace

import torch

from faststy.training.reading import Reading, lag


def test_what_is_read_is_what_was_there():
    values = torch.tensor([[1.0, 2.0], [float("inf"), 4.0]], requires_grad=True)
    reading = Reading(values)
    with torch.no_grad():
        values.zero_()
    assert reading.tolist() == [[1.0, 2.0], [float("inf"), 4.0]]
    assert reading.tolist() == reading.tolist()


def test_of_a_second_gpu_its_own_copy_is_waited_for(monkeypatch):
    seen = []
    event = SimpleNamespace(record=lambda stream=None: seen.append(stream))
    monkeypatch.setattr(torch.cuda, "Event", lambda: event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: f"stream of {device}")
    values = SimpleNamespace(is_cuda=True, device="cuda:1", to=lambda *_, **__: None)
    values.detach = lambda: values
    Reading(values)
    assert seen == ["stream of cuda:1"]


def test_only_a_device_that_runs_on_is_given_time():
    assert lag(torch.device("cpu")) == 0
    assert lag(torch.device("cuda", 1)) == 1
