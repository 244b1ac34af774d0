"""FocalDistiller as loops in float64, from the formulas alone; imports nothing of bevcask."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from methods.oracle_simdistill import Box, Square, move, radius, read

Array = npt.NDArray[np.float64]


def softmax(values: Sequence[float], tau: float) -> list[float]:
    top = max(values)
    powers = [math.exp((value - top) / tau) for value in values]
    return [power / sum(powers) for power in powers]


def channelwise(students: Array, teachers: Array, tau: float, channels: int, cross: bool) -> float:
    """Divide by images and the student's channels; maps are (B, V, C, H, W)."""
    total, images = 0.0, 0
    for b, v in itertools.product(range(len(students)), range(students.shape[1])):
        images += 1
        for c in range(students.shape[2]):
            p = softmax(students[b, v, c].flatten().tolist(), tau)
            t = softmax(teachers[b, v, c].flatten().tolist(), tau)
            for own, his in zip(p, t, strict=True):
                total -= his * (math.log(own) - (0 if cross else math.log(his)))
    return tau**2 * total / (images * channels)


def drawn_at(box: Box, num: int, cell: float) -> tuple[int, int] | None:
    """Truncate towards zero: (-1, 0) is cell 0."""
    row, column = (math.trunc(v / cell + num / 2) for v in (box[1], box[0]))
    below = any(v / cell + num / 2 <= -1 for v in box[:2])
    solid = box[3] > 0 and box[4] > 0
    return (row, column) if solid and not below and max(row, column) < num else None


def mask(boxes: Sequence[Box], half: float, cell: float, n: int) -> Array:
    """Draw on cells of one size, then enlarge or shrink to n x n by the lower corner."""
    num = round(2 * half / cell)
    drawn = np.zeros((num, num))
    for box in boxes:
        centre = drawn_at(box, num, cell)
        if not centre:
            continue
        reach = radius(box[3] / cell, box[4] / cell)
        sigma = (2 * reach + 1) / 6
        for i, j in itertools.product(range(-reach, reach + 1), repeat=2):
            row, column = centre[0] + i, centre[1] + j
            if 0 <= row < num and 0 <= column < num:
                value = math.exp(-(i * i + j * j) / (2 * sigma**2))
                drawn[row, column] = max(drawn[row, column], value)
    out = np.zeros((n, n))
    for row, column in itertools.product(range(n), repeat=2):
        out[row, column] = drawn[row * num // n, column * num // n]
    return out


def masked(
    restored: Array,
    teachers: Array,
    canonical: Sequence[Sequence[Box]],
    augmented: Sequence[Sequence[Box]],
    matrices: Array,
    grid: Square,
    cell: float,
) -> float:
    half, top, bottom = grid.n * grid.cell / 2, 0.0, 0.0
    num = round(2 * half / cell)
    for b in range(len(restored)):
        seen = [
            there
            for there, here in zip(canonical[b], augmented[b], strict=True)
            if drawn_at(there, num, cell) and drawn_at(here, num, cell)
        ]
        weights = mask(seen, half, cell, grid.n)
        for row, column in grid.cells():
            own = read(restored[b], grid, *move(matrices[b], *grid.centre(row, column)))
            if own is None:
                continue
            m = weights[row, column]
            bottom += m
            for c in range(len(own)):
                top += (m * own[c] - m * teachers[b, c, row, column]) ** 2
    return top / bottom if bottom else 0.0
