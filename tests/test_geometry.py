import math
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bevcask.cache.quantize import encode
from bevcask.detectors.blocks.depthnet import depth_loss
from bevcask.geometry import (
    Grid,
    bev_matrix,
    box_corners_bev,
    centres_on,
    constant,
    inside_footprints,
    pose_matrix,
    transform_boxes,
    transform_points,
)
from bevcask.targets.spec import TapInfo, TargetSpec

RNG = np.random.default_rng(0)
BOXES = np.concatenate(
    [RNG.uniform(-40, 40, (20, 3)), RNG.uniform(1, 8, (20, 3)), RNG.uniform(-4, 4, (20, 3))], 1
)
AUGMENTATIONS = [
    bev_matrix(),
    bev_matrix(flip_x=True),
    bev_matrix(flip_y=True),
    bev_matrix(math.pi / 2),
    bev_matrix(0.3, 1.05, True, False),
    bev_matrix(-0.39, 0.95, True, True),
]


def test_cell_centres_rise_with_metres_and_end_in_xy() -> None:
    grid = Grid(-2.0, 10.0, 0.5, num_x=4, num_y=3)
    centres = grid.centres()
    assert centres.shape == (3, 4, 2)
    np.testing.assert_allclose(centres[0, 0], [-1.75, 10.25])
    np.testing.assert_allclose(centres[0, 1] - centres[0, 0], [0.5, 0])
    np.testing.assert_allclose(centres[1, 0] - centres[0, 0], [0, 0.5])
    cells = grid.to_cells(centres.reshape(-1, 2)).reshape(3, 4, 2)
    np.testing.assert_allclose(cells[2, 1], [1.5, 2.5])


def test_coarsen_keeps_the_borders() -> None:
    fine = Grid.square(51.2, 0.4)
    coarse = fine.coarsen(2)
    assert coarse.shape_YX == (128, 128)
    assert (coarse.x_max, coarse.y_max) == (fine.x_max, fine.y_max)
    with pytest.raises(ValueError, match="do not divide by 3"):
        coarse.coarsen(3)


def test_symmetric_grids_are_told_apart() -> None:
    assert Grid.square(51.2, 0.8).is_symmetric
    assert not Grid(0.0, -40.0, 0.8, 100, 100).is_symmetric


@pytest.mark.parametrize("matrix", AUGMENTATIONS)
def test_boxes_move_with_their_corners(matrix: np.ndarray) -> None:
    moved = transform_boxes(BOXES, matrix)
    corners = np.concatenate([box_corners_bev(BOXES), np.zeros((20, 4, 1))], -1)
    expected = transform_points(corners, matrix)[..., :2]
    actual = box_corners_bev(moved)
    # A reflection reverses the winding, so compare as sets: every corner has its partner.
    distance = np.linalg.norm(actual[:, :, None] - expected[:, None], axis=-1)
    assert distance.min(axis=2).max() < 1e-9
    assert distance.min(axis=1).max() < 1e-9


@pytest.mark.parametrize("matrix", AUGMENTATIONS)
def test_inverse_returns_every_box(matrix: np.ndarray) -> None:
    back = transform_boxes(transform_boxes(BOXES, matrix), np.linalg.inv(matrix))
    wrapped = (back[:, 6] - BOXES[:, 6] + math.pi) % (2 * math.pi) - math.pi
    np.testing.assert_allclose(wrapped, 0, atol=1e-9)
    np.testing.assert_allclose(np.delete(back, 6, 1), np.delete(BOXES, 6, 1), atol=1e-9)


def test_hand_computed_flip() -> None:
    box = np.array([[3.0, 4.0, 1.0, 4.0, 2.0, 1.5, math.pi / 6, 2.0, 1.0]])
    moved = transform_boxes(box, bev_matrix(flip_x=True))[0]
    np.testing.assert_allclose(moved, [-3, 4, 1, 4, 2, 1.5, math.pi - math.pi / 6, -2, 1])


def test_rotation_comes_before_the_flip() -> None:
    point = transform_points(np.array([[1.0, 0.0, 0.0]]), bev_matrix(math.pi / 2, 2.0, flip_y=True))
    np.testing.assert_allclose(point, [[0, -2, 0]], atol=1e-12)


def test_velocity_is_the_displacement_of_a_moving_centre() -> None:
    matrix = bev_matrix(0.3, 1.05, True, False)
    later = BOXES.copy()
    later[:, :2] += 0.5 * BOXES[:, 7:9]
    displacement = transform_boxes(later, matrix)[:, :2] - transform_boxes(BOXES, matrix)[:, :2]
    np.testing.assert_allclose(displacement / 0.5, transform_boxes(BOXES, matrix)[:, 7:9])


def test_torch_and_numpy_agree() -> None:
    matrix = AUGMENTATIONS[4]
    np.testing.assert_allclose(
        transform_boxes(torch.from_numpy(BOXES), matrix).numpy(), transform_boxes(BOXES, matrix)
    )
    points = np.c_[BOXES[:, :3], np.arange(20.0)[:, None]]
    moved = transform_points(torch.from_numpy(points), torch.from_numpy(matrix))
    np.testing.assert_allclose(moved.numpy(), transform_points(points, matrix))
    assert moved[:, 3].tolist() == list(range(20))


@pytest.mark.parametrize("matrix", AUGMENTATIONS)
def test_points_stay_in_their_boxes(matrix: np.ndarray) -> None:
    points = RNG.uniform(-45, 45, (4000, 3))
    before = inside_footprints(points[:, :2], BOXES)
    after = inside_footprints(
        transform_points(points, matrix)[:, :2], transform_boxes(BOXES, matrix)
    )
    assert before.sum() > 50
    assert np.array_equal(before, after)


def test_pose_matrix_is_the_devkit_rotation() -> None:
    from pyquaternion import Quaternion

    quaternion = Quaternion(axis=(0.2, -1, 0.4), angle=1.1)
    matrix = pose_matrix([1, 2, 3], quaternion.elements)
    np.testing.assert_allclose(matrix[:3, :3], quaternion.rotation_matrix, atol=1e-12)
    np.testing.assert_allclose(matrix[:, 3], [1, 2, 3, 1])


class Divisions(TorchDispatchMode):
    """Refuses to divide a tensor by a number, which CUDA rounds otherwise than a CPU does."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func.overloadpacket is torch.ops.aten.div and args[0].ndim:  # a mean may round
            assert isinstance(args[1], torch.Tensor), args[1]
        return func(*args, **(kwargs or {}))


def test_no_cell_depends_on_the_device() -> None:
    """Points at a border lay in another pillar on CUDA than on a CPU."""
    with Divisions():
        Grid.square(54.0, 0.075).to_cells(torch.rand(9, 2))
        depth_loss(torch.randn(1, 1, 4, 2, 2), torch.rand(1, 1, 2, 2) * 4, 0.0, 0.3)
        tap = TapInfo("bev", "dense_bev", (4, 6, 8), Grid(0.0, 0.0, 1.0, 8, 6), nonnegative=True)
        encode(torch.rand(2, 4, 6, 8), TargetSpec(tap, "uint8"))


@pytest.mark.gpu
def test_cuda_finds_the_cells_of_the_cpu() -> None:
    grid = Grid.square(54.0, 0.075)
    points_P2 = torch.rand(1_000_000, 2) * 110 - 55
    points_P2[::2] = (points_P2[::2] / 0.075).round() * 0.075  # at the borders
    assert torch.equal(grid.to_cells(points_P2.cuda()).cpu(), grid.to_cells(points_P2))


def test_a_constant_is_made_once_and_passes_gradients() -> None:
    with torch.inference_mode():
        first = constant((1.0, 2.5), torch.zeros(2))
    like = torch.ones(2, requires_grad=True)
    again = constant((1.0, 2.5), like)
    assert again is first
    (again * like).sum().backward()
    assert torch.equal(like.grad, first)
    whole = constant((1, 2), torch.zeros(2, dtype=torch.int64))
    assert (whole.dtype, whole.tolist()) == (torch.int64, [1, 2])
    assert constant((1, 2), np.zeros(2, np.float32)).dtype == np.float32


def test_centres_on_a_device_are_those_of_the_grid_and_made_once() -> None:
    grid = Grid(-2.0, 1.0, 0.5, 4, 3)
    first = centres_on(grid, torch.device("cpu"))
    assert first.dtype == torch.float64
    np.testing.assert_array_equal(first.numpy(), grid.centres())
    assert centres_on(Grid(-2.0, 1.0, 0.5, 4, 3), torch.device("cpu")) is first
