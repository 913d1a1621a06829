"""One model, one `.safetensors` file: weights, and everything needed to rebuild and credit them."""

from __future__ import annotations

import json
import math
import os
import stat
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from faststy.errors import FaststyError
from faststy.files import mode_of, write_bytes
from faststy.nn.generator import Generator, GeneratorConfig
from faststy.nn.repairer import Repairer
from faststy.tensors import seeded

FORMAT = 2  # raised when an older faststy could not read a newer file
TWO_GATES = 2  # the first with repairers of today's form
SMALLEST_STYLE = 16  # px, of style pictures that can be judged by
KEY = "faststy"  # one metadata entry: safetensors does not keep the order of several


@dataclass
class ModelInfo:
    """What a model file says of itself."""

    styles: list[str]
    generator: dict[str, int]
    repairer: dict[str, int] | None = None
    descriptions: dict[str, str] = field(default_factory=dict)  # of styles, one line each
    style_weight: float = 0.0
    size: int = 0  # side of the training crops, px
    style_size: int = 0  # short side that the style pictures were shown at, px; 0: not known
    steps: int = 0
    encoder: str = ""
    content: str = ""  # the photos it was trained on
    license: str = ""
    version: str = ""
    format: int = FORMAT
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass
class Model:
    """A generator, its repairer where one was trained, and what is known of them."""

    generator: Generator
    repairer: Repairer | None
    info: ModelInfo

    def to(self, device: torch.device | str) -> Model:
        self.generator.to(device)
        if self.repairer is not None:
            self.repairer.to(device)
        return self


def save_model(
    model: Model, path: str | os.PathLike[str], dtype: torch.dtype | None = None
) -> None:
    """Write `model` to `path` by rename, weights as `dtype` (their own by default).

    The same weights and info give the same bytes. Raises FaststyError when it cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    for name, module in (("generator", model.generator), ("repairer", model.repairer)):
        if module is not None:
            for key, value in module.state_dict().items():
                tensors[f"{name}.{key}"] = (
                    value.detach().cpu().to(dtype or value.dtype).contiguous()
                )
    metadata = {KEY: json.dumps(asdict(model.info) | {"format": FORMAT}, sort_keys=True)}
    write_bytes(Path(path), save(tensors, metadata))


def load_info(path: str | os.PathLike[str]) -> ModelInfo:
    """Read what a model file says of itself, without its weights. Raises FaststyError."""
    return _read(Path(path), weights=False)[0]


@torch.inference_mode(False)  # of a caller's: such weights could not be trained on
def load_model(path: str | os.PathLike[str]) -> Model:
    """Load a model (fp32, CPU, eval mode). Raises FaststyError when it cannot be read as one."""
    info, tensors = _read(Path(path), weights=True)
    if info.repairer is not None and info.format < TWO_GATES:
        raise FaststyError(f"{path}: made by an older faststy, with another repair; train it again")
    if not all(bool(t.isfinite().all()) for t in tensors.values() if t.is_floating_point()):
        raise FaststyError(f"{path}: its weights are not all finite; the model is broken")
    try:
        with seeded(0):  # new nets draw weights: the caller's state stays
            config = GeneratorConfig(**info.generator)
            _check_size(config, info.repairer, tensors)
            generator = Generator(config)
            repairer = Repairer(**info.repairer) if info.repairer is not None else None
        for name, module in (("generator", generator), ("repairer", repairer)):
            if module is not None:
                prefix = f"{name}."
                module.float().load_state_dict(  # whatever dtype is torch's default
                    {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}
                )
    except (TypeError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise FaststyError(f"{path}: the weights do not fit the model ({reason})") from error
    for module in (generator, repairer):
        if module is not None:
            module.eval().requires_grad_(False)
    return Model(generator, repairer, info)


def _check_size(
    config: GeneratorConfig, repairer: dict[str, int] | None, tensors: dict[str, Tensor]
) -> None:
    """Refuse nets that hold more than the file, before they take the memory. Raises ValueError."""
    if not all(tensor.is_floating_point() for tensor in tensors.values()):
        raise ValueError("they are no real numbers")
    channels, blocks = config.channels, config.blocks
    # Of the generator the stem, and of each block two convolutions and two norms; of the repairer
    # the stem and two convolutions.
    least = channels * (432 + blocks * (18 * channels + 4 * config.styles))
    for side in (repairer or {}).values():
        least += side * (864 + 18 * side)
    held = sum(tensor.numel() for tensor in tensors.values())
    if blocks > len(tensors) or least > held:
        raise ValueError("the file has too few")


def _read(path: Path, weights: bool) -> tuple[ModelInfo, dict[str, Tensor]]:
    mode = mode_of(path)
    if not stat.S_ISREG(mode):
        hint = "not a regular file" if mode else "no such file"
        if stat.S_ISDIR(mode):
            hint = "is a folder; name the .safetensors file in it"
        raise FaststyError(f"{path}: {hint}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = (file.metadata() or {}).get(KEY)
            tensors = {key: file.get_tensor(key) for key in file.keys()} if weights else {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise FaststyError(f"{path}: not a readable model file ({error})") from error
    if metadata is None:
        raise FaststyError(f"{path}: a safetensors file, but not a faststy model")
    try:
        values = json.loads(metadata)
        if values.get("format", 0) > FORMAT:
            version = values.get("version", "?")
            raise FaststyError(f"{path}: made by a newer faststy ({version}); upgrade faststy")
        known = ModelInfo.__dataclass_fields__
        info = ModelInfo(**{k: v for k, v in values.items() if k in known})
        for name, one in known.items():
            if not _has_type(getattr(info, name), str(one.type)):
                raise TypeError(f"{name} of another type")
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise FaststyError(f"{path}: its model description is damaged ({error})") from error
    if len(info.styles) != info.generator.get("styles") or not info.styles:
        raise FaststyError(f"{path}: its style names do not match its weights")
    if len(set(info.styles)) < len(info.styles):
        raise FaststyError(f"{path}: two of its styles have the same name")
    if 0 < info.style_size < SMALLEST_STYLE:
        raise FaststyError(f"{path}: no style was shown at {info.style_size} px")
    return info, tensors


def _has_type(value: Any, annotation: str) -> bool:
    """Whether `value`, from JSON, is what a field of `ModelInfo` holds; numbers from 0 on."""
    kind, optional = annotation.removesuffix(" | None"), annotation.endswith(" | None")
    if kind == "Any" or (optional and value is None):
        return True
    if kind == "str":
        return isinstance(value, str)
    if kind.startswith("list["):
        return isinstance(value, list) and all(_has_type(item, kind[5:-1]) for item in value)
    if kind.startswith("dict[str, "):
        return isinstance(value, dict) and all(_has_type(v, kind[10:-1]) for v in value.values())
    number = isinstance(value, int if kind == "int" else int | float)
    return number and not isinstance(value, bool) and 0 <= value < math.inf
