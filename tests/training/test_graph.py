"""A step that a CUDA graph can record: nothing in it waits for the device or takes from the host.

Without a CUDA device, its ops on a CPU are watched; with one, it is recorded.
"""

from contextlib import contextmanager, nullcontext
from dataclasses import replace
from importlib import import_module

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from faststy.nn.encoder import PerceptualEncoder, load_encoder
from faststy.ops import conv3x3_train, convolution, reference
from faststy.training.config import TrainConfig
from faststy.training.dataset import Pictures
from faststy.training.graph import Recorder
from faststy.training.step import WEIGHED, StyleTarget, Trainer

CPU = torch.device("cpu")
LEFT_TO_TORCH = [import_module(f"faststy.ops.{name}") for name in ("bias_activation", "blur")]
POOLS = [
    import_module(f"faststy.ops.{name}") for name in ("averages", "max_pool", "reflection_pad")
]
aten = torch.ops.aten
CONFIG = TrainConfig(style=("a",) * 2, model="nano", size=64, batch=4, steps=10, seed=36)
# Steps of every kind: in one of 0 and 1 the motion is smooth, in the other by whole pixels; of
# eight, four each.
KINDS = [(s, n) for s in ("perceptual", "adversarial") for n in (0, 1)] + [("repair", 0)]


@pytest.fixture(scope="module")
def targets(tmp_path_factory):
    folder, encoder, found = tmp_path_factory.mktemp("styles"), load_encoder(), []
    for name, period in (("fine", 3), ("coarse", 9)):
        y, x = np.mgrid[:96, :80]
        pixels = np.stack([127 + 120 * np.sin(x / period), 90 + y, 255 - y * 2], -1)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{name}.png")
        found.append(StyleTarget.of(Pictures.found(folder / f"{name}.png", 64), encoder, CPU))
    return found


def photos(seed=0):
    x = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(seed))
    return x.contiguous(memory_format=torch.channels_last)


def made(targets, device=CPU, **settings):
    config = replace(CONFIG, **{"precision": "float32", **settings})
    return Trainer(config, load_encoder().to(device), targets, device)


def drawn(trainer, stage, number, pairs=True):
    photo = photos(number)
    pair = (photo[:2], photo[:2].flip(1)) if pairs and stage != "repair" else None
    return trainer.draw(number, stage, photo, pair)


# --------------------------------------------------------------------------- by its ops

# On a CUDA device the host would wait for these, or record one moment's numbers.
WAITS = (
    aten._local_scalar_dense, aten.item, aten.is_nonzero, aten.equal, aten.nonzero,
    aten.masked_select, aten.repeat_interleave, aten._unique2, aten.lift_fresh, aten.bincount,
)  # fmt: skip


class OnTheDevice(TorchDispatchMode):
    """Fails at an op that waits for a device, and at tensors that come from elsewhere.

    `known` is what is there from the beginning; the rest must be results. A constant of the host's
    would be neither.
    """

    def __init__(self, known):
        super().__init__()
        self.seen, self.kept = set(), list(known)  # kept, or an address could be another's later
        self.known = {t.untyped_storage().data_ptr() for t in known}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, op = kwargs or {}, func.overloadpacket
        self.seen.add(op)
        assert op not in WAITS, func
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        for t in tensors:
            known = t.numel() == 0 or t.untyped_storage().data_ptr() in self.known
            assert known, f"{func}: {t.dtype} {list(t.shape)} from the host"
            assert not (op in (aten.index, aten.index_put_) and t.dtype == torch.bool), func
        if func.namespace == "faststy" and op.__name__ != "combined_loss_scale_":
            with self:  # what it is made of, where there is no kernel of it
                results = getattr(reference, op.__name__)(*args, **kwargs)
        else:
            results = func(*args, **kwargs)
        for t in tree_leaves(results):
            if isinstance(t, torch.Tensor):
                self.kept.append(t)
                self.known.add(t.untyped_storage().data_ptr())
        return results


def all_tensors(trainer):
    """Everything that a trainer has on its device."""
    found = [t for net in (*trainer.nets.values(), trainer.encoder) for t in net.parameters()]
    found += [t for net in (*trainer.nets.values(), trainer.encoder) for t in net.buffers()]
    for optimiser in trainer.optimisers.values():
        found += tree_leaves(vars(optimiser))
    values = found + tree_leaves(list(vars(trainer).values()))
    return [t for t in values if isinstance(t, torch.Tensor)]


def move_of(trainer, stage):
    return trainer._repair if stage == "repair" else trainer._perceptual


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(("stage", "number"), KINDS)
def test_a_step_neither_waits_nor_takes_from_the_host(
    monkeypatch, targets, stage, number, precision
):
    trainer = made(targets, precision=precision)
    step = replace(drawn(trainer, stage, number), weights=torch.ones(len(WEIGHED)))
    # On a CUDA device it looks at numbers at the first call alone, which is never recorded.
    monkeypatch.setattr(PerceptualEncoder, "_check", lambda encoder, x: None)
    with OnTheDevice([*all_tensors(trainer), *step.tensors().values()]) as watch:
        terms, _ = move_of(trainer, stage)(step)
    assert {"total"} < terms.keys()
    used = {aten.convolution, aten.convolution_backward, aten._fused_adam_}
    assert used < watch.seen


@pytest.mark.parametrize(("stage", "number"), KINDS)
def test_the_ops_of_a_gpu_neither_wait_nor_change_what_is_learned(
    monkeypatch, targets, stage, number
):
    """Those that torch has, too: where they are put, and how."""
    monkeypatch.setattr(PerceptualEncoder, "_check", lambda encoder, x: None)
    monkeypatch.setattr(conv3x3_train, "by_extension", lambda op, x: False)
    gradients, seen = [], set()
    for on_gpu in (False, True):
        for module in (convolution, *LEFT_TO_TORCH):
            monkeypatch.setattr(module, "by_kernels", lambda x, values=0, on=on_gpu: on)
        for module in POOLS:
            monkeypatch.setattr(module, "by_raw_op", lambda op, x, values, on=on_gpu: on)
        trainer = made(targets)
        step = replace(drawn(trainer, stage, number), weights=torch.ones(len(WEIGHED)))
        with OnTheDevice([*all_tensors(trainer), *step.tensors().values()]) as watch:
            move_of(trainer, stage)(step)
        seen = watch.seen - seen
        for net in (trainer.generator, trainer.discriminator, trainer.repairer):
            found = [p.grad.flatten() for p in net.parameters() if p.grad is not None]
            gradients.append(torch.cat([torch.zeros(1), *found]))
    raw = torch.ops.faststy
    used = {raw.bias_activation_fwd, raw.bias_activation_bwd, raw.max_pool_fwd, raw.max_pool_bwd}
    if stage != "perceptual":
        used |= {raw.averages_fwd, raw.averages_bwd}
    assert used <= seen
    for plain, ours in zip(gradients[:3], gradients[3:], strict=True):
        assert (plain - ours).norm() <= 1e-3 * plain.norm()


# --------------------------------------------------------------------------- recorded and replayed

PLAN = [(stage, n) for stage in ("perceptual", "adversarial", "repair") for n in range(8)]


def take(trainer, plan=PLAN, device=CPU):
    """The steps of a plan: their terms, and what was painted."""
    results = []
    for i, (stage, number) in enumerate(plan):
        trainer.set_learning_rate(1e-3 * (1 + i % 3), pace=0.5)  # small: rounding stays small
        terms = trainer.take(drawn(trainer, stage, number).to(device), 2.0 + number)
        results.append((terms, trainer.painted))
    return results


class OnTheTape(TorchDispatchMode):
    """Notes every op with the tensors it took and gave."""

    def __init__(self):
        super().__init__()
        self.tape = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        results = func(*args, **(kwargs or {}))
        self.tape.append((func, args, kwargs or {}, results))
        return results


class CPUGraph:
    """What torch.cuda.CUDAGraph does, op by op: the same ops on the same memory, no Python."""

    tape = ()

    def replay(self):
        for func, args, kwargs, recorded in self.tape:
            given = {t.untyped_storage().data_ptr() for t in self.tensors((args, kwargs))}
            with torch._C._AutoDispatchBelowAutograd():  # where they were noted
                results = func(*args, **kwargs)
            for old, new in zip(self.tensors(recorded), self.tensors(results), strict=True):
                if old.untyped_storage().data_ptr() not in given:  # neither a view nor in place
                    old.detach().copy_(new)

    @staticmethod
    def tensors(tree):
        return [t for t in tree_leaves(tree) if isinstance(t, torch.Tensor)]


@pytest.fixture
def recording(monkeypatch):
    """Gives a trainer that records its steps, on a CPU, and how many graphs there are."""

    def recorder_of(trainer):
        graphs = []

        @contextmanager
        def graph(made, pool, capture_error_mode):
            assert capture_error_mode == "thread_local"
            before = [t.detach().clone() for t in all_tensors(trainer)]
            with OnTheTape() as tape:
                yield
            made.tape = tape.tape
            graphs.append(made)
            for t, value in zip(all_tensors(trainer), before, strict=True):
                t.detach().copy_(value)  # a CUDA device only notes what it is told

        monkeypatch.setattr(torch.cuda, "graph", graph)
        monkeypatch.setattr(torch.cuda, "CUDAGraph", CPUGraph)
        monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
        monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
        monkeypatch.setattr(torch.cuda, "Stream", lambda device: None)
        monkeypatch.setattr(Recorder, "_beside", lambda self, move, step: move(step))
        trainer._recorder = Recorder(CPU)
        return graphs

    return recorder_of


def assert_same(one, other, **tolerance):
    for (terms, painted), (others, other_painted) in zip(one, other, strict=True):
        assert terms.keys() == others.keys()
        for name, value in terms.items():
            torch.testing.assert_close(
                value, others[name], **tolerance, msg=lambda m, n=name: n + m
            )
        torch.testing.assert_close(painted, other_painted, **tolerance)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_replayed_ops_are_the_step(monkeypatch, targets, recording, precision):
    """With other photos, styles, offsets, squares, λ, learning rates and paces than recorded."""
    monkeypatch.setattr(PerceptualEncoder, "_check", lambda encoder, x: None)
    eager, recorded = (made(targets, precision=precision) for _ in range(2))
    graphs = recording(recorded)
    assert_same(take(recorded), take(eager), atol=0, rtol=0)
    assert len(graphs) == 5
    for a, b in zip(all_tensors(recorded), all_tensors(eager), strict=True):
        assert torch.equal(a, b)
    assert eager.skipped == 0


def on(target, device):
    grams = [gram.to(device) for gram in target.grams]
    return replace(target, grams=grams, colours=target.colours.to(device))


@pytest.mark.gpu
@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 2e-3), ("bfloat16", 4e-2)])
def test_on_a_gpu_recorded_steps_are_the_steps(targets, precision, tolerance):
    there = torch.device("cuda")
    moved = [on(t, there) for t in targets]
    eager, recorded = (made(moved, there, precision=precision) for _ in range(2))
    start = [p.detach().clone() for p in eager.generator.parameters()]
    eager._recorder = None
    results = take(recorded, device=there)
    assert_same(results, take(eager, device=there), atol=tolerance, rtol=tolerance)
    assert len(recorded._recorder._recorded) == 5
    for name, net in recorded.nets.items():
        for a, b in zip(net.parameters(), eager.nets[name].parameters(), strict=True):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=tolerance)
    pairs = zip(start, recorded.generator.parameters(), strict=True)
    assert all(not torch.equal(a, b) for a, b in pairs)


@pytest.mark.gpu
def test_on_a_gpu_the_host_does_not_wait_for_a_recorded_step(targets):
    there = torch.device("cuda")
    trainer = made([on(t, there) for t in targets], there)
    take(trainer, device=there)
    torch.cuda.set_sync_debug_mode("error")
    try:
        take(trainer, device=there)
    finally:
        torch.cuda.set_sync_debug_mode("default")
