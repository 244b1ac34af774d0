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
from bevcask.detectors.base import Batch
from bevcask.detectors.memory import Stream
from bevcask.geometry import CAMERAS
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


def frame(size_HW: tuple[int, int], number: int) -> Batch:
    """Return one frame of random pixels from six cameras around the car."""
    num, scale = len(CAMERAS), size_HW[1] / 1600
    generator = torch.Generator().manual_seed(number)
    angle_V = 2 * torch.pi * torch.arange(num) / num
    pose_V44 = torch.eye(4).repeat(num, 1, 1)
    pose_V44[:, 0, 0], pose_V44[:, 0, 2] = angle_V.cos(), -angle_V.sin()
    pose_V44[:, 1, 0], pose_V44[:, 1, 2] = angle_V.sin(), angle_V.cos()
    pose_V44[:, 2, 1], pose_V44[:, 2, 2], pose_V44[:, 2, 3] = -1.0, 0.0, 1.5
    intrinsics_33 = torch.tensor([[1260.0, 0, 800], [0, 1260, 450], [0, 0, 1]])
    return Batch(
        tokens=[str(number)],
        bev_aug_B44=torch.eye(4)[None],
        images_BVCHW=torch.randn((1, num, 3, *size_HW), generator=generator),
        intrinsics_BV33=intrinsics_33.expand(1, num, 3, 3),
        image_aug_BV33=torch.diag(torch.tensor([scale, scale, 1.0])).expand(1, num, 3, 3),
        camera_to_lidar_BV44=pose_V44[None],
        can_bus_B18=torch.full((1, 18), float(number), dtype=torch.float64),
        after=[None if number == 0 else str(number - 1)],
    )


def measure(name: str, threads: int) -> dict[str, Any]:
    """Return seconds of two frames, and the largest memory of this process, GiB."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    plugin, config = build_config("detector", load_group("detector", name), "detector")
    detector = plugin(config).eval()
    inputs = detector.inputs(config)
    assert inputs.image_size_HW is not None
    stream, seconds = Stream(), []
    for number in range(2):
        batch = frame(inputs.image_size_HW, number)
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
