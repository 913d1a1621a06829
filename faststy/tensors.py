"""Between pictures and tensors, and the device they live on."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from faststy.errors import FaststyError

_seeding = threading.Lock()  # torch has one generator for all threads


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """torch's random numbers on the host by `seed`; those of the caller stay as they were."""
    with _seeding, torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # the forked one, and no GPU's
        yield


def to_tensor(image: Image.Image) -> Tensor:
    """An RGB picture as float32 [1, 3, H, W] in 0...1, channels_last."""
    pixels = torch.from_numpy(np.array(image, dtype=np.uint8))
    return pixels.permute(2, 0, 1)[None].float().div_(255)


def to_image(x: Tensor) -> Image.Image:
    """[3, H, W] in 0...1 as an 8-bit RGB picture; values outside are clamped."""
    levels = x.detach().float().mul(255).round_().clamp_(0, 255).to(torch.uint8)
    return Image.fromarray(levels.permute(1, 2, 0).contiguous().cpu().numpy())


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that memory, the host's or the device's, does not suffice."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error)  # of the CPU's allocator; as our extension hears of it; of oneDNN
    in_extension = "aten::empty" in text and "API call failed" in text
    return "can't allocate" in text or in_extension or text == "could not create a primitive"


def device_named(name: torch.device | str) -> torch.device:
    """The device `name`; "auto" is CUDA where there is one. Raises FaststyError if unusable."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise FaststyError(
            f"device '{name}' cannot be used: there is no such kind; use auto, cpu, cuda or cuda:1"
        ) from error
    try:
        torch.empty(0, device=device).cpu()  # there and back: "meta" is a device, too
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].split(". ")[0]  # PyTorch goes on for a page
        if isinstance(error, NotImplementedError):
            reason = "nothing can be computed there"
        raise FaststyError(f"device '{name}' cannot be used ({reason})") from error
    return device
