"""How fast does a spool become a cache, against copying its files, and in how much memory?

    python benchmarks/spool.py [--rounds N] [--frames N] [--many N]

Arms over the same samples, DistillBEV's targets in float16 as a teacher of another environment
records them:

    copy      every file read and written again, each made durable as the recorder and the cache do
    read      the spool's teacher says everything, float32, in batches of four
    extract   `teacher-extract teacher=spool` to a sealed cache: reading, quantising, compressing

Memory is the most that a process of its own holds while it fills a cache of a tenth, and of all, of
`--many` small samples.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import ground, interleave, ratio, report
from startup import SEED, home, make_index, peak_bytes

from bevcask.compose import compose
from bevcask.config import DatasetConfig
from bevcask.data.index.frames import Frames
from bevcask.detectors.base import Batch
from bevcask.geometry import Grid
from bevcask.paths import sync
from bevcask.spool.recorder import Recorder
from bevcask.stages import teacher_extract
from bevcask.teachers import build_teacher
from bevcask.verbs import ExtractConfig

VERSION = "v1.0-synthetic"
CHANNELS = {"bev.block1": 64, "bev.block2": 128, "bev.neck": 128}
BATCH = 4
SAID = 8  # samples that differ from each other; they take turns


def record(folder: Path, tokens: Sequence[str], side: int) -> None:
    """Write what a teacher said: smooth maps, mostly silent."""
    grid = Grid.square(51.2, 102.4 / side)
    place = {"x_min": grid.x_min, "y_min": grid.y_min, "cell": grid.cell}
    taps: dict[str, Any] = {
        name: {
            "kind": "dense_bev", "shape": [channels * side // 128, side, side], "grid": place,
            "nonnegative": True,
        }
        for name, channels in CHANNELS.items()
    }  # fmt: skip
    taps["head.heatmap"] = {"kind": "heatmap", "shape": [10, side, side], "grid": place}
    taps["head.boxes"] = {"kind": "box_set", "shape": [500, 11]}
    recorder = Recorder(str(folder), {"taps": taps, "teacher": {"name": "smooth noise"}})
    random = torch.Generator().manual_seed(SEED)
    boxes = np.zeros((1, 20, 11), np.float32)
    boxes[..., 3:6], boxes[..., 9] = 1.0, 0.5
    said = [
        {"head.boxes": list(boxes)}
        | {n: _map(own["shape"], random) for n, own in taps.items() if n != "head.boxes"}
        for _ in range(SAID)
    ]
    for number, token in enumerate(tokens):
        recorder.put([token], said[number % SAID])
    recorder.finish()


def _map(shape: list[int], random: torch.Generator) -> torch.Tensor:
    channels, side = shape[0], shape[-1]
    coarse = torch.randn(1, channels, side // 8, side // 8, generator=random)
    smooth = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bilinear")
    return (smooth.abs() - 0.7).relu().clamp(max=1).half()


class Spooled:
    """A recorded dataset of so many frames, and what is done with it."""

    def __init__(self, folder: Path, frames: int, side: int) -> None:
        self.root, self.spool = folder / f"world{frames}", folder / f"spool{frames}"
        self.out = folder / "out"
        os.environ.update(home(self.root))
        make_index(self.root, frames)
        selected = Frames.select(DatasetConfig(root=str(self.root), version=VERSION, split="all"))
        record(self.spool, selected.tokens, side)
        self.num_bytes = sum(path.stat().st_size for path in self.spool.rglob("*.safetensors"))

    def words(self, limit: int | None = None) -> list[str]:
        """Return the words of the extraction."""
        words = [f"cache={self.out}.zarr", "teacher=spool", f"teacher.folder={self.spool}"]
        words += ["dataset=synthetic", f"dataset.root={self.root}", "dataset.split=all"]
        return [*words, "method=distillbev", *([f"dataset.limit={limit}"] if limit else [])]

    def copy(self) -> float:
        """Return the seconds of reading and writing every file."""
        start = time.perf_counter()
        self.out.mkdir()
        for path in sorted((self.spool / "samples").iterdir()):
            shutil.copyfile(path, self.out / path.name)
            sync(self.out / path.name)
        seconds = time.perf_counter() - start
        shutil.rmtree(self.out)
        return seconds

    def read(self) -> float:
        """Return the seconds in which the teacher says everything."""
        config = compose(ExtractConfig, self.words())
        teacher, frames = build_teacher(config.teacher, SEED), Frames.select(config.dataset)
        start = time.perf_counter()
        for first in range(0, len(frames), BATCH):
            tokens = frames.tokens[first : first + BATCH]
            teacher(Batch(tokens, torch.eye(4).expand(len(tokens), 4, 4)), list(teacher.taps()))
        return time.perf_counter() - start

    def extract(self) -> float:
        """Return the seconds from the command to the sealed cache."""
        os.environ.update(home(self.root))
        start = time.perf_counter()
        teacher_extract.run(compose(ExtractConfig, self.words()))
        seconds = time.perf_counter() - start
        shutil.rmtree(f"{self.out}.zarr")
        return seconds

    def megabytes(self, limit: int | None) -> float:
        """Return the most memory that an extraction of so many frames takes."""
        command = [sys.executable, __file__, "--fill", *self.words(limit)]
        env = {**os.environ, **home(self.root)}
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=env)
        shutil.rmtree(f"{self.out}.zarr")
        return float(json.loads(done.stdout)["megabytes"])


def measure(frames: int, many: int, rounds: int, folder: Path) -> dict[str, Any]:
    """Time both arms, then memory; return them with what they stand on."""
    result = ground(torch.device("cpu"), [f"frames={frames}", f"many={many}"], SEED)
    large = Spooled(folder, frames, side=128)
    arms = {"copy": large.copy, "read": large.read, "extract": large.extract}
    seconds = interleave(arms, rounds, SEED)

    def times(arm: str, goal: str | None) -> dict[str, Any]:
        pairs = zip(seconds["copy"], seconds[arm], strict=True)
        return ratio(f"copy / {arm}", [copy / own for copy, own in pairs], goal)

    small = Spooled(folder, many, side=32)
    few, all_of_them = small.megabytes(many // 10), small.megabytes(None)
    return result | {
        "data": "smooth noise, no sensor data",
        "bytes_a_sample": large.num_bytes // frames,
        "megabytes": {f"{many // 10} samples": few, f"{many} samples": all_of_them},
        "seconds": seconds,
        "ratios": [
            times("read", ">= 0.5"),
            times("extract", None),
            ratio("memory, all / a tenth", [all_of_them / few], "<= 1.2"),
        ],
    }


def main() -> None:
    """Parse the command line, measure, print and write."""
    if sys.argv[1:2] == ["--fill"]:
        teacher_extract.run(compose(ExtractConfig, sys.argv[2:]))
        print(json.dumps({"megabytes": peak_bytes() / 1e6}))
        return
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--frames", type=int, default=64, help="of the timed arms")
    parser.add_argument("--many", type=int, default=2000, help="of the measured memory")
    parser.add_argument("--folder", type=Path, help="where to write (default: a temporary one)")
    parser.add_argument("--out", type=Path, help="JSON file (default: results/NAME.json)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        result = measure(options.frames, options.many, options.rounds, Path(folder))
    print(result["megabytes"])
    report("spool", result, options.out)


if __name__ == "__main__":
    main()
