"""What a piece of work asks of the dask worker it runs on, and workers of our own."""

import logging
import re
import threading
from collections.abc import Callable
from multiprocessing import current_process
from typing import Any, TypeVar

from bevcask.errors import ConfigError
from bevcask.processes import cores, end_with_parent

Kept = TypeVar("Kept")
_kept: dict[str, dict[str, Any]] = {}
one_at_a_time = threading.RLock()
"""Held by pieces that do not run beside each other in one process: those of a teacher."""


def kept(run: str, name: str, make: Callable[[], Kept]) -> Kept:
    """Return what this process keeps until the end of a run; made when it is first asked for."""
    with one_at_a_time:
        own = _kept.setdefault(run, {})
        if name not in own:
            own[name] = make()
        found: Kept = own[name]
        return found


def forget(run: str) -> None:
    """Drop what is kept for a run."""
    _kept.pop(run, None)


def own_device(name: str) -> str:
    """Return the device of this worker: with `auto` each worker of a host has a GPU of its own.

    Workers are told apart by the number their name ends in, as every dask cluster gives it.
    """
    import torch
    from distributed import get_worker

    number = re.search(r"\d+$", str(get_worker().name))
    if name != "auto" or number is None or not torch.cuda.is_available():
        return name
    return f"cuda:{int(number[0]) % torch.cuda.device_count()}"


def require_children(number: int | str) -> None:
    """Make sure that this worker may start so many loader processes.

    Raises:
        ConfigError: it is a daemon, as dask starts them.
    """
    if number and current_process().daemon:
        raise ConfigError(
            f"loader.num_workers={number}: this dask worker is a daemon, and those may not start "
            "processes. Start workers with DASK_DISTRIBUTED__WORKER__DAEMON=False in their "
            "environment, or say loader.num_workers=0, which loads in the worker itself."
        )


def unwanted() -> bool:
    """Tell whether nobody waits for this piece any more: its run has ended, however."""
    from distributed import get_worker

    worker = get_worker()
    task = worker.state.tasks.get(worker.get_current_task())
    return task is None or task.state == "cancelled"


def own_workers(number: int | None) -> Any:
    """Return a cluster of processes on this machine: so many, or one a GPU, or one a core."""
    import dask
    import distributed
    import torch

    # A daemon may start no loader processes. Memory is flat here and needs no watchman.
    dask.config.set({"distributed.worker.daemon": False})
    cluster: Any = distributed.LocalCluster
    return cluster(
        n_workers=number or torch.cuda.device_count() or cores(),
        threads_per_worker=1,
        memory_limit=None,
        preload=["bevcask.worker"],
        dashboard_address="127.0.0.1:0",
    )


def dask_setup(worker: Any) -> None:
    """Begin a worker of our own, which dask preloads this module for: no life and little to say."""
    logging.getLogger("distributed").setLevel(logging.ERROR)
    end_with_parent()
