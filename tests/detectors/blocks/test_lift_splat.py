"""Lift-splat: geometry against projected points, sums against a loop, gradients, memory."""

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from bevcask.detectors.blocks import lift_splat
from bevcask.detectors.blocks.lift_splat import Cameras, frustum_cells, frustum_rays, splat
from bevcask.geometry import Grid, bev_matrix
from detectors.blocks.memory import LargestTensor

GRID = Grid.square(51.2, 0.8)
SIZE_HW = (10, 18)
STRIDE = 16
DEPTHS = tuple(1.5 + index for index in range(59))
Z_RANGE = (-10.0, 10.0)
OUTSIDE = GRID.num_y * GRID.num_x

LEVEL = np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])  # camera looking along +y, right is +x


def image_aug(scale: float, shift: tuple[float, float], flip: bool, degrees: float) -> np.ndarray:
    """Resize, crop, flip about the network width, rotate about the network centre."""
    height, width = SIZE_HW[0] * STRIDE, SIZE_HW[1] * STRIDE
    matrix = np.array([[scale, 0, -shift[0]], [0, scale, -shift[1]], [0, 0, 1.0]])
    if flip:
        matrix = np.array([[-1.0, 0, width - 1], [0, 1, 0], [0, 0, 1]]) @ matrix
    angle = math.radians(degrees)
    c, s = math.cos(angle), math.sin(angle)
    centre = np.array([[1.0, 0, (width - 1) / 2], [0, 1, (height - 1) / 2], [0, 0, 1]])
    turn = np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]])
    return np.asarray(centre @ turn @ np.linalg.inv(centre) @ matrix)


def rig(image: np.ndarray, bev: np.ndarray, dtype: torch.dtype = torch.float32) -> Cameras:
    """Six level cameras on a ring; one batch sample."""
    poses, intrinsics = [], []
    for view in range(6):
        angle = math.radians(60 * view + 3)
        c, s = math.cos(angle), math.sin(angle)
        pose = np.eye(4)
        pose[:3, :3] = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1.0]]) @ LEVEL
        pose[:3, 3] = [-0.7 * s, 0.7 * c, -0.3]
        poses.append(pose)
        intrinsics.append([[630.0 + view, 0, 400], [0, 633, 225], [0, 0, 1]])
    return Cameras(
        torch.tensor(np.array([intrinsics]), dtype=dtype),
        torch.tensor(np.array([[image] * 6]), dtype=dtype),
        torch.tensor(np.array([poses]), dtype=dtype),
        torch.tensor(bev[None], dtype=dtype),
    )


CLEAN = image_aug(0.36, (0, 2), flip=False, degrees=0)
VIEWS = {
    "clean": (CLEAN, bev_matrix()),
    "image": (image_aug(0.41, (9, 14), flip=True, degrees=4.5), bev_matrix()),
    "bev": (CLEAN, bev_matrix(rotation=0.31, scale=1.04, flip_y=True)),
    "both": (image_aug(0.35, (-3, 1), flip=True, degrees=-5), bev_matrix(-0.2, 0.96, flip_x=True)),
}


@pytest.mark.parametrize("name", VIEWS)
def test_a_projected_point_is_lifted_to_its_own_cell(name: str) -> None:
    image, bev = VIEWS[name]
    cameras = rig(image, bev)
    cells = frustum_cells(cameras, SIZE_HW, STRIDE, DEPTHS, GRID, Z_RANGE)
    rng = np.random.default_rng(0)
    checked = 0
    for _ in range(400):
        view, bin_index = int(rng.integers(6)), int(rng.integers(3, 40))
        row, column = int(rng.integers(SIZE_HW[0])), int(rng.integers(SIZE_HW[1]))
        point = _point_at(cameras, view, row, column, DEPTHS[bin_index])
        u, v, depth = _project(cameras, view, point)
        assert (round(v) // STRIDE, round(u) // STRIDE) == (row, column)
        assert int(depth - 1.0) == bin_index
        augmented = bev @ np.append(point, 1.0)
        continuous = (augmented[:2] + 51.2) / 0.8
        if abs(continuous - np.round(continuous)).min() < 1e-3:
            continue
        expected = OUTSIDE
        if (continuous >= 0).all() and (continuous < 128).all() and abs(augmented[2]) < 10:
            expected = int(continuous[1]) * 128 + int(continuous[0])
        assert int(cells[bin_index, 0, view, row, column]) == expected
        checked += expected != OUTSIDE
    assert checked > 100


def _point_at(cameras: Cameras, view: int, row: int, column: int, depth: float) -> np.ndarray:
    """The canonical LIDAR_TOP point seen in the middle of an image cell, by least squares."""
    pixel = np.array([(column + 0.5) * STRIDE - 0.5, (row + 0.5) * STRIDE - 0.5, 1.0])
    original = np.linalg.solve(cameras.image_aug_BV33[0, view].double().numpy(), pixel)
    ray = np.linalg.solve(cameras.intrinsics_BV33[0, view].double().numpy(), original)
    camera = np.append(ray / ray[2] * depth, 1.0)
    return np.asarray((cameras.camera_to_lidar_BV44[0, view].double().numpy() @ camera)[:3])


def _project(cameras: Cameras, view: int, point: np.ndarray) -> tuple[float, float, float]:
    """Network pixel and depth of a canonical LIDAR_TOP point."""
    pose = cameras.camera_to_lidar_BV44[0, view].double().numpy()
    camera = np.linalg.solve(pose, np.append(point, 1.0))[:3]
    pixel = cameras.intrinsics_BV33[0, view].double().numpy() @ camera
    network = cameras.image_aug_BV33[0, view].double().numpy() @ (pixel / pixel[2])
    return float(network[0]), float(network[1]), float(camera[2])


def test_one_hot_depth_puts_the_context_where_the_point_is() -> None:
    cameras = rig(*VIEWS["both"])
    cells = frustum_cells(cameras, SIZE_HW, STRIDE, DEPTHS, GRID, Z_RANGE)
    depth = torch.zeros(1, 6, len(DEPTHS), *SIZE_HW)
    depth[0, 2, 20, 4, 9] = 1.0
    context = torch.full((1, 6, 3, *SIZE_HW), 7.0)
    lifted = splat(depth, context, cells, GRID)
    row, column = divmod(int(cells[20, 0, 2, 4, 9]), GRID.num_x)
    assert lifted[0, :, row, column].tolist() == [7.0] * 3
    assert int(lifted.count_nonzero()) == 3


def test_cells_floor_below_the_lower_border() -> None:
    half_a_cell = Grid(x_min=0.4, y_min=-0.4, cell=0.8, num_x=4, num_y=4)
    straight = Cameras(
        torch.eye(3).expand(1, 1, 3, 3),
        torch.eye(3).expand(1, 1, 3, 3),
        torch.eye(4).expand(1, 1, 4, 4),
        torch.eye(4)[None],
    )
    cells = frustum_cells(straight, (1, 1), 1, [1.0], half_a_cell, (0.0, 2.0))
    assert cells.tolist() == [[[[[16]]]]]  # x = 0 is half a cell below; truncation would keep it


def test_samples_are_lifted_apart() -> None:
    one, two = rig(*VIEWS["clean"]), rig(*VIEWS["bev"])
    both = Cameras(
        *(torch.cat([getattr(one, f), getattr(two, f)]) for f in one.__dataclass_fields__)
    )
    generator = torch.Generator().manual_seed(0)
    depth = torch.rand((2, 6, 59, *SIZE_HW), generator=generator)
    context = torch.randn((2, 6, 4, *SIZE_HW), generator=generator)
    cells = frustum_cells(both, SIZE_HW, STRIDE, DEPTHS, GRID, Z_RANGE)
    lifted = splat(depth, context, cells, GRID)
    for sample, cameras in enumerate((one, two)):
        own = frustum_cells(cameras, SIZE_HW, STRIDE, DEPTHS, GRID, Z_RANGE)
        alone = splat(depth[sample : sample + 1], context[sample : sample + 1], own, GRID)
        assert torch.equal(lifted[sample], alone[0])


@pytest.mark.parametrize("axis", ["x", "y"])
def test_flipped_geometry_flips_the_lift_exactly(axis: str) -> None:
    plain, flipped = (
        rig(CLEAN, bev_matrix(flip_x=flip and axis == "x", flip_y=flip and axis == "y"))
        for flip in (False, True)
    )
    generator = torch.Generator().manual_seed(1)
    depth = torch.rand((1, 6, 59, *SIZE_HW), generator=generator)
    context = torch.randn((1, 6, 4, *SIZE_HW), generator=generator)
    origin, direction = frustum_rays(plain, SIZE_HW, STRIDE)
    for index, metres in enumerate(DEPTHS):  # points on cell edges may fall to either side
        point = origin[:, :, None, None] + metres * direction
        continuous = GRID.to_cells(point[..., :2])
        on_edge = ((continuous - continuous.round()).abs() < 1e-4).any(dim=-1)
        depth[:, :, index] *= ~on_edge
    lifts = [
        splat(depth, context, frustum_cells(c, SIZE_HW, STRIDE, DEPTHS, GRID, Z_RANGE), GRID)
        for c in (plain, flipped)
    ]
    assert int(lifts[0].count_nonzero()) > 4000
    assert torch.equal(lifts[1], torch.flip(lifts[0], dims=[-1 if axis == "x" else -2]))


def small_problem(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Grid]:
    """Random cells, one point in five off the grid."""
    grid = Grid.square(2.0, 0.8)
    generator = torch.Generator().manual_seed(2)
    depth = torch.rand((2, 3, 5, 2, 3), generator=generator, dtype=dtype)
    context = torch.randn((2, 3, 4, 2, 3), generator=generator, dtype=dtype)
    cells = torch.randint(0, 25, (5, 2, 3, 2, 3), generator=generator)
    cells += 25 * torch.arange(2)[None, :, None, None, None]
    cells[torch.rand(cells.shape, generator=generator) < 0.2] = 50
    return depth, context, cells, grid


def frustum_indices(depth: Tensor) -> Iterator[tuple[int, ...]]:
    return iter(tuple(index) for index in np.ndindex(*depth.shape))


@pytest.mark.parametrize("numbers", [1, 200, 1 << 18])
def test_sums_equal_a_loop_in_float64(numbers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lift_splat, "CHUNK_NUMBERS", numbers)
    depth, context, cells, grid = small_problem(torch.float32)
    expected = np.zeros((2, 4, 5, 5))
    for b, v, d, h, w in frustum_indices(depth):
        cell = int(cells[d, b, v, h, w])
        if cell < 50:
            sample, rest = divmod(cell, 25)
            weighted = float(depth[b, v, d, h, w]) * context[b, v, :, h, w].double().numpy()
            expected[sample, :, rest // 5, rest % 5] += weighted
    lifted = splat(depth, context, cells, grid)
    assert lifted.dtype == torch.float32
    np.testing.assert_allclose(lifted.numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("numbers", [1, 200, 1 << 18])
def test_gradients_are_exact(numbers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lift_splat, "CHUNK_NUMBERS", numbers)
    depth, context, cells, grid = small_problem(torch.float64)
    assert torch.autograd.gradcheck(
        lambda d, c: splat(d, c, cells, grid),
        (depth.requires_grad_(), context.requires_grad_()),
    )


def test_half_precision_inputs_are_summed_in_float32() -> None:
    depth, context, cells, grid = small_problem(torch.float32)
    lifted = splat(depth.bfloat16(), context.bfloat16(), cells, grid)
    expected = splat(depth.bfloat16().float(), context.bfloat16().float(), cells, grid)
    assert lifted.dtype == torch.float32
    assert torch.equal(lifted, expected)


def test_no_frustum_copy_of_the_context_is_held() -> None:
    bins, views, rows, columns, channels = 59, 6, 16, 44, 64
    frustum_points = bins * views * rows * columns
    generator = torch.Generator().manual_seed(3)
    depth = torch.rand((1, views, bins, rows, columns), generator=generator, requires_grad=True)
    context = torch.rand((1, views, channels, rows, columns), generator=generator)
    context.requires_grad_()
    cells = torch.randint(0, OUTSIDE + 1, (bins, 1, views, rows, columns), generator=generator)
    saved: list[int] = []
    with (
        LargestTensor() as largest,
        torch.autograd.graph.saved_tensors_hooks(
            lambda t: (saved.append(t.numel()), t)[1], lambda t: t
        ),
    ):
        splat(depth, context, cells, GRID).square().sum().backward()
    bev_numbers = channels * (OUTSIDE + 1)
    bound = max(views * rows * columns * channels, lift_splat.CHUNK_NUMBERS, bev_numbers)
    assert largest.numbers <= bound
    assert bound * 12 < frustum_points * channels
    assert sum(saved) <= 2 * frustum_points + 2 * bev_numbers + context.numel()
