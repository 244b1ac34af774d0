"""TiG's inner-feature loss as loops in float64, written from the published formulas alone.

Imports nothing of bevcask. A grid is (x_min, y_min, cell, num_x, num_y); arrays are numpy.
"""

import math

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
GridTuple = tuple[float, float, float, int, int]
CHANNEL, KEYPOINT, SIDE, STEPS = 10.0, 100.0, 1.6, 24


def keypoint(box: Array, i: int, j: int, steps: int = STEPS) -> tuple[float, float]:
    """Return point j along the length, i along the width of the enlarged box."""
    along = (j / (steps - 1) - 0.5) * (box[3] + 2 * SIDE)
    across = (i / (steps - 1) - 0.5) * (box[4] + 2 * SIDE)
    c, s = math.cos(box[6]), math.sin(box[6])
    return box[0] + c * along - s * across, box[1] + s * along + c * across


def read(map_CYX: Array, grid: GridTuple, x: float, y: float) -> Array | None:
    u, v = (x - grid[0]) / grid[2] - 0.5, (y - grid[1]) / grid[2] - 0.5
    if not (0 <= u <= grid[3] - 1 and 0 <= v <= grid[4] - 1):
        return None
    left, low = min(int(u), grid[3] - 2), min(int(v), grid[4] - 2)
    value = np.zeros(len(map_CYX))
    for row, column in ((low, left), (low, left + 1), (low + 1, left), (low + 1, left + 1)):
        value += (1 - abs(v - row)) * (1 - abs(u - column)) * map_CYX[:, row, column]
    return value


def gap(own: list[Array], his: list[Array]) -> float:
    """Return the mean over rows of the summed squared differences of two relation matrices."""
    total = 0.0
    for a in range(len(own)):
        rows = []
        for vectors in (own, his):
            row = np.array([float(vectors[a] @ vectors[b]) for b in range(len(vectors))])
            norm = math.sqrt(float(row @ row))
            rows.append(row / norm if norm > 1e-12 else row * 0)
        total += float(((rows[0] - rows[1]) ** 2).sum())
    return total / len(own)


def box_terms(
    student: Array,
    student_grid: GridTuple,
    teacher: Array,
    teacher_grid: GridTuple,
    box: Array,
    back: Array,
    weight: Array,
    bias: Array,
    steps: int = STEPS,
) -> tuple[float, float]:
    """Return both weighted terms of one box (augmented frame); `back`: 4x4 to canonical."""
    own, wide, his = [], [], []
    for i in range(steps):
        for j in range(steps):
            x, y = keypoint(box, i, j, steps)
            origin = back @ np.array([x, y, 0.0, 1.0])
            a = read(student, student_grid, x, y)
            b = read(teacher, teacher_grid, origin[0], origin[1])
            blind = a is None or b is None
            own.append(np.zeros(len(student)) if blind or a is None else a)
            his.append(np.zeros(len(teacher)) if blind or b is None else b)
            wide.append(np.zeros(len(teacher)) if blind or a is None else weight @ a + bias)
    channels = [np.array([point[c] for point in wide]) for c in range(len(teacher))]
    wanted = [np.array([point[c] for point in his]) for c in range(len(teacher))]
    return CHANNEL * gap(channels, wanted), KEYPOINT * gap(own, his)
