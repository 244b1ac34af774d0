"""The released code's losses as loops in float64, written from its description alone.

Imports nothing of bevcask. A grid is (x_min, y_min, cell, num_x, num_y); arrays are numpy, batch
first, rows along y. Nothing is augmented.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from methods.oracle_distillbev import GridTuple, covers, on, smooth, softmax, truth_heat
from methods.oracle_simdistill import TASKS
from methods.oracle_tigdistill import STEPS, gap, keypoint

Array = npt.NDArray[np.float64]


@dataclass
class Line:
    """A released line of DistillBEV: weights, where a cell is tested, whose attention counts."""

    foreground: float
    background: float
    false_positive: float
    spatial: float
    place: float
    student_looks: bool


CNN = Line(6e-3, 4e-2, 6e-2, 2.5e-3, place=0.0, student_looks=True)
TRANSFORMER = Line(5e-3, 4e-3, 0.0, 5e-4, place=0.5, student_looks=False)


def stretch(map_YX: Array, num_y: int, num_x: int) -> Array:
    """Upsample bilinearly, first cell on first and last on last."""
    out = np.zeros((num_y, num_x))
    tall, wide = map_YX.shape
    for row in range(num_y):
        for column in range(num_x):
            v, u = row * (tall - 1) / (num_y - 1), column * (wide - 1) / (num_x - 1)
            low, left = min(int(v), tall - 2), min(int(u), wide - 2)
            for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)):
                weight = (1 - abs(v - low - i)) * (1 - abs(u - left - j))
                out[row, column] += weight * map_YX[low + i, left + j]
    return out


def distillbev(
    line: Line,
    student_CYX: Array,
    teacher_CYX: Array,
    grid: GridTuple,
    boxes: Array,
    heat_KYX: Array | None,
    kernel: Array,
    bias: float,
) -> dict[str, float]:
    """Return the weighted terms of one sample and level, not divided by the batch size."""
    x_min, y_min, side, num_x, num_y = grid
    near = np.stack([stretch(channel, num_y, num_x) for channel in student_CYX])
    num_channels = len(teacher_CYX)
    known = [box for box in boxes if on(grid, box[0], box[1])]
    cells = [(row, column) for row in range(num_y) for column in range(num_x)]

    def attention(map_CYX: Array) -> list[float]:
        weights = softmax([float(np.abs(map_CYX[:, r, c]).mean()) / 0.5 for r, c in cells])
        return [len(cells) * weight for weight in weights]

    focus = attention(teacher_CYX)
    if line.student_looks:
        focus = [(a + b) / 2 for a, b in zip(focus, attention(near), strict=True)]
    kappa = softmax([float(np.abs(channel).mean()) / 0.5 for channel in teacher_CYX])
    scales, invented = [], []
    for row, column in cells:
        x, y = x_min + (column + line.place) * side, y_min + (row + line.place) * side
        mine = [box for box in known if covers(box, x, y)]
        scales.append(math.sqrt(side**2 / (mine[0][3] * mine[0][4])) if mine else 0.0)
        invented.append(
            heat_KYX is not None
            and float(heat_KYX[:, row, column].max()) > 0.1
            and truth_heat(known, grid, row, column) < 0.1
            and not mine
        )
    rest = len(cells) - sum(invented) - sum(scale > 0 for scale in scales)
    background = 1 / rest if rest > 0 else 0.0
    smoothed = smooth(near.mean(0), kernel, bias)
    terms = dict.fromkeys(("foreground", "background", "false_positive", "spatial"), 0.0)
    for i, (row, column) in enumerate(cells):
        squares = (near[:, row, column] - teacher_CYX[:, row, column]) ** 2
        total = focus[i] * float(squares.sum())
        if scales[i] > 0:
            terms["foreground"] += line.foreground * max(scales[i], background) * total
        elif invented[i]:
            weighted = sum(num_channels * k * d for k, d in zip(kappa, squares, strict=True))
            terms["false_positive"] += line.false_positive * focus[i] * weighted / sum(invented)
        else:
            terms["background"] += line.background * max(0.0, background) * total
        wave = abs(float(teacher_CYX[:, row, column].mean()) - smoothed[row, column])
        terms["spatial"] += line.spatial * wave
    return terms


def tig_read(map_CYX: Array, grid: GridTuple, x: float, y: float) -> Array:
    """Divide by n - 1, clamp, and sample as if divided by n; zeros beyond the border."""
    pixels = []
    for metres, low, num in ((x, grid[0], grid[3]), (y, grid[1], grid[4])):
        unit = min(max(2 * ((metres - low) / grid[2]) / (num - 1) - 1, -1.0), 1.0)
        pixels.append(((unit + 1) * num - 1) / 2)
    u, v = pixels
    value = np.zeros(len(map_CYX))
    for row in (math.floor(v), math.floor(v) + 1):
        for column in (math.floor(u), math.floor(u) + 1):
            if 0 <= row < grid[4] and 0 <= column < grid[3]:
                value += (1 - abs(v - row)) * (1 - abs(u - column)) * map_CYX[:, row, column]
    return value


def tig_box(
    student: Array, teacher: Array, grid: GridTuple, box: Array, weight: Array, bias: Array
) -> tuple[float, float]:
    """Return inter-channel and inter-keypoint terms of one box, weighted."""
    points = [keypoint(box, i, j) for i in range(STEPS) for j in range(STEPS)]
    own = [tig_read(student, grid, *point) for point in points]
    his = [tig_read(teacher, grid, *point) for point in points]
    wide = [weight @ point + bias for point in own]
    channels = [np.array([point[c] for point in wide]) for c in range(len(teacher))]
    wanted = [np.array([point[c] for point in his]) for c in range(len(teacher))]
    return 10 * gap(channels, wanted), 100 * gap(own, his)


def tig_maps(
    points: Array, stride: int, height: int, width: int
) -> tuple[Array, npt.NDArray[np.int64]]:
    """Draw points (camera, u, v, depth, box) at round(u / stride), round(v / stride)."""
    depth, owner = np.zeros((6, height, width)), np.zeros((6, height, width), dtype=np.int64)
    for camera, u, v, metres, box in points:
        column, row, place = round(u / stride), round(v / stride), int(camera)
        if not (0 <= column < width and 0 <= row < height and 1 <= metres < 60):
            continue
        if depth[place, row, column] == 0 or metres < depth[place, row, column]:
            depth[place, row, column], owner[place, row, column] = metres, int(box)
    return depth, owner


def tig_expected(probabilities_VDHW: Array, first: float, step: float) -> Array:
    """Return mean depths over lower bin edges."""
    edges = [first + step * d for d in range(probabilities_VDHW.shape[1])]
    return np.asarray(sum(edge * probabilities_VDHW[:, d] for d, edge in enumerate(edges)))


def twice(probability: float) -> float:
    """Clip, then sigmoid again."""
    return 1 / (1 + math.exp(-min(max(probability, 1e-4), 1 - 1e-4)))


def quality(students: Array, teachers: Array) -> float:
    """Return the heatmap term before its weight: each task over cells / classes."""
    total = 0.0
    cells = students.shape[2] * students.shape[3]
    for members in TASKS:
        for k in members:
            for own, said in zip(students[:, k].flat, teachers[:, k].flat, strict=True):
                p, t = twice(own), twice(said)
                entropy = -(t * math.log(p) + (1 - t) * math.log(1 - p))
                total += entropy * abs(p - t) ** 2 / (cells / len(members))
    return total


def theirs(code: Array) -> Array:
    """Say a code with the released yaw, -yaw - pi/2: sine and cosine swap and change sign."""
    return np.array([*code[:6], -code[7], -code[6], *code[8:]])


def rows(boxes: Any, classes: Any, members: Sequence[int], grid: GridTuple) -> Iterator[Any]:
    """Yield the cells of the 500 rows of a padded list; empty rows say cell (0, 0)."""
    count = 0
    for box, k in zip(boxes, classes, strict=True):
        if k in members and on(grid, box[0], box[1]):
            yield int((box[1] - grid[1]) / grid[2]), int((box[0] - grid[0]) / grid[2])
            count += 1
    for _ in range(500 - count):
        yield 0, 0


def box_codes(students: Array, teachers: Array, boxes: Any, classes: Any, grid: GridTuple) -> float:
    """Return the box term before its weight."""
    total = 0.0
    for b in range(len(students)):
        for task, members in enumerate(TASKS):
            part = slice(10 * task, 10 * task + 10)
            for row, column in rows(boxes[b], classes[b], members, grid):
                own = theirs(students[b, part, row, column])
                said = theirs(teachers[b, part, row, column])
                s, t = own[6], said[6]
                own[6], said[6] = math.sin(s) * math.cos(t), math.cos(s) * math.sin(t)
                for i, apart in enumerate(np.abs(own - said)):
                    d = apart * (0.2 if i >= 8 else 1.0)
                    total += (d - 1 / 18 if d > 1 / 9 else 4.5 * d * d) / 500
    return total
