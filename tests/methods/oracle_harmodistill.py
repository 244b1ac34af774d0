"""HarmoDistill as loops in float64, from the formulas alone; imports nothing of bevcask."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def softmax(values: Sequence[float], tau: float) -> list[float]:
    top = max(values)
    powers = [math.exp((value - top) / tau) for value in values]
    return [power / sum(powers) for power in powers]


def divergence(of: Sequence[float], to: Sequence[float], tau: float) -> float:
    p, q = softmax(of, tau), softmax(to, tau)
    return sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True))


def enlarge(map_: Array, rows: int, columns: int) -> Array:
    """Bilinear, first and last positions on top of one another."""
    height, width = map_.shape
    out = np.zeros((rows, columns))
    for row, column in itertools.product(range(rows), range(columns)):
        y = row * (height - 1) / (rows - 1) if rows > 1 else 0.0
        x = column * (width - 1) / (columns - 1) if columns > 1 else 0.0
        top, left = min(int(y), height - 1), min(int(x), width - 1)
        down, right = min(top + 1, height - 1), min(left + 1, width - 1)
        out[row, column] = (
            map_[top, left] * (1 - y + top) * (1 - x + left)
            + map_[top, right] * (1 - y + top) * (x - left)
            + map_[down, left] * (y - top) * (1 - x + left)
            + map_[down, right] * (y - top) * (x - left)
        )
    return out


def balanced(
    students: Array,
    teachers: Array,
    factors: tuple[float, float],
    taus: tuple[float, float],
    softmaxes: int,
) -> float:
    """Sum over images and groups of numbers that share a softmax; maps are (N, C, H, W)."""
    total = 0.0
    for n in range(len(students)):
        larger = np.stack([enlarge(own, *students.shape[2:]) for own in teachers[n]])
        near = students[n].flatten().tolist()
        far = larger.flatten().tolist()
        size = len(near) // softmaxes
        for c in range(softmaxes):
            own, his = (all_[c * size : (c + 1) * size] for all_ in (near, far))
            total += factors[0] * taus[0] ** 2 * divergence(his, own, taus[0])
            total += factors[1] * taus[1] ** 2 * divergence(own, his, taus[1])
    return total / (len(students) * softmaxes)


def factors(progress: float, rho: float, schedule: bool) -> tuple[float, float]:
    share = 1 - progress
    return (rho * share, rho * (1 - share)) if schedule else (1.0, rho)


def cell(value: float, low: float, high: float, num: int) -> int:
    return min(max(math.trunc((value - low) / (high - low) * (num - 1) + 0.5), 0), num - 1)


def spread(
    states: Array,
    points: Array,
    scores: Sequence[float] | None,
    low: Sequence[float],
    high: Sequence[float],
    num: int,
) -> Array:
    """Write the states (Q, C) of one layer at their points (Q, K, 3), the best one last."""
    order = list(range(len(states)))
    if scores is not None:
        order.sort(key=lambda q: (scores[q], q))
    map_ = np.zeros((states.shape[1], num, num))
    for q in order:
        for x, y, _ in points[q]:
            map_[:, cell(y, low[1], high[1], num), cell(x, low[0], high[0], num)] = states[q]
    return map_


def mixed(map_: Array, kernel: Array) -> Array:
    """Mean over 3 x 3, then a convolution (O, I, 3, 3); no padding."""
    num = map_.shape[1] - 2
    pooled = np.zeros((len(map_), num, num))
    for row, column in itertools.product(range(num), repeat=2):
        pooled[:, row, column] = map_[:, row : row + 3, column : column + 3].mean((1, 2))
    out = np.zeros((len(kernel), num - 2, num - 2))
    for o, row, column in itertools.product(range(len(out)), range(num - 2), range(num - 2)):
        out[o, row, column] = (kernel[o] * pooled[:, row : row + 3, column : column + 3]).sum()
    return out


def looks(references: Array, offsets: Array, low: Sequence[float], high: Sequence[float]) -> Array:
    """References (Q, 3) and offsets (Q, 3 K) of one layer: points (Q, K, 3) in metres."""
    points = offsets.reshape(len(offsets), -1, 3).copy()
    for q, k, axis in np.ndindex(*points.shape):
        points[q, k, axis] += low[axis] + references[q, axis] * (high[axis] - low[axis])
    return points


def response(states: Array, features: Array) -> Array:
    """States (L, Q, C) and one image's features (C, H, W): a map for each query."""
    summed = states.sum(0)
    out = np.zeros((len(summed), *features.shape[1:]))
    for q, own in enumerate(summed):
        for c, share in enumerate(softmax(own.tolist(), 1.0)):
            out[q] += share * features[c]
    return out
