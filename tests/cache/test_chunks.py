"""Our decoding of single objects against zarr's encoding of them."""

import numpy as np
import pytest
import zarr
from zarr.storage import MemoryStore

from bevcask.cache import chunks
from bevcask.cache.layout import ArraySpec
from bevcask.cache.metadata import new_array
from bevcask.errors import CacheCorruptError


@pytest.mark.parametrize("dtype", ["uint8", "int8", "float16", "float32"])
def test_rows_of_a_shard_are_what_zarr_wrote(dtype: str) -> None:
    content: dict[str, zarr.core.buffer.Buffer] = {}
    spec = ArraySpec("v", (8, 2, 3, 5), dtype, ("row", "c", "y", "x"), inner_rows=1)
    array = new_array(zarr.create_group(MemoryStore(content)), spec, 4)
    values = np.random.default_rng(0).integers(0, 99, (4, 2, 3, 5)).astype(dtype)
    values[2] = 0
    array[4:] = values
    data = content[spec.object_key(1)].to_bytes()
    assert chunks.join_rows([chunks.encode_chunk(row) for row in values]) == data
    index = chunks.decode_index(data[-chunks.index_bytes(4) :], 4, len(data), "here")
    assert index[2] is None
    for row in (0, 1, 3):
        start, stop = index[row]
        decoded = chunks.decode_chunk(data[start:stop], (2, 3, 5), dtype, "here")
        np.testing.assert_array_equal(decoded, values[row])
        assert decoded.flags.writeable
    assert max(stop for _, stop in filter(None, index)) == len(data) - chunks.index_bytes(4)


@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_silence_is_not_written_as_zarr_does_not(zero: float) -> None:
    content: dict[str, zarr.core.buffer.Buffer] = {}
    spec = ArraySpec("v", (4, 3), "float32", ("row", "c"), inner_rows=1)
    array = new_array(zarr.create_group(MemoryStore(content)), spec, 4)
    array[...] = values = np.full((4, 3), zero, np.float32)
    written = content.get(spec.object_key(0))
    assert chunks.join_rows([chunks.encode_chunk(row) for row in values]) == (
        b"" if written is None else written.to_bytes()
    )
    assert (written is None) == (not np.signbit(zero))


def test_every_flipped_bit_of_a_chunk_is_found() -> None:
    content: dict[str, zarr.core.buffer.Buffer] = {}
    spec = ArraySpec("s", (4, 6), "float32", ("row", "channel"))
    array = new_array(zarr.create_group(MemoryStore(content)), spec, 4)
    array[...] = np.arange(1, 25, dtype=np.float32).reshape(4, 6)
    data = content[spec.object_key(0)].to_bytes()
    assert chunks.encode_chunk(array[...]) == data
    chunks.decode_chunk(data, (4, 6), "float32", "here")
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CacheCorruptError, match="here: checksum"):
            chunks.decode_chunk(bytes(damaged), (4, 6), "float32", "here")


def test_chunk_of_another_size_is_found() -> None:
    whole = chunks.encode_plain(bytes(chunks._ZSTD.encode(b"12345678")))
    with pytest.raises(CacheCorruptError, match=r"not a float32 chunk of \(3,\)"):
        chunks.decode_chunk(whole, (3,), "float32", "here")
    for data in (b"", b"123", b"\0" * 4):
        with pytest.raises(CacheCorruptError):
            chunks.decode_chunk(data, (2,), "float32", "here")
    with pytest.raises(CacheCorruptError, match="length"):
        chunks.decode_plain(chunks.encode_plain(b"abc"), 4, "here")
