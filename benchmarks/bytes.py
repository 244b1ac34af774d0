"""How many bytes does a method's cache take, and what does its codec change?

For each method: dense float16 of every map it reads, what is stored of all its targets, the ratio,
and the relative change of the distillation loss and of its gradient on the student against float32
targets. Box codes, which nobody would store of every cell, count as stored but not as dense. The
teacher's boxes, which make a cache scorable and belong to no method, are counted apart.

    python benchmarks/bytes.py                                   # every method, synthetic frames
    python benchmarks/bytes.py method=simdistill                 # one
    python benchmarks/bytes.py dataset=nuscenes dataset.root=... # real keyframes
"""

import argparse
import json
import math
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from measure import RESULTS, WORLD_SEED, ground, make_world

from bevcask.compose import compose
from bevcask.methods import build_method
from bevcask.stages import plan
from bevcask.targets.plan import BOXES
from bevcask.teachers import build_teacher
from bevcask.verbs import PlanConfig

GRADIENT_GOAL = 1e-2
COMMON = ["augment.bev_flip_x=true", "augment.bev_flip_y=true", "seed=0"]


@dataclass(frozen=True)
class Case:
    """A method with who teaches whom.

    Attributes:
        goal: stored / dense float16.
        weights: of the teacher, for the record.
        words: configuration.
    """

    goal: float
    weights: str
    words: tuple[str, ...]


LIDAR = (
    "teacher=centerpoint_tiny",
    "teacher.checkpoint=catalog:centerpoint_tiny_synthetic",
    "student=bevdepth_tiny",
    "student.checkpoint=catalog:bevdepth_tiny_start",
)
FUSION = (
    "teacher=bevfusion_tiny",
    "teacher.checkpoint=catalog:bevfusion_tiny_synthetic",
    "student=bevsimdet_tiny",
    "student.init=catalog:bevdepth_tiny_start",
)
MEMORY = (
    "teacher=bevformer_tiny",
    "teacher.checkpoint=catalog:bevformer_tiny_synthetic",
    "teacher.memory=window",
    "student=bevformer_tiny_student",
    "student.init=catalog:bevdepth_tiny_start",
    "augment.bev_flip_x=false",
    "augment.bev_flip_y=false",
)
STREAM = (
    "teacher=raydn_tiny",
    "teacher.checkpoint=catalog:raydn_tiny_synthetic",
    "teacher.memory=window",
    "teacher.history=1",
    "student=raydn_tiny_student",
    "augment.bev_flip_x=false",
    "augment.bev_flip_y=false",
)
TRAINED = "trained on a synthetic world (data_catalog)"
CASES = {
    "distillbev": Case(0.25, TRAINED, LIDAR),
    # Of what the teacher says; the points of the inner-depth term are stored exactly.
    "tigdistill": Case(0.06, TRAINED, (*LIDAR, "method.inner_depth=0")),
    "simdistill": Case(0.25, TRAINED, FUSION),
    "focaldistiller": Case(0.25, TRAINED, MEMORY),
    "harmodistill": Case(0.25, TRAINED, STREAM),
}


def measure(method: str, words: list[str], frames: int) -> list[dict[str, Any]]:
    """Return one row a codec for a method."""
    case = CASES[method]
    config = compose(
        PlanConfig, [*COMMON, *case.words, f"method={method}", f"probe={frames}", *words]
    )
    taps = build_teacher(config.teacher, config.seed).taps()
    read = {need.tap for need in build_method(config.method).needs()} - {BOXES}
    maps = [taps[name].shape for name in read if taps[name].kind != "box_code"]
    dense = sum(2 * math.prod(shape) for shape in maps)
    result = plan.run(config)
    return [
        {
            "method": method,
            "codec": row["name"],
            "regions": sorted({t["region"] for t in result["targets"] if t["name"] in read}),
            "dense_float16_bytes": dense,
            "stored_bytes": round(stored := sum(row["bytes_by_target"][name] for name in read)),
            "boxes_bytes": round(row["bytes_by_target"][BOXES]),
            "ratio": stored / dense,
            "loss_change": row["loss"],
            "gradient_change": row["gradient"],
            "frames": result["probed_frames"],
        }
        for row in result["probe"]
    ]


def main() -> None:
    """Parse the command line, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--name", default="bytes", help="results/NAME.json")
    parser.add_argument("words", nargs="*", help="key=value; a dataset, for one of your own")
    args = parser.parse_intermixed_args()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["BEVCASK_HOME"] = folder  # index of data that goes away
        words = [word for word in args.words if not word.startswith("method=")]
        methods = [word.removeprefix("method=") for word in args.words if word not in words]
        synthetic = not any(word.startswith("dataset") for word in words)
        if synthetic:
            world = make_world(Path(folder) / "world", args.frames, 800)
            words += ["dataset=synthetic", f"dataset.root={world}", "dataset.split=all"]
        methods = methods or list(CASES)
        rows = [row for method in methods for row in measure(method, words, args.frames)]
    print(f"{'method':16}{'codec':28}{'MB':>8}{'ratio':>8}{'loss':>10}{'gradient':>10}")
    for row in rows:
        print(
            f"{row['method']:16}{row['codec']:28}{row['stored_bytes'] / 1e6:8.3f}"
            f"{row['ratio']:8.3f}{row['loss_change']:10.1e}{row['gradient_change']:10.1e}"
        )
    goals = {method: verdict(method, rows) for method in methods}
    record = ground(torch.device("cpu"), [*COMMON, *args.words], 0) | {
        "data": f"synthetic world, seed {WORLD_SEED}" if synthetic else "nuScenes keyframes",
        "weights": {method: CASES[method].weights for method in methods},
        "cases": {method: CASES[method].words for method in methods},
        "goals": goals,
        "rows": rows,
    }
    (RESULTS / f"{args.name}.json").write_text(json.dumps(record, indent=2) + "\n")


def verdict(method: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Print and return whether the smallest faithful codec meets the goal."""
    faithful = [
        row["ratio"]
        for row in rows
        if row["method"] == method and row["gradient_change"] <= GRADIENT_GOAL
    ]
    ratio, goal = min(faithful), CASES[method].goal
    met = ratio <= goal
    print(f"{method}: {ratio:.3f} of dense float16, goal <= {goal}: {'met' if met else 'NOT met'}")
    return {"ratio": ratio, "goal": goal, "met": met}


if __name__ == "__main__":
    main()
