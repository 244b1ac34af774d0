"""What a student in training is shown beside, and what it is shown without."""

from pathlib import Path

import numpy as np
import pytest
import torch

from bevcask.config import DatasetConfig
from bevcask.data.index.frames import Frames
from bevcask.detectors.base import Detections
from bevcask.geometry import Grid
from bevcask.targets.spec import TapInfo
from bevcask.viz.learning import Said, compose_learning
from viz.cached import build

GRID = Grid.square(51.2, 6.4)
NECK = TapInfo("bev.neck", "dense_bev", (2, *GRID.shape_YX), GRID)
VALUES = np.stack([np.full(GRID.shape_YX, 2.0), np.full(GRID.shape_YX, -4.0)]).astype(np.float32)
BOXES = Detections(torch.zeros(3, 9), torch.tensor([0.9, 0.4, 0.2]), torch.tensor([0, 1, 2]))
SAID = Said("step 7", {"bev.neck": NECK}, {"bev.neck": VALUES}, BOXES)


@pytest.fixture(scope="module")
def frames(tiny_world: Path) -> Frames:
    return Frames.select(DatasetConfig(root=str(tiny_world), version="v1.0-synthetic", split="all"))


def test_a_student_alone(frames: Frames) -> None:
    picture = compose_learning(frames, frames.tokens[1], SAID, None)
    assert picture.title == f"step 7   sample {frames.tokens[1]}"
    assert "student alone" in picture.subtitle
    (energy,) = picture.maps
    assert (energy.grid, energy.values_YX.mean()) == (GRID, 3.0)
    truth, student = picture.layers
    assert len(truth.boxes_N9) == len(frames.labels(frames.tokens[1])[0])
    assert (student.names, len(student.boxes_N9)) == (["car", "truck"], 2)
    assert len(picture.points_P5) > 1000


def test_a_cache_of_other_frames_draws_no_teacher(frames: Frames, tmp_path: Path) -> None:
    other = build(tmp_path / "other.zarr").url
    picture = compose_learning(frames, frames.tokens[1], SAID, other)
    assert "student alone" in picture.subtitle
    gone = compose_learning(frames, frames.tokens[1], SAID, str(tmp_path / "gone.zarr"))
    assert len(gone.maps) == len(picture.maps) == 1


def test_a_dataset_without_lidar(
    frames: Frames, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frames.index, "root", tmp_path)
    picture = compose_learning(frames, frames.tokens[1], SAID, None)
    assert picture.points_P5.shape == (0, 5)
