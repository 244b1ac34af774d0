"""Boxes in images: what a camera sees of 3D boxes, as the devkit and StreamPETR's release do it."""

from itertools import product
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from shapely import box, multipoints
from torch import Tensor

from bevcask.geometry import constant

Floats = npt.NDArray[np.float64]

_SMALLEST = 1.0  # pixels of the original image, of either side
_SMALLEST_SEEN = 2.0  # pixels of the network image

_UP = np.array([0.0, 0.0, 1.0])
_SIGNS = np.array(list(product((-1.0, 1.0), repeat=3)))

# The release numbers classes in images otherwise: car, truck, trailer, bus, construction vehicle,
# bicycle, motorcycle, pedestrian, traffic cone, barrier.
IMAGE_CHANNEL = (0, 1, 4, 3, 2, 9, 6, 5, 7, 8)
"""Channel of the head of each of `geometry.CLASSES`."""


class ImageBoxes(NamedTuple):
    """Boxes of one camera, network pixels.

    Attributes:
        corners_N4: left, top, right, bottom.
        centres_N2: (u, v) of the 3D centre; may lie outside the corners.
        classes_N: int64, index into `geometry.CLASSES`.
    """

    corners_N4: Tensor
    centres_N2: Tensor
    classes_N: Tensor


def channels_of(classes_N: Tensor) -> Tensor:
    """Return the channels of a head in the images that classes have."""
    return constant(IMAGE_CHANNEL, classes_N)[classes_N]


def seen_boxes(
    boxes_N9: Floats,
    lidar_to_camera: Floats,
    intrinsics: Floats,
    size_HW: tuple[int, int],
    up_3: Floats = _UP,
) -> tuple[Floats, Floats, Floats, npt.NDArray[np.int64]]:
    """Return corners, centres, depths and rows of the boxes that a camera sees.

    Corners are those of the hull of what lies before the lens, within the image.

    Args:
        boxes_N9: canonical LIDAR_TOP.
        lidar_to_camera: 4x4.
        intrinsics: 3x3, of the original image.
        size_HW: of the original image, pixels.
        up_3: which way is up for the boxes, a direction in LIDAR_TOP: they stand on the ground,
            however the car leans.
    """
    height, width = size_HW
    canvas = box(0, 0, width, height)
    points_N93 = np.concatenate([_corners(boxes_N9, up_3), boxes_N9[:, None, :3]], 1)
    camera_N93 = points_N93 @ lidar_to_camera[:3, :3].T + lidar_to_camera[:3, 3]
    front_N9 = camera_N93[..., 2] > 0
    seen_N93 = camera_N93 @ intrinsics.T
    pixels_N92 = seen_N93[..., :2] / np.where(front_N9, seen_N93[..., 2], 1)[..., None]
    front_N81 = front_N9[:, :8, None]
    low_N2 = np.where(front_N81, pixels_N92[:, :8], np.inf).min(1, initial=np.inf)
    high_N2 = np.where(front_N81, pixels_N92[:, :8], -np.inf).max(1, initial=-np.inf)
    corners_N4 = np.concatenate([low_N2, high_N2], 1)
    borders = np.array([width, height])
    seen_N = front_N9[:, 8] & (low_N2 < borders).all(1) & (high_N2 > 0).all(1)
    cut_N = seen_N & ((low_N2 < 0) | (high_N2 > borders)).any(1)
    for row in np.flatnonzero(cut_N):
        hull = multipoints(pixels_N92[row, :8][front_N9[row, :8]]).convex_hull
        cut = hull.intersection(canvas)
        corners_N4[row] = np.zeros(4) if cut.is_empty else cut.bounds
    seen_N[seen_N] = (corners_N4[seen_N, 2:] - corners_N4[seen_N, :2] >= _SMALLEST).all(1)
    rows = np.flatnonzero(seen_N)
    return corners_N4[rows], pixels_N92[rows, 8], camera_N93[rows, 8, 2], rows


def _corners(boxes_N9: Floats, up_3: Floats) -> Floats:
    """Return the corners of boxes that stand upright, whose headings are seen from the LiDAR."""
    ahead_N3 = np.stack(
        [np.cos(boxes_N9[:, 6]), np.sin(boxes_N9[:, 6]), np.zeros(len(boxes_N9))], 1
    )
    ahead_N3[:, 2] = -(ahead_N3 @ up_3) / up_3[2]
    ahead_N3 /= np.linalg.norm(ahead_N3, axis=1, keepdims=True)
    axes_N33 = np.stack(
        [ahead_N3, np.cross(up_3, ahead_N3), np.broadcast_to(up_3, ahead_N3.shape)], 1
    )
    corners_N83: Floats = boxes_N9[:, None, :3] + (_SIGNS * boxes_N9[:, None, 3:6] / 2) @ axes_N33
    return corners_N83


def into_network(
    corners_N4: Floats, centres_N2: Floats, image_aug: Floats, size_HW: tuple[int, int]
) -> tuple[Floats, Floats, npt.NDArray[np.bool_]]:
    """Return corners and centres in the network image, within its borders, and which are left.

    Args:
        corners_N4: left, top, right, bottom in the original image.
        centres_N2: (u, v) in it.
        image_aug: 3x3, original pixel -> network pixel, by scaled coordinates (no half pixel).
        size_HW: of the network image.
    """
    height, width = size_HW
    left, top, right, bottom = corners_N4.T
    points_N52 = np.stack(
        [
            *(np.stack([u, v], 1) for u in (left, right) for v in (top, bottom)),
            centres_N2,
        ],
        1,
    )
    moved_N52 = points_N52 @ image_aug[:2, :2].T + image_aug[:2, 2]
    borders = np.array([width, height], dtype=np.float64)
    low, high = moved_N52[:, :4].min(1).clip(0, borders), moved_N52[:, :4].max(1).clip(0, borders)
    kept_N = ((high - low) >= _SMALLEST_SEEN).all(1)
    return np.concatenate([low, high], 1), moved_N52[:, 4].clip(0, borders), kept_N


def visible(
    corners_N4: Floats, depths_N: Floats, size_HW: tuple[int, int]
) -> npt.NDArray[np.int64]:
    """Return the boxes that nearer ones leave a pixel of, farthest first.

    As in the release the farthest one is always among them: pixels of no box count for it.
    """
    order_N = np.argsort(-depths_N, kind="stable")
    owner_HW = np.zeros(size_HW, dtype=np.int64)
    low_N2 = np.ceil(corners_N4[order_N, :2]).astype(np.int64)
    high_N2 = np.floor(corners_N4[order_N, 2:]).astype(np.int64)
    for number, ((left, top), (right, bottom)) in enumerate(zip(low_N2, high_N2, strict=True)):
        owner_HW[top:bottom, left:right] = number
    owns_N = np.bincount(owner_HW.ravel(), minlength=len(order_N)) > 0
    chosen: npt.NDArray[np.int64] = order_N[owns_N] if len(order_N) else order_N
    return chosen


def image_boxes(
    boxes_N9: Tensor,
    classes_N: Tensor,
    lidar_to_camera_V44: Tensor,
    intrinsics_V33: Tensor,
    image_aug_V33: Tensor,
    sizes_HW: tuple[tuple[int, int], tuple[int, int]],
    up_3: Tensor | None = None,
) -> list[ImageBoxes]:
    """Return the boxes that each camera of a frame sees, on the boxes' device.

    Args:
        boxes_N9: canonical LIDAR_TOP.
        classes_N: int64.
        lidar_to_camera_V44: float64 or float32.
        intrinsics_V33: of the original images.
        image_aug_V33: see `into_network`.
        sizes_HW: of the original images and those of the network, pixels.
        up_3: see `seen_boxes`; None for that of the LiDAR.
    """
    up = _UP if up_3 is None else up_3.double().cpu().numpy()
    boxes = boxes_N9.double().cpu().numpy()
    cameras = (
        own.double().cpu().numpy() for own in (lidar_to_camera_V44, intrinsics_V33, image_aug_V33)
    )
    found = []
    for to_camera, inner, image_aug in zip(*cameras, strict=True):
        corners, centres, depths, rows = seen_boxes(boxes, to_camera, inner, sizes_HW[0], up)
        corners, centres, kept = into_network(corners, centres, image_aug, sizes_HW[1])
        chosen = np.flatnonzero(kept)[visible(corners[kept], depths[kept], sizes_HW[1])]
        rows_M = torch.from_numpy(rows[chosen]).to(classes_N.device, non_blocking=True)
        found.append(
            ImageBoxes(
                torch.from_numpy(corners[chosen]).to(boxes_N9, non_blocking=True),
                torch.from_numpy(centres[chosen]).to(boxes_N9, non_blocking=True),
                classes_N[rows_M],
            )
        )
    return found
