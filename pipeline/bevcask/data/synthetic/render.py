"""Camera images: exact ray casting of the parts inside their outlines, a depth buffer, one sun."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bevcask.data.synthetic.ground import SHADOW, Ground
from bevcask.data.synthetic.raycast import PosedParts, intersect, local_normals, pose_parts
from bevcask.data.synthetic.sensors import CameraMount, sensor_pose
from bevcask.data.synthetic.shapes import WINDOWS
from bevcask.data.synthetic.world import World

Array = npt.NDArray[Any]

NEAR = 0.15
FAR = 140.0
FOG = 260.0
GRAIN_PER_METRE = 60.0
# The 12 edges of a box whose corners are numbered by the bits of (x, y, z).
_EDGES = np.array([(a, a | b) for b in (1, 2, 4) for a in range(8) if not a & b])
_CORNERS = np.array([[1 if k >> i & 1 else -1 for i in range(3)] for k in range(8)], np.float64)


@dataclass(frozen=True)
class View:
    """What one camera saw.

    Attributes:
        image_HW3: uint8 RGB.
        depth_HW: metres along the optical axis, inf for sky.
        entity_HW: index of the entity each pixel shows, -1 for ground and sky.
        visible_N: pixels of each entity that are seen.
        outline_N: pixels it would cover if nothing stood in front of it.
    """

    image_HW3: Array
    depth_HW: Array
    entity_HW: Array
    visible_N: Array
    outline_N: Array


@dataclass
class _Buffers:
    depth_HW: Array
    part_HW: Array


def _outlines(
    posed: PosedParts, R: Array, eye: Array, K: Array, shape: tuple[int, int]
) -> tuple[Array, Array]:
    """Pixel rectangles (P, 4) x0, y0, x1, y1 that hold each part, and nearest depths (P)."""
    corners = np.einsum("pij,pcj->pci", posed.rotation_P33, _CORNERS[None] * posed.half_P3[:, None])
    corners = (corners + posed.centre_P3[:, None] - eye) @ R
    a, b = corners[:, _EDGES[:, 0]], corners[:, _EDGES[:, 1]]
    with np.errstate(divide="ignore", invalid="ignore"):
        cut = np.clip((NEAR - a[..., 2]) / (b[..., 2] - a[..., 2]), 0, 1)
    cut = np.nan_to_num(cut)
    crossing = a + (b - a) * cut[..., None]
    points = np.concatenate([corners, crossing], axis=1)
    ahead = points[..., 2] >= NEAR * 0.999
    z = np.maximum(points[..., 2], NEAR * 0.5)
    u = points[..., 0] / z * K[0, 0] + K[0, 2]
    v = points[..., 1] / z * K[1, 1] + K[1, 2]
    height, width = shape
    low_u, low_v = np.where(ahead, u, np.inf).min(1), np.where(ahead, v, np.inf).min(1)
    high_u, high_v = np.where(ahead, u, -np.inf).max(1), np.where(ahead, v, -np.inf).max(1)
    bounds = [
        np.clip(np.floor(low_u), 0, width), np.clip(np.floor(low_v), 0, height),
        np.clip(np.ceil(high_u) + 1, 0, width), np.clip(np.ceil(high_v) + 1, 0, height),
    ]  # fmt: skip
    depth = np.where(ahead, points[..., 2], np.inf).min(1)
    return np.stack(bounds, axis=1).astype(np.int64), depth


def _into_part(posed: PosedParts, p: int, R: Array, eye: Array) -> tuple[Array, Array]:
    """Camera rays to the frame of part `p`: matrix (3, 3) for directions, origin (3,)."""
    scale = posed.rotation_P33[p].T / posed.half_P3[p][:, None]
    return (scale @ R).astype(np.float32), (scale @ (eye - posed.centre_P3[p])).astype(np.float32)


def _rasterise(
    world: World, posed: PosedParts, R: Array, eye: Array, K: Array, buffers: _Buffers
) -> Array:
    """Fill the buffers with every part; returns the outline pixel count per entity."""
    height, width = buffers.depth_HW.shape
    rects, depths = _outlines(posed, R, eye, K, (height, width))
    seen = (rects[:, 2] > rects[:, 0]) & (rects[:, 3] > rects[:, 1]) & (depths < FAR)
    ray_u = ((np.arange(width) + 0.5 - K[0, 2]) / K[0, 0]).astype(np.float32)
    ray_v = ((np.arange(height) + 0.5 - K[1, 2]) / K[1, 1]).astype(np.float32)[:, None]
    outline = np.zeros(len(world.entities), np.int64)
    parts = world.parts
    visible = np.flatnonzero(seen)
    owners = parts.owner_P[visible]
    starts = np.flatnonzero(np.diff(owners, prepend=-1))
    for group in np.split(visible, starts[1:]) if len(visible) else []:
        x0, y0 = rects[group, :2].min(0)
        x1, y1 = rects[group, 2:].max(0)
        covered = np.zeros((y1 - y0, x1 - x0), bool)
        for p in group:
            u0, v0, u1, v1 = rects[p]
            into, origin = _into_part(posed, int(p), R, eye)
            u, v = ray_u[u0:u1], ray_v[v0:v1]
            ray = [row[0] * u + (row[1] * v + row[2]) for row in into]
            t = intersect(int(parts.kind_P[p]), float(parts.taper_P[p]), list(origin), ray)
            covered[v0 - y0 : v1 - y0, u0 - x0 : u1 - x0] |= t < np.inf
            window = buffers.depth_HW[v0:v1, u0:u1]
            closer = t < window
            np.copyto(window, t, where=closer)
            np.copyto(buffers.part_HW[v0:v1, u0:u1], p, where=closer)
        outline[parts.owner_P[group[0]]] = np.count_nonzero(covered)
    return outline


def _shade_parts(
    world: World, posed: PosedParts, part_M: Array, ray_M3: Array, t_M: Array, eye: Array
) -> Array:
    """Colours (M, 3) of the hits `eye + t * ray` on parts, all in the global frame."""
    parts = world.parts
    into_P33 = (np.swapaxes(posed.rotation_P33, 1, 2) / posed.half_P3[:, :, None]).astype(
        np.float32
    )
    offset_P3 = np.einsum("pij,pj->pi", into_P33, eye - posed.centre_P3).astype(np.float32)
    point = np.einsum("mij,mj->mi", into_P33[part_M], ray_M3 * t_M[:, None]) + offset_P3[part_M]
    half = posed.half_P3.astype(np.float32)[part_M]
    normal = local_normals(parts.kind_P[part_M], parts.taper_P[part_M], point, half)
    turn = posed.rotation_P33.astype(np.float32)[part_M]
    normal_z = (turn[:, 2] * normal).sum(1)
    sun_P3 = np.einsum("pji,j->pi", posed.rotation_P33, world.sun_3).astype(np.float32)
    sunlit = np.maximum((sun_P3[part_M] * normal).sum(1), 0)
    light = 0.5 + 0.12 * normal_z + 0.52 * sunlit
    colour = parts.colour_P3[part_M] * light[:, None]
    facade = (parts.material_P[part_M] == WINDOWS) & (np.abs(normal[:, 2]) < 0.5)
    metres = point[facade] * half[facade]
    along = np.where(np.abs(normal[facade, 0]) > 0.5, metres[:, 1], metres[:, 0])
    up = metres[:, 2] + half[facade, 2]
    glass = (np.mod(along, 2.6) > 1.2) & (np.mod(up, 3.1) > 1.1) & (np.mod(up, 3.1) < 2.6)
    pane = np.floor(along / 2.6) * 7 + np.floor(up / 3.1) * 3
    tone = 0.45 + 0.25 * (np.mod(pane, 5) == 0)
    colour[facade] *= np.where(glass, tone, 1.0)[:, None].astype(np.float32)
    return colour


def _shade_ground(ground: Ground, shadow_YX: Array, point_M2: Array, t_M: Array) -> Array:
    """Colours (M, 3) of the ground at global points."""
    cells = ground.cells(point_M2[:, 0], point_M2[:, 1])
    packed = ground.colour_YX4.reshape(-1, 4).view(np.uint32)[cells, 0]
    size = ground.grain_NN.shape[0]
    fine = (point_M2 * GRAIN_PER_METRE).astype(np.int32) & (size - 1)
    grain = ground.grain_NN.reshape(-1)[fine[:, 1] * size + fine[:, 0]]
    light = 1.0 + (grain - 1.0) * np.minimum(1.0, 8.0 / t_M)
    light *= np.float32(1.0) - np.float32(1 - SHADOW) * shadow_YX.reshape(-1)[cells]
    colour = np.empty((len(cells), 3), np.float32)
    for channel in range(3):
        colour[:, channel] = ((packed >> (8 * channel)) & 255) * light
    return colour


def _sky(world: World, ray_z: Array) -> Array:
    """Colours (M, 3) of the sky by elevation: `ray_z` is the upward share of the ray."""
    rise = np.clip(ray_z, 0, 1)[:, None]
    horizon = world.sky_3 * 0.35 + 155
    return np.asarray(horizon + (world.sky_3 - horizon) * np.sqrt(rise))


def render(
    world: World, ground: Ground, shadow_YX: Array, camera: CameraMount, t: float,
    size: tuple[int, int],
) -> View:  # fmt: skip
    """Render what `camera` sees at time `t`.

    Args:
        world: the scene.
        ground: its ground.
        shadow_YX: 1 where moving things keep the sun off the ground.
        camera: which camera.
        t: seconds since the first keyframe.
        size: image width and height, pixels.

    Returns:
        The image with depth and entity buffers.
    """
    width, height = size
    K = camera.intrinsic(width, height)
    R, eye = sensor_pose(world, camera, t)
    posed = pose_parts(world, t)
    buffers = _Buffers(
        np.full((height, width), np.inf, np.float32), np.full((height, width), -1, np.int32)
    )
    u, v = np.meshgrid(
        (np.arange(width, dtype=np.float32) + 0.5 - K[0, 2]) / K[0, 0],
        (np.arange(height, dtype=np.float32) + 0.5 - K[1, 2]) / K[1, 1],
    )
    R32 = R.astype(np.float32)
    ray = [R32[i, 0] * u.astype(np.float32) + R32[i, 1] * v.astype(np.float32) + R32[i, 2]
           for i in range(3)]  # fmt: skip
    outline = _rasterise(world, posed, R, eye, K, buffers)
    with np.errstate(divide="ignore"):
        t_ground = np.where(ray[2] < 0, np.float32(-eye[2]) / ray[2], np.float32(np.inf))
    on_part = (buffers.depth_HW < t_ground) & (buffers.part_HW >= 0)
    on_ground = ~on_part & (ray[2] < -1e-4)
    depth = np.where(on_part, buffers.depth_HW, t_ground)
    part_M = buffers.part_HW[on_part]
    colour = np.empty((height, width, 3), np.float32)
    ray_M3 = np.stack([r[on_part] for r in ray], axis=1)
    colour[on_part] = _shade_parts(world, posed, part_M, ray_M3, depth[on_part], eye)
    t_M = depth[on_ground]
    point = np.stack([ray[i][on_ground] * t_M + np.float32(eye[i]) for i in range(2)], axis=1)
    colour[on_ground] = _shade_ground(ground, shadow_YX, point, t_M)
    in_sky = ~on_part & ~on_ground
    z = ray[2][in_sky] / np.sqrt(1 + u[in_sky] ** 2 + v[in_sky] ** 2)
    colour[in_sky] = _sky(world, z)
    haze = np.exp(depth * np.float32(-1 / FOG))[..., None]
    horizon = (world.sky_3 * 0.35 + 155).astype(np.float32)
    hazed = np.where(in_sky[..., None], colour, colour * haze + horizon * (1 - haze))
    entity = np.where(on_part, world.parts.owner_P[buffers.part_HW], -1)
    counts = np.bincount(entity[on_part], minlength=len(world.entities))
    image = np.clip(hazed, 0, 255).astype(np.uint8)
    return View(image, depth, entity, counts, outline)
