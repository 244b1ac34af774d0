"""Does a sample cost more in a cache of 100,000 rows than in one of 1,000?

    python benchmarks/scale.py [--rows N ...] [--rounds N] [--small FOLDER] [--big FOLDER]

Maps are tiny (4 channels, 8 x 8 cells), so that what is timed is everything but the maps. Their
caches lie in memory (`--small`, /dev/shm where there is one): flushing a file takes the same time
whatever the rows, and would hide the rest. Nothing here was computed by a teacher. All times are
seconds of processor time for 1,000 rows:

    create  metadata and frames, once
    write   shards, each round an eighth of the cache, sizes by turns
    seal    once
    open    a sealed cache, one token looked up
    read    single frames of different shards, of a cache just opened: nothing is remembered
    verify  every digest

Then `verify` of maps of real size (1 MiB a sample that does not compress, on a disk, `--big`)
against SHA-256 of the same files, one after the other, by the clock on the wall; cold: none is in
the page cache.
"""

import argparse
import hashlib
import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import numpy as np
import torch
from measure import ground, interleave, ratio, report

from bevcask.cache import Encoded, FrameTable, Writer, create, open_cache, verify
from bevcask.geometry import Grid
from bevcask.targets.spec import TapInfo, TargetSpec

SEED = 0
MADE_BY = {"teacher": {"weights": "none"}}
SHARD_ROWS = 8
SCENE_FRAMES = 40  # as in nuScenes
BASE = 1000
NUM_READS = 250
BIG_ROWS = 160
FLAT = "<= 1.25"


def spec(channels: int, cells: int) -> TargetSpec:
    """Return a square target of so many channels and cells a side."""
    grid = Grid.square(cells / 2, 1.0)
    return TargetSpec(
        TapInfo("bev.neck", "dense_bev", (channels, cells, cells), grid, nonnegative=True), "uint8"
    )


def begin(url: Path, target: TargetSpec, num_rows: int) -> Writer:
    """Create a cache of one target."""
    random = np.random.default_rng(SEED)
    digits = random.bytes(16 * num_rows).hex()
    table = FrameTable(
        [digits[start : start + 32] for start in range(0, len(digits), 32)],
        [f"scene-{i // SCENE_FRAMES:05d}" for i in range(num_rows)],
        np.arange(num_rows) / 2.0,
        random.random((num_rows, 4, 4)),
    )
    return create(
        str(url),
        [target],
        table,
        shard_rows=SHARD_ROWS,
        fingerprint={"teacher": {"weights": "none"}},
        plan={},
        provenance={},
    )


class Growing:
    """One size: a cache that is written stretch by stretch, then opened, read and verified."""

    def __init__(self, url: Path, num_rows: int, stretches: int) -> None:
        self._url = url
        self._num_rows = num_rows
        start = process_time()
        self._target = spec(4, 8)
        self._writer = begin(url, self._target, num_rows)
        self.created = self._a_thousand(process_time() - start)
        missing = np.array_split(self._writer.missing(), stretches)
        self._stretches = iter([shards.tolist() for shards in missing])
        self._random = np.random.default_rng(SEED)
        self._writer.__enter__()

    def _a_thousand(self, seconds: float, num_rows: int | None = None) -> float:
        return 1000 * seconds / (num_rows or self._num_rows)

    def write(self) -> float:
        """Write the next stretch."""
        shape, num = self._target.tap.shape, 0
        start = process_time()
        for shard in next(self._stretches):
            rows = len(self._writer.tokens(shard))
            values = self._random.integers(0, 256, (rows, *shape), np.uint8)
            scale = self._random.random((rows, shape[0]), np.float32)
            self._writer.write(shard, {self._target.name: Encoded(values, scale)})
            num += rows
        return self._a_thousand(process_time() - start, num)

    def seal(self) -> float:
        """Seal, once all is written."""
        self._writer.__exit__(None, None, None)
        start = process_time()
        self._writer.seal()
        return self._a_thousand(process_time() - start)

    def open(self) -> float:
        """Open and look a token up."""
        last = self._writer.cache.frames.tokens[-1]
        start = process_time()
        assert last in open_cache(str(self._url)).layout.row_of
        return self._a_thousand(process_time() - start)

    def read(self) -> float:
        """Read a frame of each of some shards."""
        cache = open_cache(str(self._url))
        num = min(NUM_READS, cache.layout.num_shards)
        shards = self._random.choice(cache.layout.num_shards, num, replace=False).tolist()
        tokens = [cache.layout.tokens_of(shard)[0] for shard in shards]
        assert tokens[0] in cache.layout.row_of  # tokens are sorted at the first look
        start = process_time()
        for token in tokens:
            cache.read(token)
        return self._a_thousand(process_time() - start, num)

    def verify(self) -> float:
        """Check every digest."""
        start = process_time()
        assert verify(str(self._url)).ok
        return self._a_thousand(process_time() - start)


def scaling(rows: list[int], rounds: int, folder: Path) -> tuple[dict[str, list[float]], list[Any]]:
    """Return seconds by arm, and each size's ratio to `BASE` rows (or to the smallest)."""
    caches = {num: Growing(folder / f"{num}", num, rounds + 1) for num in rows}
    seconds = {f"create, {num:,} rows": [one.created] for num, one in caches.items()}
    seconds |= interleave({f"write, {n:,} rows": one.write for n, one in caches.items()}, rounds, 0)
    seconds |= {f"seal, {num:,} rows": [one.seal()] for num, one in caches.items()}
    arms: dict[str, Callable[[], float]] = {}
    for what in ("open", "read", "verify"):
        arms |= {f"{what}, {num:,} rows": getattr(one, what) for num, one in caches.items()}
    seconds |= interleave(arms, rounds, SEED)
    base = BASE if BASE in rows else min(rows)
    ratios = []
    for what in ("create", "write", "seal", "open", "read", "verify"):
        of_base = seconds[f"{what}, {base:,} rows"]
        for num in rows:
            if num != base:
                times = zip(seconds[f"{what}, {num:,} rows"], of_base, strict=True)
                name = f"{what}, {num:,} / {base:,} rows"
                ratios.append(ratio(name, [a / b for a, b in times], FLAT if num > base else None))
    return seconds, ratios


def fill(url: Path, target: TargetSpec, num_rows: int) -> None:
    """Write and seal a cache of noise."""
    random = np.random.default_rng(SEED)
    with begin(url, target, num_rows) as writer:
        for shard in writer.missing():
            shape = (len(writer.tokens(shard)), *target.tap.shape)
            values = random.integers(0, 256, shape, np.uint8)
            writer.write(shard, {target.name: Encoded(values, np.ones(shape[:2], np.float32))})
    writer.seal()


def hashing(rows: int, rounds: int, folder: Path) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Return seconds of `verify` and of SHA-256, warm and cold, and megabytes a second."""
    url = folder / "big"
    fill(url, spec(64, 128), rows)
    files = [path for path in url.rglob("*") if path.is_file()]
    num_bytes = sum(path.stat().st_size for path in files)

    def clock(cold: bool, work: Callable[[], object]) -> float:
        if cold:
            for path in files:
                drop(path)
        start = perf_counter()
        work()
        return perf_counter() - start

    works = {"verify": lambda: verify(str(url)), "sha256": lambda: [digest(p) for p in files]}
    arms = {
        f"{name}, {'cold' if cold else 'warm'}": partial(clock, cold, work)
        for name, work in works.items()
        for cold in (False, True)
    }
    seconds = interleave(arms, rounds, SEED)
    speeds = {name: [num_bytes / 1e6 / taken for taken in times] for name, times in seconds.items()}
    return seconds, {"bytes": num_bytes, "files": len(files), "megabytes_a_second": speeds}


def digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def drop(path: Path) -> None:
    """Take a file out of the page cache."""
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def measure(rows: list[int], big_rows: int, rounds: int, small: Path, big: Path) -> dict[str, Any]:
    """Run everything; return times, ratios and what they stand on."""
    config = [f"shard_rows={SHARD_ROWS}", f"rows={rows}", f"big_rows={big_rows}"]
    result = ground(torch.device("cpu"), config, SEED)
    seconds, ratios = scaling(rows, rounds, small)
    hashed, speed = hashing(big_rows, rounds, big)
    for state in ("warm", "cold"):
        times = zip(hashed[f"sha256, {state}"], hashed[f"verify, {state}"], strict=True)
        ratios.append(ratio(f"sha256 / verify, {state}", [a / b for a, b in times], ">= 1"))
    return result | {
        "data": "noise",
        "weights": "none",
        "seconds": seconds | hashed,
        "verify": speed,
        "ratios": ratios,
    }


def main() -> None:
    """Parse the command line, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[100, 1000, 10_000, 100_000])
    parser.add_argument("--big-rows", type=int, default=BIG_ROWS)
    parser.add_argument("--rounds", type=int, default=7)
    memory = Path("/dev/shm")
    parser.add_argument("--small", type=Path, default=memory if memory.is_dir() else None)
    parser.add_argument("--big", type=Path, help="folder on a disk (default: a temporary one)")
    parser.add_argument("--out", type=Path, help="JSON file (default: results/scale.json)")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(dir=options.small) as small,
        tempfile.TemporaryDirectory(dir=options.big) as big,
    ):
        places = Path(small), Path(big)
        result = measure(options.rows, options.big_rows, options.rounds, *places)
    report("scale", result, options.out)


if __name__ == "__main__":
    main()
