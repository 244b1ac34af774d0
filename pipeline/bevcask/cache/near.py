"""A bounded copy, on a disk near by, of what a training reads again and again of a remote cache.

A file a span, named by the digest that is committed for the whole object: a copy can be missing, or
damaged and then forgotten, never be of another version. Caches and processes may share a folder.
"""

import logging
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from bevcask.cache.files import Files, Span
from bevcask.paths import write_all

_OBJECT = re.compile(r"[0-9a-f]{64}")
_SPAN = re.compile(r"\d+-\d+(?:\.[0-9a-f]{32}\.partial)?")
_STEP = 1 / 64
"""Share of the bound that a process writes before it looks how much all of them have written."""
_KEPT = 3 / 4
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Near:
    """Where copies are kept.

    Attributes:
        folder: absolute; made where it is missing. Other files in it are left alone.
        num_bytes: all copies together, of up to 16 processes, take no more.
    """

    folder: Path
    num_bytes: int


class NearCopy:
    """Answers from copies, and keeps a copy of what else it is asked for.

    Args:
        files: the cache.
        near: where copies are kept.
    """

    def __init__(self, files: Files, near: Near) -> None:
        self._files = files
        self._near = near
        self._unseen = near.num_bytes  # what others wrote is not known yet
        self._writes = True

    def get_ranges(self, spans: Sequence[Span]) -> Iterator[bytes | None]:
        """Yield the bytes of spans, None where there is no such key."""
        copies = [self._load(span) for span in spans]
        missing = [span for span, copy in zip(spans, copies, strict=True) if copy is None]
        fetched = self._files.get_ranges(missing)
        for span, copy in zip(spans, copies, strict=True):
            data = copy
            if copy is None:
                data = next(fetched)
                if data is not None and self._writes:
                    self._keep(span, data)
            yield data

    def forget(self, sha256: bytes) -> None:
        """Remove the copies of an object."""
        with suppress(OSError):
            for path in (self._near.folder / sha256.hex()).iterdir():
                path.unlink(missing_ok=True)

    def _place(self, span: Span) -> Path:
        return self._near.folder / span.sha256.hex() / f"{span.start}-{span.stop}"

    def _load(self, span: Span) -> bytes | None:
        with suppress(OSError):
            path = self._place(span)
            data = path.read_bytes()
            os.utime(path)  # the longest unused go first
            return data
        return None

    def _keep(self, span: Span, data: bytes) -> None:
        try:
            if self._unseen + len(data) > self._near.num_bytes * _STEP:
                self._make_room()
                self._unseen = 0
            if len(data) <= self._near.num_bytes * _STEP:
                write_all({self._place(span): data}, durable=False)
                self._unseen += len(data)
        except FileNotFoundError:
            pass  # another process removed the folder between two steps
        except OSError as error:
            self._writes = False
            _log.warning("loader.local=%s: no more copies are kept: %s", self._near.folder, error)

    def _make_room(self) -> None:
        """Remove the longest unused copies where they are too many."""
        found = sorted(self._copies())
        total = sum(size for _, size, _ in found)
        if total <= self._near.num_bytes * _KEPT:
            return
        for _, size, path in found:
            path.unlink(missing_ok=True)
            with suppress(OSError):
                path.parent.rmdir()
            total -= size
            if total <= self._near.num_bytes * _KEPT:
                return

    def _copies(self) -> Iterator[tuple[float, int, Path]]:
        """Yield time of last use, bytes and place of every copy."""
        with suppress(FileNotFoundError):
            for folder in self._near.folder.iterdir():
                if not _OBJECT.fullmatch(folder.name):
                    continue
                with suppress(OSError), os.scandir(folder) as entries:
                    for entry in entries:
                        if _SPAN.fullmatch(entry.name):
                            found = entry.stat(follow_symlinks=False)
                            yield found.st_mtime, found.st_size, Path(entry.path)
