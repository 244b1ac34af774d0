"""BEVFormer can learn what it should: eight frames by heart, scored by the devkit."""

from pathlib import Path

import pytest
import torch

from bevcask.config import StudentConfig
from bevcask.data.index.frames import Frames
from bevcask.data.samples import SampleReader, collate
from bevcask.detectors.bevformer import BEVFormer
from bevcask.detectors.memory import unroll
from bevcask.evaluation.nuscenes import score
from bevcask.training.checkpoint import start
from detectors.small_bevformer import shipped
from detectors.test_overfit_bevdepth import eight_frames  # noqa: F401

STEPS = 400
PEAK_LR = 1e-3


@pytest.mark.slow
def test_tiny_bevformer_learns_eight_frames_by_heart(
    eight_frames: Frames,  # noqa: F811
    tmp_path: Path,
) -> None:
    torch.manual_seed(0)
    config = shipped("bevformer_tiny")
    detector = BEVFormer(config)
    start(detector, StudentConfig(detector={}, init="catalog:bevdepth_tiny_start"))
    detector.train()
    reader = SampleReader(eight_frames, BEVFormer.inputs(config), None, seed=0)
    batches = [
        collate([reader.read(token) for token in eight_frames.tokens[first::4]])
        for first in range(4)
    ]
    optimizer = torch.optim.AdamW(detector.parameters(), lr=PEAK_LR)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=PEAK_LR, total_steps=STEPS, pct_start=0.1
    )
    for step in range(STEPS):
        batch = batches[step % len(batches)]
        losses = detector.loss(unroll(detector, batch), batch)
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
                batch.tokens, detector.decode(unroll(detector, batch)), strict=True
            )
        }
    metrics = score(found, eight_frames, tmp_path)
    assert metrics["mAP"] > 0.8, metrics
