"""How canonical targets meet an augmented student: its maps are read where the cells went.

Targets stay where the un-augmented teacher said them. A canonical cell centre p appears to the
augmented student at A p, so the student's map is sampled there. Flips, quarter turns and identity
on one symmetric grid permute cells and are done by index, bit for bit; everything else is bilinear
interpolation between cell centres.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from bevcask.errors import TargetMismatchError
from bevcask.geometry import Grid, centres_on, constant, transform_boxes, transform_points
from bevcask.targets.box_code import move_codes
from bevcask.targets.heatmap import MIN_RADIUS
from bevcask.targets.lattice import lattice_move
from bevcask.targets.layers import between_layers
from bevcask.targets.pixels import draw
from bevcask.targets.ragged import scattered
from bevcask.targets.target import Target

_RIM = 1e-4  # cells; rounding allowed beyond the outer cell centres
_Places: TypeAlias = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class ImageAug:
    """How the student's images came about.

    Attributes:
        matrices_BV33: `Batch.image_aug_BV33`, original -> network pixels, on the host.
        size_HW: of the network images.
        lidar_to_image_BV44: canonical LIDAR_TOP -> (u d, v d, d, 1), original pixels and depth,
            float64, on the host; None where nothing is projected.
    """

    matrices_BV33: Tensor
    size_HW: tuple[int, int]
    lidar_to_image_BV44: Tensor | None = None


class Align:
    """The BEV augmentations of a batch, canonical -> augmented, one matrix a sample.

    Args:
        bev_aug_B44: `Batch.bev_aug_B44`. Read once, on the host: pass the matrices before they move
            to a device and no step waits for it.
        images: the student's image augmentation; None for a student without images.

    Attributes:
        matrices_B44: the BEV augmentations, float64 numpy.
        images: as given.
    """

    def __init__(self, bev_aug_B44: Tensor, images: ImageAug | None = None) -> None:
        self.images = images
        self._places: dict[tuple[Grid, Grid, torch.device], _Places] = {}
        self.matrices_B44 = bev_aug_B44.detach().cpu().double().numpy()
        if self.matrices_B44.ndim != 3 or self.matrices_B44.shape[1:] != (4, 4):
            raise TargetMismatchError(
                f"bev_aug must be (B, 4, 4), got {tuple(self.matrices_B44.shape)}"
            )

    @classmethod
    def identity(cls, batch_size: int, images: ImageAug | None = None) -> "Align":
        """Return the alignment of targets that already are in the student's frame."""
        return cls(torch.eye(4).expand(batch_size, 4, 4), images)

    def inverse(self) -> "Align":
        """Return the alignment augmented -> canonical."""
        return Align(torch.from_numpy(np.linalg.inv(self.matrices_B44)))

    def scales(self) -> npt.NDArray[np.float64]:
        """Return how much each sample is enlarged in the plane, (B,)."""
        return np.asarray(np.sqrt(np.abs(np.linalg.det(self.matrices_B44[:, :2, :2]))))

    def __len__(self) -> int:
        return len(self.matrices_B44)

    def cells(self, map_BCYX: Tensor, source: Grid, target: Grid) -> tuple[Tensor, Tensor]:
        """Sample a student's map where the canonical cells of a target went.

        A cell is valid when A p lies in the rectangle spanned by the outermost cell *centres* of
        the student's grid, so that every valid value is an interpolation, never an extrapolation;
        the values of invalid cells are finite and mean nothing.

        Args:
            map_BCYX: (B, C, Y, X) the student's map, augmented frame; differentiable.
            source: the grid of that map.
            target: the grid of the canonical cells.

        Returns:
            The map at A p for every canonical cell p, (B, C, *target.shape_YX), float32 at least;
            and the valid cells, bool (B, *target.shape_YX).

        Raises:
            TargetMismatchError: batch or map size is not what the grids and matrices say.
        """
        self._check(map_BCYX, source)
        if map_BCYX.dtype in (torch.float16, torch.bfloat16):
            map_BCYX = map_BCYX.float()
        moves = [lattice_move(matrix, source, target) for matrix in self.matrices_B44]
        valid_BYX = torch.ones(
            (len(self), *target.shape_YX), dtype=torch.bool, device=map_BCYX.device
        )
        first = moves[0]
        if first is not None and all(move == first for move in moves):
            return first(map_BCYX), valid_BYX
        if all(move is None for move in moves):
            key = (source, target, map_BCYX.device)
            if key not in self._places:  # maps of a step share their grids
                self._places[key] = _places(self.matrices_B44, *key)
            return _read(map_BCYX, self._places[key])
        samples = []
        for b, move in enumerate(moves):
            if move is not None:
                samples.append(move(map_BCYX[b : b + 1]))
            else:
                own = _places(self.matrices_B44[b : b + 1], source, target, map_BCYX.device)
                sample, valid_BYX[b : b + 1] = _read(map_BCYX[b : b + 1], own)
                samples.append(sample)
        return torch.cat(samples), valid_BYX

    def voxels(
        self,
        map_BCZYX: Tensor,
        source: Grid,
        target: Grid,
        heights: Sequence[float],
        target_heights: Sequence[float],
    ) -> tuple[Tensor, Tensor]:
        """Sample a student's voxels where the canonical voxels of a target went.

        As `cells` in the plane; along the height, which scales with the plane, linear between
        layers. Give it probabilities: labels of neighbours have no mean.

        Args:
            map_BCZYX: (B, C, Z, Y, X), augmented frame; differentiable.
            source: the grid of that map.
            target: the grid of the canonical voxels.
            heights: metres, rising, of the map's Z layers.
            target_heights: of the canonical layers.

        Returns:
            The map at A p for every canonical voxel p, (B, C, Z, Y, X) of the target, float32 at
            least; and the valid voxels, bool (B, Z, Y, X): A p between the outermost centres.

        Raises:
            TargetMismatchError: batch or map size is not what grids, heights and matrices say.
        """
        if map_BCZYX.ndim != 5 or map_BCZYX.shape[2] != len(heights):
            raise TargetMismatchError(
                f"voxels must be (B, C, {len(heights)}, Y, X) to have a height each, got "
                f"{tuple(map_BCZYX.shape)}"
            )
        moved_BDYX, valid_BYX = self.cells(map_BCZYX.flatten(1, 2), source, target)
        moved_BCZYX = moved_BDYX.view(*map_BCZYX.shape[:3], *target.shape_YX)
        canonical_Z = np.asarray(target_heights)
        height_BZ = self.matrices_B44[:, 2, 2:3] * canonical_Z + self.matrices_B44[:, 2, 3:4]
        levels_BCZYX, valid_BZ = between_layers(moved_BCZYX, np.asarray(heights), height_BZ)
        return levels_BCZYX, valid_BYX[:, None] & valid_BZ[:, :, None, None]

    def points(self, points: list[Tensor]) -> list[Tensor]:
        """Move canonical points (P, 3 or more) of each sample to the student's frame."""
        self._check_length(len(points))
        with _own_precision(points):
            return [
                transform_points(own, matrix)
                for own, matrix in zip(points, self.matrices_B44, strict=True)
            ]

    def boxes(self, boxes: list[Tensor]) -> list[Tensor]:
        """Move canonical boxes (N, 9 or more) of each sample; columns after the ninth stay."""
        self._check_length(len(boxes))
        with _own_precision(boxes):
            return [
                torch.cat([transform_boxes(own[:, :9], matrix), own[:, 9:]], dim=1)
                for own, matrix in zip(boxes, self.matrices_B44, strict=True)
            ]

    def polylines(self, lines: list[Tensor]) -> list[Tensor]:
        """Move canonical polylines (N, 2 P + 2) of each sample; the order of points stays."""
        points = self.points([functional.pad(_vertices(own), (0, 1)) for own in lines])
        return [
            torch.cat([moved[:, :2].reshape(len(own), own.shape[1] - 2), own[:, -2:]], dim=1)
            for own, moved in zip(lines, points, strict=True)
        ]

    def codes(
        self,
        code_NE: Tensor,
        sample_N: Tensor,
        canonical_N2: Tensor,
        augmented_N2: Tensor,
        grid: Grid,
    ) -> Tensor:
        """Move canonical box codes to the cells their objects have in the student's frame.

        Args:
            code_NE: (N, 10) codes read at canonical cells, `targets.box_code`.
            sample_N: int64, the sample of each.
            canonical_N2: int64 cell (row, column) each was read at.
            augmented_N2: int64 cell (row, column) of the object in the student's frame.
            grid: of both frames.
        """
        matrices_B44 = torch.as_tensor(self.matrices_B44).to(code_NE.device, non_blocking=True)
        return move_codes(code_NE, canonical_N2, augmented_N2, matrices_B44[sample_N], grid)

    def heatmap(self, values_BKYX: Tensor, source: Grid, target: Grid) -> Tensor:
        """Bring a canonical heatmap to the student's grid; here the target moves, not the student.

        Interpolating a narrow peak would lower it by up to 45 % and teach the student to be unsure.
        Lattice moves permute the cells. Otherwise each peak (highest of its 3x3 neighbours) is
        drawn anew at the cell its centre went to, with the peak's value as amplitude and the
        smallest radius of `targets.heatmap` (that of all ten classes at 0.8 m cells).

        Args:
            values_BKYX: (B, K, Y, X) teacher probabilities, canonical frame; no gradient.
            source: the teacher's grid.
            target: the student's grid.

        Returns:
            float32 (B, K, *target.shape_YX) in the augmented frame.
        """
        self._check(values_BKYX, source)
        values_BKYX = values_BKYX.detach().float()
        moved = []
        for b, matrix in enumerate(self.matrices_B44):
            move = lattice_move(matrix, source, target)
            if move is not None:
                moved.append(move.inverse()(values_BKYX[b]))
            else:
                moved.append(_redraw(values_BKYX[b], matrix, source, target))
        return torch.stack(moved)

    def pixels(
        self, points: Target, size_HW: tuple[int, int], depth_range: tuple[float, float]
    ) -> tuple[Tensor, Tensor]:
        """Draw LiDAR points (`targets.pixels`) where the student's images show them.

        Args:
            points: point_set.
            size_HW: rows and columns of the student's image map.
            depth_range: points outside [low, high) metres are not there.

        Returns:
            Depth float32 (B, V, H, W), 0 where no point falls, and box int64 (B, V, H, W), 0 for
            background; see `targets.pixels.draw`.

        Raises:
            TargetMismatchError: the student has no images, or the map does not divide them.
        """
        self._check_length(len(points.values))
        if self.images is None or points.count_B is None:
            raise TargetMismatchError(
                "points are drawn into images: they need a count, and a student that has images"
            )
        height, width = self.images.size_HW
        stride = height // size_HW[0]
        if (size_HW[0] * stride, size_HW[1] * stride) != (height, width):
            raise TargetMismatchError(
                f"a map of {size_HW} cells does not divide images of {(height, width)} pixels "
                "evenly; points cannot be drawn into it"
            )
        matrices_BV33 = self.images.matrices_BV33.to(points.values.device, non_blocking=True)
        return draw(points.values, points.count_B, matrices_BV33, stride, size_HW, depth_range)

    def _check_length(self, num_samples: int) -> None:
        if num_samples != len(self):
            raise TargetMismatchError(
                f"{num_samples} samples meet {len(self)} augmentation matrices; both must come "
                "from one batch"
            )

    def _check(self, map_BCYX: Tensor, grid: Grid) -> None:
        if map_BCYX.ndim != 4 or tuple(map_BCYX.shape[2:]) != grid.shape_YX:
            raise TargetMismatchError(
                f"map must be (B, C, {grid.num_y}, {grid.num_x}) to lie on its grid, got "
                f"{tuple(map_BCYX.shape)}"
            )
        self._check_length(len(map_BCYX))


def _vertices(lines_NF: Tensor) -> Tensor:
    """Return the points (N P, 2) of polylines (N, 2 P + 2)."""
    return lines_NF[:, :-2].reshape(-1, 2)


def _own_precision(tensors: list[Tensor]) -> torch.autocast:
    """Return a context without autocast, which would move metres in half precision."""
    return torch.autocast(tensors[0].device.type if tensors else "cpu", enabled=False)


def _places(
    matrices: npt.NDArray[np.float64], source: Grid, target: Grid, device: torch.device
) -> _Places:
    """Return where in a map the moved cell centres lie, and which of them do.

    Float64 (B, Y, X, 2), column and row: -1 and 1 are the centres of the outermost cells.
    """
    centres_YX2 = centres_on(target, device)
    plane_B22, shift_B2 = (
        torch.as_tensor(part).to(device, non_blocking=True)
        for part in (matrices[:, :2, :2], matrices[:, :2, 3])
    )
    moved_BYX2 = centres_YX2 @ plane_B22.transpose(1, 2)[:, None] + shift_B2[:, None, None]
    # Continuous indices, whole at cell centres: column, row.
    index_BYX2 = source.to_cells(moved_BYX2) - 0.5
    last_2 = constant((source.num_x - 1, source.num_y - 1), index_BYX2)
    valid_BYX = ((index_BYX2 >= -_RIM) & (index_BYX2 <= last_2 + _RIM)).all(-1)
    return 2 * index_BYX2 / last_2.clamp(min=1) - 1, valid_BYX


def _read(map_BCYX: Tensor, places: _Places) -> tuple[Tensor, Tensor]:
    """Sample maps bilinearly at places; also tell which lie in the map."""
    unit_BYX2, valid_BYX = places
    sampled_BCYX = functional.grid_sample(
        map_BCYX,
        unit_BYX2.to(map_BCYX.dtype),
        mode="bilinear",
        padding_mode="border",
        align_corners=True,
    )
    return sampled_BCYX, valid_BYX


def _redraw(
    values_KYX: Tensor, matrix: npt.NDArray[np.float64], source: Grid, target: Grid
) -> Tensor:
    """Decode the peaks of one sample and draw them where they went; equal neighbours all count."""
    highest_KYX = functional.max_pool2d(values_KYX[None], 3, stride=1, padding=1)[0]
    peak_N, row_N, column_N = torch.nonzero(
        (values_KYX == highest_KYX) & (values_KYX > 0), as_tuple=True
    )
    score_N = values_KYX[peak_N, row_N, column_N]
    centres_YX2 = centres_on(source, score_N.device)
    plane, shift = (
        torch.as_tensor(own).to(score_N.device, non_blocking=True)
        for own in (matrix[:2, :2], matrix[:2, 3])
    )
    cell_N2 = target.to_cells(centres_YX2[row_N, column_N] @ plane.T + shift).floor().long()
    steps = torch.arange(-MIN_RADIUS, MIN_RADIUS + 1, device=score_N.device)
    patch_M2 = torch.cartesian_prod(steps, steps)
    sigma = (2 * MIN_RADIUS + 1) / 6
    blob_M = torch.exp(-(patch_M2**2).sum(1) / (2 * sigma**2))
    column_NM = cell_N2[:, :1] + patch_M2[:, 0]
    row_NM = cell_N2[:, 1:] + patch_M2[:, 1]
    inside_N = (
        (cell_N2 >= 0).all(1) & (cell_N2[:, 0] < target.num_x) & (cell_N2[:, 1] < target.num_y)
    )
    keep_NM = (
        inside_N[:, None]
        & (row_NM >= 0)
        & (row_NM < target.num_y)
        & (column_NM >= 0)
        & (column_NM < target.num_x)
    )
    shape_KYX = (len(values_KYX), *target.shape_YX)
    flat_NM = (peak_N[:, None] * target.num_y + row_NM) * target.num_x + column_NM
    value_NM = score_N[:, None] * blob_M
    return scattered(value_NM, flat_NM, keep_NM, math.prod(shape_KYX), "amax").view(shape_KYX)
