"""Batches of frames: painted together, what one after the other gives."""

import copy
import math
import threading
import warnings
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode

from faststy.nn.plain import PlainRepairer
from faststy.ops import reference
from faststy.stylization import batches
from faststy.stylization.statistics import NormStatistics
from faststy.stylization.stylizer import Stylizer
from tests.stylization.test_realtime import frame, stylizer

__all__ = ["stylizer"]  # the fixture


def scene():
    """24 frames: a pan where something comes in, a cut to another scene, black, another size."""
    frames = [frame(0.03 * i) for i in range(15)]
    for one in frames[4:]:
        one[10:30, 30:50] = 230
    noise = np.random.default_rng(1).integers(0, 60, (45, 62, 3))
    frames += [(noise + 3 * i).astype(np.uint8) for i in range(4)]
    frames += [np.zeros_like(frames[0]), np.zeros_like(frames[0])]
    return [*frames, frame(h=30, w=31), frame(0.1, h=30, w=31), frame(0.2, h=30, w=31)]


def batching(stylizer, **dials):
    """A painter that paints on a CPU what a GPU would."""
    painter = stylizer.painter(**dials)
    painter.in_batches = True
    return painter


def difference(a, b):
    return np.abs(a.astype(int) - b).max()


@pytest.mark.parametrize(
    "dials",
    [
        {},
        {"repair": 0.0},
        {"repair": 0.4, "style": "rain:1,starry night:3"},
        {"strength": 0.5, "keep_color": True},
        {"half_life": 0.0},
        {"half_life": 0.7},
        {"half_life": 5.0},
        {"half_life": math.inf},
    ],
)
@pytest.mark.parametrize("length", [3, 24])
def test_together_as_one_by_one(stylizer, dials, length):
    one_by_one, together = stylizer.painter(**dials), batching(stylizer, **dials)
    frames = scene()
    for i in range(0, len(frames), length):
        painted = together.batch(frames[i : i + length])
        assert len(painted) == len(frames[i : i + length])
        for got, photo in zip(painted, frames[i : i + length], strict=True):
            assert got.shape == photo.shape
            assert difference(got, one_by_one(photo)) <= 1
    for name, moments in one_by_one._statistics.moments.items():
        torch.testing.assert_close(
            together._statistics.moments[name], moments, atol=1e-4, rtol=1e-4
        )


def test_a_batch_is_painted_by_few_runs_of_the_net(stylizer, monkeypatch):
    """What follows a cut is painted anew."""
    painter = batching(stylizer)
    frames, runs = scene(), []
    painter.batch(frames[:1])
    paint = painter._net.paint
    monkeypatch.setattr(painter._net, "paint", lambda f, **k: runs.append(len(f)) or paint(f, **k))
    painter.batch(frames[1:19])  # the cut is at 15
    assert runs == [5, 5, 5, 1, 2, 1]


def test_each_frame_of_a_batch_has_moments_of_its_own(stylizer):
    """Against one after the other in float64: mean and variance after each step of the way."""
    rng = torch.Generator().manual_seed(0)
    first, aim = (torch.rand(2, 5, generator=rng) for _ in range(2))
    statistics = NormStatistics({"norm": first.clone()})
    each = statistics.on_the_way(NormStatistics({"norm": aim}), 0.2, 6)["norm"]
    expected = first.double()
    for i in range(6):
        expected = expected + 0.2 * (aim - expected)
        torch.testing.assert_close(each[i].double(), expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(statistics.moments["norm"], each[-1], atol=0, rtol=0)
    still = NormStatistics({"norm": first}).on_the_way(NormStatistics({"norm": aim}), 0.0, 3)[
        "norm"
    ]
    torch.testing.assert_close(still, first.expand(3, 2, 5), atol=0, rtol=0)


def test_frames_of_a_stream_are_painted_as_they_wait(stylizer):
    frames = scene()
    painter, expected = batching(stylizer), stylizer.painter()
    painted = stylizer.stream(iter(frames), painter=painter)
    for got, photo in zip(painted, frames, strict=True):
        assert difference(got, expected(photo)) <= 1


def test_a_stream_waits_for_no_batch_to_be_full(stylizer):
    """What a live source gave is painted before the next frame is there."""
    painter = batching(stylizer)
    seen = threading.Event()

    def source():
        yield frame()
        assert seen.wait(20), "the first frame was held back"
        yield frame(0.1)

    painted = stylizer.stream(source(), painter=painter)
    next(painted)
    seen.set()
    assert len(list(painted)) == 1


def test_length_of_a_batch():
    small, large, other = (np.empty(s, np.uint8) for s in ((9, 9, 3), (2160, 3840, 3), (9, 8, 3)))
    assert batches.length([small] * 20, 10) == 5
    assert batches.length([small] * 20, 4) == 2
    assert batches.length([small] * 3, 10) == 2
    assert batches.length([small, small, other, small, small], 10) == 2
    assert batches.length([small, other], 10) == 1
    assert batches.length([large] * 20, 10) == 2
    assert batches.length([np.empty((9000, 9000, 3), np.uint8)] * 2, 10) == 1


def test_what_comes_again_is_recorded_and_little_is_kept(monkeypatch):
    """Once as it is, then recorded once and replayed; with another length or dial anew."""
    happened = []

    class Graph:
        def __init__(self, step, frames, key, pool):
            happened.append(("recorded", *frames.shape, key))
            self.kind = (frames.shape, key)

        def __call__(self, frames):
            happened.append(("replayed", *frames.shape, self.kind[1]))
            return ()

    monkeypatch.setattr(batches, "_Graph", Graph)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))

    def step(frames, key):
        happened.append(("run", *frames.shape, key))
        return ()

    def call(length, key):
        happened.clear()
        recorder(SimpleNamespace(shape=(length,), device=torch.device("cuda")), key)
        return [what for what, *kind in happened if kind == [length, key]]

    recorder = batches.Recorder(step)
    for length, key in [(5, "a"), (2, "a"), (5, "b")]:
        assert call(length, key) == ["run"]
        assert call(length, key) == ["recorded", "replayed"]
        assert call(length, key) == ["replayed"]
    assert call(5, "a") == ["replayed"]
    for i in range(20):  # a slider that is moved: each value for a frame or two
        assert call(1, i) == ["run"]
        assert call(1, i) == ["recorded", "replayed"]
    assert len(recorder._graphs) <= batches._GRAPHS
    assert call(5, "a") == ["run"]


class NothingOfTheHost(TorchFunctionMode):
    """Fails where a tensor would be filled from numbers of the host: no recording can hold that.

    On the device "meta", where tensors have no contents, whatever asks for these fails by itself.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        assert function not in (torch.tensor, torch.as_tensor, torch.Tensor.new_tensor)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "dials", [{}, {"strength": 0.5, "keep_color": True}, {"half_life": math.inf}]
)
@pytest.mark.parametrize("size", [(4, 48, 64), (4, 45, 62), (1, 45, 62)])
def test_what_is_recorded_asks_no_number_of_the_gpu(stylizer, dials, size):
    painter = Stylizer(copy.deepcopy(stylizer.model), "cpu").painter(**dials)
    painter._dtype, painter.in_batches = torch.float16, True
    painter._make_net(painter._settings.style)
    net = painter._net.to("meta")
    painter._repairer = PlainRepairer(painter.stylizer.model.repairer, torch.float16).to("meta")
    moments = {name: torch.empty(2, len(c.weight), device="meta") for name, c in net.norms.items()}
    painter._aim, painter._statistics = NormStatistics(moments), NormStatistics(moments)
    frames = torch.empty((*size, 3), dtype=torch.uint8, device="meta")
    with NothingOfTheHost(), torch.inference_mode():
        done, *entrances = painter._paint_slowly(frames, painter._settings)
    assert (done.device.type, done.dtype, done.shape) == ("meta", torch.uint8, frames.shape)
    shapes = [tuple(entrance.shape) for entrance in entrances]
    assert shapes == ([] if "half_life" in dials else [(size[0], 2, 8)])


def test_what_stands_in_for_kernels_asks_none_either():
    frames = torch.empty((2, 8, 12, 3), dtype=torch.uint8, device="meta")
    weight = torch.empty((20, 6, 3, 3), dtype=torch.float16, device="meta")
    with NothingOfTheHost():
        details, _ = reference.repair_hints(frames, frames)
        heads = torch.empty((2, 6, 2, 3), dtype=torch.float16, device="meta")
        assert reference.repair_apply(frames, details, heads, 0.5).shape == frames.shape
        y, _ = reference.conv3x3_fwd([heads], weight, None, None, None, 0.0, False)
        assert reference.blur_cells_fwd(reference.upsample_fwd(y, 2), 2).shape == (2, 5, 8, 12)


def test_frames_may_come_and_stay_as_tensors(stylizer):
    frames = scene()[:-3]  # the last ones are smaller
    expected = np.stack(stylizer.painter().batch(frames))
    painted = stylizer.painter().on_device(torch.from_numpy(np.stack(frames)))
    assert torch.equal(painted, torch.from_numpy(expected))
    alone = stylizer.painter().on_device(torch.from_numpy(frames[0][None]))
    alone[:, :4] = 0  # it is the caller's own
    none = torch.zeros(0, 8, 8, 3, dtype=torch.uint8)
    assert torch.equal(stylizer.painter().on_device(none), none)  # as `batch`
    empty = torch.zeros(1, 0, 8, 3, dtype=torch.uint8)
    for wrong in (torch.zeros(8, 8, 3), torch.zeros(1, 3, 8, 8), torch.zeros(1, 8, 8, 3), empty):
        with pytest.raises(ValueError, match=r"expected uint8 \[N, H, W, 3\] on cpu"):
            stylizer.painter().on_device(wrong)
    with pytest.raises(ValueError, match="on meta; expected"):
        stylizer.painter().on_device(torch.zeros(1, 8, 8, 3, dtype=torch.uint8, device="meta"))


@pytest.mark.gpu
@pytest.mark.parametrize("dials", [{}, {"half_life": math.inf}])
def test_on_a_gpu_frames_stay_there(stylizer, dials):
    there = Stylizer(copy.deepcopy(stylizer.model), "cuda")
    expected, painter = there.painter(**dials), there.painter(**dials)
    frames = scene()[:-3]
    tensors = torch.from_numpy(np.stack(frames)).cuda()
    for _ in range(3):
        painted = painter.on_device(tensors)
        assert painted.is_cuda
        assert np.array_equal(painted.cpu().numpy(), np.stack(expected.batch(frames)))
    if "half_life" in dials:
        torch.cuda.set_sync_debug_mode("error")
        try:
            painter.on_device(tensors)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.parametrize(
    "dials", [{}, {"half_life": math.inf}, {"strength": 0.5, "keep_color": True}]
)
def test_on_a_gpu_a_recorded_batch_is_painted_as_frames_are(stylizer, dials):
    here, there = stylizer.painter(**dials), Stylizer(copy.deepcopy(stylizer.model), "cuda")
    painter = there.painter(**dials)
    frames = scene()
    for _ in range(3):  # as it is, recorded, replayed
        here.reset()
        painter.reset()
        for got, photo in zip(painter.batch(frames), frames, strict=True):
            assert np.abs(got.astype(int) - here(photo)).mean() < 1  # float16
    assert painter._step._graphs


@pytest.mark.gpu
def test_on_a_gpu_only_the_last_copy_waits(stylizer, monkeypatch):
    painter = Stylizer(copy.deepcopy(stylizer.model), "cuda").painter(half_life=math.inf)
    frames = [frame(0.03 * i) for i in range(9)]
    for _ in range(3):
        painter.batch(frames)
    last = mock.Mock(wraps=batches.to_host)
    monkeypatch.setattr(batches, "to_host", last)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            painter.batch(frames)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits = ["synchronizing CUDA operation" in str(w.message) for w in told]
    assert sum(waits) == last.call_count > 0


@pytest.mark.gpu
def test_on_a_gpu_copies_arrive():
    frames = [frame(h=20, w=30), frame(1.0, h=20, w=30)[:, ::-1]]
    device = torch.device("cuda")
    (back,) = batches.to_host(batches.to_device(frames, device))
    np.testing.assert_array_equal(back.numpy(), np.stack(frames))
    assert back.is_pinned()
