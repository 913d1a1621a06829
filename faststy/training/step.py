"""One training step of each stage: the nets, their optimisers, and how they move."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from faststy import ops
from faststy.nn.discriminator import Discriminator
from faststy.nn.generator import Generator, GeneratorConfig
from faststy.nn.repairer import Repairer
from faststy.training import objective
from faststy.training.adam import Adam
from faststy.training.config import TrainConfig
from faststy.training.dataset import Pictures, below, generator, of_samples, random_crop
from faststy.training.distributed import Alone
from faststy.training.precision import in_precision, precision_named

Terms = dict[str, Tensor]

ENCODER_LATTICE = 8  # the encoder's coarsest stride, px
STYLE_ZOOM = (0.7, 1.4)  # real patches are shown to the discriminator at these scales
REPAIR_WEIGHTS = {
    "repair": 4.0,
    "style_together": 0.2,
    "style_excess": 8.0,
    "adversarial": 0.05,
    "map": 1.0,
}
REPAIR_SLACK = 1.03  # the repair may cost this factor of style distance before it is punished
MAX_GRADIENT = 50.0  # norm; usual ones are 5 to 30, so only bursts are clipped
DOMAIN_PICTURES = 24  # of a folder of styles, averaged into its targets


@dataclass
class StyleTarget:
    """What a style is remembered by: its pictures, Gram targets per tap, colours and roughness."""

    pictures: Pictures
    grams: list[Tensor]  # [C, C] per tap
    colours: Tensor  # [4, 4]
    variation: float

    @classmethod
    def of(cls, pictures: Pictures, encoder: nn.Module, device: torch.device) -> StyleTarget:
        """Average the targets of (a spread of) the pictures of a style."""
        stride = max(1, len(pictures) // DOMAIN_PICTURES)
        taps_of, colours, variation = [], [], []
        for index in range(0, len(pictures), stride):
            s = pictures.get(index).to(device).float().div_(255)[None]
            s = s.contiguous(memory_format=torch.channels_last)
            with torch.no_grad():
                taps_of.append(objective.style_targets(encoder(s)))
                colours.append(ops.gram(objective.colour_moments(s))[0])
                variation.append(objective.total_variation(s, 1.0))
        grams = [torch.stack(tap).mean(0) for tap in zip(*taps_of, strict=True)]
        mean_colours = torch.stack(colours).mean(0)
        return cls(pictures, grams, mean_colours, float(torch.stack(variation).mean()))


class Trainer:
    """Nets, optimisers and objective of a run; `perceptual` and `repair` take a step.

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
        self.config, self.encoder, self.styles, self.device = config, encoder, styles, device
        self.world = world or Alone()
        self.precision = precision_named(config.precision, device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.generator = Generator(GeneratorConfig.named(config.model, len(styles)))
            self.discriminator = Discriminator(len(styles))
            self.repairer = Repairer()
        self.average = copy.deepcopy(self.generator).requires_grad_(False).eval()  # what is shipped
        for net in self.nets.values():
            net.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        rate = config.learning_rate
        self.optimisers = {
            "generator": Adam(self.generator, rate, (0.9, 0.99)),
            "discriminator": Adam(self.discriminator, rate / 2, (0.5, 0.99)),
            "repairer": Adam(self.repairer, 2 * rate, (0.9, 0.99)),
        }
        self.painted = torch.zeros(1, 3, 1, 1, device=device)  # of the last step
        self.skipped = torch.zeros((), device=device)  # updates whose gradient was not finite
        self._grams = [torch.stack(tap) for tap in zip(*(s.grams for s in styles), strict=True)]
        self._colours = torch.stack([s.colours for s in styles])
        self._variation = sum(s.variation for s in styles) / len(styles)

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
        for name, optimiser in self.optimisers.items():
            own = factor * pace if name == "discriminator" else factor
            optimiser.rate = optimiser.full_rate * own

    # -- steps ---------------------------------------------------------------------------------

    @in_precision
    def perceptual(
        self,
        step: int,
        photo: Tensor,
        style_weight: float,
        pair: tuple[Tensor, Tensor] | None = None,
        *,
        adversarial: bool = False,
    ) -> Terms:
        """Move the generator; with `adversarial`, the discriminator first.

        Args:
            photo: [N, 3, H, W] in 0...1, on the trainer's device; this worker's of the batch.
            style_weight: λ of this step.
            pair: photos and their painted targets in the first style, for the paired term.
        Returns:
            every term (unweighted, 0-dim, detached) and their weighted `total`.
        """
        config, rng = self.config, generator(self.config.seed, step, stream=1)
        style, index = self._own_styles(len(photo), rng)
        painted = self.generator(photo, style)
        judged: Terms = {}
        if adversarial:
            real = self._real_patches(index, photo.shape[-1], rng)
            judged["discriminator"] = self._train_discriminator(real, painted, style)

        # A random offset keeps the encoder's lattice off the generator's: a grid would show.
        offset = below(rng, ENCODER_LATTICE), below(rng, ENCODER_LATTICE)
        seen, seen_photo = _inner(painted, offset), _inner(photo, offset)
        with torch.no_grad():
            photo_taps = self.encoder(seen_photo, taps=objective.CONTENT_TAP + 1)
        taps = self.encoder(seen)
        tap = objective.CONTENT_TAP
        weights = {
            "content": config.content_weight,
            "style": style_weight,
            "colour": style_weight * config.colour_weight,
            "variation": config.variation_weight,
        }
        if adversarial:
            weights["adversarial"] = config.adversarial_weight
        shares = self._shares(len(photo), photo_taps[tap])
        losses = ops.combined_loss(
            self._weights(weights) * shares,
            logits=self._judged(painted, style) if adversarial else (),
            form=config.adversarial,
            grams=[(ops.gram(t), grams[index]) for t, grams in zip(taps, self._grams, strict=True)],
            features=[(taps[tap], photo_taps[tap])],
            picture=painted,
            variation=self._variation,
            colours=self._colours[index],
        )
        terms = _named(losses.terms * shares, weights)
        total = losses.total
        if config.stability_weight > 0:
            terms["stability"] = self._stability(photo, painted, style, rng)
            total = total + config.stability_weight * terms["stability"]
        if pair is not None:
            terms["paired"] = self._paired(*pair)
            total = total + config.paired_weight * terms["paired"]

        terms = self._step("generator", total, terms)
        self.painted = painted.detach()
        with torch.no_grad():
            decay = min(0.98, (step + 1) / (step + 10))
            for slow, fast in zip(
                self.average.parameters(), self.generator.parameters(), strict=True
            ):
                slow.lerp_(fast, 1 - decay)
        return judged | terms

    @in_precision
    def repair(self, step: int, photo: Tensor, style_weight: float) -> Terms:
        """Move the repairer (and the discriminator that watches it); the generator is held.

        One style per step: the Gram matrices of its crops together are nearly those of a whole
        picture. A single crop's say more of what it happens to show than of the style.
        """
        rng, count = generator(self.config.seed, step, stream=1), len(photo)
        style, index = (
            drawn.expand(count, *drawn.shape[1:]) for drawn in self._draw_styles(1, rng)
        )
        with torch.no_grad():
            painted = erased(self.average(photo, style), self._own_random(count, rng))
            painted_taps = self.encoder(painted)
            photo_taps = self.encoder(photo, taps=objective.CONTENT_TAP + 1)
            target = objective.lost_content(painted_taps, photo_taps)
        lost, residual = self.repairer(painted, photo)
        # Detached, so that the map stays a judgement and does not become a dial of the loss.
        repaired = self.repairer.apply_repair(painted, lost.detach(), residual, 1.0)
        real = self._real_patches(index, photo.shape[-1], rng)
        judged = {"discriminator": self._train_discriminator(real, repaired, style)}
        taps = self.encoder(repaired)
        tap = objective.CONTENT_TAP
        weights = {name: REPAIR_WEIGHTS[name] for name in ("repair", "adversarial")}
        shares = self._shares(count)
        losses = ops.combined_loss(
            self._weights(weights) * shares,
            logits=self._judged(repaired, style),
            form=self.config.adversarial,
            repair=(taps[tap], photo_taps[tap], target),
        )
        terms = _named(losses.terms * shares, weights)
        distance = self._style_together(taps, index[0], count)
        with torch.no_grad():
            held = self._style_together(painted_taps, index[0], count)
        # Every worker knows the distance of all; the values, which are added, are its share of it.
        terms["style_together"] = distance - distance.detach() * (1 - shares[0])
        # What passes the painting's own style distance costs more.
        excess = F.relu(distance - REPAIR_SLACK * held)
        terms["style_excess"] = excess - excess.detach() * (1 - shares[0])
        error = F.mse_loss(F.interpolate(lost, target.shape[-2:], mode="area"), target)
        mean, square = self.mean(
            torch.stack([target.mean(), target.square().mean()]), count
        ).unbind()
        variance = (square - mean.square()).clamp_min(0)
        terms["map"] = error / (variance + objective.EPS) * shares[0]
        total = losses.total + REPAIR_WEIGHTS["map"] * terms["map"]
        for name in ("style_together", "style_excess"):
            total = total + style_weight * REPAIR_WEIGHTS[name] * terms[name]
        terms = self._step("repairer", total, terms)
        self.painted = repaired.detach()
        return judged | terms

    def _style_together(self, taps: Sequence[Tensor], style: Tensor, count: int) -> Tensor:
        """The style loss of the whole batch as of one picture, with gradients for own samples."""
        distances = []
        for tap, targets in zip(taps, self._grams, strict=True):
            own = ops.gram(tap).mean(0)
            share = count / self.world.batch(count)
            whole = self.mean(own, count) + share * (own - own.detach())
            distances.append(objective.relative_distance(whole[None], targets[style][None]))
        return torch.stack(distances).mean()

    def mean(self, own: Tensor, count: int) -> Tensor:
        """The mean over the whole batch of what is `own` for `count` samples; without gradient."""
        return self.world.sum(own.detach() * (count / self.world.batch(count)))

    # -- their parts ---------------------------------------------------------------------------

    def _draw_styles(self, count: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """A random style per sample: one-hot [N, S] and index [N]."""
        index = torch.randint(len(self.styles), (count,), generator=rng).to(self.device)
        return F.one_hot(index, len(self.styles)).float(), index

    def _own_styles(self, count: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        style, index = self._draw_styles(self.world.batch(count), rng)
        return style[self.world.mine], index[self.world.mine]

    def _own_random(self, count: int, rng: torch.Generator) -> list[torch.Generator]:
        return of_samples(self.world.batch(count), rng, self.world.mine)

    def _real_patches(self, index: Tensor, size: int, rng: torch.Generator) -> Tensor:
        crops = [
            random_crop(self.styles[i].pictures, size, STYLE_ZOOM, own)
            for i, own in zip(index.tolist(), self._own_random(len(index), rng), strict=True)
        ]
        patches = torch.stack(crops).contiguous(memory_format=torch.channels_last)
        return patches.to(self.device, non_blocking=True)

    def _train_discriminator(self, real: Tensor, fake: Tensor, style: Tensor) -> Tensor:
        loss = ops.discriminator_loss(
            self.discriminator(real, style),
            self.discriminator(fake.detach(), style),
            self.config.adversarial,
        ).total
        share = len(fake) / self.world.batch(len(fake))
        return self._step("discriminator", loss * share, {})["total"]

    def _judged(self, painted: Tensor, style: Tensor) -> list[Tensor]:
        """Logits per scale, with gradients for the painting alone."""
        self.discriminator.requires_grad_(False)
        logits: list[Tensor] = self.discriminator(painted, style)
        self.discriminator.requires_grad_(True)
        return logits

    def _weights(self, weights: dict[str, float]) -> Tensor:
        return torch.tensor([weights.get(name, 0.0) for name in ops.TERMS], device=self.device)

    def _shares(self, count: int, content: Tensor | None = None) -> Tensor:
        """This worker's share of each of `ops.TERMS`: of a mean over samples, its share of them; of
        the content term, a ratio of sums, its share of the energy of the features `content`."""
        shares = torch.full((len(ops.TERMS),), count / self.world.batch(count), device=self.device)
        if content is not None and count < self.world.batch(count):
            energy = content.square().sum()
            shares[ops.TERMS.index("content")] = energy / self.world.sum(energy)
        return shares

    def _stability(
        self, photo: Tensor, painted: Tensor, style: Tensor, rng: torch.Generator
    ) -> Tensor:
        """The small-motion term, on half of the batch; this worker's part of it."""
        half = max(1, self.world.batch(len(photo)) // 2)
        whole_pixels = below(rng, 2) == 1
        motion = random_shift if whole_pixels else random_warp
        moves = motion(half, photo.shape[-1], rng, self.world.mine)
        grid, valid = (t.to(self.device) for t in moves)
        count = len(grid)
        moved_photo = warp(photo[:count], grid)
        painted_moved = self.generator(moved_photo, style[:count])
        seen = painted_moved, warp(painted[:count], grid), moved_photo, valid
        whole = self.world.sum
        loss = objective.stability_loss(*seen, whole)
        if whole_pixels:
            fine = objective.fine_stability_loss(*seen, whole)
            loss = loss + self.config.lattice_weight * fine
        return loss

    def _paired(self, before: Tensor, after: Tensor) -> Tensor:
        """The paired term; this worker's part of it, which may be none of the few pairs."""
        own, target = (t[self.world.mine].to(self.device) for t in (before, after))
        if len(own) == 0:
            return torch.zeros((), device=self.device)
        return objective.paired_loss(self.generator(own), target) * (len(own) / len(before))

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


def _named(terms: Tensor, names: Iterable[str]) -> Terms:
    named = dict(zip(ops.TERMS, terms.unbind(), strict=True))
    return {name: named[name] for name in names}


def _inner(x: Tensor, offset: tuple[int, int]) -> Tensor:
    """`x` [N, C, H, W] less ENCODER_LATTICE rows and columns, `offset` of them at the top left."""
    height, width = (side - ENCODER_LATTICE for side in x.shape[-2:])
    return x[..., offset[0] : offset[0] + height, offset[1] : offset[1] + width]


def erased(painted: Tensor, random: Sequence[torch.Generator]) -> Tensor:
    """`painted` [N, C, H, W] with a square of about half of the samples painted over.

    By flat colour or by another part of the painting: content that is lost for sure, to learn the
    map from. `random` are each sample's random numbers.
    """
    out, side = painted.clone(), min(painted.shape[-2:])
    for i, rng in enumerate(random):
        if below(rng, 2):
            size = side // 8 + below(rng, side // 3)
            top, left = (below(rng, length - size) for length in painted.shape[-2:])
            square = (slice(None), slice(top, top + size), slice(left, left + size))
            if below(rng, 2):
                over = painted[i].mean((1, 2), keepdim=True)
            else:
                halves = [length // 2 for length in painted.shape[-2:]]
                over = painted[i].roll(halves, (1, 2))[square]
            out[i][square] = over
    return out


def random_shift(
    count: int, size: int, rng: torch.Generator, mine: slice = slice(None)
) -> tuple[Tensor, Tensor]:
    """A random shift by up to 4 whole pixels: grid [N, H, W, 2] and validity [N, 1, H, W].

    Only those in `mine` of `count`.
    """
    shift = torch.randint(-4, 5, (count, 2, 1, 1), generator=rng)[mine].float()
    return _moved(shift.expand(-1, -1, size, size))


def random_warp(
    count: int, size: int, rng: torch.Generator, mine: slice = slice(None)
) -> tuple[Tensor, Tensor]:
    """A smooth random motion of a few pixels: sampling grid [N, H, W, 2] and validity [N, 1, H, W].

    A shift of up to 4 px, a turn and zoom of up to 3 %, and a low-frequency wobble. Only those in
    `mine` of `count`.
    """
    shift = (torch.rand(count, 2, 1, 1, generator=rng)[mine] * 2 - 1) * 4
    linear = (torch.rand(count, 2, 2, generator=rng)[mine] * 2 - 1) * 0.03
    wobble = (torch.rand(count, 2, 4, 4, generator=rng)[mine] * 2 - 1) * 1.5
    flow = torch.einsum("nij,jhw->nihw", linear, _positions(size)) + shift
    return _moved(flow + F.interpolate(wobble, (size, size), mode="bicubic", align_corners=True))


def _positions(size: int) -> Tensor:
    """Pixel centres from the middle of a square: x and y as [2, size, size]."""
    axis = torch.arange(size, dtype=torch.float32) - (size - 1) / 2
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return torch.stack([x, y])


def _moved(flow: Tensor) -> tuple[Tensor, Tensor]:
    """Sampling grid and validity of a flow [N, 2, H, W] in pixels."""
    size = flow.shape[-1]
    position = (_positions(size) + flow) * (2 / size)
    valid = (position.abs() < 1 - 16 / size).all(1, keepdim=True).float()
    return position.permute(0, 2, 3, 1), valid


def warp(x: Tensor, grid: Tensor) -> Tensor:
    """Sample `x` [N, C, H, W] at `grid` [N, H, W, 2], borders repeated."""
    moved = F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return moved.contiguous(memory_format=torch.channels_last)
