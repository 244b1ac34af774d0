"""Rays against unit primitives; the same code serves cameras and LiDAR.

Everything happens in a part's own frame, where a box is [-1, 1]^3, an ellipsoid the unit ball and
a frustum has radius 1 at z = -1 and `taper` at z = 1. The map to that frame is affine, so the
ray parameter t keeps its meaning (metres or camera depth).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bevcask.synthetic.shapes import BOX, ELLIPSOID, FRUSTUM
from bevcask.synthetic.world import World

Array = npt.NDArray[Any]


FILM = 0.0125  # parts with a smaller half size, metres, only have a colour: no echo, no shadow
# Corners of a box; the bits of the index are the signs along (x, y, z).
CORNERS_83 = np.array([[1.0 if k >> i & 1 else -1.0 for i in range(3)] for k in range(8)])


@dataclass(frozen=True)
class PosedParts:
    """Parts in the global frame at one time.

    Attributes:
        centre_P3: metres.
        rotation_P33: part frame to global frame.
        half_P3: metres.
    """

    centre_P3: Array
    rotation_P33: Array
    half_P3: Array


def yaw_matrices(yaw_N: Array) -> Array:
    """Rotations about z (N, 3, 3) by `yaw_N` radians."""
    cos, sin = np.cos(yaw_N), np.sin(yaw_N)
    zero, one = np.zeros_like(cos), np.ones_like(cos)
    rows = [np.stack(r, -1) for r in ((cos, -sin, zero), (sin, cos, zero), (zero, zero, one))]
    return np.stack(rows, -2)


def pose_parts(world: World, t_N: Array | float) -> PosedParts:
    """Move the parts of every entity to its pose at `t_N`, seconds (one time, or one per entity).

    Parts of absent entities are put far away.
    """
    xy_N2, yaw_N, alive_N = world.poses(t_N)
    xy_N2 = np.where(alive_N[:, None], xy_N2, -1e5)
    turn_N33 = yaw_matrices(yaw_N)
    owner = world.parts.owner_P
    turn_P33 = turn_N33[owner]
    centre = np.einsum("pij,pj->pi", turn_P33, world.parts.centre_P3)
    centre[:, :2] += xy_N2[owner]
    return PosedParts(centre, turn_P33 @ world.parts.rotation_P33, world.parts.half_P3)


def intersect(kind: int, taper: float | Array, origin: list[Array], ray: list[Array]) -> Array:
    """First hit of rays with one kind of primitive.

    Args:
        kind: `BOX`, `ELLIPSOID` or `FRUSTUM`.
        taper: top radius of the frustum.
        origin: x, y, z of the ray origins in the part frame; broadcast against `ray`.
        ray: x, y, z of the ray directions in the part frame.

    Returns:
        t of the first hit in front of the origin, inf where there is none.
    """
    if kind == BOX:
        return _box(origin, ray)
    if kind == ELLIPSOID:
        return _ball(origin, ray)
    return _frustum(taper, origin, ray)


def division_by_zero_is_inf() -> Any:
    """Context in which `intersect` runs: rays parallel to a face divide by zero on purpose."""
    return np.errstate(divide="ignore", invalid="ignore", over="ignore")


def _box(origin: list[Array], ray: list[Array]) -> Array:
    near: Array | None = None
    far: Array | None = None
    for o, d in zip(origin, ray, strict=True):
        inverse = 1.0 / d
        entry, leave = (-1.0 - o) * inverse, (1.0 - o) * inverse
        low, high = np.minimum(entry, leave), np.maximum(entry, leave)
        near = low if near is None else np.maximum(near, low)
        far = high if far is None else np.minimum(far, high)
    assert near is not None
    assert far is not None
    return np.where((near <= far) & (near > 0), near, np.inf)


def _ball(origin: list[Array], ray: list[Array]) -> Array:
    (ox, oy, oz), (dx, dy, dz) = origin, ray
    a = dx * dx + dy * dy + dz * dz
    b = ox * dx + oy * dy + oz * dz
    c = ox * ox + oy * oy + oz * oz - 1.0
    root: Array = b * b - a * c
    t = (-b - np.sqrt(np.maximum(root, 0))) / a
    return np.where((root >= 0) & (t > 0), t, np.inf)


def _frustum(taper: float | Array, origin: list[Array], ray: list[Array]) -> Array:
    (ox, oy, oz), (dx, dy, dz) = origin, ray
    middle, slope = (1.0 + taper) / 2, (taper - 1.0) / 2
    radius = middle + slope * oz
    a = dx * dx + dy * dy - slope * slope * dz * dz
    b = ox * dx + oy * dy - slope * dz * radius
    c = ox * ox + oy * oy - radius * radius
    root = b * b - a * c
    t = (-b - np.sqrt(np.maximum(root, 0))) / a
    side = np.where((root >= 0) & (t > 0) & (np.abs(oz + t * dz) <= 1), t, np.inf)
    end = np.copysign(np.float32(1), oz)
    t = (end - oz) / dz
    x, y, reach = ox + t * dx, oy + t * dy, middle + slope * end
    cap = np.where((t > 0) & (np.abs(oz) > 1) & (x * x + y * y <= reach * reach), t, np.inf)
    return np.minimum(side, cap)


def curved_normals(kind_M: Array, taper_M: Array, point_M3: Array, half_M3: Array) -> Array:
    """Outward unit normals (M, 3), part frame, of ellipsoids and frustums.

    Args:
        kind_M: `ELLIPSOID` or `FRUSTUM`.
        taper_M: top radius of the frustums.
        point_M3: points on the surfaces, unit coordinates.
        half_M3: scale of the parts, metres.
    """
    slope = (taper_M - 1.0) / 2
    radius = (1.0 + taper_M) / 2 + slope * point_M3[:, 2]
    normal = point_M3.copy()
    tube = kind_M == FRUSTUM
    normal[tube, 2] = (-slope * radius)[tube]
    cap = tube & (np.abs(point_M3[:, 2]) >= 0.998)
    normal[cap] = np.array([0, 0, 1.0]) * np.sign(point_M3[cap, 2:3])
    normal /= half_M3
    return np.asarray(normal / np.linalg.norm(normal, axis=1, keepdims=True))
