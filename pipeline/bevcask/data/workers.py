"""Loader processes: how they start, what they share, what is said when one dies."""

import os
import resource
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Generic, TypeVar

import cv2
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from bevcask.errors import BevcaskError, LoaderError
from bevcask.processes import end_with_parent, keep_freed_memory

BatchT = TypeVar("BatchT")
_SHARED = Path("/dev/shm")
_SMALLER = (
    "Lower loader.num_workers or loader.batch_size; loader.num_workers=0 loads in the main process"
)


@dataclass(frozen=True)
class Loaded(Generic[BatchT]):
    """A batch as it is handed over.

    Attributes:
        batch: or what went wrong.
        worker: its number; None where the main process loads.
        peak: bytes of memory the worker has used at most so far.
    """

    batch: BatchT | BevcaskError
    worker: int | None = None
    peak: int = 0

    def pin_memory(self) -> "Loaded[BatchT]":
        """Return it in pinned memory, from where a device reads beside its work."""
        return replace(self, batch=pinned(self.batch))


@dataclass(frozen=True)
class Room:
    """Shared memory that batches are handed over in.

    Attributes:
        free: bytes before any worker starts; None where the system has no such place.
        kept: batches that lie in it at a time, of all workers.
    """

    free: int | None
    kept: int

    @classmethod
    def of(cls, kept: int) -> "Room":
        """Return what is there now for so many batches."""
        return cls(free_shared(), kept)

    def hand_over(self, batch: BatchT) -> "Loaded[BatchT]":
        """Move a batch into shared memory, in the worker, where a failure can still be told.

        Left to the queue, a full memory is met by a thread of its own, and the batch never comes.
        """
        worker = get_worker_info()
        if worker is None:
            return Loaded(batch)
        tensors = list(tensors_of(batch))
        size = sum(tensor.untyped_storage().nbytes() for tensor in tensors)
        told: BatchT | BevcaskError = batch
        if self.free is not None and size * self.kept > self.free:
            told = LoaderError(
                f"a batch takes {_mb(size)} and {self.kept} of them are kept ready in shared "
                f"memory, {_mb(size * self.kept)}, but {_SHARED} has {_mb(self.free)} free. In a "
                f"container, give it more: docker run --shm-size=1g (or --ipc=host). {_SMALLER}, "
                "which needs none."
            )
        else:
            try:
                for tensor in tensors:
                    tensor.share_memory_()  # type: ignore[no-untyped-call]
            except RuntimeError as error:
                told = LoaderError(
                    f"no shared memory for a batch of {_mb(size)} ({error}). {_SHARED} has "
                    f"{_mb(free_shared() or 0)} free; other programs, or another loader, use it. "
                    f"Give it more: docker run --shm-size=1g. {_SMALLER}, which needs none."
                )
        return Loaded(told, worker.id, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def free_shared() -> int | None:
    """Return the bytes of shared memory that are free; None where there is no such place."""
    if not _SHARED.is_dir():
        return None
    found = os.statvfs(_SHARED)
    return found.f_bavail * found.f_frsize


def tensors_of(batch: Any) -> Iterator[Tensor]:
    """Yield every tensor in a batch: dataclasses, mappings and sequences of them."""
    if isinstance(batch, Tensor):
        yield batch
    elif is_dataclass(batch):
        for one in fields(batch):
            yield from tensors_of(getattr(batch, one.name))
    elif isinstance(batch, Mapping):
        for value in batch.values():
            yield from tensors_of(value)
    elif isinstance(batch, Sequence) and not isinstance(batch, str | bytes):
        for value in batch:
            yield from tensors_of(value)


def pinned(batch: Any) -> Any:
    """Return a batch with every tensor in pinned memory; what holds none is passed on as it is."""
    if isinstance(batch, Tensor):
        return batch.pin_memory()
    if is_dataclass(batch) and not isinstance(batch, type):
        return replace(batch, **{f.name: pinned(getattr(batch, f.name)) for f in fields(batch)})
    if isinstance(batch, Mapping):
        return {key: pinned(value) for key, value in batch.items()}
    if isinstance(batch, list | tuple):
        return type(batch)(pinned(value) for value in batch)
    return batch


def lost(workers: Sequence[BaseProcess], peaks: Mapping[int, int]) -> LoaderError | None:
    """Return what to say about workers that are gone; None where all are there.

    Args:
        workers: the processes, in the order of their numbers.
        peaks: bytes each had used at its last batch.
    """
    if workers:  # what it left half said may be read before its end is known
        wait([worker.sentinel for worker in workers], timeout=1.0)
    for number, worker in enumerate(workers):
        code = worker.exitcode
        if not code:
            continue
        ended = f"ended with code {code}"
        if code < 0:
            ended = f"was killed by {signal.Signals(-code).name}"
            if code == -signal.SIGKILL:
                ended += ", as the system does when memory runs out"
        used = f"It had used up to {_mb(peaks[number])}" if number in peaks else "It sent no batch"
        return LoaderError(
            f"loader worker {number} of {len(workers)} (process {worker.pid}) {ended}. {used}. "
            f"{_SMALLER}. What has been saved is whole: the same command goes on from there."
        )
    return None


def _mb(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


def begin(worker: int) -> None:
    """Set a worker up: one thread, memory that it keeps, and no life of its own."""
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    keep_freed_memory()
    end_with_parent()
