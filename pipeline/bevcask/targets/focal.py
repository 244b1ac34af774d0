"""Where FocalDistiller looks: one Gaussian a box, drawn on cells that are not the teacher's.

The release draws 128 x 128 cells of 0.8 m and enlarges the map to the teacher's 200 x 200 cells by
nearest neighbours: a cell takes the value at its lower corner. Both the cells that are stored and
the weights of the loss come from here.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from bevcask.geometry import Grid, constant
from bevcask.targets.heatmap import draw_heatmaps
from bevcask.targets.ragged import kept

_ROUNDING = 1e-6  # cells


def mask_grid(grid: Grid, cell: float) -> Grid:
    """Return the cells of another size that cover a grid, from its lower corner on."""
    num_y, num_x = (math.ceil(own * grid.cell / cell - _ROUNDING) for own in grid.shape_YX)
    return Grid(grid.x_min, grid.y_min, cell, num_x, num_y)


def truncated(boxes_N9: Tensor, grid: Grid) -> Tensor:
    """Return which boxes are drawn on a grid, bool (N,).

    Cells are truncated towards zero, as released: a centre up to one cell below the lower border
    is drawn in cell 0. Boxes without area draw nothing.
    """
    cell_N2 = grid.to_cells(boxes_N9[:, :2].float()).trunc()
    size_2 = constant((grid.num_x, grid.num_y), cell_N2)
    return ((cell_N2 >= 0) & (cell_N2 < size_2)).all(1) & (boxes_N9[:, 3:5] > 0).all(1)


def focal_map(boxes: Sequence[Tensor], grid: Grid, cell: float) -> Tensor:
    """Return the weights of a grid's cells, float32 (B, Y, X) in [0, 1].

    Radius and shape of the Gaussians are those of `targets.heatmap`, whatever the class; where
    they overlap the larger value counts.

    Args:
        boxes: per sample (N, 9), the grid's frame.
        grid: the teacher's.
        cell: metres, side of the cells the Gaussians are drawn on.
    """
    drawn_on = mask_grid(grid, cell)
    [drawn] = kept(truncated(torch.cat(list(boxes)), drawn_on), boxes)
    lowest_2 = constant((drawn_on.x_min, drawn_on.y_min), drawn[0].float())
    drawn = [
        torch.cat([own_M9[:, :2].float().maximum(lowest_2), own_M9[:, 2:].float()], dim=1)
        for own_M9 in drawn
    ]
    one_class = [own.new_zeros(len(own), dtype=torch.int64) for own in drawn]
    map_BYX = draw_heatmaps(drawn, one_class, drawn_on, num_classes=1)[:, 0]
    row_Y, column_X = (
        (torch.arange(own, dtype=torch.float64) * (grid.cell / cell) + _ROUNDING).long()
        for own in grid.shape_YX
    )
    return map_BYX[:, row_Y.to(map_BYX.device)[:, None], column_X.to(map_BYX.device)]
