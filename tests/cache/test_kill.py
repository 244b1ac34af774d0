"""kill -9 at any moment: nothing committed is lost, nothing half written is believed.

An outside process is killed while a big shard is on its way to the disk, the same command goes on,
and the end is compared byte by byte with a cache nobody disturbed.
"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bevcask.cache import open_cache, verify
from bevcask.errors import BevcaskError

TESTS = Path(__file__).resolve().parent.parent


def start(url: Path) -> subprocess.Popen[bytes]:
    paths = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "cache.killed", str(url)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)


def finish(url: Path) -> None:
    process = start(url)
    _, message = process.communicate()
    assert process.returncode == 0, message.decode()


def half_written(url: Path) -> bool:
    """Tell whether the file of a shard is on its way to the disk."""
    values = (url / "targets" / tap / "values" for tap in ("bev.neck", "bev.other"))
    return any(any(folder.glob("*.partial")) for folder in values)


def num_committed(url: Path) -> int:
    return len([path for path in (url / "commit").glob("*/c.*") if path.suffix != ".partial"])


def kill_while_writing(url: Path, seeded: random.Random) -> bool:
    """Kill a run while it writes; return whether a shard was caught half written."""
    process = start(url)
    enough = num_committed(url) + seeded.randrange(2)
    deadline = time.monotonic() + 120
    while process.poll() is None and not (half_written(url) and num_committed(url) >= enough):
        assert time.monotonic() < deadline
        time.sleep(0.0005)
    time.sleep(seeded.uniform(0, 0.004))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return half_written(url)


def check_after_kill(url: Path) -> int:
    """Return the committed shards; every one of their frames must read, no other may."""
    try:
        cache = open_cache(str(url), allow_unsealed=True)
    except BevcaskError:
        assert not (url / "zarr.json").exists()
        return 0
    for shard in range(cache.layout.num_shards):
        for frame in cache.layout.frames_of(shard):
            token = cache.frames.tokens[frame]
            if shard in cache.committed:
                cache.read(token)
            else:
                with pytest.raises(BevcaskError):
                    cache.read(token)
    if not cache.sealed:
        problems = {problem.key for problem in verify(str(url)).problems}
        assert problems == {"zarr.json"}
    return len(cache.committed)


def attack(tmp_path: Path, num_hits: int) -> None:
    """Kill until `num_hits` shards were caught half written, then compare with `diff -r`."""
    calm = tmp_path / "calm"
    finish(calm)
    seeded = random.Random(num_hits)
    hits, attempt, url = 0, 0, tmp_path / "killed0"
    while hits < num_hits:
        attempt += 1
        assert attempt < 10 * num_hits, "kills do not hit a shard being written"
        hits += kill_while_writing(url, seeded)
        if check_after_kill(url) >= 5:  # nearly done: finish, compare, begin another
            finish_and_compare(url, calm)
            url = tmp_path / f"killed{attempt}"
    finish_and_compare(url, calm)


def finish_and_compare(url: Path, calm: Path) -> None:
    finish(url)
    command = ["diff", "-rq", "-x", "provenance", str(calm), str(url)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == ""
    assert done.returncode == 0
    assert verify(str(url)).ok


def test_three_kills_then_diff(tmp_path: Path) -> None:
    attack(tmp_path, 3)


@pytest.mark.slow
def test_twenty_kills_then_diff(tmp_path: Path) -> None:
    attack(tmp_path, 20)
