"""Bytes under keys, on a local path or any fsspec URL. Writes are atomic; local ones are durable.

A store is a border: its files may be anybody's. Keys stay below it, no symbolic link in it is
followed, and whatever a file system or a driver raises becomes one error of ours.
"""

import errno
import hashlib
import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from bevcask.cache import remote
from bevcask.cache.room import free_bytes
from bevcask.cache.signed import CONNECTIONS
from bevcask.errors import (
    BevcaskError,
    CacheCorruptError,
    DiskFullError,
    MissingDependencyError,
    StoreError,
)
from bevcask.paths import local_path, make_folders, sync, write_all

_FULL = (errno.ENOSPC, errno.EDQUOT)
_NO_KEY = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
_PIECE = 1 << 18  # stays in a processor's cache between reading and hashing
_REMOTE_PIECE = 1 << 24
_LARGEST = 1 << 30  # bytes of a file that is read whole
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # no link, no pipe's writer
_ASIDE = frozenset(("", ".", ".."))
_TRIES = 100
_SHOWN = 3


def is_key(text: str) -> bool:
    """Tell whether a text names something below a store: no part is empty, `.` or `..`."""
    return _ASIDE.isdisjoint(text.split("/")) and "\0" not in text


class Span(NamedTuple):
    """Bytes [start, stop) of a key.

    Attributes:
        sha256: of all its bytes, where they are committed: what tells them from other versions.
    """

    key: str
    start: int
    stop: int
    sha256: bytes = b""


class Files:
    """A store of bytes addressed by keys such as `targets/bev.neck/values/c.0.0.0.0`.

    Every method raises `StoreError` where the store cannot be reached, read or written,
    `MissingDependencyError` where its driver is not installed, and `CacheCorruptError` at a
    symbolic link or a key that leads out of the store.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.root = local_path(url)
        self._process = -1
        self._filesystem: Any = None
        self._prefix = ""

    @property
    def _remote(self) -> Any:
        """The fsspec filesystem, made anew after a fork: its event loop does not survive one."""
        if self._process != os.getpid():
            self._filesystem, self._prefix = remote.connect(self.url)
            self._process = os.getpid()
        return self._filesystem

    def _path(self, key: str) -> str:
        """Return the path of a key in a remote store."""
        self._require_key(key)
        return f"{self._prefix.rstrip('/')}/{key}"

    def _open(self, key: str) -> int:
        """Return a descriptor of a local file, to be read."""
        self._require_key(key)
        return os.open(f"{self.root}/{key}", _READ)

    def _own(self, key: str) -> Path:
        """Return the local path of a key that is written, deleted or listed.

        Raises:
            CacheCorruptError: a folder on the way is a symbolic link, to who knows where.
        """
        assert self.root is not None
        self._require_key(key)
        folder = self.root
        for part in key.split("/")[:-1]:
            folder = folder / part
            if folder.is_symlink():
                raise self._linked([folder.relative_to(self.root).as_posix()])
        return self.root / key

    def _require_key(self, key: str) -> None:
        if not is_key(key):
            raise CacheCorruptError(f"{self.url}: the key {key!r} leads out of the store.")

    def _linked(self, links: list[str]) -> CacheCorruptError:
        more = f" and {len(links) - _SHOWN} more" if len(links) > _SHOWN else ""
        return CacheCorruptError(
            f"{self.url} holds symbolic links: {', '.join(links[:_SHOWN])}{more}. What they point "
            "at is not the cache's to read, replace or delete: put the files themselves in their "
            "place (cp -rL copies them), or extract to another URL."
        )

    def get(self, key: str, largest: int = _LARGEST) -> bytes | None:
        """Return all bytes of a key, None if there is no such key.

        Raises:
            CacheCorruptError: they are more than `largest`, or no file's.
        """
        with _Border(self, key):
            if self.root is not None:
                with open(self._open(key), "rb", buffering=0) as file:
                    found = os.fstat(file.fileno())
                    if not stat.S_ISREG(found.st_mode):
                        raise CacheCorruptError(f"{self.url}/{key} is no file.")
                    self._require_small(key, found.st_size, largest)
                    return file.read()
            data = remote.fetch(self._remote, self._path(key), 0, largest + 1)
            self._require_small(key, len(data), largest)
            return data
        return None

    def _require_small(self, key: str, size: int, largest: int) -> None:
        if size > largest:
            raise CacheCorruptError(
                f"{self.url}/{key}: more than {largest:,} bytes, which no cache has there."
            )

    def get_many(self, keys: Iterable[str]) -> dict[str, bytes | None]:
        """Return the bytes of several keys, fetched side by side where that helps."""
        if self.root is not None:
            return {key: self.get(key) for key in keys}
        spans = [Span(key, 0, _LARGEST) for key in keys]
        return {span.key: data for span, data in zip(spans, self.get_ranges(spans), strict=True)}

    def get_ranges(self, spans: Sequence[Span]) -> Iterator[bytes | None]:
        """Yield what `get_range` returns of each, fetched side by side where that helps."""
        if self.root is not None:
            yield from (self.get_range(span.key, span.start, span.stop) for span in spans)
            return
        answers: list[bytes | Exception] = []
        with _Border(self, spans[0].key if spans else ""):
            filesystem = self._remote
            places = [(self._path(span.key), span.start, span.stop) for span in spans]
            answers = remote.fetch_all(filesystem, places)
        for span, answer in zip(spans, answers, strict=True):
            with _Border(self, span.key):
                if isinstance(answer, Exception):
                    raise answer
            yield None if isinstance(answer, Exception) else answer

    def get_range(self, key: str, start: int, stop: int) -> bytes | None:
        """Return bytes [start, stop) of a key, fewer if it is shorter, None if there is no key."""
        with _Border(self, key):
            if self.root is not None:
                descriptor = self._open(key)
                try:
                    return os.pread(descriptor, stop - start, start)
                finally:
                    os.close(descriptor)
            return remote.fetch(self._remote, self._path(key), start, stop)
        return None

    def digest(self, key: str) -> tuple[bytes, int] | None:
        """Return SHA-256 and length of a key, read in pieces; None if there is no such key."""
        total, length = hashlib.sha256(), 0
        with _Border(self, key):
            if self.root is not None:
                with open(self._open(key), "rb", buffering=0) as file:
                    while piece := file.read(_PIECE):
                        total.update(piece)
                        length += len(piece)
                return total.digest(), length
            while (part := self.get_range(key, length, length + _REMOTE_PIECE)) is not None:
                total.update(part)
                length += len(part)
                if len(part) < _REMOTE_PIECE:
                    return total.digest(), length
        return None

    def size(self, key: str) -> int | None:
        """Return the length of a key, None if there is no such key."""
        with _Border(self, key):
            if self.root is not None:
                self._require_key(key)
                return (self.root / key).lstat().st_size
            return int(self._remote.size(self._path(key)))
        return None

    def modified(self, key: str) -> float | None:
        """Return when a key was written, seconds since the epoch; None if nobody knows."""
        with _Border(self, key), suppress(NotImplementedError):
            if self.root is not None:
                self._require_key(key)
                return (self.root / key).lstat().st_mtime
            return float(self._remote.modified(self._path(key)).timestamp())
        return None

    def require_no_links(self) -> None:
        """Refuse a store that holds symbolic links, before anything is written to it.

        Raises:
            CacheCorruptError: it does; some are named.
        """
        if links := self.links():
            raise self._linked(links)

    def links(self) -> list[str]:
        """Return the keys of all symbolic links in the store."""
        found: list[str] = []
        if self.root is not None:
            for _ in self._walk("", found):
                pass
        return sorted(found)

    def _walk(self, below: str, links: list[str]) -> Iterator[str]:
        """Yield the keys below a local folder; links are not followed but noted."""
        folders = [f"{below}/" if below else ""]
        while folders:
            inner = folders.pop()
            folder = self._own(f"{inner}x").parent
            with _Border(self, inner), os.scandir(folder) as entries:
                for entry in entries:
                    key = inner + entry.name
                    if entry.is_symlink():
                        links.append(key)
                    elif entry.is_dir(follow_symlinks=False):
                        folders.append(f"{key}/")
                    else:
                        yield key

    def list(self, below: str = "") -> Iterator[str]:
        """Yield every key, or those of one folder and the folders in it, in no order.

        Raises:
            CacheCorruptError: there are symbolic links among them; said at the end.
        """
        if self.root is not None:
            links: list[str] = []
            yield from self._walk(below, links)
            if links:
                raise self._linked(sorted(links))
            return
        with _Border(self, below):
            filesystem = self._remote
            prefix = self._prefix.strip("/") + "/"
            filesystem.invalidate_cache(self._prefix)  # where a driver remembers all the same
            folder = self._path(below) if below else self._prefix
            for path in filesystem.find(folder.rstrip("/")):
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
        with self._writing(contents):
            if self.root is not None:
                write_all({self._own(key): data for key, data in contents.items()})
                return
            self._remote.pipe({self._path(key): data for key, data in contents.items()})

    def put_volatile(self, key: str, data: bytes) -> None:
        """Write a small file, whole or not at all, that need not survive a power cut.

        Its folder may go at any moment, when another process finds it empty.

        Raises:
            DiskFullError: the disk or quota is full; the key keeps what it had.
        """
        with self._writing({key: data}):
            if self.root is None:
                self._remote.pipe_file(self._path(key), data)
                return
            for _ in range(_TRIES):
                with suppress(FileNotFoundError):
                    write_all({self._own(key): data}, durable=False)
                    return
            write_all({self._own(key): data}, durable=False)

    def link_many(self, sources: Mapping[str, Path]) -> bool:
        """Make keys of local files that exist, by hard links; all or nothing.

        Returns:
            False where the disk cannot: remote, another disk, a file system without links.
        """
        if self.root is None or not sources:
            return False
        folders: set[Path] = set()
        linked: list[Path] = []
        places = {self._own(key): source for key, source in sources.items()}
        try:
            for path, source in places.items():
                folders |= {path.parent, *make_folders(path.parent)}
                os.link(source, path, follow_symlinks=False)
                linked.append(path)
        except OSError:
            for path in linked:
                path.unlink()
            return False
        for folder in folders:
            sync(folder)
        return True

    def delete(self, key: str) -> None:
        """Remove a key; nothing happens if there is none."""
        with _Border(self, key):
            if self.root is not None:
                self._own(key).unlink(missing_ok=True)
                return
            self._remote.rm_file(self._path(key))

    def delete_below(self, folder: str) -> None:
        """Remove a folder and every key in it; nothing happens if there is none."""
        with ThreadPoolExecutor(1 if self.root is not None else CONNECTIONS) as pool:
            list(pool.map(self.delete, list(self.list(folder))))
        self.remove_empty(folder)

    def remove_empty(self, folder: str) -> None:
        """Remove a folder that holds nothing; another stays, as do stores without folders."""
        if self.root is not None:
            with suppress(OSError):
                self._own(folder).rmdir()

    @contextmanager
    def _writing(self, contents: Mapping[str, bytes]) -> Iterator[None]:
        first = next(iter(contents), "")
        try:
            yield
        except Exception as error:
            if not (isinstance(error, OSError) and error.errno in _FULL):
                self._raise(error, first)
            size = sum(map(len, contents.values()))
            free = f", {free_bytes(self.url):,} free" if self.root else ""
            raise DiskFullError(
                f"disk full: {self.url} has no room for {first} and "
                f"{len(contents) - 1} more files ({size:,} bytes{free}). Every committed shard is "
                "safe. Free some space and run the same command again, or compare other codecs "
                "with `bevcask plan store.codec=...`."
            ) from error

    def _raise(self, error: Exception, key: str) -> NoReturn:
        """Raise what a user can act on for what a file system or a driver said of a key."""
        if isinstance(error, BevcaskError | MemoryError):
            raise error
        where = f"{self.url.rstrip('/')}/{key}"
        if self.root is not None:
            if not isinstance(error, OSError):
                raise error
            if error.errno == errno.ELOOP:
                raise self._linked([key]) from error
            raise StoreError(
                f"{where}: {error.strerror or error}. Choose another place, or make this one "
                "readable and writable; what is committed is not in doubt."
            ) from error
        if isinstance(error, ImportError):
            raise MissingDependencyError(remote.missing_driver(error, self.url)) from error
        raise StoreError(f"{where}: {remote.meaning(error, self.url)}") from error


class _Border:
    """Lets a missing key pass, and turns every other failure into an error of ours."""

    def __init__(self, files: Files, key: str) -> None:
        self._files = files
        self._key = key

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> bool:
        if isinstance(error, _NO_KEY) and not remote.lacks_bucket(error):
            return True
        if isinstance(error, Exception):
            self._files._raise(error, self._key)
        return False
