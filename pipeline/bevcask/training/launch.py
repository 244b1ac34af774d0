"""Joins the processes of a training, one a device: torchrun's or srun's, or those of `spawn`."""

import logging
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta

import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from torch import distributed

from bevcask.errors import BevcaskError, ConfigError, PeerLostError
from bevcask.scheduler import place
from bevcask.trainer_config import TrainerConfig

_FIRST_PORT, _PORTS = 15000, 20000  # of a job of srun, by its number
_PATIENCE = timedelta(hours=1)  # rank 0 scores while the others wait


def ranks_to_start(config: TrainerConfig, environment: Mapping[str, str]) -> int:
    """Return how many processes are to be started here; 1 where this is one of a launcher's.

    Raises:
        ConfigError: more than one host without a launcher, or a launcher that says otherwise.
    """
    own = place(environment)
    devices = config.devices
    if devices == "auto":
        devices = max(1, torch.cuda.device_count())
    if own is not None:
        if devices is not None and devices * config.nodes != own.count:
            raise ConfigError(
                f"trainer.devices={devices} on trainer.nodes={config.nodes} are not the processes "
                f"of the launcher ({own.said_by}). Leave both keys out, or let it start as many."
            )
        return 1
    if config.nodes > 1:
        raise ConfigError(
            f"trainer.nodes={config.nodes}: processes on several hosts are started by torchrun on "
            "each of them, or by srun. Put one of them before the command."
        )
    return devices or 1


@contextmanager
def joined(environment: Mapping[str, str], device: torch.device) -> Iterator[None]:
    """Be one of the processes of a launcher while the block runs; alone, nothing happens.

    Only rank 0 says what is no warning.

    Raises:
        ConfigError: they do not find each other.
        PeerLostError: one of them has ended.
    """
    own = place(environment)
    if own is None:
        yield
        return
    for name, value in _meeting(environment).items():
        os.environ.setdefault(name, value)
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.set_device(device)
    try:
        distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if cuda else "gloo",
            rank=own.rank,
            world_size=own.count,
            timeout=_PATIENCE,
        )
    except (ValueError, RuntimeError) as error:
        raise ConfigError(
            f"{own.said_by}: the processes do not find each other "
            f"({str(error).splitlines()[0]}). Check MASTER_ADDR and MASTER_PORT."
        ) from error
    quiet = logging.getLogger("bevcask")
    level = quiet.level
    if own.rank:
        quiet.setLevel(logging.WARNING)
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, BevcaskError) or not _is_of_peers(error):
            raise
        raise PeerLostError(
            f"{own.said_by}: another process of this training has ended, and says why. Repeat the "
            "command in all of them: it goes on from the last checkpoint."
        ) from error
    finally:
        quiet.setLevel(level)
        failed = sys.exc_info()[0] is not None
        with suppress(RuntimeError):  # others may be gone
            if not failed:
                distributed.barrier()
            if not (failed and cuda):  # which would wait for them
                distributed.destroy_process_group()


def _is_of_peers(error: RuntimeError) -> bool:
    return isinstance(error, distributed.DistError) or "gloo" in str(error)


def _meeting(environment: Mapping[str, str]) -> dict[str, str]:
    """Return where the processes meet, if it is left to srun to say."""
    if "SLURM_STEP_NODELIST" not in environment or "MASTER_ADDR" in environment:
        return {}
    first = SLURMEnvironment.resolve_root_node_address(environment["SLURM_STEP_NODELIST"])
    number = int(environment.get("SLURM_JOB_ID", "0")) + int(environment.get("SLURM_STEP_ID", "0"))
    return {"MASTER_ADDR": first, "MASTER_PORT": str(_FIRST_PORT + number % _PORTS)}
