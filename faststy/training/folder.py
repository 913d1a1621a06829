"""The folder of a run: may this run write into it, and may it go on there?"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path

from faststy.errors import FaststyError
from faststy.files import remove_leftovers, why_closed, without_links, write_bytes
from faststy.training.checkpoint import checkpoint_path, previous_path
from faststy.training.config import TrainConfig, read_config

# What may differ when a run goes on: its length, and where and how it is done.
FREE = ("steps", "seconds", "out", "device", "cache", "checkpoint_every", "tensorboard")


class Claim:
    """Holds the folder of a run, once it is there, so that no second process writes into it.

    The system lets go of it when the process ends, however it ends. Where folders cannot be held
    (Windows, some network drives) nothing is.
    """

    def __init__(self, run: Path) -> None:
        self.run, self._handle = run, -1

    def close(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)

    def take(self) -> None:
        """Hold the folder, if it is there by now. Raises FaststyError where another holds it."""
        if self._handle >= 0 or os.name != "posix" or not self.run.is_dir():
            return
        import fcntl

        with suppress(OSError):
            self._handle = os.open(self.run, os.O_RDONLY)
            try:
                fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise FaststyError(
                    f"{self.run}: another process trains this run; wait for its end, "
                    "or choose another out folder"
                ) from None


def refuse_closed(run: Path) -> None:
    """Tell of a folder that cannot be made before anything is done: `open_run` makes it late.

    Raises FaststyError.
    """
    reason = why_closed(run)
    if reason is not None:
        raise FaststyError(f"{run}: cannot be made a folder to write into ({reason})")


def refuse_sources(out: Path, config: TrainConfig) -> None:
    """Do not write among the pictures that are learned: they would be learned, too.

    Raises FaststyError.
    """
    target = without_links(out)
    for source in (*config.style, config.content, config.pairs):
        if source is not None and Path(source).is_dir() and without_links(Path(source)) == target:
            raise FaststyError(
                f"{out}: is a folder of pictures to learn from; name another out folder"
            )


def refuse_another(run: Path, config: TrainConfig, *, resume: bool) -> None:
    """Do not write over another run, nor go on with other settings. Raises FaststyError.

    The batch may be left to the run.
    """
    recorded = run / "config.toml"
    if (run / "sweep.json").exists():
        raise FaststyError(
            f"{run}: is the folder of a sweep; go on with it by faststy sweep --resume, or choose "
            "another out folder"
        )
    if not recorded.exists():
        for name in ("model.safetensors", "log.jsonl", "report.html", "preview.png", "checkpoint"):
            if (run / name).exists():
                raise FaststyError(
                    f"{run}: holds a {name} but no config.toml, so it is of no run that could be "
                    "gone on with; choose another out folder"
                )
        return
    if not resume:
        raise FaststyError(
            f"{run}: holds a training run; resume it (--resume, or resume=True) or choose another "
            "out folder"
        )
    before = read_config(recorded)
    found = before.absolute()
    wanted = replace(config, batch=config.batch or before.batch).absolute()
    for name in (field.name for field in fields(config)):
        if getattr(found, name) != getattr(wanted, name) and name not in FREE:
            old, new = _shown(getattr(before, name)), _shown(getattr(config, name))
            raise FaststyError(
                f"{run}: this run has {name.replace('_', '-')} {old}, not {new}; "
                "go on without that setting or choose another out folder"
            )


def refuse_lost(run: Path) -> None:
    """Do not begin anew, over its model, a run whose checkpoint is gone. Raises FaststyError."""
    model, checkpoint = run / "model.safetensors", checkpoint_path(run)
    if model.exists() and not checkpoint.exists() and not previous_path(checkpoint).exists():
        raise FaststyError(
            f"{run}: holds a model but no checkpoint to go on from; begin in another out folder, "
            f"with base {model} if you like"
        )


def recorded_batch(run: Path) -> int | None:
    """The batch of the run in the folder `run`, None where there is no run. Raises FaststyError."""
    recorded = run / "config.toml"
    return read_config(recorded).batch if recorded.is_file() else None


def was_made_by(run: Path, config: TrainConfig) -> bool:
    """Whether the folder `run` holds what `config` trains; the batch may be left to the run."""
    recorded = run / "config.toml"
    if not recorded.is_file():
        return False
    before = read_config(recorded)
    # The folder may be named from elsewhere now, or have been moved.
    wanted = replace(config, batch=config.batch or before.batch, out=before.out)
    return before.absolute() == wanted.absolute()


def open_run(run: Path, config: TrainConfig) -> None:
    """Make the run folder, with the settings in it. Raises FaststyError."""
    recorded = run / "config.toml"
    settings = config.absolute().as_toml(recorded)  # it may be resumed from another folder
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FaststyError(f"{run}: cannot be made a folder ({error.strerror})") from error
    for folder in (run, checkpoint_path(run).parent):
        remove_leftovers(folder)
    write_bytes(recorded, settings)


def _shown(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
