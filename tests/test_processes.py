"""Helper processes end with the process they serve, and with nothing else."""

import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SERVED = """
import multiprocessing, os, sys, time
from bevcask.processes import FORK_SERVER, end_with_parent

def work():
    end_with_parent()
    print(os.getpid(), flush=True)
    while True:
        time.sleep(1)

if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    if sys.argv[1] == "forkserver":
        context.set_forkserver_preload([FORK_SERVER])
    worker = context.Process(target=work, daemon=True)
    worker.start()
    sys.stdin.readline()
    worker.terminate()
    worker.join()
    print(worker.exitcode, flush=True)
"""


def family(pid: int) -> set[int]:
    """Return the children of a process, and theirs."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            child, parent = (
                int(path.parent.name),
                int(path.read_text().rpartition(")")[2].split()[1]),
            )
        except OSError:
            continue
        if parent == pid:
            found |= {child, *family(child)}
    return found


def alive(pids: set[int]) -> set[int]:
    return {pid for pid in pids if Path(f"/proc/{pid}").exists()}


@pytest.fixture(params=["spawn", "forkserver"])
def served(request: pytest.FixtureRequest, tmp_path: Path) -> subprocess.Popen[str]:
    """A process with a worker, in a group of its own."""
    program = tmp_path / "served.py"
    program.write_text(SERVED)
    return subprocess.Popen(
        [sys.executable, str(program), request.param],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_killed_process_leaves_nobody_behind(served: subprocess.Popen[str]) -> None:
    with served as process:
        assert process.stdout is not None
        assert int(process.stdout.readline())
        helpers = family(process.pid)
        assert helpers
        process.kill()
        process.wait()
        deadline = time.monotonic() + 20
        while (left := alive(helpers)) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not left


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nobody tells who sent a signal")
def test_signals_of_the_group_are_left_to_the_process_that_is_served(
    served: subprocess.Popen[str],
) -> None:
    with served as process:
        assert process.stdin is not None
        assert process.stdout is not None
        worker = int(process.stdout.readline())
        helpers = family(process.pid)
        for pid in helpers:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
                os.kill(pid, number)
        time.sleep(0.2)
        assert worker in alive(helpers)
        assert alive(helpers) == helpers
        process.stdin.write("end\n")
        process.stdin.flush()
        assert int(process.stdout.readline()) == 0


ALLOCATING = """
import resource, sys
import numpy as np
from bevcask.processes import keep_freed_memory

def allocate():
    images = [np.empty(3 * 2**20, np.uint8) for _ in range(15)]
    for image in images:
        image.fill(1)

if sys.argv[1] == "keep":
    keep_freed_memory()
allocate()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
allocate()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc alone")
def test_freed_memory_is_kept_for_what_is_allocated_next() -> None:
    faults = {}
    for how in ("keep", "return"):
        told = subprocess.check_output([sys.executable, "-c", ALLOCATING, how], text=True)
        faults[how] = int(told)
    assert faults["keep"] < 1000
    assert faults["return"] > 10000
