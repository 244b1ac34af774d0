"""The root of a cache: what it is, and what vouches for all other small files."""

from typing import Any

from bevcask.cache.files import Files
from bevcask.cache.layout import FORMAT, SCHEMA_VERSION
from bevcask.cache.objects import open_json
from bevcask.errors import CacheIdentityError, CacheIncompleteError

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
