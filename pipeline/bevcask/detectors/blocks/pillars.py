"""Dynamic pillars: every point in range is embedded and each cell keeps the channel-wise maximum.

No voxel cap and, unless asked for, no point cap, so that the order of the points changes the map by
rounding at most.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bevcask.detectors.blocks.second import NORM_EPS, NORM_MOMENTUM
from bevcask.geometry import Grid, constant

_MAX_INTENSITY = 255.0


@dataclass(frozen=True)
class PillarPoints:
    """Points in range, of a whole batch.

    Attributes:
        points_PD: x, y, z, intensity, seconds before the keyframe, and what else they carry.
        pillar_P: index of each point's pillar among the occupied ones, int64.
        cells_M: flat cell (sample, y, x) of each occupied pillar, int64, ascending.
        counts_M: points in each of them, int64.
    """

    points_PD: Tensor
    pillar_P: Tensor
    cells_M: Tensor
    counts_M: Tensor


class PillarEncoder(nn.Module):
    """Embed points and scatter them to a BEV map.

    A point's features are its own, then its offsets to the pillar's mean (3) and centre. They
    are divided by fixed scales (range, 255, cell) before the linear layer, which changes what it
    can learn first, not what it can express.

    Args:
        channels: channels of the map.
        grid: pillars, one a cell.
        z_range: lowest and highest point used, metres.
        point_channels: numbers a point carries, 5 or more.
        hidden: widths of layers before the last; each embeds points in half of its width and sets
            the maximum of their pillar beside them.
        centre_axes: of the offset to the centre; the third is that of `z_range`.
        most_points: of a pillar, the first in the order given. Pillars with fewer see points of
            zeros too, as in mmdet3d; batch statistics do not. None: all points, and no others.
    """

    scale_F: Tensor

    def __init__(
        self,
        channels: int,
        grid: Grid,
        z_range: tuple[float, float],
        *,
        point_channels: int = 5,
        hidden: Sequence[int] = (),
        centre_axes: int = 2,
        most_points: int | None = None,
    ) -> None:
        super().__init__()
        self.grid = grid
        self.centre_axes, self.most_points = centre_axes, most_points
        self.z_range = z_range
        reach, height, cell = max(grid.x_max, grid.y_max), max(map(abs, z_range)), grid.cell
        extra = [1.0] * (point_channels - 5)
        scales = [reach, reach, height, _MAX_INTENSITY, 1.0, *extra, cell, cell, 1.0]
        scales += [cell, cell, 1.0][:centre_axes]
        self.scales = tuple(scales)
        self.register_buffer("scale_F", torch.tensor(scales), persistent=False)
        widths = [len(scales), *hidden]
        self.hidden = nn.ModuleList(
            nn.Sequential(*_linear_norm(num_in, num_out // 2), nn.ReLU())
            for num_in, num_out in itertools.pairwise(widths)
        )
        self.linear, self.norm = _linear_norm(widths[-1], channels)

    def forward(self, points: list[Tensor]) -> Tensor:
        """Return the map (B, C, Y, X), float32, non-negative, 0 in empty cells.

        Mixed precision stops here: coordinates need more digits than bfloat16 has (0.2 m at 51 m),
        and its CPU kernels keep memory for every number of points they have seen.

        Args:
            points: per sample (P, point_channels) float32, see `detectors.base.Batch`, in the
                grid's frame.
        """
        with torch.autocast(points[0].device.type, enabled=False):
            return self._forward(points)

    def _forward(self, points: list[Tensor]) -> Tensor:
        found = self._assign(points)
        features_PF = self._features(found) / self.scale_F
        for layer in self.hidden:
            own_PC = layer(features_PF)
            around_PC = _pillar_maximum(own_PC, found)[found.pillar_P]
            features_PF = torch.cat([own_PC, around_PC], dim=1)
        pillars_MC = _pillar_maximum(self.norm(self.linear(features_PF)).relu(), found)
        if self.most_points is not None:
            room_M = found.counts_M < self.most_points
            pillars_MC = torch.where(
                room_M[:, None], pillars_MC.maximum(self._of_zeros(pillars_MC)), pillars_MC
            )
        num_y, num_x = self.grid.shape_YX
        canvas_SC = pillars_MC.new_zeros((len(points) * num_y * num_x, pillars_MC.shape[1]))
        canvas_SC = canvas_SC.index_copy(0, found.cells_M, pillars_MC)
        return canvas_SC.view(len(points), num_y, num_x, -1).permute(0, 3, 1, 2)

    def _assign(self, points: list[Tensor]) -> PillarPoints:
        """Drop points out of range and give each of the rest its pillar."""
        sample_P = torch.repeat_interleave(
            torch.tensor([len(own) for own in points]).to(points[0].device, non_blocking=True),
            output_size=sum(map(len, points)),
        )
        points_PD = torch.cat(points).float()
        cells_P2 = self.grid.to_cells(points_PD[:, :2]).floor().long()
        low, high = self.z_range
        inside_P = (
            (cells_P2 >= 0).all(dim=1)
            & (cells_P2[:, 0] < self.grid.num_x)
            & (cells_P2[:, 1] < self.grid.num_y)
            & (points_PD[:, 2] >= low)
            & (points_PD[:, 2] < high)
        )
        points_PD, cells_P2, sample_P = points_PD[inside_P], cells_P2[inside_P], sample_P[inside_P]
        flat_P = (sample_P * self.grid.num_y + cells_P2[:, 1]) * self.grid.num_x + cells_P2[:, 0]
        cells_M, pillar_P, counts_M = torch.unique(flat_P, return_inverse=True, return_counts=True)
        if self.most_points is not None:
            kept_P = _rank_in_pillar(pillar_P, counts_M) < self.most_points
            points_PD, pillar_P = points_PD[kept_P], pillar_P[kept_P]
            counts_M = counts_M.clamp(max=self.most_points)
        return PillarPoints(points_PD, pillar_P, cells_M, counts_M)

    def _of_zeros(self, like_MC: Tensor) -> Tensor:
        """Return what a point whose features are all 0 is embedded as, (1, C)."""
        norm, zeros_1C = self.norm, like_MC.new_zeros((1, like_MC.shape[1]))
        mean, var = norm.running_mean, norm.running_var
        return nn.functional.batch_norm(
            zeros_1C, mean, var, norm.weight, norm.bias, eps=norm.eps
        ).relu()

    def _features(self, found: PillarPoints) -> Tensor:
        """Return raw values, offset to the pillar's mean and offset to its centre: (P, F)."""
        xyz_P3 = found.points_PD[:, :3]
        sum_M3 = xyz_P3.new_zeros((len(found.cells_M), 3)).index_add(0, found.pillar_P, xyz_P3)
        mean_M3 = sum_M3 / found.counts_M[:, None]
        row_M = found.cells_M // self.grid.num_x % self.grid.num_y
        column_M = found.cells_M % self.grid.num_x
        centre_M2 = torch.stack([column_M, row_M], dim=1) + 0.5
        centre_M2 = centre_M2 * self.grid.cell + constant(
            (self.grid.x_min, self.grid.y_min), xyz_P3
        )
        parts = [
            found.points_PD,
            xyz_P3 - mean_M3[found.pillar_P],
            xyz_P3[:, :2] - centre_M2[found.pillar_P],
        ]
        if self.centre_axes > 2:
            parts.append(xyz_P3[:, 2:] - sum(self.z_range) / 2)
        return torch.cat(parts, dim=1)


def _linear_norm(num_in: int, num_out: int) -> tuple[nn.Linear, nn.BatchNorm1d]:
    norm = nn.BatchNorm1d(num_out, eps=NORM_EPS, momentum=NORM_MOMENTUM)
    return nn.Linear(num_in, num_out, bias=False), norm


def _rank_in_pillar(pillar_P: Tensor, counts_M: Tensor) -> Tensor:
    """Return how many points of its pillar come before each point."""
    order_P = pillar_P.argsort(stable=True)
    first_M = counts_M.cumsum(0) - counts_M
    places_P = torch.arange(len(pillar_P), device=pillar_P.device)
    ranks_P = places_P - first_M.repeat_interleave(counts_M)
    return torch.empty_like(ranks_P).index_copy(0, order_P, ranks_P)


def _pillar_maximum(embedded_PC: Tensor, found: PillarPoints) -> Tensor:
    """Return the channel-wise maximum (M, C) of the points of each pillar; they are >= 0."""
    pillars_MC = embedded_PC.new_zeros((len(found.cells_M), embedded_PC.shape[1]))
    index_PC = found.pillar_P[:, None].expand_as(embedded_PC)
    return pillars_MC.scatter_reduce(0, index_PC, embedded_PC, "amax")
