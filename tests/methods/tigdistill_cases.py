"""TiGDistill cases that several tests share: taps, steps with images and points, and builders."""

from collections.abc import Mapping
from typing import Any

import torch

from bevcask.geometry import Grid, bev_matrix
from bevcask.methods import build_method
from bevcask.methods.base import Target
from bevcask.methods.tigdistill import TiGDistill
from bevcask.targets.align import Align, ImageAug
from bevcask.targets.pixels import PIXELS
from bevcask.targets.spec import Region, RegionName, TapInfo, TargetSpec
from contracts.method import MethodContract, Step

GRID = Grid.square(8.0, 0.5)
COARSE = Grid.square(8.0, 1.0)
FEATURES: Mapping[str, Any] = {"type": "tigdistill", "inner_depth": 0.0}
SECTION: Mapping[str, Any] = {"type": "tigdistill"}
BINS = tuple(1.5 + 4 * index for index in range(12))
DEPTH = TapInfo("image.depth", "image_feature", (6, 12, 4, 11), depends_on_images=True, bins=BINS)


def neck(channels: int, grid: Grid) -> TapInfo:
    return TapInfo("bev.neck", "dense_bev", (channels, *grid.shape_YX), grid, nonnegative=True)


class Taught(MethodContract):
    """All three terms."""

    section = SECTION
    student: Mapping[str, TapInfo] = {"bev.neck": neck(4, COARSE), "image.depth": DEPTH}
    teacher: Mapping[str, TapInfo] = {"bev.neck": neck(6, GRID), PIXELS.name: PIXELS}
    extent = 4.0
    blind_without_boxes = True

    def step(
        self, batch_size: int = 2, num_boxes: int = 4, seed: int = 0, matrix: Any = None
    ) -> Step:
        """Return a step whose boxes hold two cells each of two images, and one between them."""
        step = super().step(batch_size, num_boxes, seed, matrix)
        generator = torch.Generator().manual_seed(seed)
        points = torch.zeros(batch_size, *PIXELS.shape)
        rows = [
            (camera, 16 * column + 3, 16 * row + 9, box if column % 3 else 0)
            for camera in (1, 4)
            for row, box in enumerate(range(1, min(num_boxes, 4) + 1))
            for column in range(5)
        ]
        if rows:
            points[:, : len(rows), [0, 1, 2, 4]] = torch.tensor(rows).float()
        drawn = torch.rand((batch_size, len(rows)), generator=generator)
        points[:, : len(rows), 3] = 2 + 50 * drawn
        step.targets[PIXELS.name] = Target(points, None, torch.full((batch_size,), len(rows)))
        logits = step.student["image.depth"].detach()
        step.student["image.depth"] = (5 * logits).softmax(2).requires_grad_()
        step.align = Align(torch.as_tensor(step.align.matrices_B44), images(batch_size))
        return step

    def test_student_out_of_sight(self) -> None:
        """Nor do the images show any point."""
        away = bev_matrix()
        away[0, 3] = 1e4
        step = self.step(matrix=away)
        away_too = images(2)
        away_too.matrices_BV33[..., 0, 2] = 1e4
        step.align = Align(torch.as_tensor(step.align.matrices_B44), away_too)
        losses = step.run(self.build())
        assert all(float(loss.detach()) == 0 for loss in losses.values())


CASE = Taught()


def images(batch_size: int) -> ImageAug:
    """Images shown as they are, 64 x 176 pixels."""
    return ImageAug(torch.eye(3).repeat(batch_size, 6, 1, 1), (64, 176))


def built(student: TapInfo, teacher: TapInfo, region: RegionName = "all") -> TiGDistill:
    """Return the method with the inner-feature terms alone."""
    torch.manual_seed(0)
    method = build_method(FEATURES)
    assert isinstance(method, TiGDistill)
    margin = 1.6 / 0.95 if region == "keypoints" else 0.0
    spec = TargetSpec(teacher, "float32", Region(region, margin=margin))
    method.build({"bev.neck": student}, {"bev.neck": spec})
    return method


def scene(seed: int = 0, num_boxes: int = 3, matrix: Any = None) -> Step:
    return CASE.step(2, num_boxes, seed, matrix)
