"""RayDN can learn what it should: eight frames by heart, scored by the devkit."""

import sys
from pathlib import Path

import pytest
import torch

from bevcask.config import StudentConfig
from bevcask.data.index.frames import Frames
from bevcask.detectors.memory import unroll
from bevcask.detectors.raydn import RayDN
from bevcask.training.checkpoint import start
from detectors.by_heart import learn_by_heart
from detectors.small_stream import shipped
from detectors.test_overfit_bevdepth import eight_frames  # noqa: F401


@pytest.mark.slow
def test_tiny_raydn_learns_eight_frames_by_heart(
    eight_frames: Frames,  # noqa: F811
    tmp_path: Path,
) -> None:
    """Each behind the frame before it, denoising and the head in the images as in training."""
    torch.manual_seed(0)
    detector = RayDN(shipped("raydn_tiny").model_copy(update={"history": 1}))
    start(detector, StudentConfig(detector={}, init="catalog:bevdepth_tiny_start"))
    metrics = learn_by_heart(
        detector,
        RayDN.inputs(detector.config),
        eight_frames,
        lambda batch: unroll(detector, batch),
        steps=450,
        peak_lr=2e-3,
        warm_up=0.1,
        out=tmp_path,
    )
    sys.stdout.write(f"\nmAP of eight frames by heart: {metrics['mAP']:.3f}\n")
    assert metrics["mAP"] > 0.8, metrics
