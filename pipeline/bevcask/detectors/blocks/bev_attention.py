"""The two attentions of BEVFormer's encoder (Li et al. 2022): to the BEV before, to the cameras.

Both are deformable attention whose places are computed in float32, whatever the precision around
them. Layers of offsets and weights are laid out as in the release: head slowest, then the BEV or
the level, then the point, then (x, y).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bevcask.detectors.blocks.deformable import (
    start_looking_around,
    sum_of_samples,
)
from bevcask.detectors.blocks.starts import start_linear
from bevcask.geometry import constant

_NEAREST = 1e-5  # metres in front of a camera; released code


@dataclass(frozen=True)
class Pillars:
    """Where the pillars of BEV cells lie in the images.

    Attributes:
        places_BVQD2: (x, y) of each point of each cell's pillar, 0 to 1 over the padded image
            where it is seen, anything elsewhere; float32.
        seen_BVQD: bool, whether a point lies in front of the camera and in the padded image.
    """

    places_BVQD2: Tensor
    seen_BVQD: Tensor


def project_pillars(
    points_QD3: Tensor, lidar_to_image_BV44: Tensor, padded_HW: tuple[int, int]
) -> Pillars:
    """Return where the points of pillars lie in the images.

    Args:
        points_QD3: metres, LIDAR_TOP.
        lidar_to_image_BV44: LIDAR_TOP -> (u d, v d, d, 1), network pixels and depth.
        padded_HW: of the images as the network sees them.
    """
    points_QD4 = nn.functional.pad(points_QD3, (0, 1), value=1.0)
    with torch.autocast(points_QD4.device.type, enabled=False):  # pixels need the digits
        seen_BVQD3 = torch.einsum("bvij,qdj->bvqdi", lidar_to_image_BV44[:, :, :3], points_QD4)
    depth_BVQD = seen_BVQD3[..., 2]
    size_2 = constant((padded_HW[1], padded_HW[0]), seen_BVQD3)
    places = seen_BVQD3[..., :2] / depth_BVQD.clamp(min=_NEAREST)[..., None] / size_2
    within = ((places > 0) & (places < 1)).all(dim=-1)
    return Pillars(places, within & (depth_BVQD > _NEAREST))


class TemporalSelfAttention(nn.Module):
    """A BEV reads two: that of the frame before and its own, and takes their mean.

    Args:
        channels: of both.
        heads: attention heads.
        points: points a head reads in each.
        dropout: of what was read.
    """

    def __init__(self, channels: int, heads: int, points: int, dropout: float) -> None:
        super().__init__()
        self.shape_ALP = (heads, 2, points)
        self.offsets = nn.Linear(2 * channels, 2 * math.prod(self.shape_ALP))
        self.weights = nn.Linear(2 * channels, math.prod(self.shape_ALP))
        self.value = nn.Conv2d(channels, channels, 1)
        self.output = nn.Linear(channels, channels)
        self.dropout = nn.Dropout(dropout)
        start_looking_around(self.offsets, self.weights, self.shape_ALP)
        start_linear(self.value, self.output)

    def forward(
        self,
        query_BQC: Tensor,
        position_QC: Tensor,
        read_BQC: tuple[Tensor, Tensor],
        reference_BLQ2: Tensor,
        size_YX: tuple[int, int],
    ) -> Tensor:
        """Return the queries with what they read added, (B, Q, C).

        Args:
            query_BQC: cells, row by row.
            position_QC: added to queries where offsets and weights are decided.
            read_BQC: the BEV before and the one of now.
            reference_BLQ2: (x, y) of each cell in each of the two, 0 to 1 over the map.
            size_YX: of the BEV.
        """
        asked = torch.cat([read_BQC[0], query_BQC + position_QC], dim=-1).float()
        shape = (*query_BQC.shape[:2], *self.shape_ALP)
        with torch.autocast(query_BQC.device.type, enabled=False):
            offsets_BQALP2 = self.offsets(asked).view(*shape, 2)
            weights_BQALP = self.weights(asked).view(shape).softmax(dim=-1) / 2
        sizes_2 = constant((size_YX[1], size_YX[0]), offsets_BQALP2)
        reference_BQL2 = reference_BLQ2.transpose(1, 2)
        locations = reference_BQL2[:, :, None, :, None] + offsets_BQALP2 / sizes_2
        values = [
            self.value(own.transpose(1, 2).reshape(*own.shape[::2], *size_YX)) for own in read_BQC
        ]
        read = self.output(sum_of_samples(values, locations, weights_BQALP))
        added_BQC: Tensor = query_BQC + self.dropout(read)
        return added_BQC


class SpatialCrossAttention(nn.Module):
    """A BEV cell reads the images around the points of its pillar, in every camera that sees one.

    It takes the mean over these cameras; which they are is decided sample by sample (the release
    takes the first sample's for the whole batch). Point p of a head looks around point p mod D of
    the pillar, whether or not that one is seen.

    Args:
        channels: of cells and maps.
        heads: attention heads.
        points: points a head reads on each level; a multiple of D.
        levels: maps a camera.
        dropout: of what was read.
    """

    def __init__(self, channels: int, heads: int, points: int, levels: int, dropout: float) -> None:
        super().__init__()
        self.shape_ALP = (heads, levels, points)
        self.offsets = nn.Linear(channels, 2 * math.prod(self.shape_ALP))
        self.weights = nn.Linear(channels, math.prod(self.shape_ALP))
        self.value = nn.Conv2d(channels, channels, 1)
        self.output = nn.Linear(channels, channels)
        self.dropout = nn.Dropout(dropout)
        start_looking_around(self.offsets, self.weights, self.shape_ALP)
        start_linear(self.value, self.output)

    def forward(self, query_BQC: Tensor, maps_BVCHW: Sequence[Tensor], pillars: Pillars) -> Tensor:
        """Return the queries with what they read added, (B, Q, C).

        Args:
            query_BQC: cells, row by row.
            maps_BVCHW: one map a level.
            pillars: where the cells lie in the images.
        """
        seen_BVQ = pillars.seen_BVQD.any(dim=-1)
        values = [self.value(own.flatten(0, 1)).unflatten(0, own.shape[:2]) for own in maps_BVCHW]
        read = [
            self._sample(query_QC, [own[sample] for own in values], places_VQD2, seen_VQ)
            for sample, (query_QC, places_VQD2, seen_VQ) in enumerate(
                zip(query_BQC, pillars.places_BVQD2, seen_BVQ, strict=True)
            )
        ]
        mean_BQC = torch.stack(read) / seen_BVQ.sum(dim=1).clamp(min=1)[..., None]
        added_BQC: Tensor = query_BQC + self.dropout(self.output(mean_BQC))
        return added_BQC

    def _sample(
        self,
        query_QC: Tensor,
        maps_VCHW: list[Tensor],
        places_VQD2: Tensor,
        seen_VQ: Tensor,
    ) -> Tensor:
        """Return the sum over cameras of what each cell of one sample reads, float32 (Q, C)."""
        cells, read = [], []
        for camera, seen_Q in enumerate(seen_VQ):
            own = seen_Q.nonzero()[:, 0]
            maps = [level[camera][None] for level in maps_VCHW]
            cells.append(own)
            read.append(self._look(query_QC[own], maps, places_VQD2[camera, own]))
        total_QC = torch.zeros_like(query_QC, dtype=read[0].dtype)
        return total_QC.index_add(0, torch.cat(cells), torch.cat(read))

    def _look(self, query_QC: Tensor, maps_1CHW: list[Tensor], places_QD2: Tensor) -> Tensor:
        """Return what cells read in one image, (Q, C)."""
        heads, levels, points = self.shape_ALP
        with torch.autocast(query_QC.device.type, enabled=False):
            offsets_QALP2 = self.offsets(query_QC.float()).view(-1, heads, levels, points, 2)
            scores_QAN = self.weights(query_QC.float()).view(-1, heads, levels * points)
        weights_QALP = scores_QAN.softmax(dim=-1).view(-1, heads, levels, points)
        sizes_L12 = constant(
            tuple(((own.shape[-1], own.shape[-2]),) for own in maps_1CHW), offsets_QALP2
        )
        around_QP2 = places_QD2.repeat(1, points // places_QD2.shape[1], 1)
        locations_QALP2 = around_QP2[:, None, None] + offsets_QALP2 / sizes_L12
        return sum_of_samples(maps_1CHW, locations_QALP2[None], weights_QALP[None])[0]
