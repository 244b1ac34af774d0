"""Alignment: lattice moves bit for bit, affine fields exactly, boxes and maps in step."""

import itertools
import math

import numpy as np
import pytest
import torch

from bevcask.errors import TargetMismatchError
from bevcask.geometry import Grid, bev_matrix, transform_points
from bevcask.targets.align import Align, ImageAug
from bevcask.targets.heatmap import draw_heatmaps
from bevcask.targets.lattice import lattice_move, same_cells
from bevcask.targets.target import Target

GRID = Grid.square(8.0, 0.5)
QUARTER = math.pi / 2
LATTICE = list(itertools.product(range(4), (False, True), (False, True)))
FREE = [
    bev_matrix(0.3925, 1.05, True, False),
    bev_matrix(-0.2, 0.95, False, True),
    bev_matrix(1.1, 1.0),
    bev_matrix(0.0, 1.03, True, True),
]


def batch(*matrices: np.ndarray) -> Align:
    return Align(torch.stack([torch.as_tensor(m, dtype=torch.float32) for m in matrices]))


def noise(grid: Grid = GRID, channels: int = 3, batch_size: int = 1, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((batch_size, channels, *grid.shape_YX), generator=generator)


def brute_force(map_CYX: torch.Tensor, matrix: np.ndarray, grid: Grid) -> torch.Tensor:
    """Read the map in the cell that holds A p, cell by cell."""
    out = torch.empty_like(map_CYX)
    centres = grid.centres()
    for y, x in itertools.product(range(grid.num_y), range(grid.num_x)):
        moved = matrix[:2, :2] @ centres[y, x] + matrix[:2, 3]
        column, row = np.floor(grid.to_cells(moved)).astype(int)
        out[:, y, x] = map_CYX[:, row, column]
    return out


@pytest.mark.parametrize(("turns", "flip_x", "flip_y"), LATTICE)
def test_lattice_moves_are_permutations(turns: int, flip_x: bool, flip_y: bool) -> None:
    matrix = bev_matrix(turns * QUARTER, 1.0, flip_x, flip_y)
    map_BCYX = noise()
    moved, valid = batch(matrix).cells(map_BCYX, GRID, GRID)
    assert valid.all()
    assert torch.equal(moved[0], brute_force(map_BCYX[0], matrix, GRID))


def test_named_moves() -> None:
    map_BCYX = noise()
    for matrix, expected in (
        (bev_matrix(), map_BCYX),
        (bev_matrix(flip_x=True), map_BCYX.flip(-1)),
        (bev_matrix(flip_y=True), map_BCYX.flip(-2)),
        (bev_matrix(QUARTER), torch.rot90(map_BCYX, 1, (-2, -1))),
        (bev_matrix(-QUARTER), torch.rot90(map_BCYX, -1, (-2, -1))),
        (bev_matrix(2 * QUARTER), torch.rot90(map_BCYX, 2, (-2, -1))),
    ):
        moved, _ = batch(matrix).cells(map_BCYX, GRID, GRID)
        assert torch.equal(moved, expected)


def test_double_flip_gives_the_map_back() -> None:
    map_BCYX = noise()
    flip = batch(bev_matrix(0.0, 1.0, True, False))
    once, _ = flip.cells(map_BCYX, GRID, GRID)
    twice, _ = flip.cells(once, GRID, GRID)
    assert not torch.equal(once, map_BCYX)
    assert torch.equal(twice, map_BCYX)


@pytest.mark.parametrize("matrix", FREE)
def test_affine_field_is_exact(matrix: np.ndarray) -> None:
    source, target = Grid.square(9.0, 0.75), Grid(-7.0, -6.0, 0.4, 33, 29)
    source_x, source_y = np.moveaxis(source.centres(), -1, 0)
    field = torch.tensor(2.0 * source_x - 3.0 * source_y + 0.5)[None, None]
    moved, valid = batch(matrix).cells(field, source, target)
    points = target.centres() @ matrix[:2, :2].T
    expected = torch.tensor(2.0 * points[..., 0] - 3.0 * points[..., 1] + 0.5)
    assert valid.float().mean() > 0.5
    torch.testing.assert_close(moved[0, 0][valid[0]], expected[valid[0]], rtol=0, atol=1e-4)


@pytest.mark.parametrize("matrix", FREE)
def test_affine_field_is_exact_in_float64(matrix: np.ndarray) -> None:
    x, y = np.moveaxis(GRID.centres(), -1, 0)
    align = Align(torch.as_tensor(matrix)[None])
    moved, valid = align.cells(torch.tensor(x + 7 * y)[None, None], GRID, GRID)
    points = GRID.centres() @ matrix[:2, :2].T
    expected = torch.tensor(points[..., 0] + 7 * points[..., 1])
    torch.testing.assert_close(moved[0, 0][valid[0]], expected[valid[0]], rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize("matrix", FREE)
def test_valid_is_the_analytic_polygon(matrix: np.ndarray) -> None:
    _, valid = batch(matrix).cells(noise(), GRID, GRID)
    points = GRID.centres() @ matrix[:2, :2].T
    inside = (np.abs(points) <= 8.0 - 0.25).all(-1)
    assert np.array_equal(valid[0].numpy(), inside)
    assert 0.5 < inside.mean() < 1.0


@pytest.mark.parametrize(("x", "y"), [(1.5, 0.0), (0.0, -2.0), (-0.5, 1.0)])
def test_a_move_sideways_reads_the_cells_that_far_away(x: float, y: float) -> None:
    matrix = np.eye(4)
    matrix[:2, 3] = x, y
    columns, rows = round(x / GRID.cell), round(y / GRID.cell)
    map_BCYX = noise()
    moved, valid = batch(matrix).cells(map_BCYX, GRID, GRID)
    expected = map_BCYX.roll((-rows, -columns), (-2, -1))
    assert valid[0].sum() == (GRID.num_y - abs(rows)) * (GRID.num_x - abs(columns))
    inside = valid[:, None].expand_as(moved)
    torch.testing.assert_close(moved[inside], expected[inside], rtol=0, atol=1e-4)
    heat = draw_heatmaps([torch.tensor([[0.75, 0.75, 0, 1, 1, 1, 0, 0, 0.0]])],
                         [torch.tensor([0])], GRID, 1)  # fmt: skip
    redrawn = batch(matrix).heatmap(heat, GRID, GRID)
    assert torch.equal(redrawn.amax((-2, -1)), heat.amax((-2, -1)))
    at, was = (torch.nonzero(each[0, 0] == 1)[0].tolist() for each in (redrawn, heat))
    assert at == [was[0] + rows, was[1] + columns]


@pytest.mark.parametrize(("dx", "dy"), [(1, 0), (-1, 0), (0, 1), (0, -1)])
def test_a_peak_one_cell_outside_leaves_nothing_inside(dx: int, dy: int) -> None:
    heat = torch.zeros((1, 1, *GRID.shape_YX))
    row = GRID.num_y - 1 if dy > 0 else 0 if dy < 0 else 7
    column = GRID.num_x - 1 if dx > 0 else 0 if dx < 0 else 7
    heat[0, 0, row, column] = 0.9
    matrix = np.eye(4)
    matrix[:2, 3] = dx * GRID.cell, dy * GRID.cell
    assert not batch(matrix).heatmap(heat, GRID, GRID).any()
    assert batch(np.linalg.inv(matrix)).heatmap(heat, GRID, GRID).max() == pytest.approx(0.9)


def test_invalid_values_are_finite_and_valid_ones_interpolate() -> None:
    map_BCYX = noise()
    moved, valid = batch(FREE[0]).cells(map_BCYX, GRID, GRID)
    assert moved.isfinite().all()
    assert moved[:, :, valid[0]].max() <= map_BCYX.max()
    assert moved[:, :, valid[0]].min() >= map_BCYX.min()


def test_samples_move_apart() -> None:
    matrices = [np.eye(4), FREE[0], bev_matrix(QUARTER), bev_matrix(0, 1, False, True)]
    map_BCYX = noise(batch_size=4)
    moved, valid = batch(*matrices).cells(map_BCYX, GRID, GRID)
    for b, matrix in enumerate(matrices):
        alone, alone_valid = batch(matrix).cells(map_BCYX[b : b + 1], GRID, GRID)
        assert torch.equal(moved[b : b + 1], alone)
        assert torch.equal(valid[b : b + 1], alone_valid)


def test_lattice_moves_of_one_batch_are_permutations_each() -> None:
    matrices = [bev_matrix(flip_x=True), bev_matrix(flip_y=True), bev_matrix(QUARTER)]
    map_BCYX = noise(batch_size=3)
    moved, valid = batch(*matrices).cells(map_BCYX, GRID, GRID)
    assert valid.all()
    for map_CYX, own_CYX, matrix in zip(map_BCYX, moved, matrices, strict=True):
        assert torch.equal(own_CYX, brute_force(map_CYX, matrix, GRID))


def test_polylines_by_hand() -> None:
    """One step right, one ahead, one left: a flip keeps the order and turns its sense round."""
    lines = torch.tensor([[0.0, 0, 1, 0, 1, 2, 0.7, 1], [3, 4, 3, 5, 3, 6, 0.6, 0]])
    turned, mirrored = batch(bev_matrix(QUARTER, 2.0), bev_matrix(flip_x=True)).polylines(
        [lines, lines]
    )
    expected = torch.tensor([[0.0, 0, 0, 2, -4, 2, 0.7, 1], [-8, 6, -10, 6, -12, 6, 0.6, 0]])
    torch.testing.assert_close(turned, expected, rtol=0, atol=1e-6)
    assert torch.equal(mirrored, lines * torch.tensor([-1.0, 1, -1, 1, -1, 1, 1, 1]))
    moved = np.eye(4)
    moved[:2, 3] = 1, -2
    [shifted, none] = batch(moved, moved).polylines([lines, lines[:0]])
    assert torch.equal(shifted, lines + torch.tensor([1.0, -2, 1, -2, 1, -2, 0, 0]))
    assert none.shape == (0, 8)


def test_gradient_reaches_the_student() -> None:
    for matrix in (np.eye(4), bev_matrix(QUARTER, 1.0, True), FREE[1]):
        map_BCYX = noise(Grid.square(1.5, 0.5), channels=2).double().requires_grad_()
        align = Align(torch.as_tensor(matrix)[None])
        grid = Grid.square(1.5, 0.5)
        assert torch.autograd.gradcheck(
            lambda m, a=align, g=grid: a.cells(m, g, g)[0],  # type: ignore[misc]
            (map_BCYX,),
        )


def test_half_precision_becomes_float32() -> None:
    for matrix in (np.eye(4), FREE[0]):
        moved, _ = batch(matrix).cells(noise().bfloat16(), GRID, GRID)
        assert moved.dtype == torch.float32


def test_other_grids_are_read_in_metres() -> None:
    """A student twice as fine: a canonical centre is the corner of four of its cells."""
    fine, coarse = Grid.square(8.0, 0.5), Grid.square(8.0, 1.0)
    map_BCYX = noise(fine)
    moved, valid = batch(np.eye(4)).cells(map_BCYX, fine, coarse)
    assert valid.all()
    torch.testing.assert_close(moved, torch.nn.functional.avg_pool2d(map_BCYX, 2))


def test_rounding_loses_no_outer_cell() -> None:
    """Part of the student's own cells: its outermost centres are met exactly, but for rounding."""
    for cell in (0.1, 0.3, 0.6, 0.7):
        source = Grid.square(10 * cell, cell)
        target = Grid(source.x_min, source.y_min, cell, 19, 20)
        map_BCYX = noise(source)
        moved, valid = batch(np.eye(4)).cells(map_BCYX, source, target)
        assert valid.all()
        torch.testing.assert_close(moved, map_BCYX[..., :19])


def test_asymmetric_grids_do_not_permute() -> None:
    aside = Grid(0.0, -8.0, 0.5, 32, 32)
    oblong = Grid(-4.0, -8.0, 0.5, 16, 32)
    assert lattice_move(bev_matrix(0, 1, True), aside, aside) is None
    assert lattice_move(np.eye(4), aside, aside) is not None
    assert lattice_move(bev_matrix(QUARTER), oblong, oblong) is None
    assert lattice_move(bev_matrix(0, 1, True), oblong, oblong) is not None
    shifted = np.eye(4)
    shifted[0, 3] = 0.5
    assert lattice_move(shifted, GRID, GRID) is None
    _, valid = batch(bev_matrix(0, 1, True)).cells(noise(aside), aside, aside)
    assert not valid.any()


def test_rounded_grids_are_the_same_cells() -> None:
    assert same_cells(Grid.square(54.0, 0.6), Grid(-54.0, -54.0, 0.2 * 3, 180, 180))
    assert not same_cells(GRID, Grid.square(8.0, 1.0))
    assert not same_cells(GRID, Grid(-8.0, -8.1, 0.5, 32, 32))


def test_points_and_boxes_move_in_closed_form() -> None:
    matrix = bev_matrix(0.3, 1.04, True, False)
    points = torch.tensor([[1.0, 2.0, 3.0, 77.0]])
    boxes = torch.tensor([[1.0, 2.0, 0.5, 4.0, 2.0, 1.5, 0.2, 3.0, 0.0, 0.9, 4.0]])
    align = batch(matrix)
    [moved] = align.points([points])
    torch.testing.assert_close(moved, transform_points(points, matrix))
    [box] = align.boxes([boxes])
    torch.testing.assert_close(box[0, :3], moved[0, :3] * torch.tensor([1, 1, 0.5 / 3]))
    torch.testing.assert_close(box[0, 3:6], boxes[0, 3:6] * 1.04)
    heading = torch.tensor([math.cos(0.5), math.sin(0.5)]) * torch.tensor([-1.0, 1.0])
    torch.testing.assert_close(torch.stack([box[0, 6].cos(), box[0, 6].sin()]), heading)
    torch.testing.assert_close(box[0, 9:], boxes[0, 9:])


def test_metres_do_not_move_in_half_precision() -> None:
    align = batch(bev_matrix(0.3, 1.04, True, False))
    boxes = 50 * torch.rand((20, 9)) + 0.1
    points = 50 * torch.rand((20, 4))
    exact = align.boxes([boxes]) + align.points([points])
    with torch.autocast("cpu", torch.bfloat16):
        seen = align.boxes([boxes]) + align.points([points])
    assert all(map(torch.equal, seen, exact))


def lone_boxes(seed: int) -> torch.Tensor:
    """Boxes at cell centres, nine cells apart, so blobs neither overlap nor fall on an edge."""
    generator = torch.Generator().manual_seed(seed)
    spots = torch.tensor(
        [[x, y] for x in range(-22, 23, 11) for y in range(-22, 23, 11)], dtype=torch.float32
    )
    boxes = torch.zeros((len(spots), 9))
    boxes[:, :2] = spots + 0.5
    boxes[:, 3:6] = torch.tensor([4.0, 2.0, 1.5])
    return boxes[torch.rand(len(boxes), generator=generator) < 0.6]


@pytest.mark.parametrize(("turns", "flip_x", "flip_y"), LATTICE)
def test_boxes_and_maps_move_in_step(turns: int, flip_x: bool, flip_y: bool) -> None:
    """A student that draws its (moved) boxes is, read at A p, the canonical drawing."""
    grid = Grid.square(32.0, 1.0)
    boxes = [lone_boxes(3)]
    zeros = [torch.zeros(len(boxes[0]), dtype=torch.int64)]
    align = batch(bev_matrix(turns * QUARTER, 1.0, flip_x, flip_y))
    student = draw_heatmaps(align.boxes(boxes), zeros, grid, 1)
    canonical = draw_heatmaps(boxes, zeros, grid, 1)
    assert torch.equal(align.cells(student, grid, grid)[0], canonical)
    assert torch.equal(align.heatmap(canonical, grid, grid), student)


@pytest.mark.parametrize("matrix", FREE)
def test_heatmap_peaks_keep_their_height(matrix: np.ndarray) -> None:
    grid = Grid.square(32.0, 1.0)
    boxes = [lone_boxes(4)]
    zeros = [torch.zeros(len(boxes[0]), dtype=torch.int64)]
    align = batch(matrix)
    score = 0.7
    redrawn = align.heatmap(score * draw_heatmaps(boxes, zeros, grid, 1), grid, grid)
    expected = score * draw_heatmaps(align.boxes(boxes), zeros, grid, 1)
    torch.testing.assert_close(redrawn, expected, rtol=1e-5, atol=1e-6)
    sampled, _ = align.cells(expected, grid, grid)
    assert float(sampled.max()) <= score  # what interpolation would have done


def test_heatmap_of_several_classes_and_samples() -> None:
    grid = Grid.square(32.0, 1.0)
    boxes = [lone_boxes(5), lone_boxes(6)]
    classes = [torch.arange(len(own)) % 3 for own in boxes]
    align = batch(FREE[0], bev_matrix(0, 1, True))
    moved = align.heatmap(draw_heatmaps(boxes, classes, grid, 3), grid, grid)
    expected = draw_heatmaps(align.boxes(boxes), classes, grid, 3)
    torch.testing.assert_close(moved, expected, rtol=1e-5, atol=1e-6)


def test_empty_heatmap_stays_empty() -> None:
    empty = torch.zeros((1, 2, *GRID.shape_YX))
    assert torch.equal(batch(FREE[0]).heatmap(empty, GRID, GRID), empty)


def test_wrong_sizes_are_refused() -> None:
    align = Align.identity(2)
    with pytest.raises(TargetMismatchError, match="1 samples meet 2"):
        align.cells(noise(), GRID, GRID)
    with pytest.raises(TargetMismatchError, match=r"\(B, C, 32, 32\)"):
        align.cells(noise(Grid.square(8.0, 1.0), batch_size=2), GRID, GRID)
    with pytest.raises(TargetMismatchError, match="2 augmentation matrices"):
        align.boxes([torch.zeros(1, 9)])
    with pytest.raises(TargetMismatchError, match="2 augmentation matrices"):
        align.points([torch.zeros(1, 3)])
    with pytest.raises(TargetMismatchError, match=r"\(B, 4, 4\)"):
        Align(torch.eye(4))


def test_points_are_drawn_into_maps_that_divide_the_images() -> None:
    """The values are those of `targets.pixels.draw`, tested with the data."""
    images = ImageAug(torch.eye(3).expand(2, 6, 3, 3), (32, 48))
    points = torch.zeros(2, 3, 5)
    points[1, 0] = torch.tensor([5.0, 40, 20, 7, 3])
    target = Target(points, None, torch.tensor([0, 1]))
    depth, box = Align.identity(2, images).pixels(target, (4, 6), (1.0, 60.0))
    assert depth.shape == box.shape == (2, 6, 4, 6)
    assert depth.nonzero().tolist() == [[1, 5, 2, 5]]
    assert (depth[1, 5, 2, 5], box[1, 5, 2, 5]) == (7, 3)
    with pytest.raises(TargetMismatchError, match=r"\(4, 5\) cells does not divide .*\(32, 48\)"):
        Align.identity(2, images).pixels(target, (4, 5), (1.0, 60.0))
    with pytest.raises(TargetMismatchError, match="2 samples meet 3"):
        Align.identity(3, images).pixels(target, (4, 6), (1.0, 60.0))
    with pytest.raises(TargetMismatchError, match="a student that has images"):
        Align.identity(2).pixels(target, (4, 6), (1.0, 60.0))
