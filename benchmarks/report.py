"""Time, size and memory of `bevcask inspect html=` as frames grow in number.

    python benchmarks/report.py [--frames N ...] [--keyframes N] [--out FILE]

Synthetic scenes of 40 keyframes (320x180 images, no sweeps), and a cache of their frames by the
trained tiny CenterPoint: its maps have 32x32 to 128x128 cells. Each number of frames is a process
of its own, so that its peak of memory is too: the page of N evenly spaced frames of one cache. Flat
memory: the peak of the most frames over that of the fewest. Seconds on the wall are those of a
machine that others use too; those of the processor are beside them.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import torch
from measure import RESULTS, WORLD_SEED, ground, write

from bevcask.compose import compose
from bevcask.stages import inspect_cache, teacher_extract
from bevcask.synthetic import synthesize
from bevcask.verbs import ExtractConfig, InspectConfig, SynthesizeConfig

TEACHER = ["teacher=centerpoint_tiny", "teacher.checkpoint=catalog:centerpoint_tiny_synthetic"]
SCENE = 40  # keyframes, as in nuScenes
SECONDS, MEGABYTES = 60.0, 20.0
FLAT = 1.15


def extract(world: Path, cache: Path) -> None:
    """Fill a cache with the targets of DistillBEV."""
    words = [f"cache={cache}", *TEACHER, "method=distillbev", "dataset=synthetic"]
    words += [f"dataset.root={world}", "dataset.split=all", "loader.num_workers=0"]
    teacher_extract.run(compose(ExtractConfig, words))


def one(cache: str, frames: int, page: Path) -> dict[str, Any]:
    """Write a page in this process; return seconds, bytes, and the peak of its memory."""
    config = compose(InspectConfig, [f"cache={cache}", f"html={page}", f"html_frames={frames}"])
    start, processor = perf_counter(), process_time()
    result = inspect_cache.run(config)
    seconds, processor = perf_counter() - start, process_time() - processor
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "frames": result["html_frames"],
        "seconds": round(seconds, 2),
        "processor_seconds": round(processor, 2),
        "megabytes": round(result["html_bytes"] / 1e6, 3),
        "peak_MiB": round(peak),
        "warnings": [own["kind"] for own in result["warnings"]],
    }


def measure(cache: Path, numbers: list[int], folder: Path) -> list[dict[str, Any]]:
    """Run each number of frames in a process of its own."""
    rows = []
    for number in numbers:
        words = [sys.executable, __file__, "--one", str(cache), str(number), str(folder / "r.html")]
        answer = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)
        rows.append(json.loads(answer.stdout.splitlines()[-1]))
        print(rows[-1])
    return rows


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, nargs="+", default=[250, 1000])
    parser.add_argument("--keyframes", type=int, default=1000, help="of the cache, about")
    parser.add_argument("--out", type=Path, default=RESULTS / "report.json")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    own = parser.parse_args(arguments)
    if own.one:
        cache, number, page = own.one
        print(json.dumps(one(cache, int(number), Path(page))))
        return
    with tempfile.TemporaryDirectory() as folder:
        world, cache = Path(folder) / "world", Path(folder) / "c.zarr"
        size = {"image_width": 320, "image_height": 180, "num_sweeps": 0, "val_scenes": 0}
        scenes = {"num_scenes": -(-own.keyframes // SCENE), "num_keyframes": SCENE}
        synthesize(SynthesizeConfig(out=str(world), seed=WORLD_SEED, **scenes, **size))
        extract(world, cache)
        rows = measure(cache, own.frames, Path(folder))
    memory = rows[-1]["peak_MiB"] / rows[0]["peak_MiB"]
    result = {
        **ground(torch.device("cpu"), TEACHER, WORLD_SEED),
        "weights": "centerpoint_tiny_synthetic, of the catalog",
        "rows": rows,
        "memory_of_most_over_fewest": round(memory, 3),
        "met": {
            f"<= {SECONDS:g} s": rows[-1]["seconds"] <= SECONDS,
            f"<= {MEGABYTES:g} MB": rows[-1]["megabytes"] <= MEGABYTES,
            f"memory <= {FLAT:g} times": memory <= FLAT,
        },
    }
    write(result, own.out)
    print(f"written to {own.out}")


if __name__ == "__main__":
    main()
