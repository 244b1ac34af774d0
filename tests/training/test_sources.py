"""Where targets come from: regions that follow boxes lie in the frame the teacher sees."""

from collections.abc import Collection
from typing import Any

import pytest
import torch
from torch import Tensor

from bevcask.data.join import TrainBatch
from bevcask.detectors.base import Batch, Labels
from bevcask.geometry import Grid, bev_matrix, transform_boxes
from bevcask.targets.rectangles import rectangle_mask
from bevcask.targets.region import box_mask
from bevcask.targets.spec import Region, TapInfo, TargetSpec
from bevcask.training.sources import CachedTargets, OnlineTargets, align_of, meet

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
    found = source(TrainBatch(seen, teacher_batches={"": seen}))["map"]
    inside = box_mask([BOX if canonical else moved], GRID, margin=0.0, touched=True)
    other = box_mask([moved if canonical else BOX], GRID, margin=0.0, touched=True)
    assert found.region_BYX is not None
    assert (found.region_BYX & inside).any()
    assert not (found.region_BYX & other).any()
    assert torch.equal(found.values[0, 0] > 0, found.region_BYX[0])


def camera_batch(matrix: Any) -> Batch:
    """One camera half a metre ahead of the LiDAR that looks along +y, images enlarged twice."""
    pose = torch.eye(4)
    pose[:3, :3] = torch.tensor([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])
    pose[:3, 3] = torch.tensor([0.0, 0.5, 0.0])
    intrinsics = torch.tensor([[20.0, 0, 15.5], [0, 20, 7.5], [0, 0, 1]])
    twice = torch.tensor([[2.0, 0, 0.5], [0, 2, 0.5], [0, 0, 1]])
    return Batch(
        ["0" * 32],
        torch.as_tensor(matrix)[None],
        images_BVCHW=torch.zeros(1, 1, 3, 32, 64),
        intrinsics_BV33=intrinsics[None, None],
        image_aug_BV33=twice[None, None],
        camera_to_lidar_BV44=pose[None, None],
    )


def test_images_know_where_the_lidar_frame_lies() -> None:
    """A point 2 m right, 4.5 m ahead, 1 m up: 4 m deep, 10 pixels right of the middle, 5 up."""
    images = align_of(camera_batch(FLIP)).images
    assert images is not None
    assert images.lidar_to_image_BV44 is not None
    seen = images.lidar_to_image_BV44[0, 0] @ torch.tensor([2.0, 4.5, 1.0, 1.0]).double()
    torch.testing.assert_close(seen, torch.tensor([4 * 25.5, 4 * 2.5, 4, 1]).double())
    bare = camera_batch(FLIP)
    bare.camera_to_lidar_BV44 = None
    without = align_of(bare).images
    assert without is not None
    assert without.lidar_to_image_BV44 is None


def test_boxes_lie_in_the_same_pixels_whichever_frame_is_canonical() -> None:
    box = torch.tensor([[2.0, 6.0, 0.5, 2.0, 1.0, 1.5, 0.3, 0.0, 0.0]])
    align = align_of(camera_batch(FLIP))
    labels = Labels(align.boxes([box]), [torch.zeros(1, dtype=torch.long)], [box])
    masks = []
    for source in (
        CachedTargets(),
        OnlineTargets(teacher=None, specs={}, canonical=False),  # type: ignore[arg-type]
    ):
        seen, met = meet(source, labels, align)
        masks.append(rectangle_mask(seen.canonical_boxes, met.images, (8, 16)))
    assert masks[0].any()
    assert torch.equal(*masks)


@pytest.mark.parametrize("shown", [True, False], ids=["shown", "not shown"])
@pytest.mark.parametrize("moved", [True, False], ids=["moved", "not moved"])
def test_points_meet_images_that_are_shown_and_whose_move_is_known(
    shown: bool, moved: bool
) -> None:
    images = torch.zeros(1, 6, 3, 16, 24) if shown else None
    matrices = torch.eye(3).expand(1, 6, 3, 3) if moved else None
    align = align_of(Batch(["0" * 32], torch.eye(4)[None], images, image_aug_BV33=matrices))
    if shown and moved:
        assert align.images is not None
        assert align.images.size_HW == (16, 24)
        assert align.images.matrices_BV33 is matrices
    else:
        assert align.images is None
