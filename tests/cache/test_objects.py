"""Our decoding of single objects against zarr's encoding of them."""

import json

import numpy as np
import pytest
import zarr
from zarr.storage import MemoryStore

from bevcask.cache import objects
from bevcask.cache.layout import ArraySpec
from bevcask.cache.skeleton import new_array
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
    assert objects.encode_shard(values) == data
    index = objects.decode_index(data[-objects.index_bytes(4) :], 4, "here")
    assert index[2] is None
    for row in (0, 1, 3):
        start, stop = index[row]
        decoded = objects.decode_chunk(data[start:stop], (2, 3, 5), dtype, "here")
        np.testing.assert_array_equal(decoded, values[row])
        assert decoded.flags.writeable
    assert max(stop for _, stop in filter(None, index)) == len(data) - objects.index_bytes(4)


@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_silence_is_not_written_as_zarr_does_not(zero: float) -> None:
    content: dict[str, zarr.core.buffer.Buffer] = {}
    spec = ArraySpec("v", (4, 3), "float32", ("row", "c"), inner_rows=1)
    array = new_array(zarr.create_group(MemoryStore(content)), spec, 4)
    array[...] = values = np.full((4, 3), zero, np.float32)
    written = content.get(spec.object_key(0))
    assert objects.encode_shard(values) == (b"" if written is None else written.to_bytes())
    assert (written is None) == (not np.signbit(zero))


def test_every_flipped_bit_of_a_chunk_is_found() -> None:
    content: dict[str, zarr.core.buffer.Buffer] = {}
    spec = ArraySpec("s", (4, 6), "float32", ("row", "channel"))
    array = new_array(zarr.create_group(MemoryStore(content)), spec, 4)
    array[...] = np.arange(1, 25, dtype=np.float32).reshape(4, 6)
    data = content[spec.object_key(0)].to_bytes()
    assert objects.encode_chunk(array[...]) == data
    objects.decode_chunk(data, (4, 6), "float32", "here")
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CacheCorruptError, match="here: checksum"):
            objects.decode_chunk(bytes(damaged), (4, 6), "float32", "here")


def test_chunk_of_another_size_is_found() -> None:
    whole = objects.encode_plain(bytes(objects._ZSTD.encode(b"12345678")))
    with pytest.raises(CacheCorruptError, match=r"not a float32 chunk of \(3,\)"):
        objects.decode_chunk(whole, (3,), "float32", "here")
    for data in (b"", b"123", b"\0" * 4):
        with pytest.raises(CacheCorruptError):
            objects.decode_chunk(data, (2,), "float32", "here")
    with pytest.raises(CacheCorruptError, match="length"):
        objects.decode_plain(objects.encode_plain(b"abc"), 4, "here")


def test_commit_entry_round_trips() -> None:
    entry = objects.Committed.of(b"abc")
    data = entry.to_bytes()
    assert len(data) == 40
    assert data[32:] == b"\x03" + b"\0" * 7
    assert objects.Committed.from_bytes(data) == entry


def test_sealed_json_round_trips_and_finds_every_flip() -> None:
    document = {"attributes": {"a": ["x", 1.5]}, "zarr_format": 3, "node_type": "group"}
    data = objects.seal_json(document)
    assert json.loads(data)["zarr_format"] == 3
    assert objects.open_json(data, "here")["a"] == ["x", 1.5]
    again = objects.seal_json({**document, "attributes": objects.open_json(data, "here")})
    assert again == data
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CacheCorruptError, match="here: its bytes do not match"):
            objects.open_json(bytes(damaged), "here")
