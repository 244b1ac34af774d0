"""What one entry of an mmdet3d info file says about a frame, whichever version wrote it.

Two formats: a list under `infos` (0.x and 1.0.x: translations and quaternions, microseconds, names)
and a list under `data_list` (since v1.1.0: 4x4 matrices rounded to float32, seconds, labels).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.spatial.transform import Rotation

from bevcask.data.labels import Floats
from bevcask.geometry import CAMERAS, CLASSES, Matrix

Pose = tuple[float, ...]
"""(x, y, z, qw, qx, qy, qz), metres, child to parent."""
_FAR = 1e9  # metres
_LONGEST = 1024  # characters of a path or a token
_UNSCORED = frozenset(
    {
        "animal",
        "human.pedestrian.personal_mobility",
        "human.pedestrian.stroller",
        "human.pedestrian.wheelchair",
        "movable_object.debris",
        "movable_object.pushable_pullable",
        "static_object.bicycle_rack",
        "vehicle.emergency.ambulance",
        "vehicle.emergency.police",
    }
)
"""nuScenes categories outside the ten detection classes; mmdet3d leaves their names as they are."""


@dataclass(frozen=True)
class Scan:
    """A LIDAR_TOP scan: path below the root, microseconds, mounting and ego pose."""

    path: str
    time: int
    mounting: Pose
    ego: Pose


@dataclass(frozen=True)
class Shot:
    """A camera image: path below the root, mounting, ego pose at exposure, 3x3 intrinsics."""

    path: str
    mounting: Pose
    ego: Pose
    intrinsics: Matrix


@dataclass(frozen=True)
class Record:
    """One frame.

    Attributes:
        token: of the sample.
        scene: token of the scene where the file has it (forks of mmdet3d write it).
        scan: the keyframe.
        sweeps: its predecessors, nearest first.
        shots: one per `geometry.CAMERAS`.
        boxes_N7: as the file has them, ten detection classes only.
        velocities_N2: m/s.
        names: detection class of each box.
        points_N2: LiDAR and radar points of each box.
    """

    token: str
    scene: str | None
    scan: Scan
    sweeps: list[Scan]
    shots: list[Shot]
    boxes_N7: Floats
    velocities_N2: Floats
    names: list[str]
    points_N2: npt.NDArray[np.int32]


def listed_record(info: Mapping[str, Any]) -> Record:
    """Read an entry of `infos`.

    Raises:
        KeyError: a key is missing.
        TypeError, ValueError: a value is not what it should be.
    """
    keyframe = Scan(
        _below_root(info["lidar_path"], "samples/LIDAR_TOP"),
        _microseconds(info["timestamp"]),
        _pose(info, "lidar2ego"),
        _pose(info, "ego2global"),
    )
    sweeps = [
        Scan(
            _below_root(sweep["data_path"], "sweeps/LIDAR_TOP"),
            _microseconds(sweep["timestamp"]),
            _pose(sweep, "sensor2ego"),
            _pose(sweep, "ego2global"),
        )
        for sweep in info["sweeps"]
    ]
    shots = []
    for camera in CAMERAS:
        shot = info["cams"][camera]
        path = _below_root(shot["data_path"], f"samples/{camera}")
        # mit-han-lab's bevfusion says it in the plural
        told = shot["cam_intrinsic" if "camera_intrinsics" not in shot else "camera_intrinsics"]
        intrinsics = _intrinsics(np.asarray(told, np.float64).reshape(3, 3), camera)
        shots.append(Shot(path, _pose(shot, "sensor2ego"), _pose(shot, "ego2global"), intrinsics))
    points = np.asarray(info.get("num_lidar_pts", ()))
    labels = (
        _labels(
            [str(name) for name in info["gt_names"]],
            info["gt_boxes"],
            info["gt_velocity"],
            np.stack([points, info.get("num_radar_pts", np.zeros_like(points))], 1),
        )
        if "gt_boxes" in info
        else _labels([], [], [], [])
    )
    return Record(_text(info["token"]), _scene(info), keyframe, sweeps, shots, *labels)


def stamped_record(info: Mapping[str, Any], names: Mapping[int, str]) -> Record:
    """Read an entry of `data_list`; errors as in `listed_record`.

    Args:
        info: the entry.
        names: class name of each label; -1 is none of the ten.
    """
    lidar, images = info["lidar_points"], info["images"]
    keyframe = Scan(
        _below_root(lidar["lidar_path"], "samples/LIDAR_TOP"),
        _microseconds(info["timestamp"] * 1e6),
        _pose_of(lidar["lidar2ego"]),
        _pose_of(info["ego2global"]),
    )
    sweeps = [
        Scan(
            _below_root(sweep["lidar_points"]["lidar_path"], "sweeps/LIDAR_TOP"),
            _microseconds(sweep["timestamp"] * 1e6),
            _pose_of(sweep["lidar_points"]["lidar2ego"]),
            _pose_of(sweep["ego2global"]),
        )
        for sweep in info.get("lidar_sweeps", [])
    ]
    lidar_to_global = _matrix(info["ego2global"]) @ _matrix(lidar["lidar2ego"])
    shots = [_stamped_shot(images[camera], camera, lidar_to_global) for camera in CAMERAS]
    boxes = [box for box in info.get("instances", []) if box["bbox_label_3d"] != -1]
    labels = _labels(
        [names[int(box["bbox_label_3d"])] for box in boxes],
        [box["bbox_3d"] for box in boxes],
        [box["velocity"] for box in boxes],
        [(box["num_lidar_pts"], box.get("num_radar_pts", 0)) for box in boxes],
    )
    return Record(_text(info["token"]), _scene(info), keyframe, sweeps, shots, *labels)


def _stamped_shot(image: Mapping[str, Any], camera: str, lidar_to_global: Matrix) -> Shot:
    """Read a camera; its ego pose at exposure is what joins lidar2cam and cam2ego."""
    camera_to_global = lidar_to_global @ np.linalg.inv(_matrix(image["lidar2cam"]))
    ego = camera_to_global @ np.linalg.inv(_matrix(image["cam2ego"]))
    intrinsics = _intrinsics(np.asarray(image["cam2img"], np.float64)[:3, :3], camera)
    path = _below_root(image["img_path"], f"samples/{camera}")
    return Shot(path, _pose_of(image["cam2ego"]), _pose_of(ego), intrinsics)


def _intrinsics(matrix_33: Matrix, camera: str) -> Matrix:
    focal = np.diag(matrix_33)[:2]
    if matrix_33.shape != (3, 3) or not np.isfinite(matrix_33).all() or not (focal > 0).all():
        raise ValueError(f"{camera}: intrinsics {matrix_33.tolist()} are no 3x3 with focal lengths")
    return matrix_33


def _microseconds(value: float) -> int:
    if not 0 <= value < 2**62:
        raise ValueError(f"time {value!s:.40} is no count of microseconds")
    return round(value)


def _scene(info: Mapping[str, Any]) -> str | None:
    return None if info.get("scene_token") is None else _text(info["scene_token"])


def _text(value: object) -> str:
    if not isinstance(value, str) or len(value) > _LONGEST:
        raise ValueError(f"{value!s:.40} is not a short text")
    return value


def _below_root(path: object, folder: str) -> str:
    """Return a path as it is below any dataset root; a bare file name lies in `folder`."""
    path = _text(path)
    parts = PurePosixPath(path.replace("\\", "/")).parts
    starts = [i for i, part in enumerate(parts) if part in ("samples", "sweeps")]
    if starts:
        return "/".join(parts[starts[-1] :])
    if len(parts) != 1:
        raise ValueError(f"path {path!r} lies below neither samples/ nor sweeps/")
    return f"{folder}/{path}"


def _pose(record: Mapping[str, Any], name: str) -> Pose:
    values = [*record[f"{name}_translation"], *record[f"{name}_rotation"]]
    if len(values) != 7:
        raise ValueError(f"{name} has {len(values)} numbers instead of 3 and 4")
    return tuple(float(value) for value in values)


def _matrix(values: Sequence[Sequence[float]] | Matrix) -> Matrix:
    matrix_44 = np.asarray(values, np.float64).reshape(4, 4)
    if not (np.abs(matrix_44) < _FAR).all():  # NaN compares false
        raise ValueError(f"transform {matrix_44.tolist()} holds no numbers")
    return matrix_44


def _pose_of(values: Sequence[Sequence[float]] | Matrix) -> Pose:
    matrix = _matrix(values)
    x, y, z, w = Rotation.from_matrix(matrix[:3, :3]).as_quat()
    return (*matrix[:3, 3].tolist(), float(w), float(x), float(y), float(z))


def _labels(
    names: list[str], boxes: npt.ArrayLike, velocities: npt.ArrayLike, points: npt.ArrayLike
) -> tuple[Floats, Floats, list[str], npt.NDArray[np.int32]]:
    """Return boxes, velocities, names and points of the ten classes."""
    if not names:
        return np.empty((0, 7)), np.empty((0, 2)), [], np.empty((0, 2), np.int32)
    unknown = sorted(set(names) - _UNSCORED - set(CLASSES))
    if unknown:
        raise ValueError(f"class {', '.join(unknown)} is none of {', '.join(CLASSES)}")
    kept = np.array([name in CLASSES for name in names], bool)
    boxes_NF = np.asarray(boxes, np.float64).reshape(len(names), -1)
    if boxes_NF.shape[1] not in (7, 9):
        raise ValueError(f"boxes have {boxes_NF.shape[1]} numbers instead of 7")
    return (
        boxes_NF[kept, :7],
        np.asarray(velocities, np.float64).reshape(len(names), 2)[kept],
        [name for name in names if name in CLASSES],
        np.asarray(points, np.int32).reshape(len(names), 2)[kept],
    )
