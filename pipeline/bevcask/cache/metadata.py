"""The small files of a cache: root, group and array metadata, frames, coordinates.

Each but the root is vouched for by its digest in the root, and the root by its own. zarr makes all
of them in memory, so that they are what zarr makes; whoever only reads does not import zarr.
"""

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bevcask.cache.chunks import REPAIR, decode_chunk
from bevcask.cache.files import Files
from bevcask.cache.frames import FrameTable
from bevcask.cache.layout import (
    FORMAT,
    SCHEMA_VERSION,
    ArraySpec,
    Layout,
    chunk_name,
    commit_array,
    commit_bytes,
    group_of,
    open_array,
)
from bevcask.cache.schema import check_root
from bevcask.errors import CacheCorruptError, CacheIdentityError, CacheIncompleteError
from bevcask.fingerprint import canonical
from bevcask.tokens import Scenes, Tokens

if TYPE_CHECKING:
    import zarr
    from zarr.core.buffer import Buffer

ROOT = "zarr.json"
PROVENANCE = "provenance/zarr.json"
ADDITION = "addition/zarr.json"
"""The root a cache will have once the targets that are being added are complete."""
_LATE = {"timestamp": (), "lidar_to_global": (4, 4)}
"""Columns of the frames that are read when they are asked for, float64; their shape in a row."""
_NAMES: Any = {"name": "default", "separator": "."}  # one file a chunk, no folders of folders
_BLANK = "0" * 64
_LARGEST_ROOT = 1 << 26


def read_root(files: Files, key: str = ROOT) -> dict[str, Any]:
    """Return the root attributes, checked.

    Args:
        files: the cache.
        key: of the root's zarr.json, or of the one that will take its place.

    Raises:
        CacheIncompleteError: there is no cache.
        CacheIdentityError: another format or schema version.
        CacheCorruptError: the root's zarr.json is damaged, or says what no cache says.
    """
    data = files.get(key, _LARGEST_ROOT)
    if data is None:
        raise CacheIncompleteError(
            f"no cache at {files.url}: expected zarr.json there. Check the URL, or make the cache "
            f"with `bevcask teacher-extract {files.url}`."
        )
    attributes = open_json(data, f"{files.url}/{key}")
    found = (attributes.get("format"), attributes.get("schema_version"))
    if found != (FORMAT, SCHEMA_VERSION):
        raise CacheIdentityError(
            f"{files.url}: expected format {FORMAT} schema_version {SCHEMA_VERSION}, got "
            f"{_short(found[0])} {_short(found[1])}. Read it with the bevcask that wrote it, or "
            "extract again."
        )
    check_root(attributes, f"{files.url}/{key}")
    return attributes


def read_small(files: Files, attributes: Mapping[str, Any]) -> dict[str, bytes]:
    """Return metadata, frames (but times and poses) and coordinates by key.

    Raises:
        CacheCorruptError: some are damaged or missing.
    """
    late = {_key(name, shape) for name, shape in _LATE.items()}
    return _checked(files, attributes, [key for key in attributes["files"] if key not in late])


def read_frames(files: Files, attributes: Mapping[str, Any], small: dict[str, bytes]) -> FrameTable:
    """Return the frames; times and poses are read, and checked, when they are asked for.

    Args:
        files: the cache.
        attributes: of its root.
        small: what `read_small` returned; the columns are taken out of it.

    Raises:
        CacheCorruptError: a column is damaged.
    """

    def column(name: str, dtype: str, *shape: int) -> npt.NDArray[Any]:
        key = _key(name, shape)
        data = small.pop(key, None)
        if data is None:
            raise CacheCorruptError(f"{files.url}/{ROOT}: its `files` lacks {key}. {REPAIR}")
        return _decoded(files, attributes, key, data, dtype, shape)

    valid = column("valid", "uint8").astype(bool)
    tokens, codes = column("sample_token", "uint8", 16), column("scene", "int32")
    if not valid.all():
        tokens, codes = tokens[valid], codes[valid]
    expected = np.arange(len(attributes["scenes"]))
    if len(codes) != attributes["num_frames"] or not (
        np.array_equal(np.unique(codes), expected) and (np.diff(codes) >= 0).all()
    ):
        raise CacheCorruptError(
            f"{files.url}/frames: {len(codes)} frames of {len(np.unique(codes))} scenes, the root "
            f"says {attributes['num_frames']} of {len(expected)}, scene by scene. {REPAIR}"
        )
    late = _Late(files, attributes, valid)
    return FrameTable.stored(Tokens(tokens), Scenes(codes, attributes["scenes"]), late)


class _Late(Mapping[str, npt.NDArray[Any]]):
    """Columns that are read at their first use and kept."""

    def __init__(
        self, files: Files, attributes: Mapping[str, Any], valid: npt.NDArray[np.bool_]
    ) -> None:
        self._files = files
        self._attributes = attributes
        self._valid = valid
        self._found: dict[str, npt.NDArray[Any]] = {}

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        if name not in self._found:
            shape = _LATE[name]
            key = _key(name, shape)
            if key not in self._attributes["files"]:
                raise CacheCorruptError(
                    f"{self._files.url}/{ROOT}: its `files` lacks {key}. {REPAIR}"
                )
            data = _checked(self._files, self._attributes, [key])[key]
            rows = _decoded(self._files, self._attributes, key, data, "float64", shape)
            self._found[name] = rows[self._valid]
        return self._found[name]

    def __iter__(self) -> Iterator[str]:
        return iter(_LATE)

    def __len__(self) -> int:
        return len(_LATE)


def _checked(
    files: Files, attributes: Mapping[str, Any], keys: Collection[str]
) -> dict[str, bytes]:
    digests: Mapping[str, str] = attributes["files"]
    small: dict[str, bytes] = {}
    bad = []
    for key, data in files.get_many(keys).items():
        if data is None:
            raise CacheCorruptError(f"{files.url}/{key}: committed, but gone. {REPAIR}")
        small[key] = data
        if hashlib.sha256(data).hexdigest() != digests[key]:
            bad.append(key)
    if bad:
        raise CacheCorruptError(
            f"{files.url}/{bad[0]}: its bytes do not match the digest in zarr.json "
            f"({len(bad)} of {len(keys)} files do not). {REPAIR}"
        )
    return small


def _decoded(
    files: Files,
    attributes: Mapping[str, Any],
    key: str,
    data: bytes,
    dtype: str,
    shape: tuple[int, ...],
) -> npt.NDArray[Any]:
    """Return a column of the frames, pad rows included."""
    num_rows = attributes["num_shards"] * attributes["shard_rows"]
    return decode_chunk(data, (num_rows, *shape), dtype, f"{files.url}/{key}")


def _key(name: str, shape: tuple[int, ...]) -> str:
    return f"frames/{name}/{chunk_name(0, 1 + len(shape))}"


def build(layout: Layout, cache_id: str) -> dict[str, bytes]:
    """Return every small file but the root's and the provenance's zarr.json."""
    import zarr
    from zarr.storage import MemoryStore

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
    import zarr
    from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec
    from zarr.storage import MemoryStore

    content: dict[str, Buffer] = {}
    row = (1, len(layout.arrays), commit_bytes(layout.shard_rows))
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


def _frames(group: "zarr.Group", layout: Layout) -> None:
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


def new_array(group: "zarr.Group", array: ArraySpec, shard_rows: int) -> "zarr.Array[Any]":
    """Create the metadata of an array that is written shard by shard."""
    from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec, ZstdCodec

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


def _whole(group: "zarr.Group", key: str, data: npt.NDArray[Any], dims: Sequence[str]) -> None:
    """Write an array of one chunk, also where it is all zero."""
    from zarr.codecs import BytesCodec, Crc32cCodec, ZstdCodec

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


def _short(value: Any) -> str:
    return str(value)[:20]


def seal_json(document: dict[str, Any]) -> bytes:
    """Return a zarr.json whose `attributes.sha256` is the digest of its own bytes.

    The digest is taken with 64 zeros in its own place.
    """
    blank = {**document, "attributes": {**document["attributes"], "sha256": _BLANK}}
    text = json.dumps(blank, indent=2, allow_nan=False).encode()
    marker = f'"sha256": "{_BLANK}"'.encode()
    assert text.count(marker) == 1
    own = hashlib.sha256(text).hexdigest()
    return text.replace(marker, f'"sha256": "{own}"'.encode())


def open_json(data: bytes, where: str) -> dict[str, Any]:
    """Return the attributes of a self-digested zarr.json.

    Raises:
        CacheCorruptError: the bytes are not the bytes that were written.
    """
    damaged = CacheCorruptError(
        f"{where}: its bytes do not match its own digest. Restore the file from a copy, or extract "
        "the cache again."
    )
    try:
        attributes = json.loads(data)["attributes"]
        own = str(attributes["sha256"]).encode("ascii")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise damaged from error
    blank = data.replace(b'"sha256": "' + own + b'"', b'"sha256": "' + _BLANK.encode() + b'"')
    if hashlib.sha256(blank).hexdigest().encode() != own:
        raise damaged
    return dict(attributes)
