"""Where targets come from: regions that follow boxes lie in the frame the teacher sees."""

from collections.abc import Collection
from typing import Any

import pytest
import torch
from torch import Tensor

from bevcask.data.join import TrainBatch
from bevcask.detectors.base import Batch, Labels
from bevcask.geometry import Grid, bev_matrix, transform_boxes
from bevcask.targets.region import box_mask
from bevcask.targets.spec import Region, TapInfo, TargetSpec
from bevcask.training.sources import OnlineTargets

GRID = Grid.square(16.0, 1.0)
FOREGROUND = TargetSpec(
    TapInfo("map", "dense_bev", (1, *GRID.shape_YX), GRID), "float32", Region("foreground")
)
BOX = torch.tensor([[5.0, 9.0, 0.0, 4.0, 2.0, 1.5, 0.0, 0.0, 0.0]])
FLIP = bev_matrix(flip_x=True)


class Teacher:
    """Says 1 everywhere."""

    def targets(self, batch: Batch, names: Collection[str]) -> dict[str, Tensor]:
        return {"map": torch.ones(len(batch.tokens), 1, *GRID.shape_YX)}


@pytest.mark.parametrize("canonical", [True, False], ids=["canonical", "augmented"])
def test_a_region_follows_the_boxes_that_the_teacher_sees(canonical: bool) -> None:
    moved: Tensor = transform_boxes(BOX, FLIP)
    labels = Labels([moved], [torch.zeros(1, dtype=torch.long)], [BOX])
    seen = Batch(["0" * 32], torch.from_numpy(FLIP).float()[None], labels=labels)
    teacher: Any = Teacher()
    source = OnlineTargets(teacher, {"map": FOREGROUND}, canonical)
    found = source(TrainBatch(seen, teacher_batch=seen))["map"]
    inside = box_mask([BOX if canonical else moved], GRID, margin=0.0, touched=True)
    other = box_mask([moved if canonical else BOX], GRID, margin=0.0, touched=True)
    assert found.region_BYX is not None
    assert (found.region_BYX & inside).any()
    assert not (found.region_BYX & other).any()
    assert torch.equal(found.values[0, 0] > 0, found.region_BYX[0])
