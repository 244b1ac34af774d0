"""DistillBEV's loss as loops in float64, written from the published formulas alone.

Imports nothing of bevcask. A grid is (x_min, y_min, cell, num_x, num_y); arrays are numpy, batch
first, rows along y. Cells whose moved centre is outside the rectangle of the student's outer cell
centres are left out of every sum and every normaliser.
"""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
GridTuple = tuple[float, float, float, int, int]
FOREGROUND, BACKGROUND, FALSE_POSITIVE, SPATIAL = 6e-3, 4e-2, 6e-2, 2.5e-3
TAU = 0.5
GAMMA = 0.1


def centre(grid: GridTuple, row: int, column: int) -> tuple[float, float]:
    x_min, y_min, cell, _, _ = grid
    return x_min + (column + 0.5) * cell, y_min + (row + 0.5) * cell


def cell_of(grid: GridTuple, x: float, y: float) -> tuple[int, int]:
    x_min, y_min, cell, _, _ = grid
    return math.floor((y - y_min) / cell), math.floor((x - x_min) / cell)


def on(grid: GridTuple, x: float, y: float) -> bool:
    row, column = cell_of(grid, x, y)
    return 0 <= row < grid[4] and 0 <= column < grid[3]


def covers(box: Array, x: float, y: float) -> bool:
    dx, dy, yaw = x - box[0], y - box[1], box[6]
    along = dx * math.cos(yaw) + dy * math.sin(yaw)
    across = -dx * math.sin(yaw) + dy * math.cos(yaw)
    return bool(abs(along) <= box[3] / 2 and abs(across) <= box[4] / 2)


def read(map_YX: Array, grid: GridTuple, x: float, y: float) -> float | None:
    """Interpolate between the four surrounding cell centres; None beyond the outer ones."""
    x_min, y_min, cell, num_x, num_y = grid
    u, v = (x - x_min) / cell - 0.5, (y - y_min) / cell - 0.5
    if not (-1e-4 <= u <= num_x - 1 + 1e-4 and -1e-4 <= v <= num_y - 1 + 1e-4):
        return None
    u, v = min(max(u, 0.0), num_x - 1.0), min(max(v, 0.0), num_y - 1.0)
    left, low = min(math.floor(u), num_x - 2), min(math.floor(v), num_y - 2)
    value = 0.0
    for row, column in ((low, left), (low, left + 1), (low + 1, left), (low + 1, left + 1)):
        value += (1 - abs(v - row)) * (1 - abs(u - column)) * float(map_YX[row, column])
    return value


def gaussian_radius(length: float, width: float, overlap: float = 0.1) -> float:
    total, area = length + width, length * width
    radii = []
    for a, b, c in (
        (1.0, total, area * (1 - overlap) / (1 + overlap)),
        (4.0, 2 * total, (1 - overlap) * area),
        (4 * overlap, -2 * overlap * total, (overlap - 1) * area),
    ):
        radii.append((b + math.sqrt(b * b - 4 * a * c)) / 2)
    return min(radii)


def truth_heat(boxes: Sequence[Array], grid: GridTuple, row: int, column: int) -> float:
    """Return the highest ground-truth Gaussian in a cell."""
    highest = 0.0
    for box in boxes:
        box_row, box_column = cell_of(grid, box[0], box[1])
        radius = max(2, int(gaussian_radius(box[3] / grid[2], box[4] / grid[2])))
        dy, dx = row - box_row, column - box_column
        if abs(dy) <= radius and abs(dx) <= radius:
            sigma = (2 * radius + 1) / 6
            highest = max(highest, math.exp(-(dx * dx + dy * dy) / (2 * sigma * sigma)))
    return highest


def smooth(map_YX: Array, kernel: Array, bias: float) -> Array:
    """3x3 correlation with zeros outside."""
    num_y, num_x = map_YX.shape
    out = np.full_like(map_YX, bias)
    for row in range(num_y):
        for column in range(num_x):
            for i in (-1, 0, 1):
                for j in (-1, 0, 1):
                    if 0 <= row + i < num_y and 0 <= column + j < num_x:
                        out[row, column] += kernel[i + 1, j + 1] * map_YX[row + i, column + j]
    return out


def softmax(values: Sequence[float]) -> list[float]:
    top = max(values)
    powers = [math.exp(value - top) for value in values]
    return [power / sum(powers) for power in powers]


def sample_terms(
    student_CYX: Array,
    student_grid: GridTuple,
    reach: GridTuple,
    teacher_CYX: Array,
    grid: GridTuple,
    matrix: Array,
    boxes: Array,
    canonical: Array,
    heat_KYX: Array | None,
    kernel: Array,
    bias: float,
    both_look: bool = True,
) -> dict[str, float]:
    """Return the terms of one sample, weighted, not divided by the batch size.

    With `both_look` attention is that of teacher and student averaged, else the teacher's.
    """
    num_channels = len(teacher_CYX)
    known = [
        box
        for moved, box in zip(boxes, canonical, strict=True)
        if on(reach, moved[0], moved[1]) and on(grid, box[0], box[1])
    ]
    smoothed = smooth(student_CYX.mean(0), kernel, bias)
    cells, near, far, wave = [], [], [], []
    for row in range(grid[4]):
        for column in range(grid[3]):
            x, y = centre(grid, row, column)
            px = matrix[0, 0] * x + matrix[0, 1] * y + matrix[0, 3]
            py = matrix[1, 0] * x + matrix[1, 1] * y + matrix[1, 3]
            value = read(smoothed, student_grid, px, py)
            if value is None:
                continue
            cells.append((row, column))
            near.append([read(channel, student_grid, px, py) for channel in student_CYX])
            far.append([float(channel[row, column]) for channel in teacher_CYX])
            wave.append(value)
    num = len(cells)

    def energy(values: Sequence[Sequence[float | None]]) -> list[float]:
        return [sum(abs(v or 0.0) for v in own) / num_channels / TAU for own in values]

    focus_far, focus_near = softmax(energy(far)), softmax(energy(near))
    if not both_look:
        focus_near = focus_far
    focus = [num * (a + b) / 2 for a, b in zip(focus_far, focus_near, strict=True)]
    kappa = softmax([sum(abs(own[c]) for own in far) / num / TAU for c in range(num_channels)])
    owner: list[Array | None] = []
    invented = []
    for row, column in cells:
        x, y = centre(grid, row, column)
        mine = [b for b in known if covers(b, x, y) or cell_of(grid, b[0], b[1]) == (row, column)]
        owner.append(mine[0] if mine else None)
        invented.append(
            heat_KYX is not None
            and float(heat_KYX[:, row, column].max()) > GAMMA
            and truth_heat(known, grid, row, column) < GAMMA
            and not mine
        )
    num_invented = sum(invented)
    num_background = num - num_invented - sum(box is not None for box in owner)
    terms = dict.fromkeys(("foreground", "background", "false_positive", "spatial"), 0.0)
    for i in range(num):
        squares = [((s or 0.0) - t) ** 2 for s, t in zip(near[i], far[i], strict=True)]
        box = owner[i]
        if box is not None:
            scale = math.sqrt(grid[2] ** 2 / (box[3] * box[4]))
            terms["foreground"] += FOREGROUND * scale * focus[i] * sum(squares)
        elif invented[i]:
            weighted = sum(num_channels * k * d for k, d in zip(kappa, squares, strict=True))
            terms["false_positive"] += FALSE_POSITIVE * focus[i] * weighted / num_invented
        else:
            terms["background"] += BACKGROUND * focus[i] * sum(squares) / num_background
        terms["spatial"] += SPATIAL * abs(sum(far[i]) / num_channels - wave[i])
    return terms
