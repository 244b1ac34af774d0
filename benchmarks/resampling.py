"""What does it change that images are made smaller in one bilinear step rather than by Pillow?

    python benchmarks/resampling.py [--weights NAME --detector NAME] [--frames N] [--root NUSCENES]

The two ways of `dataset.resampling` over the same clean frames, through the same detector, in three
terms: pixels of the network image of the real keyframes at 256 x 704 (`--root`, or
BEVCASK_NUSCENES; left out without); the detector's taps on those; its taps, boxes and official
scores on a synthetic world of the seed that the catalog's detectors are scored on. What a detector
that was trained with one way loses by being shown the other is what a published checkpoint, trained
with Pillow's, stands to lose here.
"""

import argparse
import json
import os
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from measure import RESULTS, ground

from bevcask.compose import compose
from bevcask.config import DatasetConfig, LoaderConfig, Resampling
from bevcask.data.augment import clean_image
from bevcask.data.images import load_image
from bevcask.data.index.frames import Frames
from bevcask.detectors.base import Batch, Detections, Detector, Inputs, Output
from bevcask.detectors.memory import Stream
from bevcask.evaluation.detect import frame_batches
from bevcask.evaluation.nuscenes import Evaluation, senses
from bevcask.synthetic import synthesize
from bevcask.training.checkpoint import open_detector
from bevcask.verbs import EvaluateConfig, SynthesizeConfig

SEED = 2000
SCENE = 5  # keyframes
NETWORK_HW = (256, 704)
WAYS: tuple[Resampling, ...] = get_args(Resampling)
NEAR = 0.5  # metres between a box and its like
SURE = 0.3  # score of the boxes that are looked for
CPU = torch.device("cpu")


def frames_of(root: Path, version: str, way: Resampling) -> Frames:
    """Return all frames of a dataset, their images made smaller in one way."""
    return Frames.select(
        DatasetConfig(root=str(root), version=version, split="all", resampling=way)
    )


def pixel_gap(frames: Frames) -> dict[str, float]:
    """Return the difference of clean network images, of 255, over all cameras."""
    counts_256, images = np.zeros(256, np.int64), 0
    for row in frames.rows:
        for name, size in zip(
            frames.index["frame_image"][row], frames.index["frame_image_size"][row], strict=True
        ):
            size_HW = int(size[0]), int(size[1])
            clean = clean_image(size_HW, NETWORK_HW)
            one, other = (
                load_image(frames.root / name.decode(), size_HW, clean, way).astype(int)
                for way in WAYS
            )
            counts_256 += np.bincount(np.abs(one - other).ravel(), minlength=256)
            images += 1
    shares_256 = counts_256 / counts_256.sum()
    return {
        "images": images,
        "mean": float(shares_256 @ np.arange(256)),
        "share_above_8": float(shares_256[9:].sum()),
        "max": int(np.flatnonzero(counts_256)[-1]),
    }


def shown(detector: Detector, inputs: Inputs, frames: Frames) -> Iterator[tuple[Batch, Output]]:
    """Show a detector every frame; what it remembers goes along."""
    stream = Stream()
    batches = frame_batches(frames, inputs, LoaderConfig(batch_size=1, num_workers=0))
    with torch.inference_mode():
        for batch in batches:
            yield batch, stream.show(detector, batch)


def compare(detector: Detector, inputs: Inputs, root: Path, version: str) -> dict[str, Any]:
    """Return relative L2 of every dense tap and prediction, and what becomes of the boxes."""
    squares: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    found: dict[str, dict[str, Detections]] = {way: {} for way in WAYS}
    ways = [shown(detector, inputs, frames_of(root, version, way)) for way in WAYS]
    for said in zip(*ways, strict=True):
        for way, (batch, output) in zip(WAYS, said, strict=True):
            found[way][batch.tokens[0]] = detector.decode(output)[0]
        (_, one), (_, other) = said
        for name, value in {**one.taps, **one.preds}.items():
            if value.is_floating_point():
                twin = {**other.taps, **other.preds}[name].double()
                squares[name][0] += float((value.double() - twin).square().sum())
                squares[name][1] += float(twin.square().sum())
    return {
        "frames": len(found[WAYS[0]]),
        "relative_l2": {name: (gap / own) ** 0.5 for name, (gap, own) in squares.items() if own},
        "boxes": box_gap(*found.values()),
        "found": found,
    }


def box_gap(one: Mapping[str, Detections], other: Mapping[str, Detections]) -> dict[str, float]:
    """Return how many sure boxes have their like in the other way, and how their scores differ."""
    scores, lost, total = [], 0, 0
    for token, boxes in one.items():
        likes = other[token]
        for number in torch.nonzero(boxes.scores_N > SURE)[:, 0]:
            total += 1
            off_N = (likes.boxes_N9[:, :2] - boxes.boxes_N9[number, :2]).norm(dim=1)
            like_N = (off_N < NEAR) & (likes.classes_N == boxes.classes_N[number])
            if not bool(like_N.any()):
                lost += 1
                continue
            best = likes.scores_N[like_N].max()
            scores.append(abs(float(best - boxes.scores_N[number])))
    return {
        "sure": total,
        "without_like": lost,
        "mean_score_change": float(np.mean(scores)) if scores else 0.0,
    }


def study(words: list[str], num_frames: int, folder: Path, root: Path | None) -> dict[str, Any]:
    """Compare the two ways; return what is written."""
    plugin, own, detector = open_detector(compose(EvaluateConfig, words).student)
    inputs = plugin.inputs(own)
    detector.eval()
    world, scenes = folder / "world", num_frames // SCENE
    synthesize(
        SynthesizeConfig(
            out=str(world), seed=SEED, num_scenes=scenes, num_keyframes=SCENE, val_scenes=scenes
        )
    )
    synthetic = compare(detector, inputs, world, "v1.0-synthetic")
    found, frames = synthetic.pop("found"), frames_of(world, "v1.0-synthetic", "fast")
    for way in WAYS:
        scores = Evaluation(frames, len(frames)).score(found[way], folder / way, senses(inputs))
        synthetic[way] = {key: scores[key] for key in ("mAP", "NDS")}
    result = ground(CPU, [*words, f"{num_frames} frames"], SEED) | {
        "data": f"synthetic world, seed {SEED}; nuScenes keyframes where there are any",
        "weights": "of the catalog, learned from synthetic worlds by the fast way",
        "synthetic": synthetic,
    }
    if root is not None:
        real = compare(detector, inputs, root, "v1.0-mini")
        del real["found"]
        pixels = pixel_gap(frames_of(root, "v1.0-mini", "fast"))
        result["nuscenes"] = real | {"pixels_of_255": pixels}
    return result


def main() -> None:
    """Parse the command line, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--weights", default="bevdepth_tiny_start", help="name in the catalog")
    parser.add_argument("--detector", default="bevdepth_tiny", help="member of configs/student")
    parser.add_argument("--frames", type=int, default=40)
    parser.add_argument("--root", help="nuScenes keyframes (default: BEVCASK_NUSCENES, else none)")
    parser.add_argument("--out", type=Path, help="JSON file (default: results/resampling.json)")
    options = parser.parse_args()
    root = options.root or os.environ.get("BEVCASK_NUSCENES")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["BEVCASK_HOME"] = folder
        words = [f"student={options.detector}", f"student.checkpoint=catalog:{options.weights}"]
        result = study(words, options.frames, Path(folder), None if root is None else Path(root))
    for data in ("synthetic", "nuscenes"):
        for key, value in result.get(data, {}).items():
            print(f"{data:10} {key:14} {value}")
    out = options.out or RESULTS / "resampling.json"
    out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
