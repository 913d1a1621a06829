"""Everything that a training run can be told, and how it is read from and written to TOML."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, fields, replace
from math import inf, isfinite
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from faststy.errors import FaststyError
from faststy.files import utf8, write_bytes

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

STAGES = ("perceptual", "adversarial", "repair")
MODELS = ("nano", "fast", "quality")  # the sizes of faststy.nn.generator, named without torch
ADVERSARIAL = ("bce", "hinge", "lsgan")  # the forms of ops.combined_loss, likewise
PRECISIONS = ("auto", "float32", "bfloat16")
DEFAULT_SECONDS = 180.0
LARGEST_WEIGHT = 1_000_000  # of a term: with more, gradients overflow and nothing is learned
LARGEST_BATCH = 65_536  # of all workers together; a larger number is a slip of the hand
BATCH, GPU_BATCH = 1, 8  # a GPU takes hardly longer for eight crops than for one


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a training run; the defaults give a good style in three minutes on two cores.

    Paths pass for str, lists and a single str for tuples. The terms are those of docs/method.md.
    Raises FaststyError that names the setting, its value and what it can be.

    Attributes:
        style: a picture, or a folder of pictures by one hand, per style; at least one.
        content: folder of photos to learn on; None: the bundled ones.
        cache: folder for decoded pictures, shared between runs; None: memory, and what it does not
            hold beside the run.
        out: folder of the run.
        pairs: folder with before/ and after/ pictures of the same names, painted in the first
            style; None: no paired term.
        steps, seconds: length of the run, in steps or in seconds of wall clock; one of them, or
            neither for 180 seconds.
        model: size of the generator: nano, fast or quality.
        base: model to start from: a file, "none" for noise, or "auto" for the bundled one, where
            it is no larger than `model`. A smaller one is grown.
        size: side of the training crops, 64...1024 px in steps of 8.
        batch: crops of a step, of all workers together, at most 65,536; None: 1, on a GPU 8, and
            enough for all workers; of a run that is resumed, its own.
        style_size: short side that the style pictures are shown at, px, at least 64: the smaller,
            the smaller the strokes.
        stages: perceptual, optionally followed by adversarial and repair, in this order.
        style_weight: λ at its largest, above 0. No weight may be above a million.
        style_weight_start: the share of `style_weight` that λ starts at, 0...1, not 0.
        style_share: of the loss, between 0 and 1, that λ rises for, beyond `style_weight` if need
            be; None: it rises to `style_weight`.
        content_weight: of the content term.
        colour_weight: of the colour term, times λ.
        adversarial: form of the adversarial term: bce, hinge or lsgan.
        adversarial_weight: of that term in the adversarial stage. The repair has its own, and the
            discriminator learns in both stages whatever it is.
        variation_weight: of the total variation term.
        stability_weight: of the small-motion term.
        lattice_weight: of the finest details within the stability term, against a grid.
        patches_weight: of the term against patches of colour in calm places.
        paired_weight: of the paired term.
        learning_rate: of the generator at its highest, between 0 and 1.
        encoder: what judges: faststy, vgg19 (torchvision's) or vgg19:FILE.
        device: auto (CUDA where there is one), cpu, cuda, cuda:1, …
        precision: of the convolutions: float32, bfloat16, or auto for bfloat16 where the device is
            faster with it.
        seed: 0 or more, below 2^63; on one machine, with as many threads, the same seed and steps
            give the same model.
        checkpoint_every: seconds between checkpoints; more where one takes over a twentieth.
        tensorboard: also write event files into the run's folder.
    """

    style: tuple[str, ...] = ()
    content: str | None = None
    cache: str | None = None
    out: str = "run"
    pairs: str | None = None
    steps: int | None = None
    seconds: float | None = None
    model: str = "fast"
    base: str = "auto"
    size: int = 256
    batch: int | None = None
    style_size: int = 400
    stages: tuple[str, ...] = STAGES
    style_weight: float = 20.0
    style_weight_start: float = 0.1
    style_share: float | None = None
    content_weight: float = 1.0
    colour_weight: float = 1.0
    adversarial: str = "hinge"
    adversarial_weight: float = 0.6
    variation_weight: float = 0.0
    stability_weight: float = 1.0
    lattice_weight: float = 1.5
    patches_weight: float = 1.0
    paired_weight: float = 10.0
    learning_rate: float = 2e-3
    encoder: str = "faststy"
    device: str = "auto"
    precision: str = "auto"
    seed: int = 0
    checkpoint_every: float = 30.0
    tensorboard: bool = False

    def __post_init__(self) -> None:
        for field in fields(self):
            value = _typed(field.name.replace("_", "-"), getattr(self, field.name), str(field.type))
            object.__setattr__(self, field.name, value)  # frozen, but for this
            self._require(not isinstance(value, float) or isfinite(value), field.name, "finite")
        self._require(len(self.style) > 0, "style", "at least one picture or folder")
        for name in ("style", "content", "cache", "out", "pairs"):
            value = getattr(self, name)
            named = all(value) if isinstance(value, tuple) else value != ""
            self._require(named, name, "no empty name")
            whole = "\0" not in "".join(value) if value else True
            self._require(whole, name, "a name without a zero byte")
        for name in ("steps", "seconds", "checkpoint_every"):
            value = getattr(self, name)
            self._require(value is None or value > 0, name, "more than 0")
        self._require(
            self.steps is None or self.seconds is None, "steps", "absent when seconds is given"
        )
        self._require(
            64 <= self.size <= 1024 and self.size % 8 == 0, "size", "64...1024, in steps of 8"
        )
        self._require(64 <= self.style_size <= 65_536, "style_size", "64...65,536")
        usable = self.batch is None or 1 <= self.batch <= LARGEST_BATCH
        self._require(usable, "batch", f"in 1...{LARGEST_BATCH:,}")
        self._require(self.model in MODELS, "model", f"one of {', '.join(MODELS)}")
        self._require(0 <= self.seed < 2**63, "seed", "0 or more, and less than 2^63")
        self._require(0 < self.learning_rate < 1, "learning_rate", "between 0 and 1")
        self._require(self.style_weight > 0, "style_weight", "more than 0")
        self._require(0 < self.style_weight_start <= 1, "style_weight_start", "in 0...1, not 0")
        share = self.style_share
        self._require(share is None or 0 < share < 1, "style_share", "between 0 and 1")
        for field in fields(self):
            if field.name.endswith("_weight"):
                usable = 0 <= getattr(self, field.name) <= LARGEST_WEIGHT
                self._require(usable, field.name, f"in 0...{LARGEST_WEIGHT:,}")
        ordered = tuple(stage for stage in STAGES if stage in self.stages)
        starts = ordered[:1] == STAGES[:1]
        self._require(ordered == self.stages and starts, "stages", STAGE_RULE)
        self._require(self.precision in PRECISIONS, "precision", f"one of {', '.join(PRECISIONS)}")
        known = self.adversarial in ADVERSARIAL
        self._require(known, "adversarial", f"one of {', '.join(ADVERSARIAL)}")

    def _require(self, holds: bool, name: str, expected: str) -> None:
        if not holds:
            value = getattr(self, name)
            shown = ",".join(value) if isinstance(value, tuple) else value
            raise FaststyError(f"{name.replace('_', '-')} is {shown!r}; it must be {expected}")

    @property
    def seconds_budget(self) -> float | None:
        """Length in seconds, or None for a run that is counted in steps."""
        return None if self.steps is not None else self.seconds or DEFAULT_SECONDS

    def absolute(self) -> TrainConfig:
        """The same files and folders, named so that they are found from any folder."""

        def found(path: str | None) -> str | None:
            return path and os.path.abspath(path)

        encoder, colon, file = self.encoder.partition(":")
        return replace(
            self,
            style=tuple(map(os.path.abspath, self.style)),
            content=found(self.content),
            cache=found(self.cache),
            pairs=found(self.pairs),
            base=self.base if self.base in ("auto", "none") else os.path.abspath(self.base),
            encoder=encoder + colon + (os.path.abspath(file) if file else ""),
        )

    def write(self, path: Path) -> None:
        """Write the settings as TOML, by rename."""
        write_bytes(path, self.as_toml(path))

    def as_toml(self, path: Path) -> bytes:
        """What `write` writes to `path`. Raises FaststyError for names that are not Unicode."""
        import tomli_w

        return utf8(path, tomli_w.dumps(self.as_dict()))

    def as_dict(self) -> dict[str, Any]:
        """The settings that are not None, tuples as lists: what TOML and JSON can hold."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        values = {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}
        return {k: v for k, v in values.items() if v is not None}


STAGE_RULE = "perceptual, optionally followed by adversarial and repair, in this order"


def read_config(path: Path | None, **overrides: Any) -> TrainConfig:
    """Settings from defaults, then the TOML file, then `overrides` that are not None.

    Raises FaststyError for an unreadable file, an unknown setting, or a value of the wrong type.
    """
    values: dict[str, Any] = {}
    if path is not None:
        try:
            values = read_toml(path)
        except (OSError, ValueError) as error:
            raise FaststyError(f"{path}: cannot be read as TOML settings ({error})") from error
    known = {field.name: field for field in fields(TrainConfig)}
    values = {key.replace("-", "_"): value for key, value in values.items()}
    for name, value in values.items():
        if name not in known:
            raise FaststyError(f"{path}: unknown setting {name!r}; known are {', '.join(known)}")
        values[name] = _typed(f"{path}: {name}", value, str(known[name].type))
    given = {name: value for name, value in overrides.items() if value is not None}
    if path is not None and not (values | given).get("style"):
        raise FaststyError(
            f'{path}: names no style; add style = "painting.jpg", or name one before --config'
        )
    if "steps" in given or "seconds" in given:  # a length on the command line replaces the file's
        values = {k: v for k, v in values.items() if k not in ("steps", "seconds")}
    return TrainConfig(**{**values, **given})


def read_toml(path: Path) -> dict[str, Any]:
    """What a TOML file holds. Raises OSError, and ValueError for one that is none."""
    return tomllib.loads(path.read_text(encoding="utf-8-sig"))  # editors of Windows mark it


def _typed(name: str, value: Any, annotation: str) -> Any:
    """`value` as the type of a field; raises FaststyError where it is of none that passes for it.

    Paths pass for str, lists and single items for tuples, whole numbers for floats.
    """
    kind = annotation.split("|")[0].strip()
    if value is None and annotation.endswith("None"):
        return None
    if kind == "str" and isinstance(value, str | os.PathLike):
        return os.fspath(value)
    if kind == "tuple[str, ...]":
        items = [value] if isinstance(value, str | os.PathLike) else value
        if isinstance(items, list | tuple):
            return tuple(_typed(f"{name}[{i}]", item, "str") for i, item in enumerate(items))
    if not isinstance(value, bool):
        if kind == "float" and isinstance(value, Real):  # NumPy's, too
            try:
                return float(value)
            except OverflowError:
                return inf
        if kind == "int" and isinstance(value, Integral):
            return int(value)
    elif kind == "bool":
        return value
    raise FaststyError(f"{name} is {value!r}, which is not of type {kind}")
