"""The camera student can learn what it should: eight frames by heart, scored by the devkit."""

from pathlib import Path

import pytest
import torch

from bevcask.config import DatasetConfig, build_config
from bevcask.data.index.frames import Frames
from bevcask.detectors.base import Batch, Output
from bevcask.detectors.bevdepth import BEVDepth, BEVDepthConfig
from bevcask.groups import load_group
from bevcask.synthetic import synthesize
from bevcask.verbs import SynthesizeConfig
from detectors.by_heart import learn_by_heart


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
    detector = BEVDepth(config)

    def run(batch: Batch) -> Output:
        with torch.autocast("cpu", torch.bfloat16, enabled=detector.training):
            output: Output = detector(batch)
        return output

    metrics = learn_by_heart(
        detector,
        BEVDepth.inputs(config),
        eight_frames,
        run,
        steps=700,
        peak_lr=4e-3,
        warm_up=0.2,
        out=tmp_path,
    )
    searched = {name: values["boxes"] for name, values in metrics["per_class"].items()}
    assert all(searched.values()), f"a class is not in range: {searched}"
    assert metrics["mAP"] > 0.8, metrics
