"""Reads pictures of every common kind into plain 8-bit RGB, and writes them back whole.

Needs only Pillow and NumPy, so that everything may import it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import stat
import threading
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import BinaryIO, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageCms, ImageOps, ImageStat, UnidentifiedImageError

from faststy.errors import FaststyError
from faststy.files import mode_of, reason_of, target_at, write_bytes

PIXEL_LIMIT = 300_000_000
"""Largest picture that is read, in pixels: a file of a few bytes can claim any size."""

# EPS and WMF would start other programs; formats without a signature match random bytes.
_READABLE = ("JPEG", "MPO", "PNG", "WEBP", "AVIF", "JPEG2000", "TIFF", "BMP", "GIF", "PPM")
_SEVERAL = ("PNG", "WEBP", "AVIF", "TIFF", "GIF")  # may be in a file of these; MPO's are one photo
_READABLE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".avif", ".jp2", ".j2k"),
    *(".tif", ".tiff", ".bmp", ".dib", ".gif", ".ppm", ".pgm", ".pbm", ".pnm"),
)
_FOREIGN_SUFFIXES = (
    *(".heic", ".heif", ".jxl", ".tga", ".psd", ".exr", ".dng", ".raw", ".cr2", ".cr3", ".nef"),
    *(".arw", ".orf", ".rw2", ".raf", ".pef", ".srw"),
)
_FORMAT_OF_SUFFIX = {
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".jpe": "JPEG",
    ".jfif": "JPEG",
    ".png": "PNG",
    ".webp": "WEBP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".bmp": "BMP",
}
_WITH_ALPHA = ("PNG", "WEBP", "TIFF")
WRITABLE = tuple(dict.fromkeys(_FORMAT_OF_SUFFIX.values()))
_SAVE_OPTIONS: dict[str, dict[str, object]] = {
    "JPEG": {"quality": 95, "subsampling": "4:4:4"},
    "PNG": {"compress_level": 3},  # half the time of the default, the same size
    "WEBP": {"quality": 95},
    "TIFF": {"compression": "tiff_lzw"},
    "BMP": {},
}
_LONGEST_JPEG_EXIF = 65_533

# What describes the photo, as opposed to how its file was laid out.
_KEPT_EXIF = (
    ExifTags.Base.ImageDescription,
    ExifTags.Base.Make,
    ExifTags.Base.Model,
    ExifTags.Base.XResolution,
    ExifTags.Base.YResolution,
    ExifTags.Base.ResolutionUnit,
    ExifTags.Base.Software,
    ExifTags.Base.DateTime,
    ExifTags.Base.Artist,
    ExifTags.Base.Copyright,
)
_PIXEL_SIZE_EXIF = (ExifTags.Base.ExifImageWidth, ExifTags.Base.ExifImageHeight)

PictureSource: TypeAlias = (
    str | os.PathLike[str] | bytes | BinaryIO | Image.Image | npt.NDArray[np.uint8]
)


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture, upright and in 8-bit RGB, with what is needed to write it back.

    Attributes:
        rgb: mode ``RGB``.
        alpha: mode ``L``, same size, 0 = transparent; None when the picture is opaque.
        icc_profile: the RGB profile that the numbers in ``rgb`` mean; None is sRGB.
        exif: the metadata that describes the photo, without its orientation.
        format: Pillow's name of the file format it was read from, None when from memory.
        name: what to call it in a message.
    """

    rgb: Image.Image
    alpha: Image.Image | None = None
    icc_profile: bytes | None = None
    exif: bytes | None = None
    format: str | None = None
    name: str = "the picture"

    def __post_init__(self) -> None:
        if self.alpha is not None and self.alpha.size != self.rgb.size:
            raise ValueError(f"alpha is {self.alpha.size}, rgb {self.rgb.size}; expected one size")

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.rgb.size

    def with_rgb(self, rgb: Image.Image) -> Picture:
        """The same picture with new pixels, as many as before."""
        return dataclasses.replace(self, rgb=rgb)

    def scaled_down(self, short_side: int | None) -> Picture:
        """As :func:`scale_down`; colours that nobody sees do not mix with those that are seen."""
        if short_side is None or min(self.size) <= short_side:
            return self  # before anything is copied
        if self.alpha is None:
            return self.with_rgb(scale_down(self.rgb, short_side))
        whole = self.rgb.copy()
        whole.putalpha(self.alpha)
        small = scale_down(whole, short_side)
        return dataclasses.replace(self, rgb=small.convert("RGB"), alpha=small.getchannel("A"))

    def on_white(self) -> Picture:
        """Opaque, as it looks on white paper: what is learned from a picture is what is seen."""
        if self.alpha is None:
            return self
        white = Image.new("RGB", self.size, "white")
        return dataclasses.replace(
            self, rgb=Image.composite(self.rgb, white, self.alpha), alpha=None
        )

    def filled(self) -> Picture:
        """Opaque, with the colours that nobody sees set to the mean: the nets would see them."""
        if self.alpha is None:
            return self
        rgb, seen = self.rgb, self.alpha.point([0] + 255 * [255])
        if seen.getextrema() == (0, 255):  # else all or nothing is seen
            mean = ImageStat.Stat(rgb, seen).mean
            rgb = Image.new("RGB", rgb.size, tuple(map(round, mean)))
            rgb.paste(self.rgb, mask=seen)
        return dataclasses.replace(self, rgb=rgb, alpha=None)

    def in_srgb(self) -> Picture:
        """The same colours as numbers of sRGB, without a profile."""
        if self.icc_profile is None:
            return self
        rgb = _to_srgb(self.rgb, self.icc_profile)
        return dataclasses.replace(self, rgb=rgb, icc_profile=None)

    def to_image(self) -> Image.Image:
        """One Pillow image, RGB or RGBA, that carries profile and metadata in ``info``."""
        image = self.rgb.copy()
        if self.alpha is not None:
            image.putalpha(self.alpha)
        image.info = {}
        if self.icc_profile is not None:
            image.info["icc_profile"] = self.icc_profile
        if self.exif is not None:
            image.info["exif"] = self.exif
        return image


def read_picture(source: PictureSource, *, name: str | None = None) -> Picture:
    """Reads one picture, whatever its kind, as upright 8-bit RGB.

    EXIF orientation is applied; alpha and palette transparency become ``alpha``; 16-bit, 32-bit
    and float pixels are scaled to 8 bits; CMYK, grey and Lab go through their ICC profile to sRGB
    where they have one; of an animation the first frame is taken. More than PIXEL_LIMIT pixels
    are refused before anything is decoded.

    Args:
        source: a path, an open binary stream, the bytes of a file, a Pillow image, or a uint8
            array ``[H, W]``, ``[H, W, 3]`` or ``[H, W, 4]``.
        name: what to call it in messages; a path is called by itself.

    Raises:
        FaststyError: nothing there, no permission, not a picture, damaged, or too large.
        TypeError, ValueError: `source` is of another type, or an array of another shape.
    """
    if isinstance(source, np.ndarray):
        name = name or "the array"
        return _from_image(_from_array(source, name), name)
    if isinstance(source, Image.Image):
        picture = _from_image(source, name or "the image")
        is_shared = picture.rgb.im is source.im
        return picture.with_rgb(picture.rgb.copy()) if is_shared else picture
    if isinstance(source, bytes):
        return _from_stream(io.BytesIO(source), name or "the data")
    if isinstance(source, str | os.PathLike):
        name = name or os.fspath(source)
        try:
            with open(source, "rb") as file:
                return _from_stream(file, name)
        except (OSError, ValueError) as error:  # ValueError: a path with a null byte
            raise FaststyError(f"{name}: cannot be read ({reason_of(error)})") from error
    if hasattr(source, "read"):
        return _from_stream(source, name or "the stream")
    raise TypeError(
        f"{name or 'source'} is a {type(source).__name__}; expected a path, a binary stream, "
        "bytes, a Pillow image or a uint8 array"
    )


def size_of(source: str | os.PathLike[str] | io.BytesIO) -> tuple[int, int] | None:
    """Width and height, as stored, of the picture that `read_picture` would decode, or None.

    Nothing is decoded, and a stream stays at its beginning.
    """
    try:
        with without_pillow_limit(), _open(source) as image:
            return image.size if image.width * image.height <= PIXEL_LIMIT else None
    except Exception:  # a decoder can raise anything on damaged bytes
        return None
    finally:
        if isinstance(source, io.BytesIO):
            source.seek(0)


def write_picture(picture: Picture | Image.Image, path: str | os.PathLike[str]) -> None:
    """Writes `picture` in the format of the suffix; the file appears complete or not at all.

    JPEG is quality 95 without chroma subsampling. JPEG and BMP know no transparency: there the
    picture lies on white. ICC profile and EXIF are written where the format has them.

    Raises:
        FaststyError: unknown suffix, a picture too large for the format, or a path that cannot
            be written (no permission, disk full).
    """
    write_data(encode_picture(picture, format_of(path)), path)


def frames_in(path: str | os.PathLike[str]) -> int:
    """How many pictures the file at `path` holds, of which `read_picture` gives the first."""
    with contextlib.suppress(Exception), without_pillow_limit(), _open(path) as image:
        if image.format in _SEVERAL:
            return int(getattr(image, "n_frames", 1))
    return 1


def write_data(data: bytes, path: str | os.PathLike[str]) -> None:
    """Writes the bytes of a file to `path`, complete or not at all; makes its folder.

    A link stays a link; folders and devices are never replaced. Raises FaststyError.
    """
    write_bytes(target_at(path), data)


def format_of(path: str | os.PathLike[str]) -> str:
    """The format (``"JPEG"``, ``"PNG"``...) that `path`'s suffix asks for.

    Raises:
        FaststyError: faststy writes no format of that suffix.
    """
    suffix = Path(path).suffix
    try:
        return _FORMAT_OF_SUFFIX[suffix.lower()]
    except KeyError:
        what = f"'{suffix}' is no format" if suffix else "the name has no suffix of a format"
        raise FaststyError(
            f"{os.fspath(path)}: {what} that faststy writes; use .jpg, .png, .webp, .tiff or .bmp"
        ) from None


def encode_picture(picture: Picture | Image.Image, format: str) -> bytes:
    """The bytes of a file in `format`: ``JPEG``, ``PNG``, ``WEBP``, ``TIFF`` or ``BMP``.

    Raises:
        FaststyError: the picture does not fit into the format (WebP: 16383 pixels a side).
    """
    if format not in WRITABLE:
        raise ValueError(f"format is {format!r}; expected one of {', '.join(WRITABLE)}")
    if isinstance(picture, Image.Image):
        picture = read_picture(picture)
    image, options = picture.rgb, dict(_SAVE_OPTIONS[format])
    if picture.alpha is not None:
        if format in _WITH_ALPHA:
            image = image.copy()
            image.putalpha(picture.alpha)
        else:
            image = picture.on_white().rgb
    if image.info:  # Pillow would write what it finds there, too
        image = image.copy()
        image.info = {}
    if picture.icc_profile is not None:
        options["icc_profile"] = picture.icc_profile
    exif = picture.exif
    if exif is not None and not (format == "JPEG" and len(exif) > _LONGEST_JPEG_EXIF):
        options["exif"] = exif
        if format == "TIFF":
            options["compression"] = "raw"  # Pillow's way into libtiff takes no nested EXIF
    buffer = io.BytesIO()
    try:
        image.save(buffer, format, **options)
    except (OSError, ValueError, OverflowError, RuntimeError) as error:
        width, height = image.size
        raise FaststyError(
            f"{picture.name}: cannot be written as {format} at {width} x {height} "
            f"({error}); TIFF takes any size"
        ) from error
    return buffer.getvalue()


def _is_of_a_run(names: Collection[str]) -> bool:
    return "sweep.json" in names or {"config.toml", "log.jsonl"}.issubset(names)


def list_pictures(
    folder: str | os.PathLike[str],
    *,
    recursive: bool = True,
    foreign: bool = False,
    left_out: dict[Path, str] | None = None,
) -> list[Path]:
    """The picture files in `folder`, by suffix, in sorted order.

    With `foreign` also those of formats that cannot be read, and folders, to be told of each.
    Otherwise `left_out` gets the former, with the reason.

    Hidden ones are left out, and what is no file, as a pipe, whose reader may wait for ever; so are
    folders below in which a training or a sweep shows what it has learned.

    Raises:
        FaststyError: no such folder, no permission, or no picture in it that can be read.
    """

    found: list[Path] = []

    def tell(error: OSError) -> None:
        below = Path(error.filename)
        if not foreign or below == Path(folder):
            raise error
        found.append(below)

    suffixes = _READABLE_SUFFIXES + _FOREIGN_SUFFIXES
    try:
        if not Path(folder).is_dir():
            os.stat(folder)
            raise FaststyError(f"{os.fspath(folder)}: not a folder")
        for where, folders, names in os.walk(folder, onerror=tell):
            if Path(where) != Path(folder) and _is_of_a_run(names):
                folders.clear()
                continue
            folders[:] = [name for name in folders if recursive and not name.startswith(".")]
            found += [
                Path(where, name)
                for name in names
                if not name.startswith(".")
                and Path(name).suffix.lower() in suffixes
                and not _is_special(Path(where, name))
            ]
    except (OSError, ValueError) as error:
        where = getattr(error, "filename", None) or os.fspath(folder)
        raise FaststyError(f"{where}: cannot be read ({reason_of(error)})") from error
    others: dict[Path, str] = {}
    if not foreign:
        others = {
            path: f"{path}: of a format that faststy does not read"
            for path in sorted(found)
            if path.suffix.lower() in _FOREIGN_SUFFIXES
        }
        found = [path for path in found if path not in others]
    if not found:
        nothing = f"{os.fspath(folder)}: no pictures in this folder"
        raise FaststyError(next(iter(others.values()), nothing))
    if left_out is not None:
        left_out |= others
    return sorted(found)


def _is_special(path: Path) -> bool:
    """Whether `path` is a pipe, a socket or a device; a broken link is not, and is told of."""
    mode = mode_of(path)
    return mode != 0 and not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def style_sample(count: int) -> range:
    """Which of `count` pictures of a style its targets average: all, or a spread of 24 to 47."""
    return range(0, count, max(1, count // 24))


def style_name(path: Path) -> str:
    """What a style learned from `path` is called: "," and ":" mix styles, and are in no name."""
    named = Path(os.path.abspath(path))  # a link has a name of its own
    name = named.name if stat.S_ISDIR(mode_of(named)) else named.stem
    return name.replace(",", "_").replace(":", "_")


def scale_down(image: Image.Image, short_side: int | None) -> Image.Image:
    """`image` with a short side of `short_side` pixels; itself when it is smaller, or for None."""
    if short_side is None or min(image.size) <= short_side:
        return image
    ratio = short_side / min(image.size)
    size = (max(1, round(image.width * ratio)), max(1, round(image.height * ratio)))
    return image.resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0)


def heat_map(values: npt.NDArray[np.floating]) -> Image.Image:
    """Values 0…1, ``[H, W]``, as colours: black, violet, red, orange, pale yellow."""
    stops = np.array([[0, 0, 4], [82, 18, 124], [188, 45, 79], [248, 138, 25], [252, 253, 191]])
    places = np.linspace(0, 255, len(stops))
    table = np.stack([np.interp(np.arange(256), places, stops[:, c]) for c in range(3)], axis=1)
    levels = np.rint(np.clip(np.nan_to_num(values), 0, 1) * 255).astype(np.uint8)
    return Image.fromarray(np.rint(table).astype(np.uint8)[levels])


def _from_array(array: npt.NDArray[np.uint8], name: str) -> Image.Image:
    shape = array.shape
    if array.dtype != np.uint8:
        raise ValueError(f"{name} is {array.dtype}; expected uint8 in 0...255")
    if not (len(shape) == 2 or (len(shape) == 3 and shape[2] in (3, 4))) or 0 in shape:
        raise ValueError(f"{name} has shape {list(shape)}; expected [H, W], [H, W, 3] or [H, W, 4]")
    return Image.fromarray(array)


def _from_stream(stream: BinaryIO, name: str) -> Picture:
    """Opens the picture in `stream`, looks at its size, and only then decodes it."""
    if not (hasattr(stream, "seekable") and stream.seekable()):
        stream = io.BytesIO(stream.read())
    start = stream.tell()
    if not stream.read(1):
        raise FaststyError(f"{name}: the file is empty (zero bytes)")
    stream.seek(start)
    with without_pillow_limit():
        try:
            image = _open(stream)
        except UnidentifiedImageError as error:
            raise FaststyError(
                f"{name}: not a picture that faststy reads "
                "(JPEG, PNG, WebP, AVIF, TIFF, BMP, GIF, PPM), or damaged at its beginning"
            ) from error
        except Exception as error:  # a decoder can raise anything on damaged bytes
            raise FaststyError(f"{name}: damaged or cut off ({error})") from error
    with image:
        return _from_image(image, name)


def _open(source: str | os.PathLike[str] | BinaryIO) -> Image.Image:
    Image.init()  # registers all formats that this build of Pillow has
    return Image.open(source, formats=[f for f in _READABLE if f in Image.OPEN])


_limit_lock = threading.RLock()


@contextlib.contextmanager
def without_pillow_limit() -> Iterator[None]:
    """Lifts Pillow's own pixel limit, which is global, lower than ours and warns on the way."""
    with _limit_lock:
        limit = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _from_image(image: Image.Image, name: str) -> Picture:
    width, height = image.size
    pixels = width * height
    if pixels > PIXEL_LIMIT:
        raise FaststyError(
            f"{name}: {width} x {height} is {pixels / 1e6:.0f} megapixels, "
            f"more than the limit of {PIXEL_LIMIT / 1e6:.0f}"
        )
    if pixels == 0:
        raise FaststyError(f"{name}: it has no pixels ({width} x {height})")
    # Several threads decode ordinary pictures at once; only huge ones wait for the lock.
    huge = pixels > (Image.MAX_IMAGE_PIXELS or pixels)
    try:
        with without_pillow_limit() if huge else contextlib.nullcontext():
            _refuse_planes_of_16_bits(image, name)
            image.load()
    except FaststyError:
        raise
    except MemoryError as error:
        message = f"{name}: not enough memory for {width} x {height}"
        raise FaststyError(message) from error
    except Exception as error:  # a decoder can raise anything on damaged bytes
        raise FaststyError(f"{name}: damaged or cut off ({error})") from error

    format = "JPEG" if image.format == "MPO" else image.format  # of a phone, with a second picture
    exif = kept_exif(image)
    image = _upright(image)
    alpha = _alpha(image)
    rgb, icc_profile = _to_rgb(image)
    rgb.info = {}
    return Picture(rgb, alpha, icc_profile, exif, format, name)


def _refuse_planes_of_16_bits(image: Image.Image, name: str) -> None:
    """Pillow takes the planes of such a file for its rows: what it gives is not the picture."""
    tags = getattr(image, "tag_v2", None)
    planes, bits, compression, none = 284, 258, 259, 1
    if (
        tags is not None
        and tags.get(planes) == 2
        and max(tags.get(bits, (8,))) > 8
        and tags.get(compression, none) == none
    ):
        raise FaststyError(
            f"{name}: a TIFF of separate planes of 16 bits that is not compressed cannot be read; "
            "save it with its colours interleaved"
        )


def _upright(image: Image.Image) -> Image.Image:
    """Applies the EXIF orientation; damaged EXIF must not cost the picture."""
    try:
        if image.getexif().get(ExifTags.Base.Orientation, 1) == 1:
            return image
        return ImageOps.exif_transpose(image) or image
    except Exception:
        return image


def kept_exif(image: Image.Image) -> bytes | None:
    """The metadata worth keeping: not the layout of the old file, nor its thumbnail."""
    try:
        old, new = image.getexif(), Image.Exif()
        for tag in _KEPT_EXIF:
            if tag in old:
                new[tag] = old[tag]
        for group in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo):
            values = {k: v for k, v in old.get_ifd(group).items() if k not in _PIXEL_SIZE_EXIF}
            if values:
                new[group] = values
        return new.tobytes() if len(new) else None
    except Exception:  # damaged EXIF must not cost the picture
        return None


def _alpha(image: Image.Image) -> Image.Image | None:
    """Transparency of any kind as an ``L`` image, or None."""
    key = image.info.get("transparency")
    if image.mode.startswith("I;16") and isinstance(key, int):
        return Image.fromarray(np.where(np.asarray(image) == key, 0, 255).astype(np.uint8))
    if not image.has_transparency_data or image.mode in ("I", "F"):
        return None
    if isinstance(key, tuple) and max(key) > 255:  # of 16 bits, of which Pillow keeps the upper 8
        image = _same_pixels(image)
        image.info["transparency"] = tuple(part >> 8 for part in key)
    return image.convert("RGBA").getchannel("A")


def _to_rgb(image: Image.Image) -> tuple[Image.Image, bytes | None]:
    """RGB pixels, and the profile that they are in (None: sRGB)."""
    if image.mode.startswith("I") or image.mode == "F":
        image = _to_8_bits(image)
    profile = image.info.get("icc_profile") or None
    space = profile[16:20] if profile else b""
    if image.mode == "LAB":
        return _to_srgb(image, None), None
    if space == b"CMYK" and image.mode == "CMYK":
        return _to_srgb(image, profile), None
    if space == b"GRAY" and image.mode in ("1", "L", "LA"):
        return _to_srgb(image.convert("L"), profile), None
    if image.mode == "RGBa":
        image = image.convert("RGBA")  # Pillow takes no direct way
    rgb = _same_pixels(image)
    if rgb.mode != "RGB":
        # convert() would make a matte of a transparent colour that `alpha` already holds
        rgb.info.pop("transparency", None)
        rgb = rgb.convert("RGB")
    return rgb, profile if space == b"RGB " else None


def _same_pixels(image: Image.Image) -> Image.Image:
    """As `copy`, but with the very same pixels, of a gigabyte perhaps; only `info` is its own."""
    return image._new(image.im)


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Through the ICC profile (None: of the Lab space); plainly when the profile is damaged."""
    try:
        converted = ImageCms.profileToProfile(
            image,
            ImageCms.getOpenProfile(io.BytesIO(profile))
            if profile
            else ImageCms.createProfile("LAB"),
            ImageCms.createProfile("sRGB"),
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            outputMode="RGB",
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except (ImageCms.PyCMSError, OSError, ImportError):  # or a Pillow without colour management
        converted = None
    return converted or image.convert("RGB")


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Scales deep grey to ``L``.

    16 bits: 0…65535. 32-bit integers beyond that, and floats beyond 1: 0…the brightest pixel.
    """
    values = np.asarray(image, dtype=np.float32)
    finite = values[np.isfinite(values)]
    peak = float(finite.max()) if finite.size else 0.0
    tags = getattr(image, "tag_v2", {})
    if image.mode == "F":
        white = max(peak, 1.0)
    elif tags.get(258) in (12, (12,)):  # BitsPerSample
        white = 4095.0
    else:
        white = max(peak, 65535.0)
    levels = np.rint(np.clip(np.nan_to_num(values, posinf=white) / white, 0, 1) * 255)
    if image.mode != "F" and tags.get(262) == 0:  # PhotometricInterpretation: white is zero
        levels = 255 - levels
    grey = Image.fromarray(levels.astype(np.uint8))
    if "icc_profile" in image.info:
        grey.info["icc_profile"] = image.info["icc_profile"]
    return grey
