"""The state of an unfinished run in one `.safetensors` file; nothing is pickled.

Random states are not part of it: every step draws from its own seed (see `dataset.generator`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from faststy.errors import FaststyError
from faststy.files import write_bytes

KEY = "faststy.checkpoint"


@dataclass(frozen=True)
class Position:
    """How far a run has come: finished steps, and seconds of wall clock used for them."""

    step: int
    seconds: float


def checkpoint_path(run: Path) -> Path:
    return run / "checkpoint" / "state.safetensors"


def save_checkpoint(
    path: Path,
    position: Position,
    nets: Mapping[str, nn.Module],
    optimisers: Mapping[str, torch.optim.Optimizer],
) -> None:
    """Write everything that the next step depends on, by rename. Raises FaststyError."""
    tensors: dict[str, Tensor] = {}
    for name, net in nets.items():
        for key, value in net.state_dict().items():
            tensors[f"net.{name}.{key}"] = value
    for name, optimiser in optimisers.items():
        for index, state in optimiser.state_dict()["state"].items():
            for key, value in state.items():
                tensors[f"optimiser.{name}.{index}.{key}"] = torch.as_tensor(value)
    # Copies: safetensors refuses tensors that share memory or are not contiguous.
    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, save(tensors, {KEY: json.dumps(asdict(position))}))


def load_checkpoint(
    path: Path,
    nets: Mapping[str, nn.Module],
    optimisers: Mapping[str, torch.optim.Optimizer],
) -> Position:
    """Put the saved state into `nets` and `optimisers`. Raises FaststyError if it does not fit."""
    try:
        with safe_open(path, framework="pt") as file:
            position = Position(**json.loads((file.metadata() or {})[KEY]))
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        for name, net in nets.items():
            prefix = f"net.{name}."
            own = {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}
            net.load_state_dict(own)
        for name, optimiser in optimisers.items():
            prefix = f"optimiser.{name}."
            state: dict[int, dict[str, Tensor]] = {}
            for key, value in tensors.items():
                if key.startswith(prefix):
                    index, field = key[len(prefix) :].split(".")
                    state.setdefault(int(index), {})[field] = value
            groups = optimiser.state_dict()["param_groups"]
            optimiser.load_state_dict({"state": state, "param_groups": groups})
            for p, moments in optimiser.state.items():  # laid out in memory as their weights
                for field, value in moments.items():
                    if value.shape == p.shape:
                        moments[field] = torch.empty_like(p).copy_(value)
    except (SafetensorError, OSError, KeyError, ValueError, TypeError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise FaststyError(f"{path}: not a checkpoint of this run ({reason})") from error
    return position
