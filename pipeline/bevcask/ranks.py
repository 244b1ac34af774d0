"""The processes that train one student together, as torch.distributed knows them.

Where there is no process group, this process is all of them: nothing here talks to anybody.
Messages between hosts go through main memory, sums of tensors wherever the tensors are.
"""

from collections.abc import Callable
from typing import Any, TypeVar, overload

import torch
from torch import Tensor, distributed

T = TypeVar("T")


def rank() -> int:
    """Return which of the processes this is, from 0."""
    return distributed.get_rank() if _several() else 0


def num_ranks() -> int:
    """Return how many there are."""
    return distributed.get_world_size() if _several() else 1


@overload
def per_rank(count: float, least: float = 1) -> float: ...
@overload
def per_rank(count: Tensor, least: float = 1) -> Tensor: ...
def per_rank(count: Tensor | float, least: float = 1) -> Tensor | float:
    """Return what a rank divides its sum of losses by: the mean over ranks of a count.

    Gradients and logged losses are means over ranks, so sums that each rank divides by this become
    the sum over the global batch divided by its count, `least` at least. Every rank must ask, also
    one that counts nothing.

    Args:
        count: of this rank, any shape; no gradient goes through it.
        least: of all ranks together.
    """
    if isinstance(count, Tensor):
        return summed(count).clamp(min=least) / num_ranks()
    return max(float(summed(torch.tensor(float(count)))), least) / num_ranks()


def summed(values: Tensor) -> Tensor:
    """Return the sum over ranks, without gradient."""
    if not _several():
        return values.detach()
    total = values.detach().clone()
    distributed.all_reduce(total)
    return total


def most(number: int) -> int:
    """Return the largest number that a rank has."""
    if not _several():
        return number
    found = torch.tensor(number)
    distributed.all_reduce(found, distributed.ReduceOp.MAX)
    return int(found)


def each(value: T) -> list[T]:
    """Return what every rank has, in their order, on every rank. It is pickled."""
    if not _several():
        return [value]
    found: list[Any] = [None] * num_ranks()
    distributed.all_gather_object(found, value)
    return found


def to_first(value: T) -> list[T]:
    """Return what every rank has, in their order, on rank 0; nothing on the others."""
    if not _several():
        return [value]
    found: list[Any] | None = [None] * num_ranks() if rank() == 0 else None
    distributed.gather_object(value, found)
    return found or []


def by_first(work: Callable[[], T]) -> T:
    """Let rank 0 do something; return its result on every rank. It is pickled.

    Raises:
        Exception: whatever rank 0 met, on every rank.
    """
    if not _several():
        return work()
    said: list[Any] = [None, None]
    if rank() == 0:
        try:
            said = [work(), None]
        except Exception as met:
            said = [None, met]
    distributed.broadcast_object_list(said)
    if said[1] is not None:
        raise said[1]
    result: T = said[0]
    return result


def _several() -> bool:
    return distributed.is_available() and distributed.is_initialized()
