"""One small cache and one checkpoint that the stage tests share."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bevcask.cli import app
from command_words import last_of_each_key

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="session")
def call() -> Call:
    """Run the command line in this process: words -> (exit code, stdout, stderr).

    A later word of a key stands in for an earlier one: fixtures give words to begin with.
    """

    def run(*words: str) -> tuple[int, str, str]:
        answer = CliRunner().invoke(app, last_of_each_key(*words))
        known = answer.exception is None or isinstance(answer.exception, SystemExit)
        assert known, answer.exception
        return answer.exit_code, answer.stdout, answer.stderr

    return run


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of an untrained centerpoint_tiny."""
    from bevcask.config import TeacherConfig
    from bevcask.detectors.weights import save_weights
    from bevcask.groups import load_group
    from bevcask.teachers.native import NativeTeacher

    path = tmp_path_factory.mktemp("checkpoints") / "teacher.safetensors"
    teacher = NativeTeacher(TeacherConfig(**load_group("teacher", "centerpoint_tiny")), seed=5)
    save_weights(teacher.detector.state_dict(), path, {})
    return path


@pytest.fixture(scope="session")
def teacher_words(tiny_world: Path, checkpoint: Path) -> list[str]:
    """What `teacher-extract` needs to run centerpoint_tiny over all frames of `tiny_world`."""
    return [
        "teacher=centerpoint_tiny",
        f"teacher.checkpoint={checkpoint}",
        "dataset=synthetic",
        f"dataset.root={tiny_world}",
        "dataset.split=all",
        "loader.num_workers=0",
    ]


@pytest.fixture(scope="session")
def cached_world(
    teacher_words: list[str], call: Call, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A sealed uint8 cache of all frames of `tiny_world`, teacher centerpoint_tiny."""
    url = tmp_path_factory.mktemp("cached") / "world.zarr"
    code, _, err = call("teacher-extract", str(url), *teacher_words, "store.shard_rows=2")
    assert code == 0, err
    return url


@pytest.fixture(scope="session")
def scheduler() -> Iterator[str]:
    """Address of a cluster of two workers, threads of this process."""
    from distributed import LocalCluster

    with LocalCluster(  # type: ignore[no-untyped-call]
        n_workers=2, threads_per_worker=1, processes=False, dashboard_address="127.0.0.1:0"
    ) as cluster:
        yield cluster.scheduler_address


@pytest.fixture
def own_world(tiny_world: Path, tmp_path: Path) -> Path:
    """A copy of `tiny_world` a test may damage."""
    return Path(shutil.copytree(tiny_world, tmp_path / "own_world"))
