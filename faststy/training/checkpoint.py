"""The state of an unfinished run: two generations of one `.safetensors` file; nothing is pickled.

Random states are not part of it: every step draws from its own seed (see `dataset.generator`). Each
file carries its own SHA-256, so that a torn or altered one is noticed and the one before is used.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from faststy.errors import FaststyError
from faststy.files import replacing
from faststy.training.adam import Adam

KEY = "faststy.checkpoint"
NO_DIGEST = b"0" * 64  # stands for the file's own digest while that is computed

Tensors: TypeAlias = dict[str, Tensor]
Nets: TypeAlias = Mapping[str, nn.Module]
Optimisers: TypeAlias = Mapping[str, Adam]


@dataclass(frozen=True)
class Position:
    """How far a run has come: finished steps, and seconds of wall clock used for them.

    `memory` is what guards and controllers remember, by name; JSON keeps it exactly.
    """

    step: int
    seconds: float
    memory: dict[str, Any] = field(default_factory=dict)


def checkpoint_path(run: Path) -> Path:
    return run / "checkpoint" / "state.safetensors"


def previous_path(path: Path) -> Path:
    """Where the generation before `path` is kept."""
    return path.with_stem("previous")


# -- nets and optimisers as tensors ------------------------------------------------------------


def capture(nets: Nets, optimisers: Optimisers) -> Tensors:
    """Copies of every weight, buffer and moment, on their own devices."""
    tensors: Tensors = {}
    for name, net in nets.items():
        for key, value in net.state_dict().items():
            tensors[f"net.{name}.{key}"] = value.detach().clone()
    for name, optimiser in optimisers.items():
        for key, value in optimiser.state_dict().items():
            tensors[f"optimiser.{name}.{key}"] = value.clone()
    return tensors


def restore(tensors: Tensors, nets: Nets, optimisers: Optimisers) -> None:
    """Put what `capture` gave back, in place. Raises FaststyError if it does not fit."""
    with fitting():
        for name, net in nets.items():
            net.load_state_dict(_under(f"net.{name}.", tensors))
        for name, optimiser in optimisers.items():
            saved = _under(f"optimiser.{name}.", tensors)
            for key, value in optimiser.state_dict().items():
                value.copy_(saved[key])


@contextmanager
def fitting() -> Iterator[None]:
    """Raises FaststyError where what is loaded within the block is not as this version has it."""
    try:
        yield
    except (KeyError, TypeError, RuntimeError) as error:
        raise FaststyError(  # PyTorch's own words name every tensor
            "the checkpoint does not fit this run: it is of another version of faststy; finish it "
            "with that version or choose another out folder"
        ) from error


def _under(prefix: str, tensors: Tensors) -> Tensors:
    return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}


# -- the file ----------------------------------------------------------------------------------


def encode(position: Position, tensors: Tensors) -> bytes:
    """The bytes of a checkpoint, for `decode`."""
    # Copies: safetensors refuses tensors that share memory or are not contiguous.
    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
    values = {**asdict(position), "sha256": NO_DIGEST.decode()}
    data: bytes = save(tensors, {KEY: json.dumps(values)})
    return data.replace(NO_DIGEST, hashlib.sha256(data).hexdigest().encode(), 1)


def decode(data: bytes) -> tuple[Position, Tensors]:
    """What `encode` was given, on the CPU. Raises ValueError, or another, if a bit has changed."""
    header = data[8 : 8 + int.from_bytes(data[:8], "little")]
    values = json.loads(json.loads(header)["__metadata__"][KEY])
    digest = values.pop("sha256").encode()
    if hashlib.sha256(data.replace(digest, NO_DIGEST, 1)).hexdigest().encode() != digest:
        raise ValueError("its checksum is wrong")
    return Position(**values), load(data)


def save_checkpoint(path: Path, position: Position, tensors: Tensors) -> None:
    """Write everything that the next step depends on, by rename; the file before it is kept.

    Raises FaststyError, the files that are there untouched, when it cannot be written.
    """
    data = encode(position, tensors)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())  # or a full disk would be noticed only after the next lines
        if path.exists():  # a link, so that at every moment there is a whole file under this name
            previous_path(path).unlink(missing_ok=True)
            with suppress(OSError):  # a file system without links keeps one generation
                os.link(path, previous_path(path))


def load_checkpoint(path: Path) -> tuple[Position, Tensors]:
    """What `save_checkpoint` wrote to `path`. Raises FaststyError if a single bit has changed."""
    try:
        return decode(path.read_bytes())
    except (SafetensorError, OSError, KeyError, ValueError, TypeError, AttributeError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise FaststyError(f"{path}: damaged or not a checkpoint ({reason})") from error


def newest_checkpoint(path: Path) -> tuple[Position, Tensors, str | None] | None:
    """The newest whole generation and, where it is not the last, what was wrong with that.

    None when there is no checkpoint. Raises FaststyError when there are only damaged ones.
    """
    damage: list[str] = []
    for each in (path, previous_path(path)):
        if not each.exists():
            continue
        try:
            position, tensors = load_checkpoint(each)
        except FaststyError as error:
            damage.append(str(error))
            continue
        if not damage:
            return position, tensors, None
        with suppress(OSError):  # or the next save would take it for the generation before
            path.replace(path.with_stem("damaged"))
        return position, tensors, f"{damage[0]}; going on from step {position.step}, the one before"
    if damage:
        raise FaststyError(f"{damage[0]}, and there is no whole one; begin in another out folder")
    return None
