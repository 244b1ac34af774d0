"""kill -9 at every file operation: no hang, no lost byte, and the same command mends it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cache.sweep import COMMANDS

TESTS = Path(__file__).resolve().parent.parent


def sweep(folder: Path, command: str, stride: int) -> int:
    """Return how many points were tried, from a process without threads: it forks."""
    paths = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "cache.sweep", str(folder), command, str(stride)],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.parametrize("command", COMMANDS)
def test_killed_at_some_file_operations(tmp_path: Path, command: str) -> None:
    assert sweep(tmp_path, command, 97) >= 2


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_killed_at_every_file_operation(tmp_path: Path, command: str) -> None:
    assert sweep(tmp_path, command, 1) > 200
