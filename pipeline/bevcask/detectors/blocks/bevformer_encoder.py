"""BEVFormer's encoder: camera maps and the BEV of the frame before to the BEV of now.

What the published weights were trained with stays, each with its switch (`EncoderConfig`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor, nn

from bevcask.config import Config
from bevcask.detectors.blocks.bev_attention import (
    Pillars,
    SpatialCrossAttention,
    TemporalSelfAttention,
    project_pillars,
)
from bevcask.detectors.blocks.starts import start_weights
from bevcask.detectors.blocks.transformer import FeedForward
from bevcask.geometry import CAMERAS, Grid
from bevcask.measures import Rising

CAN_BUS = 18


class EncoderConfig(Config):
    """Shape of the encoder; defaults: BEVFormer-Base."""

    layers: int = Field(6, ge=1)
    temporal_points: int = Field(4, ge=1, description="points a head reads in each BEV")
    spatial_points: int = Field(8, ge=1, description="points a head reads on each image level")
    heights: int = Field(4, ge=1, description="points of a cell's pillar")
    z_range: Rising = Field((-5.0, 3.0), description="metres; ends of a pillar")
    level_embeddings: int = Field(
        4, ge=1, description="rows; every published file has four, also of one-level networks"
    )
    shift_current: bool = Field(
        True,
        description="the BEV of now is read at shifted places too: the published weights were "
        "trained by code in which both share memory; false: upstream since July 2023",
    )
    rotation_centre: tuple[float, float] | None = Field(
        None,
        description="(x, y) in cells about which the BEV before is turned; null: the middle of "
        "the map. The weights of small and tiny were trained with (100, 100)",
    )


@dataclass(frozen=True)
class Before:
    """The frame before, as the encoder reads it.

    Attributes:
        bev_BQC: its BEV, turned to the heading of now; anything where `known_B` is false.
        known_B: bool; the others begin anew.
    """

    bev_BQC: Tensor
    known_B: Tensor


class EncoderLayer(nn.Module):
    """Temporal attention, spatial attention, feed-forward; a norm behind each."""

    def __init__(
        self, config: EncoderConfig, channels: int, heads: int, levels: int, width: int, drop: float
    ) -> None:
        super().__init__()
        self.temporal = TemporalSelfAttention(channels, heads, config.temporal_points, drop)
        self.spatial = SpatialCrossAttention(channels, heads, config.spatial_points, levels, drop)
        self.feed_forward = FeedForward(channels, width, drop)
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(3))

    def forward(
        self,
        query_BQC: Tensor,
        position_QC: Tensor,
        read_BQC: tuple[Tensor, Tensor],
        reference_BLQ2: Tensor,
        size_YX: tuple[int, int],
        maps_BVCHW: Sequence[Tensor],
        pillars: Pillars,
    ) -> Tensor:
        hidden = self.norms[0](
            self.temporal(query_BQC, position_QC, read_BQC, reference_BLQ2, size_YX)
        )
        hidden = self.norms[1](self.spatial(hidden, maps_BVCHW, pillars))
        out_BQC: Tensor = self.norms[2](self.feed_forward(hidden))
        return out_BQC


class BEVFormerEncoder(nn.Module):
    """Six cameras and a memory to a BEV.

    Args:
        config: see `EncoderConfig`.
        channels: of maps and BEV.
        heads: attention heads.
        levels: maps a camera.
        width: of the feed-forward layers.
        dropout: in training.
        grid: of the BEV.
    """

    points_QD3: Tensor
    centres_Q2: Tensor

    def __init__(
        self,
        config: EncoderConfig,
        channels: int,
        heads: int,
        levels: int,
        width: int,
        dropout: float,
        grid: Grid,
    ) -> None:
        super().__init__()
        self.config = config
        self.grid = grid
        rows, columns = grid.shape_YX
        self.bev_queries = nn.Parameter(torch.randn(rows * columns, channels))
        self.row_positions = nn.Parameter(torch.randn(rows, channels // 2))
        self.column_positions = nn.Parameter(torch.randn(columns, channels // 2))
        self.camera_embeddings = nn.Parameter(torch.randn(len(CAMERAS), channels))
        self.level_embeddings = nn.Parameter(torch.randn(config.level_embeddings, channels))
        inner, outer = nn.Linear(CAN_BUS, channels // 2), nn.Linear(channels // 2, channels)
        start_weights(inner, outer)
        self.can_bus = nn.Sequential(inner, nn.ReLU(), outer, nn.ReLU(), nn.LayerNorm(channels))
        self.layers = nn.ModuleList(
            EncoderLayer(config, channels, heads, levels, width, dropout)
            for _ in range(config.layers)
        )
        centres_YX2 = torch.tensor(grid.centres())
        self.register_buffer("points_QD3", _pillars(config, centres_YX2), persistent=False)
        column_X, row_Y = ((torch.arange(size) + 0.5) / size for size in (columns, rows))
        centres = torch.stack(torch.meshgrid(column_X, row_Y, indexing="xy"), dim=-1)
        self.register_buffer("centres_Q2", centres.flatten(0, 1), persistent=False)

    def forward(
        self,
        maps_BVCHW: Sequence[Tensor],
        lidar_to_image_BV44: Tensor,
        padded_HW: tuple[int, int],
        can_bus_B18: Tensor,
        memory_BQC: Tensor | None,
        known_B: Tensor | None,
    ) -> Tensor:
        """Return the BEV, (B, Q, C), cells row by row.

        Args:
            maps_BVCHW: pyramid, finest level first; cameras as `geometry.CAMERAS`.
            lidar_to_image_BV44: float32, canonical LIDAR_TOP -> (u d, v d, d, 1), network pixels.
            padded_HW: of the images as the network sees them.
            can_bus_B18: float64, differences to the frame before taken.
            memory_BQC: the BEV of the frame before, in its own frame.
            known_B: bool, whose `memory_BQC` holds something; None for all or none.
        """
        start_BQC = self.bev_queries + self.can_bus(can_bus_B18.float())[:, None]
        maps = [
            own + self.camera_embeddings[:, :, None, None] + embedding[:, None, None]
            for own, embedding in zip(maps_BVCHW, self.level_embeddings, strict=False)
        ]
        pillars = project_pillars(self.points_QD3, lidar_to_image_BV44, padded_HW)
        before = None
        if memory_BQC is not None:
            turned = turn(memory_BQC, can_bus_B18[:, 17], self.grid.shape_YX, self._centre())
            known = turned.new_ones(len(turned), dtype=torch.bool) if known_B is None else known_B
            before = Before(turned, known[:, None, None])
        reference_BLQ2 = self._references(can_bus_B18)
        bev_BQC: Tensor = start_BQC
        for layer in self.layers:
            read = (bev_BQC, bev_BQC)
            if before is not None:  # what is read beside the BEV before is the start, in all layers
                read = (
                    torch.where(before.known_B, before.bev_BQC, bev_BQC),
                    torch.where(before.known_B, start_BQC, bev_BQC),
                )
            bev_BQC = layer(
                bev_BQC,
                self._positions(),
                read,
                reference_BLQ2,
                self.grid.shape_YX,
                maps,
                pillars,
            )
        return bev_BQC

    def _positions(self) -> Tensor:
        """Return the learned position of every cell, columns in the first half, (Q, C)."""
        rows, columns = self.grid.shape_YX
        return torch.cat(
            [
                self.column_positions.expand(rows, -1, -1),
                self.row_positions[:, None].expand(-1, columns, -1),
            ],
            dim=-1,
        ).flatten(0, 1)

    def _references(self, can_bus_B18: Tensor) -> Tensor:
        """Return where each cell looks in the BEV before and in that of now, (B, 2, Q, 2)."""
        shift_B2 = travel(can_bus_B18, self.grid).to(self.centres_Q2.dtype)
        before_BQ2 = self.centres_Q2 + shift_B2[:, None]
        now_BQ2 = before_BQ2 if self.config.shift_current else self.centres_Q2.expand_as(before_BQ2)
        return torch.stack([before_BQ2, now_BQ2], dim=1)

    def _centre(self) -> tuple[float, float]:
        rows, columns = self.grid.shape_YX
        return self.config.rotation_centre or (columns / 2, rows / 2)


def _pillars(config: EncoderConfig, centres_YX2: Tensor) -> Tensor:
    """Return the points of every cell's pillar, metres, float32 (Q, D, 3).

    Heights are linspace(0.5, Z - 0.5, D) for a pillar of Z metres: no centres of slices.
    """
    low, high = config.z_range
    height_D = low + torch.linspace(0.5, high - low - 0.5, config.heights, dtype=torch.float64)
    centres_Q2 = centres_YX2.flatten(0, 1)
    points_QD3 = torch.cat(
        [
            centres_Q2[:, None].expand(-1, config.heights, -1),
            height_D[:, None].expand(len(centres_Q2), -1, -1),
        ],
        dim=-1,
    )
    return points_QD3.float()


def travel(can_bus_B18: Tensor, grid: Grid) -> Tensor:
    """Return how far the ego moved since the frame before, (right, forward) in maps, (B, 2).

    Args:
        can_bus_B18: float64; translation since then in 0:2, global axes; heading in 16, radians.
        grid: of the BEV.
    """
    moved_B2 = can_bus_B18[:, :2]
    angle_B = can_bus_B18[:, 16] - torch.atan2(moved_B2[:, 1], moved_B2[:, 0])
    distance_B = moved_B2.norm(dim=1)
    return torch.stack(
        [
            distance_B * angle_B.sin() / (grid.x_max - grid.x_min),
            distance_B * angle_B.cos() / (grid.y_max - grid.y_min),
        ],
        dim=1,
    )


def turn(
    bev_BQC: Tensor,
    degrees_B: Tensor,
    size_YX: tuple[int, int],
    centre: tuple[float, float],
) -> Tensor:
    """Turn maps clockwise as seen from above, each cell from the nearest one; outside is 0.

    Args:
        bev_BQC: cells row by row.
        degrees_B: float64; how far the ego turned to the left.
        size_YX: rows and columns.
        centre: (x, y) in cells.
    """
    rows, columns = size_YX
    c, s = degrees_B.deg2rad().cos(), degrees_B.deg2rad().sin()
    x_X, y_Y = (
        torch.arange(size, dtype=degrees_B.dtype, device=degrees_B.device) + 0.5 - middle
        for size, middle in ((columns, centre[0]), (rows, centre[1]))
    )
    c, s = c[:, None, None], s[:, None, None]
    column_BYX = (c * x_X - s * y_Y[:, None] + centre[0] - 0.5).round().long()
    row_BYX = (s * x_X + c * y_Y[:, None] + centre[1] - 0.5).round().long()
    inside = (column_BYX >= 0) & (column_BYX < columns) & (row_BYX >= 0) & (row_BYX < rows)
    cell_BQ = (row_BYX.clamp(0, rows - 1) * columns + column_BYX.clamp(0, columns - 1)).flatten(1)
    turned = bev_BQC.gather(1, cell_BQ[..., None].expand_as(bev_BQC))
    return turned.where(inside.flatten(1)[..., None], torch.zeros_like(turned))
