"""Processes of their own: how long they take, and the most memory that they hold."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

from faststy import assets

PEAK = str(Path(__file__).with_name("_peak.py"))
PHOTO = assets.photos()[0]


def run(*arguments: str, **environment: str) -> str:
    """What `python ARGUMENTS` prints. Raises RuntimeError, with its last words, where it fails."""
    done = subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        words = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise RuntimeError(words[-1])
    return done.stdout


def environment_of(device: torch.device) -> dict[str, str]:
    """What a process needs that computes on `device`, as it takes a GPU where there is one."""
    return {} if device.type == "cuda" else {"CUDA_VISIBLE_DEVICES": ""}


def peak(*arguments: str, **environment: str) -> int:
    """The most bytes that `python -m ARGUMENTS` holds; on a CUDA device, that it holds there."""
    return int(run(PEAK, *arguments, **environment))
