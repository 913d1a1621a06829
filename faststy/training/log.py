"""`log.jsonl`, what a run tells about itself, and how it is shown."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from faststy.errors import FaststyError
from faststy.files import write_text
from faststy.tensors import is_out_of_memory


@dataclass(frozen=True)
class Progress:
    """What a display needs to know of a run, twice a second at most; after an hour less often.

    Attributes:
        stage: perceptual, adversarial or repair.
        step: steps done, of the whole run.
        fraction: of the whole run, 0...1.
        seconds: of the whole run, parts before a resume included.
        images_per_second: crops learned a second, since the last report.
        style_weight: λ.
        terms: of the loss, by name, unweighted, and their weighted `total`: means since the last
            report.
        preview: preview.png, when it has just been painted anew; else None.
        events: what happened since the last report, in words.
        learning_rate: of the net that learns, of its last step: the generator's or the repairer's.
    """

    stage: str
    step: int
    fraction: float
    seconds: float
    images_per_second: float
    style_weight: float
    terms: dict[str, float]
    preview: Path | None = None
    events: tuple[str, ...] = ()
    learning_rate: float = 0.0


class Log:
    """One JSON object a line: `terms` averaged since the one before, or an `event` in words.

    A term that is not finite is null. A disk that is full costs lines, never the run.
    """

    def __init__(self, path: Path | None, step: int) -> None:
        """Begin the file, or go on after `step`: what will be done again is dropped.

        Without a path nothing is written, nor attempted.
        """
        kept: list[str] = []
        self.undone = 0  # the last step that was dropped, or 0
        if path is not None and path.exists():
            # Not by splitlines: a name may have line breaks that JSON leaves as they are.
            for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
                try:
                    known = json.loads(line)["step"]
                    if known <= step:
                        kept.append(line)
                    else:
                        self.undone = max(self.undone, known)
                except (ValueError, KeyError, TypeError):
                    continue  # torn by a kill
        if path is not None:
            write_text(path, "".join(f"{line}\n" for line in kept))
        self.path = path
        self.events: list[str] = []  # all of this process
        self.over = False  # whether no step follows
        self._untold: list[str] = []
        self._failing: set[str] = set()
        self._torn = False
        self._stage = ""
        self._sums: dict[str, Tensor] = {}
        self._count: dict[str, int] = {}

    def add(self, stage: str, terms: dict[str, Tensor]) -> None:
        """Note the terms of a step, without waiting for the device."""
        if stage != self._stage:  # terms of two stages are not averaged together
            self._sums.clear()
            self._count.clear()
            self._stage = stage
        known = [name for name in terms if name in self._sums]
        if known:
            torch._foreach_add_([self._sums[n] for n in known], [terms[n] for n in known])
        for name, value in terms.items():
            if name not in self._sums:
                self._sums[name] = value.detach().clone()
            self._count[name] = self._count.get(name, 0) + 1

    def means(self) -> dict[str, float]:
        sums = torch.stack(list(self._sums.values())).tolist() if self._sums else []  # one wait
        means = {n: total / self._count[n] for n, total in zip(self._sums, sums, strict=True)}
        self._sums.clear()
        self._count.clear()
        return means

    def write(self, progress: Progress) -> None:
        finite = {k: v if math.isfinite(v) else None for k, v in progress.terms.items()}
        self._append(
            {
                "stage": progress.stage,
                "step": progress.step,
                "seconds": progress.seconds,
                "images_per_second": progress.images_per_second,
                "style_weight": progress.style_weight,
                "terms": finite,
            }
        )

    def tell(self, step: int, event: str) -> None:
        """Something that a person should know."""
        self.events.append(event)
        self._untold.append(event)
        self._append({"step": step, "event": event})

    def untold(self) -> tuple[str, ...]:
        """The events since the last call."""
        events = tuple(self._untold)
        self._untold.clear()
        return events

    def attempt(self, step: int, name: str, write: Callable[[], object]) -> bool:
        """Write something that the run can do without; say once when that begins to fail."""
        if self.path is None:
            return False
        try:
            write()
        except (FaststyError, OSError, MemoryError, RuntimeError) as error:
            what = str(error)
            if is_out_of_memory(error):
                what = f"not enough memory for the {name}"  # PyTorch says it on several lines
            elif isinstance(error, RuntimeError):
                raise
            if name not in self._failing:
                self._failing.add(name)
                self.tell(step, f"step {step}: {what}{'' if self.over else '; training goes on'}")
            return False
        if name in self._failing:
            self._failing.remove(name)
            self.tell(step, f"step {step}: the {name} can be written again")
        return True

    def _append(self, entry: dict[str, Any]) -> None:
        if self.path is None:
            return
        line = json.dumps(entry, ensure_ascii=False, allow_nan=False)
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(f"\n{line}\n" if self._torn else f"{line}\n")
            self._torn = False
        except OSError:
            self._torn = True
