"""The frame index: what loading a frame takes, built once with the devkit, then memory-mapped.

One folder of `.npy` files per content of the tables, shared by every process that opens it. The
devkit is imported only while building. `infos.py` builds the same index from mmdet3d's info files.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bevcask.catalog import home
from bevcask.data.index.tables import tables_digest, unwritable
from bevcask.data.labels import canonical_boxes
from bevcask.errors import DataError
from bevcask.geometry import CAMERAS, CLASSES, pose_matrix

if TYPE_CHECKING:
    from nuscenes.nuscenes import NuScenes

SCHEMA = 1
SENSORS = ("LIDAR_TOP", *CAMERAS)
Arrays = dict[str, npt.NDArray[Any]]


class FrameIndex:
    """Read-only arrays over every keyframe of a dataset version.

    Rows are sorted by scene name, then time. Poses are (x, y, z, qw, qx, qy, qz), metres. n frames,
    s LIDAR_TOP scans (keyframes and sweeps), m calibrations, N boxes:

    - `frame_token` (n, 16) uint8; `frame_scene` (n,) into `scenes`; `frame_time` (n,) microseconds
    - `frame_calibration` (n, 7) into `calibration_*`, `frame_ego_pose` (n, 7, 7): per `SENSORS`
    - `frame_camera_to_lidar` (n, 6, 4, 4), `frame_lidar_to_global` (n, 4, 4), float64
    - `frame_image` (n, 6) path, `frame_image_size` (n, 6, 2) height, width
    - `frame_scan` (n,) into `scan_*`; `frame_box` (n + 1,) where a frame's boxes start
    - `scan_path`, `scan_time` (s,) microseconds, `scan_calibration` (s,) into `calibration_*`,
      `scan_ego_pose` (s, 7), `scan_previous` (s,), -1 where the chain starts
    - `calibration_pose` (m, 7), `calibration_intrinsics` (m, 3, 3)
    - `box_values` (N, 9) float32 in the frame's LIDAR_TOP, `box_class`, `box_num_lidar_points`,
      `box_num_radar_points` (N,); `frame_annotations` (n, 32) sha256 of a frame's annotation
      records in the global frame, so that it depends on no calibration or pose
    """

    def __init__(self, root: Path, version: str, folder: Path, infos: Path | None = None) -> None:
        """Map the arrays of an index folder.

        Args:
            root: folder that `frame_image` and `scan_path` start from.
            version: of the dataset.
            folder: what `write_index` wrote.
            infos: the info file the index was built from; None: the tables.

        Raises:
            DataError: an array is damaged.
        """
        self.root = root
        self.version = version
        self.folder = folder
        self.infos = infos
        meta = json.loads((folder / "meta.json").read_text())
        self.digest: str = meta["digest"]
        self.scenes: list[str] = meta["scenes"]
        self.splits: dict[str, list[str]] = meta["splits"]
        try:
            self._arrays: Arrays = {
                name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
                for name in meta["arrays"]
            }
        except (OSError, EOFError, ValueError) as error:
            raise DataError(
                f"{folder}: damaged frame index ({error}). Delete this folder; it is built again."
            ) from error

    @classmethod
    def open(cls, root: str | Path, version: str, rehash: bool = False) -> "FrameIndex":
        """Map the index of a dataset, building it first if these tables were never seen.

        Args:
            root: folder with samples/, maps/ and the version folder.
            version: name of the folder with the tables.
            rehash: hash the tables even if size, mtime and inode are unchanged.

        Raises:
            DataError: a table or map mask is missing or unreadable, or a keyframe lacks a sensor.
        """
        root = Path(root)
        digest = tables_digest(root, version, rehash)
        folder = home() / "index" / f"{digest[:32]}-{SCHEMA}"
        if not (folder / "meta.json").is_file():
            write_index(folder, digest, *_read(_devkit(root, version)))
        return cls(root, version, folder)

    @property
    def source(self) -> Path:
        """What describes the frames, for messages: the folder of the tables, or the info file."""
        return self.infos or self.root / self.version

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        return self._arrays[name]

    def __len__(self) -> int:
        return len(self["frame_token"])

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.root, self.version, self.folder, self.infos)


def write_index(
    folder: Path, digest: str, arrays: Arrays, scenes: list[str], splits: dict[str, list[str]]
) -> None:
    """Write an index folder in one rename; arrays and scenes as in `FrameIndex`.

    Raises:
        DataError: the folder cannot be written.
    """
    meta = {"digest": digest, "scenes": scenes, "splits": splits, "arrays": sorted(arrays)}
    partial = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for name, array in arrays.items():
            np.save(partial / f"{name}.npy", array)
        (partial / "meta.json").write_text(json.dumps(meta))
        _synchronise(partial)
        partial.rename(folder)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        if not (folder / "meta.json").is_file():  # else another process built it meanwhile
            raise unwritable(folder, error) from error


def _synchronise(folder: Path) -> None:
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())


def _devkit(root: Path, version: str) -> "NuScenes":
    """Load the tables with the unpatched devkit; what it asserts becomes a DataError."""
    from nuscenes.nuscenes import NuScenes

    where = root / version
    try:
        _require_map_masks(root, where / "map.json")
        return NuScenes(version=version, dataroot=str(root), verbose=False)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{where}: a table is not valid JSON ({error}); it was probably cut short. "
            "Unpack the metadata archive again."
        ) from error
    except KeyError as error:
        raise DataError(
            f"{where}: the tables do not belong together: no record or field {error}. "
            "Unpack the metadata archive again."
        ) from error


def _require_map_masks(root: Path, table: Path) -> None:
    paths = [root / record["filename"] for record in json.loads(table.read_text())]
    missing = [str(path) for path in paths if not path.is_file()]
    if missing:
        raise DataError(
            f"missing map mask {', '.join(missing)}, named by {table}; the devkit needs it. "
            "Unpack the maps/ folder of the dataset into dataset.root."
        )


def _read(nusc: "NuScenes") -> tuple[Arrays, list[str], dict[str, list[str]]]:
    """Return the arrays, the scene names and the devkit's splits restricted to them."""
    from nuscenes.utils.splits import create_splits_scenes

    names = {record["token"]: record["name"] for record in nusc.scene}
    scenes = sorted(names.values())
    number = {name: i for i, name in enumerate(scenes)}
    samples = sorted(nusc.sample, key=lambda s: (names[s["scene_token"]], s["timestamp"]))
    _require_sensors(nusc, samples)
    splits = {
        split: [name for name in members if name in number]
        for split, members in create_splits_scenes().items()
    }
    arrays: Arrays = {
        "frame_token": tokens_to_bytes([s["token"] for s in samples]),
        "frame_scene": np.array([number[names[s["scene_token"]]] for s in samples], np.int32),
        "frame_time": np.array([s["timestamp"] for s in samples], np.int64),
        **_calibrations(nusc),
        **_scans(nusc, samples),
        **_sensors(nusc, samples),
    }
    arrays |= _boxes(nusc, samples, arrays["frame_lidar_to_global"])
    return arrays, scenes, splits


def tokens_to_bytes(tokens: list[str]) -> npt.NDArray[np.uint8]:
    """Return 32-digit hexadecimal tokens as (n, 16) uint8."""
    return np.frombuffer(bytes.fromhex("".join(tokens)), np.uint8).reshape(-1, 16)


def _require_sensors(nusc: "NuScenes", samples: list[dict[str, Any]]) -> None:
    gaps = [
        f"sample {sample['token']} has no {', '.join(absent)}"
        for sample in samples
        if (absent := [sensor for sensor in SENSORS if sensor not in sample["data"]])
    ]
    if gaps:
        raise DataError(
            f"{nusc.table_root}/sample_data.json: {len(gaps)} of {len(samples)} keyframes lack a "
            f"sensor: {'; '.join(gaps[:3])}. Expected a keyframe record for each of "
            f"{', '.join(SENSORS)}."
        )


def _pose(record: Mapping[str, Any]) -> list[float]:
    return [*record["translation"], *record["rotation"]]


def _matrix(record: Mapping[str, Any]) -> npt.NDArray[np.float64]:
    return pose_matrix(record["translation"], record["rotation"])


def _calibrations(nusc: "NuScenes") -> Arrays:
    intrinsics = np.zeros((len(nusc.calibrated_sensor), 3, 3))
    for row, record in enumerate(nusc.calibrated_sensor):
        if record["camera_intrinsic"]:
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
    """Return calibration, ego pose, images and derived transforms of each frame."""
    n, v = len(samples), len(CAMERAS)
    calibration = np.empty((n, v + 1), np.int32)
    ego_pose = np.empty((n, v + 1, 7))
    to_global = np.empty((n, v + 1, 4, 4))
    size = np.empty((n, v, 2), np.int32)
    image: list[list[bytes]] = []
    for i, sample in enumerate(samples):
        records = [nusc.get("sample_data", sample["data"][sensor]) for sensor in SENSORS]
        for k, record in enumerate(records):
            mounting = nusc.get("calibrated_sensor", record["calibrated_sensor_token"])
            ego = nusc.get("ego_pose", record["ego_pose_token"])
            calibration[i, k] = nusc.getind("calibrated_sensor", mounting["token"])
            ego_pose[i, k] = _pose(ego)
            to_global[i, k] = _matrix(ego) @ _matrix(mounting)
        size[i] = [(record["height"], record["width"]) for record in records[1:]]
        image.append([record["filename"].encode() for record in records[1:]])
    lidar_to_global = to_global[:, 0]
    return {
        "frame_calibration": calibration,
        "frame_ego_pose": ego_pose,
        "frame_lidar_to_global": lidar_to_global,
        "frame_camera_to_lidar": np.linalg.inv(lidar_to_global)[:, None] @ to_global[:, 1:],
        "frame_image": np.array(image).reshape(n, v),
        "frame_image_size": size,
    }


def _boxes(
    nusc: "NuScenes", samples: list[dict[str, Any]], lidar_to_global_N44: npt.NDArray[np.float64]
) -> Arrays:
    """Return the boxes of the ten detection classes, frame after frame."""
    from nuscenes.eval.detection.utils import category_to_detection_name

    start = np.zeros(len(samples) + 1, np.int64)
    values: list[npt.NDArray[np.float32]] = [np.empty((0, 9), np.float32)]
    classes: list[int] = []
    points: list[tuple[int, int]] = []
    digests = np.empty((len(samples), 32), np.uint8)
    for i, sample in enumerate(samples):
        rows = []
        first = len(classes)
        for token in sample["anns"]:
            record = nusc.get("sample_annotation", token)
            name = category_to_detection_name(record["category_name"])
            if name is not None:
                rows.append(
                    [*_pose(record), *record["size"], *nusc.box_velocity(token)],
                )
                classes.append(CLASSES.index(name))
                points.append((record["num_lidar_pts"], record["num_radar_pts"]))
        start[i + 1] = len(classes)
        table = np.array(rows, np.float64).reshape(-1, 13)
        text = repr((table.tolist(), classes[first:], points[first:]))
        digests[i] = np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8)
        values.append(
            canonical_boxes(
                table[:, :3],
                table[:, 7:10],
                table[:, 3:7],
                table[:, 10:],
                np.linalg.inv(lidar_to_global_N44[i]),
            )
        )
    counts = np.array(points, np.int32).reshape(-1, 2)
    return {
        "frame_box": start,
        "frame_annotations": digests,
        "box_values": np.concatenate(values),
        "box_class": np.array(classes, np.int64),
        "box_num_lidar_points": counts[:, 0],
        "box_num_radar_points": counts[:, 1],
    }
