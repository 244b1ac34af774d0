import math

import pytest
import torch

from bevcask.geometry import Grid, bev_matrix, transform_boxes
from bevcask.targets.heatmap import centre_cells, draw_heatmaps, gaussian_radius

GRID = Grid.square(51.2, 0.8)


def box(x: float, y: float, length: float = 4.6, width: float = 1.9) -> torch.Tensor:
    return torch.tensor([[x, y, 0.0, length, width, 1.6, 0.3, 0.0, 0.0]])


def smallest_root(length: float, width: float, overlap: float) -> float:
    """CornerNet's three cases as every released CenterPoint codes them."""
    total, area = length + width, length * width
    roots = []
    for a, b, c in (
        (1.0, total, area * (1 - overlap) / (1 + overlap)),
        (4.0, 2 * total, (1 - overlap) * area),
        (4 * overlap, -2 * overlap * total, (overlap - 1) * area),
    ):
        roots.append((b + math.sqrt(b * b - 4 * a * c)) / 2)
    return min(roots)


@pytest.mark.parametrize("overlap", [0.05, 0.1, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("size", [(1.0, 1.0), (13.8, 3.7), (40.0, 0.5), (0.2, 30.0)])
def test_radius_is_the_smallest_of_the_three_roots(
    overlap: float, size: tuple[float, float]
) -> None:
    length, width = size
    radius = gaussian_radius(torch.tensor(length), torch.tensor(width), overlap)
    assert float(radius) == pytest.approx(smallest_root(length, width, overlap), rel=1e-4, abs=1e-6)


def test_centre_is_one_at_row_y_column_x() -> None:
    heatmap = draw_heatmaps([box(20.5, -10.1)], [torch.tensor([3])], GRID, 10)
    assert heatmap.shape == (1, 10, 128, 128)
    assert heatmap.dtype == torch.float32
    row, column = math.floor((-10.1 + 51.2) / 0.8), math.floor((20.5 + 51.2) / 0.8)
    assert heatmap[0, 3, row, column] == 1
    assert (heatmap == 1).sum() == 1
    assert heatmap[0, :3].sum() == 0
    assert heatmap[0, 4:].sum() == 0


def test_patch_is_five_cells_wide_with_sigma_five_sixths() -> None:
    heatmap = draw_heatmaps([box(0.1, 0.1)], [torch.tensor([0])], GRID, 1)[0, 0]
    rows, columns = heatmap.nonzero(as_tuple=True)
    assert (int(rows.min()), int(rows.max())) == (62, 66)
    assert (int(columns.min()), int(columns.max())) == (62, 66)
    for step_y, step_x in ((0, 1), (1, 1), (2, 0), (-2, 2)):
        expected = math.exp(-(step_x**2 + step_y**2) / (2 * (5 / 6) ** 2))
        assert float(heatmap[64 + step_y, 64 + step_x]) == pytest.approx(expected, rel=1e-6)


def test_larger_boxes_draw_a_larger_patch_beside_small_ones() -> None:
    fine = Grid.square(51.2, 0.4)
    boxes = torch.cat([box(0.1, 0.1, 12.0, 3.0), box(30.1, 30.1, 0.7, 0.7)])
    heatmap = draw_heatmaps([boxes], [torch.tensor([0, 0])], fine, 1)[0, 0]
    radius = int(smallest_root(30.0, 7.5, 0.1))
    assert radius > 2
    assert int((heatmap[:160, :160] > 0).sum()) == (2 * radius + 1) ** 2
    assert int((heatmap[160:, 160:] > 0).sum()) == 25


@pytest.mark.parametrize(("cell", "radius"), [(0.8, 2), (0.6, 3)])
def test_radius_of_a_bus(cell: float, radius: int) -> None:
    """11.00 x 2.95 m at an overlap of 0.1: 2.87 and 3.83 cells, cut off, not rounded."""
    grid = Grid.square(51.2 if cell == 0.8 else 54.0, cell)
    heatmap = draw_heatmaps([box(0.1, 0.1, 11.0, 2.95)], [torch.tensor([0])], grid, 1)
    assert int((heatmap > 0).sum()) == (2 * radius + 1) ** 2


def test_same_class_neighbours_combine_by_maximum() -> None:
    one, other = box(0.1, 0.1), box(1.7, 0.1)
    single = [draw_heatmaps([b], [torch.tensor([0])], GRID, 1) for b in (one, other)]
    both = draw_heatmaps([torch.cat([one, other])], [torch.tensor([0, 0])], GRID, 1)
    assert torch.equal(both, torch.maximum(*single))


def test_samples_do_not_mix_and_empty_ones_are_blank() -> None:
    none = torch.zeros((0, 9))
    no_class = torch.zeros(0, dtype=torch.int64)
    heatmap = draw_heatmaps(
        [none, box(5, 5), none], [no_class, torch.tensor([1]), no_class], GRID, 2
    )
    assert heatmap[0].sum() == 0
    assert heatmap[2].sum() == 0
    assert heatmap[1, 1].max() == 1
    assert draw_heatmaps([none], [no_class], GRID, 2).shape == (1, 2, 128, 128)


def test_patches_are_cut_at_the_border_and_centres_outside_draw_nothing() -> None:
    corner = draw_heatmaps([box(-51.1, 51.1)], [torch.tensor([0])], GRID, 1)[0, 0]
    assert corner[127, 0] == 1
    assert int((corner > 0).sum()) == 9
    for x, y in ((51.3, 0.0), (-51.3, 0.0), (0.0, 51.3), (0.0, -51.3)):
        assert draw_heatmaps([box(x, y)], [torch.tensor([0])], GRID, 1).sum() == 0


@pytest.mark.parametrize(("flip_x", "flip_y"), [(True, False), (False, True), (True, True)])
def test_flipped_boxes_give_the_flipped_map(flip_x: bool, flip_y: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    boxes = torch.rand((30, 9), generator=generator)
    boxes[:, :2] = boxes[:, :2] * 90 - 45
    classes = torch.randint(0, 10, (30,), generator=generator)
    plain = draw_heatmaps([boxes], [classes], GRID, 10)
    flipped_boxes = transform_boxes(boxes, bev_matrix(flip_x=flip_x, flip_y=flip_y))
    axes = [axis for axis, flip in ((3, flip_x), (2, flip_y)) if flip]
    assert torch.equal(draw_heatmaps([flipped_boxes], [classes], GRID, 10), plain.flip(axes))


def test_rectangular_grid_counts_rows_along_y() -> None:
    grid = Grid(-10.0, -4.0, 0.5, num_x=40, num_y=16)
    cells, inside = centre_cells(torch.cat([box(9.8, 3.8), box(3.8, 9.8)]), grid)
    assert cells[0].tolist() == [15, 39]
    assert inside.tolist() == [True, False]
    heatmap = draw_heatmaps([box(9.8, 3.8)], [torch.tensor([0])], grid, 1)
    assert heatmap.shape == (1, 1, 16, 40)
    assert heatmap[0, 0, 15, 39] == 1
