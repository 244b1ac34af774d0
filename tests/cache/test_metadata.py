"""The small files of a cache: sealed JSON."""

import json

import pytest

from bevcask.cache import metadata
from bevcask.errors import CacheCorruptError


def test_sealed_json_round_trips_and_finds_every_flip() -> None:
    document = {"attributes": {"a": ["x", 1.5]}, "zarr_format": 3, "node_type": "group"}
    data = metadata.seal_json(document)
    assert json.loads(data)["zarr_format"] == 3
    assert metadata.open_json(data, "here")["a"] == ["x", 1.5]
    again = metadata.seal_json({**document, "attributes": metadata.open_json(data, "here")})
    assert again == data
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CacheCorruptError, match="here: its bytes do not match"):
            metadata.open_json(bytes(damaged), "here")
