"""Bytes under keys, on a local path or any fsspec URL. Writes are atomic; local ones are durable.

Local files are written to `NAME.<hex>.partial`, flushed to the disk, then renamed, so that a key
holds either all of its bytes or nothing, also after a power cut. Remote puts are atomic by nature.
"""

import errno
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from bevcask.errors import DiskFullError

_FULL = (errno.ENOSPC, errno.EDQUOT)
_FETCHERS = 16
_PIECE = 1 << 18  # stays in a processor's cache between reading and hashing
_REMOTE_PIECE = 1 << 24
PARTIAL = ".partial"


class Files:
    """A store of bytes addressed by keys such as `targets/bev.neck/values/c.0.0.0.0`."""

    def __init__(self, url: str) -> None:
        self.url = url
        bare = url.removeprefix("file://")
        self.root = None if "://" in bare or "::" in bare else Path(bare)
        self._process = -1
        self._filesystem: Any = None
        self._prefix = ""

    @property
    def _remote(self) -> Any:
        """The fsspec filesystem, made anew after a fork: its event loop does not survive one."""
        if self._process != os.getpid():
            import fsspec

            self._filesystem, self._prefix = fsspec.core.url_to_fs(self.url)
            self._process = os.getpid()
        return self._filesystem

    def _path(self, key: str) -> str:
        return f"{self._prefix.rstrip('/')}/{key}"

    def get(self, key: str) -> bytes | None:
        """Return all bytes of a key, None if there is no such key."""
        try:
            if self.root is not None:
                with open(f"{self.root}/{key}", "rb", buffering=0) as file:
                    return file.read()
            filesystem = self._remote
            return bytes(filesystem.cat_file(self._path(key)))
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None

    def get_many(self, keys: Iterable[str]) -> dict[str, bytes | None]:
        """Return the bytes of several keys, fetched side by side where that helps."""
        names = list(keys)
        if self.root is not None:
            return {name: self.get(name) for name in names}
        with ThreadPoolExecutor(_FETCHERS) as pool:
            return dict(zip(names, pool.map(self.get, names), strict=True))

    def get_range(self, key: str, start: int, stop: int) -> bytes | None:
        """Return bytes [start, stop) of a key, fewer if it is shorter, None if there is no key."""
        try:
            if self.root is not None:
                descriptor = os.open(f"{self.root}/{key}", os.O_RDONLY)
                try:
                    return os.pread(descriptor, stop - start, start)
                finally:
                    os.close(descriptor)
            filesystem = self._remote
            return bytes(filesystem.cat_file(self._path(key), start=start, end=stop))
        except (FileNotFoundError, NotADirectoryError):
            return None

    def digest(self, key: str) -> tuple[bytes, int] | None:
        """Return SHA-256 and length of a key, read in pieces; None if there is no such key."""
        total, length = hashlib.sha256(), 0
        try:
            if self.root is not None:
                with open(f"{self.root}/{key}", "rb", buffering=0) as file:
                    while piece := file.read(_PIECE):
                        total.update(piece)
                        length += len(piece)
                return total.digest(), length
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None
        size = self.size(key)
        while size is not None and length < size:
            part = self.get_range(key, length, min(length + _REMOTE_PIECE, size))
            if not part:
                return None
            total.update(part)
            length += len(part)
        return None if size is None else (total.digest(), length)

    def size(self, key: str) -> int | None:
        """Return the length of a key, None if there is no such key."""
        try:
            if self.root is not None:
                return (self.root / key).stat().st_size
            filesystem = self._remote
            return int(filesystem.size(self._path(key)))
        except (FileNotFoundError, NotADirectoryError):
            return None

    def list(self, below: str = "") -> Iterator[str]:
        """Yield every key, or those of one folder and the folders in it, in no order."""
        if self.root is not None:
            for folder, _, names in os.walk(self.root / below):
                inner = Path(folder).relative_to(self.root).as_posix()
                yield from names if inner == "." else (f"{inner}/{name}" for name in names)
            return
        filesystem = self._remote
        prefix = self._prefix.strip("/") + "/"
        filesystem.invalidate_cache(self._prefix)  # other processes write too
        for path in filesystem.find(self._path(below).rstrip("/")):
            yield path.lstrip("/").removeprefix(prefix)

    def put(self, key: str, data: bytes) -> None:
        """Write all bytes of a key, replacing what was there; see `put_many`."""
        self.put_many({key: data})

    def put_many(self, contents: Mapping[str, bytes]) -> None:
        """Write several keys; when this returns, local ones have reached the disk.

        One key is never half written. Several together may be: write what vouches for them after.

        Raises:
            DiskFullError: the disk or quota is full; no key lost what it had.
        """
        with self._full_disk_is_an_error(contents):
            if self.root is not None:
                _replace_all({self.root / key: data for key, data in contents.items()})
                return
            filesystem = self._remote
            for key, data in contents.items():
                filesystem.pipe_file(self._path(key), data)

    def put_volatile(self, key: str, data: bytes) -> None:
        """Write a small file that need not survive a power cut, in one go but not atomically."""
        with self._full_disk_is_an_error({key: data}):
            if self.root is None:
                self._remote.pipe_file(self._path(key), data)
                return
            path = self.root / key
            while True:
                path.parent.mkdir(parents=True, exist_ok=True)
                with suppress(FileNotFoundError):  # another process removed the empty folder
                    path.write_bytes(data)
                    return

    def link_many(self, sources: Mapping[str, Path]) -> bool:
        """Make keys of local files that exist, by hard links; all or nothing.

        Returns:
            False where the disk cannot: remote, another disk, a file system without links.
        """
        if self.root is None or not sources:
            return False
        folders: set[Path] = set()
        linked: list[Path] = []
        try:
            for key, source in sources.items():
                path = self.root / key
                folders |= {path.parent, *_make_folders(path.parent)}
                path.hardlink_to(source)
                linked.append(path)
        except OSError:
            for path in linked:
                path.unlink()
            return False
        for folder in folders:
            _sync(folder)
        return True

    def delete(self, key: str) -> None:
        """Remove a key; nothing happens if there is none."""
        if self.root is not None:
            (self.root / key).unlink(missing_ok=True)
            return
        filesystem = self._remote
        with suppress(FileNotFoundError):
            filesystem.rm_file(self._path(key))

    def delete_below(self, folder: str) -> None:
        """Remove a folder and every key in it; nothing happens if there is none."""
        for key in list(self.list(folder)):
            self.delete(key)
        self.remove_empty(folder)

    def remove_empty(self, folder: str) -> None:
        """Remove a folder that holds nothing; another stays, as do stores without folders."""
        if self.root is not None:
            with suppress(OSError):
                (self.root / folder).rmdir()

    @contextmanager
    def _full_disk_is_an_error(self, contents: Mapping[str, bytes]) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in _FULL:
                raise
            size = sum(map(len, contents.values()))
            free = f", {shutil.disk_usage(self.root).free:,} free" if self.root else ""
            raise DiskFullError(
                f"disk full: {self.url} has no room for {next(iter(contents))} and "
                f"{len(contents) - 1} more files ({size:,} bytes{free}). Every committed shard is "
                "safe. Free some space and run the same command again, or compare other codecs "
                "with `bevcask plan store.codec=...`."
            ) from error


def _replace_all(contents: Mapping[Path, bytes]) -> None:
    """Write files beside their places, flush them, rename them, flush their folders."""
    partial: dict[Path, Path] = {}
    new_folders: set[Path] = set()
    try:
        for path, data in contents.items():
            new_folders |= _make_folders(path.parent)
            partial[path] = path.with_name(f"{path.name}.{uuid.uuid4().hex}{PARTIAL}")
            partial[path].write_bytes(data)
        for temporary in partial.values():
            _sync(temporary)
        for path, temporary in partial.items():
            temporary.replace(path)
        for folder in {path.parent for path in contents} | new_folders:
            _sync(folder)
    finally:
        for temporary in partial.values():
            temporary.unlink(missing_ok=True)


def _make_folders(folder: Path) -> set[Path]:
    """Make a folder and its parents; return the folders that got a new entry."""
    if folder.is_dir():
        return set()
    changed = _make_folders(folder.parent)
    folder.mkdir(exist_ok=True)
    return changed | {folder.parent}


def _sync(path: Path) -> None:
    """Flush a file or a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
