"""Everything that is measured of a model: how it paints each photo in each of its styles."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import fmean

import torch
from PIL import Image
from torch import Tensor, nn

from faststy import ops
from faststy.errors import FaststyError
from faststy.evaluation import checkerboard as grid
from faststy.evaluation.distances import content_distance, relative
from faststy.evaluation.stability import Frame, Layer, Motion, Scene, contrast, warp_error
from faststy.model_file import Model
from faststy.nn.encoder import PerceptualEncoder
from faststy.nn.lost_content import CONTENT_TAP, lost_content, lost_regions
from faststy.pictures import (
    Picture,
    list_pictures,
    read_picture,
    scale_down,
    style_name,
    style_sample,
)
from faststy.stylization import tiles
from faststy.stylization.strokes import stroke_for
from faststy.stylization.stylizer import Stylizer
from faststy.tensors import device_named, is_out_of_memory, to_tensor

SMALLEST = 16  # px: in less there is nothing to judge
EPS = 1e-6
Look = Callable[[Tensor], Sequence[Tensor]]
PAN = Motion((3.3, -1.4))  # px per frame, of the photos that are moved
MOVED_PHOTOS = 2
PLAIN = 2.0  # levels: paintings of less contrast have nothing that moves
MOVED_FRAMES = 5
BAND = 128  # rows that the encoder sees at a time,
REACH = 32  # and around them: multiples of 8, as its last tap has an eighth of them
SMALL = 64  # px: the short side of a picture that shows whether weights are sound
JUDGED = 4  # bytes for a pixel and each channel of CONTENT_TAP, beside the program; 3.3 measured


@dataclass(frozen=True)
class Scores:
    """How far a painting is from its photo and its style; smaller is better.

    Attributes:
        content: relative distance of the encoder's relu3_1 from the photo's.
        inside, outside: the same of instance-normalised features (style removed), weighted by the
            lost-content map of the painting without repair, and by what is left of 1.
        lost: share of the picture where most content is gone, see `lost_regions`.
        style: relative distance of the Gram matrices from the style's, the mean over the taps.
        checkerboard: by stride, the score of the painting less that of the photo; empty for
            pictures too small to tell.
    """

    content: float
    inside: float
    outside: float
    lost: float
    style: float
    checkerboard: dict[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Entry:
    """One photo in one style: its scores without and with repair, and the seconds that the last of
    these paintings took."""

    photo: Path
    style: str
    size: tuple[int, int]  # width and height
    seconds: float
    painted: Scores
    repaired: Scores | None  # None: the model has no repairer

    @property
    def final(self) -> Scores:
        """The scores of what a user gets."""
        return self.repaired or self.painted


@dataclass
class Evaluation:
    """The entries, photo by photo, and the photos that could not be read, with the reason.

    Attributes:
        motion: by style, and whether repaired: what paintings of a photo that moves change beside
            moving with it, the warp error of Lai et al. 2018 in % of their contrast; of a few
            photos each, painted frame by frame.
    """

    entries: list[Entry] = field(default_factory=list)
    skipped: dict[Path, str] = field(default_factory=dict)
    motion: dict[tuple[str, bool], list[float]] = field(default_factory=dict)

    def mean_motion(self, style: str | None = None, *, repaired: bool) -> float | None:
        """`motion` in one style or all; None where nothing was moved, and without a repairer."""
        chosen = [
            error
            for (name, after), errors in self.motion.items()
            if style in (None, name) and after == repaired
            for error in errors
        ]
        return fmean(chosen) if chosen else None

    @property
    def images_per_second(self) -> float:
        return len(self.entries) / sum(entry.seconds for entry in self.entries)

    @property
    def megapixels_per_second(self) -> float:
        pixels = sum(entry.size[0] * entry.size[1] for entry in self.entries)
        return pixels / 1e6 / sum(entry.seconds for entry in self.entries)

    def mean(self, style: str | None = None, *, repaired: bool) -> Scores | None:
        """Scores averaged over the photos, in one style or all; None without a repairer."""
        chosen = [e for e in self.entries if style in (None, e.style)]
        scores = [s for e in chosen if (s := e.repaired if repaired else e.painted) is not None]
        if not scores:
            return None
        names = ("content", "inside", "outside", "lost", "style")
        means = {name: fmean(getattr(s, name) for s in scores) for name in names}
        grids = [s.checkerboard for s in scores if s.checkerboard]
        strides = grids[0] if grids else ()
        return Scores(**means, checkerboard={n: fmean(g[n] for g in grids) for n in strides})


def match_styles(
    names: Sequence[str], pictures: Sequence[str | os.PathLike[str]]
) -> dict[str, Path]:
    """Which picture (or folder of pictures) belongs to which of a model's styles.

    By file name, for some or all of the styles; or, where no file has a style's name, one per
    style in their order. Raises FaststyError where neither holds.
    """
    paths = [Path(picture) for picture in pictures]
    stems = list(map(style_name, paths))
    strangers = [path for path, stem in zip(paths, stems, strict=True) if stem not in names]
    if not strangers and len(set(stems)) == len(stems):
        return dict(zip(stems, paths, strict=True))
    if len(strangers) in (0, len(paths)) and len(paths) == len(names):
        return dict(zip(names, paths, strict=True))
    what = (
        f"{strangers[0]}: no style of the model has this name"
        if strangers
        else f"{len(paths)} style pictures, but two of them have the same name"
    )
    raise FaststyError(
        f"{what}; the model has {', '.join(names)}: name pictures so, or give one per style in "
        "this order"
    )


def style_grams(
    source: str | os.PathLike[str],
    short_side: int,
    encoder: nn.Module,
    device: torch.device | str,
    skipped: dict[Path, str] | None = None,
) -> list[Tensor]:
    """The Gram matrices [1, C, C] per tap of a style picture; of a folder the mean of its sample.

    Args:
        source: the picture or folder.
        short_side: px, at which pictures are shown; smaller ones stay as they are.
        encoder: `[N, 3, H, W]` in 0...1 to four taps, on `device`.
        skipped: gets the reason for each picture of the folder that cannot be used.

    They are of whole taps: training leaves out the two outermost cells, but edges of paintings are
    seen. In place of a picture of the folder that cannot be used stands the next, as in training,
    and each counts once. Raises FaststyError where there is none.
    """
    source, device = Path(source), device_named(str(device))
    unusable: dict[Path, str] = {}
    paths = list_pictures(source, left_out=unusable) if source.is_dir() else [source]
    grams: dict[Path, list[Tensor]] = {}
    for index in style_sample(len(paths)):
        for path in (p for p in [*paths[index:], *paths[:index]] if p not in unusable):
            try:
                if path not in grams:  # else in place of one that cannot be used
                    grams[path] = _grams(path, short_side, encoder, device)
                break
            except FaststyError as error:
                unusable[path] = str(error)
        else:
            raise FaststyError(unusable[paths[0]])
    if skipped is not None:
        skipped |= unusable
    return [torch.cat(tap).mean(0, keepdim=True) for tap in zip(*grams.values(), strict=True)]


def _grams(path: Path, short_side: int, encoder: nn.Module, device: torch.device) -> list[Tensor]:
    """Those of one picture. Raises FaststyError."""
    picture = read_picture(path).in_srgb().scaled_down(short_side).on_white().rgb
    width, height = picture.size
    if min(width, height) < SMALLEST:
        raise FaststyError(f"{path}: too small for a style; {SMALLEST} px is the least")
    try:
        with torch.inference_mode():
            return _seen(to_tensor(picture).to(device), encoder)[1]
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise FaststyError(
            f"{path}: not enough memory to judge by {width} x {height}; use a smaller --style-size"
        ) from error


def evaluate(
    model: Model,
    photos: Sequence[str | os.PathLike[str]],
    styles: Mapping[str, Sequence[Tensor]],
    encoder: PerceptualEncoder,
    device: torch.device | str,
    *,
    size: int | None = None,
    motion: bool = True,
    on_progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Paint every photo in every style as a `Stylizer` does, and measure the paintings.

    Args:
        photos: picture files; those that cannot be read, or that memory does not suffice for, are
            listed in the result.
        styles: of the model, by name, what `style_grams` gives.
        encoder: judges; `[N, 3, H, W]` in 0...1 to four taps, on `device`.
        size: short side, px, at which photos are painted; smaller ones stay as they are. Larger
            ones than `strokes.READABLE` have larger strokes.
        motion: also paint a few photos that move.
        on_progress: called after each painting with how many are done and how many there are.

    Raises FaststyError when no photo can be judged, for styles that the model does not have, and
    for a painting that is not finite.
    """
    for name, given in (("photos", photos), ("styles", styles)):
        if not given or isinstance(given, str):
            raise FaststyError(f"{name} is {given!r}; it must hold at least one of them")
    if unknown := styles.keys() - {*model.info.styles}:
        names = ", ".join(model.info.styles)
        raise FaststyError(f"unknown style {min(unknown)!r}; the model has {names}")
    stylizer = Stylizer(model, device)
    result, total = Evaluation(), len(photos) * len(styles)
    for number, path in enumerate(map(Path, photos)):
        try:
            photo = load_photo(path, size)
            width, height = photo.size
            needed = JUDGED * encoder.channels[CONTENT_TAP] * width * height
            if needed > tiles.limit(None, stylizer.device):
                raise FaststyError(_too_large(photo))
        except FaststyError as error:
            result.skipped[path] = str(error)
            continue

        def tell(done: int, before: int = number * len(styles)) -> None:
            if on_progress is not None:
                on_progress(before + done, total)

        moved = motion and len(result.entries) < MOVED_PHOTOS * len(styles)
        if not result.entries:
            _refuse_broken(stylizer, photo, styles)
        try:
            if not result.entries:  # the first call of a net is slow
                stylizer.paint(photo, style=next(iter(styles)))
            found = _of_photo(stylizer, path, photo, styles, encoder, moved, tell)
        except FaststyError as error:  # not enough memory to paint it
            result.skipped[path] = str(error)
            continue
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            result.skipped[path] = _too_large(photo)
            continue
        result.entries += found.entries
        for key, errors in found.motion.items():
            result.motion.setdefault(key, []).extend(errors)
    if not result.entries:
        first = next(iter(result.skipped.values()))
        raise FaststyError(f"none of {len(photos)} photos can be judged: {first}")
    return result


def load_photo(path: Path, size: int | None) -> Picture:
    """The photo as `evaluate` paints it, opaque, as the nets see it.

    Raises FaststyError where it cannot be judged."""
    photo = read_picture(path).scaled_down(size).filled()
    if min(photo.size) < SMALLEST:
        raise FaststyError(f"{path}: smaller than {SMALLEST} px")
    return photo


def _too_large(photo: Picture) -> str:
    width, height = photo.size
    return f"{photo.name}: not enough memory to judge {width} x {height}; use a smaller size"


@torch.inference_mode()
def _refuse_broken(stylizer: Stylizer, photo: Picture, styles: Iterable[str]) -> None:
    """Raises FaststyError for a painting that is not finite, which bytes do not tell: of a small
    picture, as that comes from the weights."""
    model = stylizer.model
    small = to_tensor(scale_down(photo.in_srgb().rgb, SMALL)).to(stylizer.device)
    for style in styles:
        weights = small.new_tensor([float(name == style) for name in model.info.styles])
        painted = model.generator(small, weights)
        if model.repairer is not None:
            painted = painted + sum(part.mean() for part in model.repairer(painted, small))
        if not painted.isfinite().all():
            raise FaststyError(
                f"{photo.name}: its painting in {style} is not finite; the model is broken"
            )


def _of_photo(
    stylizer: Stylizer,
    path: Path,
    photo: Picture,
    styles: Mapping[str, Sequence[Tensor]],
    encoder: PerceptualEncoder,
    moved: bool,
    tell: Callable[[int], None],
) -> Evaluation:
    """What `evaluate` finds of one photo; all of it or none, so that means compare the same."""
    found = Evaluation()
    seen = photo.in_srgb().rgb
    judge = _Judge(seen, encoder, stylizer.device)
    moving = Moving(seen) if moved else None
    repairs = stylizer.model.repairer is not None
    for done, (style, grams) in enumerate(styles.items(), 1):
        began = time.perf_counter()
        final = stylizer.paint(photo, style=style)
        seconds = time.perf_counter() - began
        bare = stylizer.paint(photo, style=style, repair=0) if repairs else final
        lost, painted = judge(bare.picture, grams)
        repaired = judge(final.picture, grams, lost)[1] if repairs else None
        found.entries.append(Entry(path, style, photo.size, seconds, painted, repaired))
        if moving is not None:
            for after, change in moving.errors(stylizer, style).items():
                found.motion.setdefault((style, after), []).append(change)
        tell(done)
    return found


class Moving:
    """A photo that pans: its frames and their flow, which paintings should follow."""

    def __init__(self, photo: Image.Image) -> None:
        width, height = photo.size
        layer = Layer(to_tensor(photo)[0], PAN)
        scene = Scene([layer], (height * 2 // 3, width * 2 // 3))
        self.stroke = stroke_for(*photo.size)
        self.frames = [scene.frame(t) for t in range(MOVED_FRAMES)]
        self.flows = [scene.flow(t) for t in range(1, MOVED_FRAMES)]

    def errors(self, stylizer: Stylizer, style: str) -> dict[bool, float]:
        """The warp error of paintings, in % of their contrast: without repair (False) and, of a
        model with a repairer, with it (True); none where the photo is too small to follow, or its
        painting plain."""
        found = {}
        for repaired in (False, True) if stylizer.model.repairer is not None else (False,):
            pictures = self._painted(stylizer, style, float(repaired))
            error, levels = warp_error(pictures, self.flows), contrast(pictures)
            if not math.isnan(error) and levels > PLAIN:
                found[repaired] = 100 * error / levels
        return found

    def _painted(self, stylizer: Stylizer, style: str, repair: float) -> list[Frame]:
        """Each frame by its own statistics, as a picture."""
        painter = stylizer.painter(style=style, repair=repair, stroke=self.stroke, half_life=0)
        return [painter(frame) for frame in self.frames]


class _Judge:
    """Compares paintings with one photo, whose own part is computed once."""

    @torch.inference_mode()
    def __init__(
        self, photo: Image.Image, encoder: PerceptualEncoder, device: torch.device
    ) -> None:
        self.encoder, self.device = encoder, device
        x = to_tensor(photo).to(device)
        bands = _bands(x, partial(encoder, taps=CONTENT_TAP + 1))
        self.content = torch.cat([taps[CONTENT_TAP] for taps in bands], 2)
        self.grid = _grid(x)

    @torch.inference_mode()
    def __call__(
        self, painting: Picture, grams: Sequence[Tensor], weight: Tensor | None = None
    ) -> tuple[Tensor, Scores]:
        """The lost-content map of a painting, and its scores; `weight` is the map inside which."""
        painted = to_tensor(painting.in_srgb().rgb).to(self.device)
        content, seen = _seen(painted, self.encoder)
        # By the number of the tap, at which they look; the others are not held.
        taps, photo = ([x] * (CONTENT_TAP + 1) for x in (content, self.content))
        lost = lost_content(taps, photo)
        weight = lost if weight is None else weight
        a, b = ops.instance_norm(content), ops.instance_norm(self.content)
        style = [relative(gram, target) for gram, target in zip(seen, grams, strict=True)]
        lattice = _grid(painted)
        scores = Scores(
            content=content_distance([content], [self.content]).item(),
            inside=_weighted_distance(a, b, weight),
            outside=_weighted_distance(a, b, 1 - weight),
            lost=lost_regions(lost, photo).float().mean().item(),
            style=torch.stack(style).mean().item(),
            checkerboard={n: lattice[n] - self.grid[n] for n in lattice},
        )
        return lost, scores


def _seen(x: Tensor, encoder: Look) -> tuple[Tensor, list[Tensor]]:
    """The CONTENT_TAP of [1, 3, H, W], and the Gram matrices of all taps."""
    content, grams = [], []
    for taps in _bands(x, encoder):
        content.append(taps[CONTENT_TAP])
        grams.append(
            [ops.gram(tap) * (tap.shape[2] / (x.shape[2] >> t)) for t, tap in enumerate(taps)]
        )
    return torch.cat(content, 2), [
        torch.stack(of_tap).sum(0) for of_tap in zip(*grams, strict=True)
    ]


def _bands(x: Tensor, encoder: Look) -> Iterator[list[Tensor]]:
    """The taps of [1, 3, H, W], some rows after the others: of all they take much memory."""
    height = x.shape[2]
    for top in range(0, max(height // BAND, 1) * BAND, BAND):
        bottom = top + BAND if top + 2 * BAND <= height else height
        first = max(top - REACH, 0)
        taps = encoder(x[:, :, first : bottom + REACH])
        yield [tap[:, :, (top - first) >> t : (bottom - first) >> t] for t, tap in enumerate(taps)]


def _weighted_distance(a: Tensor, b: Tensor, weight: Tensor) -> float:
    error, energy = (weight * (a - b).square()).sum(), (weight * b.square()).sum()
    return (error / (energy + EPS)).item()


def _grid(x: Tensor) -> dict[int, float]:
    return grid.checkerboard(x[0]) if min(x.shape[-2:]) >= grid.SMALLEST else {}
