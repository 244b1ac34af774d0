"""Range reads of S3 over addresses that its driver has signed, by plain HTTP.

A request through botocore takes some two milliseconds of a core, a plain one less than one, and a
training asks for millions. Whatever is not answered at once is left to the driver, which has the
patience and the words.
"""

import time
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import Any
from urllib.request import getproxies

CONNECTIONS = 32
"""How many requests a process has under way at a time."""
_VALID_SECONDS = 3600
_USED_SECONDS = 1800
_ADDRESSES = 1 << 14
_READS = "_bevcask_reads"
_STRIKES = 4
_REST_SECONDS = 60.0
_TIMEOUT_SECONDS = 15.0

Place = tuple[str, int, int]


def fetch_signed(filesystem: Any, places: Sequence[Place]) -> list[bytes | None]:
    """Return bytes [start, stop) of each (path, start, stop), None where the driver is to ask.

    Args:
        filesystem: any; all but s3fs's are left to themselves.
        places: what is wanted.
    """
    plain = "s3" in filesystem.protocol and not (
        getattr(filesystem, "version_aware", True) or filesystem.requester_pays
    )
    if not plain or getproxies():
        return [None] * len(places)
    if not hasattr(filesystem, _READS):  # a process that was forked makes filesystems anew
        setattr(filesystem, _READS, _SignedReads(filesystem))
    found: list[bytes | None] = getattr(filesystem, _READS).fetch(places)
    return found


class _SignedReads:
    """Connections of one process to one store."""

    def __init__(self, filesystem: Any) -> None:
        import urllib3

        self._filesystem = filesystem
        self._http = urllib3.PoolManager(
            maxsize=CONNECTIONS, retries=False, timeout=_TIMEOUT_SECONDS
        )
        self._pool = ThreadPoolExecutor(CONNECTIONS, "bevcask-reads")
        self._addresses: OrderedDict[str, tuple[float, str]] = OrderedDict()
        self._lock = Lock()
        self._failures = 0  # one after the other
        self._rests_until = 0.0

    def fetch(self, places: Sequence[Place]) -> list[bytes | None]:
        return list(self._pool.map(self._fetch, places))

    def _fetch(self, place: Place) -> bytes | None:
        path, start, stop = place
        if time.monotonic() < self._rests_until:
            return None
        try:
            answer = self._http.request(
                "GET",
                self._address(path),
                headers={"Range": f"bytes={start}-{stop - 1}"},
                decode_content=False,
            )
            if answer.status == 206 and len(answer.data) <= stop - start:
                self._failures = 0
                return bytes(answer.data)
        except Exception:  # the driver's turn: it meets the same, and says what it is
            pass
        self._failures += 1
        if self._failures >= _STRIKES:
            self._rests_until = time.monotonic() + _REST_SECONDS
        return None

    def _address(self, path: str) -> str:
        with self._lock:
            signed, address = self._addresses.get(path, (0.0, ""))
        if time.monotonic() - signed > _USED_SECONDS or not address:
            address = self._filesystem.sign(path, expiration=_VALID_SECONDS)
            with self._lock:
                self._addresses[path] = time.monotonic(), address
                if len(self._addresses) > _ADDRESSES:
                    self._addresses.popitem(last=False)
        return address
