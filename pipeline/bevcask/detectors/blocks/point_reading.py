"""Reading image levels at points around each query (RayDN, after Sparse4D).

A query looks at points around its place; each is projected into every camera, and the levels are
read there. Groups of channels weigh cameras, levels and points by one softmax over all of them.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bevcask.detectors.blocks.deformable import sum_of_samples
from bevcask.detectors.blocks.motion import Modulation
from bevcask.detectors.blocks.ray_positions import Cameras
from bevcask.detectors.blocks.starts import start_linear
from bevcask.detectors.blocks.stream_decoder import Reader
from bevcask.geometry import constant

_EPS = 1e-5  # metres, least depth to divide by
_REACH = 2.0  # metres, learned points start within


class Levels(NamedTuple):
    """What queries read.

    Attributes:
        maps: (B, V, C, H, W) a level, modulated by their cameras.
        cameras: of the frame.
    """

    maps: tuple[Tensor, ...]
    cameras: Cameras


class CameraModulation(nn.Module):
    """Every level under the focal lengths (with sign) and extrinsics of its camera."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.align = Modulation(14, channels, norm=False)

    def forward(self, maps: Sequence[Tensor], cameras: Cameras) -> list[Tensor]:
        """Return maps (B, V, C, H, W) of the same shapes."""
        inner, outer = cameras.intrinsics_BV44, cameras.extrinsics_BV44
        focal = torch.stack([inner[..., 0, 0], inner[..., 1, 1]], dim=-1) / 1000
        code = torch.cat([focal, outer[..., :3, :].flatten(-2)], dim=-1)[:, :, None, None]
        return [self.align(own.movedim(2, -1), code).movedim(-1, 2) for own in maps]


class PointRead(Reader):
    """Points around the reference, projected into all cameras.

    Args:
        channels: of queries and levels; divides by `groups`.
        groups: of consecutive channels, each with weights of its own.
        points: a query.
        levels: of the images.
    """

    def __init__(self, channels: int, groups: int, points: int, levels: int) -> None:
        super().__init__()
        self.shape_LPA = (levels, points, groups)
        self.offsets = nn.Linear(channels, 3 * points)
        self.weights = nn.Linear(channels, levels * points * groups)
        self.cameras = nn.Sequential(
            nn.Linear(12, channels // 2),
            nn.ReLU(),
            nn.Linear(channels // 2, channels),
            nn.ReLU(),
            nn.LayerNorm(channels),
        )
        self.output = nn.Linear(channels, channels)
        start_linear(self.output)
        nn.init.xavier_uniform_(self.offsets.weight)
        nn.init.uniform_(self.offsets.bias, -_REACH, _REACH)
        nn.init.zeros_(self.weights.weight)
        nn.init.zeros_(self.weights.bias)

    def forward(
        self, query_BQC: Tensor, position_BQC: Tensor, places_BQ3: Tensor, seen: Levels
    ) -> tuple[Tensor, Tensor]:
        matrices_BV44 = seen.cameras.lidar_to_image_BV44
        views = matrices_BV44.shape[1]
        camera_BVC = self.cameras(matrices_BV44[..., :3, :].flatten(-2))
        asked_BQVC = (query_BQC + position_BQC)[:, :, None] + camera_BVC[:, None]
        with torch.autocast(query_BQC.device.type, enabled=False):  # places need the digits
            offsets_BQE = self.offsets(query_BQC.float())
            scores = self.weights(asked_BQVC.float()).unflatten(-1, self.shape_LPA)
            shares = scores.flatten(2, 4).softmax(dim=2).unflatten(2, scores.shape[2:5])
            points_BQP3 = places_BQ3[:, :, None] + offsets_BQE.unflatten(-1, (-1, 3))
            places_BQVP2 = project(points_BQP3, matrices_BV44, seen.cameras.size_HW)
        levels, _, groups = self.shape_LPA
        weights = shares.permute(0, 1, 5, 2, 3, 4).flatten(3, 4)  # groups, cameras x levels, points
        where = places_BQVP2[:, :, None, :, None].expand(-1, -1, groups, -1, levels, -1, -1)
        maps = [own[:, view] for view in range(views) for own in seen.maps]
        sums = sum_of_samples(maps, where.flatten(3, 4), weights)
        return self.output(sums), offsets_BQE


def project(points_BQP3: Tensor, matrices_BV44: Tensor, size_HW: tuple[int, int]) -> Tensor:
    """Return (x, y) of points in every camera, 0 to 1 over the image, (B, Q, V, P, 2).

    A point behind a camera lands far outside.
    """
    lifted = torch.cat([points_BQP3, torch.ones_like(points_BQP3[..., :1])], dim=-1)
    seen = torch.einsum("bvij,bqpj->bqvpi", matrices_BV44[..., :3, :], lifted)
    pixels = seen[..., :2] / seen[..., 2:].clamp(min=_EPS)
    height, width = size_HW
    return pixels / constant((width, height), pixels)
