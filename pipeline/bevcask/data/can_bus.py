"""What BEVFormer's network is told of the ego car: where it stands, how it turns and accelerates.

Poses are those of the tables. Accelerations, rates and speed are from nuScenes' CAN bus expansion,
`can_bus/SCENE_pose.json` below the dataset's root, and zero where it is not.
"""

import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bevcask.data.index.arrays import FrameIndex
from bevcask.errors import DataError
from bevcask.geometry import pose_matrix

CAN_BUS_FIELDS = 18
_log = logging.getLogger(__name__)
_READ = ("accel", "rotation_rate", "vel")
_MESSAGE = slice(7, 16)
Floats = npt.NDArray[np.float64]


class CanBus:
    """The 18 numbers of each frame of an index; cheap to pickle into workers.

    As the released loader of BEVFormer makes them, before it takes differences: 0:3 ego position,
    global metres; 3:7 the w of the ego quaternion, four times; 7:16 of the CAN bus' first `pose`
    message after the frame, the last where none is: acceleration (ego axes, gravity included,
    m/s2), rotation rate (rad/s), velocity (m/s); 16 and 17 yaw of the ego, radians in [0, 2 pi)
    and degrees. The pose is that at LIDAR_TOP's exposure.
    """

    def __init__(self, index: FrameIndex) -> None:
        self._index = index
        self._messages: dict[int, Floats] = {}

    def values(self, row: int) -> Floats:
        """Return the numbers of a row of the index, float64 (18,).

        Raises:
            DataError: the file of its scene is not what the expansion holds.
        """
        pose = self._index["frame_ego_pose"][row, 0]
        values = np.zeros(CAN_BUS_FIELDS)
        values[:3], values[3:7] = pose[:3], pose[3]
        first, messages = self._of_scene(int(self._index["frame_scene"][row]))
        if messages is not None:
            values[_MESSAGE] = messages[row - first]
        degrees = _yaw(pose) / math.pi * 180  # degrees and back, in the order of the release
        degrees += 360 if degrees < 0 else 0
        values[16:] = degrees / 180 * math.pi, degrees
        return values

    def without(self, rows: Sequence[int] | npt.NDArray[np.int64]) -> int:
        """Return how many of some rows are of scenes without messages."""
        scenes = self._index["frame_scene"][np.asarray(rows)]
        bare = [scene for scene in np.unique(scenes) if self._of_scene(int(scene))[1] is None]
        return int(np.isin(scenes, bare).sum())

    def _of_scene(self, scene: int) -> tuple[int, Floats | None]:
        """Return the first row of a scene, and the messages of its frames (n, 9) if there are."""
        first, end = np.searchsorted(self._index["frame_scene"], [scene, scene + 1])
        if scene not in self._messages:
            path = self._index.root / "can_bus" / f"{self._index.titles[scene]}_pose.json"
            self._messages[scene] = _read(path, self._index["frame_time"][first:end])
        found = self._messages[scene]
        return int(first), found if len(found) else None


def mention_can_bus(index: FrameIndex, rows: npt.NDArray[np.int64]) -> None:
    """Say so where frames have no CAN bus messages, and zeros stand in for them."""
    if bare := CanBus(index).without(rows):
        _log.warning(
            "%d of %d frames have no CAN bus messages below %s: zeros stand in for acceleration, "
            "rotation rate and velocity, as in the release of BEVFormer. Unpack nuScenes' CAN bus "
            "expansion there to have them.",
            bare,
            len(rows),
            index.root / "can_bus",
        )


def _yaw(pose: Floats) -> float:
    rotation = pose_matrix(pose[:3], pose[3:])
    return math.atan2(rotation[1, 0], rotation[0, 0])


def _read(path: Path, microseconds_n: npt.NDArray[np.int64]) -> Floats:
    """Return what is read of the message of each time (n, 9); (0, 9) without messages.

    Raises:
        DataError: the file cannot be read, or a message lacks a value.
    """
    try:
        found: Any = json.loads(path.read_bytes()) if path.is_file() else []
        times = np.array([message["utime"] for message in found], np.int64)
        values = np.array(
            [[number for name in _READ for number in message[name]] for message in found],
            np.float64,
        ).reshape(len(times), _MESSAGE.stop - _MESSAGE.start)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: cannot be read as CAN bus messages ({type(error).__name__}: {error!s:.100}). "
            f"Expected a list of messages with utime (microseconds) and {', '.join(_READ)} of "
            "three numbers each. Unpack the CAN bus expansion again, or remove the file: zeros "
            "stand in then."
        ) from error
    if not np.isfinite(values).all():
        raise DataError(
            f"{path}: holds values that are not finite. Unpack the CAN bus expansion again."
        )
    if not len(times):
        return values
    later = times[None] > microseconds_n[:, None]
    first = np.where(later.any(axis=1), later.argmax(axis=1), len(times) - 1)
    chosen: Floats = values[first]
    return chosen
