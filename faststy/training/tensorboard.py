"""Event files for TensorBoard in the run's folder: `tensorboard --logdir run`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from faststy.errors import FaststyError
from faststy.training.log import Progress

FLUSH_EVERY = 10  # seconds: what a killed run may lose


class Events:
    """Every term, λ, learning rate, images/s and the preview, under the run's own steps.

    Does nothing where it is not `wanted`. Raises FaststyError when the package is not installed.
    """

    def __init__(self, wanted: bool) -> None:
        self._wanted = wanted
        self._writer: Any = None
        if wanted:
            try:
                import torch.utils.tensorboard  # noqa: F401
            except ImportError as error:
                raise FaststyError(
                    f"tensorboard needs its package ({error}); "
                    "pip install 'faststy[tensorboard]' brings it"
                ) from error

    @contextmanager
    def begin(self, run: Path, step: int) -> Iterator[Events]:
        """Within the block, a file in the folder `run`; what it has after `step` counts no more.

        Raises FaststyError when it cannot be written.
        """
        if self._wanted:
            from torch.utils.tensorboard import SummaryWriter

            try:
                self._writer = SummaryWriter(str(run), purge_step=step + 1, flush_secs=FLUSH_EVERY)
            except OSError as error:
                raise FaststyError(f"{run}: cannot be written ({error.strerror})") from error
        try:
            yield self
        finally:
            if self._writer is not None:
                with suppress(OSError):  # a full disk has been told of
                    self._writer.close()

    def write(self, progress: Progress) -> None:
        """Raises OSError when an earlier write has failed."""
        if self._writer is None:
            return
        values = {f"terms/{name}": value for name, value in progress.terms.items()}
        values["style_weight"] = progress.style_weight
        values["learning_rate"] = progress.learning_rate
        values["images_per_second"] = progress.images_per_second
        for name, value in values.items():
            self._writer.add_scalar(name, value, progress.step)
        if progress.preview is not None:
            picture = np.asarray(Image.open(progress.preview).convert("RGB"))
            self._writer.add_image("preview", picture, progress.step, dataformats="HWC")
