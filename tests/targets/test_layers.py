"""Voxels: flips bit for bit, affine fields exactly, heights in step with the plane."""

import numpy as np
import pytest
import torch

from bevcask.errors import TargetMismatchError
from bevcask.geometry import Grid, bev_matrix
from bevcask.targets.align import Align
from bevcask.targets.layers import between_layers

GRID = Grid.square(4.0, 0.5)
HEIGHTS = (-1.0, 0.0, 0.5, 2.0)


def align_of(*matrices: np.ndarray) -> Align:
    return Align(torch.stack([torch.as_tensor(own) for own in matrices]))


def field(grid: Grid, heights: tuple[float, ...]) -> torch.Tensor:
    """2 x - 3 y + 5 z, (1, Z, Y, X)."""
    x_YX, y_YX = np.moveaxis(grid.centres(), -1, 0)
    z_Z11 = np.array(heights)[:, None, None]
    return torch.tensor(2 * x_YX - 3 * y_YX + 5 * z_Z11)[None]


def test_flips_are_permutations_and_undo_themselves() -> None:
    map_BCZYX = torch.randn(2, 3, 4, *GRID.shape_YX)
    flips = align_of(bev_matrix(flip_x=True), bev_matrix(flip_y=True))
    once, valid = flips.voxels(map_BCZYX, GRID, GRID, HEIGHTS, HEIGHTS)
    assert valid.all()
    assert torch.equal(once, torch.stack([map_BCZYX[0].flip(-1), map_BCZYX[1].flip(-2)]))
    twice, _ = flips.voxels(once, GRID, GRID, HEIGHTS, HEIGHTS)
    assert torch.equal(twice, map_BCZYX)


@pytest.mark.parametrize("scale", [1.0, 0.9, 1.1])
def test_an_affine_field_is_exact_wherever_it_is_valid(scale: float) -> None:
    target, wanted = Grid(-4.2, -3.0, 0.4, 21, 17), (-1.3, 0.3, 1.9)
    matrix = bev_matrix(0.3, scale, True, False)
    matrix[2, 3] = 0.1
    moved, valid = align_of(matrix).voxels(
        field(GRID, HEIGHTS)[None], GRID, target, HEIGHTS, wanted
    )
    points = target.centres() @ matrix[:2, :2].T
    height = scale * np.array(wanted)[:, None, None] + 0.1
    expected = torch.tensor(2 * points[..., 0] - 3 * points[..., 1] + 5 * height)
    inside = (np.abs(points) <= 3.75).all(-1) & (height >= -1) & (height <= 2)
    assert np.array_equal(valid[0].numpy(), inside)
    assert 0.2 < inside.mean() < 1
    torch.testing.assert_close(moved[0, 0][valid[0]], expected[valid[0]], rtol=1e-9, atol=1e-9)


def test_layers_by_hand() -> None:
    map_BCZYX = torch.tensor([0.0, 10.0, 40.0]).reshape(1, 1, 3, 1, 1).repeat(2, 1, 1, 1, 1)
    wanted = np.array([[-1.0, 0.0, 0.5], [1.0, 2.5, 4.1]])
    read, valid = between_layers(map_BCZYX, np.array([0.0, 1.0, 4.0]), wanted)
    assert read.flatten(1).tolist() == [[0.0, 0.0, 5.0], [10.0, 25.0, 40.0]]
    assert valid.tolist() == [[False, True, True], [True, True, False]]


def test_one_layer_is_read_at_its_height_alone() -> None:
    map_BCZYX = torch.randn(1, 2, 1, *GRID.shape_YX)
    same, valid = align_of(np.eye(4)).voxels(map_BCZYX, GRID, GRID, (0.5,), (0.5, 1.0))
    assert torch.equal(same, map_BCZYX.expand_as(same))
    assert valid.all((2, 3)).tolist() == [[True, False]]


def test_gradient_reaches_the_student() -> None:
    small = Grid.square(1.0, 0.5)
    values = torch.randn(1, 1, 2, *small.shape_YX, dtype=torch.float64, requires_grad=True)
    align = align_of(bev_matrix(0.2, 1.1))
    torch.autograd.gradcheck(
        lambda own: align.voxels(own, small, small, (0.0, 1.0), (0.1, 0.8))[0], [values]
    )


def test_layers_without_a_height_are_refused() -> None:
    with pytest.raises(TargetMismatchError, match=r"\(B, C, 3, Y, X\).*got \(1, 2, 4, 16, 16\)"):
        align_of(np.eye(4)).voxels(
            torch.zeros(1, 2, 4, *GRID.shape_YX), GRID, GRID, HEIGHTS[:3], HEIGHTS
        )
