"""What both benchmarks share: the synthetic world, the clock, the ground under a number."""

import json
import os
import platform
import random
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

from bevcask.provenance import command, git_revision
from bevcask.synthetic import synthesize
from bevcask.verbs import SynthesizeConfig

RESULTS = Path(__file__).parent / "results"
WORLD_SEED = 7


def make_world(folder: Path, num_keyframes: int, image_width: int) -> Path:
    """Write one synthetic scene; return its root."""
    synthesize(
        SynthesizeConfig(
            out=str(folder),
            seed=WORLD_SEED,
            num_scenes=1,
            val_scenes=0,
            num_keyframes=num_keyframes,
            image_width=image_width,
            image_height=image_width * 9 // 16,
        )
    )
    return folder


def interleave(
    arms: Mapping[str, Callable[[], float]],
    rounds: int,
    seed: int,
    after: Callable[[dict[str, list[float]]], None] | None = None,
) -> dict[str, list[float]]:
    """Run every arm once a round, in an order drawn anew each round; return seconds by arm.

    One round before them is thrown away: caches, allocators and worker processes start in it.
    `after` is told the seconds so far at the end of each other round.
    """
    order = random.Random(seed)
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(-1, rounds):
        for name in order.sample(sorted(arms), len(arms)):
            taken = arms[name]()
            if number >= 0:
                seconds[name].append(taken)
        sys.stderr.write(f"round {number + 1} of {rounds}\n")
        if after is not None and number >= 0:
            after(seconds)
    return seconds


def now(device: torch.device) -> float:
    """Return a clock reading after all queued work of the device, seconds."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def ratio(name: str, values: Sequence[float], goal: str | None = None) -> dict[str, Any]:
    """Return a ratio's median and spread over the rounds, and whether it meets `<= x` or `>= x`."""
    middle = median(values)
    met = None
    if goal is not None:
        sign, _, limit = goal.partition(" ")
        met = middle <= float(limit) if sign == "<=" else middle >= float(limit)
    return {
        "name": name,
        "median": middle,
        "lowest": min(values),
        "highest": max(values),
        "goal": goal,
        "met": met,
    }


def placeless(text: str) -> str:
    """Return a command line without where this machine has things.

    >>> placeless("read.py /data/x --out a/b dataset.root=/data/nuscenes split=all")
    'read.py x --out a/b dataset.root=nuscenes split=all'
    """
    return re.sub(r"(^|[ =,\[])~?/(?:[^ ,/\]]+/)*([^ ,/\]]*)", r"\1\2", text)


def ground(device: torch.device, words: Sequence[str], seed: int) -> dict[str, Any]:
    """Return what a number stands on: command, commit, hardware, configuration, seed, data."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "command": placeless(command()),
        "commit": git_revision(),
        "config": list(map(placeless, words)),
        "seed": seed,
        "data": f"synthetic world, seed {WORLD_SEED}",
        "weights": "random, seeded",
        "hardware": {
            "cpu": _cpu_name(),
            "cores": len(os.sched_getaffinity(0)),
            "threads": torch.get_num_threads(),
            "load_at_start": round(os.getloadavg()[0], 2),
            "gpu": gpu,
        },
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def report(name: str, result: Mapping[str, Any], out: Path | None) -> None:
    """Print seconds and ratios as a table, and write the JSON."""
    for arm, values in result["seconds"].items():
        print(f"{arm:26} {median(values):10.4f} s   ({min(values):.4f} .. {max(values):.4f})")
    for row in result["ratios"]:
        verdict = (
            ""
            if row["goal"] is None
            else f"goal {row['goal']}: " + ("met" if row["met"] else "NOT met")
        )
        spread = f"({row['lowest']:.3f} .. {row['highest']:.3f})"
        print(f"{row['name']:38} {row['median']:8.3f}   {spread:20} {verdict}")
    out = out or RESULTS / f"{name}.json"
    write(result, out)
    print(f"written to {out}")


def write(result: Mapping[str, Any], out: Path) -> None:
    """Write a result, its folder too."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=2) + "\n")
