"""Camera images: exact ray casting of the parts inside their outlines, a depth buffer, one sun."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bevcask.synthetic.ground import SHADOW, Ground, colour_of_code
from bevcask.synthetic.raycast import (
    CORNERS_83,
    PosedParts,
    curved_normals,
    division_by_zero_is_inf,
    intersect,
    pose_parts,
)
from bevcask.synthetic.sensors import CameraMount, sensor_pose
from bevcask.synthetic.shapes import BOX, WINDOWS
from bevcask.synthetic.world import World

Array = npt.NDArray[Any]

NEAR = 0.15
FAR = 140.0
FOG = 260.0
SPECK = 12  # parts whose rectangle has no more pixels are not drawn
AMBIENT, SKYLIGHT, SUNLIGHT = 0.5, 0.12, 0.52
GRAIN_PER_METRE = 60.0
RAGGED = 0.5  # metres of blur at surface borders per unit of grain
_GROUND_COLOUR = colour_of_code()
_MOVING_SHADOW_2 = np.array([1.0, SHADOW], np.float32)
# The 12 edges of a box as pairs of rows of `CORNERS_83`.
_EDGES = np.array([(a, a | b) for b in (1, 2, 4) for a in range(8) if not a & b])


@dataclass(frozen=True)
class View:
    """What one camera saw.

    Attributes:
        image_HW3: uint8 RGB.
        depth_HW: metres along the optical axis, inf for sky.
        entity_HW: index of the entity each pixel shows, -1 for ground and sky.
        visible_N: pixels of each entity that are seen.
        outline_N: pixels it would cover if nothing stood in front of it; 0 for scenery.
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


def _in_front(posed: PosedParts, R: Array, eye: Array, K: Array, shape: tuple[int, int]) -> Array:
    """Indices of the parts whose bounding ball meets the view cone (a little generously)."""
    reach = np.linalg.norm(posed.half_P3, axis=1)
    centre = (posed.centre_P3 - eye) @ R
    depth = centre[:, 2]
    height, width = shape
    spread = max(K[0, 2], width - K[0, 2]) / K[0, 0]
    rise = max(K[1, 2], height - K[1, 2]) / K[1, 1]
    inside = (depth > -reach) & (depth - reach < FAR)
    inside &= np.abs(centre[:, 0]) < spread * depth + reach * np.hypot(1, spread)
    inside &= np.abs(centre[:, 1]) < rise * depth + reach * np.hypot(1, rise)
    return np.flatnonzero(inside)


def _outlines(
    posed: PosedParts, chosen: Array, R: Array, eye: Array, K: Array, shape: tuple[int, int]
) -> tuple[Array, Array]:
    """Pixel rectangles (K, 4) x0, y0, x1, y1 that hold the chosen parts, and nearest depths (K)."""
    axes_K33 = posed.rotation_P33[chosen] * posed.half_P3[chosen][:, None]
    corners = CORNERS_83 @ np.swapaxes(axes_K33, 1, 2)
    corners = (corners + (posed.centre_P3[chosen] - eye)[:, None]) @ R
    points = np.concatenate([corners, np.full((len(chosen), 12, 3), np.nan)], axis=1)
    cut_K = np.flatnonzero((corners[..., 2] < NEAR).any(axis=1))
    a, b = corners[cut_K][:, _EDGES[:, 0]], corners[cut_K][:, _EDGES[:, 1]]
    with np.errstate(divide="ignore", invalid="ignore"):
        share = (NEAR - a[..., 2]) / (b[..., 2] - a[..., 2])
    crosses = (a[..., 2] < NEAR) != (b[..., 2] < NEAR)
    points[cut_K, 8:] = np.where(crosses[..., None], a + (b - a) * share[..., None], np.nan)
    z = np.where(points[..., 2] >= NEAR * 0.999, points[..., 2], np.nan)
    height, width = shape
    rects = np.zeros((len(chosen), 4), np.int64)
    for axis, limit in ((0, width), (1, height)):
        pixel = points[..., axis] / z * K[axis, axis] + K[axis, 2]
        low = np.fmin.reduce(pixel, axis=1, initial=np.inf)
        high = np.fmax.reduce(pixel, axis=1, initial=-np.inf)
        rects[:, axis] = np.clip(np.floor(low), 0, limit)
        rects[:, axis + 2] = np.clip(np.ceil(high) + 1, 0, limit)
    return rects, np.fmin.reduce(z, axis=1, initial=np.inf)


def _rasterise(
    world: World, posed: PosedParts, R: Array, eye: Array, K: Array, buffers: _Buffers
) -> Array:
    """Fill the buffers with every part; returns the outline pixels of annotated entities."""
    shape = buffers.depth_HW.shape
    height, width = shape
    chosen = _in_front(posed, R, eye, K, (height, width))
    rects, depths = _outlines(posed, chosen, R, eye, K, (height, width))
    area = (rects[:, 2] - rects[:, 0]) * (rects[:, 3] - rects[:, 1])
    seen = (area > SPECK) & (depths < FAR)
    chosen, rects = chosen[seen], rects[seen]
    ray_u = ((np.arange(width) + 0.5 - K[0, 2]) / K[0, 0]).astype(np.float32)
    ray_v = ((np.arange(height) + 0.5 - K[1, 2]) / K[1, 1]).astype(np.float32)[:, None]
    into_K33 = np.swapaxes(posed.rotation_P33[chosen], 1, 2) / posed.half_P3[chosen][:, :, None]
    origin_K3 = np.einsum("kij,kj->ki", into_K33, eye - posed.centre_P3[chosen]).astype(np.float32)
    into_K33 = (into_K33 @ R).astype(np.float32)
    outline = np.zeros(len(world.entities), np.int64)
    owners = world.parts.owner_P[chosen]
    kinds, tapers = world.parts.kind_P[chosen].tolist(), world.parts.taper_P[chosen].tolist()
    for group in np.split(np.arange(len(chosen)), np.flatnonzero(np.diff(owners)) + 1):
        if not len(group):
            continue
        x0, y0 = rects[group, :2].min(0)
        x1, y1 = rects[group, 2:].max(0)
        covered = np.zeros((y1 - y0, x1 - x0), bool)
        counted = world.entities[owners[group[0]]].annotated
        for k in group.tolist():
            u0, v0, u1, v1 = rects[k].tolist()
            u, v = ray_u[u0:u1], ray_v[v0:v1]
            ray = [row[0] * u + (row[1] * v + row[2]) for row in into_K33[k]]
            t = intersect(kinds[k], tapers[k], list(origin_K3[k]), ray)
            window = buffers.depth_HW[v0:v1, u0:u1]
            closer = t < window
            np.copyto(window, t, where=closer)
            np.copyto(buffers.part_HW[v0:v1, u0:u1], chosen[k], where=closer)
            if counted:
                covered[v0 - y0 : v1 - y0, u0 - x0 : u1 - x0] |= t < np.inf
        outline[owners[group[0]]] = np.count_nonzero(covered)
    return outline


def _face_light(posed: PosedParts, sun_3: Array) -> Array:
    """Brightness (P, 3, 2) of the faces of each part: by axis, then negative or positive side."""
    along_P3 = np.einsum("pji,j->pi", posed.rotation_P33, sun_3)
    both = along_P3[..., None] * np.array([-1.0, 1.0])
    up = posed.rotation_P33[:, 2, :, None] * np.array([-1.0, 1.0])
    light = AMBIENT + SKYLIGHT * up + SUNLIGHT * np.maximum(both, 0)
    return np.asarray(light.astype(np.float32))


def _curved_light(
    posed: PosedParts, world: World, part_M: Array, point_M3: Array
) -> Array:  # fmt: skip
    """Brightness (M) at points, in unit coordinates, of ellipsoids and frustums."""
    half = posed.half_P3.astype(np.float32)[part_M]
    kind, taper = world.parts.kind_P[part_M], world.parts.taper_P.astype(np.float32)[part_M]
    normal = curved_normals(kind, taper, point_M3, half)
    sun_P3 = np.einsum("pji,j->pi", posed.rotation_P33, world.sun_3).astype(np.float32)
    up_P3 = posed.rotation_P33[:, 2].astype(np.float32)
    sunlit = np.maximum((sun_P3[part_M] * normal).sum(1), 0)
    return np.asarray(AMBIENT + SKYLIGHT * (up_P3[part_M] * normal).sum(1) + SUNLIGHT * sunlit)


def _shade_parts(
    world: World, posed: PosedParts, part_M: Array, offset_M3: list[Array], eye: Array
) -> Array:
    """Colours (M, 3) of points on parts, given by their global offset from the camera."""
    parts = world.parts
    into_P33 = np.swapaxes(posed.rotation_P33, 1, 2) / posed.half_P3[:, :, None]
    start_P3 = np.einsum("pij,pj->pi", into_P33, eye - posed.centre_P3).astype(np.float32)
    into_P33 = into_P33.astype(np.float32)
    point_M3 = np.empty((len(part_M), 3), np.float32)
    for i in range(3):
        a, b, c = (into_P33[:, i, j][part_M] for j in range(3))
        point_M3[:, i] = (
            a * offset_M3[0] + b * offset_M3[1] + c * offset_M3[2] + start_P3[:, i][part_M]
        )
    size = np.abs(point_M3)
    axis = np.where(size[:, 0] > size[:, 1], 0, 1)
    axis = np.where(size[:, 2] > np.maximum(size[:, 0], size[:, 1]), 2, axis)
    side = np.take_along_axis(point_M3, axis[:, None], axis=1)[:, 0] > 0
    light = _face_light(posed, world.sun_3).reshape(-1)[part_M * 6 + axis * 2 + side]
    curved = np.flatnonzero(parts.kind_P[part_M] != BOX)
    light[curved] = _curved_light(posed, world, part_M[curved], point_M3[curved])
    facade = np.flatnonzero((parts.material_P[part_M] == WINDOWS) & (axis < 2))
    metres = point_M3[facade] * posed.half_P3.astype(np.float32)[part_M[facade]]
    light[facade] *= _panes(metres, axis[facade], posed.half_P3[part_M[facade], 2])
    return np.asarray(parts.colour_P3[part_M] * light[:, None])


def _panes(metres_M3: Array, axis_M: Array, half_height_M: Array) -> Array:
    """Brightness (M) of a facade: window panes are darker than the wall."""
    along = np.where(axis_M == 0, metres_M3[:, 1], metres_M3[:, 0])
    up = metres_M3[:, 2] + half_height_M
    column, floor = np.floor(along / 2.6), np.floor(up / 3.1)
    glass = (along - column * 2.6 > 1.2) & (up - floor * 3.1 > 1.1) & (up - floor * 3.1 < 2.6)
    tone = 0.45 + 0.25 * (np.mod(column * 7 + floor * 3, 5) == 0)
    return np.where(glass, tone, 1.0).astype(np.float32)


def _shade_ground(ground: Ground, shadow_YX: Array, point_M2: Array, t_M: Array) -> Array:
    """Colours (M, 3) of the ground at global points."""
    size = ground.grain_NN.shape[0]
    fine = (point_M2 * GRAIN_PER_METRE).astype(np.int32) & (size - 1)
    grain = ground.grain_NN.reshape(-1)[fine[:, 1] * size + fine[:, 0]]
    ragged = (grain - 1.0) * RAGGED
    cells = ground.cells(point_M2[:, 0] + ragged, point_M2[:, 1] + ragged)
    light = 1.0 + (grain - 1.0) * np.minimum(1.0, 8.0 / t_M)
    light *= _MOVING_SHADOW_2[shadow_YX.reshape(-1)[cells]]
    return np.asarray(_GROUND_COLOUR[ground.code_YX.reshape(-1)[cells]] * light[:, None])


def _horizon(world: World) -> Array:
    return (world.sky_3 * 0.35 + 155).astype(np.float32)


def _sky(world: World, ray_z: Array) -> Array:
    """Colours (M, 3) of the sky; `ray_z` is how steeply each ray rises."""
    rise = np.clip((ray_z * 256).astype(np.int32), 0, 255)
    steps = np.sqrt(np.arange(256) / 256)[:, None]
    table = _horizon(world) + (world.sky_3 - _horizon(world)) * steps
    return np.asarray(np.clip(table, 0, 255).astype(np.uint8)[rise])


def _haze(world: World, colour_M3: Array, t_M: Array) -> Array:
    """Fade colours to the horizon with distance; uint8 (M, 3)."""
    clear = np.exp(t_M * np.float32(-1 / FOG))[:, None]
    horizon = _horizon(world)
    faded = np.clip((colour_M3 - horizon) * clear + horizon, 0, 255)
    return np.asarray(faded.astype(np.uint8))


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
    with division_by_zero_is_inf():
        outline = _rasterise(world, posed, R, eye, K, buffers)
    u = ((np.arange(width) + 0.5 - K[0, 2]) / K[0, 0]).astype(np.float32)
    v = ((np.arange(height) + 0.5 - K[1, 2]) / K[1, 1]).astype(np.float32)[:, None]
    rays = [(row[0] * u + (row[1] * v + row[2])).ravel() for row in R.astype(np.float32)]
    floor = np.full(height * width, np.inf, np.float32)
    np.divide(np.float32(-eye[2]), rays[2], out=floor, where=rays[2] < -1e-4)
    depth, part = buffers.depth_HW.ravel(), buffers.part_HW.ravel()
    on_part = np.flatnonzero(depth < floor)
    rest = np.flatnonzero(depth >= floor)
    on_ground = rest[floor[rest] < np.inf]
    in_sky = rest[floor[rest] == np.inf]
    depth = np.minimum(depth, floor)
    image = np.empty((height * width, 3), np.uint8)
    part_M = part[on_part]
    offset = [r[on_part] * depth[on_part] for r in rays]
    colour = _shade_parts(world, posed, part_M, offset, eye)
    image[on_part] = _haze(world, colour, depth[on_part])
    far = depth[on_ground]
    point = np.stack([rays[i][on_ground] * far + np.float32(eye[i]) for i in range(2)], axis=1)
    image[on_ground] = _haze(world, _shade_ground(ground, shadow_YX, point, far), far)
    image[in_sky] = _sky(world, rays[2][in_sky])
    entity = np.full(height * width, -1, np.int32)
    entity[on_part] = world.parts.owner_P[part_M]
    counts = np.bincount(entity[on_part], minlength=len(world.entities))
    return View(
        image.reshape(height, width, 3),
        depth.reshape(height, width),
        entity.reshape(height, width),
        counts,
        outline,
    )
