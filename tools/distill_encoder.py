#!/usr/bin/env python3
"""Make `faststy/assets/encoder.safetensors`: VGG-19 pruned to a tenth, then taught its gradients.

    python tools/distill_encoder.py --teacher vgg19.safetensors --photos DIR --styles DIR \\
        --styles DIR2 --work DIR --out faststy/assets/encoder.safetensors

1. *Prune* (`prune`). Of every convolution of VGG-19 only the channels stay that explain most of
   what its successor reads (greedy pivoting on second moments). Layer by layer, least squares fit
   the student's weights to what the teacher computes, from what the student has.
   A tap stands for the leading uncentred principal components of the teacher's tap: an orthonormal
   basis keeps Gram matrices and distances.
2. *Scenes* (`make_scene`). The present student paints a photo in a style by optimising the picture,
   and the teacher judges the picture at several moments of that: its features, and the gradients
   of its style and content losses with respect to the picture. So the student is corrected where a
   training with it would lead.
3. *Distil* (`distil`). Features are matched tap by tap, and, by double backward, the gradients of
   random mixtures of the losses. The best moving average of the weights, by gradient agreement on
   scenes held out, is written to `--out` whenever it has become better.

Interrupted at any moment, the same command goes on from the last checkpoint in `--work`; other
flags than --steps, --rate, --out and --device are refused there.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from faststy.errors import FaststyError, told
from faststy.evaluation.distances import content_distance, style_distance
from faststy.files import write_bytes
from faststy.nn.encoder import FORMAT, KEY, PerceptualEncoder, load_encoder
from faststy.pictures import list_pictures, read_picture

# Widths are multiples of 8 or 16, which CPU convolutions like; the full-resolution stage is thin,
# as it is bound by memory, not by arithmetic.
STAGES = "16,16/32,48/80,80,80,80/160"
HEADS = "16,32,80,160"

SIZE = 128  # side of the pictures, px
STATES = 4  # pictures of one scene
HELD_OUT = 8  # scenes to measure on
STEPS_PER_SCENE = 20  # a new scene after so many steps
SCENES = 400  # the oldest make room
CHECK_EVERY = 100  # steps from one measurement and checkpoint to the next
EMA = 0.995
LAST = torch.channels_last
FOLDERS = ("photos", "styles")

console = Console(stderr=True)


# ------------------------------------------------------------------------------------- pictures


class Corpus:
    """Photos and style pictures; everything drawn from it depends on the seed alone."""

    def __init__(self, photos: Sequence[Path], styles: Sequence[Path]) -> None:
        self.photos = [path for folder in photos for path in list_pictures(folder)]
        self.styles = [list_pictures(folder) for folder in styles]
        if not self.photos or not all(self.styles):
            raise FaststyError("no pictures in one of the folders of --photos and --styles")

    def photo(self, rng: random.Random) -> Tensor:
        return random_crop(rng.choice(self.photos), rng)

    def style(self, rng: random.Random) -> Tensor:
        """A piece of a painting, of a drawing, or of painted noise."""
        if rng.random() < 0.1:
            return painted_noise(rng)
        # A folder of a thousand counts for more than one of a hundred, but not ten times.
        weights = [len(paths) ** 0.5 for paths in self.styles]
        return random_crop(rng.choice(rng.choices(self.styles, weights)[0]), rng)


def random_crop(path: Path, rng: random.Random) -> Tensor:
    """A square piece `[3, SIZE, SIZE]` of a picture in 0…1, at a random scale, perhaps mirrored."""
    picture = read_picture(path).rgb
    scale = max(SIZE / min(picture.size), rng.uniform(0.5, 1.0))
    width, height = (max(SIZE, round(side * scale)) for side in picture.size)
    picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    x, y = rng.randint(0, width - SIZE), rng.randint(0, height - SIZE)
    pixels = np.asarray(picture.crop((x, y, x + SIZE, y + SIZE)))
    pixels = pixels[:, ::-1] if rng.random() < 0.5 else pixels
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255


def painted_noise(rng: random.Random) -> Tensor:
    """Octaves of noise `[3, SIZE, SIZE]` in 0…1, from clouds to grain, in random colours."""
    generator = torch.Generator().manual_seed(rng.randrange(2**31))
    slope = rng.uniform(0.3, 2.0)
    x = torch.zeros(3, SIZE, SIZE)
    for octave in range(6):
        grain = torch.randn(1, 3, SIZE >> octave, SIZE >> octave, generator=generator)
        x += F.interpolate(grain, size=(SIZE, SIZE), mode="bicubic")[0] * slope**octave
    x = torch.einsum("ij,jhw->ihw", torch.randn(3, 3, generator=generator), x)
    return (0.5 + rng.uniform(-0.2, 0.2) + rng.uniform(0.1, 0.35) * x / x.std()).clamp(0, 1)


# --------------------------------------------------------------------------------------- pruning


def greedy_channels(moment: Tensor, metric: Tensor, count: int) -> list[int]:
    """The channels whose linear span explains most of `tr(metric @ moment)`: pivoted Cholesky."""
    rest = moment.clone()
    floor = 1e-9 * moment.diagonal().max()
    chosen: list[int] = []
    for _ in range(count):
        variance = rest.diagonal()
        score = ((metric @ rest) * rest).sum(0) / variance.clamp_min(floor)
        score[variance <= floor] = -1.0
        score[chosen] = -2.0
        best = int(score.argmax())
        chosen.append(best)
        if variance[best] > floor:
            rest = rest - torch.outer(rest[:, best], rest[best]) / rest[best, best]
    return sorted(chosen)


class LeastSquares:
    """Fits a convolution to what it should compute, from samples of its input."""

    def __init__(self, conv: nn.Conv2d) -> None:
        self.conv = conv
        self.xtx: Tensor | float = 0.0
        self.xty: Tensor | float = 0.0

    def add(self, x: Tensor, y: Tensor) -> None:
        """Inputs `[N, C, H, W]` and wanted outputs `[N, K, H, W]`, at some of the positions."""
        kernel = self.conv.kernel_size[0]
        patches = F.unfold(x, kernel, padding=kernel // 2)
        where = torch.randperm(patches.shape[2], device=x.device)[:500]
        p = patches[:, :, where].transpose(1, 2).flatten(0, 1).double()
        p = torch.cat([p, torch.ones_like(p[:, :1])], dim=1)  # for the bias
        wanted = y.flatten(2)[:, :, where].transpose(1, 2).flatten(0, 1).double()
        self.xtx = self.xtx + p.mT @ p
        self.xty = self.xty + p.mT @ wanted

    def solve(self) -> None:
        assert isinstance(self.xtx, Tensor)
        ridge = 1e-5 * self.xtx.diagonal().mean()
        eye = torch.eye(len(self.xtx), dtype=self.xtx.dtype, device=self.xtx.device)
        weight = torch.linalg.solve(self.xtx + ridge * eye, self.xty).mT
        self.conv.weight.copy_(weight[:, :-1].reshape(self.conv.weight.shape))
        assert self.conv.bias is not None
        self.conv.bias.copy_(weight[:, -1])


@torch.no_grad()
def prune(
    teacher: PerceptualEncoder,
    batches: Sequence[Tensor],
    stages: Sequence[Sequence[int]],
    heads: Sequence[int],
) -> tuple[PerceptualEncoder, list[Tensor]]:
    """A student of these widths fitted to the teacher, and the bases `[C_t, K_t]` of its taps."""
    layers = [(t, conv) for t, stage in enumerate(teacher.stages) for conv in stage]
    firsts = [[t for t, _ in layers].index(t) for t in range(4)]
    moments = second_moments(teacher, batches)

    bases = []
    for t, count in enumerate(heads):
        values, vectors = torch.linalg.eigh(moments[firsts[t]])
        bases.append(vectors[:, -count:].flip(1).float())
        share = float(values[-count:].sum() / values.sum())
        console.print(f"tap {t + 1}: {count} principal components hold {share:.1%} of the energy")

    student = PerceptualEncoder(stages, heads).to(batches[0].device)
    # Which of the teacher's convolutions each of the student's stands for, the first and the last
    # of a stage among them, and which of its channels.
    stands_for: dict[int, tuple[nn.Conv2d, list[int]]] = {}
    for t, widths in enumerate(stages):
        depth = len(teacher.stages[t])
        for i, width in enumerate(widths):
            n = firsts[t] + (round(i * (depth - 1) / (len(widths) - 1)) if i else 0)
            metric = torch.zeros_like(moments[n])
            if n in firsts:  # the tap reads it
                metric += torch.eye(len(metric)).to(metric) / moments[n].trace()
            if n + 1 < len(layers):  # the next convolution reads it
                w = layers[n + 1][1].weight.double().flatten(2)
                use = torch.einsum("oik,ojk->ij", w, w)
                metric += use / (use * moments[n]).sum()
            channels = greedy_channels(moments[n], metric, width)
            stands_for[n] = (student.stages[t][i], channels)

    ours = [x - teacher.mean for x in batches]
    theirs = ours
    for n, (t, conv) in enumerate(layers):
        if t and n in firsts:
            ours, theirs = ([F.max_pool2d(x, 2) for x in side] for side in (ours, theirs))
        wanted = [conv(x) for x in theirs]
        theirs = [F.relu(z) for z in wanted]
        if n in stands_for:
            small, channels = stands_for[n]
            fit = LeastSquares(small)
            for x, z in zip(ours, wanted, strict=True):
                fit.add(x, z[:, channels])
            fit.solve()
            ours = [F.relu(small(x)) for x in ours]
        if n in firsts:
            fit = LeastSquares(student.heads[t])
            targets = [torch.einsum("nchw,ck->nkhw", x, bases[t]) for x in theirs]
            for x, y in zip(ours, targets, strict=True):
                fit.add(x, y)
            fit.solve()
            lost = sum(
                (student.heads[t](x) - y).square().sum().item()
                for x, y in zip(ours, targets, strict=True)
            ) / sum(y.square().sum().item() for y in targets)
            console.print(f"tap {t + 1}: {lost:.2%} of it lost by pruning")
    return student, bases


def second_moments(teacher: PerceptualEncoder, batches: Sequence[Tensor]) -> list[Tensor]:
    """Mean products `[C, C]` of the channels of each of the teacher's convolutions, after relu."""
    moments: list[Tensor | float] = [0.0] * sum(len(stage) for stage in teacher.stages)
    for batch in batches:
        x, n = batch - teacher.mean, 0
        for t, stage in enumerate(teacher.stages):
            x = F.max_pool2d(x, 2) if t else x
            for conv in stage:
                x = F.relu(conv(x))
                flat = x.transpose(0, 1).flatten(1)
                moments[n] = moments[n] + (flat @ flat.mT).double() / flat.shape[1] / len(batches)
                n += 1
    return [m for m in moments if isinstance(m, Tensor)]


# ---------------------------------------------------------------------------------------- scenes


@dataclass
class Scene:
    """A photo, a style, pictures on the way from one to the other, and the teacher's verdict.

    `pictures` `[2 + S, 3, H, W]` holds photo, style, states; `taps` the teacher's, in the bases of
    the student; `gradients` `[S, L, 3, H, W]` those of every loss with respect to the states, made
    unit in their mean square, and `scales` `[S, L]` what they were divided by.
    """

    pictures: Tensor
    taps: list[Tensor]
    gradients: Tensor
    scales: Tensor

    def save(self, path: Path) -> None:
        tensors = {f"tap{t}": tap for t, tap in enumerate(self.taps)}
        tensors |= {"pictures": self.pictures, "gradients": self.gradients}
        tensors = {name: tensor.half() for name, tensor in tensors.items()}
        tensors["scales"] = self.scales  # 1e-4 and less would drown in fp16
        write_bytes(path, save({k: v.cpu().contiguous() for k, v in tensors.items()}))

    @classmethod
    def load(cls, path: Path, device: torch.device) -> Scene:
        tensors = {k: v.to(device, torch.float32) for k, v in load_file(path).items()}
        taps = [tensors[f"tap{t}"].contiguous(memory_format=LAST) for t in range(4)]
        pictures = tensors["pictures"].contiguous(memory_format=LAST)
        return cls(pictures, taps, tensors["gradients"], tensors["scales"])


# The mixtures of losses that trainings use.
STYLE = torch.tensor([0.25, 0.25, 0.25, 0.25, 0.0, 0.0])
CONTENT = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0, 1.0])


def losses(taps: list[Tensor], photo: list[Tensor], style: list[Tensor]) -> Tensor:
    """`[N, 6]`: relative Gram loss of taps 1-4, relative content loss of taps 2 and 3."""
    content = content_distance(taps[1:3], photo[1:3])
    return torch.cat([style_distance(taps, style), content], dim=1)


def make_scene(
    student: PerceptualEncoder,
    teacher: PerceptualEncoder,
    bases: Sequence[Tensor],
    corpus: Corpus,
    rng: random.Random,
) -> Scene:
    """Paint a photo with the student, and let the teacher judge what came about."""
    device = bases[0].device
    photo, style = corpus.photo(rng)[None].to(device), corpus.style(rng)[None].to(device)
    states = paint(student, photo, style, rng)
    pictures = torch.cat([photo, style, *states]).to(memory_format=LAST)
    with torch.no_grad():
        fixed = teacher(pictures[:2])
    x = pictures[2:].clone().requires_grad_()
    taps = teacher(x)
    verdict = losses(taps, [f[:1] for f in fixed], [f[1:] for f in fixed]).sum(0)
    gradients = [torch.autograd.grad(loss, x, retain_graph=True)[0] for loss in verdict]
    projected = [
        torch.einsum("nchw,ck->nkhw", torch.cat([f, tap.detach()]), basis)
        for f, tap, basis in zip(fixed, taps, bases, strict=True)
    ]
    gradient = torch.stack(gradients, dim=1)
    scales = gradient.square().mean((2, 3, 4)).sqrt() + 1e-12
    return Scene(pictures, projected, gradient / scales[:, :, None, None, None], scales)


def paint(
    student: PerceptualEncoder, photo: Tensor, style: Tensor, rng: random.Random
) -> list[Tensor]:
    """Pictures `[1, 3, H, W]` met while `photo` turns into `style`, and one of them spoilt."""
    with torch.no_grad():
        content, target = student(photo), student(style)
    start = rng.choice([photo, recoloured(photo, style), torch.rand_like(photo)])
    layers = [torch.logit(start.clamp(0.02, 0.98))]
    if rng.random() < 0.5:  # a pyramid moves in broad strokes, as generators do
        layers += [torch.zeros_like(F.avg_pool2d(photo, 2**k)) for k in (1, 2, 3)]
    layers = [layer.requires_grad_() for layer in layers]
    adam = torch.optim.Adam(layers, lr=rng.uniform(0.05, 0.2))
    style_weight, tap = 10 ** rng.uniform(-0.5, 1.5), rng.choice([4, 5])
    moments = sorted(rng.sample(range(1, 32), STATES - 1))
    states = []
    for step in range(moments[-1] + 1):
        x = torch.sigmoid(
            sum(F.interpolate(y, size=photo.shape[2:], mode="bilinear") for y in layers)
        )
        if step in moments:
            states.append(x.detach())
        each = losses(student(x), content, target)[0]
        total = each[tap] + style_weight * each[:4].mean()
        for layer, gradient in zip(layers, torch.autograd.grad(total, layers), strict=True):
            layer.grad = gradient
        adam.step()
    mixed = torch.lerp(photo, rng.choice(states), rng.random())
    noise = rng.choice([0.0, 0.03, 0.1]) * torch.randn_like(photo)
    return [*states, (mixed + noise).clamp(0, 1)]


def recoloured(photo: Tensor, style: Tensor) -> Tensor:
    """The photo with the style's mean and deviation of every colour channel."""
    dims = (2, 3)
    unit = (photo - photo.mean(dims, keepdim=True)) / (photo.std(dims, keepdim=True) + 1e-3)
    return (unit * style.std(dims, keepdim=True) + style.mean(dims, keepdim=True)).clamp(0, 1)


# ------------------------------------------------------------------------------------ distilling


def draw_mixtures(rng: random.Random) -> Tensor:
    """Weights `[S, L]` of the losses for every state: style, content, or both at random."""
    rows = []
    for _ in range(STATES):
        kind = rng.random()
        if kind < 0.4:
            row = STYLE
        elif kind < 0.6:
            row = CONTENT
        else:
            row = torch.tensor([rng.random() ** 2 for _ in range(len(STYLE))])
            row[4:] *= rng.choice([0.0, 0.3])
        rows.append(row)
    return torch.stack(rows)


def student_gradient(
    student: PerceptualEncoder, scene: Scene, mixtures: Tensor, create_graph: bool
) -> tuple[Tensor, list[Tensor]]:
    """The gradient `[S, 3, H, W]` of mixed losses with respect to the states, and all taps."""
    x = scene.pictures[2:].clone(memory_format=torch.preserve_format).requires_grad_()
    fixed, taps = student(scene.pictures[:2]), student(x)
    each = losses(taps, [f[:1] for f in fixed], [f[1:] for f in fixed])
    gradient = torch.autograd.grad((each * mixtures).sum(), x, create_graph=create_graph)[0]
    return gradient, [torch.cat(pair) for pair in zip(fixed, taps, strict=True)]


def teacher_gradient(scene: Scene, mixtures: Tensor) -> Tensor:
    return torch.einsum("sl,slchw->schw", mixtures * scene.scales, scene.gradients)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return F.cosine_similarity(a.flatten(1), b.flatten(1), eps=1e-12)


def distil_loss(student: PerceptualEncoder, scene: Scene, mixtures: Tensor) -> Tensor:
    """Disagreement of gradients, at full and half resolution, and of features."""
    ours, taps = student_gradient(student, scene, mixtures, create_graph=True)
    theirs = teacher_gradient(scene, mixtures)
    direction = cosine(ours, theirs) + cosine(F.avg_pool2d(ours, 2), F.avg_pool2d(theirs, 2))
    norms = (g.flatten(1).norm(dim=1) + 1e-12 for g in (ours, theirs))
    strength = torch.log(next(norms) / next(norms)).square()
    features = sum(content_distance([a], [b]).mean() for a, b in zip(taps, scene.taps, strict=True))
    return (1 - direction / 2).mean() + 0.05 * strength.mean() + 0.5 * features


def agreement(student: PerceptualEncoder, scenes: Sequence[Scene]) -> tuple[float, float]:
    """Mean cosine of the style and the content gradients, at half resolution."""
    found = []
    for mixture in (STYLE, CONTENT):
        values = []
        for scene in scenes:
            mixtures = mixture.expand(STATES, -1).to(scene.scales)
            ours, _ = student_gradient(student, scene, mixtures, create_graph=False)
            theirs = teacher_gradient(scene, mixtures)
            values.append(cosine(F.avg_pool2d(ours, 2), F.avg_pool2d(theirs, 2)).mean().item())
        found.append(sum(values) / len(values))
    return found[0], found[1]


class Run:
    """The state of a distillation: everything that a checkpoint holds."""

    def __init__(
        self, student: PerceptualEncoder, bases: Sequence[Tensor], settings: dict[str, Any]
    ) -> None:
        self.student, self.bases = student, list(bases)
        self.average = {k: v.detach().clone() for k, v in student.named_parameters()}
        self.adam = torch.optim.Adam(student.requires_grad_().parameters(), lr=0.0)
        self.settings = settings
        self.stages, self.heads = settings["stages"], settings["heads"]
        self.step, self.best = 0, 0.0

    def save(self, path: Path) -> None:
        tensors = {f"basis.{t}": basis for t, basis in enumerate(self.bases)}
        for name, p in self.student.named_parameters():
            tensors |= {f"student.{name}": p.detach(), f"average.{name}": self.average[name]}
            for key, value in self.adam.state.get(p, {}).items():
                tensors[f"{key}.{name}"] = value
        state = {"step": self.step, "best": self.best, "settings": self.settings}
        tensors = {k: v.cpu().contiguous() for k, v in tensors.items()}
        write_bytes(path, save(tensors, {"run": json.dumps(state)}))

    @classmethod
    def load(cls, path: Path, device: torch.device) -> Run:
        with safe_open(path, framework="pt") as file:
            state = json.loads(file.metadata()["run"])
        tensors = {k: v.to(device) for k, v in load_file(path).items()}
        settings = state.get("settings", state)  # older runs hold stages and heads alone
        student = PerceptualEncoder(*widths(settings["stages"], settings["heads"])).to(device)
        run = cls(student, [tensors[f"basis.{t}"] for t in range(4)], settings)
        run.step, run.best = state["step"], state["best"]
        with torch.no_grad():
            for name, p in student.named_parameters():
                p.copy_(tensors[f"student.{name}"])
                run.average[name] = tensors[f"average.{name}"]
                if f"exp_avg.{name}" in tensors:
                    run.adam.state[p] = {
                        key: tensors[f"{key}.{name}"] for key in ("exp_avg", "exp_avg_sq")
                    } | {"step": tensors[f"step.{name}"].cpu()}
        return run

    def update(self, loss: Tensor, rate: float) -> None:
        self.adam.param_groups[0]["lr"] = rate
        self.adam.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.student.parameters(), 5.0)
        self.adam.step()
        self.step += 1
        keep = min(EMA, self.step / (self.step + 10))
        for name, p in self.student.named_parameters():
            self.average[name].lerp_(p.detach(), 1 - keep)

    def averaged(self) -> PerceptualEncoder:
        net = PerceptualEncoder(*widths(self.stages, self.heads))
        net.load_state_dict({k: v.cpu() for k, v in self.average.items()})
        return net.to(self.bases[0].device, memory_format=LAST)


def widths(stages: str, heads: str) -> tuple[list[list[int]], list[int]]:
    """`"16,16/40"` and `"16,40"` as numbers."""
    return [[int(w) for w in stage.split(",")] for stage in stages.split("/")], [
        int(w) for w in heads.split(",")
    ]


def write_encoder(net: PerceptualEncoder, stages: str, heads: str, path: Path) -> None:
    """The shipped file: fp16 weights and the plan of the net."""
    plan = dict(zip(("stages", "heads"), widths(stages, heads), strict=True))
    tensors = {k: v.half().cpu().contiguous() for k, v in net.state_dict().items()}
    write_bytes(path, save(tensors, {KEY: json.dumps({"format": FORMAT, **plan})}))


def learning_rate(step: int, steps: int, peak: float) -> float:
    """A short warm-up, then half a cosine down to a hundredth."""
    fall = 0.505 + 0.495 * float(np.cos(np.pi * min(step / steps, 1.0)))
    return peak * min(1.0, (step + 1) / 50) * fall


def fixed_settings(args: argparse.Namespace) -> dict[str, Any]:
    """What may not differ when a run goes on."""
    folders = {name: [str(path.resolve()) for path in vars(args)[name]] for name in FOLDERS}
    chosen = {name: vars(args)[name] for name in ("stages", "heads", "seed", "first_scenes")}
    return {"teacher": str(args.teacher.resolve()), **folders, **chosen}


def refuse_another(run: Run, args: argparse.Namespace) -> None:
    """Do not go on with other settings than those of the run. Raises FaststyError."""
    for name, new in fixed_settings(args).items():
        old = run.settings.get(name, new)
        if old != new:
            old, new = (" ".join(v) if isinstance(v, list) else v for v in (old, new))
            flag = name.replace("_", "-")
            raise FaststyError(
                f"{args.work}: this run has --{flag} {old}, not {new}; choose another --work"
            )


def distil(args: argparse.Namespace) -> None:
    device = torch.device(args.device)
    torch.manual_seed(args.seed)
    corpus = Corpus(args.photos, args.styles)
    teacher = load_encoder(f"vgg19:{args.teacher}").to(device, memory_format=LAST)
    args.work.mkdir(parents=True, exist_ok=True)
    checkpoint = args.work / "checkpoint.safetensors"
    if checkpoint.is_file():
        run = Run.load(checkpoint, device)
        refuse_another(run, args)
        console.print(f"going on from step {run.step}")
    else:
        rng = random.Random(args.seed)
        batches = []
        for _ in track("pruning pictures", 24):
            four = [corpus.photo(rng), corpus.photo(rng), corpus.style(rng), corpus.style(rng)]
            batches.append(torch.stack(four).to(device, memory_format=LAST))
        student, bases = prune(teacher, batches, *widths(args.stages, args.heads))
        run = Run(student, bases, fixed_settings(args))
        run.save(checkpoint)
    run.student.to(memory_format=LAST)

    # A scene depends on the seed, its name and the student then: made again, it is the same.
    def scene(name: str) -> Path:
        path: Path = args.work / f"{name}.safetensors"
        if not path.is_file():
            rng = random.Random(f"{args.seed} {name}")
            torch.manual_seed(rng.randrange(2**31))
            make_scene(run.student, teacher, run.bases, corpus, rng).save(path)
        return path

    held_out = [Scene.load(scene(f"held{k}"), device) for k in track("held-out scenes", HELD_OUT)]
    for k in track("first scenes", args.first_scenes):
        scene(f"scene{k}")

    recent: list[float] = []
    clock = time.monotonic()

    def check() -> None:
        nonlocal recent, clock
        net = run.averaged()
        style, content = agreement(net, held_out)
        better = style + content > run.best
        if better:
            run.best = style + content
            write_encoder(net, run.stages, run.heads, args.out)
        run.save(checkpoint)
        said = f"step {run.step}: style gradients agree to {style:.3f}, content {content:.3f}"
        if recent:
            mean = sum(recent) / len(recent)
            said += f", loss {mean:.3f}, {time.monotonic() - clock:.0f} s"
        console.print(said + (f", {args.out} written" if better else ""), soft_wrap=True)
        recent, clock = [], time.monotonic()

    with progress() as bar:
        task = bar.add_task("distilling", total=args.steps, completed=run.step)
        while run.step < args.steps:
            if run.step % CHECK_EVERY == 0:
                check()
            count = args.first_scenes + run.step // STEPS_PER_SCENE
            oldest = max(0, count - SCENES)
            if oldest:
                (args.work / f"scene{oldest - 1}.safetensors").unlink(missing_ok=True)
            rng = random.Random(f"{args.seed} step {run.step}")
            fresh = run.step % STEPS_PER_SCENE == 0
            path = scene(f"scene{count if fresh else rng.randint(oldest, count)}")
            mixtures = draw_mixtures(rng).to(device)
            loss = distil_loss(run.student, Scene.load(path, device), mixtures)
            run.update(loss, learning_rate(run.step, args.steps, args.rate))
            recent.append(loss.item())
            bar.update(task, completed=run.step)
    check()


def progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
    )


def track(what: str, count: int) -> Iterator[int]:
    with progress() as bar:
        yield from bar.track(range(count), description=what)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--teacher", type=Path, required=True, help="VGG-19 in .safetensors")
    parser.add_argument("--photos", type=Path, action="append", required=True)
    parser.add_argument("--styles", type=Path, action="append", required=True)
    parser.add_argument("--work", type=Path, required=True, help="scenes and checkpoint")
    parser.add_argument("--out", type=Path, required=True, help="where the encoder is written")
    parser.add_argument("--steps", type=int, default=3200)
    parser.add_argument("--rate", type=float, default=8e-4, help="peak learning rate")
    parser.add_argument("--first-scenes", type=int, default=8, help="before the first step")
    parser.add_argument("--stages", default=STAGES, help="channels of the convolutions")
    parser.add_argument("--heads", default=HEADS, help="channels of the taps")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    with told():
        distil(parser.parse_args())


if __name__ == "__main__":
    main()
