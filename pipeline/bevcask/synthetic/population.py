"""Fills a street: traffic, building sites, parked vehicles, people, houses, trees."""

from __future__ import annotations

from typing import Any

import numpy as np

from bevcask.synthetic.crowd import Crowd
from bevcask.synthetic.entities import MEAN_WLH
from bevcask.synthetic.road import Road


def populate(crowd: Crowd, duration: float) -> None:
    """Add everything to `crowd`, what matters most first."""
    _traffic(crowd, duration)
    _cyclists(crowd, duration)
    _building_sites(crowd)
    for side in (-1.0, 1.0):
        _parking_lane(crowd, side)
        _crossing_queue(crowd, side)
        _lots(crowd, side)
        _walkers(crowd, side)
        _scenery(crowd, side)


def _pick(rng: np.random.Generator, weights: dict[str, float]) -> str:
    names = list(weights)
    p = np.array([weights[n] for n in names])
    return names[int(rng.choice(len(names), p=p / p.sum()))]


MOVING = {"car": 0.4, "truck": 0.1, "truck+trailer": 0.16, "bus": 0.18, "motorcycle": 0.16}


def _traffic(crowd: Crowd, duration: float) -> None:
    """Vehicles in the traffic lanes; each lane has one speed, the ego's lane the ego's."""
    road, rng = crowd.road, crowd.rng
    for direction in (-1.0, 1.0):
        for lane in range(road.lanes):
            d = direction * road.lane_width * (lane + 0.5)
            ego_lane = abs(d - crowd.ego.lane_d) < 0.1
            queue = not ego_lane and rng.random() < 0.2
            speed = 0.0 if queue else rng.uniform(4.0, 9.0)
            state: dict[str, Any] = {"convoy": True} if ego_lane else {}
            state |= {} if ego_lane else {"speed_s": -direction * speed}
            state |= {"yaw": np.pi if direction > 0 else 0.0, "parked": False, "rider": True}
            reach = (1.4 * crowd.ego.mean if ego_lane else speed) * duration
            ahead = reach if direction > 0 else 0.0
            cursor = rng.uniform(0, 20) - (reach if direction < 0 else 0.0)
            while cursor < road.length + ahead:
                cursor = _drive(crowd, cursor, d, -direction, state)
                cursor += 4.0 + rng.exponential(9.0 if queue else 22.0 * road.lanes / 1.5)


def _drive(crowd: Crowd, s: float, d: float, heading: float, state: dict[str, Any]) -> float:
    """Put one vehicle, or a truck with its trailer, at `s`; returns where it ends."""
    name = _pick(crowd.rng, MOVING)
    first, *rest = name.split("+")
    lateral = d + crowd.rng.normal(0, 0.12)
    if not rest:
        length = MEAN_WLH[name][1]
        crowd.add(name, s + length / 2, lateral, **state)
        return s + length
    truck, trailer = MEAN_WLH["truck"][1], MEAN_WLH["trailer"][1]
    gap, total = 2.2, MEAN_WLH["truck"][1] + MEAN_WLH["trailer"][1] + 2.2
    truck_s = s + total - truck / 2 if heading > 0 else s + truck / 2
    trailer_s = s + trailer / 2 if heading > 0 else s + truck + gap + trailer / 2
    if crowd.add(first, truck_s, lateral, **state):
        crowd.add("trailer", trailer_s, lateral, **state)
    return s + total


def _cyclists(crowd: Crowd, duration: float) -> None:
    road, rng = crowd.road, crowd.rng
    for direction in (-1.0, 1.0):
        speed = rng.uniform(2.5, 5.0)
        d = direction * (road.traffic_edge + road.bike_width / 2)
        span = speed * duration
        cursor = -span if direction < 0 else 0.0
        while cursor < road.length + (span if direction > 0 else 0.0):
            cursor += rng.exponential(50.0) + 3.0
            yaw = np.pi if direction > 0 else 0.0
            crowd.add(
                "bicycle", cursor, d, speed_s=-direction * speed, yaw=yaw, rider=True, parked=False
            )


def _at_crossing(road: Road, s: float, margin: float) -> bool:
    return bool((np.abs(road.crossings_K - s) < road.crossing_half_width + margin).any())


def _building_sites(crowd: Crowd) -> None:
    """Fenced works in the parking lane: machine, barriers, cones, workers."""
    road, rng = crowd.road, crowd.rng
    side, cursor = rng.choice([-1.0, 1.0]), rng.uniform(5.0, 25.0)
    centre_d = (road.bike_edge + road.curb) / 2
    while cursor < road.length:
        if _at_crossing(road, cursor, 9.0):
            cursor += 8.0
            continue
        turn = rng.choice([0.0, np.pi]) + rng.normal(0, 0.06)
        crowd.add("construction_vehicle", cursor, side * (centre_d + 0.35), yaw=turn)
        fence_d = side * (road.bike_edge - 0.1)
        start = -rng.uniform(4.5, 6.5)
        for i in range(int(rng.integers(3, 6))):
            yaw = np.pi / 2 + rng.normal(0, 0.05)
            crowd.add("barrier", cursor + start + 2.95 * i, fence_d, yaw=yaw)
        for end in (-1.0, 1.0):
            for i in range(int(rng.integers(1, 4))):
                along = cursor + end * (6.4 + 1.5 * i) + rng.normal(0, 0.1)
                crowd.add("traffic_cone", along, fence_d + side * 0.55 * i)
        if rng.random() < 0.7:
            away = rng.choice([-1.0, 1.0]) * rng.uniform(4.2, 6.0)
            yaw = rng.uniform(-np.pi, np.pi)
            crowd.add("pedestrian", cursor + away, side * centre_d, yaw=yaw, worker=True)
        side, cursor = -side, cursor + rng.uniform(24.0, 36.0)


PARKED = {
    "car": 0.34,
    "truck": 0.1,
    "bus": 0.17,
    "trailer": 0.16,
    "motorcycle": 0.08,
    "bicycle": 0.1,
}


def _parking_lane(crowd: Crowd, side: float) -> None:
    road, rng = crowd.road, crowd.rng
    centre_d = (road.bike_edge + road.curb) / 2
    cursor = rng.uniform(0, 5)
    while cursor < road.length:
        name = _pick(rng, PARKED)
        length = MEAN_WLH[name][1]
        s = cursor + length / 2
        if _at_crossing(road, s, 3.0 + length / 2):
            cursor += 3.0
            continue
        if name in ("motorcycle", "bicycle"):
            for i in range(int(rng.integers(1, 3))):
                yaw = np.pi / 2 + rng.normal(0, 0.25) + rng.choice([0, np.pi])
                crowd.add(name, s + 1.3 * i, side * (road.curb - 1.3), yaw=yaw)
            cursor += 4.5 + rng.exponential(2.0)
            continue
        yaw = (np.pi if side > 0 else 0.0) + rng.normal(0, 0.03)
        placed = crowd.add(name, s, side * (centre_d + rng.normal(0, 0.1)), yaw=yaw)
        cursor += length + 1.2 + rng.exponential(7.0) if placed else 1.5


def _crossing_queue(crowd: Crowd, side: float) -> None:
    """Vehicles that wait at the end of the cross streets, square to the ego's road."""
    road, rng = crowd.road, crowd.rng
    for s in road.crossings_K:
        d = road.sidewalk_edge + 1.0
        for _ in range(int(rng.integers(1, 4))):
            name = _pick(rng, {"car": 0.5, "truck": 0.2, "bus": 0.15, "motorcycle": 0.15})
            length = MEAN_WLH[name][1]
            yaw = (-np.pi / 2 if side > 0 else np.pi / 2) + rng.normal(0, 0.04)
            lane = s - side * 2.2
            crowd.add(name, lane, side * (d + length / 2), yaw=yaw, parked=False, rider=True)
            d += length + rng.uniform(2.0, 5.0)


LOTS = {"car": 0.42, "truck": 0.14, "construction_vehicle": 0.16, "trailer": 0.14, "bus": 0.14}


def _lots(crowd: Crowd, side: float) -> None:
    """Vehicles at any angle on the ground behind the sidewalk."""
    road, rng = crowd.road, crowd.rng
    cursor = rng.uniform(0, 20)
    while cursor < road.length:
        if not _at_crossing(road, cursor, 7.0):
            d = road.sidewalk_edge + rng.uniform(3.5, 12.0)
            yaw = rng.choice([np.pi / 2, -np.pi / 2, rng.uniform(-np.pi, np.pi)])
            crowd.add(_pick(rng, LOTS), cursor, side * d, yaw=yaw)
        cursor += 7.0 + rng.exponential(24.0)


def _walkers(crowd: Crowd, side: float) -> None:
    """People: most on the sidewalk, some beside the cycle lane, some on the crossings."""
    road, rng = crowd.road, crowd.rng
    cursor = rng.uniform(0, 10)
    while cursor < road.length:
        if rng.random() < 0.6:
            d = side * rng.uniform(road.curb + 0.5, road.sidewalk_edge - 0.4)
        else:
            d = side * (road.bike_edge - rng.uniform(0.0, 0.3))
        if rng.random() < 0.7:
            heading = rng.choice([-1.0, 1.0])
            yaw = 0.0 if heading > 0 else np.pi
            crowd.add("pedestrian", cursor, d, speed_s=heading * rng.uniform(0.7, 1.7), yaw=yaw)
        else:
            crowd.add("pedestrian", cursor, d, yaw=rng.uniform(-np.pi, np.pi))
        cursor += 2.0 + rng.exponential(10.0)
    for crossing in road.crossings_K:
        for _ in range(6):
            s = crossing + rng.choice([-1.0, 1.0]) * (road.crossing_half_width + 1.9)
            d, speed = side * rng.uniform(0.0, road.curb + 2.0), rng.uniform(0.7, 1.7)
            crowd.add(
                "pedestrian",
                s + rng.uniform(-1.0, 1.0),
                d,
                speed_d=-side * speed,
                yaw=-side * np.pi / 2,
            )


def _scenery(crowd: Crowd, side: float) -> None:
    """Buildings, trees and street lamps: never annotated."""
    road, rng = crowd.road, crowd.rng
    cursor = rng.uniform(0, 12)
    while cursor < road.length:
        width, depth, height = rng.uniform(10, 24), rng.uniform(8, 14), rng.uniform(5, 20)
        s = cursor + width / 2
        if not _at_crossing(road, s, 2.0 + width / 2):
            d = side * (road.sidewalk_edge + depth / 2 + rng.choice([0.5, 8.0, 13.0]))
            crowd.add("building", s, d, size_wlh=(depth, width, height))
        cursor += width + rng.uniform(2, 9)
    for s in np.arange(rng.uniform(0, 9), road.length, 9.0):
        crown, height = rng.uniform(2.4, 4.5), rng.uniform(4.5, 8.5)
        d = side * (road.sidewalk_edge + rng.uniform(2.0, 16.0))
        if not _at_crossing(road, s, 3.0):
            crowd.add("tree", s + rng.normal(0, 1.5), d, size_wlh=(crown, crown, height))
    for s in np.arange(rng.uniform(0, 20), road.length, 26.0):
        if not _at_crossing(road, s, 1.0):
            yaw = -side * np.pi / 2
            crowd.add("lamp", s, side * (road.curb + 0.3), size_wlh=(0.3, 0.3, 7.5), yaw=yaw)
