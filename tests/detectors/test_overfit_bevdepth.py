"""The camera student can learn what it should: eight frames by heart, scored by the devkit."""

from pathlib import Path

import pytest
import torch

from bevcask.config import DatasetConfig, build_config
from bevcask.data.index.frames import Frames
from bevcask.data.samples import SampleReader, collate
from bevcask.detectors.bevdepth import BEVDepth, BEVDepthConfig
from bevcask.evaluation.nuscenes import score
from bevcask.groups import load_group
from bevcask.synthetic import synthesize
from bevcask.verbs import SynthesizeConfig

STEPS = 700
PEAK_LR = 4e-3


@pytest.fixture(scope="module")
def eight_frames(tmp_path_factory: pytest.TempPathFactory) -> Frames:
    """Two scenes of four keyframes; every class is in range somewhere."""
    out = tmp_path_factory.mktemp("world") / "eight"
    synthesize(SynthesizeConfig(out=str(out), seed=3, num_scenes=2, num_keyframes=4, val_scenes=0))
    dataset = DatasetConfig(root=str(out), version="v1.0-synthetic", split="all")
    return Frames.select(dataset)


@pytest.mark.slow
def test_tiny_bevdepth_learns_eight_frames_by_heart(eight_frames: Frames, tmp_path: Path) -> None:
    torch.manual_seed(0)
    section = load_group("detector", "bevdepth_tiny")
    _, config = build_config("detector", section, "student.detector")
    assert isinstance(config, BEVDepthConfig)
    detector = BEVDepth(config).train()
    reader = SampleReader(eight_frames, BEVDepth.inputs(config), None, seed=0)
    batches = [
        collate([reader.read(token) for token in eight_frames.tokens[first::4]])
        for first in range(4)
    ]
    optimizer = torch.optim.AdamW(detector.parameters(), lr=PEAK_LR)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=PEAK_LR, total_steps=STEPS, pct_start=0.2
    )
    for step in range(STEPS):
        batch = batches[step % len(batches)]
        with torch.autocast("cpu", torch.bfloat16):
            losses = detector.loss(detector(batch), batch)
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        torch.nn.utils.clip_grad_norm_(detector.parameters(), 35.0)
        optimizer.step()
        schedule.step()
    detector.eval()
    with torch.inference_mode():
        found = {
            token: detections
            for batch in batches
            for token, detections in zip(
                batch.tokens, detector.decode(detector(batch)), strict=True
            )
        }
    metrics = score(found, eight_frames, tmp_path)
    searched = {name: values["boxes"] for name, values in metrics["per_class"].items()}
    assert all(searched.values()), f"a class is not in range: {searched}"
    assert metrics["mAP"] > 0.8, metrics
