"""Moves that permute the cells of a grid: identity, flips and quarter turns of a symmetric one."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from bevcask.geometry import Grid

_TOLERANCE = 1e-6  # how near to 0, 1 or -1 the entries of a lattice move must be


@dataclass(frozen=True)
class Lattice:
    """A move that permutes the cells of a symmetric grid: transpose, then reverse rows, columns."""

    swap: bool
    reverse_y: bool
    reverse_x: bool

    def __call__(self, map_YX: Tensor) -> Tensor:
        """Return the map (..., Y, X) read at the moved cells."""
        moved = map_YX.transpose(-1, -2) if self.swap else map_YX
        dims = [dim for dim, flip in ((-2, self.reverse_y), (-1, self.reverse_x)) if flip]
        return moved.flip(dims) if dims else moved

    @property
    def is_identity(self) -> bool:
        return not (self.swap or self.reverse_y or self.reverse_x)

    def inverse(self) -> "Lattice":
        """Return the move that undoes this one."""
        if self.swap:
            return Lattice(True, self.reverse_x, self.reverse_y)
        return self


def same_cells(a: Grid, b: Grid) -> bool:
    """Tell whether two grids have the same cells, rounding of their borders aside."""
    borders = np.array([[grid.x_min, grid.y_min, grid.x_max, grid.y_max] for grid in (a, b)])
    return a.shape_YX == b.shape_YX and bool(
        np.abs(borders[0] - borders[1]).max() <= _TOLERANCE * a.cell
    )


def lattice_move(matrix: npt.NDArray[np.float64], source: Grid, target: Grid) -> Lattice | None:
    """Return the cell permutation a matrix stands for, or None where it is none.

    Identity permutes any grid; flips need one that is symmetric about the origin, quarter turns one
    that is square too.

    Args:
        matrix: 4x4, canonical_to_augmented.
        source: the student's grid.
        target: the grid of the canonical cells; must have the same cells.
    """
    plane = matrix[:2, :2]
    lattice = np.round(plane)
    if not same_cells(source, target) or np.abs(matrix[:2, 3]).max() > _TOLERANCE * source.cell:
        return None
    if np.abs(plane - lattice).max() > _TOLERANCE or not np.array_equal(
        np.abs(lattice).sum(0) * np.abs(lattice).sum(1), [1.0, 1.0]
    ):
        return None
    swap = lattice[0, 0] == 0
    # A p = (a x + b y, c x + d y): row of A p from c or d, column from a or b.
    if swap:
        move = Lattice(True, reverse_y=bool(lattice[0, 1] < 0), reverse_x=bool(lattice[1, 0] < 0))
    else:
        move = Lattice(False, reverse_y=bool(lattice[1, 1] < 0), reverse_x=bool(lattice[0, 0] < 0))
    if move.is_identity or (source.is_symmetric and (not swap or source.num_x == source.num_y)):
        return move
    return None
