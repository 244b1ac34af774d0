"""LiDAR boxes of mmdet3d info files: which of two conventions they follow, and ours from either.

mmdet3d redefined them at v1.0.0rc0 (its compatibility notes, "Coordinate system refactoring"):

    before   x, y, z, w, l, h, yaw: 0 along -y, growing clockwise
    since    x, y, z, l, w, h, yaw: 0 along +x, growing counter-clockwise

z is the centre of the box in the files of both; only mmdet3d's own box structures move it to the
bottom. Old files carry no stamp, so geometry decides, and a file it contradicts is refused.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from bevcask.data.labels import Floats
from bevcask.errors import DataError

Convention = Literal["before v1.0.0rc0", "since v1.0.0rc0"]
OLD: Convention = "before v1.0.0rc0"
NEW: Convention = "since v1.0.0rc0"

_LONG = ("car", "truck", "bus", "motorcycle", "bicycle")  # longer than wide, each and every one
_DRIVING = 2.0  # m/s; faster than this a vehicle points where it goes
_MIN_DRIVING = 3
_NEAR = 20.0  # metres; the ground is flat enough
_MIN_NEAR = 5
_CURE = (
    "Write the info file again with one version of mmdet3d (tools/create_data.py), or convert it "
    "once with its tools/update_data_coords.py."
)


@dataclass(frozen=True)
class InfoBoxes:
    """Boxes as a file has them, LIDAR_TOP frame, metres, all frames in one.

    Attributes:
        values_N7: centre, two horizontal sizes, height, yaw.
        velocities_N2: m/s; NaN where unknown.
        names_N: detection class.
        heights_N: of the centre above the ground plane of the ego frame.
    """

    values_N7: Floats
    velocities_N2: Floats
    names_N: npt.NDArray[np.str_]
    heights_N: Floats

    def headings(self, convention: Convention) -> Floats:
        """Return our yaw if the boxes follow a convention, radians."""
        yaw = self.values_N7[:, 6]
        return -yaw - np.pi / 2 if convention == OLD else yaw


def canonical(
    boxes: InfoBoxes, path: Path, stamped: Convention | None = None
) -> npt.NDArray[np.float32]:
    """Return boxes (N, 9) float32, `geometry.BOX_FIELDS`.

    Args:
        boxes: of a whole file.
        path: of the file, for messages.
        stamped: the convention that the format of the file implies, if it implies one.

    Raises:
        DataError: sizes, yaw, heights and format contradict each other, or nothing tells.
    """
    convention = _decide(boxes, path, stamped)
    _require_centres(boxes, path)
    out_N9 = np.empty((len(boxes.values_N7), 9))
    out_N9[:, :6] = boxes.values_N7[:, [0, 1, 2, 4, 3, 5] if convention == OLD else range(6)]
    yaw = boxes.headings(convention)
    out_N9[:, 6] = np.arctan2(np.sin(yaw), np.cos(yaw))
    out_N9[:, 7:] = np.nan_to_num(boxes.velocities_N2)
    return out_N9.astype(np.float32)


def _decide(boxes: InfoBoxes, path: Path, stamped: Convention | None) -> Convention:
    sizes, yaw = _by_sizes(boxes, path), _by_yaw(boxes, path)
    if sizes and yaw and sizes != yaw:
        raise DataError(
            f"{path}: the sizes of its boxes are ordered as mmdet3d did {sizes}, but their yaw is "
            f"measured as {yaw}: one was converted without the other. {_CURE}"
        )
    found = sizes or yaw
    if found and stamped and found != stamped:
        raise DataError(
            f"{path}: its format is that of mmdet3d {stamped} (x, y, z, l, w, h, yaw), but its "
            f"boxes are those of mmdet3d {found} (x, y, z, w, l, h, yaw clockwise from -y): infos "
            "of before the coordinate refactoring were put into the new format without turning "
            f"the boxes. {_CURE}"
        )
    decided = found or stamped
    if decided is None:
        if not len(boxes.values_N7):
            return NEW
        raise DataError(
            f"{path}: cannot tell whether its {len(boxes.values_N7)} boxes follow mmdet3d {OLD} "
            f"or {NEW}: none is a {', '.join(_LONG)}. Use an info file with more frames."
        )
    return decided


def _by_sizes(boxes: InfoBoxes, path: Path) -> Convention | None:
    """Tell by which horizontal size of road users comes first, the longer or the shorter."""
    sizes = boxes.values_N7[np.isin(boxes.names_N, _LONG)]
    if not len(sizes):
        return None
    longer_first = float((sizes[:, 3] > sizes[:, 4]).mean())
    if 0.1 < longer_first < 0.9:
        raise DataError(
            f"{path}: {longer_first:.0%} of its {len(sizes)} road users have the longer side "
            f"first, the others second; mmdet3d {OLD} wrote w, l, h and {NEW} l, w, h, so boxes of "
            f"both were mixed. {_CURE}"
        )
    return NEW if longer_first >= 0.9 else OLD


def _by_yaw(boxes: InfoBoxes, path: Path) -> Convention | None:
    """Tell by which reading of yaw points driving vehicles where they drive."""
    speeds = np.hypot(*boxes.velocities_N2.T)
    driving = np.isin(boxes.names_N, _LONG) & (speeds > _DRIVING)  # NaN compares false
    if driving.sum() < _MIN_DRIVING:
        return None
    direction = np.arctan2(boxes.velocities_N2[driving, 1], boxes.velocities_N2[driving, 0])
    conventions: tuple[Convention, ...] = (OLD, NEW)
    agreement = {
        name: float(np.cos(boxes.headings(name)[driving] - direction).mean())
        for name in conventions
    }
    best, other = sorted(conventions, key=agreement.__getitem__, reverse=True)
    if agreement[best] < 0.8:
        raise DataError(
            f"{path}: {driving.sum()} vehicles drive faster than {_DRIVING:g} m/s, and neither "
            "reading of yaw points them where they drive (mean cosine "
            + ", ".join(f"{value:.2f} as {name}" for name, value in agreement.items())
            + f"; expected above 0.8). {_CURE}"
        )
    return best if agreement[best] - agreement[other] > 0.2 else None


def _require_centres(boxes: InfoBoxes, path: Path) -> None:
    """Refuse boxes whose z is the bottom: those of cars nearby stand at 0 above the ground."""
    near = (boxes.names_N == "car") & (np.hypot(*boxes.values_N7[:, :2].T) < _NEAR)
    if near.sum() < _MIN_NEAR:
        return
    level = float(np.median(boxes.heights_N[near] / boxes.values_N7[near, 5]))
    if not 0.25 < level < 0.75:
        raise DataError(
            f"{path}: z of its {near.sum()} cars within {_NEAR:g} m is {level:.2f} of their height "
            "above the ground, expected 0.5, the centre. 0 means boxes taken from mmdet3d's "
            f"LiDARInstance3DBoxes, whose z is the bottom. {_CURE}"
        )
