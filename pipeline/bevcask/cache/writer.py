"""Writing a cache: whole shards, a commit after each, a seal at the end.

The writer owns every object of its shards until it has written their commit row. What has no commit
row does not exist: it is removed on resume.
"""

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from bevcask.cache.commit import Committed, committed, encode_row
from bevcask.cache.files import Files
from bevcask.cache.layout import arrays_of, commit_key, open_array, shard_of
from bevcask.cache.lease import Lease, holding_small_files
from bevcask.cache.metadata import read_root
from bevcask.cache.objects import Each, Pieces, ShardObjects
from bevcask.cache.reader import Cache
from bevcask.cache.run import Run
from bevcask.cache.seal import end_addition, seal
from bevcask.errors import CacheIncompleteError
from bevcask.paths import PARTIAL
from bevcask.targets.spec import TargetSpec


class Writer:
    """Writes the missing shards of a cache, or of one part of it. Made by `create`.

    Use as a context manager: it holds the lease of its shards. Not for two threads at once, but for
    `encode`, which may run beside the rest.

    Args:
        cache: the cache as it will be, opened with its commits so far.
        shards: those this process fills.
        part: how the user called them.
        made: what is recorded of this run (`provenance`, `plan`).
        base: a sealed cache whose targets stay as they are while others are added.
        patience: seconds to wait for another process that holds some of the shards.
    """

    def __init__(
        self,
        cache: Cache,
        shards: range,
        part: str,
        made: Mapping[str, Any],
        base: Cache | None = None,
        patience: float = 0.0,
    ) -> None:
        self._cache = cache
        self._files = Files(cache.url)
        self._layout = cache.layout
        self._shards = shards
        self._done_S = cache.commit.present_S.copy()
        self._base = base
        old = base.specs if base else {}
        self.specs: list[TargetSpec] = [s for name, s in cache.specs.items() if name not in old]
        """The targets that are written; all of them unless some are added to a sealed cache."""
        self._lease, self._patience = Lease(self._files, shards, part), patience
        self._run = Run(self._files, {**made, "part": part})
        self._written = 0

    def __enter__(self) -> "Writer":
        """Take the lease and remove what an interrupted run left of these shards.

        Raises:
            CacheBusyError: another process fills some of them.
        """
        if not self.missing():
            return self
        self._lease.claim(self._patience)
        try:
            self._done_S = self._cache.read_commit().present_S.copy()
            if not self.missing():
                self._lease.release()
                return self
            self._remove_leftovers()
            self._run.begin(shards=self._shards, targets=[spec.key for spec in self.specs])
        except BaseException:
            self._lease.release()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._lease.held:
            try:
                self._run.end(self._written)
            finally:
                self._lease.release()

    @property
    def num_shards(self) -> int:
        """Shards of the whole cache."""
        return self._layout.num_shards

    @property
    def shards(self) -> range:
        """Those this process fills."""
        return self._shards

    @property
    def cache(self) -> Cache:
        """The cache as it was when the writer opened it."""
        return self._cache

    def missing(self, everywhere: bool = False) -> list[int]:
        """Return the shards of this part (or of all parts) that are not committed, in order.

        What other parts commit meanwhile is not seen.
        """
        shards = range(self.num_shards) if everywhere else self._shards
        left = np.flatnonzero(~self._done_S[shards.start : shards.stop])
        return [shards.start + int(place) for place in left]

    def tokens(self, shard: int) -> list[str]:
        """Return the sample tokens of a shard, in row order, without pad rows."""
        return self._layout.tokens_of(shard)

    def write(self, shard: int, arrays: Mapping[str, Pieces]) -> int:
        """Write and commit one shard.

        Args:
            shard: one of `missing()`.
            arrays: target name -> encoded frames of `tokens(shard)`.

        Returns:
            Bytes written.

        Raises:
            TargetMismatchError: a target is missing, unknown or of the wrong shape or dtype;
                nothing has been written.
            DiskFullError: the disk is full; earlier shards are safe.
            CacheBusyError: this process has lost its lease.
        """
        return self.commit(shard, self.encode(shard, arrays))

    def encode(self, shard: int, arrays: Mapping[str, Pieces], each: Each = map) -> ShardObjects:
        """Begin with the files of a shard, which `commit` takes; see `ShardObjects`.

        Raises:
            TargetMismatchError: see `write`.
        """
        assert shard in self._shards
        assert not self._done_S[shard]
        return ShardObjects(self._layout, [spec.key for spec in self.specs], shard, arrays, each)

    def commit(self, shard: int, encoded: ShardObjects) -> int:
        """Wait for the files of a shard, write them, then commit it; return their bytes.

        Raises:
            DiskFullError: see `write`.
            CacheBusyError: see `write`.
        """
        objects, entries = encoded.wait()
        self._lease.check()
        keys = {array.key: array.object_key(shard) for array in self._layout.arrays}
        self._files.put_many({keys[key]: data for key, data in objects.items() if data})
        self._put_commit(shard, entries)
        return sum(map(len, objects.values()))

    def adopt(self, shard: int, objects: Mapping[str, bytes], links: Mapping[str, Path]) -> None:
        """Commit one shard with objects that exist already, somewhere else.

        Args:
            shard: one of `missing()`.
            objects: array key -> bytes, checked by whoever calls; empty where all is zero.
            links: array key -> the local file that holds them, to be linked where that is possible.
        """
        self._lease.check()
        keys = {a.key: a.object_key(shard) for a in self._layout.arrays if objects.get(a.key)}
        if not self._files.link_many({keys[k]: path for k, path in links.items() if k in keys}):
            self._files.put_many({key: objects[name] for name, key in keys.items()})
        self._put_commit(shard, committed(self._layout, objects))

    def _put_commit(self, shard: int, entries: Mapping[str, Committed]) -> None:
        """Commit a shard: what was written, between what is committed of targets it already had."""
        known = dict(entries)
        if self._base is not None:
            theirs = zip(self._base.layout.arrays, self._base.commit[shard], strict=True)
            known |= {array.key: row for array, row in theirs}
        row = [known[array.key] for array in self._layout.arrays]
        self._files.put(commit_key(self._cache.id, shard), encode_row(row))
        self._done_S[shard] = True
        self._written += 1

    def unfinished(self) -> int:
        """Return how many shards of the whole cache nobody has committed by now."""
        if self._cache.sealed:
            return 0
        self._done_S = self._cache.read_commit().present_S.copy()
        return len(self.missing(everywhere=True))

    def seal(self) -> None:
        """Declare the cache complete; nothing happens if it was sealed before.

        Where targets were added, this is the moment in which they appear: one file is replaced.

        Raises:
            CacheIncompleteError: shards are missing.
        """
        if self._cache.sealed:
            return
        with holding_small_files(self._files, "sealing"):
            root = read_root(self._files)
            if (root["id"], root["state"]) == (self._cache.id, "sealed"):
                return
            commit = self._cache.read_commit()
            if commit.missing:
                raise CacheIncompleteError(
                    f"cache {self._files.url} cannot be sealed: {len(commit.missing)} of "
                    f"{self.num_shards} shards are missing, first {commit.missing[0]}. Run "
                    "teacher-extract again."
                )
            seal(self._cache, list(commit.chunks().values()))
            end_addition(self._files, self._cache.id)

    def _remove_leftovers(self) -> None:
        """Remove partial files and objects of own shards that were never committed."""
        arrays = [a for spec in self.specs for a in arrays_of(spec, self._layout.num_rows)]
        folders = {open_array(self._cache.id), *(array.key for array in arrays)}
        uncommitted = set(self.missing())
        for key in list(self._files.list()):
            whole = key.removesuffix(PARTIAL).rpartition(".")[0] if key.endswith(PARTIAL) else key
            folder, _, name = whole.rpartition("/")
            if folder in folders and shard_of(name) in uncommitted:
                self._files.delete(key)
