"""What a scheduler says of this process: SLURM's arrays, and the ranks of torchrun or of srun.

Nobody coordinates: each process works out its share from the environment alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from bevcask.errors import ConfigError

_ARRAY = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT")
_FIRST, _STEP = "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_STEP"
_RANKS = ("RANK", "WORLD_SIZE")
_STEP_RANKS = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS")
_LOCAL, _STEP_LOCAL = "LOCAL_RANK", "SLURM_LOCALID"


@dataclass(frozen=True)
class Place:
    """Which of the processes of one job this is.

    Attributes:
        rank: from 0, of all.
        count: of all.
        said_by: the variables it comes from.
    """

    rank: int
    count: int
    said_by: str


@dataclass(frozen=True)
class Share:
    """Which of so many equal processes this is.

    Attributes:
        number: from 1.
        count: of all.
        said_by: the variables it comes from.
    """

    number: int
    count: int
    said_by: str


def share(environment: Mapping[str, str]) -> Share | None:
    """Return the share of this process; None where no scheduler runs several.

    The tasks of a job array share the work, and the ranks of each task its share.

    Raises:
        ConfigError: variables that contradict themselves.
    """
    array, ranks = _of_array(environment), _of_ranks(environment)
    found = [own for own in (array, ranks) if own is not None]
    if not found:
        return None
    number, count = 0, 1
    for own in found:
        number, count = number * own.count + own.number - 1, count * own.count
    return Share(number + 1, count, ", ".join(own.said_by for own in found))


def place(environment: Mapping[str, str]) -> Place | None:
    """Return the place of this process among those of torchrun or of srun; None where it is alone.

    A SLURM allocation of several tasks is no such thing: only its `srun` starts several.

    Raises:
        ConfigError: variables that contradict themselves.
    """
    for number, count in (_RANKS, _STEP_RANKS):
        if count in environment and (several := _whole(environment, count)) > 1:
            if number not in environment:
                raise ConfigError(f"{count}={several}, but no {number} says which one this is.")
            rank = _whole(environment, number)
            if rank >= several:
                raise ConfigError(
                    f"{number}={rank} is none of {count}={several} processes, counted from 0."
                )
            return Place(rank, several, f"{number}={rank} of {count}={several}")
    return None


def local_rank(environment: Mapping[str, str]) -> int | None:
    """Return which of its host's processes this is, from 0; None where nobody says."""
    for name in (_LOCAL, _STEP_LOCAL):
        if name in environment:
            return _whole(environment, name)
    return None


def _of_array(environment: Mapping[str, str]) -> Share | None:
    if not all(name in environment for name in _ARRAY):
        return None
    task, count = (_whole(environment, name) for name in _ARRAY)
    first = _whole(environment, _FIRST) if _FIRST in environment else 0
    step = _whole(environment, _STEP) if _STEP in environment else 1
    place, rest = divmod(task - first, step) if step else (-1, 0)
    if rest or not 0 <= place < count:
        raise ConfigError(
            f"{_ARRAY[0]}={task} is none of {count} tasks from {first} in steps of {step}, which "
            "SLURM says this job array has. Say part=i/n yourself."
        )
    return Share(place + 1, count, f"{_ARRAY[0]}={task} of {count}")


def _of_ranks(environment: Mapping[str, str]) -> Share | None:
    if not all(name in environment for name in _RANKS):
        return None
    rank, count = (_whole(environment, name) for name in _RANKS)
    if not 0 <= rank < count:
        raise ConfigError(
            f"{_RANKS[0]}={rank} is none of {_RANKS[1]}={count} ranks, counted from 0. Say "
            "part=i/n yourself."
        )
    return Share(rank + 1, count, f"{_RANKS[0]}={rank} of {count}") if count > 1 else None


def _whole(environment: Mapping[str, str], name: str) -> int:
    text = environment[name]
    if not text.isdecimal():
        raise ConfigError(f"{name}={text}: expected a whole number from the scheduler.")
    return int(text)
