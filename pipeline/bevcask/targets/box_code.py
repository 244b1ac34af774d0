"""Box codes: what a CenterHead says of the box whose centre lies in a cell, one code a task group.

Ten numbers: offset of the centre in the cell (x, y, cells), height of the centre (metres), log of
(l, w, h), sin and cos of yaw, velocity (vx, vy, m/s). The head, its targets and what is cached of
it all read them from here.
"""

import torch
from torch import Tensor

from bevcask.geometry import Grid, constant

TASKS = (
    ("car",),
    ("truck", "construction_vehicle"),
    ("bus", "trailer"),
    ("barrier",),
    ("motorcycle", "bicycle"),
    ("pedestrian", "traffic_cone"),
)
TASK_OF_CLASS = tuple(t for t, names in enumerate(TASKS) for _ in names)
CODE_SIZE = 10


def encode_boxes(boxes_N9: Tensor, cells_N2: Tensor, grid: Grid) -> Tensor:
    """Return the box codes (N, 10) of boxes (metres, the grid's frame) as seen from these cells."""
    offset_N2 = grid.to_cells(boxes_N9[:, :2]) - cells_N2.flip(1)
    yaw_N = boxes_N9[:, 6]
    return torch.cat(
        [
            offset_N2,
            boxes_N9[:, 2:3],
            boxes_N9[:, 3:6].log(),
            torch.stack([yaw_N.sin(), yaw_N.cos()], dim=1),
            boxes_N9[:, 7:9],
        ],
        dim=1,
    )


def decode_boxes(code_NE: Tensor, cells_N2: Tensor, grid: Grid) -> Tensor:
    """Return the boxes (..., 9) of codes (..., 10) read at cells (..., 2) (row, column)."""
    column_row = cells_N2.flip(-1) + code_NE[..., :2]
    origin = constant((grid.x_min, grid.y_min), column_row)
    yaw = torch.atan2(code_NE[..., 6], code_NE[..., 7])
    return torch.cat(
        [
            column_row * grid.cell + origin,
            code_NE[..., 2:3],
            code_NE[..., 3:6].exp(),
            yaw[..., None],
            code_NE[..., 8:10],
        ],
        dim=-1,
    )


def move_codes(
    code_NE: Tensor, origin_N2: Tensor, destination_N2: Tensor, a_to_b_N44: Tensor, grid: Grid
) -> Tensor:
    """Return box codes as the cells their boxes moved to would say them.

    Closed form, as `geometry.transform_boxes` moves the decoded box; a heading keeps its length, as
    no network says unit vectors. Computed in float64, so that identity changes nothing.

    Args:
        code_NE: (N, 10) codes in frame a.
        origin_N2: int64 cell (row, column) each was read at, frame a.
        destination_N2: int64 cell (row, column) it shall be seen from, frame b.
        a_to_b_N44: similarity of each: rotation about z, uniform scale, flips, translation.
        grid: of both frames.

    Returns:
        (N, 10) in the dtype of the codes.
    """
    exact_NE, a_to_b_N44 = code_NE.double(), a_to_b_N44.double()
    plane_N22 = a_to_b_N44[:, :2, :2]
    scale_N1 = torch.linalg.det(plane_N22).abs().sqrt()[:, None]
    corner_2 = constant((grid.x_min, grid.y_min), exact_NE)
    centre_N2 = (origin_N2.flip(1) + exact_NE[:, :2]) * grid.cell + corner_2
    centre_N3 = torch.cat([centre_N2, exact_NE[:, 2:3]], dim=1)
    centre_N3 = _apply(a_to_b_N44[:, :3, :3], centre_N3) + a_to_b_N44[:, :3, 3]
    heading_N2 = _apply(plane_N22, exact_NE[:, [7, 6]]) / scale_N1
    moved_NE = torch.cat(
        [
            grid.to_cells(centre_N3[:, :2]) - destination_N2.flip(1),
            centre_N3[:, 2:3],
            exact_NE[:, 3:6] + scale_N1.log(),
            heading_N2.flip(1),
            _apply(plane_N22, exact_NE[:, 8:10]),
        ],
        dim=1,
    )
    return moved_NE.to(code_NE.dtype)


def _apply(matrix_Nij: Tensor, vector_Nj: Tensor) -> Tensor:
    return torch.einsum("nij,nj->ni", matrix_Nij, vector_Nj)
