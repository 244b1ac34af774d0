"""How long does a forward pass of a published detector take on this CPU, and how much memory?

Random weights and pixels; each detector in a process of its own, whose peak memory is all it held:
interpreter, weights, one frame of six cameras, everything in between. One that remembers is shown a
second frame that goes on with the first.

    python benchmarks/forward.py                      # BEVFormer at five sizes
    python benchmarks/forward.py bevdepth_r50         # others by the names of configs/detector
"""

import argparse
import json
import multiprocessing
import resource
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from measure import RESULTS, ground

from bevcask.config import build_config
from bevcask.detectors.memory import Stream
from bevcask.detectors.operations import random_frame
from bevcask.groups import load_group

NAMES = (
    "bevformer_base",
    "bevformer_small",
    "bevformer_tiny_published",
    "bevformer_focal_small",
    "bevformer_r50",
)
GOALS_GIB = {"bevformer_base": 16.0}
KIB_A_GIB = 2**20


def measure(name: str, threads: int) -> dict[str, Any]:
    """Return seconds of two frames, and the largest memory of this process, GiB."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    plugin, config = build_config("detector", load_group("detector", name), "detector")
    detector = plugin(config).eval()
    inputs = detector.inputs(config)
    stream, seconds = Stream(), []
    for number in range(2):
        batch = random_frame(inputs, number)
        start = time.perf_counter()
        with torch.inference_mode():
            shown = stream.recall(batch) if inputs.memory else batch
            output = detector(replace(shown, history=()))
        seconds.append(time.perf_counter() - start)
        stream.keep(shown, output.memory)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / KIB_A_GIB
    return {
        "detector": name,
        "parameters": sum(parameter.numel() for parameter in detector.parameters()),
        "seconds": seconds,
        "peak_gib": peak,
        "goal_gib": GOALS_GIB.get(name),
    }


def main() -> None:
    """Parse the command line, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", default=NAMES)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=RESULTS / "forward.json")
    args = parser.parse_args()
    rows = []
    for name in args.names:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            row = pool.apply(measure, (name, args.threads))
        rows.append(row)
        first, second = row["seconds"]
        print(
            f"{name:26}{row['parameters'] / 1e6:8.1f} M weights{first:9.1f} s{second:9.1f} s"
            f"{row['peak_gib']:8.2f} GiB",
            flush=True,
        )
    record = ground(torch.device("cpu"), args.names, 0) | {"data": "random pixels", "rows": rows}
    record["hardware"]["threads"] = args.threads
    args.out.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
