"""The small files of a cache: group and array metadata, frames, coordinates. Written once.

zarr makes all of them in memory, so that they are what zarr makes; `writer.py` puts them on disk.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy.typing as npt
import zarr
from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec, ZstdCodec
from zarr.core.buffer import Buffer
from zarr.storage import MemoryStore

from bevcask.cache.layout import (
    FORMAT,
    NUM_COMMIT_BYTES,
    SCHEMA_VERSION,
    ArraySpec,
    Layout,
    commit_array,
    group_of,
    open_array,
)
from bevcask.cache.objects import seal_json
from bevcask.cache.root import ROOT
from bevcask.fingerprint import canonical

_NAMES: Any = {"name": "default", "separator": "."}  # one file a chunk, no folders of folders


def new_array(group: zarr.Group, array: ArraySpec, shard_rows: int) -> zarr.Array[Any]:
    """Create the metadata of an array that is written shard by shard."""
    inner: list[Any] = [BytesCodec(), ZstdCodec(level=1), Crc32cCodec()]
    chunk = (shard_rows, *array.shape[1:])
    serializer: Any = inner[0]
    compressors = inner[1:]
    if array.inner_rows is not None:
        serializer = ShardingCodec(chunk_shape=(array.inner_rows, *array.shape[1:]), codecs=inner)
        compressors = []
    return group.create_array(
        array.key,
        shape=array.shape,
        dtype=array.dtype,
        chunks=chunk,
        serializer=serializer,
        filters=None,
        compressors=compressors,
        fill_value=0,
        dimension_names=array.dims,
        chunk_key_encoding=_NAMES,
        config={"write_empty_chunks": False},
    )


def _whole(group: zarr.Group, key: str, data: npt.NDArray[Any], dims: Sequence[str]) -> None:
    """Write an array of one chunk, also where it is all zero."""
    array = group.create_array(
        key,
        shape=data.shape,
        dtype=data.dtype,
        chunks=data.shape,
        serializer=BytesCodec(),
        filters=None,
        compressors=[ZstdCodec(level=1), Crc32cCodec()],
        fill_value=0,
        dimension_names=dims,
        chunk_key_encoding=_NAMES,
        config={"write_empty_chunks": True},
    )
    array[...] = data


def build(layout: Layout, cache_id: str) -> dict[str, bytes]:
    """Return every small file but the root's and the provenance's zarr.json."""
    content: dict[str, Buffer] = {}
    group = zarr.create_group(MemoryStore(content))
    for array in layout.arrays:
        new_array(group, array, layout.shard_rows)
    for spec in layout.specs.values():
        if spec.tap.grid is not None:
            centres_YX2 = spec.tap.grid.centres()
            for dim, values in (("x", centres_YX2[0, :, 0]), ("y", centres_YX2[:, 0, 1])):
                _whole(group, f"{group_of(spec)}/{dim}", values, (dim,))
                group[f"{group_of(spec)}/{dim}"].attrs["units"] = "m"
    _frames(group, layout)
    small = {key: value.to_bytes() for key, value in content.items() if key != ROOT}
    return {**small, **commit_json(layout, cache_id, packed=False)}


def commit_json(layout: Layout, cache_id: str, packed: bool) -> dict[str, bytes]:
    """Return the metadata of the array that commits the shards, and of its group.

    Args:
        layout: rows and targets.
        cache_id: identity the array is named after.
        packed: all shards in one object, or each in one of its own.
    """
    content: dict[str, Buffer] = {}
    row = (1, len(layout.arrays), NUM_COMMIT_BYTES)
    plain: list[Any] = [BytesCodec(), Crc32cCodec()]
    zarr.create_group(MemoryStore(content)).create_array(
        commit_array(cache_id) if packed else open_array(cache_id),
        shape=(layout.num_shards, *row[1:]),
        dtype="uint8",
        chunks=(layout.num_shards, *row[1:]) if packed else row,
        serializer=ShardingCodec(chunk_shape=row, codecs=plain) if packed else plain[0],
        filters=None,
        compressors=[] if packed else plain[1:],
        fill_value=0,
        dimension_names=("shard", "array", "commit_byte"),
        chunk_key_encoding=_NAMES,
        attributes={"arrays": [array.key for array in layout.arrays]},
    )
    return {key: value.to_bytes() for key, value in content.items() if key != ROOT}


def _frames(group: zarr.Group, layout: Layout) -> None:
    frames = layout.frames
    tokens = layout.per_row(frames.tokens.bytes_N16)
    _whole(group, "frames/sample_token", tokens, ("row", "token_byte"))
    _whole(group, "frames/scene", layout.per_row(frames.scenes.codes_N), ("row",))
    group["frames/scene"].attrs["names"] = frames.scenes.names
    _whole(group, "frames/timestamp", layout.per_row(frames.timestamps), ("row",))
    group["frames/timestamp"].attrs["unit"] = "seconds"
    geometry = layout.per_row(frames.lidar_to_global)
    _whole(group, "frames/lidar_to_global", geometry, ("row", "to", "from"))
    _whole(group, "frames/valid", layout.valid, ("row",))


def root_attributes(
    layout: Layout, fingerprint: Mapping[str, Any], files: Mapping[str, str]
) -> dict[str, Any]:
    """Return the attributes of the root group of a cache that is not sealed yet.

    Args:
        layout: rows and targets.
        fingerprint: identity tree.
        files: digest of every small file, by key.
    """
    return {
        "format": FORMAT,
        "schema_version": SCHEMA_VERSION,
        "id": layout.id(fingerprint),
        "state": "open",
        "commit": None,
        "shard_rows": layout.shard_rows,
        "num_frames": len(layout.frames),
        "num_shards": layout.num_shards,
        "scenes": layout.frames.scenes.names,
        "specs": [canonical(spec.to_dict()) for spec in layout.specs.values()],
        "fingerprint": canonical(dict(fingerprint)),
        "files": {key: files[key] for key in sorted(files)},
    }


def digests_of(small: Mapping[str, bytes]) -> dict[str, str]:
    """Return the SHA-256 (hex) of small files by key."""
    return {key: hashlib.sha256(data).hexdigest() for key, data in small.items()}


def group_json(attributes: Mapping[str, Any]) -> bytes:
    """Return a group's zarr.json that carries its own digest."""
    return seal_json({"attributes": dict(attributes), "zarr_format": 3, "node_type": "group"})
