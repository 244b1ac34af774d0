"""What vouches for the shards: an object each while a cache is filled, one for all when sealed.

A shard's chunk is 40 bytes an array and a crc32c. The packed object is those chunks one after the
other, and the index that makes a Zarr shard of them.
"""

import hashlib
import struct
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from bevcask.cache.chunks import REPAIR, chunk_bytes, decode_plain, encode_plain, index_bytes
from bevcask.cache.files import Files
from bevcask.cache.layout import NUM_COMMIT_BYTES, commit_key, open_array, packed_key, shard_of
from bevcask.errors import CacheCorruptError

_PIECE = 1 << 22


class Committed(NamedTuple):
    """What the commit says about one shard object: its SHA-256 and length; length 0 = no object."""

    sha256: bytes
    length: int

    def to_bytes(self) -> bytes:
        return self.sha256 + struct.pack("<Q", self.length)

    @classmethod
    def from_bytes(cls, data: bytes) -> "Committed":
        return cls(data[:32], struct.unpack("<Q", data[32:NUM_COMMIT_BYTES])[0])

    @classmethod
    def of(cls, data: bytes | memoryview) -> "Committed":
        return cls(hashlib.sha256(data).digest(), len(data))


class Commit:
    """Which shards are committed, and how long their objects are; digests are read when asked for.

    Attributes:
        present_S: bool (shard,).
        lengths_SA: uint64 (shard, array), arrays as in `Layout.arrays`; 0 also where uncommitted.
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
        self._row = NUM_COMMIT_BYTES * num_arrays
        self._lenient = lenient
        self.damaged: list[int] = []
        self.intact = True
        self.present_S = np.zeros(num_shards, bool)
        self.lengths_SA = np.zeros((num_shards, num_arrays), np.uint64)
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
        row = self._decoded(shard, self._chunk(shard))
        starts = range(0, len(row), NUM_COMMIT_BYTES)
        return [Committed.from_bytes(row[start : start + NUM_COMMIT_BYTES]) for start in starts]

    @property
    def missing(self) -> list[int]:
        """The shards that are not committed, in order."""
        found: list[int] = np.flatnonzero(~self.present_S).tolist()
        return found

    def chunks(self) -> dict[int, bytes]:
        """Return the chunk of every committed shard, checked, in order."""
        shards = np.flatnonzero(self.present_S).tolist()
        if self._sealed:
            return {shard: self._checked(shard, self._chunk(shard)) for shard in shards}
        keys = {commit_key(self._id, shard): shard for shard in shards}
        return {keys[k]: self._checked(keys[k], v) for k, v in self._files.get_many(keys).items()}

    def _read_packed(self, digest: str) -> None:
        """Read lengths in pieces: of the whole object only a digest is kept."""
        key, total, num = packed_key(self._id), hashlib.sha256(), len(self.present_S)
        width = chunk_bytes(self._row)
        step = max(1, _PIECE // width)
        for first in range(0, num, step):
            stop = min(first + step, num)
            data = self._files.get_range(key, first * width, stop * width)
            if data is None:
                if self._lenient:
                    break
                raise CacheCorruptError(f"{self._files.url}/{key}: sealed, but gone. {REPAIR}")
            total.update(data)
            if len(data) == (stop - first) * width:
                self._take(first, data)
        end = num * width
        total.update(self._files.get_range(key, end, end + index_bytes(num) + 1) or b"")
        self.present_S[:] = True
        self.intact = total.hexdigest() == digest
        if self.intact:
            return
        if not self._lenient:
            raise CacheCorruptError(
                f"{self._files.url}/{key}: does not match the digest in zarr.json. {REPAIR}"
            )
        self._drop_damaged()

    def _drop_damaged(self) -> None:
        for shard in range(len(self.present_S)):
            try:
                self._checked(shard, self._chunk(shard))
            except CacheCorruptError:
                self.damaged.append(shard)
                self.present_S[shard] = False
                self.lengths_SA[shard] = 0

    def _read_open(self) -> None:
        """Read the chunks that are there; nobody is asked for one that is not."""
        listed = {
            shard_of(key.rpartition("/")[2]) for key in self._files.list(open_array(self._id))
        }
        shards = sorted(
            shard for shard in listed if shard is not None and shard < len(self.present_S)
        )
        keys = {commit_key(self._id, shard): shard for shard in shards}
        for key, data in self._files.get_many(keys).items():
            if data is None:  # packed or taken back meanwhile
                continue
            try:
                self._take(keys[key], self._checked(keys[key], data))
                self.present_S[keys[key]] = True
            except CacheCorruptError:
                if not self._lenient:
                    raise
                self.damaged.append(keys[key])

    def _take(self, first: int, chunks: bytes) -> None:
        """Note the lengths in the chunks of shards that follow each other."""
        rows = np.frombuffer(chunks, np.uint8).reshape(-1, chunk_bytes(self._row))[:, : self._row]
        tails = np.ascontiguousarray(rows.reshape(len(rows), -1, NUM_COMMIT_BYTES)[..., 32:])
        self.lengths_SA[first : first + len(rows)] = tails.view("<u8")[..., 0]

    def _chunk(self, shard: int) -> bytes | None:
        if not self._sealed:
            return self._files.get(commit_key(self._id, shard))
        width = chunk_bytes(self._row)
        return self._files.get_range(packed_key(self._id), shard * width, (shard + 1) * width)

    def _checked(self, shard: int, chunk: bytes | None) -> bytes:
        self._decoded(shard, chunk)
        return chunk or b""

    def _decoded(self, shard: int, chunk: bytes | None) -> bytes:
        key = packed_key(self._id) if self._sealed else commit_key(self._id, shard)
        where = f"{self._files.url}/{key}"
        return decode_plain(chunk or b"", self._row, where)


def encode_row(row: Sequence[Committed]) -> bytes:
    """Return the chunk of a shard, from its objects in the order of `Layout.arrays`."""
    return encode_plain(b"".join(entry.to_bytes() for entry in row))


def pack(chunks: Sequence[bytes]) -> bytes:
    """Return the one object of all shards: their chunks in order, and the index of a Zarr shard."""
    index = np.empty((len(chunks), 2), "<u8")
    index[:, 1] = len(chunks[0])
    index[:, 0] = np.arange(len(chunks)) * len(chunks[0])
    return b"".join([*chunks, encode_plain(index.tobytes())])
