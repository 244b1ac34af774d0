"""The bytes of single objects: checksummed chunks, rows inside shards, whole shards of a target.

Done by hand because zarr hands every inner chunk to its event loop and a thread: a third more time
for a random read, milliseconds for a small chunk on a busy machine. The metadata comes from zarr,
and the tests compare every byte written here with what zarr writes.
"""

import math
from collections.abc import Sequence
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt
from numcodecs.zstd import Zstd

from bevcask.errors import CacheCorruptError

REPAIR = "Restore the file from a copy, or extract the cache again."
_CRC_BYTES = 4
_RESIDUE = 0x48674BC7  # CRC-32C of any bytes followed by their own CRC-32C
_NOTHING = 2**64 - 1  # offset and length of an inner chunk that is all fill value
_ZSTD = Zstd(level=1)


def decode_chunk(data: bytes, shape: tuple[int, ...], dtype: str, where: str) -> npt.NDArray[Any]:
    """Undo crc32c, zstd and bytes of one chunk; see `decode_into`."""
    frame = _frame(data, shape, np.dtype(dtype), where)
    out = np.empty(shape, np.dtype(dtype).newbyteorder("<"))
    _decompress(out, frame, where)
    return out


def decode_into(out: npt.NDArray[Any], data: bytes, where: str) -> None:
    """Undo crc32c, zstd and bytes of one chunk, into a contiguous little-endian array.

    Raises:
        CacheCorruptError: checksum or length is wrong.
    """
    frame = _frame(data, out.shape, out.dtype, where)
    _decompress(out, frame, where)


def _frame(data: bytes, shape: tuple[int, ...], dtype: np.dtype[Any], where: str) -> memoryview:
    """Return the zstd frame of a chunk of this shape, which says how much it holds."""
    frame = memoryview(data)[:-_CRC_BYTES]
    if len(data) <= _CRC_BYTES or not _checksum_holds(data):
        raise CacheCorruptError(f"{where}: checksum does not match. {REPAIR}")
    num_bytes = math.prod(shape) * dtype.itemsize
    if _content_size(frame) != num_bytes:  # zstd fills a larger array in part and says nothing
        raise CacheCorruptError(f"{where}: not a {dtype} chunk of {shape}. {REPAIR}")
    return frame


def _decompress(out: npt.NDArray[Any], frame: memoryview, where: str) -> None:
    try:
        _ZSTD.decode(frame, out=out)
    except (RuntimeError, ValueError) as error:
        raise CacheCorruptError(f"{where}: not a zstd frame. {REPAIR}") from error


def _content_size(frame: memoryview) -> int | None:
    """Return the decoded size a zstd frame header states (RFC 8878, 3.1.1.1), None without one."""
    if len(frame) < 6:
        return None
    descriptor = frame[4]
    single_segment = descriptor >> 5 & 1
    width = (single_segment, 2, 4, 8)[descriptor >> 6]
    start = 5 + (1 - single_segment) + (0, 1, 2, 4)[descriptor & 3]
    size = int.from_bytes(frame[start : start + width], "little")
    return (size + 256 if width == 2 else size) if width else None


def encode_chunk(values: npt.NDArray[Any]) -> bytes:
    """Return a chunk as zarr writes it (bytes, zstd, crc32c); nothing where every bit is zero."""
    little = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
    if not little.view(np.uint8).any():
        return b""
    return encode_plain(bytes(_ZSTD.encode(little)))


def join_rows(rows: Sequence[bytes]) -> bytes:
    """Return a shard of encoded rows, index at the end; nothing where all are empty."""
    if not any(rows):
        return b""
    index = np.full((len(rows), 2), _NOTHING, "<u8")
    start = 0
    for number, row in enumerate(rows):
        if row:
            index[number] = start, len(row)
            start += len(row)
    return b"".join([*rows, encode_plain(index.tobytes())])


def decode_plain(data: bytes, num_bytes: int, where: str) -> bytes:
    """Undo crc32c of an uncompressed chunk of `num_bytes`.

    Raises:
        CacheCorruptError: checksum or length is wrong.
    """
    if len(data) != chunk_bytes(num_bytes) or not _checksum_holds(data):
        raise CacheCorruptError(f"{where}: checksum or length does not match. {REPAIR}")
    return data[:-_CRC_BYTES]


def decode_index(data: bytes, num_rows: int, end: int, where: str) -> list[tuple[int, int] | None]:
    """Return (start, stop) of every inner chunk of a shard, None where a row is all fill value.

    Args:
        data: the last `index_bytes(num_rows)` bytes of the shard.
        num_rows: rows (inner chunks) of a shard.
        end: where the index begins: no inner chunk goes further.
        where: for messages.

    Raises:
        CacheCorruptError: checksum or length is wrong, or a row lies elsewhere.
    """
    pairs = np.frombuffer(decode_plain(data, 16 * num_rows, where), "<u8").reshape(-1, 2).tolist()
    rows = [None if start == _NOTHING else (start, start + length) for start, length in pairs]
    if any(stop > end for _, stop in filter(None, rows)):
        raise CacheCorruptError(f"{where}: a row ends behind the rows. {REPAIR}")
    return rows


def row_checksums(shard: bytes, num_rows: int, where: str) -> bytes:
    """Return the CRC-32C that ends every row of a shard, 4 bytes each; zeros for a row without one.

    Raises:
        CacheCorruptError: it is no such shard.
    """
    if not shard:
        return bytes(_CRC_BYTES * num_rows)
    end = len(shard) - index_bytes(num_rows)
    spans = decode_index(shard[max(0, end) :], num_rows, end, where)
    return b"".join(shard[span[1] - _CRC_BYTES : span[1]] if span else bytes(4) for span in spans)


def largest_chunk(num_bytes: int) -> int:
    """Return how long a chunk of so many bytes can be: zstd adds a little to what is noise."""
    return num_bytes + (num_bytes >> 7) + 1024


def index_bytes(num_rows: int) -> int:
    """Return the length of a shard's index: two uint64 a row and a checksum."""
    return chunk_bytes(16 * num_rows)


def chunk_bytes(num_bytes: int) -> int:
    """Return the length of an uncompressed chunk of so many bytes, see `encode_plain`."""
    return num_bytes + _CRC_BYTES


def encode_plain(data: bytes) -> bytes:
    """Return an uncompressed chunk: the bytes and their crc32c."""
    return data + int(google_crc32c.value(data)).to_bytes(_CRC_BYTES, "little")


def _checksum_holds(data: bytes) -> bool:
    """Check the CRC-32C behind some bytes; over both it is always the same (no copy is needed)."""
    return bool(google_crc32c.value(data) == _RESIDUE)
