"""Ground truth boxes: from nuScenes' global frame to the keyframe's LIDAR_TOP frame."""

import numpy as np
import numpy.typing as npt

from bevcask.geometry import Matrix

Floats = npt.NDArray[np.float64]


def canonical_boxes(
    centres_N3: Floats,
    sizes_wlh_N3: Floats,
    quaternions_N4: Floats,
    velocities_N3: Floats,
    global_to_lidar: Matrix,
) -> npt.NDArray[np.float32]:
    """Return boxes (N, 9) float32, `geometry.BOX_FIELDS`, in the LIDAR_TOP frame.

    The yaw is that of the box's length axis seen from above: roll and pitch between the sensor and
    the box (a degree or two) have no field.

    Args:
        centres_N3: global, metres.
        sizes_wlh_N3: nuScenes order width, length, height, metres.
        quaternions_N4: (w, x, y, z), box to global; need not be exactly unit.
        velocities_N3: global, m/s; NaN (unknown) becomes 0.
        global_to_lidar: 4x4.
    """
    rotation = global_to_lidar[:3, :3]
    w, x, y, z = (quaternions_N4 / np.linalg.norm(quaternions_N4, axis=1, keepdims=True)).T
    length_axis_N3 = np.stack(
        [1 - 2 * (y * y + z * z), 2 * (x * y + w * z), 2 * (x * z - w * y)], 1
    )
    heading_N3 = length_axis_N3 @ rotation.T
    boxes_N9 = np.empty((len(centres_N3), 9), np.float64)
    boxes_N9[:, :3] = centres_N3 @ rotation.T + global_to_lidar[:3, 3]
    boxes_N9[:, 3:6] = sizes_wlh_N3[:, [1, 0, 2]]
    boxes_N9[:, 6] = np.arctan2(heading_N3[:, 1], heading_N3[:, 0])
    boxes_N9[:, 7:9] = (np.nan_to_num(velocities_N3) @ rotation.T)[:, :2]
    return boxes_N9.astype(np.float32)
