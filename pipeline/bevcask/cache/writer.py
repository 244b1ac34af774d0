"""Writing a cache: create or resume, whole shards, a commit after each, a seal at the end.

The writer owns every object of its shards until it has written their commit row. What has no commit
row does not exist: it is removed on resume.
"""

import hashlib
import queue
import threading
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from bevcask.cache import skeleton
from bevcask.cache.files import PARTIAL, Files
from bevcask.cache.identity import require_identity
from bevcask.cache.layout import (
    ArraySpec,
    Encoded,
    FrameTable,
    Layout,
    arrays_of,
    commit_key,
    group_of,
    is_set,
)
from bevcask.cache.objects import Committed, encode_chunk, encode_plain, encode_shard
from bevcask.cache.reader import Cache
from bevcask.errors import CacheIdentityError, CacheIncompleteError, TargetMismatchError
from bevcask.targets.spec import TargetSpec


def create(
    url: str,
    specs: Sequence[TargetSpec],
    frames: FrameTable,
    *,
    shard_rows: int,
    fingerprint: Mapping[str, Any],
    plan: Mapping[str, Any],
    provenance: Mapping[str, Any],
) -> "Writer":
    """Create a cache, or go on with one of the same identity.

    Args:
        url: local path or fsspec URL.
        specs: what is stored.
        frames: the selection; fixed from now on.
        shard_rows: frames a shard.
        fingerprint: identity tree of teacher, dataset and preprocessing.
        plan: what the plan said; kept for readers, no part of the identity.
        provenance: versions, host, command, git, times; kept from the first run.

    Raises:
        CacheIdentityError: the URL holds something else; the leaves that differ are named.
        CacheCorruptError: the metadata found there is damaged.
        DiskFullError: no room for the metadata.
    """
    files = Files(url)
    layout = Layout(frames, specs, shard_rows)
    if files.get(skeleton.ROOT) is None:
        small = skeleton.build(layout)
        _require_empty(files, {*small, skeleton.PROVENANCE})
        attributes = skeleton.root_attributes(layout, fingerprint, plan, small)
        small[skeleton.PROVENANCE] = skeleton.group_json({"provenance": dict(provenance)})
        files.put_many(small)
        files.put(skeleton.ROOT, skeleton.group_json(attributes))
    cache = Cache(url, allow_unsealed=True)
    require_identity(cache, layout.identity(fingerprint))
    return Writer(cache)


def _require_empty(files: Files, own: set[str]) -> None:
    """Accept a folder only if nothing is in it but the start of a cache."""
    foreign = sorted(key for key in files.list() if key not in own and not key.endswith(PARTIAL))
    if foreign:
        raise CacheIdentityError(
            f"{files.url} is not empty and no bevcask cache: expected {skeleton.ROOT}, got "
            f"{foreign[0]} and {len(foreign) - 1} more. Choose another URL."
        )


class Writer:
    """Writes the missing shards of a cache. Not for two threads at once."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._files = Files(cache.url)
        self._layout = cache.layout
        self._commit = {
            shard: b"".join(row.to_bytes() for row in rows) for shard, rows in cache.commit.items()
        }
        self._remove_leftovers()

    @property
    def num_shards(self) -> int:
        return self._layout.num_shards

    @property
    def cache(self) -> Cache:
        """The cache as it was when the writer opened it."""
        return self._cache

    def missing(self) -> list[int]:
        """Return the shards that are not committed, in order."""
        return [shard for shard in range(self.num_shards) if shard not in self._commit]

    def tokens(self, shard: int) -> list[str]:
        """Return the sample tokens of a shard, in row order, without pad rows."""
        return [self._layout.frames.tokens[frame] for frame in self._layout.frames_of(shard)]

    def write(self, shard: int, arrays: Mapping[str, Encoded[Any]]) -> int:
        """Write and commit one shard.

        Args:
            shard: one of `missing()`.
            arrays: target name -> encoded frames of `tokens(shard)`, tensors or arrays.

        Returns:
            Bytes written.

        Raises:
            TargetMismatchError: a target is missing, unknown or of the wrong shape or dtype;
                nothing has been written.
            DiskFullError: the disk is full; earlier shards are safe.
        """
        assert shard not in self._commit
        contents = self._rows_of(shard, arrays)
        objects = {
            array.object_key(shard): _object(array, contents.pop(array.key))
            for array in self._layout.arrays
        }
        rows = [Committed.of(data) for data in objects.values()]
        self._files.put_many({key: data for key, data in objects.items() if data})
        self._commit[shard] = b"".join(row.to_bytes() for row in rows)
        self._files.put(commit_key(shard), encode_plain(self._commit[shard]))
        return sum(row.length for row in rows)

    def seal(self, provenance: Mapping[str, Any] | None = None) -> None:
        """Declare the cache complete; nothing happens if it was sealed before.

        Args:
            provenance: entries to add to, or replace in, what `create` was given.

        Raises:
            CacheIncompleteError: shards are missing.
        """
        missing = self.missing()
        if missing:
            raise CacheIncompleteError(
                f"cache {self._files.url} cannot be sealed: {len(missing)} of {self.num_shards} "
                f"shards are missing, first {missing[0]}. Run teacher-extract again."
            )
        if self._cache.sealed:
            return
        if provenance:
            merged = {**self._cache.provenance, **provenance}
            self._files.put(skeleton.PROVENANCE, skeleton.group_json({"provenance": merged}))
        commit = b"".join(self._commit[shard] for shard in range(self.num_shards))
        attributes = {
            **self._cache.attributes,
            "state": "sealed",
            "commit": hashlib.sha256(commit).hexdigest(),
        }
        self._files.put(skeleton.ROOT, skeleton.group_json(attributes))

    def _remove_leftovers(self) -> None:
        """Remove partial files and objects of shards that were never committed."""
        if not self.missing():
            return
        missing = set(self.missing())
        arrays = self._layout.arrays
        uncommitted = {array.object_key(shard) for shard in missing for array in arrays}
        uncommitted |= {commit_key(shard) for shard in missing}
        small = {*self._cache.attributes["files"], skeleton.PROVENANCE, skeleton.ROOT}
        for key in list(self._files.list()):
            whole = key.removesuffix(PARTIAL).rpartition(".")[0] if key.endswith(PARTIAL) else key
            if whole in uncommitted or (whole in small and whole != key):
                self._files.delete(key)

    def _rows_of(
        self, shard: int, arrays: Mapping[str, Encoded[Any]]
    ) -> dict[str, npt.NDArray[Any]]:
        """Return the whole shard of every array, pad rows zero; all mismatches in one message."""
        specs = self._layout.specs
        problems = [f"{name}: missing" for name in specs if name not in arrays]
        problems += [f"{name}: not a target of this cache" for name in arrays if name not in specs]
        num = len(self._layout.frames_of(shard))
        contents: dict[str, npt.NDArray[Any]] = {}
        for name in set(specs) & set(arrays):
            parts = _parts(specs[name], arrays[name].numpy())
            for array in arrays_of(specs[name], self._layout.num_rows):
                part = parts[array.key]
                expected = (num, *array.shape[1:])
                if part is None or part.shape != expected or part.dtype != array.dtype:
                    got = "nothing" if part is None else f"{part.shape} {part.dtype}"
                    problems.append(f"{array.key}: expected {expected} {array.dtype}, got {got}")
                    continue
                contents[array.key] = np.zeros(
                    (self._layout.shard_rows, *array.shape[1:]), array.dtype
                )
                contents[array.key][:num] = part
        if problems:
            raise TargetMismatchError(f"shard {shard}: {'; '.join(sorted(problems))}.")
        return contents


def _object(array: ArraySpec, content: npt.NDArray[Any]) -> bytes:
    """Return the file of a shard; empty where all is fill value."""
    return encode_chunk(content) if array.inner_rows is None else encode_shard(content)


def _parts(
    spec: TargetSpec, encoded: Encoded[npt.NDArray[Any]]
) -> dict[str, npt.NDArray[Any] | None]:
    """Return an encoded batch by array key."""
    group = group_of(spec)
    region = encoded.region
    if region is not None:
        region = np.packbits(region.reshape(len(region), -1), axis=1, bitorder="little")
    return {
        f"{group}/values": encoded.values,
        f"{group}/scale": encoded.scale,
        f"{group}/region": region,
        f"{group}/count": encoded.count if is_set(spec) else None,
    }


class WriteQueue:
    """Writes shards on a background thread while the teacher computes the next.

    At most `depth` shards wait, so memory is flat. Use as a context manager: leaving it, also by
    Ctrl-C or an error, writes what was handed over; an error of the thread is raised in `put` or on
    leaving. What was handed over is not to be changed any more.
    """

    def __init__(self, writer: Writer, depth: int) -> None:
        self._writer = writer
        self._waiting: queue.Queue[tuple[int, dict[str, Encoded[Any]]] | None]
        self._waiting = queue.Queue(maxsize=depth)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="bevcask-writer", daemon=True)
        self.num_bytes = 0
        self.num_shards = 0

    def __enter__(self) -> "WriteQueue":
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._waiting.put(None)
        self._thread.join()
        if error is None and self._error is not None:
            raise self._error

    def put(self, shard: int, arrays: Mapping[str, Encoded[Any]]) -> None:
        """Hand over a shard; blocks while `depth` shards wait. CUDA tensors go to the host here.

        Raises:
            BevcaskError: writing an earlier shard failed.
        """
        if self._error is not None:
            raise self._error
        self._waiting.put((shard, {name: encoded.numpy() for name, encoded in arrays.items()}))

    def _work(self) -> None:
        """Write until told to stop; after an error go on taking, so that nobody waits for ever."""
        while (item := self._waiting.get()) is not None:
            if self._error is not None:
                continue
            try:
                self.num_bytes += self._writer.write(*item)
                self.num_shards += 1
            except BaseException as error:
                self._error = error
