"""Reading committed shards: what is asked for together is fetched together, and all is checked.

An index and a row's chunk by crc32c, and that this checksum was committed for this row; whole
chunks (scales, regions, counts) by their SHA-256.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from math import prod
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bevcask.cache.chunks import (
    REPAIR,
    decode_chunk,
    decode_index,
    decode_into,
    index_bytes,
    largest_chunk,
)
from bevcask.cache.commit import Commit, Committed
from bevcask.cache.files import Files, Span
from bevcask.cache.layout import ArraySpec, Layout
from bevcask.cache.near import Near, NearCopy
from bevcask.errors import CacheCorruptError

_RECENT_BYTES = 1 << 26
_NO_ROW = -1


class Part(NamedTuple):
    """One array of one shard: an object."""

    array: ArraySpec
    shard: int

    @property
    def key(self) -> str:
        return self.array.object_key(self.shard)

    @property
    def sharded(self) -> bool:
        return self.array.inner_rows is not None


class Stored:
    """The committed objects of a cache. Several threads may read.

    Args:
        files: the cache.
        layout: which objects there are.
        commit: what vouches for them.
        near: where copies are kept; None for nowhere.
    """

    def __init__(self, files: Files, layout: Layout, commit: Commit, near: Near | None) -> None:
        self._files = files
        self._layout = layout
        self._commit = commit
        self._near = None if near is None else NearCopy(files, near)
        self._number = {array.key: number for number, array in enumerate(layout.arrays)}
        self._recent = _Recent(_RECENT_BYTES, self._fetch_whole)

    def read(
        self,
        rows: Sequence[tuple[Part, int, npt.NDArray[Any]]],
        parts: Iterable[Part],
    ) -> Mapping[Part, npt.NDArray[Any]]:
        """Fill rows, and return whole chunks.

        Args:
            rows: (part of a sharded array, row of the shard, where its values go).
            parts: those of other arrays.

        Raises:
            CacheCorruptError: bytes are damaged, missing or not those that were committed.
        """
        wanted = list(parts)
        try:
            return self._read(rows, wanted)
        except CacheCorruptError:
            if self._near is None:
                raise
            self._forget([*wanted, *(part for part, _, _ in rows)])
        try:
            return self._read(rows, wanted)  # from the store alone: a copy may be the damaged one
        except CacheCorruptError:
            self._forget([*wanted, *(part for part, _, _ in rows)])
            raise

    def _read(
        self, rows: Sequence[tuple[Part, int, npt.NDArray[Any]]], parts: Sequence[Part]
    ) -> Mapping[Part, npt.NDArray[Any]]:
        known = self._recent.get([*parts, *(part for part, _, _ in rows)])
        there: list[tuple[Part, int, npt.NDArray[Any]]] = []
        spans: list[Span] = []
        for part, place, out in rows:
            start, stop = known[part][place].tolist()
            if start == _NO_ROW:
                out[...] = 0
            else:
                there.append((part, place, out))
                spans.append(self._span(part, start, stop))
        for (part, place, out), data in zip(there, self._fetch(spans), strict=True):
            self._row(part, place, data, out)
        return known

    def _row(self, part: Part, place: int, data: bytes, out: npt.NDArray[Any]) -> None:
        checksum = self._checksum(part, place)
        if data[-len(checksum) :] != checksum:
            raise self._another(part)
        decode_into(out, data, self._where(part))

    def _checksum(self, part: Part, place: int) -> bytes:
        return self._entry(part).rows[4 * place : 4 * place + 4]

    def _forget(self, parts: Iterable[Part]) -> None:
        assert self._near is not None
        self._recent.clear()
        for part in dict.fromkeys(parts):
            self._near.forget(self._entry(part).sha256)

    def _fetch(self, spans: Sequence[Span]) -> Iterator[bytes]:
        source = self._files if self._near is None else self._near
        for span, data in zip(spans, source.get_ranges(spans), strict=True):
            if data is None:
                raise CacheCorruptError(
                    f"{self._files.url}/{span.key}: committed, but gone. {REPAIR}"
                )
            yield data

    def _span(self, part: Part, start: int, stop: int) -> Span:
        return Span(part.key, start, stop, self._entry(part).sha256)

    def _fetch_whole(self, parts: Sequence[Part]) -> list[npt.NDArray[Any]]:
        """Return whole chunks; of sharded arrays where their rows are: int64 (row, start/stop)."""
        there = [part for part in parts if self._entry(part).length]
        spans = [
            self._index_span(part) if part.sharded else self._chunk_span(part) for part in there
        ]
        found = {}
        for part, span, data in zip(there, spans, self._fetch(spans), strict=True):
            whole = self._index(part, span.start, data) if part.sharded else self._chunk(part, data)
            found[part] = whole
        return [found[part] if part in found else self._nothing(part) for part in parts]

    def _nothing(self, part: Part) -> npt.NDArray[Any]:
        if part.sharded:
            return np.full((self._layout.shard_rows, 2), _NO_ROW)
        return np.zeros(self._shape(part), part.array.dtype)

    def _index_span(self, part: Part) -> Span:
        length = self._entry(part).length
        return self._span(part, max(0, length - index_bytes(self._layout.shard_rows)), length)

    def _chunk_span(self, part: Part) -> Span:
        size = np.dtype(part.array.dtype).itemsize * prod(self._shape(part))
        return self._span(part, 0, min(self._entry(part).length, largest_chunk(size)) + 1)

    def _index(self, part: Part, end: int, data: bytes) -> npt.NDArray[np.int64]:
        spans = decode_index(data, self._layout.shard_rows, end, self._where(part))
        size = np.dtype(part.array.dtype).itemsize * prod(part.array.shape[1:])
        for place, span in enumerate(spans):
            if span is None:
                wrong = any(self._checksum(part, place))
            else:
                wrong = span[1] - span[0] > largest_chunk(size)
            if wrong:
                raise self._another(part)
        return np.array([span or (_NO_ROW, _NO_ROW) for span in spans])

    def _chunk(self, part: Part, data: bytes) -> npt.NDArray[Any]:
        if not self._entry(part).holds(data):
            raise self._another(part)
        return decode_chunk(data, self._shape(part), part.array.dtype, self._where(part))

    def _shape(self, part: Part) -> tuple[int, ...]:
        return (self._layout.shard_rows, *part.array.shape[1:])

    def _entry(self, part: Part) -> Committed:
        return self._commit.entry(part.shard, self._number[part.array.key])

    def _where(self, part: Part) -> str:
        return f"{self._files.url}/{part.key}"

    def _another(self, part: Part) -> CacheCorruptError:
        return CacheCorruptError(
            f"{self._where(part)}: not the bytes that were committed: damaged, or those of another "
            f"shard or of an older version. `bevcask verify {self._files.url}` lists what is. "
            f"{REPAIR}"
        )


class _Recent:
    """What was read last; what is missing of a request is fetched at once."""

    def __init__(
        self, num_bytes: int, fetch: Callable[[Sequence[Part]], list[npt.NDArray[Any]]]
    ) -> None:
        self._room = num_bytes
        self._fetch = fetch
        self._held: dict[Part, npt.NDArray[Any]] = {}  # the longest unused first
        self._lock = Lock()

    def get(self, parts: Iterable[Part]) -> dict[Part, npt.NDArray[Any]]:
        wanted = list(dict.fromkeys(parts))
        with self._lock:
            found = {part: self._held.pop(part) for part in wanted if part in self._held}
            self._held |= found
        missing = [part for part in wanted if part not in found]
        if missing:
            new = dict(zip(missing, self._fetch(missing), strict=True))
            found |= new
            with self._lock:
                for part, array in new.items():
                    self._room -= 0 if part in self._held else array.nbytes
                    self._held[part] = array
                while self._room < 0:
                    self._room += self._held.pop(next(iter(self._held))).nbytes
        return found

    def clear(self) -> None:
        with self._lock:
            self._room += sum(array.nbytes for array in self._held.values())
            self._held.clear()
