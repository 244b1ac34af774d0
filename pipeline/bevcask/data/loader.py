"""Batches in a given order, read by worker processes. Knows no cache."""

import multiprocessing
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, Generic, Protocol, TypeVar

from torch.utils.data import DataLoader

from bevcask.data.samples import Key, Sample, SampleReader, collate
from bevcask.data.workers import PREFETCH, Loaded, Room, begin, lost
from bevcask.detectors.base import Batch
from bevcask.errors import BevcaskError
from bevcask.processes import FORK_SERVER

SampleT = TypeVar("SampleT")
BatchT = TypeVar("BatchT")
StackedT_co = TypeVar("StackedT_co", covariant=True)


class Source(Protocol[SampleT, StackedT_co]):
    """What `Loader` reads from: keyed samples and a way to stack them. Must pickle."""

    def __getitem__(self, key: Key) -> SampleT: ...

    def collate(self, samples: Sequence[SampleT]) -> StackedT_co: ...


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
        loaded: Iterator[Loaded[BatchT]] = super().__iter__()
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


def build_loader(
    source: Source[SampleT, BatchT],
    batches: Collection[list[Key]],
    num_workers: int,
) -> Loader[BatchT]:
    """Return a loader that yields one stacked batch per list of keys, in order.

    Args:
        source: `FrameSource` or `join.JoinedDataset`.
        batches: keys of each batch; `sampling.StepSampler` for training, `in_order` for one pass.
        num_workers: processes; 0 reads in this one. Workers come from a fork server, so threads and
            CUDA contexts of this process are never forked, and stay for later passes.
    """
    workers: dict[str, Any] = {}
    if num_workers:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([FORK_SERVER, "bevcask.data.join"])
        workers = {
            "multiprocessing_context": context,
            "persistent_workers": True,
            "prefetch_factor": PREFETCH,
            "worker_init_fn": begin,
        }
    guard: Any = _Guard(source, Room.of(num_workers, len(batches)))
    unpacked: Callable[[Any], Any] = _as_is
    return Loader(
        guard, batch_sampler=batches, num_workers=num_workers, collate_fn=unpacked, **workers
    )


def in_order(num_frames: int, batch_size: int) -> list[list[Key]]:
    """Return the batches of one pass over a selection, view 0, last one short.

    >>> [[key.frame for key in batch] for batch in in_order(3, 2)]
    [[0, 1], [2]]
    """
    starts = range(0, num_frames, batch_size)
    return [[Key(i) for i in range(s, min(s + batch_size, num_frames))] for s in starts]


def _as_is(batch: BatchT) -> BatchT:
    return batch
