"""Deformable attention (Zhu et al. 2021): every query reads a few learned places of a map.

In plain torch, by `grid_sample`. What is read, B * C * Q * P numbers for Q queries and P points a
head, is never held: points are taken a few at a time, and read again for the backward pass.

A location is (x, y) in units of the map: 0 and 1 are its outer borders, so that the centre of cell
i of n lies at (i + 0.5) / n (`align_corners=False`). What lies outside is 0.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bevcask.detectors.blocks.starts import start_linear
from bevcask.geometry import constant

# Largest temporary of `sum_of_samples`, in numbers, unless one point of all queries is larger.
CHUNK_NUMBERS = 1 << 22


def sum_of_samples(
    maps_BCYX: Sequence[Tensor], locations_BQALP2: Tensor, weights_BQALP: Tensor
) -> Tensor:
    """Sum weighted bilinear samples over levels and points, head by head.

    Beyond inputs, outputs and their gradients it holds a few temporaries of
    max(B*C*Q, `CHUNK_NUMBERS`) numbers, in the backward pass also one gradient of a map.
    Deterministic on CPU; torch has no deterministic gradient of `grid_sample` on CUDA.

    Args:
        maps_BCYX: one map a level (L of them), of any size; C divides by the heads A, and each head
            has channels of its own.
        locations_BQALP2: where each query reads, (x, y), 0 to 1 over the map.
        weights_BQALP: weight of each sample.

    Returns:
        (B, Q, C), float32 (float64 for float64 maps), whatever the precision of the inputs.
    """
    num_samples, num_queries, num_heads, _, num_points = weights_BQALP.shape
    num_channels = maps_BCYX[0].shape[1]
    wide = torch.promote_types(maps_BCYX[0].dtype, torch.float32)
    places, shares = (given.to(wide).unbind(dim=3) for given in (locations_BQALP2, weights_BQALP))
    width = num_channels // num_heads
    total = maps_BCYX[0].new_zeros((num_samples * num_heads, width, num_queries), dtype=wide)
    step = max(1, CHUNK_NUMBERS // max(1, total.numel()))
    for map_BCYX, place, share in zip(maps_BCYX, places, shares, strict=True):
        heads = map_BCYX.to(wide).reshape(-1, width, *map_BCYX.shape[-2:])
        for first in range(0, num_points, step):
            points = slice(first, first + step)
            total += checkpoint(
                _read,
                heads,
                place[:, :, :, points],
                share[:, :, :, points],
                use_reentrant=False,
                preserve_rng_state=False,
            )
    return total.view(num_samples, num_channels, num_queries).transpose(1, 2)


def _read(map_NCYX: Tensor, place_BQAP2: Tensor, share_BQAP: Tensor) -> Tensor:
    """Return (N, C, Q) for N = B * A."""
    place_NQP2, share_NQP = (
        given.transpose(1, 2).flatten(0, 1) for given in (place_BQAP2, share_BQAP)
    )
    samples_NCQP = nn.functional.grid_sample(
        map_NCYX, 2 * place_NQP2 - 1, mode="bilinear", padding_mode="zeros", align_corners=False
    )
    return (samples_NCQP * share_NQP[:, None]).sum(dim=-1)


def start_looking_around(
    offsets: nn.Linear, weights: nn.Linear, shape_ALP: tuple[int, int, int]
) -> None:
    """Let every query weigh all its points alike, whatever it is.

    Head a of A looks in direction 2 pi a / A, point p at p + 1 cells (as in the release of
    Deformable DETR).
    """
    heads, levels, points = shape_ALP
    angle_A = 2 * math.pi * torch.arange(heads) / heads
    ray_A2 = torch.stack([angle_A.cos(), angle_A.sin()], dim=1)
    ray_A2 /= ray_A2.abs().amax(dim=1, keepdim=True)
    reach_P = torch.arange(1.0, points + 1)
    ring = ray_A2[:, None, None] * reach_P[:, None]
    nn.init.zeros_(offsets.weight)
    offsets.bias.data = ring.expand(heads, levels, points, 2).flatten()
    nn.init.zeros_(weights.weight)
    nn.init.zeros_(weights.bias)


class Reading(NamedTuple):
    """What queries read of maps, and where.

    Attributes:
        places_BQALP2: (x, y), 0 to 1 over the maps.
        shares_BQALP: weight of each place, sum 1 a head.
        sums_BQC: weighted sums of values, before the output layer.
    """

    places_BQALP2: Tensor
    shares_BQALP: Tensor
    sums_BQC: Tensor


class DeformableAttention(nn.Module):
    """Read a few places around each query's reference point, with learned offsets and weights.

    Args:
        channels: of queries, maps and output; divides by `heads`.
        heads: attention heads.
        points: points a head reads on each level.
        levels: maps to read from.
    """

    def __init__(self, channels: int, heads: int, points: int, levels: int = 1) -> None:
        super().__init__()
        self.shape_ALP = (heads, levels, points)
        self.offsets = nn.Linear(channels, 2 * math.prod(self.shape_ALP))
        self.weights = nn.Linear(channels, math.prod(self.shape_ALP))
        self.value = nn.Conv2d(channels, channels, 1)
        self.output = nn.Linear(channels, channels)
        start_looking_around(self.offsets, self.weights, self.shape_ALP)
        start_linear(self.value, self.output)

    def forward(
        self, query_BQC: Tensor, reference_BQ2: Tensor, maps_BCYX: Sequence[Tensor]
    ) -> Tensor:
        """Return what each query reads, (B, Q, C).

        Args:
            query_BQC: decides offsets and weights.
            reference_BQ2: (x, y) of each query, 0 to 1 over the maps.
            maps_BCYX: one map a level.
        """
        sums_BQC = self.gather(query_BQC, reference_BQ2, maps_BCYX).sums_BQC
        read_BQC: Tensor = self.output(sums_BQC)
        return read_BQC

    def gather(
        self, query_BQC: Tensor, reference_BQ2: Tensor, maps_BCYX: Sequence[Tensor]
    ) -> Reading:
        """Return what `forward` reads before its output layer, and where it reads that."""
        shape = (*query_BQC.shape[:2], *self.shape_ALP)
        wide_BQC = query_BQC.to(torch.promote_types(query_BQC.dtype, torch.float32))
        with torch.autocast(query_BQC.device.type, enabled=False):  # places need the digits
            offsets_BQALP2 = self.offsets(wide_BQC).view(*shape, 2)
            scores = self.weights(wide_BQC).view(*shape[:3], -1)
        sizes_L2 = constant(
            tuple((own.shape[-1], own.shape[-2]) for own in maps_BCYX), offsets_BQALP2
        )
        locations_BQALP2 = (
            reference_BQ2[:, :, None, None, None] + offsets_BQALP2 / sizes_L2[:, None]
        )
        weights_BQALP = scores.softmax(dim=-1).view(shape)
        values = [self.value(own) for own in maps_BCYX]
        sums_BQC = sum_of_samples(values, locations_BQALP2, weights_BQALP)
        return Reading(locations_BQALP2, weights_BQALP, sums_BQC)


class MapSelfAttention(nn.Module):
    """A map plus what its cells read of it by deformable attention; no norm, no feed-forward.

    Learned positions, one vector a row and one a column, are added to the queries alone; reference
    points are the cell centres (SimDistill, geometry compensation).

    Args:
        channels: of the map.
        heads: attention heads.
        points: points a head.
        size_YX: rows and columns of the map.
    """

    centres_Q2: Tensor

    def __init__(self, channels: int, heads: int, points: int, size_YX: tuple[int, int]) -> None:
        super().__init__()
        self.attention = DeformableAttention(channels, heads, points)
        self.rows_CY1 = nn.Parameter(torch.rand(channels, size_YX[0], 1))
        self.columns_C1X = nn.Parameter(torch.rand(channels, 1, size_YX[1]))
        row_Y, column_X = ((torch.arange(size) + 0.5) / size for size in size_YX)
        centres_YX2 = torch.stack(torch.meshgrid(column_X, row_Y, indexing="xy"), dim=-1)
        self.register_buffer("centres_Q2", centres_YX2.flatten(0, 1), persistent=False)

    def forward(self, map_BCYX: Tensor) -> Tensor:
        """Return a map of the same shape."""
        query_BCYX = map_BCYX + self.rows_CY1 + self.columns_C1X
        read_BQC = self.attention(
            query_BCYX.flatten(2).transpose(1, 2), self.centres_Q2[None], [map_BCYX]
        )
        attended: Tensor = map_BCYX + read_BQC.transpose(1, 2).reshape(map_BCYX.shape)
        return attended
