"""How many gigabytes a second does the writer take, by its number of threads?

    python benchmarks/write_threads.py [--rounds N] [--shards N] [--folder DIR]

The teacher is a stub whose forward is free: what it says of a few shards lies in memory, quantised.
An arm hands the same shards to a `WriteQueue` of so many threads; from the first to the last commit
on the disk counts, creating and sealing the cache does not. Gigabytes are those of the encoded
values, before compression.
"""

import argparse
import itertools
import shutil
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from measure import ground, interleave, ratio, report

from bevcask.cache import Encoded, FrameTable, WriteQueue, create, encode, open_cache
from bevcask.geometry import Grid
from bevcask.processes import cores
from bevcask.targets.spec import TapInfo, TargetSpec

SEED = 0
QUEUE = 2
SAID = 2  # shards that differ from each other; they take turns


@dataclass(frozen=True)
class Size:
    """What is written, fixed before anything is timed.

    Attributes:
        channels: of each of three maps.
        side: their cells a side.
        shard_rows: frames a shard.
        num_shards: written in each arm of a round.
    """

    channels: tuple[int, int, int] = (256, 128, 64)
    side: int = 128
    shard_rows: int = 8
    num_shards: int = 8


class Writing:
    """A stub of a teacher and everything it says."""

    def __init__(self, size: Size, folder: Path) -> None:
        grid = Grid.square(size.side / 2, 1.0)
        shapes = [(channels, size.side, size.side) for channels in size.channels]
        taps = [
            TapInfo(name, "dense_bev", shape, grid, nonnegative=name != "bev.signed")
            for name, shape in zip(("bev.neck", "bev.block", "bev.signed"), shapes, strict=True)
        ]
        self._specs = [TargetSpec(tap, "uint8" if tap.nonnegative else "int8") for tap in taps]
        self._size = size
        self._folder = folder
        self._numbers = itertools.count()
        random = torch.Generator().manual_seed(SEED)
        self._said = [
            {spec.key: _maps(spec, size.shard_rows, random) for spec in self._specs}
            for _ in range(SAID)
        ]
        self.digests: set[str] = set()
        self.stored_bytes = 0
        self.cpu_seconds: dict[str, list[float]] = defaultdict(list)

    @property
    def encoded_bytes(self) -> int:
        """Bytes of the values that an arm writes, before compression."""
        shards = itertools.islice(itertools.cycle(self._said), self._size.num_shards)
        return sum(target.values.nbytes for said in shards for target in said.values())

    def write(self, threads: int) -> float:
        """Return the seconds from the first shard handed over to the last one committed."""
        num = self._size.num_shards * self._size.shard_rows
        tokens = [f"{number:032x}" for number in range(num)]
        poses = np.tile(np.eye(4), (num, 1, 1))
        writer = create(
            str(self._folder / f"{next(self._numbers)}.zarr"),
            self._specs,
            FrameTable(tokens, ["scene"] * num, np.arange(float(num)), poses),
            shard_rows=self._size.shard_rows,
            fingerprint={"teacher": {"weights": "none"}},
            plan={},
            provenance={},
        )
        with writer:
            began, used = time.perf_counter(), time.process_time()
            with WriteQueue(writer, QUEUE, threads) as queue:
                for shard in writer.missing():
                    queue.put(shard, self._said[shard % SAID])
            seconds = time.perf_counter() - began
            self.cpu_seconds[_name(threads)].append(time.process_time() - used)
        writer.seal()
        cache = open_cache(writer.cache.url)
        self.digests.add(cache.attributes["commit"])
        self.stored_bytes = sum(cache.stored_bytes(name) for name in cache.specs)
        shutil.rmtree(cache.url)
        return seconds


def _maps(spec: TargetSpec, num: int, random: torch.Generator) -> Encoded[Any]:
    """Return smooth maps that are mostly silent, as features behind a ReLU are."""
    channels, side = spec.tap.shape[0], spec.tap.shape[-1]
    coarse = torch.randn(num, channels, side // 8, side // 8, generator=random)
    smooth = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bilinear")
    loud = (smooth.abs() - 0.7).relu()
    return encode(loud if spec.tap.nonnegative else loud * smooth.sign(), spec).numpy()


def _name(threads: int) -> str:
    return f"{threads} thread{'s' * (threads > 1)}"


def measure(size: Size, numbers: list[int], rounds: int, folder: Path) -> dict[str, Any]:
    """Time an arm a number of threads, the first of them against the others."""
    result = ground(torch.device("cpu"), [], SEED)
    writing = Writing(size, folder)
    arms = {_name(number): lambda number=number: writing.write(number) for number in numbers}
    seconds = interleave(arms, rounds, SEED)
    if len(writing.digests) != 1:
        raise SystemExit("the bytes depend on the number of threads")
    one = seconds[_name(numbers[0])]
    ratios = []
    for number in numbers[1:]:
        pairs = zip(one, seconds[_name(number)], strict=True)
        goal = ">= 1.7" if (numbers[0], number) == (1, 2) else None
        ratios.append(ratio(f"1 / {_name(number)}", [a / b for a, b in pairs], goal))
    return result | {
        "data": "smooth maps, mostly silent; a stub of a teacher",
        "weights": "none",
        "encoded_bytes": writing.encoded_bytes,
        "stored_bytes": writing.stored_bytes,
        "digest": writing.digests.pop(),
        "seconds": seconds,
        "cpu_seconds": {name: values[-rounds:] for name, values in writing.cpu_seconds.items()},
        "gigabytes_a_second": {
            name: writing.encoded_bytes / 1e9 / median(values) for name, values in seconds.items()
        },
        "ratios": ratios,
    }


def table(result: dict[str, Any]) -> str:
    """Return GB/s, seconds and processor time by number of threads."""
    lines = [f"{'':12}{'GB/s':>8}{'wall s':>9}{'CPU s':>9}{'cores busy':>12}"]
    for name, speed in result["gigabytes_a_second"].items():
        wall, cpu = median(result["seconds"][name]), median(result["cpu_seconds"][name])
        lines.append(f"{name:12}{speed:8.3f}{wall:9.2f}{cpu:9.2f}{cpu / wall:12.2f}")
    return "\n".join(lines)


def main() -> None:
    """Parse the command line, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--shards", type=int, default=Size.num_shards, help="a round and arm")
    parser.add_argument("--threads", help="such as 1,2,8 (default: powers of two, to the cores)")
    parser.add_argument("--folder", type=Path, help="where to write (default: a temporary one)")
    parser.add_argument("--out", type=Path, help="JSON file (default: results/NAME.json)")
    options = parser.parse_args()
    numbers = [2**power for power in range(max(2, cores()).bit_length())]
    if options.threads:
        numbers = [int(word) for word in options.threads.split(",")]
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        size = Size(num_shards=options.shards)
        result = measure(size, numbers, options.rounds, Path(folder))
    print(table(result))
    report("write_threads", result, options.out)


if __name__ == "__main__":
    main()
