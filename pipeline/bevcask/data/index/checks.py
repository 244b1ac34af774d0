"""Is what tables and info files say about frames usable? Looked at once, for every reader."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from bevcask.data.index.arrays import SENSORS, Arrays
from bevcask.errors import DataError

_UNIT = 0.1  # how far a quaternion's length may be from 1
_ORIGIN = "Correct the table or info file, or leave these frames out of it."


def check_sensors(arrays: Arrays, source: Path) -> None:
    """Refuse poses, intrinsics and image sizes that are none.

    Args:
        arrays: an index before `transforms`.
        source: folder of the tables, or info file.

    Raises:
        DataError: the first frame and sensor, and how many there are.
    """
    calibration = arrays["frame_calibration"]
    mountings = arrays["calibration_pose"][calibration]
    intrinsics = arrays["calibration_intrinsics"][calibration[:, 1:]]
    focal = intrinsics[..., [0, 1], [0, 1]]
    no_camera = ~np.isfinite(intrinsics).all((2, 3)) | ~(focal > 0).all(2)
    sizes = arrays["frame_image_size"]
    pose = "translation, rotation); expected three metres and a unit quaternion (w, x, y, z)"
    for what, bad, values, first in (
        (
            f"ego pose (ego_pose.json: {pose}",
            ~_is_pose(arrays["frame_ego_pose"]),
            arrays["frame_ego_pose"],
            0,
        ),
        (f"mounting (calibrated_sensor.json: {pose}", ~_is_pose(mountings), mountings, 0),
        (
            "intrinsics (calibrated_sensor.json: camera_intrinsic); expected a 3x3 with focal "
            "lengths above 0",
            no_camera,
            intrinsics,
            1,
        ),
        ("image size (sample_data.json: height, width)", (sizes <= 0).any(2), sizes, 1),
    ):
        if bad.any():
            row, sensor = np.argwhere(bad)[0]
            token = arrays["frame_token"][row].tobytes().hex()
            raise DataError(
                f"{source}: sample {token}, {SENSORS[sensor + first]}: no {what}, got "
                f"{values[row, sensor].tolist()}. {bad.any(1).sum()} of {len(bad)} frames are like "
                f"this. {_ORIGIN}"
            )
    _check_scans(arrays, source)


def _check_scans(arrays: Arrays, source: Path) -> None:
    mountings = arrays["calibration_pose"][arrays["scan_calibration"]]
    bad = ~(_is_pose(arrays["scan_ego_pose"]) & _is_pose(mountings))
    if bad.any():
        path = arrays["scan_path"][bad][0].decode()
        raise DataError(
            f"{source}: the pose of LiDAR scan {path} is not finite, or no rotation; "
            f"{bad.sum()} of {len(bad)} scans are like this. {_ORIGIN}"
        )


def _is_pose(poses: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Tell which (..., 7) are finite and rotate; (...)."""
    with np.errstate(all="ignore"):
        length = np.linalg.norm(poses[..., 3:], axis=-1)
        return np.asarray(np.isfinite(poses).all(-1) & (np.abs(length - 1) < _UNIT))


def sound_boxes(
    places: npt.NDArray[np.float64], sizes_N3: npt.NDArray[np.float64]
) -> npt.NDArray[np.bool_]:
    """Tell which boxes have an extent, and a place and heading that are numbers, (N,)."""
    with np.errstate(invalid="ignore"):
        sound = np.isfinite(places).all(1) & np.isfinite(sizes_N3).all(1) & (sizes_N3 > 0).all(1)
    return np.asarray(sound)


def notes_on_boxes(num_unsound: int, first: str, arrays: Arrays) -> list[str]:
    """Return what to say of the boxes of a dataset.

    Args:
        num_unsound: boxes left out by `sound_boxes`.
        first: where the first of them is.
        arrays: with the boxes that are left.
    """
    left, notes = len(arrays["box_class"]), []
    if num_unsound:
        notes.append(
            f"{num_unsound} of {num_unsound + left} boxes are left out, for they have no extent "
            f"or are no numbers, first {first}"
        )
    counts = arrays["box_num_lidar_points"], arrays["box_num_radar_points"]
    if left and not any(count.any() for count in counts):
        notes.append(
            f"none of its {left} boxes has a counted LiDAR or radar point (num_lidar_pts, "
            "num_radar_pts): nobody counted them, so all boxes are trained on. The official "
            "metrics would drop every one"
        )
    return notes
