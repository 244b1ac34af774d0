"""One toy scene: a street, the ego, everybody else, the light; a function of seed and time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bevcask.synthetic.crowd import Crowd
from bevcask.synthetic.entities import EgoMotion, Entity, poses_at, tabulate
from bevcask.synthetic.population import populate
from bevcask.synthetic.road import Road, build_road
from bevcask.synthetic.shapes import build_parts

Array = npt.NDArray[Any]

KEYFRAME_PERIOD = 0.5
ROAD_BEHIND, ROAD_AHEAD = 95.0, 110.0


@dataclass(frozen=True)
class Parts:
    """All primitives of the world, in their owners' frames (shapes as in `shapes`).

    Attributes:
        centre_P3: metres. rotation_P33: part to owner. half_P3: metres.
        kind_P, taper_P, material_P: see `shapes`. colour_P3: RGB 0-255.
        owner_P: index of the entity.
    """

    centre_P3: Array
    rotation_P33: Array
    half_P3: Array
    kind_P: Array
    taper_P: Array
    colour_P3: Array
    material_P: Array
    owner_P: Array


@dataclass(frozen=True)
class World:
    """One scene: road, ego, entities, light."""

    road: Road
    ego: EgoMotion
    entities: tuple[Entity, ...]
    parts: Parts
    duration: float
    sun_3: Array
    sky_3: Array
    table: dict[str, Array]

    def ego_pose(self, t: float) -> tuple[Array, float]:
        """Rear axle on the ground (3,) in the global frame, metres, and yaw, radians."""
        xy, heading = self.road.pose(
            self.ego.start + self.ego.travelled(np.asarray(t)), np.asarray(self.ego.lane_d)
        )
        return np.array([xy[0], xy[1], 0.0]), float(heading)

    def poses(self, t: Array | float) -> tuple[Array, Array, Array]:
        """Global footprint centres (N, 2), yaws (N) and presence (N) at time `t` (or one per N)."""
        return poses_at(self.road, self.ego, self.table, np.asarray(t))

    @property
    def moving(self) -> Array:
        """Indices of the entities that ever move."""
        speeds = [self.table[k] != 0 for k in ("speed_s", "speed_d", "convoy")]
        return np.flatnonzero(np.any(speeds, axis=0))

    @property
    def annotated(self) -> Array:
        """Whether each entity (N) belongs to a detection class."""
        return np.array([e.annotated for e in self.entities])

    def velocities(self, t: float) -> Array:
        """True velocities (N, 2), metres per second, global frame."""
        before, after = self.poses(t - 1e-3)[0], self.poses(t + 1e-3)[0]
        return np.asarray((after - before) / 2e-3)


def build_world(seed: int, scene: int, duration: float) -> World:
    """Draw one scene.

    Args:
        seed: seed of the dataset.
        scene: index of the scene in it.
        duration: seconds between first and last keyframe.

    Returns:
        The world; the same for the same arguments.
    """
    rng = np.random.default_rng([seed, scene, 0])
    ego_speed = rng.uniform(3.5, 8.0)
    road = build_road(rng, ROAD_BEHIND + ROAD_AHEAD + 1.4 * ego_speed * duration)
    ego = EgoMotion(
        start=ROAD_BEHIND,
        lane_d=-road.lane_width * (0.5 + int(rng.integers(road.lanes))),
        mean=ego_speed,
        swing=rng.uniform(0.1, 0.4),
        rate=rng.uniform(0.5, 1.0),
        phase=rng.uniform(-np.pi, np.pi),
    )
    crowd = Crowd(road, ego, duration, rng)
    populate(crowd, duration)
    azimuth, elevation = rng.uniform(-np.pi, np.pi), rng.uniform(0.6, 1.1)
    sun = [np.cos(azimuth) * np.cos(elevation), np.sin(azimuth) * np.cos(elevation)]
    sky = np.array([150, 185, 225]) * rng.uniform(0.85, 1.05) + rng.uniform(-12, 12, 3)
    return World(
        road=road,
        ego=ego,
        entities=tuple(crowd.entities),
        parts=_assemble(crowd.entities),
        duration=duration,
        sun_3=np.array([*sun, np.sin(elevation)]),
        sky_3=sky,
        table=tabulate(crowd.entities),
    )


def _assemble(entities: list[Entity]) -> Parts:
    lists = [
        build_parts(e.name, np.array(e.size_wlh), np.random.default_rng(e.seed), e.rider)
        for e in entities
    ]

    def join(field: str, dtype: type) -> Array:
        return np.array([value for parts in lists for value in getattr(parts, field)], dtype)

    return Parts(
        centre_P3=join("centre", np.float64),
        rotation_P33=join("rotation", np.float64),
        half_P3=join("half", np.float64),
        kind_P=join("kind", np.int64),
        taper_P=join("taper", np.float64),
        colour_P3=join("colour", np.float32),
        material_P=join("material", np.int64),
        owner_P=np.repeat(np.arange(len(lists)), [len(parts.kind) for parts in lists]),
    )
