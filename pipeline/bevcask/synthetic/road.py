"""The street of one toy scene, in road coordinates.

Road coordinates are (s, d): s metres along the centre line, d metres to its left. Everything in
the world is placed and moved in them, so that traffic follows the bends without a planner.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

STEP = 0.5
MARGIN = 75.0
MIN_RADIUS = 45.0
MAX_HEADING = np.radians(70.0)


@dataclass(frozen=True)
class Road:
    """A centre line and the widths of the strips beside it.

    Attributes:
        xy_S2: centre line in the global frame, metres, one point every `STEP` metres.
        heading_S: its direction, radians, continuous.
        lanes: traffic lanes per direction (right-hand traffic: the forward lanes have d < 0).
        lane_width: width of one lane, metres.
        crossings_K: s of the cross streets.
    """

    xy_S2: Array
    heading_S: Array
    lanes: int
    lane_width: float
    crossings_K: Array
    bike_width: float = 1.6
    parking_width: float = 3.3
    sidewalk_width: float = 3.2
    crossing_half_width: float = 5.0

    @property
    def length(self) -> float:
        """Length of the centre line, metres."""
        return (len(self.xy_S2) - 1) * STEP

    @property
    def traffic_edge(self) -> float:
        """|d| of the outer edge of the outermost traffic lane."""
        return self.lanes * self.lane_width

    @property
    def bike_edge(self) -> float:
        """|d| of the border between cycle lane and parking lane."""
        return self.traffic_edge + self.bike_width

    @property
    def curb(self) -> float:
        """|d| of the border between parking lane and sidewalk."""
        return self.bike_edge + self.parking_width

    @property
    def sidewalk_edge(self) -> float:
        """|d| where the sidewalk ends and the lots begin."""
        return self.curb + self.sidewalk_width

    def pose(self, s: Array, d: Array) -> tuple[Array, Array]:
        """Global position (..., 2) in metres and road heading (...) in radians at (s, d)."""
        index = np.clip(np.asarray(s, np.float64) / STEP, 0, len(self.xy_S2) - 1)
        grid = np.arange(len(self.xy_S2))
        x = np.interp(index, grid, self.xy_S2[:, 0])
        y = np.interp(index, grid, self.xy_S2[:, 1])
        heading = np.interp(index, grid, self.heading_S)
        return np.stack([x - np.sin(heading) * d, y + np.cos(heading) * d], axis=-1), heading


def _headings(rng: np.random.Generator, points: int) -> Array:
    """Random straights and bends; the heading stays within `MAX_HEADING` of its start."""
    curvature = np.zeros(points)
    cursor, heading = 0, 0.0
    while cursor < points:
        straight = int(rng.uniform(10, 45) / STEP)
        cursor += straight
        bend = int(rng.uniform(20, 45) / STEP)
        kappa = rng.choice([-1.0, 1.0]) / rng.uniform(MIN_RADIUS, 110.0)
        if abs(heading + kappa * bend * STEP) > MAX_HEADING:
            kappa = -kappa
        curvature[cursor : cursor + bend] = kappa
        heading += kappa * bend * STEP
        cursor += bend
    smooth = np.convolve(curvature, np.ones(16) / 16, mode="same")
    return np.asarray(np.cumsum(smooth) * STEP)


def build_road(rng: np.random.Generator, length: float) -> Road:
    """Draw a street of at least `length` metres; its corner of the global frame is near (0, 0)."""
    points = int(np.ceil(length / STEP)) + 1
    heading_S = _headings(rng, points) + rng.uniform(-np.pi, np.pi)
    steps = np.stack([np.cos(heading_S), np.sin(heading_S)], axis=-1) * STEP
    xy_S2 = np.cumsum(steps, axis=0)
    xy_S2 += MARGIN - xy_S2.min(axis=0)
    first = rng.uniform(40.0, 90.0)
    crossings = np.arange(first, length, rng.uniform(75.0, 110.0))
    return Road(
        xy_S2=xy_S2,
        heading_S=heading_S,
        lanes=int(rng.integers(1, 3)),
        lane_width=float(rng.uniform(3.4, 3.8)),
        crossings_K=crossings,
    )
