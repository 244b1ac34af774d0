"""BEVFormer can learn what it should: eight frames by heart, scored by the devkit."""

from pathlib import Path

import pytest
import torch

from bevcask.config import StudentConfig
from bevcask.data.index.frames import Frames
from bevcask.detectors.bevformer import BEVFormer
from bevcask.detectors.memory import unroll
from bevcask.training.checkpoint import start
from detectors.by_heart import learn_by_heart
from detectors.small_bevformer import shipped
from detectors.test_overfit_bevdepth import eight_frames  # noqa: F401


@pytest.mark.slow
def test_tiny_bevformer_learns_eight_frames_by_heart(
    eight_frames: Frames,  # noqa: F811
    tmp_path: Path,
) -> None:
    torch.manual_seed(0)
    config = shipped("bevformer_tiny")
    detector = BEVFormer(config)
    start(detector, StudentConfig(detector={}, init="catalog:bevdepth_tiny_start"))
    metrics = learn_by_heart(
        detector,
        BEVFormer.inputs(config),
        eight_frames,
        lambda batch: unroll(detector, batch),
        steps=400,
        peak_lr=1e-3,
        warm_up=0.1,
        out=tmp_path,
    )
    assert metrics["mAP"] > 0.8, metrics
