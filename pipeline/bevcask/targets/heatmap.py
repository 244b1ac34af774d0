"""Gaussian centre heatmaps of boxes, CenterNet style; the one place that draws them.

Ground-truth targets of the head, re-splatted teacher peaks and false-positive masks all come from
here, so they agree cell for cell.
"""

import math

import torch
from torch import Tensor

from bevcask.geometry import Grid
from bevcask.targets.ragged import sample_of_box, scattered

MIN_OVERLAP = 0.1  # CenterPoint, nuScenes train config `gaussian_overlap`
MIN_RADIUS = 2  # CenterPoint, nuScenes train config `min_radius`


def gaussian_radius(length_N: Tensor, width_N: Tensor, overlap: float = MIN_OVERLAP) -> Tensor:
    """Return how far a centre may stray while boxes still overlap, in the unit of the inputs.

    CornerNet takes the smallest root of three quadratics. With the halved denominators that every
    released CenterPoint uses, the third is always the smallest, for any overlap in (0, 1):
    it is at most (length + width) / 4, the others are at least (length + width) / 2.

    >>> gaussian_radius(torch.tensor(13.75), torch.tensor(3.6875)).round(decimals=2)
    tensor(2.8700)
    """
    total = overlap * (length_N + width_N)
    return (total**2 + 4 * overlap * (1 - overlap) * length_N * width_N).sqrt() - total


def centre_cells(boxes_N9: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Return the cell (row, column) of each centre, int64 (N, 2), and whether it is on the grid.

    Args:
        boxes_N9: (N, 9) boxes, `geometry.BOX_FIELDS`, metres, the grid's frame.
        grid: where the cells lie.

    Returns:
        The cells, and a bool (N,) that is False where the centre lies outside.
    """
    column_row = grid.to_cells(boxes_N9[:, :2]).floor().long()
    rows, columns = column_row[:, 1], column_row[:, 0]
    inside = (rows >= 0) & (rows < grid.num_y) & (columns >= 0) & (columns < grid.num_x)
    return torch.stack([rows, columns], dim=1), inside


def draw_heatmaps(
    boxes: list[Tensor], classes: list[Tensor], grid: Grid, num_classes: int
) -> Tensor:
    """Draw one Gaussian a box; overlapping ones of a class combine by maximum.

    The radius is max(2, trunc(gaussian_radius)) cells, sigma (2 radius + 1) / 6, the square patch
    is cut at the border. Boxes whose centre lies off the grid draw nothing.

    Args:
        boxes: per sample (N, 9) float, `geometry.BOX_FIELDS`, metres, the grid's frame.
        classes: per sample (N,) int64 in [0, num_classes).
        grid: the heatmap's grid.
        num_classes: number of channels K.

    Returns:
        float32 (B, K, Y, X) in [0, 1], exactly 1 in the cell of each centre.
    """
    device = boxes[0].device
    boxes_N9 = torch.cat(boxes).float()
    shape_BKYX = (len(boxes), num_classes, *grid.shape_YX)
    if not len(boxes_N9):
        return torch.zeros(shape_BKYX, device=device)
    plane_N = sample_of_box(boxes, device) * num_classes + torch.cat(classes)
    cells_N2, inside_N = centre_cells(boxes_N9, grid)
    radius_N = gaussian_radius(boxes_N9[:, 3] / grid.cell, boxes_N9[:, 4] / grid.cell)
    radius_N = radius_N.trunc().clamp(min=MIN_RADIUS)
    reach = int(radius_N.where(inside_N, MIN_RADIUS).max())  # a device waits for the host here
    steps = torch.arange(-reach, reach + 1, device=device)
    patch_M2 = torch.cartesian_prod(steps, steps)
    sigma_N1 = (2 * radius_N[:, None] + 1) / 6
    value_NM = torch.exp(-(patch_M2**2).sum(1) / (2 * sigma_N1**2))
    rows_NM = cells_N2[:, :1] + patch_M2[:, 0]
    columns_NM = cells_N2[:, 1:] + patch_M2[:, 1]
    keep_NM = (
        inside_N[:, None]
        & (patch_M2.abs().amax(1) <= radius_N[:, None])
        & (rows_NM >= 0)
        & (rows_NM < grid.num_y)
        & (columns_NM >= 0)
        & (columns_NM < grid.num_x)
    )
    flat_NM = (plane_N[:, None] * grid.num_y + rows_NM) * grid.num_x + columns_NM
    return scattered(value_NM, flat_NM, keep_NM, math.prod(shape_BKYX), "amax").view(shape_BKYX)
