"""SimDistill as loops in float64, written from the published terms; imports nothing of bevcask."""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Box = Sequence[float]  # x, y, z, l, w, h, yaw, vx, vy
TASKS = ((0,), (1, 2), (3, 4), (5,), (6, 7), (8, 9))  # class numbers of each group
CLIP = 1e-4


class Square:
    """A square grid about the origin of n x n cells."""

    def __init__(self, n: int, cell: float) -> None:
        self.n, self.cell = n, cell

    def centre(self, row: int, column: int) -> tuple[float, float]:
        half = self.n / 2
        return (column + 0.5 - half) * self.cell, (row + 0.5 - half) * self.cell

    def index(self, x: float, y: float) -> tuple[float, float]:
        """Return row and column, whole at cell centres."""
        return y / self.cell + self.n / 2 - 0.5, x / self.cell + self.n / 2 - 0.5

    def cell_of(self, x: float, y: float) -> tuple[int, int] | None:
        row, column = (math.floor(i + 0.5) for i in self.index(x, y))
        return (row, column) if 0 <= row < self.n and 0 <= column < self.n else None

    def cells(self) -> Iterator[tuple[int, int]]:
        return itertools.product(range(self.n), repeat=2)


def move(matrix: Array, x: float, y: float) -> tuple[float, float]:
    out = matrix @ np.array([x, y, 0.0, 1.0])
    return float(out[0]), float(out[1])


def read(map_CYX: Array, grid: Square, x: float, y: float) -> Array | None:
    """Interpolate between cell centres; None beyond the outer ones."""
    row, column = grid.index(x, y)
    last = grid.n - 1
    if not (-1e-9 <= row <= last + 1e-9 and -1e-9 <= column <= last + 1e-9):
        return None
    r, c = min(max(math.floor(row), 0), last - 1), min(max(math.floor(column), 0), last - 1)
    v, u = row - r, column - c
    top = (1 - u) * map_CYX[:, r, c] + u * map_CYX[:, r, c + 1]
    bottom = (1 - u) * map_CYX[:, r + 1, c] + u * map_CYX[:, r + 1, c + 1]
    return np.asarray((1 - v) * top + v * bottom)


def radius(length: float, width: float) -> int:
    """CornerNet's smallest root for an overlap of 0.1, truncated, at least 2; sizes in cells."""
    o, total, area = 0.1, length + width, length * width
    roots = (
        (total + math.sqrt(total**2 - 4 * area * (1 - o) / (1 + o))) / 2,
        (2 * total + math.sqrt(4 * total**2 - 16 * (1 - o) * area)) / 2,
        (-2 * o * total + math.sqrt(4 * o**2 * total**2 + 16 * o * (1 - o) * area)) / 2,
    )
    return max(2, math.trunc(min(roots)))


def splat(map_YX: Array, cell: tuple[int, int], reach: int, peak: float) -> None:
    sigma = (2 * reach + 1) / 6
    for i, j in itertools.product(range(-reach, reach + 1), repeat=2):
        row, column = cell[0] + i, cell[1] + j
        if 0 <= row < len(map_YX) and 0 <= column < len(map_YX):
            value = peak * math.exp(-(i * i + j * j) / (2 * sigma**2))
            map_YX[row, column] = max(map_YX[row, column], value)


def kept(canonical: Sequence[Box], augmented: Sequence[Box], grid: Square) -> list[int]:
    """Number the boxes that both frames show."""
    return [
        n
        for n, (there, here) in enumerate(zip(canonical, augmented, strict=True))
        if grid.cell_of(*there[:2]) and grid.cell_of(*here[:2])
    ]


def feature_term(
    students: Array, teachers: Array, weights: Array | None, matrices: Array, grid: Square
) -> float:
    total, count = 0.0, 0
    for b in range(len(students)):
        for row, column in grid.cells():
            own = read(students[b], grid, *move(matrices[b], *grid.centre(row, column)))
            if own is None:
                continue
            m = 1.0 if weights is None else weights[b, row, column]
            for c in range(len(own)):
                total += (m * (own[c] - teachers[b, c, row, column])) ** 2
            count += len(own)
    return total / max(count, 1)


def object_weights(boxes: Any, augmented: Any, classes: Any, grid: Square) -> Array:
    """Sum the classes' Gaussian maps, canonical frame, (B, Y, X)."""
    out = np.zeros((len(boxes), grid.n, grid.n))
    for b, own in enumerate(boxes):
        for k in range(10):
            one = np.zeros((grid.n, grid.n))
            for n in kept(own, augmented[b], grid):
                cell = grid.cell_of(*own[n][:2])
                if classes[b][n] == k and cell:
                    splat(one, cell, radius(own[n][3] / grid.cell, own[n][4] / grid.cell), 1.0)
            out[b] += one
    return out


def moved_heatmap(map_KYX: Array, matrix: Array, grid: Square) -> Array:
    """Permute cells where the move does, else decode peaks and draw them where they went."""
    out = np.zeros_like(map_KYX)
    plane = matrix[:2, :2]
    whole = np.allclose(plane, np.round(plane), atol=1e-6) and not matrix[:2, 3].any()
    for k, (row, column) in itertools.product(range(len(map_KYX)), grid.cells()):
        cell = grid.cell_of(*move(matrix, *grid.centre(row, column)))
        value = map_KYX[k, row, column]
        around = map_KYX[k, max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2]
        if whole:
            assert cell
            out[k, cell[0], cell[1]] = value
        elif cell and value > 0 and value == around.max():
            splat(out[k], cell, 2, float(value))
    return out


def quality_term(
    students: Array, teachers: Array, matrices: Array, grid: Square, threshold: float
) -> float:
    total = 0.0
    for b in range(len(students)):
        targets = moved_heatmap(teachers[b], matrices[b], grid)
        back = np.linalg.inv(matrices[b])
        for k in range(10):
            loss, seen = 0.0, 0
            for row, column in grid.cells():
                if read(teachers[b], grid, *move(back, *grid.centre(row, column))) is None:
                    continue
                p = min(max(students[b, k, row, column], CLIP), 1 - CLIP)
                t = min(max(targets[k, row, column], CLIP), 1 - CLIP)
                entropy = -(t * math.log(p) + (1 - t) * math.log(1 - p))
                loss += entropy * abs(p - t) ** 2
                seen += t > threshold
            total += loss / max(seen, 1)
    return total


def moved_code(
    code: Array, there: tuple[int, int], here: tuple[int, int], a: Array, g: Square
) -> Array:
    """Decode to metres at one cell, move, encode at the other; a heading keeps its length."""
    x, y = (there[1] + code[0] - g.n / 2) * g.cell, (there[0] + code[1] - g.n / 2) * g.cell
    x, y, z, _ = a @ np.array([x, y, code[2], 1.0])
    scale = math.sqrt(abs(a[0, 0] * a[1, 1] - a[0, 1] * a[1, 0]))
    sizes = [math.log(scale * math.exp(value)) for value in code[3:6]]
    length, yaw = math.hypot(code[6], code[7]), math.atan2(code[6], code[7])
    ahead = a[:2, :2] @ np.array([math.cos(yaw), math.sin(yaw)])
    yaw = math.atan2(ahead[1], ahead[0])
    velocity = a[:2, :2] @ code[8:10]
    offset = [x / g.cell + g.n / 2 - here[1], y / g.cell + g.n / 2 - here[0]]
    return np.array([*offset, z, *sizes, length * math.sin(yaw), length * math.cos(yaw), *velocity])


def box_term(
    students: Array,
    teachers: Array,
    canonical: Any,
    augmented: Any,
    classes: Any,
    matrices: Array,
    grid: Square,
) -> float:
    loss, count = [0.0] * len(TASKS), [0] * len(TASKS)
    for b in range(len(students)):
        for n in kept(canonical[b], augmented[b], grid):
            there, here = grid.cell_of(*canonical[b][n][:2]), grid.cell_of(*augmented[b][n][:2])
            assert there
            assert here
            [task] = [t for t, members in enumerate(TASKS) if classes[b][n] in members]
            part = slice(10 * task, 10 * task + 10)
            target = moved_code(teachers[b, part, *there], there, here, matrices[b], grid)
            for i, gap in enumerate(np.abs(students[b, part, *here] - target)):
                d = gap * (0.2 if i >= 8 else 1.0)
                loss[task] += d - 1 / 18 if d > 1 / 9 else 4.5 * d * d
            count[task] += 1
    return sum(part / max(n, 1) for part, n in zip(loss, count, strict=True))
