"""Checking every stored byte of a cache against its digests."""

import hashlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from bevcask.cache.files import PARTIAL, Files
from bevcask.cache.layout import NUM_COMMIT_BYTES, arrays_in_order, commit_key
from bevcask.cache.objects import Committed, decode_plain, open_json
from bevcask.cache.reader import read_root, split_commit
from bevcask.errors import CacheCorruptError
from bevcask.targets.spec import TargetSpec

_ROOT = "zarr.json"
_PROVENANCE = "provenance/zarr.json"


@dataclass(frozen=True)
class Problem:
    """One thing that is not as committed: a key below the cache, and what is wrong with it."""

    key: str
    what: str


@dataclass(frozen=True)
class Report:
    """What `verify` found.

    Attributes:
        url: the cache.
        problems: by key; empty if all is well.
        num_files: files looked at.
        num_bytes: bytes hashed.
    """

    url: str
    problems: list[Problem]
    num_files: int
    num_bytes: int

    @property
    def ok(self) -> bool:
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return {**asdict(self), "ok": self.ok}


def verify(
    url: str, workers: int = 2, progress: Callable[[int, int], None] | None = None
) -> Report:
    """Hash every file of a cache and list what is damaged, missing or extra.

    Args:
        url: local path or fsspec URL.
        workers: threads that read and hash.
        progress: called with (files done, files in all).

    Raises:
        CacheIncompleteError: there is no cache.
        CacheIdentityError: another format or schema version.
    """
    files = Files(url)
    try:
        attributes = read_root(files)
    except CacheCorruptError:
        return Report(url, [Problem(_ROOT, "does not match its own digest")], 1, 0)
    return _Check(files, attributes).run(workers, progress)


class _Check:
    """One run of `verify`."""

    def __init__(self, files: Files, attributes: Mapping[str, Any]) -> None:
        self._files = files
        self._digests: Mapping[str, str] = attributes["files"]
        self._sealed = attributes["state"] == "sealed"
        self._digest = attributes["commit"]
        self._num_shards: int = attributes["num_shards"]
        specs = [TargetSpec.from_dict(spec) for spec in attributes["specs"]]
        self._arrays = arrays_in_order(specs, self._num_shards * attributes["shard_rows"])
        self._problems: list[Problem] = []

    def run(self, workers: int, progress: Callable[[int, int], None] | None) -> Report:
        expected: dict[str, bytes] = {
            key: bytes.fromhex(digest) for key, digest in self._digests.items()
        }
        lengths: dict[str, int] = {}
        commit = self._commit()
        for shard, rows in commit.items():
            for array, row in zip(self._arrays, rows, strict=True):
                if row.length:
                    expected[array.object_key(shard)] = row.sha256
                    lengths[array.object_key(shard)] = row.length
        self._provenance()
        self._extra(
            {_ROOT, _PROVENANCE, *map(commit_key, range(self._num_shards)), *expected}, commit
        )
        total = 0
        with ThreadPoolExecutor(workers) as pool:
            found = pool.map(self._hash, expected)
            for done, (key, got) in enumerate(zip(expected, found, strict=True), start=1):
                total += got.length if got else 0
                self._judge(key, expected[key], lengths.get(key), got)
                if progress is not None:
                    progress(done, len(expected))
        problems = sorted(self._problems, key=lambda problem: problem.key)
        return Report(self._files.url, problems, len(expected) + len(commit) + 2, total)

    def _hash(self, key: str) -> Committed | None:
        data = self._files.get(key)
        return None if data is None else Committed.of(data)

    def _judge(self, key: str, sha256: bytes, length: int | None, got: Committed | None) -> None:
        if got is None:
            self._add(key, "missing")
        elif length is not None and got.length != length:
            self._add(key, f"expected {length} bytes, got {got.length}")
        elif got.sha256 != sha256:
            self._add(key, "bytes differ from what was committed")

    def _commit(self) -> dict[int, list[Committed]]:
        """Return the commit of every shard that has a readable one."""
        width = NUM_COMMIT_BYTES * len(self._arrays)
        rows: dict[int, bytes] = {}
        for shard in range(self._num_shards):
            key = commit_key(shard)
            data = self._files.get(key)
            if data is None:
                if self._sealed:
                    self._add(key, "missing")
                continue
            try:
                rows[shard] = decode_plain(data, width, key)
            except CacheCorruptError:
                self._add(key, "checksum or length does not match; its shard cannot be checked")
        whole = len(rows) == self._num_shards
        if not self._sealed:
            self._add(_ROOT, f"not sealed: {len(rows)} of {self._num_shards} shards are committed")
        elif whole and hashlib.sha256(b"".join(rows.values())).hexdigest() != self._digest:
            self._add("commit", "does not match the digest in zarr.json")
        return {shard: split_commit(data) for shard, data in rows.items()}

    def _provenance(self) -> None:
        data = self._files.get(_PROVENANCE)
        if data is None:
            self._add(_PROVENANCE, "missing")
            return
        try:
            open_json(data, _PROVENANCE)
        except CacheCorruptError:
            self._add(_PROVENANCE, "does not match its own digest")

    def _extra(self, expected: set[str], commit: Mapping[int, list[Committed]]) -> None:
        """Report files nobody committed; a shard without a readable commit is no matter of this."""
        unfinished = {
            array.object_key(shard)
            for shard in set(range(self._num_shards)) - set(commit)
            for array in self._arrays
        }
        for key in self._files.list():
            leftover = key.endswith(PARTIAL) and not self._sealed
            if key not in expected and key not in unfinished and not leftover:
                self._add(key, "extra: nobody committed it")

    def _add(self, key: str, what: str) -> None:
        self._problems.append(Problem(key, what))
