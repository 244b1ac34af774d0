"""The ground of a scene as pictures seen from above: surface colours, static shadows, map mask."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree

from bevcask.synthetic.raycast import (
    FILM,
    PosedParts,
    division_by_zero_is_inf,
    intersect,
    pose_parts,
)
from bevcask.synthetic.road import MARGIN, STEP, Road
from bevcask.synthetic.world import World

Array = npt.NDArray[Any]

RESOLUTION = 0.1  # metres per cell, the resolution of the nuScenes map masks
GRASS, ASPHALT, MARKING, YELLOW, SIDEWALK, CURB, LOT, CYCLE = range(8)
COLOURS_K3 = np.array(
    [[92, 118, 62], [84, 85, 88], [214, 214, 208], [214, 178, 70], [158, 153, 146],
     [186, 184, 178], [124, 118, 108], [120, 82, 74]], np.float32)  # fmt: skip
REFLECTIVITY_K = np.array([30, 9, 60, 50, 18, 22, 14, 12], np.float32)
SHADOW = 0.55
LOT_DEPTH = 13.0
CROSS_STREET_REACH = 60.0
_TONES = 16
_BLOCK = 10  # cells along the side of a block; road coordinates are linear inside one


@dataclass(frozen=True)
class Ground:
    """Ground of one scene; cell (i, j) covers y = i * RESOLUTION, x = j * RESOLUTION.

    Attributes:
        code_YX: uint8; surface class (3 bits), tone (4 bits), static shadow (1 bit) of each cell.
        grain_NN: fine grain, tiles the plane, mean 1.
    """

    code_YX: Array
    grain_NN: Array

    def cells(self, x: Array, y: Array) -> Array:
        """Flat indices of the cells under global points, clamped to the border."""
        height, width = self.code_YX.shape
        j = np.clip((x * (1 / RESOLUTION)).astype(np.int32), 0, width - 1)
        i = np.clip((y * (1 / RESOLUTION)).astype(np.int32), 0, height - 1)
        return np.asarray(i * width + j)

    def surface(self, cells: Array) -> Array:
        """Surface class of cells given by flat index."""
        return np.asarray(self.code_YX.reshape(-1)[cells] >> 5)

    @property
    def mask_YX(self) -> Array:
        """Drivable surface and sidewalks: 255, else 0; row 0 is the largest y, as in nuScenes."""
        on_K = np.full(8, 255, np.uint8)
        on_K[[GRASS, LOT]] = 0
        return np.asarray(np.flipud(np.repeat(on_K, 32)[self.code_YX]))


def colour_of_code() -> Array:
    """Colour (256, 3), 0-255, of each value of `Ground.code_YX`."""
    code = np.arange(256)
    tone = 0.82 + 0.36 * ((code >> 1) % _TONES) / (_TONES - 1)
    light = np.where(code & 1, SHADOW, 1.0)
    colour = np.minimum(COLOURS_K3[code >> 5] * (tone * light)[:, None], 255)
    return np.asarray(colour.astype(np.float32))


def _block_coordinates(road: Road) -> tuple[Array, Array]:
    """Road coordinates s and d (y, x) at the block corners; right near the road, rough far away."""
    metre = RESOLUTION * _BLOCK
    nx, ny = (np.ceil((road.xy_S2.max(axis=0) + MARGIN) / metre).astype(int) + 1).tolist()
    grid = np.stack(np.meshgrid(np.arange(nx) * metre, np.arange(ny) * metre), axis=-1)
    _, nearest = cKDTree(road.xy_S2).query(grid)
    offset = grid - road.xy_S2[nearest]
    cos, sin = np.cos(road.heading_S[nearest]), np.sin(road.heading_S[nearest])
    s = nearest * STEP + offset[..., 0] * cos + offset[..., 1] * sin
    return s, -offset[..., 0] * sin + offset[..., 1] * cos


def _inside_blocks(corner_yx: Array, chosen_yx: Array) -> Array:
    """Values (K, _BLOCK, _BLOCK) inside the chosen blocks, linear between their corners."""
    f = (np.arange(_BLOCK, dtype=np.float32) + 0.5) / _BLOCK
    corner = corner_yx.astype(np.float32)
    a, b = corner[:-1, :-1][chosen_yx], corner[:-1, 1:][chosen_yx]
    c, d = corner[1:, :-1][chosen_yx], corner[1:, 1:][chosen_yx]
    low = a[:, None] + (b - a)[:, None] * f
    high = c[:, None] + (d - c)[:, None] * f
    return np.asarray(low[:, None] + (high - low)[:, None] * f[:, None])


def _surfaces(road: Road, s: Array, d: Array, xy: Array, has_cycle_lane: bool) -> Array:
    """Surface class of points given in road coordinates and, (..., 2), in the global frame."""
    side = np.abs(d)
    surface = np.full(d.shape, GRASS, np.uint8)
    in_lot = np.sin(s / 17.0 + 2 * np.sign(d)) > 0.2
    surface[(side < road.sidewalk_edge + LOT_DEPTH) & in_lot] = LOT
    surface[side < road.sidewalk_edge] = SIDEWALK
    surface[side < road.curb + 0.15] = CURB
    surface[side < road.curb] = ASPHALT
    if has_cycle_lane:
        surface[(side > road.traffic_edge + 0.1) & (side < road.bike_edge - 0.05)] = CYCLE
    dashed = np.mod(s, 6.0) < 3.0
    for lane in range(1, road.lanes):
        surface[(np.abs(side - lane * road.lane_width) < 0.08) & dashed] = MARKING
    surface[np.abs(side - road.traffic_edge) < 0.08] = MARKING
    surface[(np.abs(side - road.bike_edge) < 0.06) & (np.mod(s, 1.0) < 0.5)] = MARKING
    surface[np.abs(side - 0.14) < 0.06] = YELLOW
    for crossing in road.crossings_K:
        _paint_crossing(road, crossing, surface, d, xy)
    return surface


def _paint_crossing(road: Road, crossing: Array, surface: Array, d: Array, xy: Array) -> None:
    """Paint one crossing street and its zebra onto the blocks (K, _BLOCK, _BLOCK) it touches."""
    centre, heading = road.pose(crossing, np.asarray(0.0))
    cos, sin = np.cos(heading).astype(np.float32), np.sin(heading).astype(np.float32)
    half = road.crossing_half_width
    x, y = xy[..., 0] - np.float32(centre[0]), xy[..., 1] - np.float32(centre[1])
    diagonal = 2 * RESOLUTION * _BLOCK
    near = np.flatnonzero(np.abs(x[:, 0, 0] * cos + y[:, 0, 0] * sin) < half + 3.2 + diagonal)
    x, y, d = x[near], y[near], d[near]
    along, across, side = np.abs(x * cos + y * sin), np.abs(y * cos - x * sin), np.abs(d)
    street = surface[near]
    street[(along < half) & (across < CROSS_STREET_REACH)] = ASPHALT
    street[(along < 0.08) & (side > road.curb) & (across < CROSS_STREET_REACH)] = YELLOW
    walk = (along > half + 0.6) & (along < half + 3.2) & (side < road.curb)
    street[walk & (np.mod(d, 1.0) < 0.5)] = MARKING
    surface[near] = street


def build_ground(world: World, rng: np.random.Generator) -> Ground:
    """Paint the ground of `world`."""
    road = world.road
    s, d = _block_coordinates(road)
    metre = RESOLUTION * _BLOCK
    x, y = np.meshgrid(np.arange(s.shape[1]) * metre, np.arange(s.shape[0]) * metre)
    near = np.abs(d) < road.sidewalk_edge + LOT_DEPTH + 2
    for crossing in road.crossings_K:
        (cx, cy), heading = road.pose(crossing, np.asarray(0.0))
        along = (x - cx) * np.cos(heading) + (y - cy) * np.sin(heading)
        near |= (np.abs(along) < road.crossing_half_width + 2) & (np.abs(d) < CROSS_STREET_REACH)
    chosen = near[:-1, :-1]
    inside = [_inside_blocks(field, chosen) for field in (s, d, x, y)]
    blocks = np.zeros((*chosen.shape, _BLOCK, _BLOCK), np.uint8)
    xy = np.stack(inside[2:], axis=-1)
    blocks[chosen] = _surfaces(road, inside[0], inside[1], xy, bool(rng.random() < 0.4))
    shape = (chosen.shape[0] * _BLOCK, chosen.shape[1] * _BLOCK)
    tone = gaussian_filter(rng.normal(0, 1, chosen.shape), 1.2) * 12 + _TONES / 2
    tone_bits = np.clip(tone + rng.normal(0, 1.0, tone.shape), 0, _TONES - 1).astype(np.uint8) << 1
    code = (blocks << 5) | tone_bits[..., None, None]
    code_YX = np.ascontiguousarray(code.swapaxes(1, 2).reshape(shape))
    code_YX |= static_shadow(world, shape)
    grain = 1.0 + 0.06 * rng.standard_normal((512, 512)).astype(np.float32)
    return Ground(code_YX, grain)


def static_shadow(world: World, shape: tuple[int, ...]) -> Array:
    """Cells (Y, X) that something that never moves keeps from the sun: 1, else 0."""
    still = np.setdiff1d(np.arange(len(world.entities)), world.moving)
    shadow = np.zeros(shape, np.uint8)
    cast_shadows(world, pose_parts(world, 0.0), still, shadow)
    return shadow


def cast_shadows(world: World, posed: PosedParts, owners: Array, shadow_YX: Array) -> None:
    """Set the cells of `shadow_YX` that the parts of `owners` keep from the sun to 1.

    Args:
        world: the scene.
        posed: its parts at one time, global frame.
        owners: entities that cast shadows.
        shadow_YX: changed in place.
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
    solid = posed.half_P3.min(axis=1) > FILM
    for p in np.flatnonzero(solid & np.isin(world.parts.owner_P, owners)):
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
        ray = list((into @ sun).astype(np.float32))
        kind, taper = int(world.parts.kind_P[p]), float(world.parts.taper_P[p])
        with division_by_zero_is_inf():
            shadow_YX[window] |= intersect(kind, taper, origin, ray) < np.inf
