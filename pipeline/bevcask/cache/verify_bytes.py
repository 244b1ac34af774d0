"""Checking every stored byte of a cache against its digests."""

import itertools
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from bevcask.cache.commit import Commit, Committed
from bevcask.cache.files import Files
from bevcask.cache.layout import (
    arrays_in_order,
    arrays_of,
    commit_array,
    commit_key,
    group_of,
    open_array,
    packed_key,
    shard_of,
)
from bevcask.cache.lease import FOLDER as LEASES
from bevcask.cache.metadata import ADDITION, PROVENANCE, ROOT, open_json, read_root
from bevcask.cache.reader import open_cache
from bevcask.cluster import Workers
from bevcask.errors import CacheCorruptError, CacheIdentityError, StoreError
from bevcask.paths import PARTIAL
from bevcask.targets.spec import TargetSpec
from bevcask.worker import kept

_PORTION = 1 << 23
_FAR_PORTION = 1 << 27  # for another process
_SHARDS = 64
_CHANGED = "bytes differ from what was committed"
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Problem:
    """One thing that is not as it should be.

    Attributes:
        key: where, below the cache.
        what: what is wrong with it.
        shard: the shard it lies in; None for metadata.
        target: the target it belongs to; None where every target of the shard is concerned.
        token: the sample token; None where the whole shard is concerned.
    """

    key: str
    what: str
    shard: int | None = None
    target: str | None = None
    token: str | None = None


@dataclass(frozen=True)
class Report:
    """What `verify` found.

    Attributes:
        url: the cache.
        problems: by key; empty if all is well.
        num_files: files looked at.
        num_bytes: bytes hashed.
        targets: the targets of the cache; empty where the metadata cannot be read.
    """

    url: str
    problems: list[Problem]
    num_files: int
    num_bytes: int
    targets: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return {**asdict(self), "ok": self.ok}


def verify(
    url: str,
    workers: int | None = None,
    progress: Progress | None = None,
    cluster: Workers | None = None,
) -> Report:
    """Hash every file of a cache and list what is damaged, missing or extra.

    Args:
        url: local path or fsspec URL.
        workers: threads that read and hash (hashing lets go of the interpreter); None: as many as
            `ThreadPoolExecutor` starts for this machine.
        progress: called with (bytes hashed, bytes in all) after each file.
        cluster: reads and hashes the shards instead of threads here.

    Raises:
        CacheIncompleteError: there is no cache.
        CacheIdentityError: another format or schema version.
        StoreError: the root cannot be read.
    """
    files = Files(url)
    if links := files.links():
        return Report(
            url, [Problem(key, "a symbolic link: nothing is checked") for key in links], 0, 0
        )
    try:
        attributes = read_root(files)
    except CacheCorruptError as error:
        return Report(url, [Problem(ROOT, str(error))], 1, 0)
    return _Check(files, attributes).run(workers, progress, cluster)


class _Check:
    """One run of `verify`."""

    def __init__(self, files: Files, attributes: Mapping[str, Any]) -> None:
        self._files = files
        self._digests: Mapping[str, str] = attributes["files"]
        self._id: str = attributes["id"]
        self._sealed = attributes["state"] == "sealed"
        self._num_shards: int = attributes["num_shards"]
        specs = [TargetSpec.from_dict(spec) for spec in attributes["specs"]]
        num_rows = self._num_shards * attributes["shard_rows"]
        self._arrays = arrays_in_order(specs, num_rows)
        self._number = {array.key: number for number, array in enumerate(self._arrays)}
        self._targets = tuple(spec.key for spec in specs)
        self._target = {a.key: spec.key for spec in specs for a in arrays_of(spec, num_rows)}
        self._commit = Commit(files, attributes, len(self._arrays), lenient=True)
        self._problems: list[Problem] = []

    def run(
        self, workers: int | None, progress: Progress | None, cluster: Workers | None
    ) -> Report:
        self._judge_commit()
        runs = self._provenance()
        self._extra(runs)
        hashed, lengths_SA = 0, self._commit.lengths_SA
        total = int(lengths_SA.sum())
        with ThreadPoolExecutor(workers) as pool:
            small = pool.map(self._check_small, list(self._digests))
            if cluster is None:
                shards = pool.map(self.check_shards, _portions(self._num_shards, total))
            else:
                work = partial(_check_there, self._files.url, cluster.run)
                pieces = _portions(self._num_shards, total, _FAR_PORTION)
                shards = cluster.map(work, pieces)
            for problems, num_bytes in itertools.chain(small, shards):
                self._problems += problems
                hashed += num_bytes
                if progress is not None:
                    progress(hashed, max(hashed, total))
        if progress is not None:
            progress(hashed, hashed)
        self._judge_root()
        commits = 1 if self._sealed else len(self._commit)
        return Report(
            self._files.url,
            sorted(self._problems, key=lambda problem: problem.key),
            len(self._digests) + int(np.count_nonzero(lengths_SA)) + commits + len(runs) + 1,
            hashed,
            self._targets,
        )

    def _check_small(self, key: str) -> tuple[list[Problem], int]:
        """Return what is wrong with a file that the root vouches for, and its bytes."""
        found, what = self._digest(key)
        if found is None:
            return [Problem(key, what)], 0
        sha256, length = found
        same = sha256.hex() == self._digests[key]
        return [] if same else [Problem(key, _CHANGED)], length

    def _digest(self, key: str) -> tuple[tuple[bytes, int] | None, str]:
        """Return SHA-256 and length of a file; or None, and what came in the way."""
        try:
            return self._files.digest(key), "missing"
        except (StoreError, CacheCorruptError) as error:
            return None, f"cannot be read: {error}"

    def check_shards(self, shards: range) -> tuple[list[Problem], int]:
        """Return what is wrong with the objects of some shards, and their bytes."""
        problems, num_bytes = [], 0
        for shard in shards:
            if shard not in self._commit:
                continue
            for array, known in zip(self._arrays, self._commit[shard], strict=True):
                if known.length == 0:
                    continue
                key = array.object_key(shard)
                found, what = self._digest(key)
                num_bytes += found[1] if found else 0
                if found != (known.sha256, known.length):
                    what = _difference(known, found[1]) if found else what
                    problems.append(Problem(key, what, shard, self._target[array.key]))
        return problems, num_bytes

    def _judge_commit(self) -> None:
        """Report what is wrong with the commits; their shards cannot be checked."""
        if not self._sealed:
            done = f"{len(self._commit)} of {self._num_shards}"
            self._add(ROOT, f"not sealed: {done} shards are committed")
        key = packed_key(self._id)
        what = "checksum or length does not match; its shard cannot be checked"
        if self._sealed and self._digest(key)[0] is None:
            what = self._digest(key)[1]
        for shard in self._commit.damaged:
            self._add(key if self._sealed else commit_key(self._id, shard), what, shard)
        if not (self._commit.intact or self._commit.damaged):
            self._add(key, "its index does not match", self._num_shards - 1)

    def _judge_root(self) -> None:
        """Report a root whose parts do not follow from each other, where all of them are whole."""
        if any(problem.key != ROOT for problem in self._problems):
            return
        try:
            open_cache(self._files.url, allow_unsealed=True)
        except (CacheCorruptError, CacheIdentityError) as error:
            self._add(ROOT, str(error))

    def _provenance(self) -> set[str]:
        """Check what every run said of itself; return the keys."""
        runs = {key for key in self._list("provenance") if key.endswith("/zarr.json")}
        for key in {PROVENANCE, *runs}:
            try:
                data = self._files.get(key)
                if data is None:
                    self._add(key, "missing")
                else:
                    open_json(data, key)
            except CacheCorruptError:
                self._add(key, "does not match its own digest")
            except StoreError as error:
                self._add(key, f"cannot be read: {error}")
        return {PROVENANCE, *runs}

    def _list(self, below: str) -> list[str]:
        """Return the keys of the cache or of one folder; a folder that cannot be read is said."""
        found: list[str] = []
        try:
            for key in self._files.list(below):
                found.append(key)
        except StoreError as error:
            self._add(below or ROOT, f"cannot be listed: {error}")
        return found

    def _extra(self, runs: set[str]) -> None:
        """Report files nobody committed; a shard without a readable commit is no matter of this."""
        own = {ROOT, packed_key(self._id), f"{commit_array(self._id)}/zarr.json"}
        expected = {*own, *runs, *self._digests}
        added = (f"{LEASES}/", f"{open_array(self._id)}/", *self._being_added())
        unfinished = not self._sealed or ADDITION.partition("/")[0] + "/" in added
        for key in self._list(""):
            leftover = key.endswith(PARTIAL) and unfinished
            if not (key in expected or leftover or key.startswith(added) or self._lawful(key)):
                self._add(key, "extra: nobody committed it")

    def _lawful(self, key: str) -> bool:
        """Tell whether a key is that of a committed object, or of a shard that is no such yet."""
        folder, _, name = key.rpartition("/")
        number, shard = self._number.get(folder), shard_of(name)
        if number is None or shard is None or shard >= self._num_shards:
            return False
        committed = shard in self._commit
        lawful = not committed or self._commit.lengths_SA[shard, number] > 0
        return bool(lawful and key == self._arrays[number].object_key(shard))

    def _being_added(self) -> list[str]:
        """Return how the keys of targets that are being added begin; none where nothing is."""
        if self._files.get(ADDITION) is None:
            return []
        try:
            pending = read_root(self._files, ADDITION)
        except (CacheCorruptError, CacheIdentityError) as error:
            self._add(ADDITION, str(error))
            return ["addition/"]
        specs = [TargetSpec.from_dict(spec) for spec in pending["specs"]]
        groups = [group_of(spec) for spec in specs if spec.key not in self._targets]
        parents = [f"{group.partition('/')[0]}/zarr.json" for group in groups]
        return ["addition/", "commit/", *(f"{group}/" for group in groups), *parents]

    def _add(
        self, key: str, what: str, shard: int | None = None, target: str | None = None
    ) -> None:
        self._problems.append(Problem(key, what, shard, target))


def _check_there(url: str, run: str, shards: range) -> tuple[list[Problem], int]:
    def open_check() -> _Check:
        files = Files(url)
        return _Check(files, read_root(files))

    return kept(run, "bytes", open_check).check_shards(shards)


def _portions(num_shards: int, num_bytes: int, portion: int = _PORTION) -> list[range]:
    """Return all shards in runs of about a portion of bytes: few enough to wait in a queue."""
    step = max(1, min(_SHARDS, portion * num_shards // max(1, num_bytes)))
    return [range(first, min(first + step, num_shards)) for first in range(0, num_shards, step)]


def _difference(known: Committed, length: int) -> str:
    return _CHANGED if length == known.length else f"expected {known.length} bytes, got {length}"
