"""What vouches for the shards: an object each while a cache is filled, one for all when sealed.

A shard's chunk is an entry an array and a crc32c. The packed object is those chunks one after the
other, and the index that makes a Zarr shard of them.
"""

import hashlib
import struct
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bevcask.cache.chunks import (
    REPAIR,
    chunk_bytes,
    decode_plain,
    encode_plain,
    index_bytes,
    row_checksums,
)
from bevcask.cache.files import Files
from bevcask.cache.layout import (
    ArraySpec,
    Layout,
    commit_array,
    commit_bytes,
    commit_key,
    open_array,
    packed_key,
    shard_of,
)
from bevcask.errors import CacheCorruptError, StoreError

_PIECE = 1 << 22
_LARGEST = 1 << 48


class Committed(NamedTuple):
    """What the commit says about one shard object.

    Attributes:
        sha256: of its bytes.
        length: of its bytes; 0 = no object.
        rows: the CRC-32C of every row's chunk, so that a row tells whose it is without a hash of
            the whole object; zeros where there is none, and where the object is one chunk.
    """

    sha256: bytes
    length: int
    rows: bytes

    def to_bytes(self) -> bytes:
        return self.sha256 + struct.pack("<Q", self.length) + self.rows

    @classmethod
    def from_bytes(cls, data: bytes) -> "Committed":
        return cls(data[:32], struct.unpack("<Q", data[32:40])[0], data[40:])

    @classmethod
    def of(cls, data: bytes, array: ArraySpec, shard_rows: int) -> "Committed":
        """Return the entry of a whole object.

        Raises:
            CacheCorruptError: it is no shard of that array.
        """
        rows = b"" if array.inner_rows is None else data
        checksums = row_checksums(rows, shard_rows, array.key)
        return cls(hashlib.sha256(data).digest(), len(data), checksums)

    def holds(self, data: bytes) -> bool:
        """Tell whether some bytes are those of the object."""
        return len(data) == self.length and hashlib.sha256(data).digest() == self.sha256


class Commit:
    """Which shards are committed, and with what; held in memory, for files may be replaced.

    Attributes:
        present_S: bool (shard,).
        damaged: shards whose commit is not what was written; empty unless opened leniently.
        intact: False if anything of the one object of a sealed cache is not what was written.
    """

    def __init__(
        self,
        files: Files,
        attributes: Mapping[str, Any],
        num_arrays: int,
        lenient: bool = False,
    ) -> None:
        """Read what is committed now.

        Args:
            files: the cache.
            attributes: of its root.
            num_arrays: arrays that are written shard by shard.
            lenient: take a commit that cannot be read for absent.

        Raises:
            CacheCorruptError: a commit is damaged, or that of a sealed cache missing.
        """
        num_shards: int = attributes["num_shards"]
        self._files = files
        self._id: str = attributes["id"]
        self._sealed: bool = attributes["state"] == "sealed"
        self._lenient = lenient
        self.damaged: list[int] = []
        self.intact = True
        self.present_S = np.zeros(num_shards, bool)
        width = commit_bytes(attributes["shard_rows"])
        self._entries_SAB = np.zeros((num_shards, num_arrays, width), np.uint8)
        self._row = num_arrays * width
        if self._sealed:
            self._read_packed(attributes["commit"])
        else:
            self._read_open()

    def __len__(self) -> int:
        return int(self.present_S.sum())

    def __contains__(self, shard: int) -> bool:
        return bool(self.present_S[shard])

    def __getitem__(self, shard: int) -> list[Committed]:
        """Return the objects of a committed shard, in the order of `Layout.arrays`."""
        return [self.entry(shard, number) for number in range(self._entries_SAB.shape[1])]

    def entry(self, shard: int, number: int) -> Committed:
        """Return one object of a committed shard, by the number of its array."""
        return Committed.from_bytes(self._entries_SAB[shard, number].tobytes())

    @property
    def lengths_SA(self) -> npt.NDArray[np.uint64]:
        """(shard, array) uint64, arrays as in `Layout.arrays`; 0 also where uncommitted."""
        return self._entries_SAB[..., 32:40].view("<u8")[..., 0]

    @property
    def missing(self) -> list[int]:
        """The shards that are not committed, in order."""
        found: list[int] = np.flatnonzero(~self.present_S).tolist()
        return found

    def chunks(self) -> dict[int, bytes]:
        """Return the chunk of every committed shard, in order."""
        shards = np.flatnonzero(self.present_S).tolist()
        return {shard: encode_plain(self._entries_SAB[shard].tobytes()) for shard in shards}

    def _read_packed(self, digest: str) -> None:
        """Read the one object in pieces."""
        key, total, num = packed_key(self._id), hashlib.sha256(), len(self.present_S)
        width = chunk_bytes(self._row)
        step = max(1, _PIECE // width)
        for first in range(0, num, step):
            stop = min(first + step, num)
            data = self._range(key, first * width, stop * width)
            if data is None:
                if self._lenient:
                    break
                raise CacheCorruptError(f"{self._files.url}/{key}: sealed, but gone. {REPAIR}")
            total.update(data)
            if len(data) == (stop - first) * width:
                self._take(first, data)
        end = num * width
        total.update(self._range(key, end, end + index_bytes(num) + 1) or b"")
        self.present_S[:] = True
        self.intact = total.hexdigest() == digest
        if self.intact:
            return
        if not self._lenient:
            raise CacheCorruptError(
                f"{self._files.url}/{key}: does not match the digest in zarr.json. {REPAIR}"
            )
        self._drop_damaged(key, width)

    def _drop_damaged(self, key: str, width: int) -> None:
        for shard in range(len(self.present_S)):
            try:
                chunk = self._range(key, shard * width, (shard + 1) * width)
                decode_plain(chunk or b"", self._row, key)
            except CacheCorruptError:
                self.damaged.append(shard)
                self.present_S[shard] = False
                self._entries_SAB[shard] = 0

    def _read_open(self) -> None:
        """Read the chunks that are there; nobody is asked for one that is not."""
        listed = {
            shard_of(key.rpartition("/")[2]) for key in self._files.list(open_array(self._id))
        }
        shards = sorted(
            shard for shard in listed if shard is not None and shard < len(self.present_S)
        )
        keys = {commit_key(self._id, shard): shard for shard in shards}
        for key, data in self._own_chunks(keys).items():
            if data is None:  # packed or taken back meanwhile
                continue
            try:
                decode_plain(data, self._row, f"{self._files.url}/{key}")
                self._take(keys[key], data)
                self.present_S[keys[key]] = True
            except CacheCorruptError:
                if not self._lenient:
                    raise
                self.damaged.append(keys[key])

    def look(self, shard: int) -> bool:
        """Read the chunk that a shard has got since, if it has; tell whether it is committed.

        Raises:
            CacheCorruptError: it is damaged.
        """
        key = commit_key(self._id, shard)
        data = None if self._sealed else self._files.get(key)
        if data is not None:
            decode_plain(data, self._row, f"{self._files.url}/{key}")
            self._take(shard, data)
            self.present_S[shard] = True
        return bool(self.present_S[shard])

    def _own_chunks(self, keys: Mapping[str, int]) -> Mapping[str, bytes | None]:
        if not self._lenient:
            return self._files.get_many(keys)
        return {key: self._range(key, 0, chunk_bytes(self._row) + 1) or b"" for key in keys}

    def _range(self, key: str, start: int, stop: int) -> bytes | None:
        try:
            return self._files.get_range(key, start, stop)
        except StoreError:
            if self._lenient:
                return None
            raise

    def _take(self, first: int, chunks: bytes) -> None:
        """Keep the entries in the chunks of shards that follow each other."""
        rows = np.frombuffer(chunks, np.uint8).reshape(-1, chunk_bytes(self._row))[:, : self._row]
        entries = rows.reshape(len(rows), *self._entries_SAB.shape[1:])
        lengths = np.ascontiguousarray(entries[..., 32:40]).view("<u8")
        if lengths.max(initial=0) > _LARGEST:
            raise CacheCorruptError(
                f"{self._files.url}/{commit_array(self._id)}: says that a file has "
                f"{int(lengths.max()):,} bytes. {REPAIR}"
            )
        self._entries_SAB[first : first + len(rows)] = entries


def committed(layout: Layout, objects: Mapping[str, bytes]) -> dict[str, Committed]:
    """Return the entries of the objects of a shard, by array key."""
    return {
        array.key: Committed.of(objects[array.key], array, layout.shard_rows)
        for array in layout.arrays
        if array.key in objects
    }


def encode_row(row: Sequence[Committed]) -> bytes:
    """Return the chunk of a shard, from its objects in the order of `Layout.arrays`."""
    return encode_plain(b"".join(entry.to_bytes() for entry in row))


def pack(chunks: Sequence[bytes]) -> bytes:
    """Return the one object of all shards: their chunks in order, and the index of a Zarr shard."""
    index = np.empty((len(chunks), 2), "<u8")
    index[:, 1] = len(chunks[0])
    index[:, 0] = np.arange(len(chunks)) * len(chunks[0])
    return b"".join([*chunks, encode_plain(index.tobytes())])
