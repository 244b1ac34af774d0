"""The sensor rig: where the nuScenes sensors sit, how they look, when they fire.

Frames: ego x forward, y left, z up, on the ground under the rear axle; camera x right, y down,
z forward; LiDAR x right, y forward, z up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bevcask.synthetic.world import World

Array = npt.NDArray[Any]

NATIVE_WIDTH = 1600  # the intrinsics below are for 1600 x 900
LIDAR_CHANNEL = "LIDAR_TOP"
SPIN_PERIOD = 0.05


@dataclass(frozen=True)
class Mount:
    """Pose of a sensor on the ego: metres and a quaternion (w, x, y, z), sensor to ego."""

    translation: tuple[float, float, float]
    rotation: tuple[float, float, float, float]

    @property
    def matrix(self) -> Array:
        """Rotation sensor to ego (3, 3)."""
        return quaternion_matrix(self.rotation)


@dataclass(frozen=True)
class CameraMount(Mount):
    """A camera: focal length and principal point in native pixels, delay to the LiDAR in s."""

    focal: float
    centre: tuple[float, float]
    delay: float

    def intrinsic(self, width: int, height: int) -> Array:
        """Camera matrix (3, 3) for an image of `width` x `height` pixels."""
        scale = width / NATIVE_WIDTH
        cx, cy = self.centre
        cy_px = height / 2 + (cy - 450.0) * scale
        return np.array([[self.focal * scale, 0, cx * scale], [0, self.focal * scale, cy_px],
                         [0, 0, 1.0]])  # fmt: skip


def quaternion_matrix(q: tuple[float, float, float, float]) -> Array:
    """Rotation matrix (3, 3) of a quaternion (w, x, y, z)."""
    w, x, y, z = np.asarray(q, np.float64) / np.linalg.norm(q)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def yaw_quaternion(yaw: float) -> tuple[float, float, float, float]:
    """Quaternion (w, x, y, z) of a rotation about z by `yaw` radians."""
    return float(np.cos(yaw / 2)), 0.0, 0.0, float(np.sin(yaw / 2))


def _unit(*q: float) -> tuple[float, float, float, float]:
    w, x, y, z = (float(v) for v in np.asarray(q) / np.linalg.norm(q))
    return w, x, y, z


LIDAR = Mount(
    (0.943713, 0.0, 1.84023),
    _unit(0.7077955119163518, -0.006492242056004365, 0.010646214713995808, -0.7063073142877817),
)
CAMERAS: dict[str, CameraMount] = {
    "CAM_FRONT": CameraMount(
        (1.70079, 0.015946, 1.510958),
        _unit(0.4998015, -0.5030316, 0.4997798, -0.4973708), 1266.4172, (816.267, 491.507), 0.035
    ),
    "CAM_FRONT_RIGHT": CameraMount(
        (1.550848, -0.493405, 1.495748),
        _unit(0.2060348, -0.20269406, 0.68245075, -0.67136109), 1260.8474, (807.968, 495.334), 0.027
    ),
    "CAM_BACK_RIGHT": CameraMount(
        (1.014878, -0.480568, 1.562395),
        _unit(0.1228098, -0.13240084, -0.70043058, 0.69049603), 1259.5137, (807.253, 501.196), 0.019
    ),
    "CAM_BACK": CameraMount(
        (0.028326, 0.003451, 1.579103),
        _unit(0.50378727, -0.49740249, -0.49418502, 0.50454961), 809.2210, (829.220, 481.778), 0.010
    ),
    "CAM_BACK_LEFT": CameraMount(
        (1.035691, 0.484795, 1.59097),
        _unit(0.69241856, -0.70316194, -0.11648342, 0.11203317), 1256.7414, (792.113, 492.776), 0.0
    ),
    "CAM_FRONT_LEFT": CameraMount(
        (1.523878, 0.494631, 1.509328),
        _unit(0.6757265, -0.67362665, 0.21214015, -0.21122827), 1272.5979, (826.615, 479.752), 0.042
    ),
}  # fmt: skip


def sensor_pose(world: World, mount: Mount, t: float) -> tuple[Array, Array]:
    """Sensor to global at time `t`: rotation (3, 3) and position (3,), metres."""
    position, yaw = world.ego_pose(t)
    turn = quaternion_matrix(yaw_quaternion(yaw))
    return turn @ mount.matrix, position + turn @ np.asarray(mount.translation)
