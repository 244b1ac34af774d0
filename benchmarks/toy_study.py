"""Does a student learn more from a cached teacher, and from one in the loop, than without?

    python benchmarks/toy_study.py FOLDER [--arms ARM ...] [--seeds N ...]
    python benchmarks/toy_study.py FOLDER --time        # seconds a step, on a quiet machine

One training a row: every arm with every seed, from random weights (`experiment=toy_study`), on the
same synthetic world, scored by the official code on scenes of another seed that nothing was tuned
on. Arms differ in the words of `ARMS` alone.

FOLDER gets the worlds, the caches and the runs. A run that was stopped goes on, one that has ended
is not repeated, and every run that ends is at once a row of `results/toy_study.jsonl`: the same
command goes on, another with other arms or seeds adds rows.

Hours of training rarely find a machine that does nothing else; so `--time` measures the step apart:
the first steps of every arm, arms taking turns, into `results/toy_study_time.json`.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from measure import RESULTS, ground, interleave, ratio, report

from bevcask.cache import open_cache
from bevcask.synthetic import synthesize
from bevcask.verbs import SynthesizeConfig

TRAIN = {"seed": 1000, "num_scenes": 200, "num_keyframes": 6, "val_scenes": 0}
VAL = {"seed": 3000, "num_scenes": 12, "num_keyframes": 5, "val_scenes": 12}
METHODS = {"distillbev": "distillbev_tiny", "tigdistill": "tigdistill"}
ONLINE = ["targets=online", "online.input=augmented"]
ARMS: dict[str, tuple[str, list[str]]] = {  # name -> method whose cache is read, words
    "none": ("", ["method=none"]),
    **{f"{name}, cached": (name, [f"method={group}"]) for name, group in METHODS.items()},
    **{f"{name}, online": ("", [f"method={group}", *ONLINE]) for name, group in METHODS.items()},
}
DEFAULT = ["none", "distillbev, cached", "distillbev, online"]
TIMED_STEPS, ROUNDS = 24, 3


def make_worlds(folder: Path) -> None:
    """Write what is missing of both worlds."""
    for name, settings in (("train", TRAIN), ("val", VAL)):
        if not (folder / name).is_dir():
            synthesize(SynthesizeConfig.model_validate({"out": str(folder / name), **settings}))


def bevcask(*words: str) -> int:
    """Run a verb in a process of its own; return its peak memory, bytes.

    Raises:
        SystemExit: it failed.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "bevcask.cli", *words], stdout=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(
            f"bevcask {' '.join(words)}: exit status {os.waitstatus_to_exitcode(status)}"
        )
    return usage.ru_maxrss * 1024


def train(folder: Path, arm: str, seed: int) -> dict[str, Any]:
    """Train and score one student; return its row."""
    data, words, cache = prepare(folder, arm)
    run = folder / "runs" / f"{arm.replace(', ', '-')}-{seed}"
    peak = bevcask(
        "student-distill",
        *data,
        *words,
        f"val.root={folder}/val",
        "val.version=v1.0-synthetic",
        "val.split=all",
        f"run={run}",
        f"seed={seed}",
    )
    result = json.loads((run / "metrics.json").read_text())
    opened = open_cache(str(cache)) if cache else None
    return {
        "arm": arm,
        "seed": seed,
        **{key: result[key] for key in ("mAP", "NDS", "mATE", "mAOE", "seconds_per_step", "step")},
        "peak_megabytes": peak / 1e6,
        "cache_megabytes": sum(map(opened.stored_bytes, opened.specs)) / 1e6 if opened else 0.0,
    }


def prepare(folder: Path, arm: str) -> tuple[list[str], list[str], Path | None]:
    """Fill an arm's cache; return the words of its data, its own words, and the cache."""
    method, words = ARMS[arm]
    data = ["experiment=toy_study", f"dataset.root={folder}/train", "dataset.split=all"]
    if not method:
        return data, words, None
    cache = folder / f"{method}.zarr"
    bevcask("teacher-extract", str(cache), *data, *words)
    return data, [*words, f"cache={cache}"], cache


def time_steps(folder: Path, arms: Sequence[str]) -> dict[str, Any]:
    """Return the median of the first steps of every arm, arms in turns, and ratios to `none`."""
    with tempfile.TemporaryDirectory() as runs:

        def clock(arm: str) -> Callable[[], float]:
            data, words, _ = prepare(folder, arm)
            few = [f"trainer.max_steps={TIMED_STEPS}", f"trainer.warmup_steps={TIMED_STEPS // 2}"]

            def seconds() -> float:
                bevcask("student-distill", *data, *words, *few, f"run={runs}/run", "resume=false")
                metrics = json.loads(Path(runs, "run", "metrics.json").read_text())
                return float(metrics["seconds_per_step"])

            return seconds

        seconds = interleave({arm: clock(arm) for arm in arms}, ROUNDS, seed=0)
    plain = seconds["none"]
    ratios = [
        ratio(f"{arm} / none", [own / other for own, other in zip(times, plain, strict=True)])
        for arm, times in seconds.items()
        if arm != "none"
    ]
    return {"steps": TIMED_STEPS, "seconds": seconds, "ratios": ratios}


def table(rows: list[dict[str, Any]]) -> str:
    """Return mean and spread of every arm over its seeds."""
    lines = [
        f"{'arm':22}{'runs':>5}{'mAP':>20}{'NDS':>20}{'s/step':>8}{'peak MB':>9}{'cache MB':>9}"
    ]
    for arm in ARMS:
        own = [row for row in rows if row["arm"] == arm]
        if not own:
            continue
        scores = [
            f"{statistics.mean(values):.3f} ({min(values):.3f}..{max(values):.3f})"
            for values in ([row[key] for row in own] for key in ("mAP", "NDS"))
        ]
        rest = [
            statistics.median(row[key] for row in own)
            for key in ("seconds_per_step", "peak_megabytes", "cache_megabytes")
        ]
        lines.append(
            f"{arm:22}{len(own):5}{scores[0]:>20}{scores[1]:>20}"
            f"{rest[0]:8.2f}{rest[1]:9.0f}{rest[2]:9.0f}"
        )
    return "\n".join(lines)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the finished runs."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def main() -> None:
    """Train what has no row yet."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--arms", nargs="+", choices=sorted(ARMS), default=DEFAULT)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=RESULTS / "toy_study.jsonl")
    parser.add_argument("--time", action="store_true", help="seconds a step only")
    given = parser.parse_args()
    given.out.parent.mkdir(parents=True, exist_ok=True)
    make_worlds(given.folder)
    if given.time:
        about = ground(torch.device("cpu"), ["experiment=toy_study"], 0)
        report(
            "toy_study_time", about | time_steps(given.folder, sorted({"none", *given.arms})), None
        )
        return
    world = f"synthetic worlds, training {TRAIN}, validation {VAL}"
    for seed in given.seeds:
        for arm in given.arms:
            if any((row["arm"], row["seed"]) == (arm, seed) for row in read_rows(given.out)):
                continue
            words = ["experiment=toy_study", *ARMS[arm][1]]
            row = train(given.folder, arm, seed) | ground(torch.device("cpu"), words, seed)
            row |= {"data": world, "weights": "students: random, seeded"}
            with given.out.open("a") as out:
                out.write(json.dumps(row) + "\n")
            print(table(read_rows(given.out)), flush=True)


if __name__ == "__main__":
    main()
