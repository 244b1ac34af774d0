"""Shares of the work, from the environment of a scheduler."""

import pytest

from bevcask.errors import ConfigError
from bevcask.scheduler import Share, local_rank, place, share


def array(task: int, count: int, first: int = 0, step: int = 1) -> dict[str, str]:
    words = {"ID": task, "COUNT": count, "MIN": first, "STEP": step}
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in words.items()}


def ranks(rank: int, count: int) -> dict[str, str]:
    return {"RANK": str(rank), "WORLD_SIZE": str(count)}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        (ranks(0, 1), None),
        ({"SLURM_ARRAY_TASK_ID": "3"}, None),
        (array(0, 1), (1, 1)),
        (array(0, 4), (1, 4)),
        (array(3, 4), (4, 4)),
        (array(11, 2, first=10), (2, 2)),
        (array(14, 3, first=10, step=2), (3, 3)),
        (ranks(5, 8), (6, 8)),
        ({**array(2, 2, first=1), **ranks(1, 3)}, (5, 6)),
    ],
)
def test_shares(environment: dict[str, str], expected: tuple[int, int] | None) -> None:
    found = share(environment)
    assert (found and (found.number, found.count)) == expected


def test_all_of_an_array_of_ranks_are_there_once() -> None:
    found = [
        share({**array(task, 3, first=7, step=5), **ranks(rank, 2)})
        for task in (7, 12, 17)
        for rank in range(2)
    ]
    assert [own and own.number for own in found] == [1, 2, 3, 4, 5, 6]
    assert found[-1] == Share(6, 6, "SLURM_ARRAY_TASK_ID=17 of 3, RANK=1 of 2")


@pytest.mark.parametrize(
    "environment",
    [
        array(5, 2),
        array(11, 4, first=10, step=2),
        ranks(8, 8),
        array(0, 2) | {"RANK": "x", "WORLD_SIZE": "2"},
    ],
)
def test_contradictions_are_named(environment: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"SLURM_ARRAY_TASK_ID=|RANK="):
        share(environment)


def test_which_gpu_of_the_host() -> None:
    assert local_rank({}) is None
    assert local_rank({"LOCAL_RANK": "3"}) == 3


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        (ranks(0, 1), None),
        (ranks(5, 8), (5, 8)),
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, None),  # an allocation, not its srun
        ({"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3"}, (3, 4)),
        ({"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1", **ranks(6, 8)}, (6, 8)),
    ],
)
def test_places_among_processes_that_work_together(
    environment: dict[str, str], expected: tuple[int, int] | None
) -> None:
    found = place(environment)
    assert (found and (found.rank, found.count)) == expected


@pytest.mark.parametrize("environment", [{"WORLD_SIZE": "2"}, ranks(2, 2)])
def test_places_that_are_none(environment: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="WORLD_SIZE=2"):
        place(environment)
