"""TiG's keypoints under augmentation: where they go, what they read; that nothing is missing."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bevcask.detectors.base import Labels
from bevcask.geometry import Grid, bev_matrix, transform_boxes, transform_points
from bevcask.methods.base import Target
from bevcask.methods.tigdistill import box_keypoints, read_points
from bevcask.targets.align import Align
from bevcask.targets.region import box_mask
from contracts.method import TURN
from methods.tigdistill_cases import CASE, COARSE, GRID, built, neck, scene

MARGIN, STEPS, SMALLEST = 1.6, 24, 0.95  # released code; the smallest scale of its augmentation
PAPER = Grid.square(51.2, 0.8)
QUARTER = math.pi / 2
HARD = bev_matrix(-0.3925, SMALLEST, True, True)


def crowd(num: int, reach: float, seed: int = 0) -> Tensor:
    """Boxes of nuScenes sizes, float32."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.rand((num, 6), generator=generator)
    boxes = torch.zeros(num, 9)
    boxes[:, :2] = reach * (2 * drawn[:, :2] - 1)
    boxes[:, 3] = 0.3 * (13 / 0.3) ** drawn[:, 2]
    boxes[:, 4] = (boxes[:, 3] * (0.2 + 1.3 * drawn[:, 3])).clamp(max=3.5)
    boxes[:, 5], boxes[:, 6] = 1.5, 2 * math.pi * drawn[:, 4]
    return boxes


def originals(boxes_N9: Tensor, matrix: Any) -> Tensor:
    """Return where the keypoints of augmented boxes lie in the canonical frame, (N, K, 2)."""
    points_NK2 = box_keypoints(boxes_N9, MARGIN, STEPS)
    flat_NK3 = torch.nn.functional.pad(points_NK2, (0, 1))
    return transform_points(flat_NK3, np.linalg.inv(matrix))[..., :2]


@pytest.mark.parametrize(
    ("matrix", "mirrored"),
    [
        (bev_matrix(0.3), False),
        (bev_matrix(flip_x=True), True),
        (bev_matrix(flip_y=True), True),
        (bev_matrix(0.3, flip_y=True), True),
        (bev_matrix(flip_x=True, flip_y=True), False),
        (bev_matrix(QUARTER), False),
    ],
)
def test_keypoints_go_with_their_box(matrix: Any, mirrored: bool) -> None:
    """A^-1 of an augmented box's keypoints are its own, across the width reversed by one flip."""
    boxes = crowd(40, 40.0).double()
    own = box_keypoints(boxes, MARGIN, STEPS)
    if mirrored:
        own = own.view(-1, STEPS, STEPS, 2).flip(1).flatten(1, 2)
    found = originals(transform_boxes(boxes, matrix), matrix)
    torch.testing.assert_close(found, own, rtol=0, atol=1e-9)


def test_the_margin_belongs_to_the_augmented_frame() -> None:
    """Shrunk to 0.95, a box keeps 1.6 m around it: 1.6 / 0.95 m of the canonical frame."""
    boxes, matrix = crowd(5, 40.0).double(), bev_matrix(0.2, SMALLEST)
    found = originals(transform_boxes(boxes, matrix), matrix)
    torch.testing.assert_close(found, box_keypoints(boxes, MARGIN / SMALLEST, STEPS))


@pytest.mark.parametrize(
    "matrix", [bev_matrix(flip_x=True), bev_matrix(flip_y=True), bev_matrix(math.pi), HARD]
)
def test_a_student_that_says_the_moved_world_loses_nothing(matrix: Any) -> None:
    """Fields linear in metres are read exactly, on other cells, wherever the boxes went."""
    method = built(neck(4, COARSE), neck(4, GRID)).double()
    method.widen = torch.nn.Identity()
    slopes = torch.tensor([[1.0, 0.0, 9.0], [0.0, 1.0, 9.0], [0.5, -2.0, 4.0], [0.0, 0.0, 1.0]])

    def field(grid: Grid, back: Any) -> Tensor:
        x, y = np.moveaxis(grid.centres(), -1, 0)
        metres = np.stack([x, y, np.zeros_like(x)], -1)
        moved = torch.as_tensor(transform_points(metres, back))
        moved[..., 2] = 1
        return torch.einsum("yxi,ci->cyx", moved, slopes.double())[None]

    canonical = crowd(6, 3.0)
    align = Align(torch.as_tensor(matrix)[None])
    classes = [torch.zeros(6, dtype=torch.int64)]
    labels = Labels(align.boxes([canonical]), classes, [canonical])
    target = {"bev.neck": Target(field(GRID, np.eye(4)))}
    student = {"bev.neck": field(COARSE, np.linalg.inv(matrix))}
    for loss in method(student, target, labels, align, 0.0).values():
        assert float(loss) < 1e-9
    unmoved = {"bev.neck": field(COARSE, np.eye(4))}
    for loss in method(unmoved, target, labels, align, 0.0).values():
        assert float(loss) > 1e-3


@pytest.mark.parametrize(
    "matrix",
    [bev_matrix(flip_x=True), bev_matrix(flip_y=True), bev_matrix(flip_x=True, flip_y=True)],
)
def test_a_flipped_student_scores_the_same(matrix: Any) -> None:
    """Reversed keypoints permute rows and columns of both sides alike."""
    method, plain = built(neck(4, COARSE), neck(6, GRID)), scene(3)
    canonical = plain.labels.canonical_boxes
    align = Align(torch.as_tensor(matrix).expand(2, 4, 4))
    labels = Labels(align.boxes(canonical), plain.labels.classes, canonical)
    moved, _ = align.cells(plain.student["bev.neck"].detach(), COARSE, COARSE)  # own inverse
    flipped = replace(plain, student={"bev.neck": moved}, labels=labels, align=align)
    expected = plain.run(method)
    torch.testing.assert_close(flipped.run(method), expected, rtol=1e-4, atol=0)
    astray = replace(flipped, align=Align.identity(2)).run(method)
    for name, loss in expected.items():
        assert float(astray[name].detach()) != pytest.approx(float(loss.detach()), rel=1e-3)


@pytest.mark.parametrize("num_sets", [2_500, pytest.param(10_000, marks=pytest.mark.slow)])
def test_thousands_of_keypoint_sets_read_stored_cells_alone(num_sets: int) -> None:
    """Boxes and augmentations at random, with the method's own arithmetic in float32.

    What is not stored is NaN here, which even a weight of zero would let through.
    """
    [margin] = [need.region.margin for need in CASE.build().needs() if need.role == "neck"]
    boxes = crowd(num_sets, 38.0)
    drawn = torch.rand((len(boxes), 4), generator=torch.Generator().manual_seed(1))
    turns = [
        bev_matrix(0.3925 * (2 * a - 1), SMALLEST + 0.1 * b, c > 0.5, d > 0.5)
        for a, b, c, d in drawn.tolist()
    ]
    missing = 0
    for first in range(0, len(boxes), 250):
        part, matrices = boxes[first : first + 250], turns[first : first + 250]
        align = Align(torch.as_tensor(np.stack(matrices)))
        back = align.inverse().matrices_B44
        moved = torch.cat(align.boxes(list(part.split(1))))
        points_NK2 = torch.nn.functional.pad(box_keypoints(moved, MARGIN, STEPS), (0, 1))
        stored_NYX = box_mask(list(part.split(1)), PAPER, margin, True)
        maps_NYX = torch.where(stored_NYX, 1.0, torch.nan)
        for map_YX, points_K2, inverse in zip(maps_NYX, points_NK2, back, strict=True):
            origin_K2 = transform_points(points_K2, inverse)[:, :2]
            read, inside = read_points(map_YX[None], PAPER, origin_K2[None])
            missing += int(read[inside].isnan().sum())
    assert missing == 0


def test_a_margin_too_small_by_a_centimetre_is_noticed() -> None:
    """The test above can fail: 2 cm less around 300 boxes leave cells out."""
    boxes, matrix = crowd(300, 38.0), bev_matrix(0.0, SMALLEST)
    moved = transform_boxes(boxes, matrix)
    stored_NYX = box_mask(list(boxes.split(1)), PAPER, MARGIN / SMALLEST - 0.02, True)
    origin_NK2 = originals(moved, matrix)
    reads = [
        read_points(torch.where(own, 1.0, torch.nan)[None], PAPER, points[None])
        for own, points in zip(stored_NYX, origin_NK2, strict=True)
    ]
    assert any(bool(read[inside].isnan().any()) for read, inside in reads)


def test_a_box_over_the_border_is_read_where_both_maps_reach() -> None:
    """Keypoints beyond either map count on neither side."""
    narrow = Grid.square(4.0, 0.5)
    method = built(neck(2, COARSE), neck(2, narrow)).double()
    boxes = [torch.tensor([[3.0, 0.0, 0.0, 4.0, 2.0, 1.5, 0.0, 0.0, 0.0]])]
    labels = Labels(boxes, [torch.zeros(1, dtype=torch.int64)], boxes)
    target = {"bev.neck": Target(torch.rand(1, 2, 16, 16, dtype=torch.float64))}
    map_BCYX = torch.rand(1, 2, 16, 16, dtype=torch.float64, requires_grad=True)
    terms = method({"bev.neck": map_BCYX}, target, labels, Align.identity(1), 0.0)
    torch.stack(list(terms.values())).sum().backward()
    assert map_BCYX.grad is not None
    reached_X = map_BCYX.grad[0].abs().sum((0, 1)) > 0
    # Keypoints lie at x = -0.6, -0.29 .. 6.6 m, the last that the teacher knows (to 3.75 m) at
    # 3.47 m; student columns 6 and 11 have their centres at -1.5 and 3.5 m.
    assert reached_X.nonzero().flatten().tolist() == [6, 7, 8, 9, 10, 11]


@pytest.mark.parametrize(("x", "scale", "counts"), [(3.9, 1.05, True), (4.1, 0.95, False)])
def test_a_box_counts_whose_centre_the_teacher_saw(x: float, scale: float, counts: bool) -> None:
    """The teacher's range ends at 4 m of the canonical frame, whatever the student sees."""
    method = built(neck(2, COARSE), neck(2, Grid.square(4.0, 0.5)))
    boxes = [torch.tensor([[x, 0.0, 0.0, 2.0, 2.0, 1.5, 0.0, 0.0, 0.0]])]
    align = Align(torch.as_tensor(bev_matrix(0.0, scale))[None])
    labels = Labels(align.boxes(boxes), [torch.zeros(1, dtype=torch.int64)], boxes)
    student = {"bev.neck": torch.rand(1, 2, 16, 16)}
    target = {"bev.neck": Target(torch.rand(1, 2, 16, 16))}
    for loss in method(student, target, labels, align, 0.0).values():
        assert bool(loss > 0) == counts


@pytest.mark.parametrize("matrix", [bev_matrix(), TURN], ids=["clean", "turn"])
def test_the_order_of_boxes_does_not_matter(matrix: Any) -> None:
    method, step = built(neck(4, COARSE), neck(6, GRID)), scene(1, 9, matrix)
    expected = step.run(method)
    labels = step.labels
    for group in (labels.boxes, labels.canonical_boxes, labels.classes):
        group[:] = [own.flip(0) for own in group]
    torch.testing.assert_close(step.run(method), expected, rtol=1e-5, atol=0)
