"""A trained detector that remembers tells velocities better than the same one that does not.

`pytest -m slow -s FILE` prints both errors.
"""

import sys
from itertools import groupby
from pathlib import Path

import pytest
import torch

from bevcask.config import DatasetConfig, StudentConfig
from bevcask.data.index.frames import Frames
from bevcask.data.lanes import in_lanes
from bevcask.data.samples import SampleReader, collate
from bevcask.detectors.base import Detections
from bevcask.detectors.bevformer import BEVFormer
from bevcask.detectors.memory import Stream
from bevcask.evaluation.nuscenes import score
from bevcask.synthetic import synthesize
from bevcask.training.checkpoint import start
from bevcask.verbs import SynthesizeConfig
from detectors.small_bevformer import shipped


def detect(detector: BEVFormer, frames: Frames, remembers: bool) -> dict[str, Detections]:
    reader = SampleReader(frames, BEVFormer.inputs(detector.config).frame_by_frame(), None, seed=0)
    numbered = groupby(range(len(frames)), key=lambda index: frames.scenes[index])
    scenes = [range(own[0], own[-1] + 1) for own in (list(group) for _, group in numbered)]
    stream, found = Stream(), {}
    for keys in in_lanes(scenes, 4):
        batch = collate([reader.at(key, frames) for key in keys])
        if not remembers:
            batch.after = [None] * len(keys)
        output = stream.show(detector, batch)
        found.update(zip(batch.tokens, detector.decode(output), strict=True))
    return found


@pytest.mark.slow
def test_velocity_with_memory_and_without(tmp_path: Path) -> None:
    world = tmp_path / "world"
    synthesize(
        SynthesizeConfig(out=str(world), seed=2000, num_scenes=8, num_keyframes=5, val_scenes=8)
    )
    frames = Frames.select(DatasetConfig(root=str(world), version="v1.0-synthetic", split="all"))
    detector = BEVFormer(shipped("bevformer_tiny"))
    start(detector, StudentConfig(detector={}, checkpoint="catalog:bevformer_tiny_synthetic"))
    detector.eval()
    with torch.inference_mode():
        errors = {
            remembers: score(detect(detector, frames, remembers), frames, tmp_path / str(remembers))
            for remembers in (True, False)
        }
    said = (
        f"{'with' if own else 'without'} memory {e['mAVE']:.3f} m/s\n" for own, e in errors.items()
    )
    sys.stdout.write("".join(said))
    assert errors[True]["mAVE"] < errors[False]["mAVE"], errors
