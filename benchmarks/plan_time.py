"""How far off is the time that `plan time=N` foretells?

    python benchmarks/plan_time.py [--frames 200] [--probe 48] [--rounds 3]

For three teachers (points, points and cameras, cameras with memory) a plan that extracts few frames
is followed by the extraction of all of them, in this process; the ratio is foretold / taken. The
world is synthetic, the files are on disk, the stages are those of the command line.
"""

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from measure import ground, ratio, report

from bevcask.compose import compose
from bevcask.stages import plan, teacher_extract
from bevcask.synthetic import synthesize
from bevcask.verbs import ExtractConfig, PlanConfig, SynthesizeConfig

TEACHERS = {
    "centerpoint_tiny": ["teacher=centerpoint_tiny", "method=distillbev"],
    "bevfusion_tiny": ["teacher=bevfusion_tiny", "method=simdistill"],
    "raydn_tiny": ["teacher=raydn_tiny", "method=harmodistill"],
}
_SCENE = 40


def compare(words: list[str], folder: Path, probe: int) -> tuple[dict[str, Any], float]:
    """Return what a plan foretells, and the seconds that the extraction then takes."""
    cache = folder / "c.zarr"
    foretold = plan.run(compose(PlanConfig, [*words, f"cache={cache}", f"time={probe}"]))["time"]
    began = time.perf_counter()
    teacher_extract.run(compose(ExtractConfig, [*words, f"cache={cache}"]))
    taken = time.perf_counter() - began
    shutil.rmtree(cache)
    return foretold, taken


def main() -> None:
    """Foretell and take, teacher by teacher."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--frames", type=int, default=200)
    parser.add_argument("--probe", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    seconds: dict[str, list[float]] = {}
    ratios, times = [], {}
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as name:
        folder = Path(name)
        synthesize(
            SynthesizeConfig(
                out=str(folder / "world"),
                seed=7,
                num_scenes=given.frames // _SCENE,
                val_scenes=0,
                num_keyframes=_SCENE,
                image_width=800,
                image_height=450,
            )
        )
        data = ["dataset=synthetic", f"dataset.root={folder / 'world'}", "dataset.split=all"]
        for teacher, own in TEACHERS.items():
            found = [compare([*data, *own], folder, given.probe) for _ in range(given.rounds)]
            seconds[f"{teacher} foretold"] = [foretold["seconds"] for foretold, _ in found]
            seconds[f"{teacher} taken"] = [taken for _, taken in found]
            off = [abs(foretold["seconds"] / taken - 1) for foretold, taken in found]
            ratios.append(ratio(f"{teacher}: |foretold / taken - 1|", off, "<= 0.2"))
            times[teacher] = [foretold for foretold, _ in found]
            sys.stderr.write(f"{teacher}: {off}\n")
    base = ground(torch.device("cpu"), [*data, *(w for own in TEACHERS.values() for w in own)], 0)
    result = {"seconds": seconds, "ratios": ratios, "times": times, **base}
    report("plan_time", result, given.out)


if __name__ == "__main__":
    main()
