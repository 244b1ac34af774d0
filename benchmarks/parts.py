"""How much faster do two processes fill a cache than one?

    python benchmarks/parts.py [--size tiny|paper] [--rounds N] [key=value ...]

Two arms, each a whole `teacher-extract` of the same frames into an empty folder:

    one   one process
    two   two processes at once, part=1/2 and part=2/2

Every process computes on one thread. Processes have imported everything before the clock starts;
reading tables, building the teacher, creating and sealing the cache are in the time. The clock
stops when the last process has ended and the cache is sealed.
"""

import argparse
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from measure import ground, interleave, make_world, ratio, report

from bevcask.cache import open_cache

SEED = 0
_WORKER = """
import sys
from bevcask.compose import compose
from bevcask.verbs import ExtractConfig
from bevcask.stages import teacher_extract
print("ready", flush=True)
for line in sys.stdin:
    teacher_extract.run(compose(ExtractConfig, line.rstrip("\\n").split("\\t")))
    print("done", flush=True)
"""


@dataclass(frozen=True)
class Size:
    """One configuration, fixed before anything is timed.

    Attributes:
        words: the run's configuration.
        num_keyframes: frames of the synthetic scene.
    """

    words: tuple[str, ...]
    num_keyframes: int


SIZES = {
    "tiny": Size(("teacher=centerpoint_tiny", "loader.batch_size=4"), num_keyframes=128),
    "paper": Size(
        ("teacher=centerpoint", "loader.batch_size=2", "store.shard_rows=2"), num_keyframes=8
    ),
}


class Worker:
    """A process that has imported everything and waits for configurations."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _WORKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        self.wait()

    def send(self, words: list[str]) -> None:
        """Begin an extraction."""
        assert self._process.stdin is not None
        self._process.stdin.write("\t".join(words) + "\n")
        self._process.stdin.flush()

    def wait(self) -> None:
        """Wait until it is ready, or has done what it was sent."""
        assert self._process.stdout is not None
        if not self._process.stdout.readline():
            raise SystemExit("a worker failed; run the same teacher-extract by hand to see why")

    def __enter__(self) -> "Worker":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.communicate()


def measure(size: Size, extra: list[str], rounds: int, folder: Path) -> dict[str, Any]:
    """Time both arms; return seconds, ratio and what they stand on."""
    words = [*size.words, "method=distillbev", f"seed={SEED}", "loader.num_workers=0", "device=cpu"]
    words += extra
    root = make_world(folder / "world", size.num_keyframes, image_width=64)
    data = ["dataset=synthetic", f"dataset.root={root}", "dataset.split=all"]
    result = ground(torch.device("cpu"), words, SEED)
    result["hardware"]["threads"] = "1 a process"
    numbers = itertools.count()
    with Worker() as first, Worker() as second:

        def extract(parts: dict[str, Worker]) -> float:
            url = folder / f"{next(numbers)}.zarr"
            start = time.perf_counter()
            for part, worker in parts.items():
                worker.send([*words, *data, f"cache={url}", f"part={part}"])
            for worker in parts.values():
                worker.wait()
            seconds = time.perf_counter() - start
            assert len(open_cache(str(url)).runs) == len(parts)
            shutil.rmtree(url)
            return seconds

        arms = {
            "one": lambda: extract({"1/1": first}),
            "two": lambda: extract({"1/2": first, "2/2": second}),
        }
        seconds = interleave(arms, rounds, SEED)
    pairs = list(zip(seconds["one"], seconds["two"], strict=True))
    return result | {
        "frames": size.num_keyframes,
        "seconds": seconds,
        "ratios": [ratio("one / two", [one / two for one, two in pairs], ">= 1.6")],
    }


def main() -> None:
    """Parse the command line, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", choices=sorted(SIZES), default="tiny")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--frames", type=int, help="keyframes (default: the size's)")
    parser.add_argument("--out", type=Path, help="JSON file (default: results/NAME.json)")
    parser.add_argument("words", nargs="*", metavar="key=value", help="changes the configuration")
    options = parser.parse_args()
    size = SIZES[options.size]
    if options.frames:
        size = replace(size, num_keyframes=options.frames)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["BEVCASK_HOME"] = folder  # index and catalog entry of data that goes away
        result = measure(size, options.words, options.rounds, Path(folder))
    report("parts" if options.size == "tiny" else f"parts_{options.size}", result, options.out)


if __name__ == "__main__":
    main()
