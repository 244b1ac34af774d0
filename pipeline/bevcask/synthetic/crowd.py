"""Keeps the entities of a scene from ever touching each other."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from bevcask.synthetic.entities import (
    BARE_HEIGHT,
    EGO_CENTRE_AHEAD,
    EGO_LENGTH,
    EGO_WIDTH,
    MEAN_WLH,
    RIDER_HEIGHT,
    EgoMotion,
    Entity,
    poses_at,
    tabulate,
)
from bevcask.synthetic.road import Road

Array = npt.NDArray[Any]


class Crowd:
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
        table = {k: v[None] for k, v in tabulate([entity]).items()}
        xy, yaw, alive = poses_at(
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
