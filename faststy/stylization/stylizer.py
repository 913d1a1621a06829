"""The stylizer: a trained model that paints pictures, with the dials that a person turns."""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
import threading
from collections.abc import Callable, Generator, Iterable, Mapping
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter
from torch import Tensor

from faststy import assets
from faststy.errors import FaststyError
from faststy.model_file import Model, load_model
from faststy.ops.reference import luminance
from faststy.pictures import Picture, PictureSource, read_picture, write_picture
from faststy.stylization import tiles
from faststy.stylization.strokes import stroke_for
from faststy.tensors import device_named

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from faststy.stylization.realtime import Dials, Frame, FramePainter

Source: TypeAlias = PictureSource | Picture | Tensor
Style: TypeAlias = str | Mapping[str, float]
OVERSHOOT = 0.25  # what a cubic or Lanczos filter may give beyond 0…1 where black meets white


@dataclasses.dataclass(frozen=True)
class Painting:
    """A painted picture and what was found on the way.

    Attributes:
        picture: the result, with the alpha, ICC profile and metadata of the photo.
        lost_content: float32 ``[H, W]`` in 0…1, where the painting lost content of the photo;
            None when the model has no repairer.
        style: the mixing weights that were used, by name; they sum to 1.
    """

    picture: Picture
    lost_content: npt.NDArray[np.float32] | None
    style: dict[str, float]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the picture in the format of the suffix, with all that it carries; JPEG and BMP
        know no transparency: there it lies on white.

        Raises FaststyError for an unknown suffix, or a path that cannot be written.
        """
        write_picture(self.picture, path)


class Stylizer:
    """Paints pictures with a trained model.

    >>> stylizer = Stylizer.load("run/model.safetensors")
    >>> stylizer.paint("photo.jpg", strength=0.8).save("painted.jpg")
    >>> stylizer("photo.jpg", style="ink").show()  # a Pillow image
    """

    def __init__(self, model: Model, device: torch.device | str | None = None) -> None:
        """Moves `model` to `device`: by default, or for "auto", CUDA where there is one, else the
        CPU. Raises FaststyError for a device that cannot be used."""
        self.device = device_named("auto" if device is None else device)
        self.model = model.to(self.device)
        for module in (model.generator, model.repairer):
            if module is not None:
                module.to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str] | None = None,
        device: torch.device | str | None = None,
    ) -> Stylizer:
        """Loads a model file, by default the bundled styles, for `device` as above.

        Raises FaststyError when it is damaged or from a newer faststy, or the device is not there.
        """
        return cls(load_model(assets.model() if path is None else path), device)

    @property
    def styles(self) -> list[str]:
        """Names of the styles that the model holds; the first is the default."""
        return list(self.model.info.styles)

    def __call__(
        self,
        picture: Source,
        *,
        style: Style | None = None,
        strength: float = 1.0,
        repair: float | None = None,
        keep_color: bool = False,
        mask: PictureSource | None = None,
        size: int | None = None,
        stroke: int | None = None,
    ) -> Image.Image:
        """Paints `picture`.

        Args:
            picture: a path, a binary stream, the bytes of a file, a Pillow image, a uint8 array
                ``[H, W]``, ``[H, W, 3]`` or ``[H, W, 4]``, or a tensor ``[3, H, W]`` or
                ``[1, 3, H, W]`` (uint8, or float in 0…1; what resampling overshoots is clamped).
            style: a name, a mixture like ``"rain:0.7,night:0.3"``, or weights by name. Weights
                are brought to a sum of 1. The model's first style by default.
            strength: 0 is the photo, 1 the full style; in between see :func:`blend`.
            repair: how much lost content comes back, 0 to 1. By default 1 when the model has a
                repairer, else 0.
            keep_color: keep the photo's colours and take only the light and dark of the painting.
            mask: a picture of any size that is laid over the photo: white is painted, black stays
                photo, grey is in between. Its edges are softened.
            size: short side, in pixels, at which the picture is painted and comes out. Smaller
                pictures are not enlarged. By default the size of the photo.
            stroke: 1, 2 or 4 times as large as the model learned them are the strokes. By default 1
                for a short side of at most 720 pixels, 2 for twice as many, else 4, so that they
                show when all of the picture is seen.

        Returns:
            An RGB image, or RGBA where the photo has transparency, with the photo's ICC profile
            and metadata in ``info``. Pillow writes these into a JPEG only when they are given to
            its `save`: to keep the colours right, save what :meth:`paint` gives.

        Raises:
            FaststyError: the picture or mask cannot be read, the style is unknown, `repair` is
                asked of a model without a repairer, or memory does not suffice.
            ValueError, TypeError: an argument is out of its range, or of another shape or type.
        """
        painting = self.paint(
            picture,
            style=style,
            strength=strength,
            repair=repair,
            keep_color=keep_color,
            mask=mask,
            size=size,
            stroke=stroke,
        )
        return painting.picture.to_image()

    def paint(
        self,
        picture: Source,
        *,
        style: Style | None = None,
        strength: float = 1.0,
        repair: float | None = None,
        keep_color: bool = False,
        mask: PictureSource | None = None,
        size: int | None = None,
        stroke: int | None = None,
        memory: int | None = None,
        progress: Callable[[float], None] | None = None,
    ) -> Painting:
        """Paints like a call; what comes can be saved whole, and has the lost-content map.

        Args:
            memory: bytes that the program may take; by default two thirds of what is free. What
                needs more as a whole, or more than a GPU has, is painted in tiles, which show
                nowhere, without a map.
            progress: is told the part of the picture that is painted, 0 to 1.

        Raises:
            FaststyError, ValueError, TypeError: as a call.
        """
        self.check_dials(strength, repair)
        if size is not None and (size < 1 or size % 1):
            raise ValueError(f"size is {size}; expected a whole number of pixels, at least 1")
        if memory is not None and not memory > 0:
            raise ValueError(f"memory is {memory}; expected at least 1 byte")
        weights = mixing_weights(style, self.styles)
        if not isinstance(picture, Picture):
            picture = _read(_for_reading(picture), "the picture")
        photo = picture.scaled_down(size)
        soft = None if mask is None else _soft_mask(mask, photo.size)
        filled = photo.filled().rgb
        limit = tiles.limit(memory, self.device)

        stroke = stroke_for(*filled.size) if stroke is None else stroke
        dials: Dials = {
            "style": weights,
            "strength": strength,
            "repair": repair,
            "keep_color": keep_color,
            "stroke": stroke,
        }
        halo = self.halo(filled.size, **dials)

        def attempt(side: int | None) -> tuple[Image.Image, npt.NDArray[np.float32] | None]:
            if side is None:
                return self._paint_whole(filled, soft, **dials)
            return self._paint_tiles(filled, soft, side, halo, progress, **dials), None

        side = tiles.side_within(limit, halo, filled.size)
        what = f"{photo.name}: not enough memory to paint {photo.size[0]} x {photo.size[1]}"
        rgb, lost = tiles.with_less_memory(side, attempt, what)
        return Painting(photo.with_rgb(rgb), lost, weights)

    def _paint_whole(
        self, photo: Image.Image, mask: Image.Image | None, **dials: Unpack[Dials]
    ) -> tuple[Image.Image, npt.NDArray[np.float32] | None]:
        """The painting and the lost-content map."""
        seen = np.array(photo)
        painted, lost = self.painter(**dials).paint_picture(seen)
        return Image.fromarray(_masked(seen, painted, mask)), lost

    def _paint_tiles(
        self,
        photo: Image.Image,
        mask: Image.Image | None,
        side: int,
        halo: int,
        progress: Callable[[float], None] | None,
        **dials: Unpack[Dials],
    ) -> Image.Image:
        painter = self.painter(**dials)
        painter.hold(tiles.samples(photo, dials["stroke"] or 1))

        def paint(seen: Frame, tile: tiles.Tile) -> Frame:
            return _masked(seen, painter(seen), None if mask is None else mask.crop(tile.seen))

        return tiles.paint_tiles(photo, side, halo, paint, progress)

    def halo(self, size: tuple[int, int], **dials: Unpack[Dials]) -> int:
        """How many pixels a tile of a picture of this size must see beyond its borders."""
        stroke = dials.get("stroke") or stroke_for(*size)
        blended = 0 < dials.get("strength", 1.0) < 1
        return tiles.halo_of(self.model.generator, stroke, blended)

    def painter(self, **dials: Unpack[Dials]) -> FramePainter:
        """A painter of frames that belong together, with dials that can be turned while it works.

        The dials are `style`, `strength`, `repair`, `keep_color` and `stroke` of a call, with its
        errors, and `half_life`: see :class:`FramePainter`.
        """
        from faststy.stylization.realtime import FramePainter

        return FramePainter(self, **dials)

    def stream(
        self,
        frames: Iterable[Frame],
        *,
        painter: FramePainter | None = None,
        ahead: int | None = None,
        stop: threading.Event | None = None,
        **dials: Unpack[Dials],
    ) -> Generator[Frame, None, None]:
        """Paints `frames`, uint8 arrays ``[H, W, 3]``, in their order, in real time.

        Frames are read in one thread and painted in another, at most `ahead` of them before and
        after the painter. A GPU paints the frames that wait together. An exception of `frames`
        comes in its place.

        Args:
            frames: any iterable; frames may change their size, and may be the same array again.
            painter: one made by :meth:`painter` of this stylizer, whose dials can be turned
                meanwhile; or
            dials: the arguments of :meth:`painter`.
            ahead: how many frames wait at each side, at least 1; by default 2, on a GPU 5.
            stop: once set, the stream ends, as by `close()`, also while `frames` gives nothing.

        Raises what :meth:`painter` raises, before a frame is read, ValueError for less `ahead` or
        another stylizer's `painter`, and TypeError for a `painter` beside dials.
        """
        from faststy.stylization.realtime import stream

        if ahead is not None and ahead < 1:
            raise ValueError(f"ahead is {ahead}; expected at least 1")
        if painter is not None and dials:
            raise TypeError(f"{next(iter(dials))} is given beside painter; turn it by painter.set")
        if painter is not None and painter.stylizer is not self:
            raise ValueError("painter is of another stylizer; expected one that this one made")
        return stream(frames, painter or self.painter(**dials), ahead, stop)

    def check_dials(self, strength: float, repair: float | None) -> None:
        """Raises ValueError or FaststyError for what cannot be."""
        if not 0 <= strength <= 1:
            raise ValueError(f"strength is {strength}; expected 0 to 1")
        if repair is not None and not 0 <= repair <= 1:
            raise ValueError(f"repair is {repair}; expected 0 to 1")
        if repair and self.model.repairer is None:
            raise FaststyError("the model was trained without a repairer; leave repair at 0")


def mixing_weights(style: Style | None, names: list[str]) -> dict[str, float]:
    """The weights of a mixture, by name, with a sum of 1.

    Args:
        style: ``"rain"``, ``"rain:0.7,night:0.3"``, ``{"rain": 0.7, "night": 0.3}``, or None for
            the first of `names`. A name without a weight in a mixture counts 1. "stained glass",
            as sheets have it, is stained_glass.
        names: the styles there are.

    Raises:
        FaststyError: a name that is not there, or weights that are no numbers, negative or all 0.
        TypeError: `style` is of another type.
    """
    if style is None:
        return {names[0]: 1.0}
    if isinstance(style, str):
        style = {style: 1.0} if style in names else _parse_mixture(style)
    if not isinstance(style, Mapping):
        raise TypeError(f"style is a {type(style).__name__}; expected a name or weights by name")
    as_spoken = {name.replace("_", " "): name for name in names}
    style = {n if n in names else as_spoken.get(n, n): weight for n, weight in style.items()}
    for name, weight in style.items():
        if name not in names:
            close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
            hint = f"did you mean '{close[0]}'? " if close else ""
            raise FaststyError(f"unknown style '{name}': {hint}the model has {', '.join(names)}")
        if not isinstance(weight, int | float | np.integer | np.floating):
            raise FaststyError(f"style weight {weight!r} of '{name}' is no number")
    total = sum(style.values())
    if not all(weight >= 0 for weight in style.values()) or not 0 < total < math.inf:
        shown = ", ".join(f"{name}:{weight:g}" for name, weight in style.items())
        raise FaststyError(f"style weights must be 0 or more, and not all 0: {shown or 'none'}")
    return {name: weight / total for name, weight in style.items() if weight > 0}


def _parse_mixture(text: str) -> dict[str, float]:
    weights: dict[str, float] = {}
    for part in text.split(","):
        name, colon, number = part.rpartition(":")
        if not colon:
            name, number = part, "1"
        try:
            weight = float(number)
        except ValueError:
            raise FaststyError(
                f"style weight '{number}' of '{name}' is no number; write NAME:0.7,OTHER:0.3"
            ) from None
        weights[name.strip()] = weights.get(name.strip(), 0.0) + weight
    return weights


def with_colors_of(photo: Tensor, painted: Tensor) -> Tensor:
    """The light and dark of `painted` in the colours of `photo`, both [N, 3, H, W] in 0…1.

    Luminance transfer of Gatys et al. 2016, "Preserving Color in Neural Artistic Style Transfer".
    Where a colour does not exist that light or dark, it is made paler, never another hue.
    """
    light = luminance(painted)
    chroma = photo - luminance(photo)
    room = torch.where(chroma > 0, 1 - light, light) / chroma.abs().clamp_min(1e-6)
    return (light + chroma * room.amin(1, keepdim=True).clamp(0, 1)).clamp(0, 1)


def blend(photo: Tensor, painted: Tensor, strength: float, levels: int = tiles.LEVELS) -> Tensor:
    """Between `photo` (strength 0) and `painted` (1), both [N, 3, H, W] in 0…1.

    A plain fade shows two pale pictures on top of each other. Here, at each scale of a Laplacian
    pyramid, the contrast of the details goes evenly from that of the photo to that of the
    painting, but their shapes come mostly from the picture whose details are stronger there. The
    broad colours are faded.
    """
    if strength in (0.0, 1.0):
        return painted if strength else photo
    height, width = photo.shape[-2:]
    if levels == 0 or min(height, width) < 4:
        return torch.lerp(photo, painted, strength)
    small_photo, small_painted = _half(photo), _half(painted)
    detail_photo = photo - _double(small_photo, height, width)
    detail_painted = painted - _double(small_painted, height, width)
    from_photo = (1 - strength) * _contrast(detail_photo)
    from_painted = strength * _contrast(detail_painted)
    share = from_painted.square() / (from_photo.square() + from_painted.square())
    # Each detail by its own contrast, times the contrast that both together have.
    contrast = from_photo + from_painted
    detail = (1 - share) * contrast / from_photo * (1 - strength) * detail_photo
    detail += share * contrast / from_painted * strength * detail_painted
    broad = _double(blend(small_photo, small_painted, strength, levels - 1), height, width)
    return (broad + detail).clamp(0, 1)


def _half(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False)


def _double(x: Tensor, height: int, width: int) -> Tensor:
    # By two whatever the size: so a part of a picture is treated as it is in the whole.
    doubled = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
    return doubled[..., :height, :width]


def _contrast(detail: Tensor) -> Tensor:
    """Root mean square over the colours and 3x3 neighbours, never 0: [N, 1, H, W]."""
    squares = detail.square().mean(1, keepdim=True)
    return F.avg_pool2d(squares, 3, stride=1, padding=1, count_include_pad=False).add(1e-8).sqrt()


def _read(source: PictureSource, name: str) -> Picture:
    """As `read_picture`; in messages a path is called by itself, everything else by `name`."""
    return read_picture(source, name=None if isinstance(source, str | os.PathLike) else name)


def _for_reading(picture: PictureSource | Tensor) -> PictureSource:
    """Tensors as uint8 arrays, everything else as it is."""
    if not isinstance(picture, Tensor):
        return picture
    shape = list(picture.shape)
    if picture.ndim == 4 and shape[0] == 1:
        picture = picture[0]
    if picture.ndim != 3 or picture.shape[0] != 3 or 0 in shape:
        raise ValueError(f"picture has shape {shape}; expected [3, H, W] or [1, 3, H, W]")
    picture = picture.detach()
    if picture.is_floating_point():
        low, high = (x.item() for x in picture.aminmax())
        if not (low >= -OVERSHOOT and high <= 1 + OVERSHOOT):  # NaN, too
            raise ValueError(f"picture has values in {low:.3g}...{high:.3g}; expected 0...1")
        picture = (picture.float().clamp(0, 1) * 255).round().to(torch.uint8)
    if picture.dtype != torch.uint8:
        raise ValueError(f"picture is {picture.dtype}; expected uint8, or float in 0...1")
    return np.ascontiguousarray(picture.permute(1, 2, 0).cpu().numpy())


def _masked(photo: Frame, painted: Frame, mask: Image.Image | None) -> Frame:
    """`painted` laid over `photo`, uint8 [H, W, 3], where `mask` is white."""
    if mask is None:
        return painted
    share = np.asarray(mask, dtype=np.float32)[..., None] / 255
    return np.rint(photo + (painted.astype(np.float32) - photo) * share).astype(np.uint8)


def _soft_mask(mask: PictureSource, size: tuple[int, int]) -> Image.Image:
    """A mask of any size in grey at `size` (width, height)."""
    picture = _read(mask, "the mask")
    grey = picture.rgb.convert("L")
    if picture.alpha is not None:
        black = Image.new("L", grey.size, 0)
        grey = Image.composite(grey, black, picture.alpha)
    grey = grey.resize(size, Image.Resampling.BILINEAR)
    return grey.filter(ImageFilter.GaussianBlur(min(size) / 256))
