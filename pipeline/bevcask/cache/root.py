"""What vouches for a cache: its root, and the commit of its shards."""

import hashlib
from collections.abc import Mapping
from typing import Any

from bevcask.cache.files import Files
from bevcask.cache.layout import FORMAT, NUM_COMMIT_BYTES, SCHEMA_VERSION, commit_array, commit_key
from bevcask.cache.objects import REPAIR, Committed, decode_plain, open_json
from bevcask.errors import CacheCorruptError, CacheIdentityError, CacheIncompleteError

ROOT = "zarr.json"
PROVENANCE = "provenance/zarr.json"
ADDITION = "addition/zarr.json"
"""The root a cache will have once the targets that are being added are complete."""


def read_root(files: Files, key: str = ROOT) -> dict[str, Any]:
    """Return the root attributes, checked.

    Args:
        files: the cache.
        key: of the root's zarr.json, or of the one that will take its place.

    Raises:
        CacheIncompleteError: there is no cache.
        CacheIdentityError: another format or schema version.
        CacheCorruptError: the root's zarr.json is damaged.
    """
    data = files.get(key)
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
            f"{found[0]} {found[1]}. Read it with the bevcask that wrote it, or extract again."
        )
    return attributes


def read_commit(
    files: Files, attributes: Mapping[str, Any], num_arrays: int, lenient: bool
) -> dict[int, list[Committed]]:
    """Return what is committed: shard -> its objects, in the order of the commit's arrays.

    Args:
        files: the cache.
        attributes: of its root.
        num_arrays: arrays that are written shard by shard.
        lenient: take a commit that cannot be read for absent.

    Raises:
        CacheCorruptError: a commit is damaged, or one of a sealed cache missing.
    """
    shards = range(attributes["num_shards"])
    strict = attributes["state"] == "sealed" and not lenient
    chunks = files.get_many(commit_key(attributes["id"], shard) for shard in shards)
    rows: dict[int, bytes] = {}
    for shard, (key, data) in enumerate(chunks.items()):
        if data is None and strict:
            raise CacheCorruptError(f"{files.url}/{key}: sealed, but gone. {REPAIR}")
        try:
            if data is not None:
                rows[shard] = decode_plain(
                    data, NUM_COMMIT_BYTES * num_arrays, f"{files.url}/{key}"
                )
        except CacheCorruptError:
            if not lenient:
                raise
    if strict and hashlib.sha256(b"".join(rows.values())).hexdigest() != attributes["commit"]:
        where = f"{files.url}/{commit_array(attributes['id'])}"
        raise CacheCorruptError(f"{where}: does not match the digest in zarr.json. {REPAIR}")
    return {shard: split_commit(data) for shard, data in rows.items()}


def split_commit(data: bytes) -> list[Committed]:
    """Return the entries of one shard's commit, in the order of `Layout.arrays`."""
    starts = range(0, len(data), NUM_COMMIT_BYTES)
    return [Committed.from_bytes(data[start : start + NUM_COMMIT_BYTES]) for start in starts]
