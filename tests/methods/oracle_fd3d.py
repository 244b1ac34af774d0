"""FD3D's reconstruction as loops in float64, from its formulas; imports nothing of bevcask."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from methods.oracle_simdistill import Box, Square, move, read

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


def rectangles(
    boxes: Sequence[Box], to_image: Array, size: tuple[int, int], image_width: int
) -> Mask:
    """Cells (V, H, W) touched by the rectangle of a box's corners ahead of the camera."""
    out = np.zeros((len(to_image), *size), dtype=bool)
    stride = image_width / size[1]
    for camera, box in itertools.product(range(len(to_image)), boxes):
        x, y, z, length, width, height, yaw = box[:7]
        us, vs = [], []
        for i, j, k in itertools.product((-0.5, 0.5), repeat=3):
            px = x + i * length * math.cos(yaw) - j * width * math.sin(yaw)
            py = y + i * length * math.sin(yaw) + j * width * math.cos(yaw)
            u, v, d, _ = to_image[camera] @ np.array([px, py, z + k * height, 1.0])
            if d > 0.1:
                us.append((u / d + 0.5) / stride)
                vs.append((v / d + 0.5) / stride)
        for row, column in itertools.product(*map(range, size)):
            if us and column + 1 > min(us) and column < max(us):
                out[camera, row, column] |= row + 1 > min(vs) and row < max(vs)
    return out


def footprints(boxes: Sequence[Box], grid: Square) -> Mask:
    """Cells whose centre lies in a box, and the cell of its centre."""
    out = np.zeros((grid.n, grid.n), dtype=bool)
    for box in boxes:
        c, s = math.cos(box[6]), math.sin(box[6])
        for row, column in grid.cells():
            x, y = grid.centre(row, column)
            dx, dy = x - box[0], y - box[1]
            along, across = dx * c + dy * s, dy * c - dx * s
            out[row, column] |= abs(along) <= box[3] / 2 and abs(across) <= box[4] / 2
        own = grid.cell_of(*box[:2])
        if own:
            out[own] = True
    return out


def at_canonical_cells(maps: Array, matrices: Array, grid: Square) -> tuple[Array, Mask]:
    out, valid = np.zeros_like(maps), np.zeros((len(maps), grid.n, grid.n), dtype=bool)
    for b in range(len(maps)):
        for row, column in grid.cells():
            own = read(maps[b], grid, *move(matrices[b], *grid.centre(row, column)))
            if own is not None:
                out[b, :, row, column], valid[b, row, column] = own, True
    return out, valid


def generative(made: Array, teachers: Array, area: Mask) -> float:
    """Squared gaps summed over channels, a mean over the cells of the area."""
    total = 0.0
    for n, row, column in zip(*area.nonzero(), strict=True):
        for c in range(made.shape[1]):
            total += (made[n, c, row, column] - teachers[n, c, row, column]) ** 2
    return total / max(int(area.sum()), 1)


def bilinear(map_CYX: Array, x: float, y: float) -> Array:
    """Zero outside; x and y are 0 and 1 at the outer borders."""
    _, rows, columns = map_CYX.shape
    column, row = x * columns - 0.5, y * rows - 0.5
    out = np.zeros(len(map_CYX))
    for r, c in itertools.product(
        (math.floor(row), math.floor(row) + 1), (math.floor(column), math.floor(column) + 1)
    ):
        if 0 <= r < rows and 0 <= c < columns:
            out += (1 - abs(row - r)) * (1 - abs(column - c)) * map_CYX[:, r, c]
    return out


def focal(
    layers: Sequence[Mapping[str, Any]], students: Array, valid: Mask, by_score: bool
) -> float:
    total, count = 0.0, 0
    for layer in layers:
        places, shares = layer["places_BQAP2"], layer["shares_BQAP"]
        num_samples, num_queries, num_heads, num_points = shares.shape
        for b, q in itertools.product(range(num_samples), range(num_queries)):
            flat = students[b].reshape(students.shape[1], -1)
            value = layer["weight_BCC"][b] @ flat + layer["bias_BC"][b][:, None]
            value = value.reshape(-1, *students.shape[2:])
            hidden = (~valid[b])[None].astype(float)
            width, seen, square = len(value) // num_heads, True, 0.0
            for a in range(num_heads):
                part, got, missed = value[a * width : (a + 1) * width], np.zeros(width), 0.0
                for p in range(num_points):
                    x, y = places[b, q, a, p]
                    got += shares[b, q, a, p] * bilinear(part, x, y)
                    missed += shares[b, q, a, p] * float(bilinear(hidden, x, y)[0])
                gap = got - layer["reads_BQC"][b, q, a * width : (a + 1) * width]
                square += float((gap**2).sum())
                seen = seen and missed <= 1e-3
            if seen:
                total += square * (float(layer["scores_BQ"][b, q]) if by_score else 1.0)
                count += 1
    return total / max(count, 1)
