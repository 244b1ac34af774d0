"""kill -9 at any moment: nothing committed is lost, nothing half written is believed.

An outside process is killed while a big shard is on its way to the disk, the same command goes on,
and the end is compared byte by byte with a cache nobody disturbed.
"""

import random
import subprocess
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

import forked
from bevcask.cache import open_cache, verify
from bevcask.errors import BevcaskError
from bevcask.paths import PARTIAL
from cache.killed import fill


def start(url: Path, *words: str) -> BaseProcess:
    return forked.start(fill, url, *words)


def finish(url: Path, *words: str) -> None:
    forked.finish(start(url, *words))


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
    while process.is_alive() and not (half_written(url) and num_committed(url) >= enough):
        assert time.monotonic() < deadline
        time.sleep(0.0005)
    time.sleep(seeded.uniform(0, 0.004))
    forked.kill(process)
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


def finish_and_compare(url: Path, calm: Path, *words: str) -> None:
    finish(url, *words)
    left = [path for path in url.glob("leases/*") if not path.name.endswith(PARTIAL)]
    assert not left  # one that was cut off as it was written goes when it has been silent for long
    command = ["diff", "-rq", "-x", "provenance", "-x", "leases", str(calm), str(url)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == ""
    assert done.returncode == 0
    assert verify(str(url)).ok


def attack_parts(tmp_path: Path, num_kills: int) -> None:
    """Let two processes fill one cache; kill one, the other or both, and start what was killed."""
    calm, url = tmp_path / "calm", tmp_path / "parts"
    finish(calm)
    seeded = random.Random(num_kills)
    running = {part: start(url, part) for part in ("1/2", "2/2")}
    for _ in range(num_kills):
        done = num_committed(url)
        deadline = time.monotonic() + 60
        while all(one.is_alive() for one in running.values()):
            if num_committed(url) > done or half_written(url):
                break
            assert time.monotonic() < deadline
        time.sleep(seeded.uniform(0, 0.02))
        for part in seeded.sample(sorted(running), seeded.choice((1, 1, 2))):
            forked.kill(running[part])
            running[part] = start(url, part)
    for one in running.values():
        forked.finish(one)
    finish_and_compare(url, calm)


def attack_addition(tmp_path: Path, num_kills: int) -> None:
    """Kill processes that add two bulky targets; the small ones must read all the time."""
    calm, url = tmp_path / "calm", tmp_path / "added"
    finish(calm)
    finish(url, "1/1", "2")
    seeded = random.Random(num_kills)
    for _ in range(num_kills):
        process = start(url, "1/1", "4")
        deadline = time.monotonic() + 60
        while process.is_alive() and not (half_written(url) or (url / "addition").exists()):
            assert time.monotonic() < deadline
        time.sleep(seeded.uniform(0, 0.3))
        forked.kill(process)
        cache = open_cache(str(url))
        for token in cache.frames.tokens:
            cache.read(token, ["head.heatmap", "head.boxes"])
        assert verify(str(url)).ok
    finish_and_compare(url, calm, "1/1", "4")


def test_killed_parts_then_diff(tmp_path: Path) -> None:
    attack_parts(tmp_path, 3)


def test_killed_additions_then_diff(tmp_path: Path) -> None:
    attack_addition(tmp_path, 3)


@pytest.mark.slow
def test_many_killed_parts_and_additions_then_diff(tmp_path: Path) -> None:
    attack_parts(tmp_path / "parts", 20)
    attack_addition(tmp_path / "additions", 20)


def test_three_kills_then_diff(tmp_path: Path) -> None:
    attack(tmp_path, 3)


@pytest.mark.slow
def test_twenty_kills_then_diff(tmp_path: Path) -> None:
    attack(tmp_path, 20)
