"""The ground of a scene as pictures seen from above: surface colours, static shadows, map mask."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree

from bevcask.data.synthetic.raycast import PosedParts, intersect, pose_parts
from bevcask.data.synthetic.road import MARGIN, STEP, Road
from bevcask.data.synthetic.world import World

Array = npt.NDArray[Any]

RESOLUTION = 0.1  # metres per cell, the resolution of the nuScenes map masks
GRASS, ASPHALT, MARKING, YELLOW, SIDEWALK, CURB, LOT, CYCLE = range(8)
COLOURS_K3 = np.array(
    [[92, 118, 62], [84, 85, 88], [214, 214, 208], [214, 178, 70], [158, 153, 146],
     [186, 184, 178], [124, 118, 108], [120, 82, 74]], np.float32)  # fmt: skip
REFLECTIVITY_K = np.array([30, 9, 60, 50, 18, 22, 14, 12], np.float32)
SHADOW = 0.55
_BLOCK = 10


@dataclass(frozen=True)
class Ground:
    """Ground of one scene; cell (i, j) covers y = i * RESOLUTION, x = j * RESOLUTION.

    Attributes:
        surface_YX: surface class of each cell.
        colour_YX4: RGBx 0-255 with grain and static shadows.
        grain_NN: fine grain, tiles the plane, mean 1.
    """

    surface_YX: Array
    colour_YX4: Array
    grain_NN: Array

    def cells(self, x: Array, y: Array) -> Array:
        """Flat indices of the cells under global points, clamped to the border."""
        height, width = self.surface_YX.shape
        j = np.clip((x * (1 / RESOLUTION)).astype(np.int32), 0, width - 1)
        i = np.clip((y * (1 / RESOLUTION)).astype(np.int32), 0, height - 1)
        return np.asarray(i * width + j)

    @property
    def mask_YX(self) -> Array:
        """Drivable surface and sidewalks: 255, else 0; row 0 is the largest y, as in nuScenes."""
        on = ~np.isin(self.surface_YX, (GRASS, LOT))
        return np.flipud(on.astype(np.uint8) * 255)


def road_coordinates(road: Road) -> tuple[Array, Array]:
    """s and d of every cell (Y, X); far from the road they are only roughly right."""
    extent = road.xy_S2.max(axis=0) + MARGIN
    nx, ny = (np.ceil(extent / (RESOLUTION * _BLOCK)).astype(int) + 1).tolist()
    metre = RESOLUTION * _BLOCK
    grid = np.stack(np.meshgrid(np.arange(nx) * metre, np.arange(ny) * metre), axis=-1)
    _, nearest = cKDTree(road.xy_S2).query(grid)
    offset = grid - road.xy_S2[nearest]
    cos, sin = np.cos(road.heading_S[nearest]), np.sin(road.heading_S[nearest])
    s = nearest * STEP + offset[..., 0] * cos + offset[..., 1] * sin
    d = -offset[..., 0] * sin + offset[..., 1] * cos

    return _bilinear(s.astype(np.float32)), _bilinear(d.astype(np.float32))


def _bilinear(field_yx: Array) -> Array:
    """Linear interpolation of a field by `_BLOCK` along both axes."""
    fraction = (np.arange(_BLOCK, dtype=np.float32) / _BLOCK)[None, :, None]
    for _ in range(2):
        low, high = field_yx[:-1, None], field_yx[1:, None]
        field_yx = (low + (high - low) * fraction).reshape(-1, field_yx.shape[1]).T
    return np.ascontiguousarray(field_yx)


def _surfaces(road: Road, s: Array, d: Array, rng: np.random.Generator) -> Array:
    side = np.abs(d)
    surface = np.full(d.shape, GRASS, np.uint8)
    surface[(side < road.sidewalk_edge + 13) & (np.sin(s / 17.0 + 2 * np.sign(d)) > 0.2)] = LOT
    surface[side < road.sidewalk_edge] = SIDEWALK
    surface[side < road.curb + 0.15] = CURB
    surface[side < road.curb] = ASPHALT
    if rng.random() < 0.4:
        surface[(side > road.traffic_edge + 0.1) & (side < road.bike_edge - 0.05)] = CYCLE
    dashed = np.mod(s, 6.0) < 3.0
    for lane in range(1, road.lanes):
        surface[(np.abs(side - lane * road.lane_width) < 0.08) & dashed] = MARKING
    surface[np.abs(side - road.traffic_edge) < 0.08] = MARKING
    surface[(np.abs(side - road.bike_edge) < 0.06) & (np.mod(s, 1.0) < 0.5)] = MARKING
    surface[np.abs(side - 0.14) < 0.06] = YELLOW
    for crossing in road.crossings_K:
        along = np.abs(s - crossing)
        half = road.crossing_half_width
        surface[(along < half) & (side < 60)] = ASPHALT
        surface[(along < 0.08) & (side > road.curb) & (side < 60)] = YELLOW
        walk = (along > half + 0.6) & (along < half + 3.2) & (side < road.curb)
        surface[walk & (np.mod(d, 1.0) < 0.5)] = MARKING
    return surface


def build_ground(world: World, rng: np.random.Generator) -> Ground:
    """Paint the ground of `world`."""
    s, d = road_coordinates(world.road)
    surface = _surfaces(world.road, s, d, rng)
    coarse = rng.normal(0, 1, (surface.shape[0] // 8 + 2, surface.shape[1] // 8 + 2))
    patches = gaussian_filter(coarse, 2.0).astype(np.float32) * 0.35
    patches = np.repeat(np.repeat(patches, 8, 0), 8, 1)[: surface.shape[0], : surface.shape[1]]
    shade = (1.0 + patches) * (1.0 - (1.0 - SHADOW) * static_shadow(world, surface.shape))
    colour = np.zeros((*surface.shape, 4), np.uint8)
    for channel in range(3):
        painted = COLOURS_K3[:, channel][surface] * shade
        colour[..., channel] = np.clip(painted, 0, 255)
    grain = 1.0 + 0.06 * rng.standard_normal((512, 512)).astype(np.float32)
    return Ground(surface, colour, grain)


def static_shadow(world: World, shape: tuple[int, ...]) -> Array:
    """Shadow (Y, X) in [0, 1] cast by everything that never moves."""
    shadow = np.zeros(shape, np.uint8)
    cast_shadows(
        world,
        pose_parts(world, 0.0),
        np.setdiff1d(np.arange(len(world.entities)), world.moving),
        shadow,
    )
    return gaussian_filter(shadow.astype(np.float32), 1.0)


def cast_shadows(
    world: World, posed: PosedParts, owners: Array, shadow_YX: Array
) -> list[tuple[slice, slice]]:
    """Set the cells of `shadow_YX` that the parts of `owners` keep from the sun to 1.

    Args:
        world: the scene.
        posed: its parts at one time, global frame.
        owners: entities that cast shadows.
        shadow_YX: changed in place.

    Returns:
        The windows touched.
    """
    sun = world.sun_3
    reach_P3 = np.einsum("pij,pj->pi", np.abs(posed.rotation_P33), posed.half_P3)
    low, high = posed.centre_P3 - reach_P3, posed.centre_P3 + reach_P3
    drift = -sun[:2] / sun[2]
    ends = high[:, 2:3] * drift
    first = np.minimum(low[:, :2], low[:, :2] + ends) / RESOLUTION
    last = np.maximum(high[:, :2], high[:, :2] + ends) / RESOLUTION
    limit = np.array(shadow_YX.shape[::-1])
    first = np.clip(np.floor(first), 0, limit).astype(int)
    last = np.clip(np.ceil(last), 0, limit).astype(int)
    windows = []
    for p in np.flatnonzero(np.isin(world.parts.owner_P, owners)):
        window = (slice(first[p, 1], last[p, 1]), slice(first[p, 0], last[p, 0]))
        if (last[p] - first[p]).min() <= 0:
            continue
        y = (np.arange(first[p, 1], last[p, 1], dtype=np.float32)[:, None] + 0.5) * RESOLUTION
        x = (np.arange(first[p, 0], last[p, 0], dtype=np.float32)[None, :] + 0.5) * RESOLUTION
        into = posed.rotation_P33[p].T / posed.half_P3[p][:, None]
        c = posed.centre_P3[p]
        origin = [
            np.float32(a) * (x - np.float32(c[0]))
            + np.float32(b) * (y - np.float32(c[1]))
            - np.float32(e * c[2])
            for a, b, e in into
        ]
        ray = [np.float32(v) for v in into @ sun]
        t = intersect(int(world.parts.kind_P[p]), float(world.parts.taper_P[p]), origin, ray)  # type: ignore[arg-type]
        shadow_YX[window] |= t < np.inf
        windows.append(window)
    return windows
