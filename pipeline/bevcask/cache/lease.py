"""Who is at work on which shards: small files that say so, renewed as long as their process lives.

Leases keep the same work from being started twice. No byte of a cache depends on them: two
processes that fill one shard write the same bytes, and every file appears whole or not at all.

A claim is written first and looked around second; whoever then sees another takes its claim back
and tries again after a random moment. So of two that claim at once one is left, or none and then
one, never two, on any store that shows a file to all as soon as it is written.
"""

import json
import logging
import os
import platform
import random
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

from bevcask.cache.files import Files
from bevcask.errors import CacheBusyError

FOLDER = "leases"
RENEW_SECONDS = 5.0
STALE_SECONDS = 60.0
SMALL_FILES = range(-1, 0)
"""Stands for what is no shard's: metadata, frames, provenance, the seal."""
_TRIES = 4
_PAUSE = 0.1

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Holder:
    """What a lease says of the process that holds it.

    Attributes:
        first: first shard.
        stop: the shard behind the last.
        what: what it does, for people, e.g. `part=1/2`.
        host: name of its machine.
        pid: its process id.
        space: tells pid spaces apart: boot and pid namespace; empty where the system has none.
        since: UTC time it began, ISO 8601.
        renewed: seconds since the epoch of its last sign of life.
    """

    first: int
    stop: int
    what: str
    host: str
    pid: int
    space: str
    since: str
    renewed: float

    @property
    def silent_seconds(self) -> float:
        """Time since its last sign of life; clocks of hosts must agree to `STALE_SECONDS`."""
        return time.time() - self.renewed

    @property
    def dead(self) -> bool:
        """True if its process is gone: seen at once on this machine, by silence elsewhere."""
        gone = bool(self.space) and self.space == _pid_space() and not _runs(self.pid)
        return gone or self.silent_seconds > STALE_SECONDS

    def overlaps(self, shards: range) -> bool:
        """Tell whether it holds some of these shards."""
        return max(self.first, shards.start) < min(self.stop, shards.stop)


class Lease:
    """Holds a range of shards of one cache. Use as a context manager.

    Args:
        files: the cache.
        shards: what to hold; an empty range overlaps nothing.
        what: for the people who are refused.
    """

    def __init__(self, files: Files, shards: range, what: str) -> None:
        self._files = files
        self._shards = shards
        self._holder = Holder(
            shards.start,
            shards.stop,
            what,
            platform.node(),
            os.getpid(),
            _pid_space(),
            datetime.now(UTC).isoformat(timespec="seconds"),
            time.time(),
        )
        self._key = f"{FOLDER}/{uuid.uuid4().hex}.json"
        self._stop = threading.Event()
        self._lost = False
        self.held = False
        self._thread = threading.Thread(target=self._renew, name="bevcask-lease", daemon=True)

    def __enter__(self) -> "Lease":
        self.claim()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()

    def claim(self) -> None:
        """Claim the shards and go on renewing the claim.

        Raises:
            CacheBusyError: a live process holds some of them; host, pid and time are named.
        """
        chance = random.Random(self._key)
        for attempt in range(1, _TRIES + 1):
            self._write()
            others = {key: one for key, one in self._living().items() if key != self._key}
            if not others:
                self._thread.start()
                self.held = True
                return
            self._remove()
            if attempt < _TRIES:
                time.sleep(chance.uniform(0, attempt * _PAUSE))
        raise CacheBusyError(self._refusal(*next(iter(others.items()))))

    def release(self) -> None:
        """Let go; the lease's file disappears."""
        self._stop.set()
        self._thread.join()
        self._remove()
        self.held = False

    def check(self) -> None:
        """Make sure that the shards are still ours.

        Raises:
            CacheBusyError: this process was silent so long that another took over.
        """
        if self._lost:
            raise CacheBusyError(
                f"cache {self._files.url}: the lease {self._key} of this process is gone; it was "
                f"removed by hand, or this process stood still for more than {STALE_SECONDS:.0f} s "
                "and another took over. Committed shards are safe; the same command goes on if "
                "nobody else does."
            )

    def _living(self) -> dict[str, Holder | None]:
        """Return the live leases of these shards; None for one being written. Removes dead ones."""
        living: dict[str, Holder | None] = {}
        for key in list(self._files.list(FOLDER)):
            data = self._files.get(key)
            if data is None:
                continue
            try:
                holder = Holder(**json.loads(data))
            except (ValueError, TypeError):
                living[key] = None
                continue
            if holder.dead:
                self._files.delete(key)
            elif holder.overlaps(self._shards):
                living[key] = holder
        return living

    def _refusal(self, key: str, holder: Holder | None) -> str:
        url = self._files.url
        by_hand = f"delete {url.rstrip('/')}/{key} and run the same command again"
        if holder is None:
            return (
                f"cache {url}: the lease {key} cannot be read. If no process is at work, {by_hand}."
            )
        return (
            f"cache {url}: {_named(holder)} being filled by process {holder.pid} on host "
            f"{holder.host} since {holder.since} ({holder.what}). Wait for it, or give this "
            "process other shards with part=i/n. Should it be dead: its lease ends by itself "
            f"{STALE_SECONDS:.0f} s after its last sign of life "
            f"({holder.silent_seconds:.0f} s ago); to go on at once, {by_hand}."
        )

    def _renew(self) -> None:
        """Say that we live, until told to stop or until our lease has gone."""
        while not self._stop.wait(RENEW_SECONDS):
            try:
                if self._files.get(self._key) is None:
                    self._lost = True
                    return
                self._write()
            except OSError as error:
                _log.warning("lease %s could not be renewed: %s", self._key, error)

    def _write(self) -> None:
        self._holder = replace(self._holder, renewed=time.time())
        self._files.put_volatile(self._key, json.dumps(asdict(self._holder)).encode())

    def _remove(self) -> None:
        self._files.delete(self._key)
        self._files.remove_empty(FOLDER)


@contextmanager
def holding_small_files(files: Files, what: str) -> Iterator[None]:
    """Hold what is no shard's, for moments; wait while somebody else does."""
    while True:
        lease = Lease(files, SMALL_FILES, what)
        try:
            lease.claim()
            break
        except CacheBusyError as busy:
            _log.debug("%s", busy)
    try:
        yield
    finally:
        lease.release()


def _named(holder: Holder) -> str:
    if holder.first == holder.stop - 1:
        return f"shard {holder.first} is"
    return f"shards {holder.first} to {holder.stop - 1} are"


def _pid_space() -> str:
    """Return what must be equal for a pid to mean the same process; empty where unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
