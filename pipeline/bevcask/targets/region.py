"""Which cells of a map are stored: decided from ground truth or from the values themselves."""

from collections.abc import Sequence

import torch
from torch import Tensor

from bevcask.errors import DataError
from bevcask.geometry import Grid, constant
from bevcask.targets.focal import focal_map
from bevcask.targets.heatmap import centre_cells, draw_heatmaps
from bevcask.targets.ragged import sample_of_box
from bevcask.targets.spec import Region


def region_mask(
    region: Region, values_BCYX: Tensor, grid: Grid | None, boxes: Sequence[Tensor] | None
) -> Tensor | None:
    """Return the cells of a region, bool (B, Y, X); None where all are stored.

    Args:
        region: which cells.
        values_BCYX: the teacher's map, float32; `confident` reads it.
        grid: where its cells lie.
        boxes: per sample (N, 9) ground truth in the frame of the map; None where there is none.

    Raises:
        DataError: the region follows boxes, and there are none to follow.
    """
    if region.name == "all":
        return None
    if region.name == "confident":
        return values_BCYX.amax(dim=1) > region.threshold
    if region.name == "union":
        parts = [region_mask(part, values_BCYX, grid, boxes) for part in region.parts]
        return torch.stack([part for part in parts if part is not None]).any(0)
    if boxes is None:
        raise DataError(
            f"region {region.name!r} follows ground-truth boxes, and this split has no annotations."
            " Extract a split that has them, or a method that reads whole maps."
        )
    assert grid is not None
    if region.name == "centres":
        mask_BYX = centre_mask(boxes, grid)
    elif region.name == "gaussians":
        mask_BYX = gaussian_mask(boxes, grid)
    elif region.name == "focal":
        mask_BYX = focal_map(boxes, grid, region.cell) > 0
    else:
        mask_BYX = box_mask(boxes, grid, region.margin, touched=region.name == "keypoints")
    return mask_BYX.to(values_BCYX.device)


def centre_mask(boxes: Sequence[Tensor], grid: Grid) -> Tensor:
    """Return the cells of every sample's box centres, bool (B, Y, X)."""
    boxes_M9 = torch.cat(list(boxes)).float()
    cells_M2, inside_M = centre_cells(boxes_M9, grid)
    row_M, column_M = cells_M2[inside_M].unbind(1)
    mask_BYX = torch.zeros((len(boxes), *grid.shape_YX), dtype=torch.bool, device=boxes_M9.device)
    mask_BYX[sample_of_box(boxes, boxes_M9.device)[inside_M], row_M, column_M] = True
    return mask_BYX


def gaussian_mask(boxes: Sequence[Tensor], grid: Grid) -> Tensor:
    """Return where the ground-truth heatmap of any class is above zero, bool (B, Y, X)."""
    one_class = [own.new_zeros(len(own), dtype=torch.int64) for own in boxes]
    return draw_heatmaps(list(boxes), one_class, grid, num_classes=1)[:, 0] > 0


def box_mask(boxes: Sequence[Tensor], grid: Grid, margin: float, touched: bool) -> Tensor:
    """Return the cells of every sample's boxes, bool (B, Y, X); see `footprint`."""
    boxes_M9 = torch.cat(list(boxes)).float()
    mask_BYX = torch.zeros((len(boxes), *grid.shape_YX), dtype=torch.bool, device=boxes_M9.device)
    if len(boxes_M9):
        cells_MS2, owned_MS = footprint(boxes_M9, grid, margin, touched)
        sample_MS = sample_of_box(boxes, boxes_M9.device)[:, None].expand_as(owned_MS)
        row_R, column_R = cells_MS2[owned_MS].unbind(-1)
        mask_BYX[sample_MS[owned_MS], row_R, column_R] = True
    return mask_BYX


def footprint(
    boxes_M9: Tensor, grid: Grid, margin: float = 0.0, touched: bool = False
) -> tuple[Tensor, Tensor]:
    """Return a square patch of cells (row, column) around each box, and which of them it owns.

    A box owns the cells whose centre lies in its rotated footprint, and always that of its own
    centre. With `touched` it owns every cell that bilinear interpolation at any point of the
    footprint reads: the cell centres in the Minkowski sum of the footprint and a square of two
    cells, an octagon whose edges are those of both.

    Args:
        boxes_M9: float32 boxes in the grid's frame, positive sizes.
        grid: where the cells lie.
        margin: metres added on each of the four sides.
        touched: own what interpolation reads.

    Returns:
        int64 (M, S, 2), and bool (M, S), False off the grid.
    """
    centre_M2, _ = centre_cells(boxes_M9, grid)
    half_M2 = boxes_M9[:, 3:5] / 2 + margin
    spread = grid.cell if touched else 0.0
    reach = int((half_M2.norm(dim=1).max() / grid.cell + 1 + touched).item())
    steps = torch.arange(-reach, reach + 1, device=boxes_M9.device)
    patch_S2 = torch.cartesian_prod(steps, steps)
    cells_MS2 = centre_M2[:, None] + patch_S2
    middle_M2 = grid.to_cells(boxes_M9[:, :2])
    offset_MS2 = (cells_MS2.flip(-1) + 0.5 - middle_M2[:, None]) * grid.cell
    c, s = boxes_M9[:, 6:7].cos(), boxes_M9[:, 6:7].sin()
    along_MS = offset_MS2[..., 0] * c + offset_MS2[..., 1] * s
    across_MS = offset_MS2[..., 1] * c - offset_MS2[..., 0] * s
    grown_M2 = half_M2 + spread * (c.abs() + s.abs())
    covered_MS = (along_MS.abs() <= grown_M2[:, :1]) & (across_MS.abs() <= grown_M2[:, 1:])
    if touched:
        turn_M22 = torch.stack([torch.cat([c, s], 1), torch.cat([s, c], 1)], 1).abs()
        bound_M2 = (turn_M22 * half_M2[:, None]).sum(-1) + spread
        covered_MS &= (offset_MS2.abs() <= bound_M2[:, None]).all(-1)
    is_centre_S = (patch_S2 == 0).all(1)
    size_2 = constant(grid.shape_YX, cells_MS2)
    on_grid_MS = ((cells_MS2 >= 0) & (cells_MS2 < size_2)).all(-1)
    return cells_MS2, (covered_MS | is_centre_S) & on_grid_MS
