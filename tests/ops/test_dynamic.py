"""Compiled for one batch, ops serve all: `len(x)` in a check or a fake would pin its size."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from faststy import ops
from faststy.ops.reference import CHANNELS_LAST

raw = torch.ops.faststy
FILTERS = torch.rand(8, 4, 3, 3)
MATRIX = torch.eye(4)
WEIGHTS = torch.ones(6)

OPS: dict[str, Callable[[Tensor], object]] = {
    "instance_norm": lambda x: ops.instance_norm(x, torch.ones(4)),
    "gram": lambda x: ops.gram(x, center=True),
    "gram_loss": lambda x: ops.gram_loss(x, MATRIX),
    "combined_loss": lambda x: (
        ops.combined_loss(
            WEIGHTS, features=[(x, x.detach())], picture=x[:, :3], colours=MATRIX
        ).total
    ),
    "discriminator_loss": lambda x: ops.discriminator_loss([x], [x]).total,
    "bias_activation": lambda x: ops.bias_activation(x, torch.ones(4), "relu"),
    "reflection_pad": ops.reflection_pad,
    "max_pool": ops.max_pool,
    "averages": ops.averages,
    "blur": ops.blur,
    "pixel_unshuffle": lambda x: ops.pixel_unshuffle(x, 2),
    "pixel_shuffle": lambda x: ops.pixel_shuffle(x, 2),
    "conv3x3": lambda x: ops.conv3x3(x, FILTERS)[0],
    "reflected_conv3x3": lambda x: ops.reflected_conv3x3(x, FILTERS),
    "frozen_conv3x3": lambda x: ops.frozen_conv3x3(x, FILTERS, torch.zeros(8), relu=True),
    "upsample": lambda x: ops.upsample(x, 2),
    "blur_cells": lambda x: ops.blur_cells(x, 2),
    "blur_cells_frames": lambda x: ops.blur_cells_frames(x, 2, (20, 20)),
    "to_pixels": lambda x: ops.to_pixels(x[:, :3]),
    # Those of CUDA devices, whose fakes serve here as there.
    "conv3x3_train_fwd": lambda x: raw.conv3x3_train_fwd(
        x.contiguous(memory_format=CHANNELS_LAST), FILTERS, None, True, False
    ),
    "conv3x3_train_input_grad": lambda x: raw.conv3x3_train_input_grad(
        x.contiguous(memory_format=CHANNELS_LAST), FILTERS, None, True
    ),
    "blur_cells_frames, raw": lambda x: raw.blur_cells_frames(x, 2, 20, 20),
    "from_pixels": lambda x: ops.from_pixels((x * 255).to(torch.uint8), unshuffle=2),
}


@pytest.mark.parametrize("op", OPS)
def test_any_batch(op: str) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(OPS[op], fullgraph=True, backend="aot_eager")
    x = torch.rand(2, 4, 12, 12)
    torch._dynamo.mark_dynamic(x, 0)  # raises where that cannot be
    compiled(x)
    with torch.compiler.set_stance("fail_on_recompile"):
        for n in (3, 5):
            other = torch.rand(n, 4, 12, 12)
            torch.testing.assert_close(compiled(other), OPS[op](other))
