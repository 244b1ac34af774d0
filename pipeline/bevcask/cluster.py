"""Pieces of work on the workers of a dask.distributed cluster: ours on this machine, or any other.

A piece whose worker dies is given to another, so it must be safe to do twice.
"""

import logging
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, TypeVar

from bevcask.errors import ClusterError, ConfigError, MissingDependencyError
from bevcask.verbs import EngineConfig
from bevcask.worker import forget, own_workers

Piece = TypeVar("Piece")
Result = TypeVar("Result")
_SECONDS = 30  # for a scheduler to answer
_log = logging.getLogger(__name__)


class Workers:
    """The workers of a cluster; `run` names this run to them, see `worker.kept`."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self.run = uuid.uuid4().hex

    def map(self, work: Callable[[Piece], Result], pieces: Sequence[Piece]) -> Iterator[Result]:
        """Yield what becomes of each piece, in order, whatever the order they are done in.

        Args:
            work: importable on the workers, or a `partial` of such; safe to do twice.
            pieces: what it is done to.

        Raises:
            ClusterError: workers died of a piece, one after the other; or the scheduler is gone.
            BevcaskError: a piece failed as it would have here.
        """
        from distributed import KilledWorker

        futures = self._client.map(work, pieces, pure=False)
        try:
            for future in futures:
                yield future.result()
        except (KilledWorker, CancelledError) as error:
            raise ClusterError(
                f"{str(error) or 'the dask scheduler is gone'}. Where workers come and go for "
                "other reasons, start the scheduler with "
                "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES=100. What is committed is safe: the "
                "same command goes on from there."
            ) from None
        finally:
            with suppress(CancelledError, OSError):
                self._client.cancel(futures)


@contextmanager
def workers_of(config: EngineConfig) -> Iterator[Workers | None]:
    """Connect to the workers a configuration asks for; None where it wants this process alone.

    Workers of our own end with the block, however it ends; others leave the pieces they are at.

    Raises:
        MissingDependencyError: dask.distributed is not installed.
        ConfigError: the scheduler does not answer.
    """
    if config.engine == "here":
        yield None
        return
    try:
        import distributed
    except ImportError as error:
        raise MissingDependencyError(
            f"engine=dask needs dask.distributed ({error}): pip install 'bevcask[dask]'. Without "
            "it, part=i/n fills a cache from several processes."
        ) from error
    logging.getLogger("distributed").setLevel(logging.WARNING)  # its import says otherwise
    connect: Any = distributed.Client
    with ExitStack() as stack:
        address = config.scheduler or stack.enter_context(own_workers(config.workers))
        try:
            client = stack.enter_context(connect(address, timeout=_SECONDS))
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"scheduler={config.scheduler}: no dask scheduler answers there ({error}). Say "
                "tcp://HOST:PORT as `dask scheduler` prints it, or workers=N for workers here."
            ) from error
        workers, number = Workers(client), len(client.nthreads())
        where = f"{client.scheduler.address}, dashboard {client.dashboard_link}"
        _log.info("dask: %d workers of %s", number, where)
        try:
            yield workers
        finally:
            if config.scheduler:
                with suppress(Exception):  # what ended the run may have ended the workers too
                    client.run(forget, workers.run, on_error="ignore")
