"""Starts the processes of a training on this host.

They are children of a process that only waits: it hands signals on, says the first error once, and
ends what is left.
"""

import logging
import multiprocessing
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from time import monotonic
from typing import Any

from bevcask.errors import BevcaskError, LoaderError, PeerLostError, Stopped
from bevcask.processes import cores
from bevcask.signals import Stop, ending

Work = Callable[[Any], dict[str, Any]]
_TICK = 0.5  # seconds between looks at what was asked for
_GRACE = 20.0  # seconds that the others have once one has ended
_LAST_WORDS = 5.0  # seconds for a process to be gone that has said all


def run_ranks(count: int, work: Work, config: Any) -> dict[str, Any]:
    """Run `work(config)` in so many processes, which find torchrun's variables around them.

    Args:
        count: of processes.
        work: found by its module and name, in each of them.
        config: is pickled.

    Returns:
        What rank 0 returns.

    Raises:
        BevcaskError: the first that a rank met; the others are ended.
        LoaderError: a rank was killed.
        Stopped: a signal came, to this process or to one of them.
    """
    context = multiprocessing.get_context("spawn")
    ranks: list[tuple[SpawnProcess, Connection]] = []
    stop, shared = Stop(), _shared(count)
    with stop.listening():
        try:
            for rank in range(count):
                mine, its = context.Pipe()
                process = context.Process(target=_rank, args=(work, config, its))
                with _around(shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}):
                    process.start()
                its.close()
                ranks.append((process, mine))
            said = _wait(ranks, stop)
            for process, _ in ranks:
                process.join(_LAST_WORDS)
        finally:
            for process, _ in ranks:
                process.kill()
            for process, _ in ranks:
                process.join()
    return judge(said, [process.exitcode for process, _ in ranks])


def _shared(count: int) -> dict[str, str]:
    """Return the variables that all of so many processes find."""
    with socket.socket() as own:
        own.bind(("127.0.0.1", 0))
        port = own.getsockname()[1]
    usual = {
        "OMP_NUM_THREADS": str(max(1, cores() // count)),
        "TORCH_CPP_LOG_LEVEL": "ERROR",  # DDP says that it looked for what it did not find
    }
    return {
        **{name: os.environ.get(name, value) for name, value in usual.items()},
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


@contextmanager
def _around(variables: Mapping[str, str]) -> Iterator[None]:
    """Let processes that are started in the block find these variables as they import torch."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def _wait(ranks: Sequence[tuple[SpawnProcess, Connection]], stop: Stop) -> list[Any]:
    """Return what each rank said last, in the order they ended: (rank, result, error)."""
    said: list[Any] = []
    open_ = {connection: rank for rank, (_, connection) in enumerate(ranks)}
    until: float | None = None
    while open_ and (until is None or monotonic() < until):
        for connection in wait(list(open_), _TICK):
            assert isinstance(connection, Connection)
            with suppress(EOFError, OSError):
                said.append((open_[connection], *connection.recv()))
            del open_[connection]
            until = until or monotonic() + _GRACE
        if stop.asked is not None:
            for connection in open_:
                with suppress(OSError):
                    connection.send(int(stop.asked))
    return said


def judge(said: Sequence[Any], codes: Sequence[int | None]) -> dict[str, Any]:
    """Return rank 0's result, or raise the error that the others follow from.

    Args:
        said: (rank, result, error) of each that said anything, the first to end first.
        codes: that each ended with.
    """
    errors = [error for _, _, error in said if error is not None]
    for error in errors:
        if isinstance(error, BevcaskError | Stopped) and not isinstance(error, PeerLostError):
            raise error
    heard = {rank for rank, _, _ in said}
    for rank, code in enumerate(codes):
        if rank not in heard:
            raise LoaderError(
                f"process {rank} of {len(codes)} of this training was killed (exit code {code}), "
                "perhaps for its memory. Repeat the command: it goes on from the last checkpoint."
            )
    for error in errors:
        raise error
    found: dict[str, Any] = {rank: result for rank, result, _ in said}[0]
    return found


def _rank(work: Work, config: Any, parent: Connection) -> None:
    """Be one of the processes."""
    os.setsid()  # Ctrl-C is for the parent, which hands it on
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    threading.Thread(target=_obey, args=(parent,), daemon=True).start()
    result, error = None, None
    try:
        with ending():
            result = work(config)
    except BaseException as met:
        error = met
    try:
        parent.send((result, error))
    except Exception:  # an error that does not pickle
        parent.send((None, RuntimeError(repr(error))))
    parent.close()


def _obey(parent: Connection) -> None:
    """Ask this process to end when its parent says so, once; end it when there is none any more."""
    while True:
        try:
            number = parent.recv()
        except (EOFError, OSError):
            os._exit(1)
        if signal.getsignal(number) is not signal.SIG_DFL:  # else asked, or not ready: told again
            os.kill(os.getpid(), number)
