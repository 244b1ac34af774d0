"""Places on disk: which names are local, and small files that are written whole or not at all."""

import os
import uuid
from collections.abc import Mapping
from contextlib import suppress
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
    """Write a file: all of it is there, or none; see `write_all`."""
    write_all({path: data})


def write_all(contents: Mapping[Path, bytes], durable: bool = True) -> None:
    """Write files beside their places, flush them to the disk, rename them, flush their folders.

    Each is there as a whole or not at all; several together may be half there. Folders that are
    missing are made. What was there before stays where writing fails.

    Args:
        contents: path -> bytes.
        durable: flush, so that a power cut takes nothing of it back.

    Raises:
        OSError: no room, no permission; nothing of the new files is left.
    """
    partial: dict[Path, Path] = {}
    folders: set[Path] = set()
    try:
        for path, data in contents.items():
            folders |= {path.parent, *make_folders(path.parent)}
            partial[path] = partial_name(path)
            with partial[path].open("xb") as file:
                file.write(data)
        if durable:
            for temporary in partial.values():
                sync(temporary)
        for path, temporary in partial.items():
            temporary.replace(path)
        if durable:
            for folder in folders:
                sync(folder)
    finally:
        for temporary in partial.values():
            with suppress(OSError):  # a read-only disk keeps it, and its own error is the one told
                temporary.unlink(missing_ok=True)


def make_folders(folder: Path) -> set[Path]:
    """Make a folder and its parents; return the folders that got a new entry."""
    if folder.is_dir():
        return set()
    changed = make_folders(folder.parent)
    folder.mkdir(exist_ok=True)
    return changed | {folder.parent}


def sync(path: Path) -> None:
    """Flush a file or a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
