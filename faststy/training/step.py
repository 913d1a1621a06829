"""One training step of each stage: the nets, their optimisers, and how they move."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from faststy import ops
from faststy.nn.discriminator import Discriminator
from faststy.nn.generator import Generator, GeneratorConfig
from faststy.nn.lost_content import CONTENT_TAP, lost_content
from faststy.nn.repairer import Repairer
from faststy.pictures import style_sample
from faststy.tensors import seeded
from faststy.training import objective
from faststy.training.adam import Adam
from faststy.training.config import TrainConfig
from faststy.training.dataset import Pictures
from faststy.training.distributed import Alone
from faststy.training.draws import Draws, crop, draw, erased, moves, warp
from faststy.training.graph import Recorder, Terms
from faststy.training.muon import Muon
from faststy.training.precision import computing_in, in_precision, precision_named

WEIGHED = (*ops.TERMS, "style_excess")  # by `Draws.weights`
REPAIR_WEIGHTS = {"repair": 4.0, "style": 0.2, "style_excess": 0.3, "adversarial": 0.05, "map": 1.0}
REPAIR_SLACK = 1.03  # the repair may cost this factor of style distance before it is punished,
FREE = 0.005  # and this much of the distance itself, or a painting near its style had no room
EVEN = 0.05**2  # added to the patches of a style, of which an even one has none
MAX_GRADIENT = 50.0  # norm; usual ones are 5 to 30, so only bursts are clipped


@dataclass
class StyleTarget:
    """A style: its pictures, Gram targets per tap, colours, roughness and contrast."""

    pictures: Pictures
    grams: list[Tensor]  # [C, C] per tap
    colours: Tensor  # [4, 4]
    variation: float
    patches: float  # variance of its colours from cell to cell, see `objective.patches_of`
    contrast: float

    @classmethod
    def of(cls, pictures: Pictures, encoder: nn.Module, device: torch.device) -> StyleTarget:
        """Average the targets of (a spread of) the pictures of a style."""
        taps_of, colours, variation, patches, contrast = [], [], [], [], []
        # One that cannot be read gives its turn to the next, which may have its own.
        spread = dict(pictures.find(index) for index in style_sample(len(pictures)))
        for picture in spread.values():
            s = picture.to(device).float().div_(255)[None]
            s = s.contiguous(memory_format=torch.channels_last)
            with torch.no_grad():
                taps_of.append(objective.style_targets(objective.inner(encoder(s))))
                colours.append(ops.gram(objective.colour_moments(s))[0])
                variation.append(objective.total_variation(s, 1.0))
                patches.append(objective.patches_of(s).mean())
                contrast.append(objective.contrast(s))
        grams = [torch.stack(tap).mean(0) for tap in zip(*taps_of, strict=True)]
        mean_colours = torch.stack(colours).mean(0)
        means = (float(torch.stack(v).mean()) for v in (variation, patches, contrast))
        return cls(pictures, grams, mean_colours, *means)


class Moved(NamedTuple):
    """Photos of a step after a small motion, and what the generator makes of them."""

    photo: Tensor  # [n, 3, H, W]
    painted: Tensor  # likewise
    grid: Tensor  # [n, H, W, 2], see `draws.moves`
    valid: Tensor  # [n, 1, H, W]
    whole: bool  # by whole pixels


class Trainer:
    """Nets, optimisers and objective of a run; `draw` and `take` make a step.

    A step is drawn, which is the host's part, and then taken, which is the device's: on a CUDA
    device as one graph, and nothing in it waits for the host or lets it wait.

    Args:
        encoder: frozen, `[N, 3, H, W]` in 0...1 to four taps.
        styles: one target per style of the generator.
        world: the workers that share a batch. Each is given its samples of it, and all end a step
            with the same weights and terms: those of the whole batch.
    """

    def __init__(
        self,
        config: TrainConfig,
        encoder: nn.Module,
        styles: Sequence[StyleTarget],
        device: torch.device,
        world: Alone | None = None,
    ) -> None:
        self.config, self.styles, self.device = config, styles, device
        self.world = world or Alone()
        self.precision = precision_named(config.precision, device)
        self.encoder = computing_in(self.precision, encoder)
        with seeded(config.seed):
            self.generator = Generator(GeneratorConfig.named(config.model, len(styles)))
            self.discriminator = Discriminator(len(styles))
            self.repairer = Repairer()
        self.average = copy.deepcopy(self.generator).requires_grad_(False).eval()  # what is shipped
        for net in self.nets.values():
            net.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        rate = config.learning_rate
        self.optimisers = {
            "generator": Muon(self.generator, rate, (0.9, 0.99)),
            "discriminator": Adam(self.discriminator, rate / 2, (0.5, 0.99)),
            "repairer": Adam(self.repairer, 2 * rate, (0.9, 0.99)),
        }
        self.repairer_pace = 1.0  # times its learning rate; less where it can repair already
        self.painted = torch.zeros(1, 3, 1, 1, device=device)  # of the last step
        self.skipped = torch.zeros((), device=device)  # updates whose gradient was not finite
        self._grams = [torch.stack(tap) for tap in zip(*(s.grams for s in styles), strict=True)]
        self._colours = torch.stack([s.colours for s in styles])
        self._patches = torch.tensor([s.patches + EVEN for s in styles], device=device)
        self._variation = sum(s.variation for s in styles) / len(styles)
        # Collectives stay out of graphs.
        recorded = device.type == "cuda" and self.world.alone
        self._recorder = Recorder(device) if recorded else None

    @property
    def nets(self) -> dict[str, nn.Module]:
        return {
            "generator": self.generator,
            "average": self.average,
            "discriminator": self.discriminator,
            "repairer": self.repairer,
        }

    def set_learning_rate(self, factor: float, pace: float = 1.0) -> None:
        """Learn at `factor` of the full rates; the discriminator at `pace` times that."""
        paces = {"discriminator": pace, "repairer": self.repairer_pace}
        for name, optimiser in self.optimisers.items():
            optimiser.rate = optimiser.full_rate * factor * paces.get(name, 1.0)

    def learning_rate(self, stage: str) -> float:
        """That of the net which `stage` is there for."""
        return self.optimisers["repairer" if stage == "repair" else "generator"].rate

    def repairs(self) -> bool:
        """Whether the repairer has learned something in this run. Waits for the device."""
        return self.optimisers["repairer"].count.item() > 0

    # -- steps ---------------------------------------------------------------------------------

    def draw(
        self, step: int, stage: str, photo: Tensor, pair: tuple[Tensor, Tensor] | None = None
    ) -> Draws:
        """What a step takes: from the seed and `step` alone, so that threads may draw ahead.

        Args:
            stage: "perceptual" moves the generator; "adversarial" the discriminator first; "repair"
                the repairer and the discriminator that watches it, and the generator is held.
            photo: [N, 3, H, W] in 0...1, on the trainer's device; this worker's of the batch.
            pair: photos and their painted targets in the first style, for the paired term.
        """
        pictures = [style.pictures for style in self.styles]
        return draw(self.config, pictures, self.world, step, stage, photo, pair)

    def take(self, drawn: Draws, style_weight: float) -> Terms:
        """The step that was drawn, with λ = `style_weight`.

        Returns every term (unweighted, 0-dim, detached) and their weighted `total`.
        """
        weights = self._weights(drawn.stage, style_weight)
        numbers = torch.tensor([weights.get(name, 0.0) for name in WEIGHED])
        drawn = replace(drawn, weights=numbers).to(self.device)
        move = self._repair if drawn.stage == "repair" else self._perceptual
        record = self._recorder
        terms, self.painted = move(drawn) if record is None else record(move, drawn)
        return terms

    def step(
        self,
        step: int,
        stage: str,
        photo: Tensor,
        style_weight: float,
        pair: tuple[Tensor, Tensor] | None = None,
    ) -> Terms:
        """`draw` and `take` in one, for who does not draw ahead."""
        return self.take(self.draw(step, stage, photo, pair), style_weight)

    def _weights(self, stage: str, style_weight: float) -> dict[str, float]:
        """Of the terms of a stage, by name."""
        if stage == "repair":
            return {
                name: weight * (style_weight if name in ("style", "style_excess") else 1.0)
                for name, weight in REPAIR_WEIGHTS.items()
            }
        config = self.config
        weights = {
            "content": config.content_weight,
            "style": style_weight,
            "colour": style_weight * config.colour_weight,
            "variation": config.variation_weight,
        }
        return weights | (
            {"adversarial": config.adversarial_weight} if stage == "adversarial" else {}
        )

    # -- what they compute: no number is read on the host, and none comes from there ------------

    @in_precision
    def _perceptual(self, drawn: Draws) -> tuple[Terms, Tensor]:
        """The terms and the paintings [N, 3, H, W] of a perceptual or an adversarial step."""
        config, photo, style, index = self.config, drawn.photo, drawn.style, drawn.index
        adversarial = drawn.real is not None
        painted, moved = self._paint(drawn)
        judged: Terms = {}
        if drawn.real is not None:
            judged["discriminator"] = self._train_discriminator(drawn.real, painted, style)

        assert drawn.rows is not None
        assert drawn.columns is not None
        seen, seen_photo = (crop(x, drawn.rows, drawn.columns) for x in (painted, photo))
        with torch.no_grad():
            photo_taps = objective.inner(self.encoder(seen_photo, CONTENT_TAP + 1))
        taps = objective.inner(self.encoder(seen))
        tap = CONTENT_TAP
        shares = self._shares(len(photo), photo_taps[tap])
        losses = ops.combined_loss(
            _first_weights(drawn) * shares,
            logits=self._judged(painted, style) if adversarial else (),
            form=config.adversarial,
            grams=self._with_targets(taps, index),
            features=[(taps[tap], photo_taps[tap])],
            picture=painted,
            variation=self._variation,
            colours=self._colours[index],
        )
        names = ("content", "style", "colour", "variation", *["adversarial"] * adversarial)
        terms = _named(losses.terms * shares, names)
        total = losses.total
        if config.patches_weight > 0:
            patches = objective.patchiness(painted, photo) / self._patches[index]
            terms["patches"] = patches.mean() * shares[0]
            total = total + config.patches_weight * terms["patches"]
        if moved is not None:
            terms["stability"] = self._stability(moved, painted)
            total = total + config.stability_weight * terms["stability"]
        if drawn.before is not None and drawn.after is not None:
            terms["paired"] = self._paired(drawn.before, drawn.after, drawn.pair_share)
            total = total + config.paired_weight * terms["paired"]

        terms = self._step("generator", total, terms)
        self._follow(drawn.pace)
        return judged | terms, painted.detach()

    @in_precision
    def _repair(self, drawn: Draws) -> tuple[Terms, Tensor]:
        """The terms and the repaired paintings [N, 3, H, W] of a repair step."""
        photo, style, index, count = drawn.photo, drawn.style, drawn.index, len(drawn.photo)
        assert drawn.squares is not None
        assert drawn.real is not None
        assert drawn.weights is not None
        with torch.no_grad():
            painted = erased(self.average(photo, style), drawn.squares)
            painted_taps = objective.inner(self.encoder(painted))
            photo_taps = objective.inner(self.encoder(photo, CONTENT_TAP + 1))
            target = lost_content(painted_taps, photo_taps)
            held = objective.style_distances(self._with_targets(painted_taps, index))
        lost, residual = self.repairer(painted, photo)
        # Detached, so that the map stays a judgement and does not become a dial of the loss.
        repaired = self.repairer.apply_repair(painted, lost.detach(), residual, 1.0)
        judged = {"discriminator": self._train_discriminator(drawn.real, repaired, style)}
        taps = objective.inner(self.encoder(repaired))
        tap = CONTENT_TAP
        shares = self._shares(count)
        losses = ops.combined_loss(
            _first_weights(drawn) * shares,
            logits=self._judged(repaired, style),
            form=self.config.adversarial,
            repair=(taps[tap], photo_taps[tap], target.to(taps[tap].dtype)),
        )
        terms = _named(losses.terms * shares, ("repair", "adversarial"))
        # What a crop's style distance grows by costs more, as a share: near styles are kept, too.
        distances = objective.style_distances(self._with_targets(taps, index))
        excess = F.relu(distances / (held + FREE) - REPAIR_SLACK)
        terms["style"] = distances.mean() * shares[0]
        terms["style_excess"] = excess.mean() * shares[0]
        edge = objective.RING << tap  # px: the target is without them
        seen = lost[..., edge:-edge, edge:-edge]
        error = F.mse_loss(F.interpolate(seen, target.shape[-2:], mode="area"), target)
        mean, square = self.mean(
            torch.stack([target.mean(), target.square().mean()]), count
        ).unbind()
        variance = (square - mean.square()).clamp_min(0)
        terms["map"] = error / (variance + objective.EPS) * shares[0]
        total = losses.total + REPAIR_WEIGHTS["map"] * terms["map"]
        for name in ("style", "style_excess"):
            total = total + drawn.weights[WEIGHED.index(name)] * terms[name]
        terms = self._step("repairer", total, terms)
        return judged | terms, repaired.detach()

    def _with_targets(self, taps: Sequence[Tensor], index: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Per tap, its Gram matrices [N, C, C] and those of the styles `index`."""
        return [(ops.gram(t), grams[index]) for t, grams in zip(taps, self._grams, strict=True)]

    def mean(self, own: Tensor, count: int) -> Tensor:
        """The mean over the whole batch of what is `own` for `count` samples; without gradient."""
        return self.world.sum(own.detach() * (count / self.world.batch(count)))

    # -- their parts ---------------------------------------------------------------------------

    def _train_discriminator(self, real: Tensor, fake: Tensor, style: Tensor) -> Tensor:
        both = self.discriminator(torch.cat([real, fake.detach()]), torch.cat([style, style]))
        of_real, of_fake = zip(*(logits.chunk(2) for logits in both), strict=True)
        loss = ops.discriminator_loss(of_real, of_fake, self.config.adversarial).total
        share = len(fake) / self.world.batch(len(fake))
        return self._step("discriminator", loss * share, {})["total"]

    def _judged(self, painted: Tensor, style: Tensor) -> list[Tensor]:
        """Logits per scale, with gradients for the painting alone."""
        self.discriminator.requires_grad_(False)
        logits: list[Tensor] = self.discriminator(painted, style)
        self.discriminator.requires_grad_(True)
        return logits

    def _shares(self, count: int, content: Tensor | None = None) -> Tensor:
        """This worker's share of each of `ops.TERMS`: of a mean over samples, its share of them; of
        the content term, a ratio of sums, its share of the energy of the features `content`."""
        shares = torch.full((len(ops.TERMS),), count / self.world.batch(count), device=self.device)
        if content is not None and count < self.world.batch(count):
            energy = content.float().square().sum()  # in bfloat16 the shares would not add up to 1
            shares[ops.TERMS.index("content")] = energy / self.world.sum(energy)
        return shares

    def _paint(self, drawn: Draws) -> tuple[Tensor, Moved | None]:
        """The photos painted, and half of them, but one at least, also moved and painted: together,
        in one pass."""
        if drawn.shift is None:
            return self.generator(drawn.photo, drawn.style), None
        motion, count = (drawn.shift, drawn.linear, drawn.wobble), len(drawn.shift)
        grid, valid = moves(motion, drawn.photo.shape[-1])
        photo = warp(drawn.photo[:count], grid)
        both = torch.cat([drawn.photo, photo]), torch.cat([drawn.style, drawn.style[:count]])
        painted, painted_moved = self.generator(*both).split([len(drawn.photo), count])
        return painted, Moved(photo, painted_moved, grid, valid, whole=drawn.linear is None)

    def _stability(self, moved: Moved, painted: Tensor) -> Tensor:
        """The small-motion term; this worker's part of it."""
        moved_painting = warp(painted[: len(moved.photo)], moved.grid)
        seen = moved.painted, moved_painting, moved.photo, moved.valid
        loss = objective.stability_loss(*seen, self.world.sum)
        if moved.whole:
            fine = objective.fine_stability_loss(*seen, self.world.sum)
            loss = loss + self.config.lattice_weight * fine
        return loss

    def _paired(self, before: Tensor, after: Tensor, share: float) -> Tensor:
        """The paired term; this worker's part of it, which may be none of the few pairs."""
        if len(before) == 0:
            return torch.zeros((), device=self.device)
        return objective.paired_loss(self.generator(before), after) * share

    @torch.no_grad()
    def _follow(self, pace: Tensor) -> None:
        """Let the average go that share of the way to the generator."""
        slow: list[Tensor] = list(self.average.parameters())
        fast: list[Tensor] = list(self.generator.parameters())
        way = torch._foreach_sub(fast, slow)
        torch._foreach_mul_(way, pace)  # one tensor for all: by lerp each would be a launch
        torch._foreach_add_(slow, way)

    def _step(self, name: str, loss: Tensor, terms: Terms) -> Terms:
        """One step of the optimiser `name`; one whose gradient is not finite changes nothing.

        `loss` and `terms` are this worker's parts; returns those of the whole batch, and `total`.
        """
        optimiser = self.optimisers[name]
        optimiser.zero_grad()
        with torch.autocast(self.device.type, enabled=False):
            loss.backward()  # type: ignore[no-untyped-call]
        values = torch.stack([loss.detach(), *(value.detach() for value in terms.values())])
        gradients = [w.grad for w in optimiser.weights if w.grad is not None]
        self.world.sum_([*gradients, values])
        self.skipped += optimiser.step(values[0], MAX_GRADIENT)
        return dict(zip((*terms, "total"), (*values[1:], values[0]), strict=True))


def _first_weights(drawn: Draws) -> Tensor:
    """Those of `ops.TERMS`."""
    assert drawn.weights is not None
    return drawn.weights[: len(ops.TERMS)]


def _named(terms: Tensor, names: Iterable[str]) -> Terms:
    named = dict(zip(ops.TERMS, terms.unbind(), strict=True))
    return {name: named[name] for name in names}
