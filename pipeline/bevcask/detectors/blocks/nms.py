"""Non-maximum suppression: a better box silences those it overlaps, or whose centre is near.

Both are greedy and blind to class. "Kept = no kept, better box silences it" has one fixed point,
the greedy answer; it is reached from all-kept in as many rounds as the longest chain of
suppressions and needs no loop over boxes.
"""

import numpy as np
import shapely
import torch
from torch import Tensor

from bevcask.geometry import box_corners_bev


def circle_nms(xy_N2: Tensor, radius: float | Tensor, valid_N: Tensor | None = None) -> Tensor:
    """Silence boxes whose centre lies at most `radius` from that of a kept, better one.

    Args:
        xy_N2: float (..., N, 2) centres, metres, best first; the lists know nothing of each other.
        radius: metres, one a list (...). Released code compares its list with squared distances;
            ours is the root.
        valid_N: bool (..., N), which of them are boxes; None: all.

    Returns:
        bool (..., N), True for boxes that stay.
    """
    square = torch.as_tensor(radius, dtype=torch.float64) ** 2
    limit = square.to(xy_N2.dtype).to(xy_N2.device, non_blocking=True)[..., None, None]
    delta_NN2 = xy_N2[..., :, None, :] - xy_N2[..., None, :, :]
    silences_NN = delta_NN2.square().sum(-1) <= limit
    if valid_N is None:
        return _greedy(silences_NN)
    return _greedy(silences_NN & valid_N[..., None]) & valid_N


def union_nms(xy_N2: Tensor, radius_N: Tensor, class_N: Tensor, source_N: Tensor) -> Tensor:
    """Silence boxes that another list says better; boxes of one list never silence each other.

    Args:
        xy_N2: float (N, 2) centres, metres, best first.
        radius_N: metres, how far the centre of the same object may lie.
        class_N: int64 (N,); boxes of different classes are of different objects.
        source_N: int64 (N,), the list that each box is of.

    Returns:
        bool (N,), True for boxes that stay.
    """
    near_NN = torch.cdist(xy_N2.double(), xy_N2.double()) <= radius_N[:, None]
    same_NN = class_N[:, None] == class_N
    return _greedy(near_NN & same_NN & (source_N[:, None] != source_N))


def rotated_nms(boxes_N9: Tensor, overlap: float) -> Tensor:
    """Silence boxes whose footprint has an IoU above `overlap` with that of a kept, better one.

    Footprints are polygons of GEOS on the host, exact at any heading.

    Args:
        boxes_N9: float (N, 9) boxes, `geometry.BOX_FIELDS`, best first.
        overlap: intersection over union in bird's-eye view; 0.2 in mmdet3d's CenterPoint.

    Returns:
        bool (N,), True for boxes that stay, on the device of the boxes.
    """
    polygons = shapely.polygons(box_corners_bev(boxes_N9.detach().cpu().double().numpy()))
    area_N = shapely.area(polygons)
    first_K, second_K = shapely.STRtree(polygons).query(polygons, predicate="intersects")
    shared_K = shapely.area(shapely.intersection(polygons[first_K], polygons[second_K]))
    covers_NN = np.zeros((len(polygons), len(polygons)), bool)
    covers_NN[first_K, second_K] = shared_K > overlap * (
        area_N[first_K] + area_N[second_K] - shared_K
    )
    return _greedy(torch.from_numpy(covers_NN)).to(boxes_N9.device)


def _greedy(silences_NN: Tensor) -> Tensor:
    """Return which boxes stay, bool (..., N); row i says whom box i would silence; best first."""
    silences_NN = silences_NN.triu(diagonal=1)
    keep_N = torch.ones(silences_NN.shape[:-1], dtype=torch.bool, device=silences_NN.device)
    while True:
        new_N = ~(silences_NN & keep_N[..., None]).any(dim=-2)
        if torch.equal(new_N, keep_N):
            return keep_N
        keep_N = new_N
