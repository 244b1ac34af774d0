"""LiDAR: scan files -> motion-compensated points of a keyframe."""

import logging
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bevcask.data.index.frames import Frames
from bevcask.data.virtual import with_virtual
from bevcask.detectors.base import Inputs
from bevcask.errors import DataError
from bevcask.geometry import transform_points

EGO_HALF_SIDE = 1.0
"""Metres. Points with |x| and |y| below it in the sensor frame are hits on the ego car; the same
square as in the devkit's multi-sweep loader and in mmdet3d."""
_BYTES_PER_POINT = 20
_LIMITS = np.array([1e4, 1e4, 1e4, 1e6], np.float32)  # metres, intensity: beyond, no LiDAR saw it
_NAMED_FILES = 3  # a process; more would bury the log
_named: set[Path] = set()
_log = logging.getLogger(__name__)
Points = npt.NDArray[np.float32]


def read_scan(path: Path) -> Points:
    """Read one scan: (P, 4) float32 x, y, z, intensity (0..255) in its sensor frame.

    Points that are NaN, or farther than any LiDAR sees, are left out and counted in the log.

    Raises:
        DataError: the file is missing, is not a whole number of points, or no point is usable.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise DataError(
            f"{path}: missing LiDAR scan, named by sample_data.json or the info file. Unpack the "
            "samples and sweeps archives of this version into dataset.root, or use a detector with "
            "num_sweeps 1 if only keyframes are at hand."
        ) from None
    except OSError as error:
        raise DataError(f"{path}: cannot read LiDAR scan: {error.strerror}.") from error
    if not data or len(data) % _BYTES_PER_POINT:
        raise DataError(
            f"{path}: LiDAR scan of {len(data)} bytes, expected a positive multiple of "
            f"{_BYTES_PER_POINT} (float32 x, y, z, intensity, ring). Copy or download the file "
            "again."
        )
    points_P4 = np.frombuffer(data, np.float32).reshape(-1, 5)[:, :4]
    sound_P = (np.abs(points_P4) <= _LIMITS).all(1)  # NaN compares false
    return points_P4 if sound_P.all() else _without_unsound(path, points_P4, sound_P)


def _without_unsound(path: Path, points_P4: Points, sound_P: npt.NDArray[np.bool_]) -> Points:
    """Return the sound points of a scan and say what was left out.

    Raises:
        DataError: nothing is left.
    """
    row = int(np.argmin(sound_P))
    said = (
        f"{path}: {len(sound_P) - sound_P.sum()} of {len(sound_P)} LiDAR points are NaN or beyond "
        f"10 km (intensity: 1e6), first row {row}: {points_P4[row].tolist()}"
    )
    if not sound_P.any():
        raise DataError(
            f"{said}. Nothing is left. Expected float32 x, y, z (metres), intensity, ring. Copy or "
            "download the file again."
        )
    if path not in _named and len(_named) < _NAMED_FILES:
        _named.add(path)
        more = "; further files are not named" if len(_named) == _NAMED_FILES else ""
        _log.warning("%s; left out%s", said, more)
    return points_P4[sound_P]


def read_points(frames: Frames, token: str, num_sweeps: int, like: Inputs | None = None) -> Points:
    """Read the keyframe's scan and its nearest predecessors in the keyframe's LIDAR_TOP frame.

    Keyframe first, then back in time. By default points on the ego car are removed, and a sweep the
    dataset does not have repeats the keyframe at 0 s, so that density stays familiar. Virtual
    points come last, as they are in their file.

    Args:
        frames: the selection.
        token: sample token.
        num_sweeps: scans including the keyframe.
        like: its `ego_points` and `pad` change that default; its `virtual_points` adds them.

    Returns:
        (P, 5) float32: x, y, z metres, intensity 0..255, seconds before the keyframe (>= 0); with
        virtual points (P, 17), `geometry.VIRTUAL_POINT_FIELDS`.

    Raises:
        ConfigError: virtual points are wanted and the dataset names no folder.
        DataError: a scan or its virtual points are missing or not what they should be.
    """
    rule = like or Inputs()
    scans = frames.scans(token, num_sweeps)
    time = frames.index["scan_time"]
    parts: list[Points] = []
    for scan in scans:
        points = read_scan(frames.root / frames.index["scan_path"][scan].decode())
        whole = rule.ego_points == "keep" or (rule.ego_points == "keyframe" and not parts)
        points = points.copy() if whole else _without_ego(points)
        if scan != scans[0]:
            to_lidar = frames.sweep_to_lidar(token, scan)
            points[:, :3] = transform_points(points[:, :3].astype(np.float64), to_lidar)
        seconds = np.full((len(points), 1), (time[scans[0]] - time[scan]) * 1e-6, np.float32)
        parts.append(np.concatenate([points, seconds], 1))
    if rule.pad == "missing" or (rule.pad == "empty" and len(scans) == 1):
        again = parts[0] if rule.ego_points != "keyframe" else _without_ego(parts[0])
        parts += [again] * (num_sweeps - len(scans))
    points = np.concatenate(parts)
    return with_virtual(points, frames.virtual_points, token) if rule.virtual_points else points


def mention_sweeps(frames: Frames, num_sweeps: int) -> None:
    """Say so where whole scenes have no sweeps, and the keyframe stands in for them."""
    if num_sweeps < 2:
        return
    pairs = zip(frames.tokens, frames.scenes, strict=True)
    swept = {scene for token, scene in pairs if len(frames.scans(token, 2)) > 1}
    scenes = set(frames.scenes)
    if bare := len(scenes - swept):
        _log.warning(
            "%d of %d scenes have keyframes but no LiDAR sweeps: the keyframe is repeated in their "
            "place, %d times in the whole selection.",
            bare,
            len(scenes),
            frames.missing_sweeps(num_sweeps),
        )


def _without_ego(points: Points) -> Points:
    near = (np.abs(points[:, 0]) < EGO_HALF_SIDE) & (np.abs(points[:, 1]) < EGO_HALF_SIDE)
    kept: Points = points[~near]
    return kept
