"""Batches in a given order, read by worker processes. Knows no cache."""

import atexit
import logging
import math
import multiprocessing
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from time import perf_counter
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

import cv2
import torch
from torch.utils.data import DataLoader

from bevcask.config import LoaderConfig
from bevcask.data.samples import Key, Sample, SampleReader, collate
from bevcask.data.workers import Loaded, Room, begin, lost
from bevcask.detectors.base import Batch
from bevcask.errors import BevcaskError
from bevcask.processes import FORK_SERVER, cores

_log = logging.getLogger(__name__)
_MEASURED = 3  # batches
_WORTH_STARTING = 10.0  # seconds of loading: below, workers start for longer than they save
_CROWDED = 1.25  # how much longer a batch takes where all cores load

SampleT = TypeVar("SampleT")
BatchT = TypeVar("BatchT")
StackedT_co = TypeVar("StackedT_co", covariant=True)


class Source(Protocol[SampleT, StackedT_co]):
    """What `Loader` reads from: keyed samples and a way to stack them. Must pickle."""

    def __getitem__(self, key: Key) -> SampleT: ...

    def collate(self, samples: Sequence[SampleT]) -> StackedT_co: ...


class Listed(Protocol):
    """Keys of each batch, as often as asked for."""

    def __iter__(self) -> Iterator[list[Key]]: ...

    def __len__(self) -> int: ...


class FrameSource:
    """Plain batches of one reader: what a teacher, or an evaluation, loads."""

    def __init__(self, reader: SampleReader) -> None:
        self.reader = reader

    def __len__(self) -> int:
        return len(self.reader.frames)

    def __getitem__(self, key: Key) -> Sample:
        return self.reader.at(key, self.reader.frames)

    def collate(self, samples: Sequence[Sample]) -> Batch:
        return collate(samples)


class ViewSource(FrameSource):
    """Clean frames as view 0, and replayable views of them from a second reader."""

    def __init__(self, clean: SampleReader, views: SampleReader) -> None:
        super().__init__(clean)
        self.views = views

    def __getitem__(self, key: Key) -> Sample:
        return (self.views if key.view else self.reader).at(key, self.reader.frames)

    def read(self, token: str, view: int) -> Sample:
        """Read one frame as the teacher saw it; errors as of `SampleReader.read`."""
        return (self.views if view else self.reader).read(token, view)


class _Guard(Generic[SampleT, BatchT]):
    """Runs in the worker: a bevcask error becomes a value, so that its text stays one message."""

    def __init__(self, source: Source[SampleT, BatchT], room: Room) -> None:
        self.source = source
        self.room = room

    def __getitems__(self, keys: list[Key]) -> Loaded[BatchT]:
        try:
            batch = self.source.collate([self.source[key] for key in keys])
        except BevcaskError as error:
            return Loaded(error)
        return self.room.hand_over(batch)


class Loader(DataLoader[Any], Generic[BatchT]):
    """A DataLoader over listed batches that raises worker errors as they were raised."""

    def __iter__(self) -> Iterator[BatchT]:  # type: ignore[override]
        first = self._iterator is None
        loaded: Iterator[Loaded[BatchT]] = super().__iter__()
        if first and self.num_workers:
            atexit.register(_dismiss, weakref.ref(loaded))
            # Collected in a cycle, its queues would go before the word to the workers does.
            weakref.finalize(self, loaded._shutdown_workers)  # type: ignore[attr-defined]
        peaks: dict[int, int] = {}
        while True:
            try:
                found = next(loaded)
            except StopIteration:
                return
            except (RuntimeError, EOFError, OSError) as error:  # how torch meets a worker's end
                told = lost(getattr(loaded, "_workers", ()), peaks)
                if told is None:
                    raise
                raise told from error
            if isinstance(found.batch, BevcaskError):
                raise found.batch
            if found.worker is not None:
                peaks[found.worker] = found.peak
            yield found.batch


def _dismiss(iterator: Callable[[], Any]) -> None:
    """Let workers go that are there at the end of the process, all at once.

    Torch would wait five seconds for each of them, as nobody has told them.
    """
    if (loaded := iterator()) is not None:
        loaded._shutdown_workers()


class _Rest:
    """Batches without those at the front that somebody else has read."""

    def __init__(self, batches: Listed) -> None:
        self.batches = batches
        self.skipped = 0

    def __iter__(self) -> Iterator[list[Key]]:
        return islice(iter(self.batches), self.skipped, None)

    def __len__(self) -> int:
        return len(self.batches)


class MeasuringLoader(Generic[BatchT]):
    """Reads the first batches in this process, and then with as many workers as those ask for.

    Args:
        source: what is read.
        batches: keys of each batch.
        build: returns a loader of these batches with a number of workers.
    """

    def __init__(
        self,
        source: Source[SampleT, BatchT],
        batches: Listed,
        build: Callable[[Listed, int], Loader[BatchT]],
    ) -> None:
        self._source: Source[Any, BatchT] = source
        self._rest = _Rest(batches)
        self._build = build
        self._loader: Loader[BatchT] | None = None

    def __len__(self) -> int:
        return len(self._rest)

    def __iter__(self) -> Iterator[BatchT]:
        self._rest.skipped = 0
        if self._loader is None:
            yield from self._measured()
        if self._loader is not None:
            yield from self._loader

    def _measured(self) -> Iterator[BatchT]:
        """Yield the first batches; then there is a loader of the rest, if there is a rest."""
        loads, steps = [], []
        for keys in islice(iter(self._rest), _MEASURED):
            start = perf_counter()
            with _one_thread():
                batch = self._source.collate([self._source[key] for key in keys])
            loaded = perf_counter()
            yield batch
            loads.append(loaded - start)
            steps.append(perf_counter() - loaded)
        self._rest.skipped = len(loads)
        if (left := len(self._rest) - len(loads)) <= 0:
            return
        # What comes first also opens files and warms devices up.
        load, step = min(loads[1:]), min(steps[1:])
        workers = workers_for(load, step, left, cores())
        _log.info(
            "loader.num_workers=auto: %d of %d cores; a batch is read in %.3f s, used in %.3f s.",
            workers, cores(), load, step,
        )  # fmt: skip
        self._loader = self._build(self._rest, workers)


AnyLoader: TypeAlias = Loader[BatchT] | MeasuringLoader[BatchT]


def workers_for(load: float, step: float, left: int, num_cores: int) -> int:
    """Return how many processes keep up with a step; 0 where starting them costs more.

    Args:
        load: seconds of one core to read a batch.
        step: seconds between two batches.
        left: batches to come.
        num_cores: one of them is left to this process.

    >>> workers_for(0.4, 0.1, 1000, 16), workers_for(0.4, 0.1, 1000, 2), workers_for(0.4, 0.1, 9, 2)
    (5, 1, 0)
    """
    if load * left < _WORTH_STARTING:
        return 0
    return min(math.ceil(_CROWDED * load / max(step, 1e-6)), num_cores - 1)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Read as a worker does: not on all cores."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(0)
    try:
        yield
    finally:
        cv2.setNumThreads(threads)


def build_loader(
    source: Source[SampleT, BatchT],
    batches: Listed,
    config: LoaderConfig,
    device: torch.device | None = None,
) -> AnyLoader[BatchT]:
    """Return a loader that yields one stacked batch per list of keys, in order.

    What is in a batch depends on its keys alone, not on who reads it.

    Args:
        source: `FrameSource` or `join.JoinedDataset`.
        batches: keys of each batch; `sampling.StepSampler` for training, `in_order` for one pass.
        config: how many processes, and how many batches each has ready. Workers come from a fork
            server, so threads and CUDA contexts of this process are never forked, and stay for
            later passes.
        device: where batches go; on their way to CUDA they lie in pinned memory.
    """
    pinned = device is not None and device.type == "cuda"

    def build(batches: Listed, num_workers: int) -> Loader[BatchT]:
        workers: dict[str, Any] = {}
        if num_workers:
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload([FORK_SERVER, "bevcask.data.join"])
            workers = {
                "multiprocessing_context": context,
                "persistent_workers": True,
                "prefetch_factor": config.prefetch,
                "worker_init_fn": begin,
            }
        kept = min(num_workers * config.prefetch, len(batches))
        guard: Any = _Guard(source, Room.of(kept))
        listed: Any = batches
        return Loader(
            guard,
            batch_sampler=listed,
            num_workers=num_workers,
            collate_fn=_as_is,
            pin_memory=pinned,
            generator=torch.Generator(),  # worker seeds are not drawn from the model's
            **workers,
        )

    if config.num_workers == "auto":
        return MeasuringLoader(source, batches, build)
    return build(batches, config.num_workers)


def in_order(num_frames: int, batch_size: int) -> list[list[Key]]:
    """Return the batches of one pass over a selection, view 0, last one short.

    >>> [[key.frame for key in batch] for batch in in_order(3, 2)]
    [[0, 1], [2]]
    """
    starts = range(0, num_frames, batch_size)
    return [[Key(i) for i in range(s, min(s + batch_size, num_frames))] for s in starts]


def _as_is(batch: BatchT) -> BatchT:
    return batch
