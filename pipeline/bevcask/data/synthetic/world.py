"""Who is in a toy scene, and where everybody is at any time.

Entities are placed one after another; a candidate that would touch anything already there, at any
time of the scene, is dropped. Motion is a function of time, so a keyframe can be made on its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bevcask.data.synthetic.road import Road, build_road
from bevcask.data.synthetic.shapes import build_parts

Array = npt.NDArray[Any]

KEYFRAME_PERIOD = 0.5
EGO_LENGTH, EGO_WIDTH, EGO_HEIGHT = 4.08, 1.73, 1.56
EGO_CENTRE_AHEAD = 1.4  # the ego frame sits on the rear axle
ROAD_BEHIND, ROAD_AHEAD = 95.0, 110.0

DETECTION_CLASSES = (
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
# Mean width, length, height in metres of the nuScenes annotations.
MEAN_WLH: dict[str, tuple[float, float, float]] = {
    "car": (1.95, 4.62, 1.73),
    "truck": (2.51, 6.93, 2.84),
    "construction_vehicle": (2.73, 6.37, 3.19),
    "bus": (2.94, 10.5, 3.47),
    "trailer": (2.9, 12.29, 3.87),
    "barrier": (2.53, 0.5, 0.98),
    "motorcycle": (0.77, 2.11, 1.47),
    "bicycle": (0.6, 1.7, 1.28),
    "pedestrian": (0.67, 0.73, 1.77),
    "traffic_cone": (0.41, 0.41, 1.07),
}
RIDER_HEIGHT = {"motorcycle": 1.62, "bicycle": 1.66}
BARE_HEIGHT = {"motorcycle": 1.18, "bicycle": 1.08}


@dataclass(frozen=True)
class Entity:
    """One thing of the world; `s, d` are road coordinates at time 0.

    Attributes:
        name: class name (a detection class, or building, tree, lamp).
        size_wlh: width, length, height, metres.
        s: metres along the road.
        d: metres left of the centre line.
        speed_s: metres per second along the road.
        speed_d: metres per second to the left of it.
        convoy: moves along the road exactly as the ego does.
        yaw: heading relative to the road, radians.
        rider: a two-wheeler with somebody on it.
        parked: a vehicle without a driver.
        worker: a pedestrian at a construction site.
        seed: drives its looks.
    """

    name: str
    size_wlh: tuple[float, float, float]
    s: float
    d: float
    speed_s: float = 0.0
    speed_d: float = 0.0
    convoy: bool = False
    yaw: float = 0.0
    rider: bool = False
    parked: bool = True
    worker: bool = False
    seed: int = 0

    @property
    def annotated(self) -> bool:
        """Whether it is one of the ten detection classes."""
        return self.name in MEAN_WLH


@dataclass(frozen=True)
class EgoMotion:
    """Ego speed v(t) = mean * (1 + swing * sin(rate * t + phase)), metres per second."""

    start: float
    lane_d: float
    mean: float
    swing: float
    rate: float
    phase: float

    def travelled(self, t: Array) -> Array:
        """Metres driven since time 0."""
        wave = np.cos(self.phase) - np.cos(self.rate * t + self.phase)
        return np.asarray(self.mean * (t + self.swing / self.rate * wave))


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
        return _poses(self.road, self.ego, self.table, np.asarray(t))

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


def _tabulate(entities: list[Entity]) -> dict[str, Array]:
    fields = ("s", "d", "speed_s", "speed_d", "convoy", "yaw")
    return {f: np.array([getattr(e, f) for e in entities], np.float64) for f in fields}


def _poses(
    road: Road, ego: EgoMotion, table: dict[str, Array], t: Array
) -> tuple[Array, Array, Array]:
    s = table["s"] + table["speed_s"] * t + table["convoy"] * ego.travelled(t)
    xy, heading = road.pose(s, table["d"] + table["speed_d"] * t)
    return xy, heading + table["yaw"], (s >= 0) & (s <= road.length)


class _Crowd:
    """Accepts entities that never touch; owns the footprints of those accepted so far."""

    def __init__(self, road: Road, ego: EgoMotion, duration: float, rng: np.random.Generator):
        self.road, self.ego, self.rng = road, ego, rng
        self.times_T = np.arange(-0.25, duration + 0.3, 0.25)
        self.entities: list[Entity] = []
        ego_s = ego.start + EGO_CENTRE_AHEAD
        self._tracks = [self._track(Entity("ego", (EGO_WIDTH, EGO_LENGTH, 1.5), ego_s, ego.lane_d,
                                           convoy=True))]  # fmt: skip

    def _track(self, entity: Entity) -> Array:
        """Footprint over time (T, 6): x, y, cos, sin, half length, half width."""
        table = {k: v[None] for k, v in _tabulate([entity]).items()}
        xy, yaw, alive = _poses(
            self.road, self.ego, {k: v[:, 0] for k, v in table.items()}, self.times_T
        )
        xy = np.where(alive[:, None], xy, 1e6 + len(self.entities) * 1e3)
        w, l, _ = entity.size_wlh  # noqa: E741
        extent = np.broadcast_to([l / 2, w / 2], (len(yaw), 2))
        return np.concatenate([xy, np.cos(yaw)[:, None], np.sin(yaw)[:, None], extent], axis=1)

    def add(self, name: str, s: float, d: float, **state: Any) -> bool:
        """Place an entity unless it would touch another one; says whether it did."""
        size = state.pop("size_wlh", None) or self._size(name, bool(state.get("rider", False)))
        seed = int(self.rng.integers(2**31))
        entity = Entity(name, size, float(s), float(d), seed=seed, **state)
        track = self._track(entity)
        gap = 0.12 if name in ("barrier", "traffic_cone", "lamp", "tree") else 0.3
        if _touches(track, np.stack(self._tracks), gap):
            return False
        self._tracks.append(track)
        self.entities.append(entity)
        return True

    def _size(self, name: str, rider: bool) -> tuple[float, float, float]:
        w, l, h = MEAN_WLH[name]  # noqa: E741
        if name in RIDER_HEIGHT:
            h = (RIDER_HEIGHT if rider else BARE_HEIGHT)[name]
        jitter = np.exp(self.rng.normal(0.0, 0.06, 3))
        if name == "bus":
            jitter[:2] = np.minimum(jitter[:2], 1.03)
        return float(w * jitter[0]), float(l * jitter[1]), float(h * jitter[2])


def _touches(track_T6: Array, others_AT6: Array, gap: float) -> bool:
    """Separating-axis test of one footprint track against many, at every time."""
    offset = others_AT6[..., :2] - track_T6[None, :, :2]
    reach = np.hypot(track_T6[0, 4], track_T6[0, 5]) + gap
    near = np.linalg.norm(offset, axis=-1) < reach + np.hypot(
        others_AT6[..., 4], others_AT6[..., 5]
    )
    if not near.any():
        return False
    a = np.broadcast_to(track_T6[None], others_AT6.shape)[near]
    b, delta = others_AT6[near], offset[near]
    apart = np.zeros(len(a), bool)
    for frame in (a, b):
        for cos, sin in ((frame[:, 2], frame[:, 3]), (-frame[:, 3], frame[:, 2])):
            span = np.full(len(a), gap)
            for body in (a, b):
                along = np.abs(body[:, 2] * cos + body[:, 3] * sin)
                across = np.abs(-body[:, 3] * cos + body[:, 2] * sin)
                span += body[:, 4] * along + body[:, 5] * across
            apart |= np.abs(delta[:, 0] * cos + delta[:, 1] * sin) > span
    return bool((~apart).any())


def build_world(seed: int, scene: int, duration: float) -> World:
    """Draw one scene.

    Args:
        seed: seed of the dataset.
        scene: index of the scene in it.
        duration: seconds between first and last keyframe.

    Returns:
        The world; the same for the same arguments.
    """
    from bevcask.data.synthetic.population import populate

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
    crowd = _Crowd(road, ego, duration, rng)
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
        table=_tabulate(crowd.entities),
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
