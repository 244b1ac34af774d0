"""TiG's inner-depth loss as loops in float64, written from the published formula alone.

Imports nothing of bevcask; arrays are numpy.
"""

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def inner_depth(
    expected: Array, depth: Array, box: npt.NDArray[np.int64]
) -> tuple[float, Array, dict[tuple[int, int, int], tuple[int, int]]]:
    """Return the loss, its gradient on `expected`, and the reference cell of each box.

    Args:
        expected: what the student expects, (B, V, H, W).
        depth: what was measured.
        box: which box, 0 for none.
    """
    cells: dict[tuple[int, int, int], list[tuple[int, int]]] = {}
    for b, v, i, j in np.ndindex(*box.shape):
        if box[b, v, i, j]:
            cells.setdefault((b, v, int(box[b, v, i, j])), []).append((i, j))
    total, number = 0.0, sum(map(len, cells.values()))
    slope = np.zeros_like(expected)
    references = {}
    for (b, v, name), members in cells.items():
        own, measured = expected[b, v], depth[b, v]
        best = members[0]
        for cell in members:
            if abs(own[cell] - measured[cell]) < abs(own[best] - measured[best]):
                best = cell
        references[b, v, name] = best
        for cell in members:
            off = (own[cell] - own[best]) - (measured[cell] - measured[best])
            total += off**2 / number
            slope[b, v][cell] += 2 * off / number
    return total, slope, references
