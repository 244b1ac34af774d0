"""LiDAR points of a keyframe in the pixels of its original images, with the boxes that hold them.

Rows are those of `targets.pixels`. Depth maps of any augmentation are drawn from them where the
network runs, whether they come from here or out of a cache: the same rows, the same maps, bit for
bit.
"""

import numpy as np
import numpy.typing as npt

from bevcask.data.index.frames import Frames
from bevcask.data.lidar import Scans, read_points
from bevcask.geometry import CAMERAS, inside_footprints, transform_points
from bevcask.targets.pixels import DEPTH_STEP, FIELDS, PIXEL_STEP

_NEAREST = 0.1  # metres in front of the lens
Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]


def read_pixels(frames: Frames, token: str, boxes: bool, scans: Scans | None = None) -> Floats:
    """Return the keyframe's points in its images; see `pixel_points`.

    Args:
        frames: the selection.
        token: sample token.
        boxes: tell which boxes hold them: every box of the ten classes, whatever its range and
            however few its points; without, all points are background.
        scans: keeps scans from one call to the next.

    Raises:
        DataError: the scan is missing or damaged.
    """
    index, row = frames.index, frames.row(token)
    boxes_N9 = frames.labels(token)[0] if boxes else np.empty((0, 9), np.float32)
    return pixel_points(
        read_points(frames, token, 1, scans=scans),
        boxes_N9,
        index["frame_camera_to_lidar"][row],
        index["calibration_intrinsics"][index["frame_calibration"][row, 1:]],
        index["frame_image_size"][row],
    )


def pixel_points(
    points: Floats,
    boxes_N9: Floats,
    camera_to_lidar_V44: Doubles,
    intrinsics_V33: Doubles,
    sizes_V2: npt.NDArray[np.int32],
) -> Floats:
    """Project points into every camera's original image; a point two cameras see gives two rows.

    Args:
        points: (P, 3 or more) canonical LIDAR_TOP frame, metres.
        boxes_N9: ground truth, the same frame.
        camera_to_lidar_V44: ego motion between the exposures included.
        intrinsics_V33: pixels.
        sizes_V2: height and width of the images.

    Returns:
        (M, 5) float32, `targets.pixels.FIELDS`, camera by camera in the order of the points. Points
        outside an image are left out: what an augmentation shows there is black.
    """
    xyz_P3 = points[:, :3].astype(np.float64)
    box_P = first_box(xyz_P3, boxes_N9.astype(np.float64))
    parts = [np.empty((0, len(FIELDS)))]
    for camera in range(len(CAMERAS)):
        to_camera = np.linalg.inv(camera_to_lidar_V44[camera])
        seen_P3 = transform_points(xyz_P3, to_camera)
        ahead = np.flatnonzero(seen_P3[:, 2] > _NEAREST)
        seen_M3 = seen_P3[ahead]
        uv_M2 = (seen_M3 @ intrinsics_V33[camera].T)[:, :2] / seen_M3[:, 2:]
        uv_M2 = np.rint(uv_M2 / PIXEL_STEP) * PIXEL_STEP
        depth_M = np.rint(seen_M3[:, 2] / DEPTH_STEP) * DEPTH_STEP
        inside_M = ((uv_M2 >= -0.5) & (uv_M2 < sizes_V2[camera][::-1] - 0.5)).all(1)
        row_M5 = np.column_stack([np.full(len(ahead), camera), uv_M2, depth_M, box_P[ahead]])
        parts.append(row_M5[inside_M])
    return np.concatenate(parts).astype(np.float32)


def first_box(xyz_P3: Doubles, boxes_N9: Doubles) -> npt.NDArray[np.int64]:
    """Return 1 + the number of the first box that holds each point, 0 where none does, (P,).

    A box's sides are its own; only its heading tilts it.
    """
    owner_P = np.zeros(len(xyz_P3), np.int64)
    for number in reversed(range(len(boxes_N9))):
        box = boxes_N9[number]
        reach = np.hypot(box[3], box[4]) / 2
        near = np.flatnonzero((np.abs(xyz_P3 - box[:3]) <= [reach, reach, box[5] / 2]).all(1))
        held = inside_footprints(xyz_P3[near, :2], box[None])[:, 0]
        owner_P[near[held]] = number + 1
    return owner_P
