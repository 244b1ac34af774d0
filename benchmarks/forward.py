"""How long does a forward pass of a published detector take on this CPU, and how much memory?

Random weights and pixels; each detector in a process of its own, whose peak memory is all it held:
interpreter, weights, one frame of six cameras, everything in between. One that remembers is shown a
second frame that goes on with the first.

    python benchmarks/forward.py                      # BEVFormer at five sizes
    python benchmarks/forward.py bevdepth_r50         # others by the names of configs/detector
    python benchmarks/forward.py --train raydn_r18    # its own loss, and backward; 20 random boxes
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
from bevcask.detectors.base import Labels
from bevcask.detectors.memory import Stream
from bevcask.detectors.operations import random_frame
from bevcask.geometry import CLASSES
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
NUM_BOXES = 20


def labels() -> Labels:
    """Return boxes of a frame, anywhere within 40 m."""
    boxes_N9 = torch.rand((NUM_BOXES, 9), generator=torch.Generator().manual_seed(0))
    boxes_N9[:, :2] = 80 * boxes_N9[:, :2] - 40
    boxes_N9[:, 3:6] = 1 + 3 * boxes_N9[:, 3:6]
    return Labels([boxes_N9], [torch.arange(NUM_BOXES) % len(CLASSES)], [boxes_N9])


def measure(name: str, threads: int, train: bool) -> dict[str, Any]:
    """Return seconds of two frames, and the largest memory of this process, GiB."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    plugin, config = build_config("detector", load_group("detector", name), "detector")
    detector = plugin(config).train(train)
    inputs = detector.inputs(config)
    stream, seconds = Stream(), []
    for number in range(2):
        batch = replace(random_frame(inputs, number), labels=labels())
        start = time.perf_counter()
        with torch.inference_mode(not train):
            shown = stream.recall(batch) if inputs.memory else batch
            output = detector(replace(shown, history=()))
            if train:
                torch.stack(list(detector.loss(output, shown).values())).sum().backward()
        seconds.append(time.perf_counter() - start)
        stream.keep(shown, output.memory)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / KIB_A_GIB
    return {
        "detector": name,
        "trains": train,
        "parameters": sum(parameter.numel() for parameter in detector.parameters()),
        "seconds": seconds,
        "peak_gib": peak,
        "goal_gib": GOALS_GIB.get(name),
    }


def main() -> None:
    """Parse the command line, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", default=NAMES)
    parser.add_argument("--train", action="store_true", help="with loss and backward pass")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=RESULTS / "forward.json")
    args = parser.parse_args()
    rows = []
    for name in args.names:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            row = pool.apply(measure, (name, args.threads, args.train))
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
