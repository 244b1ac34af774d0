"""What a cache lacks, said by a teacher in the process that trains, and read from the cache after.

    batch -> shards it needs - shards committed -> fill (as teacher-extract) -> cache -> batch

The loader's keys are listed in this process, ahead of its workers: a shard is committed before a
worker is asked for a sample of it.
"""

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager

import torch

from bevcask.cache.begin import stored_targets
from bevcask.cache.lease import RENEW_SECONDS, STALE_SECONDS
from bevcask.cache.parts import cut
from bevcask.cache.reader import open_cache
from bevcask.cache.union import split_urls
from bevcask.catalog import resolve
from bevcask.config import ImageAugmentConfig, LoaderConfig, WrittenStoreConfig
from bevcask.data.loader import Listed
from bevcask.data.samples import Key
from bevcask.data.sampling import Ints
from bevcask.errors import ConfigError
from bevcask.extraction.fill import Job, fill
from bevcask.progress import no_bar
from bevcask.stages.teacher_extract import begin_job, finish, report
from bevcask.verbs import DistillConfig, ExtractConfig

_log = logging.getLogger(__name__)


class Generator:
    """Fills the shards that batches need.

    Args:
        job: the extraction that would fill the cache.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._there = set(job.begun.cache.committed)
        self.generated = 0
        """Shards so far."""

    def ahead_of(self, batches: Listed, shards: Ints) -> Listed:
        """Return the same batches; each is handed on once the cache holds its targets.

        Args:
            batches: keys of each batch.
            shards: int64 (n,), the shard that each frame lies in.
        """
        return _Ahead(self, batches, shards)

    def require(self, shards: set[int]) -> None:
        """Fill those of some shards that are not committed.

        Raises:
            CacheBusyError: another process is at work on them all the time.
            DataError: files of their frames are not there.
            DiskFullError: they do not fit.
        """
        if not (missing := sorted(shards - self._there)):
            return
        job = self._job
        scenes = 1 if job.whole_scenes else None
        for portion in cut(missing, job.begun.cache.layout, scenes):
            with _random_numbers_kept():
                fill(job, portion, "student-distill", patience=STALE_SECONDS + RENEW_SECONDS)
            self.generated += len(set(portion) - self._there)
            self._there |= set(portion)

    def end(self) -> None:
        """Seal the cache if nothing is missing any more."""
        job, url = self._job, self._job.begun.cache.url
        left = finish(job)
        _log.info("%d shards of %s generated, %d still missing", self.generated, url, left)
        if not left:
            report(url, job.teacher, len(job.frames))


class _Ahead:
    def __init__(self, generator: Generator, batches: Listed, shards: Ints) -> None:
        self._generator = generator
        self._batches = batches
        self._shards = shards

    def __iter__(self) -> Iterator[list[Key]]:
        for keys in self._batches:
            self._generator.require({int(self._shards[key.frame]) for key in keys})
            yield keys

    def __len__(self) -> int:
        return len(self._batches)


def open_generator(config: DistillConfig) -> Generator | None:
    """Begin the cache of a training, or go on with it; None where it is sealed.

    Raises:
        ConfigError: there is no one cache to write to, or views would be missing too.
        CacheIdentityError: it is of another teacher, dataset or selection.
    """
    if config.cache is None or config.targets != "cache" or len(split_urls(config.cache)) > 1:
        raise ConfigError(
            "on_missing=generate writes what is missing to one cache: give cache=URL and "
            "teacher=NAME, and leave targets=online out."
        )
    if config.store.views or config.dry_run:
        raise ConfigError(
            "on_missing=generate: neither with store.views, which `bevcask teacher-extract` makes, "
            "nor with dry_run, for it begins the cache."
        )
    url = resolve("cache", config.cache)
    if stored_targets(url) and open_cache(url, allow_unsealed=True).sealed:
        return None
    said = config.store.model_dump(exclude_unset=True)
    extraction = ExtractConfig(
        dataset=config.dataset,
        teacher=config.teacher,
        method=config.method,
        store=WrittenStoreConfig(**said),
        augment=ImageAugmentConfig(),
        loader=LoaderConfig(num_workers=0),
        cache=url,
        device=config.device,
        seed=config.seed,
        trust_code=config.trust_code,
    )
    with _random_numbers_kept():
        return Generator(begin_job(extraction, no_bar))


def _random_numbers_kept() -> AbstractContextManager[None]:
    """Keep from the student what a teacher draws: it learns the same from an extracted cache."""
    return torch.random.fork_rng(devices=[])
