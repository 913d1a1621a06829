"""Many processes, one run: each takes its samples of every batch, and all make the same steps.

Begun by torchrun, which tells each worker its rank by environment variables. The result is that of
one process, to rounding, because nothing depends on who computes what: a step's random numbers are
drawn per sample from (seed, step), terms that divide by a sum over the batch divide by the sum over
all workers, and each worker's loss is its share of the whole, so that gradients are simply added.

They are added in one all-reduce of one flat tensor per optimiser, losses and terms with them. Not
by DistributedDataParallel: the nets have 0.1 to 2 million weights, so that there is nothing to
gain by overlapping, and a step runs the generator two or three times, the discriminator with and
without gradients for its weights, and an Adam that wants to know the whole loss.

`Alone` is the same for one process, and does nothing.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch import Tensor

from faststy.errors import FaststyError
from faststy.tensors import device_named
from faststy.training.config import BATCH, GPU_BATCH

PATIENCE = timedelta(minutes=10)  # for a worker that answers nothing
LEAST = 2  # samples of a batch that a worker must get: the small-motion term looks at half of them


def told_rank() -> int:
    """The rank that torchrun gave this process, 0 without it."""
    return int(os.environ.get("RANK", "0"))


def workers() -> int:
    """How many processes torchrun began, 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def default_batch(device: str) -> int:
    """Samples of a step where nobody says how many; `device` is a name, and is not touched."""
    # Every worker asks, and one that touched cuda:0 would hold memory there.
    cuda = torch.cuda.is_available() if device == "auto" else device.startswith("cuda")
    usual = GPU_BATCH if cuda else BATCH
    return usual if workers() == 1 else max(usual, LEAST * workers())


class Alone:
    """One process: it leads, and everything is its own."""

    alone = True
    leads = True
    mine = slice(None)  # of a batch, which samples are this worker's

    def device(self, name: str) -> str:
        """The device that `name` means for this worker."""
        return name

    def batch(self, count: int) -> int:
        """The samples of the batch of which `count` are this worker's."""
        return count

    def sum(self, part: Tensor) -> Tensor:
        """The sum of every worker's `part`, on the device; without gradient."""
        return part

    def sum_(self, parts: Sequence[Tensor]) -> None:
        """Replace each tensor by the sum over the workers."""

    def agree(self, fraction: float, stop: bool) -> tuple[float, bool]:
        """The first worker's `fraction` of the run, and whether any worker wants to stop."""
        return fraction, stop

    def received(self, make: Callable[[], bytes]) -> bytes | None:
        """What the first worker made, for the others; None for the first."""
        return None

    def gathered(self, own: bytes) -> list[bytes]:
        """Every worker's `own`; where one was lost, this one's alone."""
        return [own]


class Worker(Alone):
    """One process of many.

    Args:
        rank: which one it is; 0 leads.
        size: number of workers.
        batch: samples of a step, of all workers.
        out: folder of the run, for messages.
    """

    alone = False

    def __init__(self, rank: int, size: int, batch: int, out: str) -> None:
        if batch < LEAST * size:
            raise FaststyError(
                f"batch is {batch}; with {size} workers it must be at least {LEAST * size}"
            )
        self.rank, self.size, self._batch, self._out = rank, size, batch, out
        self.leads = rank == 0
        self.mine = slice(rank, None, size)  # in turns: half of a batch is half of each worker's

    def device(self, name: str) -> str:
        if name == "auto":
            name = "cuda" if torch.cuda.is_available() else "cpu"
        return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if name == "cuda" else name

    def batch(self, count: int) -> int:
        return self._batch

    def sum(self, part: Tensor) -> Tensor:
        whole = part.detach().clone()
        self._all_reduce(whole)
        return whole

    def sum_(self, parts: Sequence[Tensor]) -> None:
        flat = torch.cat([part.flatten() for part in parts])
        self._all_reduce(flat)
        sums = flat.split([part.numel() for part in parts])  # type: ignore[no-untyped-call]
        for part, whole in zip(parts, sums, strict=True):
            part.copy_(whole.view(part.shape))

    def agree(self, fraction: float, stop: bool) -> tuple[float, bool]:
        # On the CPU, whatever the nets are on: nobody waits for a device.
        said = torch.tensor([fraction if self.leads else 0.0, float(stop)], dtype=torch.float64)
        self._all_reduce(said)
        return float(said[0]), bool(said[1] > 0)

    def received(self, make: Callable[[], bytes], source: int = 0) -> bytes | None:
        own = self.rank == source
        data = torch.frombuffer(bytearray(make()), dtype=torch.uint8) if own else None
        length = torch.tensor([0 if data is None else len(data)])
        self._broadcast(length, source)
        if data is None:
            data = torch.empty(int(length), dtype=torch.uint8)
        self._broadcast(data, source)
        return None if own else bytes(data.numpy())

    def gathered(self, own: bytes) -> list[bytes]:
        try:
            return [self.received(lambda: own, rank) or own for rank in range(self.size)]
        except FaststyError:
            return [own]

    def _all_reduce(self, x: Tensor) -> None:
        with self._company():
            torch.distributed.all_reduce(x)

    def _broadcast(self, x: Tensor, source: int) -> None:
        with self._company():
            torch.distributed.broadcast(x, source)

    @contextmanager
    def _company(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # what every backend says when a connection breaks
            raise FaststyError(
                f"{self._out}: another worker was lost; resume the run (--resume, or "
                "resume=True), with any number of workers"
            ) from error


@contextmanager
def joined(batch: int, out: str, device: str) -> Iterator[Alone]:
    """The workers of this run, of which this process is one.

    Args:
        batch: samples of a step, of all workers.
        out: the run's folder, for what is said when a worker is lost.
        device: name of the device, "auto" or "cuda" for one CUDA device per worker.

    Raises:
        FaststyError: a batch that is too small for so many, or is not that of the other workers;
            workers that do not find together; a device that cannot be used.
    """
    size = workers()
    if size == 1:
        yield Alone()
        return
    worker = Worker(told_rank(), size, batch, out)
    cuda = worker.device(device).startswith("cuda")
    if cuda:
        torch.cuda.set_device(device_named(worker.device(device)))
    try:
        backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
        torch.distributed.init_process_group(backend, timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise FaststyError(f"the {size} workers do not find together ({reason})") from error
    try:
        if float(worker.sum(torch.tensor(float(batch)))) != batch * size:
            raise FaststyError("the workers have different batches; give all the same batch")
        yield worker
    finally:
        # After an error NCCL would wait for the others here; the process ends anyway.
        if not cuda or sys.exc_info()[0] is None:
            torch.distributed.destroy_process_group()
