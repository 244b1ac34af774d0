"""A spinning 32-beam LiDAR, ray cast against the same parts as the cameras."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from bevcask.data.synthetic.ground import REFLECTIVITY_K, Ground
from bevcask.data.synthetic.raycast import (
    PosedParts,
    division_by_zero_is_inf,
    intersect,
    pose_parts,
)
from bevcask.data.synthetic.sensors import LIDAR, SPIN_PERIOD, sensor_pose
from bevcask.data.synthetic.world import EGO_CENTRE_AHEAD, EGO_LENGTH, EGO_WIDTH, World

Array = npt.NDArray[Any]

BEAMS = 32
COLUMNS = 1080
ELEVATION_B = np.radians(np.linspace(-30.67, 10.67, BEAMS))
MAX_RANGE = 90.0
MIN_RANGE = 0.8
RANGE_NOISE = 0.015
DROPOUT = 0.03
FINEST = 0.004  # parts of a smaller half size per metre of distance return nothing
# Columns run clockwise from the sensor's left, as in nuScenes.
AZIMUTH_C = np.pi - 2 * np.pi * (np.arange(COLUMNS) + 0.5) / COLUMNS


def _fire_times(t: float) -> Array:
    """Firing time of each column of the spin that ends at `t`, seconds."""
    return np.asarray(t - SPIN_PERIOD * (1 - (np.arange(COLUMNS) + 0.5) / COLUMNS))


def _rays(world: World, t: float) -> tuple[Array, Array]:
    """Origins (C, 3) and unit directions (C, B, 3) in the global frame; the ego moves meanwhile."""
    azimuth, elevation = AZIMUTH_C[:, None], ELEVATION_B[None, :]
    local = np.stack(
        np.broadcast_arrays(
            np.cos(azimuth) * np.cos(elevation),
            np.sin(azimuth) * np.cos(elevation),
            np.sin(elevation) + 0 * azimuth,
        ),
        axis=-1,
    )
    (_, p0), (R1, p1) = (sensor_pose(world, LIDAR, x) for x in (t - SPIN_PERIOD, t))
    yaw0, yaw1 = world.ego_pose(t - SPIN_PERIOD)[1], world.ego_pose(t)[1]
    share = ((_fire_times(t) - t) / SPIN_PERIOD)[:, None]
    origin = p1 + share * (p1 - p0)
    turn = (share * (yaw1 - yaw0))[:, 0]
    ray = local @ R1.T
    cos, sin = np.cos(turn)[:, None], np.sin(turn)[:, None]
    x, y = ray[..., 0], ray[..., 1]
    return origin, np.stack([cos * x - sin * y, sin * x + cos * y, ray[..., 2]], axis=-1)


def _ego_return(t_CB: Array, ray_CB3: Array, yaw: float) -> Array:
    """Ranges with the ego's own roof: a slab below the sensor; only its rays within ~1 m count."""
    drop = LIDAR.translation[2] - 1.5
    with np.errstate(divide="ignore"):
        t = np.where(ray_CB3[..., 2] < 0, -drop / ray_CB3[..., 2], np.inf)
    forward = np.cos(yaw) * ray_CB3[..., 0] + np.sin(yaw) * ray_CB3[..., 1]
    left = -np.sin(yaw) * ray_CB3[..., 0] + np.cos(yaw) * ray_CB3[..., 1]
    with np.errstate(invalid="ignore"):
        x, y = forward * t + LIDAR.translation[0], left * t
        on_roof = (np.abs(x - EGO_CENTRE_AHEAD) < EGO_LENGTH * 0.3) & (np.abs(y) < EGO_WIDTH * 0.45)
    return np.where(on_roof & (t < t_CB), t, np.inf)


def _azimuth_windows(
    world: World, posed: PosedParts, origin: Array, R: Array
) -> tuple[Array, Array, Array]:
    """Per part: first column, number of columns, nearest range (P each); windows wrap around."""
    reach = np.linalg.norm(posed.half_P3, axis=1)
    local = (posed.centre_P3 - origin) @ R
    flat = np.hypot(local[:, 0], local[:, 1])
    centre = np.arctan2(local[:, 1], local[:, 0])
    spread = np.where(flat > reach + 0.05, np.arcsin(np.minimum(reach / flat, 1.0)), np.pi)
    per_column = 2 * np.pi / COLUMNS
    first = np.floor((np.pi - centre - spread) / per_column - 0.5).astype(int) - 3
    count = np.minimum(np.ceil(2 * spread / per_column).astype(int) + 8, COLUMNS)
    return first, count, flat - reach


def _beam_window(posed: PosedParts, origin: Array) -> tuple[Array, Array]:
    """Per part: first and last+1 beam that can reach it (the mount's tilt is under a degree)."""
    reach = np.einsum("pj,pj->p", np.abs(posed.rotation_P33[:, 2]), posed.half_P3)
    flat = np.linalg.norm(posed.centre_P3[:, :2] - origin[:2], axis=1)
    side = np.linalg.norm(posed.half_P3, axis=1)
    z = posed.centre_P3[:, 2] - origin[2]
    low, high = z - reach, z + reach
    near, far = np.maximum(flat - side, 0.05), flat + side
    tilt = np.radians(1.5)
    bottom = np.arctan2(low, np.where(low < 0, near, far)) - tilt
    top = np.arctan2(high, np.where(high > 0, near, far)) + tilt
    return np.searchsorted(ELEVATION_B, bottom), np.searchsorted(ELEVATION_B, top)


def _column_times(world: World, t: float, R: Array, origin: Array) -> Array:
    """When the beam passes each entity, seconds (N): they keep moving during the spin."""
    local = np.concatenate([world.poses(t)[0], np.zeros((len(world.entities), 1))], axis=1)
    local = (local - origin) @ R
    azimuth = np.arctan2(local[:, 1], local[:, 0])
    column = ((np.pi - azimuth) / (2 * np.pi) * COLUMNS).astype(int) % COLUMNS
    return np.asarray(_fire_times(t)[column])


def cast(world: World, t: float) -> tuple[Array, Array, Array, Array]:
    """Trace one spin that ends at `t`.

    Args:
        world: the scene.
        t: end of the spin, seconds since the first keyframe.

    Returns:
        Ranges (C, B) in metres (inf: nothing), index of the part hit (C, B; -1 ground, -2 ego),
        origins (C, 3) and directions (C, B, 3) in the global frame.
    """
    R, eye = sensor_pose(world, LIDAR, t)
    origin_C3, ray_CB3 = _rays(world, t)
    posed = pose_parts(world, _column_times(world, t, R, eye))
    with np.errstate(divide="ignore"):
        down = -origin_C3[:, None, 2] / ray_CB3[..., 2]
    range_CB = np.where(ray_CB3[..., 2] < 0, down, np.inf).astype(np.float32)
    part_CB = np.full(range_CB.shape, -1, np.int32)
    first, count, nearest = _azimuth_windows(world, posed, eye, R)
    bottom, top = _beam_window(posed, eye)
    ray32 = ray_CB3.astype(np.float32)
    resolvable = posed.half_P3.max(axis=1) > FINEST * nearest
    into_P33 = np.swapaxes(posed.rotation_P33, 1, 2) / posed.half_P3[:, :, None]
    for p in np.flatnonzero((nearest < MAX_RANGE) & (top > bottom) & resolvable):
        columns = np.arange(first[p], first[p] + count[p]) % COLUMNS
        beams = slice(bottom[p], top[p])
        start = ((origin_C3[columns] - posed.centre_P3[p]) @ into_P33[p].T).astype(np.float32)
        ray = ray32[columns, beams] @ into_P33[p].T.astype(np.float32)
        kind, taper = int(world.parts.kind_P[p]), float(world.parts.taper_P[p])
        with division_by_zero_is_inf():
            hit = intersect(kind, taper, list(start.T[:, :, None]), list(np.moveaxis(ray, -1, 0)))
        old = range_CB[columns, beams]
        closer = hit < old
        if closer.any():
            range_CB[columns, beams] = np.where(closer, hit, old)
            part_CB[columns, beams] = np.where(closer, p, part_CB[columns, beams])
    roof = _ego_return(range_CB, ray_CB3, world.ego_pose(t)[1])
    part_CB[roof < np.inf] = -2
    return np.minimum(range_CB, roof), part_CB, origin_C3, ray_CB3


def scan(world: World, ground: Ground, t: float, rng: np.random.Generator) -> Array:
    """One LiDAR sweep.

    Args:
        world: the scene.
        ground: its ground, for the intensity of the road.
        t: end of the spin, seconds since the first keyframe.
        rng: drives range noise, dropout and intensity noise.

    Returns:
        float32 (M, 5): x, y, z in the sensor frame at `t`, intensity 0-255, ring index; ordered
        by firing time, then ring.
    """
    range_CB, part_CB, origin_C3, ray_CB3 = cast(world, t)
    noise = rng.normal(0.0, RANGE_NOISE, range_CB.shape)
    kept = (range_CB < MAX_RANGE) & (rng.random(range_CB.shape) > DROPOUT)
    fade = rng.random(range_CB.shape) * MAX_RANGE * 1.1 + 25.0
    kept &= (range_CB < fade) & ((range_CB > MIN_RANGE) | (part_CB == -2))
    column, ring = np.nonzero(kept)
    reach = (range_CB[kept] + noise[kept])[:, None]
    point = origin_C3[column] + reach * ray_CB3[kept]
    R, eye = sensor_pose(world, LIDAR, t)
    local = (point - eye) @ R
    part = part_CB[kept]
    albedo = np.full(len(part), 20.0)
    floor = part == -1
    cells = ground.cells(point[floor, 0], point[floor, 1])
    albedo[floor] = REFLECTIVITY_K[ground.surface(cells)]
    solid = part >= 0
    albedo[solid] = world.parts.colour_P3[part[solid]].mean(1) * 0.35
    intensity = albedo * np.exp(-reach[:, 0] / 80.0) * rng.uniform(0.8, 1.2, len(part))
    intensity = np.clip(np.round(intensity), 0, 255)
    return np.column_stack([local, intensity, ring]).astype(np.float32)
