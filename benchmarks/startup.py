"""How long until frames can be selected and a cache be read, and how much memory does it take?

    python benchmarks/startup.py [--rows N ...] [--rounds N]

Each measurement is a fresh process; imports are over before the clock starts. Nothing here was
computed by a teacher: the frame index repeats the rows of a tiny synthetic world under new tokens,
and a cache is metadata, frames and commits whose shards are all lawfully absent. That is what
starting reads.

    frames  open the frame index of tables seen before, select the split `all`
    cache   open a sealed cache, look one token up
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from itertools import product
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from measure import ground, interleave, make_world, ratio, report

from bevcask.cache import FrameTable, create, open_cache
from bevcask.cache.commit import Committed, encode_row
from bevcask.cache.seal import seal
from bevcask.config import DatasetConfig
from bevcask.data.index.arrays import Content, FrameIndex, write_index
from bevcask.data.index.frames import Frames
from bevcask.geometry import Grid
from bevcask.targets.spec import TapInfo, TargetSpec

SEED = 0
MADE_BY = {"teacher": {"weights": "none"}}
SHARD_ROWS = 8
SCENE_FRAMES = 40  # as in nuScenes
NUSCENES_FRAMES = 34149
VERSION = "v1.0-synthetic"
GRID = Grid(-51.2, -51.2, 0.8, 128, 128)
SPECS = [
    TargetSpec(TapInfo("bev.neck", "dense_bev", (256, 128, 128), GRID, nonnegative=True), "uint8"),
    TargetSpec(TapInfo("head.heatmap", "heatmap", (10, 128, 128), GRID, nonnegative=True), "uint8"),
]


def home(root: Path) -> dict[str, str]:
    """Return where the index of a dataset lies: all have the same tables, each another index."""
    return {"BEVCASK_HOME": f"{root}.home"}


def make_index(root: Path, num_frames: int) -> Path:
    """Write a dataset whose frame index has so many rows; return its root."""
    os.environ.update(home(root))
    make_world(root, 2, image_width=64)
    small = FrameIndex.open(root, VERSION)
    source = np.arange(num_frames) % len(small)
    arrays = {
        path.stem: small[path.stem][source] if path.stem.startswith("frame_") else small[path.stem]
        for path in small.folder.glob("*.npy")
    }
    arrays["frame_token"] = np.random.default_rng(SEED).integers(0, 256, (num_frames, 16), np.uint8)
    arrays["frame_scene"] = np.arange(num_frames, dtype=np.int32) // SCENE_FRAMES
    scenes = [f"scene-{i:05d}" for i in range(arrays["frame_scene"][-1] + 1)]
    for path in small.folder.iterdir():
        path.unlink()
    write_index(small.folder, small.digest, Content(arrays, scenes, scenes))
    return root


def make_cache(url: Path, num_frames: int) -> Path:
    """Write a sealed cache of so many rows whose targets are all zero."""
    random = np.random.default_rng(SEED)
    digits = random.bytes(16 * num_frames).hex()
    tokens = [digits[start : start + 32] for start in range(0, len(digits), 32)]
    scenes = [f"scene-{i // SCENE_FRAMES:05d}" for i in range(num_frames)]
    poses = random.random((num_frames, 4, 4))  # as hard to compress as real ones
    table = FrameTable(tokens, scenes, np.arange(num_frames) / 2.0, poses)
    create(
        str(url),
        SPECS,
        table,
        shard_rows=SHARD_ROWS,
        fingerprint={"teacher": {"weights": "none"}},
        plan={},
        provenance={},
    )
    cache = open_cache(str(url), allow_unsealed=True)
    row = [Committed.of(b"", array, SHARD_ROWS) for array in cache.layout.arrays]
    seal(cache, [encode_row(row)] * cache.layout.num_shards)
    return url


def start(what: str, place: str) -> None:
    """Open an index or a cache and print seconds and megabytes; runs in a process of its own."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = peak_bytes()
    begin = perf_counter()
    if what == "frames":
        found = Frames.select(DatasetConfig(root=place, version=VERSION, split="all"))
        assert found.tokens[-1] in found
        rows = len(found)
    else:
        cache = open_cache(place)
        assert cache.frames.tokens[-1] in cache.layout.row_of
        rows = len(cache.frames)
    seconds = perf_counter() - begin
    megabytes = (peak_bytes() - before) / 1e6
    print(json.dumps({"rows": rows, "seconds": seconds, "megabytes": megabytes}))


def peak_bytes() -> int:
    """Return the most memory this process has held since its peak was reset."""
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = next(line for line in lines if line.startswith("VmHWM"))
    return int(peak.split()[1]) * 1024


def measure(rows: list[int], rounds: int, folder: Path) -> dict[str, Any]:
    """Write everything, start many times; return seconds, memory and what they stand on."""
    result = ground(torch.device("cpu"), [f"shard_rows={SHARD_ROWS}", f"rows={rows}"], SEED)
    makers = {"frames": make_index, "cache": make_cache}
    places = {(w, n): makers[w](folder / f"{w}-{n}", n) for w, n in product(makers, rows)}
    megabytes: dict[str, list[float]] = {}

    def clock(name: str, what: str, rows: int, place: Path) -> Callable[[], float]:
        def seconds() -> float:
            command = [sys.executable, __file__, "--start", what, str(place)]
            done = subprocess.run(
                command, check=True, capture_output=True, env={**os.environ, **home(place)}
            )
            said = json.loads(done.stdout)
            assert said["rows"] == rows
            megabytes.setdefault(name, []).append(said["megabytes"])
            return float(said["seconds"])

        return seconds

    names = {f"{what}, {number:,} rows": (what, number) for what, number in places}
    clocks = {name: clock(name, *key, places[key]) for name, key in names.items()}
    seconds = interleave(clocks, rounds, SEED)
    return result | {
        "data": "simulated",
        "weights": "none",
        "seconds": seconds,
        "megabytes": megabytes,
        "ratios": [
            *(ratio(f"{name}: seconds", seconds[name], "<= 1") for name in names),
            *(ratio(f"{name}: megabytes", megabytes[name][1:], "<= 64") for name in names),
        ],
    }


def main() -> None:
    """Parse the command line, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[NUSCENES_FRAMES, 1_000_000])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, help="JSON file (default: results/startup.json)")
    parser.add_argument("--start", nargs=2, metavar=("WHAT", "PLACE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.start:
        start(*options.start)
        return
    with tempfile.TemporaryDirectory() as folder:
        result = measure(options.rows, options.rounds, Path(folder))
    report("startup", result, options.out)


if __name__ == "__main__":
    main()
