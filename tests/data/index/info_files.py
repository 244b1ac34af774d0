"""Writes mmdet3d info files from a devkit, after the format's documentation; knows no bevcask.

The documentation: "Create info file" in mmdet3d's nuScenes guide for the keys, its compatibility
notes for the two box conventions, the comments of `update_infos_to_v2` for `data_list`.
"""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
from nuscenes.eval.detection.utils import category_to_detection_name
from nuscenes.nuscenes import NuScenes
from pyquaternion import Quaternion

CLASSES = (
    "car", "truck", "trailer", "bus", "construction_vehicle", "bicycle", "motorcycle",
    "pedestrian", "traffic_cone", "barrier",
)  # fmt: skip
CAMERAS = (
    "CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_FRONT_LEFT", "CAM_BACK", "CAM_BACK_LEFT", "CAM_BACK_RIGHT",
)  # fmt: skip
Info = dict[str, Any]


def listed(devkit: NuScenes, old: bool, prefix: str = "./data/nuscenes", sweeps: int = 10) -> Info:
    """Return `infos` as mmdet3d 0.x (old) or 1.0.x wrote them."""
    infos = [_entry(devkit, sample, old, prefix, sweeps) for sample in devkit.sample]
    return {"infos": infos, "metadata": {"version": devkit.version}}


def stamped(devkit: NuScenes, old: bool = False) -> Info:
    """Return `data_list` as mmdet3d since 1.1 writes it; old: from boxes nobody turned."""
    entries = [_upgraded(number, info) for number, info in enumerate(listed(devkit, old)["infos"])]
    categories = {name: label for label, name in enumerate(CLASSES)} | {"animal": -1}
    meta = {"categories": categories, "dataset": "nuscenes", "info_version": "1.1"}
    return {"metainfo": meta | {"version": devkit.version}, "data_list": entries}


def write(path: Path, content: Any, protocol: int = 2) -> Path:
    path.write_bytes(pickle.dumps(content, protocol))
    return path


def _entry(devkit: NuScenes, sample: Info, old: bool, prefix: str, num_sweeps: int) -> Info:
    record = devkit.get("sample_data", sample["data"]["LIDAR_TOP"])
    lidar, sweeps = _sensor(devkit, record, record, prefix), []
    earlier = record
    while earlier["prev"] and len(sweeps) < num_sweeps:
        earlier = devkit.get("sample_data", earlier["prev"])
        sweeps.append(_sensor(devkit, earlier, record, prefix) | {"type": "lidar"})
    cams = {}
    for camera in CAMERAS:
        shot = devkit.get("sample_data", sample["data"][camera])
        mounting = devkit.get("calibrated_sensor", shot["calibrated_sensor_token"])
        cams[camera] = _sensor(devkit, shot, record, prefix) | {
            "type": camera,
            "cam_intrinsic": np.array(mounting["camera_intrinsic"]),
        }
    return {
        "lidar_path": lidar["data_path"],
        "token": sample["token"],
        "sweeps": sweeps,
        "cams": cams,
        "lidar2ego_translation": lidar["sensor2ego_translation"],
        "lidar2ego_rotation": lidar["sensor2ego_rotation"],
        "ego2global_translation": lidar["ego2global_translation"],
        "ego2global_rotation": lidar["ego2global_rotation"],
        "timestamp": sample["timestamp"],
        **_annotations(devkit, sample, old),
    }


def _pose(record: Info) -> np.ndarray:
    matrix = Quaternion(record["rotation"]).transformation_matrix
    matrix[:3, 3] = record["translation"]
    return matrix


def _to_global(devkit: NuScenes, record: Info) -> np.ndarray:
    mounting = devkit.get("calibrated_sensor", record["calibrated_sensor_token"])
    return _pose(devkit.get("ego_pose", record["ego_pose_token"])) @ _pose(mounting)


def _sensor(devkit: NuScenes, record: Info, lidar: Info, prefix: str) -> Info:
    mounting = devkit.get("calibrated_sensor", record["calibrated_sensor_token"])
    ego = devkit.get("ego_pose", record["ego_pose_token"])
    to_lidar = np.linalg.inv(_to_global(devkit, lidar)) @ _to_global(devkit, record)
    return {
        "data_path": f"{prefix}/{record['filename']}",
        "sample_data_token": record["token"],
        "sensor2ego_translation": mounting["translation"],
        "sensor2ego_rotation": mounting["rotation"],
        "ego2global_translation": ego["translation"],
        "ego2global_rotation": ego["rotation"],
        "timestamp": record["timestamp"],
        "sensor2lidar_rotation": to_lidar[:3, :3],
        "sensor2lidar_translation": to_lidar[:3, 3],
    }


def _annotations(devkit: NuScenes, sample: Info, old: bool) -> Info:
    _, boxes, _ = devkit.get_sample_data(sample["data"]["LIDAR_TOP"])
    records = [devkit.get("sample_annotation", box.token) for box in boxes]
    lidar = devkit.get("sample_data", sample["data"]["LIDAR_TOP"])
    to_lidar = np.linalg.inv(_to_global(devkit, lidar))[:3, :3]
    rows, velocities = [], []
    for box in boxes:
        width, length, height = box.wlh
        yaw = box.orientation.yaw_pitch_roll[0]
        shape = (width, length, height, -yaw - np.pi / 2) if old else (length, width, height, yaw)
        rows.append([*box.center, *shape])
        velocities.append((to_lidar @ [*devkit.box_velocity(box.token)[:2], 0])[:2])
    points = {
        key: np.array([record[key] for record in records], int)
        for key in ("num_lidar_pts", "num_radar_pts")
    }
    return {
        "gt_boxes": np.array(rows).reshape(-1, 7),
        "gt_names": np.array([category_to_detection_name(b.name) or b.name for b in boxes]),
        "gt_velocity": np.array(velocities).reshape(-1, 2),
        **points,
        "valid_flag": sum(points.values()) > 0,
    }


def _rounded(matrix: np.ndarray) -> list[list[float]]:
    return matrix.astype(np.float32).tolist()


def _matrix(info: Info, name: str) -> list[list[float]]:
    parts = {key: info[f"{name}_{key}"] for key in ("translation", "rotation")}
    return _rounded(_pose(parts))


def _from_lidar(sensor: Info) -> list[list[float]]:
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = (
        sensor["sensor2lidar_rotation"],
        sensor["sensor2lidar_translation"],
    )
    return _rounded(np.linalg.inv(matrix))


def _upgraded(number: int, info: Info) -> Info:
    return {
        "sample_idx": number,
        "token": info["token"],
        "timestamp": info["timestamp"] / 1e6,
        "ego2global": _matrix(info, "ego2global"),
        "lidar_points": {
            "num_pts_feats": 5,
            "lidar_path": Path(info["lidar_path"]).name,
            "lidar2ego": _matrix(info, "lidar2ego"),
        },
        "lidar_sweeps": [
            {
                "timestamp": sweep["timestamp"] / 1e6,
                "ego2global": _matrix(sweep, "ego2global"),
                "sample_data_token": sweep["sample_data_token"],
                "lidar_points": {
                    "lidar_path": sweep["data_path"],
                    "lidar2ego": _matrix(sweep, "sensor2ego"),
                    "lidar2sensor": _from_lidar(sweep),
                },
            }
            for sweep in info["sweeps"]
        ],
        "images": {
            camera: {
                "img_path": Path(shot["data_path"]).name,
                "cam2img": shot["cam_intrinsic"].tolist(),
                "cam2ego": _matrix(shot, "sensor2ego"),
                "lidar2cam": _from_lidar(shot),
                "sample_data_token": shot["sample_data_token"],
                "timestamp": shot["timestamp"] / 1e6,
            }
            for camera, shot in info["cams"].items()
        },
        "instances": [_instance(info, i) for i in range(len(info["gt_names"]))],
    }


def _instance(info: Info, i: int) -> Info:
    name = info["gt_names"][i]
    label = CLASSES.index(name) if name in CLASSES else -1
    return {
        "bbox_label": label,
        "bbox_3d": info["gt_boxes"][i].tolist(),
        "bbox_3d_isvalid": info["valid_flag"][i],
        "bbox_label_3d": label,
        "num_lidar_pts": info["num_lidar_pts"][i],
        "num_radar_pts": info["num_radar_pts"][i],
        "velocity": info["gt_velocity"][i].tolist(),
    }
