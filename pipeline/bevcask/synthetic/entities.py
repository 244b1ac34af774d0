"""What stands or moves in a toy scene, and how it moves: a closed function of time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bevcask.synthetic.road import Road

Array = npt.NDArray[Any]

EGO_LENGTH, EGO_WIDTH = 4.08, 1.73
EGO_CENTRE_AHEAD = 1.4  # the ego frame sits on the rear axle

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


def tabulate(entities: list[Entity]) -> dict[str, Array]:
    """Motion parameters of the entities as arrays (N)."""
    fields = ("s", "d", "speed_s", "speed_d", "convoy", "yaw")
    return {f: np.array([getattr(e, f) for e in entities], np.float64) for f in fields}


def poses_at(
    road: Road, ego: EgoMotion, table: dict[str, Array], t: Array
) -> tuple[Array, Array, Array]:
    """Global footprint centres (..., 2), yaws and presence at time `t`, from `tabulate`."""
    s = table["s"] + table["speed_s"] * t + table["convoy"] * ego.travelled(t)
    xy, heading = road.pose(s, table["d"] + table["speed_d"] * t)
    return xy, heading + table["yaw"], (s >= 0) & (s <= road.length)
