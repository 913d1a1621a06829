"""Starting from a generator that can paint already, instead of from noise."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from faststy import assets
from faststy.errors import FaststyError
from faststy.model_file import Model, load_model
from faststy.nn.generator import Generator
from faststy.nn.normalization import ConditionalInstanceNorm2d
from faststy.training import objective
from faststy.training.precision import in_precision
from faststy.training.step import Trainer

REPAIRER_PACE = 0.25  # of its learning rate: at all of it, it forgets more than it learns


def start(trainer: Trainer, base: str, photo: Tensor) -> str | None:
    """Start `trainer` from `base` ("auto", "none" or a file), and say in words how, or None.

    A base that is smaller than the trainer's generator is grown to its size. Raises FaststyError
    for a file that is no model, or a larger one.
    """
    if base == "none":
        return None
    path = assets.model() if base == "auto" else base
    model = load_model(path)
    ours, theirs = trainer.generator.config, model.generator.config
    if ours.channels < theirs.channels or ours.blocks < theirs.blocks:
        if base == "auto":
            return None
        raise FaststyError(
            f"{path}: a larger generator than that of model {trainer.config.model}; "
            "choose a larger model, or base none"
        )
    names = " and ".join(f"'{name}'" for name in dict.fromkeys(warm_start(trainer, model, photo)))
    source = "the bundled styles" if base == "auto" else path
    same = (ours.channels, ours.blocks) == (theirs.channels, theirs.blocks)
    return f"begins as {names} of {source}{'' if same else ', grown to its size'}"


def warm_start(trainer: Trainer, base: Model, photo: Tensor) -> list[str]:
    """Give `trainer` the weights of `base`; each new style begins as the style nearest to it.

    Args:
        base: a model of the trainer's size or a smaller one; its repairer is taken over, too, but
            for its colour correction, which was learned on other palettes.
        photo: [N, 3, H, W] in 0...1, on the trainer's device: what the styles are compared on.
    Returns:
        the names of the base's styles that the trainer's styles began as.
    """
    generator = base.generator.to(trainer.device)
    nearest = _nearest(trainer, generator, photo)
    state = generator.state_dict()
    for name, module in generator.named_modules():
        if isinstance(module, ConditionalInstanceNorm2d):
            for key in (f"{name}.weight", f"{name}.bias"):
                state[key] = state[key][nearest]
    grow(trainer.generator, state)
    trainer.average.load_state_dict(trainer.generator.state_dict())
    if base.repairer is not None:
        trainer.repairer.load_state_dict(base.repairer.state_dict())
        trainer.repairer.forget_colours()
        trainer.repairer_pace = REPAIRER_PACE
    return [base.info.styles[index] for index in nearest]


@torch.no_grad()
def grow(generator: Generator, state: Mapping[str, Tensor]) -> None:
    """Have a new `generator` paint what one of `state` does, which may be smaller.

    As in Net2Net (Chen et al. 2016): what is new reads all features, by the random weights that it
    has; what was there reads none that are new, by weights of zero, which training moves.
    """
    for name, parameter in generator.named_parameters():
        if name in state:
            old = state[name]
            if parameter.ndim == 4:  # [to, from, 3, 3]
                parameter[: len(old)] = 0
            parameter[tuple(slice(side) for side in old.shape)] = old
        elif name.endswith("norm2.weight"):
            parameter.zero_()  # a new block adds nothing yet


@torch.no_grad()
@in_precision
def _nearest(trainer: Trainer, generator: Generator, photo: Tensor) -> list[int]:
    """For each style of the trainer, that of `generator` whose paintings are nearest to it."""
    distances = []
    for style in torch.eye(generator.config.styles, device=trainer.device):
        painted = generator(photo, style)
        taps = objective.inner(trainer.encoder(painted))
        for target in trainer.styles:
            distance = objective.style_loss(taps, target.grams)
            distances.append(distance + objective.colour_loss(painted, target.colours))
    table = torch.stack(distances).view(-1, len(trainer.styles))
    nearest: list[int] = table.argmin(0).tolist()
    return nearest
