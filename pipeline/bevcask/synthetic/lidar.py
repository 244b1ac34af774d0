"""A spinning 32-beam LiDAR, ray cast against the same parts as the cameras."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from bevcask.synthetic.entities import EGO_CENTRE_AHEAD, EGO_LENGTH, EGO_WIDTH
from bevcask.synthetic.ground import REFLECTIVITY_K, Ground
from bevcask.synthetic.raycast import (
    CORNERS_83,
    FILM,
    PosedParts,
    division_by_zero_is_inf,
    intersect,
    pose_parts,
)
from bevcask.synthetic.sensors import LIDAR, SPIN_PERIOD, sensor_pose
from bevcask.synthetic.world import World

Array = npt.NDArray[Any]

BEAMS = 32
COLUMNS = 1080
ELEVATION_B = np.radians(np.linspace(-30.67, 10.67, BEAMS))
MAX_RANGE = 90.0
MIN_RANGE = 0.8
RANGE_NOISE = 0.015
DROPOUT = 0.03
FINEST = 0.005  # parts of a smaller half size per metre of distance return nothing
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
        on_roof = (np.abs(x - EGO_CENTRE_AHEAD) < EGO_LENGTH * 0.2) & (np.abs(y) < EGO_WIDTH * 0.3)
    return np.where(on_roof & (t < t_CB), t, np.inf)


def _columns_of(xyz_N3: Array, R: Array, eye: Array) -> Array:
    """Column (N) in which the beam points at each global point, seen from `eye`."""
    local = (xyz_N3 - eye) @ R
    azimuth = np.arctan2(local[:, 1], local[:, 0])
    return np.asarray(((np.pi - azimuth) / (2 * np.pi) * COLUMNS).astype(int) % COLUMNS)


def _azimuth_windows(posed: PosedParts, origin_C3: Array, R: Array) -> tuple[Array, Array, Array]:
    """Per part: first column, number of columns, nearest range (P each); windows wrap around.

    The sensor moves while a window passes; the windows are padded by the parallax of that.
    """
    origin_P3 = origin_C3[_columns_of(posed.centre_P3, R, origin_C3[-1])]
    axes_P33 = posed.rotation_P33 * posed.half_P3[:, None]
    corner_P83 = CORNERS_83 @ np.swapaxes(axes_P33, 1, 2) + (posed.centre_P3 - origin_P3)[:, None]
    local = np.concatenate([corner_P83, (posed.centre_P3 - origin_P3)[:, None]], axis=1) @ R
    azimuth = np.arctan2(local[..., 1], local[..., 0])
    centre = azimuth[:, 8]
    turn = np.mod(azimuth[:, :8] - centre[:, None] + np.pi, 2 * np.pi) - np.pi
    left, right = turn.max(axis=1), turn.min(axis=1)
    flat = np.hypot(local[:, 8, 0], local[:, 8, 1])
    nearest = flat - np.linalg.norm(posed.half_P3, axis=1)
    around = (left - right > 0.9 * np.pi) | (flat < 0.05)
    left, right = np.where(around, np.pi, left), np.where(around, -np.pi, right)
    moved = np.linalg.norm(origin_C3[-1] - origin_C3[0])
    parallax = moved / np.maximum(nearest, 0.5)
    start, end = np.pi - centre - left, np.pi - centre - right
    seen_twice = (start < parallax) | (end > 2 * np.pi - parallax)  # first and last columns
    parallax *= np.where(seen_twice, 1.0, (left - right) / (2 * np.pi))
    per_column = 2 * np.pi / COLUMNS
    first = np.floor((start - parallax) / per_column).astype(int) - 3
    count = np.ceil((end - start + 2 * parallax) / per_column).astype(int) + 6
    return first % COLUMNS, np.minimum(count, COLUMNS), nearest


def _beam_windows(posed: PosedParts, origin: Array) -> tuple[Array, Array]:
    """Per part: first and last+1 beam that can reach it (the mount tilts by 1.4 degrees)."""
    reach = np.einsum("pj,pj->p", np.abs(posed.rotation_P33[:, 2]), posed.half_P3)
    flat = np.linalg.norm(posed.centre_P3[:, :2] - origin[:2], axis=1)
    side = np.linalg.norm(posed.half_P3, axis=1) + 0.5
    z = posed.centre_P3[:, 2] - origin[2]
    low, high = z - reach, z + reach
    near, far = np.maximum(flat - side, 0.05), flat + side
    tilt = np.radians(1.7)
    bottom = np.arctan2(low, np.where(low < 0, near, far)) - tilt
    top = np.arctan2(high, np.where(high > 0, near, far)) + tilt
    return np.searchsorted(ELEVATION_B, bottom), np.searchsorted(ELEVATION_B, top)


def _pass_times(world: World, t: float, R: Array, eye: Array) -> Array:
    """When the beam passes each entity, seconds (N): they keep moving during the spin."""
    centre_N3 = np.concatenate([world.poses(t)[0], np.zeros((len(world.entities), 1))], axis=1)
    return np.asarray(_fire_times(t)[_columns_of(centre_N3, R, eye)])


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
    posed = pose_parts(world, _pass_times(world, t, R, eye))
    with np.errstate(divide="ignore"):
        down = -origin_C3[:, None, 2] / ray_CB3[..., 2]
    range_CB = np.where(ray_CB3[..., 2] < 0, down, np.inf).astype(np.float32)
    part_CB = np.full(range_CB.shape, -1, np.int32)
    with division_by_zero_is_inf():
        _hit_parts(world, posed, R, (origin_C3, ray_CB3), (range_CB, part_CB))
    roof = _ego_return(range_CB, ray_CB3, world.ego_pose(t)[1])
    part_CB[roof < np.inf] = -2
    return np.minimum(range_CB, roof), part_CB, origin_C3, ray_CB3


def _hit_parts(
    world: World,
    posed: PosedParts,
    R: Array,
    rays: tuple[Array, Array],
    buffers: tuple[Array, Array],
) -> None:
    """Shorten the ranges of the rays (origins, directions) that meet a part; note which."""
    origin_C3, ray_CB3 = rays
    first, count, nearest = _azimuth_windows(posed, origin_C3, R)
    bottom, top = _beam_windows(posed, origin_C3[-1])
    resolvable = posed.half_P3.max(axis=1) > FINEST * nearest
    resolvable &= posed.half_P3.min(axis=1) > FILM
    reachable = (nearest < MAX_RANGE) & (top > bottom) & resolvable
    into_P33 = np.swapaxes(posed.rotation_P33, 1, 2) / posed.half_P3[:, :, None]
    parts, range_M, part_M = world.parts, buffers[0].reshape(-1), buffers[1].reshape(-1)
    for kind in np.unique(parts.kind_P):
        chosen = np.flatnonzero(reachable & (parts.kind_P == kind))
        pair, column, beam = _window_rays(first[chosen], count[chosen], bottom[chosen], top[chosen])
        part = chosen[pair]
        start = _each(into_P33[part], origin_C3[column] - posed.centre_P3[part])
        ray = _each(into_P33.astype(np.float32)[part], ray_CB3[column, beam].astype(np.float32))
        hit = intersect(int(kind), parts.taper_P.astype(np.float32)[part], start, ray)
        cell = column * BEAMS + beam
        closer = np.flatnonzero(hit < range_M[cell])
        hit, cell, part = hit[closer], cell[closer], part[closer]
        np.minimum.at(range_M, cell, hit)
        won = np.flatnonzero(hit == range_M[cell])[::-1]  # of equals the first part, written last
        part_M[cell[won]] = part[won]


def _window_rays(first: Array, count: Array, bottom: Array, top: Array) -> tuple[Array, ...]:
    """Index into the windows, column and beam of every ray of every window."""
    beams = top - bottom
    sizes = count * beams
    window = np.repeat(np.arange(len(sizes)), sizes)
    within = np.arange(len(window)) - (np.cumsum(sizes) - sizes)[window]
    column = (first[window] + within // beams[window]) % COLUMNS
    return window, column, bottom[window] + within % beams[window]


def _each(matrix_M33: Array, vector_M3: Array) -> list[Array]:
    """Each matrix times its vector: three rows (M), float32."""
    x, y, z = vector_M3.T
    return [
        (row[:, 0] * x + row[:, 1] * y + row[:, 2] * z).astype(np.float32)
        for row in np.moveaxis(matrix_M33, 1, 0)
    ]


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
