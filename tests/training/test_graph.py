"""A step that a CUDA graph can record: nothing in it waits for the device or takes from the host.

Without a CUDA device, its ops on a CPU are watched; with one, it is recorded.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from faststy.nn.encoder import PerceptualEncoder, load_encoder
from faststy.ops import reference
from faststy.training.config import TrainConfig
from faststy.training.dataset import Pictures
from faststy.training.step import StyleTarget, Trainer

CPU = torch.device("cpu")
aten = torch.ops.aten
CONFIG = TrainConfig(style=("a",) * 2, model="nano", size=64, batch=4, steps=10, seed=1)
# Steps of every kind: by these numbers the motion is smooth, or by whole pixels.
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
        found += [*optimiser.state_dict().values(), optimiser._rate]
    values = tree_leaves(list(vars(trainer).values()))
    return found + [t for t in values if isinstance(t, torch.Tensor)]


def move_of(trainer, stage):
    return trainer._repair if stage == "repair" else trainer._perceptual


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(("stage", "number"), KINDS)
def test_a_step_neither_waits_nor_takes_from_the_host(
    monkeypatch, targets, stage, number, precision
):
    trainer = made(targets, precision=precision)
    step = replace(drawn(trainer, stage, number), weights=torch.ones(8))
    # On a CUDA device it looks at numbers at the first call alone, which is never recorded.
    monkeypatch.setattr(PerceptualEncoder, "_check", lambda encoder, x: None)
    with OnTheDevice([*all_tensors(trainer), *step.tensors().values()]) as watch:
        terms, _ = move_of(trainer, stage)(step)
    assert {"total"} < terms.keys()
    used = {aten.convolution, aten.convolution_backward, aten._fused_adam_}
    assert used < watch.seen
