"""What things look like: every object is a handful of solid primitives.

A part is a box, an ellipsoid or a frustum. Its own frame is scaled so that the primitive spans
[-1, 1] on each axis; `half` holds the scale. Object frame: x forward, y left, z up, origin in the
middle of the footprint on the ground, metres.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

BOX, ELLIPSOID, FRUSTUM = 0, 1, 2
PLAIN, WINDOWS = 0, 1

# One palette for all classes: colour alone says nothing about what a thing is.
PALETTE_C3 = np.array(
    [
        [196, 48, 43], [232, 126, 34], [240, 196, 60], [90, 160, 70], [40, 110, 90],
        [52, 120, 190], [36, 62, 120], [120, 80, 160], [225, 225, 222], [168, 172, 176],
        [92, 96, 102], [120, 84, 60], [205, 180, 150], [210, 110, 140],
    ],
    dtype=np.float32,
)  # fmt: skip
RUBBER = np.array([28, 28, 30], np.float32)
GLASS = np.array([54, 66, 80], np.float32)
METAL = np.array([120, 122, 126], np.float32)
WHITE = np.array([236, 236, 232], np.float32)
RED = np.array([190, 30, 30], np.float32)
SKINS_C3 = np.array([[224, 180, 150], [180, 130, 100], [110, 76, 56]], np.float32)
LEAVES_C3 = np.array([[70, 110, 50], [86, 124, 60], [56, 96, 52], [120, 120, 56]], np.float32)
WALLS_C3 = np.array(
    [[186, 164, 140], [160, 92, 74], [200, 196, 188], [132, 136, 144], [206, 184, 130]], np.float32
)


@dataclass
class PartList:
    """Grows the parts of one object; coordinates are fractions of the object's l, w, h.

    Attributes:
        l: length in metres; w and h: width and height.
    """

    l: float  # noqa: E741
    w: float
    h: float
    centre: list[Array] = field(default_factory=list)
    rotation: list[Array] = field(default_factory=list)
    half: list[Array] = field(default_factory=list)
    kind: list[int] = field(default_factory=list)
    taper: list[float] = field(default_factory=list)
    colour: list[Array] = field(default_factory=list)
    material: list[int] = field(default_factory=list)

    def add(
        self,
        centre: tuple[float, float, float],
        half: tuple[float, float, float],
        colour: Array,
        *,
        kind: int = BOX,
        taper: float = 1.0,
        rotation: Array | None = None,
        material: int = PLAIN,
    ) -> None:
        """Add one part; `centre` and `half` in metres, object frame."""
        self.centre.append(np.array(centre))
        self.half.append(np.maximum(np.array(half), 0.008))
        self.rotation.append(np.eye(3) if rotation is None else rotation)
        self.kind.append(kind)
        self.taper.append(taper)
        self.colour.append(colour)
        self.material.append(material)

    def box(
        self,
        x: tuple[float, float],
        y: tuple[float, float],
        z: tuple[float, float],
        colour: Array,
        *,
        kind: int = BOX,
        taper: float = 1.0,
        material: int = PLAIN,
    ) -> None:
        """Add an upright part from ranges: x, y in [-0.5, 0.5], z in [0, 1]."""
        scale = np.array([self.l, self.w, self.h])
        low = np.array([x[0], y[0], z[0]]) * scale
        high = np.array([x[1], y[1], z[1]]) * scale
        centre, half = (low + high) / 2, (high - low) / 2
        self.add(tuple(centre), tuple(half), colour, kind=kind, taper=taper, material=material)

    def wheel(self, x: float, y: float, radius: float, width: float) -> None:
        """Add a wheel on the ground; x, y fractions, `radius` and `width` metres."""
        inward = np.sign(y) * width / 2
        centre = (x * self.l, y * self.w - inward, radius)
        self.add(centre, (radius, radius, width / 2), RUBBER, kind=FRUSTUM, rotation=_AXLE)
        hub = (x * self.l, y * self.w - np.sign(y) * 0.01, radius)
        self.add(hub, (radius * 0.5, radius * 0.5, 0.012), METAL, kind=FRUSTUM, rotation=_AXLE)

    def bar(
        self,
        start: tuple[float, float],
        end: tuple[float, float],
        thickness: float,
        width: float,
        colour: Array,
        y: float = 0.0,
    ) -> None:
        """Add a slanted beam between two (x, z) fractions, `thickness` and `width` metres."""
        a = np.array([start[0] * self.l, y * self.w, start[1] * self.h])
        b = np.array([end[0] * self.l, y * self.w, end[1] * self.h])
        length = float(np.linalg.norm(b - a))
        pitch = np.arctan2(b[2] - a[2], b[0] - a[0])
        c, s = np.cos(pitch), np.sin(pitch)
        rotation = np.array([[c, 0, -s], [0, 1, 0], [s, 0, c]])
        half = (length / 2, width / 2, thickness / 2)
        self.add(tuple((a + b) / 2), half, colour, rotation=rotation)


_AXLE = np.array([[1.0, 0, 0], [0, 0, -1.0], [0, 1.0, 0]])


def _paint(rng: np.random.Generator) -> Array:
    return np.asarray(PALETTE_C3[rng.integers(len(PALETTE_C3))] * rng.uniform(0.85, 1.08))


def _car(p: PartList, rng: np.random.Generator, rider: bool) -> None:
    body = _paint(rng)
    rear, front = rng.choice([-0.42, -0.30, -0.49]), rng.uniform(0.16, 0.26)
    hood = rng.uniform(0.54, 0.62)
    p.box((-0.5, 0.5), (-0.48, 0.48), (0.17, hood), body)
    p.box((rear, front), (-0.43, 0.43), (hood, 0.94), GLASS)
    p.box((rear + 0.03, front - 0.04), (-0.41, 0.41), (0.93, 1.0), body)
    for y in (-0.36, 0.36):
        p.box((0.49, 0.503), (y - 0.09, y + 0.09), (hood - 0.14, hood - 0.05), WHITE)
        p.box((-0.503, -0.49), (y - 0.09, y + 0.09), (hood - 0.14, hood - 0.05), RED)
    for x in (-0.3, 0.31):
        for y in (-0.5, 0.5):
            p.wheel(x, y, 0.33, 0.22)


def _truck(p: PartList, rng: np.random.Generator, rider: bool) -> None:
    cab, cargo = _paint(rng), _paint(rng)
    p.box((0.22, 0.5), (-0.46, 0.46), (0.16, 0.82), cab)
    p.box((0.47, 0.503), (-0.40, 0.40), (0.52, 0.76), GLASS)
    p.box((0.33, 0.45), (-0.465, 0.465), (0.52, 0.76), GLASS)
    p.box((-0.48, 0.24), (-0.2, 0.2), (0.14, 0.26), METAL)
    if rng.random() < 0.65:
        p.box((-0.5, 0.18), (-0.5, 0.5), (0.26, 1.0), cargo)
    else:
        p.box((-0.5, 0.18), (-0.5, 0.5), (0.26, 0.34), cargo)
        for y in (-0.48, 0.48):
            p.box((-0.5, 0.18), (y - 0.02, y + 0.02), (0.26, 0.62), cargo)
        p.box((0.14, 0.18), (-0.5, 0.5), (0.26, 1.0), cargo)
        p.box((-0.45, 0.1), (-0.4, 0.4), (0.3, 0.75), _paint(rng), kind=ELLIPSOID)
    for x in (-0.34, -0.18, 0.36):
        for y in (-0.48, 0.48):
            p.wheel(x, y, 0.46, 0.3)


def _bus(p: PartList, rng: np.random.Generator, rider: bool) -> None:
    body, stripe = _paint(rng), _paint(rng)
    p.box((-0.5, 0.5), (-0.485, 0.485), (0.1, 0.97), body)
    p.box((-0.46, 0.47), (-0.495, 0.495), (0.46, 0.78), GLASS)
    p.box((-0.49, 0.49), (-0.492, 0.492), (0.3, 0.37), stripe)
    p.box((0.48, 0.502), (-0.44, 0.44), (0.38, 0.84), GLASS)
    p.box((-0.502, -0.48), (-0.38, 0.38), (0.5, 0.8), GLASS)
    p.box((-0.3, 0.1), (-0.3, 0.3), (0.96, 1.0), METAL)
    for x in (-0.28, 0.3):
        for y in (-0.5, 0.5):
            p.wheel(x, y, 0.48, 0.3)


def _trailer(p: PartList, rng: np.random.Generator, rider: bool) -> None:
    body, rib = _paint(rng), _paint(rng)
    p.box((-0.5, 0.5), (-0.5, 0.5), (0.3, 1.0), body)
    for x in np.linspace(-0.42, 0.42, 5):
        p.box((x - 0.008, x + 0.008), (-0.506, 0.506), (0.32, 0.98), rib)
    p.box((-0.48, 0.45), (-0.18, 0.18), (0.22, 0.3), METAL)
    p.box((0.26, 0.28), (-0.3, 0.3), (0.0, 0.28), METAL)
    for x in (-0.42, -0.33, -0.24):
        for y in (-0.47, 0.47):
            p.wheel(x, y, 0.48, 0.3)


def _construction(p: PartList, rng: np.random.Generator, rider: bool) -> None:
    body = _paint(rng)
    if rng.random() < 0.6:  # excavator
        for y in (-0.39, 0.39):
            p.box((-0.46, 0.2), (y - 0.11, y + 0.11), (0.0, 0.26), RUBBER)
        p.box((-0.5, 0.1), (-0.45, 0.45), (0.3, 0.6), body)
        p.box((-0.14, 0.12), (0.05, 0.44), (0.55, 0.95), GLASS)
        p.box((-0.14, 0.12), (0.04, 0.45), (0.92, 0.97), body)
        p.bar((0.05, 0.5), (0.28, 0.96), 0.34, 0.36, body, y=-0.12)
        p.bar((0.26, 0.97), (0.44, 0.3), 0.26, 0.3, body, y=-0.12)
        p.box((0.36, 0.5), (-0.36, 0.12), (0.03, 0.28), METAL)
        return
    p.box((-0.5, 0.12), (-0.34, 0.34), (0.28, 0.6), body)  # wheel loader
    p.box((-0.22, 0.08), (-0.26, 0.26), (0.58, 0.97), GLASS)
    p.box((-0.24, 0.1), (-0.28, 0.28), (0.95, 1.0), body)
    for y in (-0.22, 0.22):
        p.bar((0.05, 0.58), (0.42, 0.24), 0.2, 0.16, body, y=y)
    p.box((0.38, 0.5), (-0.5, 0.5), (0.04, 0.36), METAL)
    for x in (-0.3, 0.18):
        for y in (-0.48, 0.48):
            p.wheel(x, y, 0.68, 0.5)


def _rider(p: PartList, rng: np.random.Generator, seat: float, x: float) -> None:
    top, trousers = _paint(rng), _paint(rng)
    p.bar((x - 0.06, seat), (x + 0.06, 0.86), 0.24, min(0.44, 0.7 * p.w), top)
    p.box((x + 0.03, x + 0.15), (-0.17, 0.17), (0.86, 1.0), _paint(rng), kind=ELLIPSOID)
    for y in (-0.2, 0.2):
        p.bar((x + 0.14, 0.16), (x - 0.03, seat), 0.14, 0.14, trousers, y=y)
        p.bar((x + 0.05, 0.8), (0.24, seat + 0.09), 0.09, 0.09, top, y=y * 1.6)


def _motorcycle(p: PartList, rng: np.random.Generator, rider: bool) -> None:
    body = _paint(rng)
    seat = 0.52 if rider else 0.7
    for x in (-0.35, 0.35):
        p.add((x * p.l, 0, 0.3), (0.3, 0.3, 0.08), RUBBER, kind=FRUSTUM, rotation=_AXLE)
    p.box((-0.3, 0.26), (-0.2, 0.2), (0.45 * seat, 0.8 * seat), METAL)
    p.box((-0.46, 0.0), (-0.2, 0.2), (0.82 * seat, seat), RUBBER)
    p.box((0.0, 0.26), (-0.26, 0.26), (0.75 * seat, 1.15 * seat), body, kind=ELLIPSOID)
    p.bar((0.36, 0.3), (0.22, 1.25 * seat), 0.1, 0.16, body)
    p.box((0.18, 0.24), (-0.5, 0.5), (1.25 * seat, 1.34 * seat), RUBBER)
    p.box((0.28, 0.4), (-0.16, 0.16), (1.0 * seat, 1.3 * seat), WHITE, kind=ELLIPSOID)
    if rider:
        _rider(p, rng, seat, -0.12)


def _bicycle(p: PartList, rng: np.random.Generator, rider: bool) -> None:
    frame = _paint(rng)
    seat = 0.54 if rider else 0.86
    for x in (-0.3, 0.3):
        p.add((x * p.l, 0, 0.33), (0.33, 0.33, 0.025), RUBBER, kind=FRUSTUM, rotation=_AXLE)
        p.add((x * p.l, 0, 0.33), (0.27, 0.27, 0.028), METAL, kind=FRUSTUM, rotation=_AXLE)
    wheel = 0.33 / p.h
    p.bar((-0.3, wheel), (0.0, wheel * 0.9), 0.05, 0.06, frame)
    p.bar((0.0, wheel * 0.9), (0.22, seat * 0.95), 0.06, 0.06, frame)
    p.bar((0.0, wheel * 0.9), (-0.1, seat), 0.06, 0.06, frame)
    p.bar((-0.09, seat * 0.92), (0.22, seat * 0.92), 0.06, 0.06, frame)
    p.bar((0.3, wheel), (0.2, seat * 1.12), 0.06, 0.06, frame)
    p.box((-0.18, -0.04), (-0.14, 0.14), (seat, seat + 0.05), RUBBER)
    p.box((0.17, 0.23), (-0.5, 0.5), (seat * 1.1, seat * 1.1 + 0.035), RUBBER)
    if rider:
        _rider(p, rng, seat + 0.04, -0.12)


def _pedestrian(p: PartList, rng: np.random.Generator, rider: bool) -> None:
    top, trousers, skin = _paint(rng), _paint(rng), SKINS_C3[rng.integers(len(SKINS_C3))]
    stride = rng.uniform(0.2, 0.36)
    for y, sign in ((-0.16, 1.0), (0.16, -1.0)):
        p.bar((sign * stride, 0.02), (0.0, 0.5), 0.17, 0.17, trousers, y=y)
        p.box((sign * stride - 0.1, sign * stride + 0.18), (y - 0.1, y + 0.1), (0.0, 0.05), RUBBER)
        p.bar((-sign * stride * 0.8, 0.46), (0.0, 0.8), 0.11, 0.11, top, y=y * 2.5)
    p.box((-0.17, 0.17), (-0.32, 0.32), (0.46, 0.84), top)
    p.box((-0.15, 0.15), (-0.16, 0.16), (0.85, 1.0), skin, kind=ELLIPSOID)
    if rng.random() < 0.4:
        p.box((-0.36, -0.16), (-0.24, 0.24), (0.52, 0.8), _paint(rng))


def _cone(p: PartList, rng: np.random.Generator, rider: bool) -> None:
    body, band = _paint(rng), WHITE
    p.box((-0.5, 0.5), (-0.5, 0.5), (0.0, 0.05), body)
    edges, reach = (0.05, 0.4, 0.62, 1.0), (0.4, 0.262, 0.176, 0.05)
    for i, colour in enumerate((body, band, body)):
        r = reach[i]
        p.box((-r, r), (-r, r), edges[i : i + 2], colour, kind=FRUSTUM, taper=reach[i + 1] / r)  # type: ignore[arg-type]


def _barrier(p: PartList, rng: np.random.Generator, rider: bool) -> None:
    body, stripe = _paint(rng), _paint(rng)
    if rng.random() < 0.5:  # concrete profile
        p.box((-0.5, 0.5), (-0.5, 0.5), (0.0, 0.28), body)
        p.box((-0.3, 0.3), (-0.5, 0.5), (0.28, 0.55), body)
        p.box((-0.18, 0.18), (-0.5, 0.5), (0.55, 1.0), body)
        return
    for y in (-0.42, 0.42):
        p.box((-0.5, 0.5), (y - 0.03, y + 0.03), (0.0, 0.1), METAL)
        p.box((-0.1, 0.1), (y - 0.03, y + 0.03), (0.0, 0.95), METAL)
    for i, y in enumerate(np.linspace(-0.5, 0.4, 10)):
        colour = stripe if i % 2 else WHITE
        p.box((-0.16, 0.16), (y, y + 0.1), (0.62, 1.0), colour)
        p.box((-0.16, 0.16), (y, y + 0.1), (0.22, 0.44), colour)


def _building(p: PartList, rng: np.random.Generator, rider: bool) -> None:
    wall = WALLS_C3[rng.integers(len(WALLS_C3))] * rng.uniform(0.85, 1.1)
    p.box((-0.5, 0.5), (-0.5, 0.5), (0.0, 0.97), wall, material=WINDOWS)
    p.box((-0.505, 0.505), (-0.505, 0.505), (0.97, 1.0), METAL)


def _tree(p: PartList, rng: np.random.Generator, rider: bool) -> None:
    leaves = LEAVES_C3[rng.integers(len(LEAVES_C3))] * rng.uniform(0.85, 1.1)
    p.box((-0.05, 0.05), (-0.05, 0.05), (0.0, 0.55), PALETTE_C3[11], kind=FRUSTUM, taper=0.6)
    p.box((-0.5, 0.4), (-0.5, 0.4), (0.38, 0.85), leaves, kind=ELLIPSOID)
    p.box((-0.35, 0.5), (-0.3, 0.5), (0.55, 1.0), leaves * 1.08, kind=ELLIPSOID)


def _lamp(p: PartList, rng: np.random.Generator, rider: bool) -> None:
    p.add((0, 0, p.h / 2), (0.08, 0.08, p.h / 2), METAL, kind=FRUSTUM, taper=0.6)
    p.add((0.6, 0, p.h - 0.05), (0.7, 0.06, 0.05), METAL)
    p.add((1.2, 0, p.h - 0.1), (0.25, 0.12, 0.06), WHITE)


BUILDERS: dict[str, Callable[[PartList, np.random.Generator, bool], None]] = {
    "car": _car,
    "truck": _truck,
    "bus": _bus,
    "trailer": _trailer,
    "construction_vehicle": _construction,
    "motorcycle": _motorcycle,
    "bicycle": _bicycle,
    "pedestrian": _pedestrian,
    "traffic_cone": _cone,
    "barrier": _barrier,
    "building": _building,
    "tree": _tree,
    "lamp": _lamp,
}
# Annotators draw boxes a touch larger than the thing; it also keeps noisy returns inside.
FILL = 0.97


def build_parts(name: str, size_wlh: Array, rng: np.random.Generator, rider: bool) -> PartList:
    """Parts of one object of class `name`; it fills `FILL` of its annotated box.

    Args:
        name: a key of `BUILDERS`.
        size_wlh: width, length, height in metres.
        rng: drives colours and variants.
        rider: whether somebody sits on a two-wheeler.

    Returns:
        The parts, in the object frame.
    """
    w, l, h = (float(v) * FILL for v in size_wlh)  # noqa: E741
    parts = PartList(l=l, w=w, h=h)
    BUILDERS[name](parts, rng, rider)
    return parts
