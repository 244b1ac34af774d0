"""Filling a range of shards of a cache: what every engine calls, in this process or in others.

It takes its lease, leaves alone what is committed, and writes the same bytes whoever calls it and
how often. The teacher stays loaded for the next range.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from typing import Any

from rich.filesize import decimal

from bevcask.cache.begin import Begun
from bevcask.cache.reader import Cache
from bevcask.cache.repair import Repairer
from bevcask.cache.reuse import reuse
from bevcask.cache.write_queue import WriteQueue
from bevcask.cache.writer import Writer
from bevcask.data.augment import images_only
from bevcask.data.index.frames import Frames
from bevcask.data.lidar import SHARED_SWEEPS, Scans
from bevcask.data.loader import ViewSource, build_loader
from bevcask.data.presence import readable_frames
from bevcask.data.samples import SampleReader
from bevcask.detectors.base import Batch
from bevcask.extraction.disk import check_first_shards, check_upper_bound
from bevcask.extraction.shards import encoded_shards
from bevcask.extraction.steps import Step, steps_of
from bevcask.processes import cores
from bevcask.progress import Ticker, progress_bar
from bevcask.provenance import pick_device
from bevcask.targets.pixels import needs_pixels
from bevcask.teachers.base import Teacher
from bevcask.verbs import ExtractConfig
from bevcask.wall_time import Watch, in_words

_log = logging.getLogger(__name__)
Bar = Callable[[str, int], AbstractContextManager[Ticker]]


def _never() -> bool:
    return False


@dataclass(frozen=True)
class Job:
    """An extraction but for which shards: made once a process, for as many ranges as there are.

    Attributes:
        config: of the verb.
        frames: the selection.
        teacher: loaded by the first range.
        begun: the cache.
        whole_scenes: ranges never cut a scene, for the teacher remembers its earlier frames.
        old: a cache whose shards are taken over where they fit.
        bar: shows how far a range is.
        unwanted: tells that nobody wants the rest of a range any more.
    """

    config: ExtractConfig
    frames: Frames
    teacher: Teacher
    begun: Begun
    whole_scenes: bool
    old: Cache | None = None
    bar: Bar = progress_bar
    unwanted: Callable[[], bool] = _never


@dataclass(frozen=True)
class Filled:
    """What became of a range.

    Attributes:
        reused: how many shards were taken over from another cache.
        wall_time: where the time went; None where the teacher had nothing to say.
    """

    reused: int
    wall_time: dict[str, Any] | None


def fill(job: Job, shards: range, what: str, patience: float = 0.0) -> Filled:
    """Write what is missing of a range of shards.

    Args:
        job: everything else.
        shards: the range; not to cut a scene where `job.whole_scenes`.
        what: how people call it.
        patience: seconds to wait for a process that is at work on some of it.

    Raises:
        CacheBusyError: there still is one.
        DiskFullError: the projected size does not fit.
        DataError: files of its frames are not there.
        CancelledError: nobody wants it any more; what is committed stays.
    """
    with job.begun.writer(shards, what, patience) as writer:
        reused = 0
        if job.old is not None and writer.missing():
            reused = reuse(writer, job.old, job.whole_scenes)
            _log.info("%d of %d shards taken over from %s", reused, len(shards), job.old.url)
        check_upper_bound(writer)
        told = write_missing(job.config, job.frames, job.teacher, writer, job.bar, job.unwanted)
    return Filled(reused, told)


def write_missing(
    config: ExtractConfig,
    frames: Frames,
    teacher: Teacher,
    writer: Writer | Repairer,
    bar: Bar = progress_bar,
    unwanted: Callable[[], bool] = _never,
) -> dict[str, Any] | None:
    """Write every missing shard; the forward of one overlaps the writing of the one before.

    Returns:
        Where the time went (`wall_time`); None where nothing was missing.
    """
    steps = steps_of(writer, frames, config.loader.batch_size, teacher.parts)
    if not steps:
        return None
    wanted = needs_pixels(writer.specs)
    read = replace(teacher.reads(), depth=True) if wanted else teacher.reads()
    tokens = dict.fromkeys(frames.tokens[key.frame] for step in steps for key in step.keys)
    readable_frames(frames.keep(tokens), read, "dataset")
    device = pick_device(config.device)
    teacher.load(device)
    inputs = teacher.reads()
    scans, augment = Scans(SHARED_SWEEPS), images_only(config.augment)
    clean = SampleReader(frames, inputs, None, config.seed, pixels=wanted, scans=scans)
    views = SampleReader(frames, inputs, augment, config.seed, scans=scans)
    loader = build_loader(
        ViewSource(clean, views), [step.keys for step in steps], config.loader, device
    )
    loading = config.loader.num_workers
    spared = cores() // 2 if loading == "auto" else cores() - loading
    threads = config.store.threads or max(1, spared)
    total = sum(len(step.keys) for step in steps)
    writing = writer.missing()
    projected, watch = False, Watch()
    with bar("extract", total) as ticker, ExitStack() as stack:
        queue = stack.enter_context(WriteQueue(writer, config.store.queue, threads))
        loaded = watch.watched(zip(steps, loader, strict=True), "loader")
        ticking = _ticks(loaded, ticker, queue, unwanted)
        for shard, arrays in encoded_shards(teacher, writer.specs, ticking, device):
            with watch.waiting("writer"):
                queue.put(shard, arrays)
            if not projected and isinstance(writer, Writer):
                projected = check_first_shards(writer, queue, writing)
        with watch.waiting("writer"):
            stack.close()
        ticker.advance(0, _written(queue))
    told = watch.told()
    _log.info("%s", in_words(told))
    return told


def _ticks(
    batches: Iterable[tuple[Step, Batch]],
    bar: Ticker,
    queue: WriteQueue,
    unwanted: Callable[[], bool],
) -> Iterator[tuple[Step, Batch]]:
    """Pass batches on and move the bar once each has been used, as long as they are wanted."""
    for step, batch in batches:
        if unwanted():
            raise CancelledError
        yield step, batch
        bar.advance(len(step.keys), _written(queue))


def _written(queue: WriteQueue) -> str:
    return f"{decimal(queue.num_bytes)} written"
