"""Reading the small files of a cache, each checked against its digest in the root."""

import hashlib
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from bevcask.cache.files import Files
from bevcask.cache.frames import FrameTable
from bevcask.cache.layout import chunk_name
from bevcask.cache.objects import REPAIR, decode_chunk
from bevcask.errors import CacheCorruptError
from bevcask.tokens import Scenes, Tokens

_LATE = {"timestamp": (), "lidar_to_global": (4, 4)}
"""Columns of the frames that are read when they are asked for, float64; their shape in a row."""


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
        return _decoded(files, attributes, key, small.pop(key), dtype, shape)

    valid = column("valid", "bool")
    tokens, codes = column("sample_token", "uint8", 16), column("scene", "int32")
    if not valid.all():
        tokens, codes = tokens[valid], codes[valid]
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
