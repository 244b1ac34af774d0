"""Putting back single arrays of single shards of a sealed cache; nothing else is touched."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from bevcask.cache.commit import encode_row
from bevcask.cache.files import Files
from bevcask.cache.layout import commit_key
from bevcask.cache.lease import Lease, holding_small_files
from bevcask.cache.objects import Each, Pieces, ShardObjects
from bevcask.cache.reader import Cache
from bevcask.cache.run import Run
from bevcask.cache.seal import seal, unseal
from bevcask.cache.tidy import remove_partials, tidy
from bevcask.errors import CacheIncompleteError, ConfigError, UnknownNameError
from bevcask.registry import suggest
from bevcask.targets.spec import TargetSpec

_log = logging.getLogger(__name__)


def read_list(path: Path) -> dict[int, set[str]]:
    """Read what `bevcask verify URL repair=FILE` wrote: one JSON object a line.

    Returns:
        Shard -> names of the targets to write again.

    Raises:
        ConfigError: no such file, or a line without `shard` (a number) and `target` (a name).
    """
    wanted: dict[int, set[str]] = {}
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"repair={path}: cannot be read ({error}). Make it with `bevcask verify URL "
            f"repair={path}`."
        ) from error
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line)
            shard, target = entry["shard"], entry["target"]
        except (ValueError, KeyError, TypeError):
            shard = target = None
        if type(shard) is not int or not isinstance(target, str):
            raise ConfigError(
                f'repair={path}, line {number}: expected {{"shard": NUMBER, "target": NAME, ...}}, '
                f"got {line[:80]!r}. Make the list with `bevcask verify URL repair={path}`."
            )
        wanted.setdefault(shard, set()).add(target)
    return wanted


class Repairer:
    """Writes listed targets of listed shards again. Use as a context manager.

    Where the teacher says what was committed, the objects are put back and that is all. Where it
    says something else (what had been committed was wrong), the shard's commit and the seal change
    too; in between the cache is unsealed, so that nobody reads half of it. A commit that is damaged
    is put back at the end; all targets of its shard are written then, listed or not.

    Args:
        cache: opened leniently: a sealed cache, or one that lacks nothing but listed shards.
        wanted: shard -> target names, see `read_list`.
        made: what is recorded of this run (`provenance`, `plan`).

    Raises:
        ConfigError: a shard the cache does not have.
        UnknownNameError: a target the cache does not have.
        CacheIncompleteError: other shards than those listed are missing.
        CacheCorruptError: there are symbolic links.
    """

    def __init__(
        self, cache: Cache, wanted: Mapping[int, set[str]], made: Mapping[str, Any]
    ) -> None:
        self._cache = cache
        self._layout = cache.layout
        self._files = Files(cache.url)
        self._wanted = {shard: sorted(wanted[shard]) for shard in sorted(wanted)}
        self._check()
        self._lease = Lease(self._files, range(self._layout.num_shards), "repair")
        self._run = Run(self._files, made)
        self._mended: dict[int, bytes] = {}  # commits that were damaged
        self._open = not cache.sealed  # by a repair that was killed, or by this one
        self.changed: list[int] = []
        """Shards whose bytes are not those that had been committed."""

    def _check(self) -> None:
        url, num = self._cache.url, self._layout.num_shards
        self._files.require_no_links()
        if set(self._cache.commit.missing) - self._wanted.keys() and not self._cache.sealed:
            raise CacheIncompleteError(
                f"cache {url} is not sealed. Run teacher-extract without repair= to complete it."
            )
        for shard, names in self._wanted.items():
            if not 0 <= shard < num:
                raise ConfigError(f"cache {url} has shards 0 to {num - 1}, the list names {shard}.")
            for name in names:
                if name not in self._cache.specs:
                    raise UnknownNameError(
                        f"cache {url} has no target {name!r}.{suggest(name, self._cache.specs)} "
                        f"Known: {', '.join(self._cache.specs)}."
                    )
            if shard not in self._cache.commit:
                self._wanted[shard] = sorted(self._cache.specs)

    @property
    def specs(self) -> list[TargetSpec]:
        """Every target that is listed for some shard."""
        names = {name for names in self._wanted.values() for name in names}
        return [spec for name, spec in self._cache.specs.items() if name in names]

    @property
    def cache(self) -> Cache:
        """The cache as it was when it was opened."""
        return self._cache

    def missing(self) -> list[int]:
        """Return the listed shards, in order."""
        return list(self._wanted)

    def tokens(self, shard: int) -> list[str]:
        """Return the sample tokens of a shard, in row order, without pad rows."""
        return self._layout.tokens_of(shard)

    def __enter__(self) -> "Repairer":
        self._lease.claim()
        try:
            with holding_small_files(self._files, "tidying"):
                tidy(self._files)
                remove_partials(self._files)
            shards = self.missing()
            targets = [spec.key for spec in self.specs]
            self._run.begin(range(min(shards), max(shards) + 1), targets)
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
        try:
            if error is None:
                self._seal_again()
                self._run.end(len(self._wanted))
        finally:
            self._lease.release()

    def write(self, shard: int, arrays: Mapping[str, Pieces]) -> int:
        """Write the listed targets of one shard again; others among `arrays` are left out.

        Returns:
            Bytes written.

        Raises:
            TargetMismatchError: a target is missing, or of the wrong shape or dtype.
            DiskFullError: the disk is full; every object is the old or the new one.
        """
        return self.commit(shard, self.encode(shard, arrays))

    def encode(self, shard: int, arrays: Mapping[str, Pieces], each: Each = map) -> ShardObjects:
        """Begin with the listed files of a shard, which `commit` takes; see `ShardObjects`.

        Raises:
            TargetMismatchError: see `write`.
        """
        names = self._wanted[shard]
        said = {name: arrays[name] for name in names if name in arrays}
        return ShardObjects(self._layout, names, shard, said, each)

    def commit(self, shard: int, encoded: ShardObjects) -> int:
        """Wait for the files of a shard and put them in their places; return their bytes.

        Raises:
            DiskFullError: see `write`.
        """
        objects, new = encoded.wait()
        self._lease.check()
        keys = [array.key for array in self._layout.arrays]
        known = shard in self._cache.commit
        old = dict(zip(keys, self._cache.commit[shard], strict=True)) if known else {}
        chunk = encode_row([{**old, **new}[key] for key in keys])
        key = commit_key(self._cache.id, shard)
        changed = any(old[name] != row for name, row in new.items() if known)
        if changed:
            _log.warning("shard %d: the teacher says other bytes than were committed", shard)
            self._unseal()
            self.changed.append(shard)
            self._files.delete(key)
        elif not known:
            self._mended[shard] = chunk
        self._put(shard, objects)
        if self._open and (changed or not known):
            self._files.put(key, chunk)
        return sum(map(len, objects.values()))

    def _put(self, shard: int, objects: Mapping[str, bytes]) -> None:
        places = {a.key: a.object_key(shard) for a in self._layout.arrays if a.key in objects}
        self._files.put_many({places[key]: data for key, data in objects.items() if data})
        for key, data in objects.items():
            if not data:
                self._files.delete(places[key])

    def _unseal(self) -> None:
        if not self._open:
            with holding_small_files(self._files, "unsealing"):
                unseal(self._cache, self._chunks())
            self._open = True

    def _chunks(self) -> dict[int, bytes]:
        return {**self._cache.commit.chunks(), **self._mended}

    def _seal_again(self) -> None:
        """Seal what was unsealed, or put a damaged commit back, if no shard is without one."""
        if self._cache.commit.intact and not self._open:
            return
        now = Cache(self._cache.url, allow_unsealed=True, lenient=True)
        chunks = {**now.commit.chunks(), **self._mended}
        if len(chunks) == self._layout.num_shards:
            with holding_small_files(self._files, "sealing"):
                seal(now, [chunks[shard] for shard in sorted(chunks)])
