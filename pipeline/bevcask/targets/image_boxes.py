"""Boxes in images: what a camera sees of 3D boxes, as the devkit and StreamPETR's release do it."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from shapely.geometry import MultiPoint, box
from torch import Tensor

from bevcask.geometry import box_corners_bev

Floats = npt.NDArray[np.float64]

_SMALLEST = 1.0  # pixels of the original image, of either side
_SMALLEST_SEEN = 2.0  # pixels of the network image

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
    return torch.tensor(IMAGE_CHANNEL, device=classes_N.device)[classes_N]


def seen_boxes(
    boxes_N9: Floats, lidar_to_camera: Floats, intrinsics: Floats, size_HW: tuple[int, int]
) -> tuple[Floats, Floats, Floats, npt.NDArray[np.int64]]:
    """Return corners, centres, depths and rows of the boxes that a camera sees.

    Corners are those of the hull of what lies before the lens, within the image.

    Args:
        boxes_N9: canonical LIDAR_TOP.
        lidar_to_camera: 4x4.
        intrinsics: 3x3, of the original image.
        size_HW: of the original image, pixels.
    """
    height, width = size_HW
    canvas = box(0, 0, width, height)
    flat_N42, half_N1 = box_corners_bev(boxes_N9), boxes_N9[:, 5:6] / 2
    z_N8 = np.concatenate([boxes_N9[:, 2:3] - half_N1] * 4 + [boxes_N9[:, 2:3] + half_N1] * 4, 1)
    points_N93 = np.concatenate(
        [
            np.concatenate([np.concatenate([flat_N42, flat_N42], 1), z_N8[..., None]], 2),
            boxes_N9[:, None, :3],
        ],
        1,
    )
    camera_N93 = points_N93 @ lidar_to_camera[:3, :3].T + lidar_to_camera[:3, 3]
    found: list[tuple[Floats, Floats, float, int]] = []
    for row, points_93 in enumerate(camera_N93):
        depth = points_93[8, 2]
        front_P3 = points_93[:8][points_93[:8, 2] > 0]
        if depth <= 0 or not len(front_P3):
            continue
        pixels_P2, centre_2 = (_pixels(own, intrinsics) for own in (front_P3, points_93[8]))
        hull = MultiPoint(pixels_P2).convex_hull
        if not hull.intersects(canvas):
            continue
        corners_4 = np.array(hull.intersection(canvas).bounds)
        if (corners_4[2:] - corners_4[:2]).min() >= _SMALLEST:
            found.append((corners_4, centre_2, depth, row))
    if not found:
        return np.zeros((0, 4)), np.zeros((0, 2)), np.zeros(0), np.zeros(0, dtype=np.int64)
    corners, centres, depths, rows = zip(*found, strict=True)
    return np.stack(corners), np.stack(centres), np.array(depths), np.array(rows, dtype=np.int64)


def _pixels(points: Floats, intrinsics: Floats) -> Floats:
    seen = points @ intrinsics.T
    pixels: Floats = seen[..., :2] / seen[..., 2:]
    return pixels


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
    chosen: npt.NDArray[np.int64] = order_N[np.unique(owner_HW)] if len(order_N) else order_N
    return chosen


def image_boxes(
    boxes_N9: Tensor,
    classes_N: Tensor,
    lidar_to_camera_V44: Tensor,
    intrinsics_V33: Tensor,
    image_aug_V33: Tensor,
    sizes_HW: tuple[tuple[int, int], tuple[int, int]],
) -> list[ImageBoxes]:
    """Return the boxes that each camera of a frame sees, on the boxes' device.

    Args:
        boxes_N9: canonical LIDAR_TOP.
        classes_N: int64.
        lidar_to_camera_V44: float64 or float32.
        intrinsics_V33: of the original images.
        image_aug_V33: see `into_network`.
        sizes_HW: of the original images and those of the network, pixels.
    """
    boxes = boxes_N9.double().cpu().numpy()
    cameras = (
        own.double().cpu().numpy() for own in (lidar_to_camera_V44, intrinsics_V33, image_aug_V33)
    )
    found = []
    for to_camera, inner, image_aug in zip(*cameras, strict=True):
        corners, centres, depths, rows = seen_boxes(boxes, to_camera, inner, sizes_HW[0])
        corners, centres, kept = into_network(corners, centres, image_aug, sizes_HW[1])
        chosen = np.flatnonzero(kept)[visible(corners[kept], depths[kept], sizes_HW[1])]
        rows_M = torch.from_numpy(rows[chosen]).to(classes_N.device)
        found.append(
            ImageBoxes(
                torch.from_numpy(corners[chosen]).to(boxes_N9),
                torch.from_numpy(centres[chosen]).to(boxes_N9),
                classes_N[rows_M],
            )
        )
    return found
