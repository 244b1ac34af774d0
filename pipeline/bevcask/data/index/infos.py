"""mmdet3d info files (`nuscenes_infos_val.pkl`) -> the frame index that the raw tables give.

What the files lack: attributes and global boxes (hence no official evaluation), names of scenes
(derived, see `_scene_names`), image sizes (read from the images of the first frame). Boxes lost
roll and pitch when they were written, so their yaw may differ from the tables' by some 0.001 rad.
"""

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from bevcask.catalog import home
from bevcask.data.index.arrays import (
    SCHEMA,
    Arrays,
    Content,
    FrameIndex,
    Precision,
    tokens_to_bytes,
    transforms,
    write_index,
)
from bevcask.data.index.checks import check_sensors, notes_on_boxes, sound_boxes
from bevcask.data.index.info_boxes import NEW, Convention, InfoBoxes, canonical
from bevcask.data.index.info_records import Pose, Record, Scan, listed_record, stamped_record
from bevcask.data.index.pickles import read_pickle
from bevcask.data.index.tables import memoised_digest
from bevcask.errors import ConfigError, DataError
from bevcask.geometry import CAMERAS, CLASSES, pose_matrix
from bevcask.progress import progress_bar

_log = logging.getLogger(__name__)
_SCENE_GAP = 5.0  # seconds; keyframes of a scene follow each other every half second
_CREATE = "Write it with mmdet3d's tools/create_data.py nuscenes."


def open_infos(path: Path, root: Path, version: str, trust: bool) -> FrameIndex:
    """Map the index of an info file, building it first if this file was never seen.

    Args:
        path: the info file, of mmdet3d 0.x or 1.x.
        root: folder with samples/ and sweeps/; paths in the file are taken from there on.
        version: of the dataset, as in the file.
        trust: consent to read a pickle.

    Raises:
        ConfigError: no consent, or the file is of another dataset version.
        DataError: the file is missing, damaged, not an info file, in a mixed box convention, or
            of another root.
    """
    if not trust:
        raise ConfigError(
            f"dataset.infos={path}: an info file is a pickle, and a pickle can run code when it is "
            "read. bevcask reads nothing but arrays and plain values from it; still, if you trust "
            "where it comes from, say dataset.trust_pickle=true."
        )
    if not path.is_file():
        raise DataError(f"dataset.infos={path}: no such file. {_CREATE}")
    content = memoised_digest({"infos": path}, path)
    digest = hashlib.sha256(f"{content} {version}".encode()).hexdigest()
    folder = home() / "index" / f"{digest[:32]}-infos-{SCHEMA}"
    if not (folder / "meta.json").is_file():
        write_index(folder, digest, _read(path, root, version))
    index = FrameIndex(root, version, folder, infos=path)
    _require_root(index)
    return index.announced()


def _read(path: Path, root: Path, version: str) -> Content:
    """Return what the index is written from."""
    _log.info("reading %s; the next time it is not read again", path)
    records, stamped = _records(path, version)
    scene_of = _scene_names(records)
    records = sorted(records, key=lambda record: (scene_of[record.token], record.scan.time))
    scenes = sorted(set(scene_of.values()))
    try:
        tokens = tokens_to_bytes([record.token for record in records])
    except ValueError as error:
        raise DataError(f"{path}: sample tokens are not 32 hex digits ({error}).") from error
    if len(scene_of) != len(records):
        raise DataError(
            f"{path}: {len(records) - len(scene_of)} of its {len(records)} entries repeat a sample "
            f"token. Use the file as it was before resampling. {_CREATE}"
        )
    arrays: Arrays = {
        "frame_token": tokens,
        "frame_scene": np.array([scenes.index(scene_of[r.token]) for r in records], np.int32),
        "frame_time": np.array([record.scan.time for record in records], np.int64),
        **_calibrated(records),
        **_images(records, path, root),
    }
    check_sensors(arrays, path)
    arrays |= transforms(arrays)
    boxes, notes = _boxes(records, path, stamped)
    precision: Precision = "float32" if stamped else "float64"
    return Content(arrays | boxes, scenes, scenes, notes=notes, precision=precision)


def _records(path: Path, version: str) -> tuple[list[Record], Convention | None]:
    """Return every entry, and the box convention that the format implies."""
    content = read_pickle(path)
    keys = set(content) if isinstance(content, dict) else set()
    if {"data_list", "metainfo"} <= keys:
        entries, meta, stamped = content["data_list"], content["metainfo"], NEW
    elif {"infos", "metadata"} <= keys:
        entries, meta, stamped = content["infos"], content["metadata"], None
    else:
        shown = ", ".join(sorted(key for key in keys if isinstance(key, str)))
        raise DataError(
            f"{path}: not an info file of nuScenes: expected a mapping with `infos` and `metadata` "
            f"(mmdet3d 0.x, 1.0.x) or `data_list` and `metainfo` (since 1.1), got "
            f"{type(content).__name__} {shown:.200}. {_CREATE}"
        )
    if not isinstance(meta, dict) or not isinstance(entries, list):
        raise DataError(f"{path}: expected a list of frames and a mapping about them. {_CREATE}")
    if not entries:
        raise DataError(f"{path}: holds no frames. {_CREATE}")
    _check_version(meta.get("version"), path, version)
    labels = meta.get("categories") or {}
    pairs = labels.items() if isinstance(labels, dict) else ()
    names = {label: str(name) for name, label in pairs if isinstance(label, int)}
    records = []
    with progress_bar("index", len(entries)) as bar:
        for number, entry in enumerate(entries):
            read = partial(stamped_record, names=names) if stamped else listed_record
            records.append(_record(read, entry, f"{path}: entry {number}"))
            bar.advance()
    return records, stamped


def _record(read: Callable[[Any], Record], entry: Any, where: str) -> Record:
    try:
        return read(entry)
    except KeyError as error:
        raise DataError(f"{where} has no {error}. {_CREATE}") from error
    except (AttributeError, IndexError, OverflowError, TypeError, ValueError) as error:
        raise DataError(f"{where} is malformed: {error}. {_CREATE}") from error


def _check_version(found: object, path: Path, version: str) -> None:
    """Refuse another version of the dataset; a file that names none is taken at its word."""
    if found is None:
        _log.warning("%s does not say which version it is of; taken for %s", path, version)
    elif not isinstance(found, str):
        raise DataError(f"{path}: metadata.version is no text. {_CREATE}")
    elif found != version:
        raise ConfigError(
            f"dataset.version={version}, but {path} was made from {found!s:.40}: pass "
            f"dataset.version={found!s:.40}, or the info file of {version}."
        )


def _scene_names(records: Sequence[Record]) -> dict[str, str]:
    """Return the scene of every sample token: its token, or LOG__TIME of the first keyframe.

    Without scene tokens a scene starts where the log changes, after a gap, or where the chain of
    sweeps ends (it is shorter than the longest) before it is back at the previous keyframe.
    """
    longest = max(len(record.sweeps) for record in records)
    ordered = sorted(records, key=lambda record: (_log_of(record.scan), record.scan.time))
    names: dict[str, str] = {}
    name, previous = "", None
    for record in ordered:
        if record.scene is not None:
            names[record.token] = record.scene
            continue
        scan = record.scan
        ends = len(record.sweeps) < longest
        oldest = record.sweeps[-1].time if record.sweeps else scan.time
        if (
            previous is None
            or _log_of(scan) != _log_of(previous)
            or scan.time - previous.time > _SCENE_GAP * 1e6
            or (ends and oldest > previous.time)
        ):
            name = f"{_log_of(scan)}__{scan.time}"
        names[record.token] = name
        previous = scan
    return names


def _log_of(scan: Scan) -> str:
    """Return the log a file name starts with: LOG__LIDAR_TOP__TIME.pcd.bin."""
    return Path(scan.path).name.partition("__")[0]


def _calibrated(records: Sequence[Record]) -> Arrays:
    """Return scans, calibrations and poses; what several frames share is stored once."""
    scans = {record.scan.path: record.scan for record in records}
    previous: dict[str, str] = {}
    for record in records:
        for later, earlier in pairwise([record.scan, *record.sweeps]):
            scans.setdefault(earlier.path, earlier)
            previous[later.path] = earlier.path
    row = {path: number for number, path in enumerate(scans)}
    calibrations: dict[tuple[Pose, bytes], int] = {}

    def calibration(mounting: Pose, intrinsics: npt.NDArray[np.float64]) -> int:
        return calibrations.setdefault((mounting, intrinsics.tobytes()), len(calibrations))

    lidar = np.zeros((3, 3))
    arrays: Arrays = {
        "frame_calibration": np.array(
            [
                [
                    calibration(record.scan.mounting, lidar),
                    *(calibration(shot.mounting, shot.intrinsics) for shot in record.shots),
                ]
                for record in records
            ],
            np.int32,
        ),
        "scan_calibration": np.array(
            [calibration(scan.mounting, lidar) for scan in scans.values()], np.int32
        ),
        "frame_ego_pose": np.array([[r.scan.ego, *(s.ego for s in r.shots)] for r in records]),
        "frame_scan": np.array([row[record.scan.path] for record in records], np.int64),
        "scan_path": np.array([path.encode() for path in scans]),
        "scan_time": np.array([scan.time for scan in scans.values()], np.int64),
        "scan_ego_pose": np.array([scan.ego for scan in scans.values()]),
        "scan_previous": np.array(
            [row[previous[path]] if path in previous else -1 for path in scans], np.int64
        ),
    }
    return arrays | {
        "calibration_pose": np.array([mounting for mounting, _ in calibrations]),
        "calibration_intrinsics": np.array(
            [np.frombuffer(intrinsics).reshape(3, 3) for _, intrinsics in calibrations]
        ),
    }


def _images(records: Sequence[Record], path: Path, root: Path) -> Arrays:
    """Return image paths, and sizes as those of the first frame."""
    sizes = [_image_size(root / shot.path, path) for shot in records[0].shots]
    for shot, (height, width) in zip(records[0].shots, sizes, strict=True):
        u, v = shot.intrinsics[0, 2] / width, shot.intrinsics[1, 2] / height
        if not (0.3 < u < 0.7 and 0.3 < v < 0.7):
            raise DataError(
                f"{root / shot.path} is {width}x{height}, but {path} puts its optical axis at "
                f"({shot.intrinsics[0, 2]:.0f}, {shot.intrinsics[1, 2]:.0f}): the images were "
                "resized. Point dataset.root at the original ones."
            )
    return {
        "frame_image": np.array([[shot.path.encode() for shot in r.shots] for r in records]),
        "frame_image_size": np.tile(np.array(sizes, np.int32), (len(records), 1, 1)),
    }


def _image_size(image: Path, path: Path) -> tuple[int, int]:
    try:
        with Image.open(image) as file:
            return file.height, file.width
    except FileNotFoundError:
        raise _other_root(image, path) from None
    except OSError as error:
        raise DataError(f"{image}: not a readable image ({error}).") from error


def _other_root(file: Path, path: Path) -> DataError:
    return DataError(
        f"{file}: no such file, but {path} names it in its first frame. Point dataset.root at the "
        "folder whose samples/ and sweeps/ the info file was made from."
    )


def _require_root(index: FrameIndex) -> None:
    """Refuse a root whose first frame is not there, or has images of other sizes."""
    assert index.infos is not None
    scan = index.root / index["scan_path"][index["frame_scan"][0]].decode()
    if not scan.is_file():
        raise _other_root(scan, index.infos)
    for camera in range(len(CAMERAS)):
        image = index.root / index["frame_image"][0, camera].decode()
        height, width = _image_size(image, index.infos)
        known = tuple(index["frame_image_size"][0, camera].tolist())
        if (height, width) != known:
            raise DataError(
                f"{image}: image is {width}x{height}, expected {known[1]}x{known[0]} as where "
                f"{index.infos} was first read. Point dataset.root at the original images."
            )


def _boxes(
    records: Sequence[Record], path: Path, stamped: Convention | None
) -> tuple[Arrays, list[str]]:
    """Return the boxes of the ten detection classes, frame after frame, and what to say of them."""
    unsound = [
        f"box {number} of sample {record.token}"
        for record in records
        for number in np.flatnonzero(~_sound(record))
    ]
    records = [_without_unsound(record) for record in records] if unsound else records
    counts = [len(record.names) for record in records]
    boxes_N7 = np.concatenate([record.boxes_N7 for record in records])
    names = np.array([name for record in records for name in record.names], str)
    heights = [
        record.boxes_N7[:, :3] @ pose_matrix(p[:3], p[3:])[2, :3] + p[2]
        for record in records
        for p in [record.scan.mounting]
    ]
    velocities_N2 = np.concatenate([record.velocities_N2 for record in records])
    values = canonical(
        InfoBoxes(boxes_N7, velocities_N2, names, np.concatenate(heights)), path, stamped
    )
    points = np.concatenate([record.points_N2 for record in records])
    classes = np.array([CLASSES.index(name) for name in names], np.int64)
    start = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    digests = [
        hashlib.sha256(b"".join(a[i:j].tobytes() for a in (values, classes, points))).digest()
        for i, j in pairwise(start)
    ]
    arrays: Arrays = {
        "frame_box": start,
        "frame_annotations": np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32),
        "box_values": values,
        "box_class": classes,
        "box_num_lidar_points": points[:, 0],
        "box_num_radar_points": points[:, 1],
    }
    return arrays, notes_on_boxes(len(unsound), unsound[0] if unsound else "", arrays)


def _sound(record: Record) -> npt.NDArray[np.bool_]:
    return sound_boxes(record.boxes_N7, record.boxes_N7[:, 3:6])


def _without_unsound(record: Record) -> Record:
    good = _sound(record)
    return replace(
        record,
        boxes_N7=record.boxes_N7[good],
        velocities_N2=record.velocities_N2[good],
        names=[name for name, kept in zip(record.names, good, strict=True) if kept],
        points_N2=record.points_N2[good],
    )
