"""Who is at work on which shards: small files that say so, renewed as long as their process lives.

Leases keep the same work from being started twice. No byte of a cache depends on them: two
processes that fill one shard write the same bytes, and every file appears whole or not at all.

A claim is written first and looked around second; whoever then sees another takes its claim back
and tries again after a random moment. So of two that claim at once one is left, or none and then
one, never two, on any store that shows a file to all as soon as it is written.

A lease that cannot be believed (no JSON, other keys, from the future) says nothing of its process.
The store's own time of it is all there is: whoever lives writes its lease every few seconds. Every
wait ends, and says for whom it waits.
"""

import itertools
import json
import logging
import math
import os
import platform
import random
import re
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

from bevcask.cache.files import Files
from bevcask.errors import CacheBusyError, StoreError
from bevcask.paths import PARTIAL

FOLDER = "leases"
RENEW_SECONDS = 5.0
STALE_SECONDS = 60.0
"""A lease that is silent for so long is another's to take."""
GIVE_UP_SECONDS = 40.0
"""A writer that could not renew its lease for so long stops, well before it can be taken."""
UNREADABLE_SECONDS = 20.0
"""A lease that cannot be believed blocks for so long; no live process leaves its own unwritten."""
WAIT_SECONDS = 600.0
"""How long those who need the small files wait for others who have them."""
SMALL_FILES = range(-1, 0)
"""Stands for what is no shard's: metadata, frames, provenance, the seal."""
_TRIES = 4
_PAUSE = 0.1
_LONGEST_PAUSE = 1.0
_VOICE_SECONDS = 5.0
_LARGEST = 1 << 16
_NAME = re.compile(rf"{FOLDER}/[0-9a-f]{{32}}\.json(?:\.[0-9a-f]{{32}}{re.escape(PARTIAL)})?")

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

    @classmethod
    def parse(cls, data: bytes) -> "Holder | None":
        """Read a lease; None if it is not what a process of ours writes."""
        try:
            holder = cls(**json.loads(data))
        except (ValueError, TypeError, RecursionError):
            return None
        typed = all(type(getattr(holder, one.name)) is one.type for one in fields(cls))
        sane = typed and 0 < holder.pid < 1 << 31 and math.isfinite(holder.renewed)
        return holder if sane else None

    @property
    def silent_seconds(self) -> float:
        """Time since its last sign of life; clocks of hosts must agree to `STALE_SECONDS`."""
        return time.time() - self.renewed

    @property
    def dead(self) -> bool:
        """True if its process is gone: seen at once on this machine, by silence elsewhere."""
        gone = bool(self.space) and self.space == _pid_space() and not _runs(self.pid)
        return gone or self.silent_seconds > STALE_SECONDS

    @property
    def foretold(self) -> bool:
        """True if it is dated so far in the future that its silence cannot be told."""
        return not self.dead and self.silent_seconds < -STALE_SECONDS

    @property
    def process(self) -> str:
        """Whose it is, for people."""
        return f"process {self.pid} on host {self.host} since {self.since} ({self.what})"

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
        self._first_seen: dict[tuple[str, bytes], float] = {}
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

    def claim(self, patience: float = 0.0) -> None:
        """Claim the shards and go on renewing the claim.

        Args:
            patience: seconds to wait for a live process that holds some of them.

        Raises:
            CacheBusyError: it still does; host, pid and time are named.
            DiskFullError: no room for the lease.
        """
        chance = random.Random(self._key)
        began = said = time.monotonic()
        for attempt in itertools.count(1):
            others = self._others()
            if not others:
                try:
                    self._write()
                    others = self._others()
                    if not others:
                        self._thread.start()
                        self.held = True
                        return
                finally:
                    if not self.held:
                        self._remove()
            waited = time.monotonic() - began
            unsure = None in others.values()
            bound = max(patience, UNREADABLE_SECONDS + RENEW_SECONDS) if unsure else patience
            if attempt >= _TRIES and waited >= bound:
                raise CacheBusyError(self._refusal(*next(iter(others.items()))))
            if bound and (attempt == 1 or time.monotonic() - said >= _VOICE_SECONDS):
                said = time.monotonic()
                self._say(*next(iter(others.items())), waited, bound)
            time.sleep(chance.uniform(0, min(attempt * _PAUSE, _LONGEST_PAUSE)))

    def _say(self, key: str, holder: Holder | None, waited: float, bound: float) -> None:
        whom = f"the lease {key}, which cannot be read" if holder is None else holder.process
        _log.info(
            "cache %s: waiting for %s, %.0f s so far, %.0f s at most",
            self._files.url,
            whom,
            waited,
            bound,
        )

    def release(self) -> None:
        """Let go; the lease's file disappears."""
        self._stop.set()
        self._thread.join(STALE_SECONDS)
        self.held = False
        self._remove()

    def check(self) -> None:
        """Make sure that the shards are still ours.

        Raises:
            CacheBusyError: this process was silent so long that another took over, or soon may.
        """
        silent = self._holder.silent_seconds
        if silent > GIVE_UP_SECONDS:
            raise CacheBusyError(
                f"cache {self._files.url}: the lease {self._key} of this process could not be "
                f"renewed for {silent:.0f} s, and after {STALE_SECONDS:.0f} s another may take "
                "over. Committed shards are safe; once the store answers again, the same command "
                "goes on from here."
            )
        if self._lost:
            raise CacheBusyError(
                f"cache {self._files.url}: the lease {self._key} of this process is gone; it was "
                f"removed by hand, or this process stood still for more than {STALE_SECONDS:.0f} s "
                "and another took over. Committed shards are safe; the same command goes on if "
                "nobody else does."
            )

    def _others(self) -> dict[str, Holder | None]:
        """Return the leases of these shards that others hold; removes those of the dead.

        None stands for a lease that cannot be believed, whatever it is of. Files that are no
        leases of ours may be somebody's: they are never removed.
        """
        others: dict[str, Holder | None] = {}
        for key in list(self._files.list(FOLDER)):
            if key == self._key or not key.endswith((".json", PARTIAL)):
                continue
            data = self._files.get_range(key, 0, _LARGEST)
            if data is None:
                continue
            holder = Holder.parse(data)
            if holder is not None and holder.foretold:
                holder = None
            if self._silent(key, data) if holder is None else holder.dead:
                if _NAME.fullmatch(key):
                    self._files.delete(key)
            elif not key.endswith(PARTIAL) and (holder is None or holder.overlaps(self._shards)):
                others[key] = holder
        return others

    def _silent(self, key: str, data: bytes) -> bool:
        """Tell whether nobody has written a lease that cannot be believed for too long.

        The store's time of it counts. Where there is none, or one in the future, we watch.
        """
        first = self._first_seen.setdefault((key, data), time.monotonic())
        modified = self._files.modified(key)
        age = -math.inf if modified is None else time.time() - modified
        watched = time.monotonic() - first
        return max(watched, age) > UNREADABLE_SECONDS

    def _refusal(self, key: str, holder: Holder | None) -> str:
        url = self._files.url
        by_hand = f"delete {url.rstrip('/')}/{key} and run the same command again"
        if holder is None:
            return (
                f"cache {url}: the lease {key} cannot be read, but is written again and again, "
                f"by another version of bevcask perhaps. If no process is at work, {by_hand}."
            )
        return (
            f"cache {url}: {_named(holder)} being filled by {holder.process}. Wait for it, or give "
            "this process other shards with part=i/n. Should it be dead: its lease ends by itself "
            f"{STALE_SECONDS:.0f} s after its last sign of life "
            f"({holder.silent_seconds:.0f} s ago); to go on at once, {by_hand}."
        )

    def _renew(self) -> None:
        """Say that we live, until told to stop or until our lease has gone.

        A store that does not answer (drivers raise what they like) ends nothing: `check` does.
        """
        while not self._stop.wait(RENEW_SECONDS):
            try:
                if self._files.get(self._key) is None:
                    self._lost = True
                    return
                self._write()
            except Exception as error:
                _log.warning("lease %s could not be renewed: %s", self._key, error)

    def _write(self) -> None:
        holder = replace(self._holder, renewed=time.time())
        self._files.put_volatile(self._key, json.dumps(asdict(holder)).encode())
        self._holder = holder

    def _remove(self) -> None:
        """Remove our lease; one that cannot be removed is dead soon."""
        with suppress(StoreError):
            self._files.delete(self._key)
            self._files.remove_empty(FOLDER)


@contextmanager
def holding_small_files(files: Files, what: str) -> Iterator[None]:
    """Hold what is no shard's, for moments; wait while somebody else does.

    Raises:
        CacheBusyError: somebody did all the time, for `WAIT_SECONDS`.
    """
    lease = Lease(files, SMALL_FILES, what)
    lease.claim(WAIT_SECONDS)
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
