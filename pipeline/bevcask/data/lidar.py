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
SHARED_SWEEPS = 32 * 2**20
"""Bytes of scans a process keeps where neighbouring frames share sweeps: 48 of nuScenes."""
_NAMED_FILES = 3  # a process; more would bury the log
_named: set[Path] = set()
_log = logging.getLogger(__name__)
Points = npt.NDArray[np.float32]


def read_scan(path: Path) -> Points:
    """Read one scan: (P, 5) float32 x, y, z, intensity (0..255), ring in its sensor frame.

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
    points_P5 = np.frombuffer(data, np.float32).reshape(-1, 5)
    columns = zip(points_P5.T[:4], _LIMITS, strict=True)
    if all(np.abs(column_P).max() <= limit for column_P, limit in columns):  # NaN compares false
        return points_P5
    return _without_unsound(path, points_P5)


def _without_unsound(path: Path, points_P5: Points) -> Points:
    """Return the sound points of a scan and say what was left out.

    Raises:
        DataError: nothing is left.
    """
    sound_P = (np.abs(points_P5[:, :4]) <= _LIMITS).all(1)
    row = int(np.argmin(sound_P))
    said = (
        f"{path}: {len(sound_P) - sound_P.sum()} of {len(sound_P)} LiDAR points are NaN or beyond "
        f"10 km (intensity: 1e6), first row {row}: {points_P5[row, :4].tolist()}"
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
    kept: Points = points_P5[sound_P]
    return kept


class Scans:
    """Reads scans and keeps the latest of them: the last one, and more up to so many bytes.

    A keyframe gives points and pixels, and neighbouring frames share sweeps; what is kept is not
    read again. It stays behind where this is pickled.
    """

    def __init__(self, limit: int = 0) -> None:
        self._limit = limit
        self._bytes = 0
        self._kept: dict[Path, Points] = {}

    def __reduce__(self) -> tuple[type["Scans"], tuple[int]]:
        return Scans, (self._limit,)

    def read(self, path: Path) -> Points:
        """Return a scan; see `read_scan`. It is shared: write nothing into it."""
        points_P5 = self._kept.pop(path, None)
        if points_P5 is None:
            points_P5 = read_scan(path)
            self._bytes += points_P5.nbytes
        self._kept[path] = points_P5
        while self._bytes > self._limit and len(self._kept) > 1:
            self._bytes -= self._kept.pop(next(iter(self._kept))).nbytes
        return points_P5


def read_points(
    frames: Frames,
    token: str,
    num_sweeps: int,
    like: Inputs | None = None,
    scans: Scans | None = None,
) -> Points:
    """Read the keyframe's scan and its nearest predecessors in the keyframe's LIDAR_TOP frame.

    Keyframe first, then back in time. By default points on the ego car are removed, and a sweep the
    dataset does not have repeats the keyframe at 0 s, so that density stays familiar. Virtual
    points come last, as they are in their file.

    Args:
        frames: the selection.
        token: sample token.
        num_sweeps: scans including the keyframe.
        like: its `ego_points` and `pad` change that default; its `virtual_points` adds them.
        scans: keeps scans from one call to the next.

    Returns:
        (P, 5) float32: x, y, z metres, intensity 0..255, seconds before the keyframe (>= 0); with
        virtual points (P, 17), `geometry.VIRTUAL_POINT_FIELDS`.

    Raises:
        ConfigError: virtual points are wanted and the dataset names no folder.
        DataError: a scan or its virtual points are missing or not what they should be.
    """
    rule, scans = like or Inputs(), scans or Scans()
    chain, index = frames.scans(token, num_sweeps), frames.index
    read = {row: scans.read(frames.root / index["scan_path"][row].decode()) for row in chain}
    padded = rule.pad == "missing" or (rule.pad == "empty" and len(chain) == 1)
    shown = chain + chain[:1] * (num_sweeps - len(chain) if padded else 0)
    whole = {"keep": len(shown), "keyframe": 1, "drop": 0}[rule.ego_points]
    kept = [_rows(read[row], place < whole) for place, row in enumerate(shown)]
    points = np.empty((sum(map(len, kept)), 5), np.float32)
    ends = np.cumsum([len(rows) for rows in kept])
    for row, rows, part in zip(shown, kept, np.split(points, ends[:-1]), strict=True):
        np.take(read[row], rows, axis=0, out=part, mode="clip")
        if row != chain[0]:
            to_lidar = frames.sweep_to_lidar(token, row)
            part[:, :3] = transform_points(part[:, :3].astype(np.float64), to_lidar)
        part[:, 4] = (index["scan_time"][chain[0]] - index["scan_time"][row]) * 1e-6
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


def _rows(points: Points, whole: bool) -> npt.NDArray[np.intp]:
    """Return which points of a scan are shown: all, or those off the ego car."""
    if whole:
        return np.arange(len(points))
    x_P, y_P = np.abs(points[:, 0]), np.abs(points[:, 1])
    return np.flatnonzero((x_P >= EGO_HALF_SIDE) | (y_P >= EGO_HALF_SIDE))
