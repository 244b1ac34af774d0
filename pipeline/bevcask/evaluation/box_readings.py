"""How the columns of boxes could have been meant: place, classes, size, height, yaw, velocity."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from bevcask.evaluation.map_readings import Truth
from bevcask.evaluation.readings import (
    DECLARED,
    SYMMETRIES,
    Finding,
    Floats,
    class_order,
    decide,
    matrices,
    named,
)
from bevcask.geometry import CLASSES

_NEAR = 2.0  # metres: a box found
_LOST = 4.0  # metres: farther is no worse
_NEARLY_LOST = 3.2  # metres; the other bounds of what is believed: see where they are used
_PER_BOX = 1.5  # best boxes looked at, for each true one
_MOVES = 1.0  # m/s
_SAYS_IT_MOVES = 0.5  # m/s
_KNOWN_WAY = 0.3  # 1 - cosine
_SCALE_MARGIN = 0.25  # teachers that say half the speed exist
_TURNLESS = ("traffic_cone",)
_HEADLESS = ("traffic_cone", "barrier")
_USUAL_CELLS = (0.075, 0.1, 0.6, 0.8)
SIZES = {
    DECLARED: (0, 1, 2),
    "l and w exchanged": (1, 0, 2),
    "l and h exchanged": (2, 1, 0),
    "w and h exchanged": (0, 2, 1),
    "h, l, w": (2, 0, 1),
    "w, h, l": (1, 2, 0),
}
YAWS = {  # sign, degrees
    DECLARED: (1, 0),
    "turned by 90 degrees": (1, -90),
    "sign flipped": (-1, 0),
    "sign flipped and turned by 90 degrees": (-1, 90),
}
_TURNED = {
    "turned by 90 degrees": "turned by -90 degrees",
    "sign flipped": "sign flipped and turned by 180 degrees",
    "sign flipped and turned by 90 degrees": "sign flipped and turned by -90 degrees",
}
HEIGHTS = {DECLARED: 0.0, "z of the bottom, taken for the centre": 0.5,
           "z of the centre, taken for the bottom": -0.5}  # fmt: skip


@dataclass
class BoxReading:
    """How boxes are read; apart from what was found wrong, as declared."""

    place: Floats = field(default_factory=lambda: np.eye(2))
    order: npt.NDArray[np.int64] = field(default_factory=lambda: np.arange(len(CLASSES)))
    size: tuple[int, int, int] = (0, 1, 2)
    height: float = 0.0
    yaw: tuple[int, int] = (1, 0)
    velocity: Floats = field(default_factory=lambda: np.eye(2))

    def apply(self, rows_N11: Floats) -> Floats:
        """Return boxes (N, 11) as they were meant."""
        rows = rows_N11.copy()
        rows[:, :2] = rows_N11[:, :2] @ self.place
        rows[:, 3:6] = rows_N11[:, [3 + axis for axis in self.size]]
        rows[:, 2] += self.height * rows[:, 5]
        rows[:, 6] = self.yaw[0] * rows_N11[:, 6] + math.radians(self.yaw[1])
        rows[:, 7:9] = rows_N11[:, 7:9] @ self.velocity
        rows[:, 10] = np.argsort(self.order)[rows_N11[:, 10].astype(np.int64)]
        return rows


def judge_boxes(
    target: str,
    rows: Sequence[Floats],
    truth: Sequence[Truth],
    cells: Sequence[float] = (),
) -> tuple[list[Finding], BoxReading]:
    """Judge boxes of several frames.

    Args:
        target: of the cache.
        rows: (N, 11) of each frame: `geometry.BOX_FIELDS`, score, class; best first.
        truth: of each frame.
        cells: metres, of the grids that velocities could count in.

    Returns:
        The findings, and the reading that fits best: as declared but for what is wrong.
    """
    best = BoxReading()
    top = [own[: math.ceil(_PER_BOX * len(t.boxes_N9))] for own, t in zip(rows, truth, strict=True)]
    errors = {name: _distances(top, truth, matrix) for name, matrix in SYMMETRIES.items()}
    place = decide(target, "place", errors, _NEARLY_LOST)
    if place.verdict == "undecided":
        return [place], best
    best.place = SYMMETRIES[place.best[0]]
    found_M11, true_M9, class_M = _pairs(top, truth, best.place)
    said_MK = np.eye(len(CLASSES))[found_M11[:, 10].astype(np.int64)]
    classes, best.order = class_order(target, said_MK, class_M, -0.3)
    same_M = best.order[class_M] == found_M11[:, 10]
    found_M11, true_M9, class_M = found_M11[same_M], true_M9[same_M], class_M[same_M]
    findings = [named(place, matrices()), classes]
    findings += _judge_shape(target, found_M11, true_M9, best)
    findings += _judge_yaw(target, found_M11, true_M9, class_M, best)
    findings += _judge_velocity(target, found_M11, true_M9, best, cells)
    return findings, best


def _distances(rows: Sequence[Floats], truth: Sequence[Truth], matrix: Floats) -> Floats:
    """Return how far the nearest box is from each true one, metres, `_LOST` at most."""
    parts = [
        np.linalg.norm(t.boxes_N9[:, None, :2] - own[None, :, :2] @ matrix, axis=-1).min(
            1, initial=_LOST
        )
        for own, t in zip(rows, truth, strict=True)
    ]
    return np.concatenate(parts) if parts else np.zeros(0)


def _pairs(
    rows: Sequence[Floats], truth: Sequence[Truth], matrix: Floats
) -> tuple[Floats, Floats, npt.NDArray[np.int64]]:
    """Return the nearest box of each true one that has one, the true one, and its class."""
    found, true, classes = [np.zeros((0, 11))], [np.zeros((0, 9))], [np.zeros(0, np.int64)]
    for own, t in zip(rows, truth, strict=True):
        if len(own) and len(t.boxes_N9):
            gap = np.linalg.norm(t.boxes_N9[:, None, :2] - own[None, :, :2] @ matrix, axis=-1)
            near = gap.min(1) <= _NEAR
            found.append(own[gap.argmin(1)[near]])
            true.append(t.boxes_N9[near])
            classes.append(t.classes_N[near])
    return np.concatenate(found), np.concatenate(true), np.concatenate(classes)


def _judge_shape(
    target: str, found_M11: Floats, true_M9: Floats, best: BoxReading
) -> list[Finding]:
    """Judge the order of sizes (1 - IoU of boxes laid upon each other) and the height."""

    def missed(order: tuple[int, int, int]) -> Floats:
        own_M3 = found_M11[:, [3 + axis for axis in order]]
        shared = np.minimum(own_M3, true_M9[:, 3:6]).prod(1)
        whole: Floats = own_M3.prod(1) + true_M9[:, 3:6].prod(1) - shared
        missing: Floats = 1 - shared / whole
        return missing

    size = decide(target, "size", {name: missed(order) for name, order in SIZES.items()}, 0.5)
    if size.verdict == "wrong":
        best.size = SIZES[size.best[0]]
    tall = found_M11[:, 3 + best.size[2]]
    errors = {
        name: np.abs(found_M11[:, 2] + share * tall - true_M9[:, 2])
        for name, share in HEIGHTS.items()
    }
    height = decide(target, "z", errors, 1.0)
    if height.verdict == "wrong":
        best.height = HEIGHTS[height.best[0]]
    return [named(size, SIZES), named(height, HEIGHTS)]


def _judge_yaw(
    target: str,
    found_M11: Floats,
    true_M9: Floats,
    class_M: npt.NDArray[np.int64],
    best: BoxReading,
) -> list[Finding]:
    """Judge the axis of boxes, then which end of it is the front."""

    def off(keep_M: npt.NDArray[np.bool_], sign: int, degrees: int, period: float) -> Floats:
        gap = sign * found_M11[keep_M, 6] + math.radians(degrees) - true_M9[keep_M, 6]
        wrapped: Floats = np.abs((gap + period / 2) % period - period / 2)
        return wrapped

    turns_M = ~np.isin(class_M, [CLASSES.index(name) for name in _TURNLESS])
    yaw = decide(
        target, "yaw", {name: off(turns_M, *own, math.pi) for name, own in YAWS.items()}, 0.6
    )
    if yaw.verdict == "undecided":
        return [yaw]
    sign, degrees = YAWS[yaw.best[0]]
    heads_M = ~np.isin(class_M, [CLASSES.index(name) for name in _HEADLESS])
    errors = {
        DECLARED: off(heads_M, sign, degrees, math.tau),
        "turned by 180 degrees": off(heads_M, sign, degrees + 180, math.tau),
    }
    heading = decide(target, "heading", errors, 1.2)
    turned = heading.verdict == "wrong"
    best.yaw = sign, degrees + 180 * turned
    if yaw.verdict == "ok":
        return [yaw, replace(heading, meant=best.yaw) if turned else heading]
    yaw = replace(yaw, meant=best.yaw)
    if heading.verdict == "undecided":
        return [replace(yaw, note="or that and 180 degrees")]
    return [replace(yaw, best=(_TURNED[yaw.best[0]], *yaw.best[1:])) if turned else yaw]


def _judge_velocity(
    target: str, found_M11: Floats, true_M9: Floats, best: BoxReading, cells: Sequence[float]
) -> list[Finding]:
    """Judge the direction of velocities, then their unit."""
    said_M2, true_M2 = found_M11[:, 7:9], true_M9[:, 7:9]
    moves_M = np.linalg.norm(true_M2, axis=1) > _MOVES
    moves_M &= np.linalg.norm(said_M2, axis=1) > _SAYS_IT_MOVES
    said_M2, true_M2 = said_M2[moves_M], true_M2[moves_M]
    fast_M, true_fast_M = np.linalg.norm(said_M2, axis=1), np.linalg.norm(true_M2, axis=1)
    errors = {
        name: 1 - ((said_M2 @ matrix) * true_M2).sum(1) / (fast_M * true_fast_M)
        for name, matrix in SYMMETRIES.items()
    }
    direction = decide(target, "velocity", errors, _KNOWN_WAY)
    if direction.best_score is None or direction.best_score > _KNOWN_WAY:
        return [direction]
    scales = {DECLARED: 1.0, "km/h": 1 / 3.6, "metres a keyframe (half a second)": 2.0}
    for cell in sorted({round(own, 6) for own in (*cells, *_USUAL_CELLS)}):
        scales[f"grid cells of {cell:g} m a second"] = cell
    off = {name: np.abs(np.log(fast_M * scale / true_fast_M)) for name, scale in scales.items()}
    unit = decide(target, "speed", off, margin=_SCALE_MARGIN)
    if direction.verdict == "wrong":
        best.velocity = SYMMETRIES[direction.best[0]]
    if unit.verdict == "wrong":
        best.velocity = best.velocity * scales[unit.best[0]]
    return [named(direction, matrices()), named(unit, scales)]
