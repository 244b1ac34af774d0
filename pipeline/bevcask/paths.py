"""Places on disk: which names are local, and small files that are written whole or not at all."""

import os
import uuid
from pathlib import Path

PARTIAL = ".partial"
"""Ends the name of a file that is being written; one that stays was left by a kill."""


def local_path(url: str) -> Path | None:
    """Return the local path of a URL, None where it names another store (`s3://`, `memory://`)."""
    bare = url.removeprefix("file://")
    return None if "://" in bare or "::" in bare else Path(bare)


def whereabouts(url: str) -> str:
    """Return the one spelling of a place: absolute, links followed; of other stores the URL.

    >>> whereabouts("s3://bucket/a.zarr/")
    's3://bucket/a.zarr'
    """
    path = local_path(url)
    return url.rstrip("/") if path is None else str(path.resolve())


def head_of(cache_url: str) -> str:
    """Return where the teacher's head of a cache lies: beside it, in the same store."""
    return cache_url.rstrip("/").removesuffix(".zarr") + ".head.safetensors"


def split_url(url: str) -> tuple[str, str]:
    """Return the folder and the name of a file in any store."""
    folder, slash, name = url.rpartition("/")
    return (folder or slash or ".", name)


def partial_name(path: Path) -> Path:
    """Return a name beside `path` that nobody else writes to."""
    return path.with_name(f"{path.name}.{uuid.uuid4().hex}{PARTIAL}")


def write_whole(path: Path, data: bytes) -> None:
    """Write a file beside its place, flush it to the disk, rename it: all of it is there, or none.

    Folders that are missing are made. What was there before stays where writing fails.

    Raises:
        OSError: no room, no permission; nothing of the new file is left.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_name(path)
    try:
        with partial.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        sync(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Flush a file or a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
