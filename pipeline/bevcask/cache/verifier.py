"""Checking every stored byte of a cache against its digests."""

import hashlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from bevcask.cache.files import PARTIAL, Files
from bevcask.cache.layout import (
    NUM_COMMIT_BYTES,
    arrays_in_order,
    arrays_of,
    commit_key,
    group_of,
)
from bevcask.cache.lease import FOLDER as LEASES
from bevcask.cache.objects import Committed, decode_plain, open_json
from bevcask.cache.root import ADDITION, PROVENANCE, ROOT, read_root, split_commit
from bevcask.errors import CacheCorruptError
from bevcask.targets.spec import TargetSpec

_PIECE = 1 << 24
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


def verify(url: str, workers: int | None = None, progress: Progress | None = None) -> Report:
    """Hash every file of a cache and list what is damaged, missing or extra.

    Args:
        url: local path or fsspec URL.
        workers: threads that read and hash (hashing lets go of the interpreter); None: as many as
            `ThreadPoolExecutor` starts for this machine.
        progress: called with (bytes hashed, bytes in all) after each file.

    Raises:
        CacheIncompleteError: there is no cache.
        CacheIdentityError: another format or schema version.
    """
    files = Files(url)
    try:
        attributes = read_root(files)
    except CacheCorruptError:
        return Report(url, [Problem(ROOT, "does not match its own digest")], 1, 0)
    return _Check(files, attributes).run(workers, progress)


@dataclass(frozen=True)
class _Expected:
    """What a file must be; `length` is None where only the digest is known."""

    sha256: bytes
    length: int | None = None
    shard: int | None = None
    target: str | None = None


class _Check:
    """One run of `verify`."""

    def __init__(self, files: Files, attributes: Mapping[str, Any]) -> None:
        self._files = files
        self._digests: Mapping[str, str] = attributes["files"]
        self._id: str = attributes["id"]
        self._sealed = attributes["state"] == "sealed"
        self._digest = attributes["commit"]
        self._num_shards: int = attributes["num_shards"]
        specs = [TargetSpec.from_dict(spec) for spec in attributes["specs"]]
        num_rows = self._num_shards * attributes["shard_rows"]
        self._arrays = arrays_in_order(specs, num_rows)
        self._targets = tuple(spec.name for spec in specs)
        self._target = {a.key: spec.name for spec in specs for a in arrays_of(spec, num_rows)}
        self._problems: list[Problem] = []

    def run(self, workers: int | None, progress: Progress | None) -> Report:
        expected = {k: _Expected(bytes.fromhex(digest)) for k, digest in self._digests.items()}
        commit = self._commit()
        for shard, rows in commit.items():
            for array, row in zip(self._arrays, rows, strict=True):
                if row.length:
                    expected[array.object_key(shard)] = _Expected(
                        row.sha256, row.length, shard, self._target[array.key]
                    )
        commits = {commit_key(self._id, shard) for shard in range(self._num_shards)}
        runs = self._provenance()
        self._extra({ROOT, *runs, *commits, *expected}, commit)
        hashed = 0
        total = sum(known.length or 0 for known in expected.values())
        with ThreadPoolExecutor(workers) as pool:
            found = pool.map(self._hash, expected, [known.length for known in expected.values()])
            for (key, known), got in zip(expected.items(), found, strict=True):
                hashed += got.length if got else 0
                self._judge(key, known, got)
                if progress is not None:
                    progress(hashed, max(hashed, total))
        if progress is not None:
            progress(hashed, hashed)
        problems = sorted(self._problems, key=lambda problem: problem.key)
        return Report(
            self._files.url,
            problems,
            len(expected) + len(commit) + len(runs) + 1,
            hashed,
            self._targets,
        )

    def _hash(self, key: str, length: int | None) -> Committed | None:
        """Hash a file; large ones in pieces, so that memory does not follow the shard size."""
        if length is None or length <= _PIECE:
            data = self._files.get(key)
            return None if data is None else Committed.of(data)
        size = self._files.size(key)
        if size is None or size != length:
            return None if size is None else Committed(b"", size)
        total = hashlib.sha256()
        for start in range(0, size, _PIECE):
            piece = self._files.get_range(key, start, min(start + _PIECE, size))
            if piece is None:
                return None
            total.update(piece)
        return Committed(total.digest(), size)

    def _judge(self, key: str, known: _Expected, got: Committed | None) -> None:
        what = None
        if got is None:
            what = "missing"
        elif known.length is not None and got.length != known.length:
            what = f"expected {known.length} bytes, got {got.length}"
        elif got.sha256 != known.sha256:
            what = "bytes differ from what was committed"
        if what is not None:
            self._add(key, what, known.shard, known.target)

    def _commit(self) -> dict[int, list[Committed]]:
        """Return the commit of every shard that has a readable one."""
        width = NUM_COMMIT_BYTES * len(self._arrays)
        rows: dict[int, bytes] = {}
        chunks = self._files.get_many(
            commit_key(self._id, shard) for shard in range(self._num_shards)
        )
        for shard, (key, data) in enumerate(chunks.items()):
            if data is None:
                if self._sealed:
                    self._add(key, "missing", shard)
                continue
            try:
                rows[shard] = decode_plain(data, width, key)
            except CacheCorruptError:
                self._add(
                    key, "checksum or length does not match; its shard cannot be checked", shard
                )
        whole = len(rows) == self._num_shards
        if not self._sealed:
            self._add(ROOT, f"not sealed: {len(rows)} of {self._num_shards} shards are committed")
        elif whole and hashlib.sha256(b"".join(rows.values())).hexdigest() != self._digest:
            self._add("commit", "does not match the digest in zarr.json")
        return {shard: split_commit(data) for shard, data in rows.items()}

    def _provenance(self) -> set[str]:
        """Check what every run said of itself; return the keys."""
        runs = {key for key in self._files.list("provenance") if key.endswith("/zarr.json")}
        for key, data in self._files.get_many({PROVENANCE, *runs}).items():
            if data is None:
                self._add(key, "missing")
                continue
            try:
                open_json(data, key)
            except CacheCorruptError:
                self._add(key, "does not match its own digest")
        return {PROVENANCE, *runs}

    def _extra(self, expected: set[str], commit: Mapping[int, list[Committed]]) -> None:
        """Report files nobody committed; a shard without a readable commit is no matter of this."""
        unfinished = {
            array.object_key(shard)
            for shard in set(range(self._num_shards)) - set(commit)
            for array in self._arrays
        }
        added = (f"{LEASES}/", *self._being_added())
        for key in self._files.list():
            leftover = key.endswith(PARTIAL) and (len(added) > 1 or not self._sealed)
            if not (key in expected or key in unfinished or leftover or key.startswith(added)):
                self._add(key, "extra: nobody committed it")

    def _being_added(self) -> list[str]:
        """Return how the keys of targets that are being added begin; none where nothing is."""
        if self._files.get(ADDITION) is None:
            return []
        try:
            pending = read_root(self._files, ADDITION)
        except CacheCorruptError:
            self._add(ADDITION, "does not match its own digest")
            return ["addition/"]
        specs = [TargetSpec.from_dict(spec) for spec in pending["specs"]]
        groups = [group_of(spec) for spec in specs if spec.name not in self._targets]
        parents = [f"{group.partition('/')[0]}/zarr.json" for group in groups]
        return ["addition/", "commit/", *(f"{group}/" for group in groups), *parents]

    def _add(
        self, key: str, what: str, shard: int | None = None, target: str | None = None
    ) -> None:
        self._problems.append(Problem(key, what, shard, target))
