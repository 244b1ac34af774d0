"""Frames, grids and boxes: the only file that knows axis order.

Frame: LIDAR_TOP of the keyframe, x right, y forward, z up, metres. Yaw 0 points along +x and grows
counter-clockwise, radians. A box is (x, y, z, l, w, h, yaw, vx, vy): centre, length along the
heading, width, height, velocity in m/s. BEV arrays end in `[..., Y, X]`, both rising with metres,
values at cell centres. A 4x4 called `a_to_b` maps column points of frame a to frame b.

Shape letters used across the package: B batch, V cameras, C channels, H W image, Y X BEV,
Q queries, N boxes, P points, K classes, D depth bins.

Functions that take "array" work on numpy arrays and torch tensors alike and return the same sort.
"""

import functools
import math
import sys
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from bevcask.errors import ConfigError

CLASSES = (
    "car",
    "truck",
    "construction_vehicle",
    "bus",
    "trailer",
    "barrier",
    "motorcycle",
    "bicycle",
    "pedestrian",
    "traffic_cone",
)
CAMERAS = (
    "CAM_FRONT_LEFT",
    "CAM_FRONT",
    "CAM_FRONT_RIGHT",
    "CAM_BACK_LEFT",
    "CAM_BACK",
    "CAM_BACK_RIGHT",
)
BOX_FIELDS = ("x", "y", "z", "l", "w", "h", "yaw", "vx", "vy")
POINT_FIELDS = ("x", "y", "z", "intensity", "seconds")
"""Metres; intensity 0..255; seconds before the keyframe."""
VIRTUAL_POINT_FIELDS = (*POINT_FIELDS, *CLASSES, "score", "virtual")
"""Of detectors that see virtual points too. The score of each class and that of the detection a
point comes from, 0..1; `virtual` is 0 or 1. Points of the scans are 0 in all twelve."""

Array = TypeVar("Array")  # numpy.ndarray or torch.Tensor
Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Grid:
    """A BEV grid in the LIDAR_TOP frame.

    Attributes:
        x_min: lower border along x, metres.
        y_min: lower border along y, metres.
        cell: side of a square cell, metres.
        num_x: cells along x.
        num_y: cells along y.
    """

    x_min: float
    y_min: float
    cell: float
    num_x: int
    num_y: int

    @classmethod
    def square(cls, half_extent: float, cell: float) -> "Grid":
        """Return the grid over [-half_extent, half_extent] in x and y.

        >>> Grid.square(51.2, 0.8).shape_YX
        (128, 128)

        Raises:
            ConfigError: there is no cell in it.
        """
        num = round(2 * half_extent / cell)
        if num < 1:
            raise ConfigError(f"half_extent {half_extent} is less than a cell of {cell}")
        return cls(-half_extent, -half_extent, cell, num, num)

    @property
    def shape_YX(self) -> tuple[int, int]:
        return self.num_y, self.num_x

    @property
    def x_max(self) -> float:
        return self.x_min + self.num_x * self.cell

    @property
    def y_max(self) -> float:
        return self.y_min + self.num_y * self.cell

    @property
    def is_symmetric(self) -> bool:
        """True if flips and (for square grids) quarter turns about the origin permute the cells."""
        tolerance = 1e-6 * self.cell
        return abs(self.x_min + self.x_max) < tolerance and abs(self.y_min + self.y_max) < tolerance

    def coarsen(self, factor: int) -> "Grid":
        """Return the grid whose cells are `factor` times larger."""
        if self.num_x % factor or self.num_y % factor:
            raise ValueError(f"{self.shape_YX} cells do not divide by {factor}")
        return Grid(
            self.x_min,
            self.y_min,
            self.cell * factor,
            self.num_x // factor,
            self.num_y // factor,
        )

    def centres(self) -> npt.NDArray[np.float64]:
        """Return the (x, y) of every cell centre, float64 (Y, X, 2), metres."""
        x_X = self.x_min + (np.arange(self.num_x) + 0.5) * self.cell
        y_Y = self.y_min + (np.arange(self.num_y) + 0.5) * self.cell
        return np.stack(np.meshgrid(x_X, y_Y, indexing="xy"), axis=-1)

    def to_cells(self, xy: Array) -> Array:
        """Map metres (..., 2) (x, y) to continuous cells (column, row); centre of cell 0 is 0.5.

        Rounded alike on every device, so that a point falls into one cell.
        """
        values: Any = xy
        corner = constant((self.x_min, self.y_min), values)
        return (values - corner) / divisor(self.cell, values)  # type: ignore[no-any-return]


def divisor(number: float, values: Any) -> Any:
    """Return what to divide values by: of a tensor a tensor, scalar.

    CUDA multiplies by the rounded reciprocal of a Python number, and a quotient at the border of a
    cell then falls on its other side.
    """
    return constant(number, values) if _is_torch(values) else number


def constant(numbers: Any, like: Array) -> Array:
    """Return numbers as an array of the library, dtype and device of another. Never write to it.

    A tensor is made once and kept: copying numbers to a device, the host would wait for all that
    the device has yet to do.

    Args:
        numbers: one, or (nested) tuples of them.
        like: numpy array or tensor.
    """
    values: Any = like
    if _is_torch(values):
        made: Array = _kept(numbers, values.dtype, values.device)
    else:
        plain: Any = np.asarray(numbers, dtype=values.dtype)
        made = plain
    return made


@functools.lru_cache(maxsize=1024)
def _kept(numbers: Any, dtype: Any, device: Any) -> Any:
    torch = sys.modules["torch"]
    with torch.inference_mode(False):  # or no gradient could pass it later
        return torch.tensor(numbers, dtype=dtype, device=device)


@functools.lru_cache(maxsize=64)
def centres_on(grid: Grid, device: Any) -> Any:
    """Return `Grid.centres` as a float64 tensor that is made once; see `constant`."""
    torch = sys.modules["torch"]
    with torch.inference_mode(False):
        return torch.as_tensor(grid.centres()).to(device)


def _is_torch(array: Any) -> bool:
    return type(array).__module__.partition(".")[0] == "torch"


def _namespace(array: Any) -> Any:
    return sys.modules["torch"] if _is_torch(array) else np


def _like(matrix: Any, array: Any) -> Any:
    """Bring a matrix to the array's library, dtype and device."""
    if _is_torch(array):
        torch = sys.modules["torch"]
        return torch.as_tensor(matrix, dtype=array.dtype).to(array.device, non_blocking=True)
    return np.asarray(matrix, dtype=array.dtype)


def quaternion_to_matrix(quaternion_wxyz: npt.ArrayLike) -> Matrix:
    """Return the 3x3 rotation of a unit quaternion (w, x, y, z)."""
    w, x, y, z = np.asarray(quaternion_wxyz, dtype=np.float64) / np.linalg.norm(quaternion_wxyz)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def pose_matrix(translation: npt.ArrayLike, quaternion_wxyz: npt.ArrayLike) -> Matrix:
    """Return the 4x4 child_to_parent of a nuScenes pose (metres, unit quaternion wxyz)."""
    matrix = np.eye(4)
    matrix[:3, :3] = quaternion_to_matrix(quaternion_wxyz)
    matrix[:3, 3] = translation
    return matrix


def bev_matrix(
    rotation: float = 0.0, scale: float = 1.0, flip_x: bool = False, flip_y: bool = False
) -> Matrix:
    """Return the 4x4 canonical_to_augmented of a BEV augmentation: rotate, scale, then flip.

    Args:
        rotation: about z, counter-clockwise radians.
        scale: uniform in x, y, z.
        flip_x: x becomes -x.
        flip_y: y becomes -y.
    """
    c, s = math.cos(rotation), math.sin(rotation)
    matrix = np.diag([scale, scale, scale, 1.0]) @ np.array(
        [[c, -s, 0, 0], [s, c, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]
    )
    flips = np.diag([-1.0 if flip_x else 1.0, -1.0 if flip_y else 1.0, 1.0, 1.0])
    augmented: Matrix = flips @ matrix
    return augmented


def ego_motion(
    now_aug: Matrix, now_to_global: Matrix, then_to_global: Matrix, then_aug: Matrix
) -> Matrix:
    """Return the transform from an earlier augmented frame to the current augmented one.

    Args:
        now_aug: canonical LIDAR_TOP -> augmented of the current frame, (..., 4, 4).
        now_to_global: canonical LIDAR_TOP -> global of the current frame.
        then_to_global: the same of the earlier frame.
        then_aug: canonical -> augmented of the earlier frame.

    Returns:
        now_aug inv(now_to_global) then_to_global inv(then_aug): apply it to points of the earlier
        augmented frame. Compute it in float64: global coordinates are kilometres.
    """
    canonical = np.linalg.inv(now_to_global) @ then_to_global
    motion: Matrix = now_aug @ canonical @ np.linalg.inv(then_aug)
    return motion


def transform_points(points: Array, a_to_b: Any) -> Array:
    """Map points (..., 3 or more) by a 4x4; columns after the third (intensity, time) stay."""
    values: Any = points
    xp = _namespace(values)
    matrix = _like(a_to_b, values)
    xyz = values[..., :3] @ matrix[:3, :3].T + matrix[:3, 3]
    if values.shape[-1] == 3:
        return xyz  # type: ignore[no-any-return]
    return xp.concatenate([xyz, values[..., 3:]], -1)  # type: ignore[no-any-return]


def transform_boxes(boxes: Array, a_to_b: Any) -> Array:
    """Map boxes (..., 9) by a similarity whose rotation is about z (flips allowed).

    Sizes and velocities scale, headings rotate or reflect.

    Args:
        boxes: (..., 9) float, `BOX_FIELDS`, frame a.
        a_to_b: 4x4: rotation about z, uniform scale, flips in x and y, translation.
    """
    values: Any = boxes
    xp = _namespace(values)
    scale = abs(a_to_b[0, 0] * a_to_b[1, 1] - a_to_b[0, 1] * a_to_b[1, 0]) ** 0.5
    if not _is_torch(a_to_b):
        scale = float(scale)
    matrix = _like(a_to_b, values)
    plane = matrix[:2, :2]
    centre = values[..., :3] @ matrix[:3, :3].T + matrix[:3, 3]
    heading = xp.stack([xp.cos(values[..., 6]), xp.sin(values[..., 6])], -1) @ plane.T
    yaw = xp.arctan2(heading[..., 1], heading[..., 0])[..., None]
    velocity = values[..., 7:9] @ plane.T
    return xp.concatenate(  # type: ignore[no-any-return]
        [centre, values[..., 3:6] * scale, yaw, velocity], -1
    )


def box_corners_bev(boxes: Array) -> Array:
    """Return the four footprint corners (..., 4, 2) of boxes (..., 9), counter-clockwise."""
    values: Any = boxes
    xp = _namespace(values)
    along = xp.stack([xp.cos(values[..., 6]), xp.sin(values[..., 6])], -1) * values[..., 3:4] / 2
    across = xp.stack([-xp.sin(values[..., 6]), xp.cos(values[..., 6])], -1) * values[..., 4:5] / 2
    centre = values[..., :2]
    corners = [along + across, -along + across, -along - across, along - across]
    return xp.stack([centre + corner for corner in corners], -2)  # type: ignore[no-any-return]


def inside_footprints(xy: Array, boxes: Array) -> Array:
    """Tell which points lie in which footprint: (M, 2) points, (N, 9) boxes -> (M, N) bool."""
    points: Any = xy
    values: Any = boxes
    xp = _namespace(values)
    offset = points[:, None] - values[None, :, :2]
    c, s = xp.cos(values[:, 6]), xp.sin(values[:, 6])
    along = offset[..., 0] * c + offset[..., 1] * s
    across = -offset[..., 0] * s + offset[..., 1] * c
    return (abs(along) <= values[:, 3] / 2) & (abs(across) <= values[:, 4] / 2)  # type: ignore[no-any-return]
