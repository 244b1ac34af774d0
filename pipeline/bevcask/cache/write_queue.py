"""Shards on their way to the disk while the teacher computes the next."""

import logging
import queue
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Protocol

from bevcask.cache.objects import Each, Pieces, ShardObjects

_VOICE_SECONDS = 30.0
_log = logging.getLogger(__name__)


class ShardWriter(Protocol):
    """Whatever takes whole shards."""

    def encode(self, shard: int, arrays: Mapping[str, Pieces], each: Each) -> ShardObjects:
        """Begin with the files of a shard."""
        ...

    def commit(self, shard: int, encoded: ShardObjects) -> int:
        """Write one shard; return its bytes."""
        ...


class WriteQueue:
    """Writes shards in the background while the teacher computes the next.

    Rows are encoded by `threads` threads. One more writes the files of a shard and commits it, in
    the order in which shards were handed over. At most `depth` of them wait behind the one that is
    written, so memory is flat. Use as a context manager: leaving it, also by Ctrl-C or an error,
    writes what was handed over; an error of a thread is raised in `put` or on leaving. What was
    handed over is not to be changed any more.
    """

    def __init__(self, writer: ShardWriter, depth: int, threads: int = 1) -> None:
        self._writer = writer
        self._slots = threading.Semaphore(depth + 1)
        self._waiting: queue.SimpleQueue[tuple[int, ShardObjects] | None] = queue.SimpleQueue()
        self._error: BaseException | None = None
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="bevcask-encoder")
        self._thread = threading.Thread(target=self._work, name="bevcask-writer", daemon=True)
        self.num_bytes = 0
        self.num_shards = 0

    def __enter__(self) -> "WriteQueue":
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._waiting.put(None)
        began = time.monotonic()
        try:
            while self._thread.is_alive():
                self._thread.join(_VOICE_SECONDS)
                self._say(began)
        finally:
            self._pool.shutdown(cancel_futures=True)
        if error is None and self._error is not None:
            raise self._error

    def put(self, shard: int, arrays: Mapping[str, Pieces]) -> None:
        """Hand over a shard; blocks while `depth` shards wait.

        Raises:
            TargetMismatchError: a target is missing, unknown or of the wrong shape or dtype.
            BevcaskError: writing an earlier shard failed.
        """
        if self._error is not None:
            raise self._error
        began = time.monotonic()
        while not self._slots.acquire(timeout=_VOICE_SECONDS):
            self._say(began)
        try:
            self._waiting.put((shard, self._writer.encode(shard, arrays, self._pool.map)))
        except BaseException:
            self._slots.release()
            raise

    def _say(self, began: float) -> None:
        """Say that the store takes its time, where it does."""
        waited = time.monotonic() - began
        if waited >= _VOICE_SECONDS:
            _log.info("waiting for the store to take a shard, %.0f s so far", waited)

    def _work(self) -> None:
        """Write until told to stop; after an error go on taking, so that nobody waits for ever."""
        while (item := self._waiting.get()) is not None:
            try:
                if self._error is None:
                    self.num_bytes += self._writer.commit(*item)
                    self.num_shards += 1
            except BaseException as error:
                self._error = error
            del item
            self._slots.release()
