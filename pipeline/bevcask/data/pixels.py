"""LiDAR points of a keyframe in the pixels of its original images, with the boxes that hold them.

Rows are those of `targets.pixels`. Depth maps of any augmentation are drawn from them where the
network runs, whether they come from here or out of a cache: the same rows, the same maps, bit for
bit.
"""

import numpy as np
import numpy.typing as npt

from bevcask.data.index.frames import Frames
from bevcask.data.lidar import Scans, read_points
from bevcask.geometry import inside_footprints
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
    box_P = first_box(points[:, :3], boxes_N9.astype(np.float64))
    xyz_3P = np.ascontiguousarray(points[:, :3].T)
    parts = [np.empty((0, len(FIELDS)), np.float32)]
    for camera, to_camera in enumerate(np.linalg.inv(camera_to_lidar_V44)):
        to_image = intrinsics_V33[camera] @ to_camera[:3]
        row_M = _perhaps_seen(xyz_3P, to_image, sizes_V2[camera])
        xyz_3M = np.take(xyz_3P, row_M, axis=1).astype(np.float64)
        seen_3M = to_camera[:3, :3] @ xyz_3M
        seen_3M += to_camera[:3, 3:]
        uv_2M = intrinsics_V33[camera, :2] @ seen_3M
        uv_2M /= seen_3M[2] * PIXEL_STEP
        u_M, v_M = np.rint(uv_2M, out=uv_2M)
        depth_M = np.rint(seen_3M[2] / DEPTH_STEP)
        height, width = (sizes_V2[camera] - 0.5) / PIXEL_STEP
        inside_M = (seen_3M[2] > _NEAREST) & (u_M < width) & (v_M < height)
        inside_M &= (u_M >= -0.5 / PIXEL_STEP) & (v_M >= -0.5 / PIXEL_STEP)
        part = np.empty((np.count_nonzero(inside_M), len(FIELDS)), np.float32)
        columns = u_M * PIXEL_STEP, v_M * PIXEL_STEP, depth_M * DEPTH_STEP, box_P[row_M]
        for column, values_M in enumerate(columns, 1):
            part[:, column] = values_M[inside_M]
        part[:, 0] = camera
        parts.append(part)
    return np.concatenate(parts)


def _perhaps_seen(
    xyz_3P: Floats, to_image_34: Doubles, size_2: npt.NDArray[np.int32]
) -> npt.NDArray[np.intp]:
    """Return which points may be in an image: all that are, and few besides.

    Most are not. In float32, so a pixel more on each side, and a centimetre towards the lens.
    """
    x_4, y_4, depth_4 = to_image_34
    height, width = size_2
    planes_54 = np.stack(
        [
            depth_4 - [0, 0, 0, _NEAREST - 0.01],
            x_4 + 1.5 * depth_4,
            (width + 0.5) * depth_4 - x_4,
            y_4 + 1.5 * depth_4,
            (height + 0.5) * depth_4 - y_4,
        ]
    ).astype(np.float32)
    within_5P = planes_54[:, :3] @ xyz_3P >= -planes_54[:, 3:]
    return np.flatnonzero(within_5P.all(0))


def first_box(xyz_P3: Floats | Doubles, boxes_N9: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Return 1 + the number of the first box that holds each point, 0 where none does, (P,).

    A box's sides are its own; only its heading tilts it.
    """
    owner_P = np.zeros(len(xyz_P3), np.int64)
    x_P = np.ascontiguousarray(xyz_P3[:, 0])
    for number in reversed(range(len(boxes_N9))):
        box = boxes_N9[number]
        reach = np.hypot(box[3], box[4]) / 2
        near = np.flatnonzero(np.abs(x_P - box[0]) <= reach)
        xyz_M3 = xyz_P3[near].astype(np.float64)
        level_M = (np.abs(xyz_M3[:, 1:] - box[1:3]) <= [reach, box[5] / 2]).all(1)
        near, xyz_M3 = near[level_M], xyz_M3[level_M]
        held = inside_footprints(xyz_M3[:, :2], box[None])[:, 0]
        owner_P[near[held]] = number + 1
    return owner_P
