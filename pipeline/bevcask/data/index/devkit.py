"""The raw tables, read once with the unpatched devkit: what an index is written from."""

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bevcask.data.index.arrays import SENSORS, Arrays, Content, tokens_to_bytes, transforms
from bevcask.data.index.checks import check_sensors, notes_on_boxes, sound_boxes
from bevcask.data.index.diagnosis import diagnose
from bevcask.data.labels import canonical_boxes
from bevcask.errors import BevcaskError, DataError
from bevcask.geometry import CAMERAS, CLASSES
from bevcask.progress import Ticker, progress_bar

if TYPE_CHECKING:
    from nuscenes.nuscenes import NuScenes

_log = logging.getLogger(__name__)
_COUNTS = ("num_lidar_pts", "num_radar_pts")


def read_tables(root: Path, version: str) -> Content:
    """Read every keyframe of a dataset version.

    Raises:
        DataError: a table or map mask is missing, a keyframe lacks a sensor, or a record is not
            what it should be; table, record and field are named.
    """
    from nuscenes.nuscenes import NuScenes

    where = root / version
    _log.info("reading the tables in %s; the next time they are not read again", where)
    try:
        _require_map_masks(root, where / "map.json")
        return _read(NuScenes(version=version, dataroot=str(root), verbose=False), where)
    except BevcaskError:
        raise
    except json.JSONDecodeError as error:
        raise DataError(
            f"{where}: a table is not valid JSON ({error}); it was probably cut short. "
            "Unpack the metadata archive again."
        ) from error
    except (AttributeError, LookupError, TypeError, ValueError, OverflowError) as error:
        raise diagnose(where, error) from error


def _require_map_masks(root: Path, table: Path) -> None:
    paths = [root / record["filename"] for record in json.loads(table.read_text())]
    missing = [str(path) for path in paths if not path.is_file()]
    if missing:
        raise DataError(
            f"missing map mask {', '.join(missing)}, named by {table}; the devkit needs it. "
            "Unpack the maps/ folder of the dataset into dataset.root."
        )


def _read(nusc: "NuScenes", where: Path) -> Content:
    """Return the arrays, the scenes, and the devkit's splits restricted to them."""
    from nuscenes.utils.splits import create_splits_scenes

    names = _scene_names(nusc.scene)
    title_of = {names[record["token"]]: str(record["name"]) for record in nusc.scene}
    scenes = sorted(title_of)
    number = {name: i for i, name in enumerate(scenes)}
    samples = sorted(nusc.sample, key=lambda s: (names[s["scene_token"]], s["timestamp"]))
    tokens = [sample["token"] for sample in samples]
    if len(set(tokens)) < len(tokens):
        raise diagnose(where, ValueError("sample.json repeats tokens"))
    _require_sensors(nusc, samples)
    known = set(title_of.values())
    splits = {
        split: [title for title in members if title in known]
        for split, members in create_splits_scenes().items()
    }
    arrays: Arrays = {
        "frame_token": tokens_to_bytes(tokens),
        "frame_scene": np.array([number[names[s["scene_token"]]] for s in samples], np.int32),
        "frame_time": np.array([s["timestamp"] for s in samples], np.int64),
        **_calibrations(nusc),
        **_scans(nusc, samples),
        **_sensors(nusc, samples),
    }
    check_sensors(arrays, where)
    arrays |= transforms(arrays)
    with progress_bar("index", len(samples)) as bar:
        boxes, notes = _boxes(nusc, samples, arrays["frame_lidar_to_global"], bar)
    return Content(arrays | boxes, scenes, [title_of[name] for name in scenes], splits, notes)


def _scene_names(records: list[dict[str, Any]]) -> dict[str, str]:
    """Return a name of its own for every scene token: its name, where several share it with it."""
    names = [str(record["name"]) for record in records]
    return {
        record["token"]: name if names.count(name) == 1 else f"{name}@{record['token'][:8]}"
        for record, name in zip(records, names, strict=True)
    }


def _require_sensors(nusc: "NuScenes", samples: list[dict[str, Any]]) -> None:
    gaps = [
        f"sample {sample['token']} has no {', '.join(absent)}"
        for sample in samples
        if (absent := [sensor for sensor in SENSORS if sensor not in sample["data"]])
    ]
    if gaps:
        channels = sorted({str(record["channel"]) for record in nusc.sensor})
        raise DataError(
            f"{nusc.table_root}/sample_data.json: {len(gaps)} of {len(samples)} keyframes lack a "
            f"sensor: {'; '.join(gaps[:3])}. Expected a keyframe record for each of "
            f"{', '.join(SENSORS)}; sensor.json has the channels {', '.join(channels)}. Rename "
            "channels that are called otherwise; a rig with fewer cameras is not supported."
        )


def _pose(record: Mapping[str, Any]) -> list[float]:
    return [*record["translation"], *record["rotation"]]


def _calibrations(nusc: "NuScenes") -> Arrays:
    intrinsics = np.zeros((len(nusc.calibrated_sensor), 3, 3))
    for row, record in enumerate(nusc.calibrated_sensor):
        if record.get("camera_intrinsic"):
            intrinsics[row] = record["camera_intrinsic"]
    return {
        "calibration_pose": np.array([_pose(r) for r in nusc.calibrated_sensor], np.float64),
        "calibration_intrinsics": intrinsics,
    }


def _scans(nusc: "NuScenes", samples: list[dict[str, Any]]) -> Arrays:
    """Return every LIDAR_TOP scan, keyframe or sweep, and which one each frame is."""
    records = [record for record in nusc.sample_data if record["channel"] == "LIDAR_TOP"]
    row = {record["token"]: i for i, record in enumerate(records)}
    egos = [nusc.get("ego_pose", record["ego_pose_token"]) for record in records]
    mountings = [
        nusc.getind("calibrated_sensor", record["calibrated_sensor_token"]) for record in records
    ]
    return {
        "scan_path": np.array([record["filename"].encode() for record in records]),
        "scan_time": np.array([record["timestamp"] for record in records], np.int64),
        "scan_calibration": np.array(mountings, np.int32),
        "scan_ego_pose": np.array([_pose(ego) for ego in egos], np.float64),
        "scan_previous": np.array([row.get(record["prev"], -1) for record in records], np.int64),
        "frame_scan": np.array([row[s["data"]["LIDAR_TOP"]] for s in samples], np.int64),
    }


def _sensors(nusc: "NuScenes", samples: list[dict[str, Any]]) -> Arrays:
    """Return calibration, ego pose and images of each frame."""
    n, v = len(samples), len(CAMERAS)
    calibration = np.empty((n, v + 1), np.int32)
    ego_pose = np.empty((n, v + 1, 7))
    size = np.zeros((n, v, 2), np.int32)
    image: list[list[bytes]] = []
    for i, sample in enumerate(samples):
        records = [nusc.get("sample_data", sample["data"][sensor]) for sensor in SENSORS]
        for k, record in enumerate(records):
            calibration[i, k] = nusc.getind("calibrated_sensor", record["calibrated_sensor_token"])
            ego_pose[i, k] = _pose(nusc.get("ego_pose", record["ego_pose_token"]))
        size[i] = [(record.get("height") or 0, record.get("width") or 0) for record in records[1:]]
        image.append([record["filename"].encode() for record in records[1:]])
    return {
        "frame_calibration": calibration,
        "frame_ego_pose": ego_pose,
        "frame_image": np.array(image).reshape(n, v),
        "frame_image_size": size,
    }


def _boxes(
    nusc: "NuScenes",
    samples: list[dict[str, Any]],
    lidar_to_global_N44: npt.NDArray[np.float64],
    bar: Ticker,
) -> tuple[Arrays, list[str]]:
    """Return the boxes of the ten detection classes, frame after frame, and what to say of them."""
    start = np.zeros(len(samples) + 1, np.int64)
    values: list[npt.NDArray[np.float32]] = [np.empty((0, 9), np.float32)]
    classes: list[int] = []
    points: list[tuple[int, ...]] = []
    digests = np.empty((len(samples), 32), np.uint8)
    unsound: list[str] = []
    counts = [name for name in _COUNTS if any(name in r for r in nusc.sample_annotation)]
    for i, sample in enumerate(samples):
        table, records = _annotations(nusc, sample, unsound)
        first = len(classes)
        classes += [CLASSES.index(name) for name, _ in records]
        points += [tuple(r[name] if name in counts else 0 for name in _COUNTS) for _, r in records]
        start[i + 1] = len(classes)
        text = repr((table.tolist(), classes[first:], points[first:]))
        digests[i] = np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8)
        to_lidar = np.linalg.inv(lidar_to_global_N44[i])
        values.append(
            canonical_boxes(table[:, :3], table[:, 7:10], table[:, 3:7], table[:, 10:], to_lidar)
        )
        bar.advance()
    columns = np.array(points, np.int32).reshape(-1, 2)
    arrays: Arrays = {
        "frame_box": start,
        "frame_annotations": digests,
        "box_values": np.concatenate(values),
        "box_class": np.array(classes, np.int64),
        "box_num_lidar_points": columns[:, 0],
        "box_num_radar_points": columns[:, 1],
    }
    notes = notes_on_boxes(len(unsound), f"annotation {unsound[0]}" if unsound else "", arrays)
    if nusc.sample_annotation and not classes and not unsound:
        categories = sorted({str(record["name"]) for record in nusc.category})
        notes.append(
            f"none of its {len(nusc.sample_annotation)} annotations is of the ten detection "
            f"classes; category.json has {', '.join(categories[:10])}, expected nuScenes' own "
            "names (vehicle.car, ...)"
        )
    return arrays, notes


def _annotations(
    nusc: "NuScenes", sample: Mapping[str, Any], unsound: list[str]
) -> tuple[npt.NDArray[np.float64], list[tuple[str, Mapping[str, Any]]]]:
    """Return pose, size and velocity of a frame's boxes (N, 13), and their class and record.

    Tokens of those that are no boxes are added to `unsound`.
    """
    from nuscenes.eval.detection.utils import category_to_detection_name

    rows, records = [], []
    for token in sample["anns"]:
        record = nusc.get("sample_annotation", token)
        name = category_to_detection_name(record["category_name"])
        if name is not None:
            rows.append([*_pose(record), *record["size"], *nusc.box_velocity(token)])
            records.append((name, record))
    table = np.array(rows, np.float64).reshape(-1, 13)
    heading = np.linalg.norm(table[:, 3:7], axis=1) > 0
    sound = sound_boxes(table[:, :7], table[:, 7:10]) & heading
    unsound += [
        record["token"] for (_, record), good in zip(records, sound, strict=True) if not good
    ]
    return table[sound], [pair for pair, good in zip(records, sound, strict=True) if good]
