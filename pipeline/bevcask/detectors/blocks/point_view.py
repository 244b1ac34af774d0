"""Queries that read all cameras and levels at a few points of their own (RayDN's aggregation)."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from bevcask.detectors.blocks.deformable import sum_of_samples
from bevcask.detectors.blocks.motion import ModulatedNorm
from bevcask.detectors.blocks.query_memory import Frame
from bevcask.detectors.blocks.transformer import start_linear_as

_POSE_SIZE = 12  # three rows of a matrix
_MILLI = 1e-3  # focal lengths, of pixels
_NEAR = 1e-5
_SPREAD = 2.0  # metres; where points start


class Views(NamedTuple):
    """Maps of all cameras, finest first, and how points come to their places.

    Attributes:
        maps_BVCHW: a map a level.
        lidar_to_image_BV44: augmented LIDAR_TOP -> network pixels times depth.
    """

    maps_BVCHW: list[Tensor]
    lidar_to_image_BV44: Tensor


class PointView(nn.Module):
    """Maps that know their camera: focal lengths with their sign, and the pose."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alignment = ModulatedNorm(channels, 2 + _POSE_SIZE, normalise=False)

    def forward(self, maps_BVCHW: list[Tensor], frame: Frame) -> Views:
        focal_BV2 = frame.intrinsics_BV44.diagonal(dim1=-2, dim2=-1)[..., :2] * _MILLI
        code_BVK = torch.cat([focal_BV2, frame.extrinsics_BV44[..., :3, :].flatten(2)], dim=-1)
        aligned = [
            self.alignment(own.movedim(2, -1), code_BVK[:, :, None, None]).movedim(-1, 2)
            for own in maps_BVCHW
        ]
        return Views(aligned, frame.lidar_to_image_BV44)


class PointRead(nn.Module):
    """Weighted samples at projected key points; weights are shared out over cameras too.

    Points behind a camera are projected all the same, and fall where its maps are 0.

    Args:
        channels: of queries and maps.
        levels: maps a camera.
        points: key points a query.
        groups: of channels, each with weights of its own.
        image_size_HW: of the network input.
        dropout: of what is added to the queries.
    """

    def __init__(
        self,
        channels: int,
        levels: int,
        points: int,
        groups: int,
        image_size_HW: tuple[int, int],
        dropout: float,
    ) -> None:
        super().__init__()
        self.shape_LPA = (levels, points, groups)
        self.image_size_HW = image_size_HW
        self.weights = nn.Linear(channels, levels * points * groups)
        self.output = nn.Linear(channels, channels)
        self.points = nn.Linear(channels, 3 * points)
        self.camera = nn.Sequential(
            nn.Linear(_POSE_SIZE, channels // 2),
            nn.ReLU(),
            nn.Linear(channels // 2, channels),
            nn.ReLU(),
            nn.LayerNorm(channels),
        )
        self.dropout = nn.Dropout(dropout)
        start_linear_as(self.weights, 0.0)
        nn.init.xavier_uniform_(self.output.weight)
        nn.init.xavier_uniform_(self.points.weight)
        nn.init.uniform_(self.points.bias, -_SPREAD, _SPREAD)

    def forward(
        self, query_BQC: Tensor, position_BQC: Tensor, place_BQ3: Tensor, views: Views
    ) -> Tensor:
        points_BQP3 = self.key_points(query_BQC, place_BQ3)
        weights_BVQALP = self._weigh(query_BQC + position_BQC, views)
        places_BVQP2 = self._project(points_BQP3, views.lidar_to_image_BV44)
        levels, _, groups = self.shape_LPA
        places = places_BVQP2.flatten(0, 1)[:, :, None, None].expand(-1, -1, groups, levels, -1, -1)
        maps = [own.flatten(0, 1) for own in views.maps_BVCHW]
        sums_NQC = sum_of_samples(maps, places, weights_BVQALP.flatten(0, 1))
        sums_BQC = sums_NQC.view(*places_BVQP2.shape[:2], *sums_NQC.shape[1:]).sum(dim=1)
        return self.dropout(self.output(sums_BQC))  # type: ignore[no-any-return]

    def key_points(self, query_BQC: Tensor, place_BQ3: Tensor) -> Tensor:
        """Return where the queries read, (B, Q, P, 3), metres."""
        offsets_BQP3 = self.points(query_BQC).view(*query_BQC.shape[:2], -1, 3)
        return place_BQ3[:, :, None] + offsets_BQP3  # type: ignore[no-any-return]

    def _weigh(self, asked_BQC: Tensor, views: Views) -> Tensor:
        camera_BVC = self.camera(views.lidar_to_image_BV44[..., :3, :].flatten(2))
        said = self.weights(asked_BQC[:, None] + camera_BVC[:, :, None])  # groups fastest
        weights_BQAVLP = said.unflatten(-1, self.shape_LPA).permute(0, 2, 5, 1, 3, 4)
        shares: Tensor = weights_BQAVLP.flatten(3).softmax(dim=-1).view_as(weights_BQAVLP)
        return shares.permute(0, 3, 1, 2, 4, 5)

    def _project(self, points_BQP3: Tensor, lidar_to_image_BV44: Tensor) -> Tensor:
        """Return (x, y), 0 to 1 over the image, (B, V, Q, P, 2)."""
        points = torch.cat([points_BQP3, torch.ones_like(points_BQP3[..., :1])], dim=-1)
        seen: Tensor = (lidar_to_image_BV44[:, :, None, None] @ points[:, None, ..., None])[
            ..., :3, 0
        ]
        pixel = seen[..., :2] / seen[..., 2:].clamp(min=_NEAR)
        return pixel / pixel.new_tensor(self.image_size_HW[::-1])
