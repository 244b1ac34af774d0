"""Dense reading of one image level with 3D positions (PETR, StreamPETR).

A token is a cell of a camera's map. Its position is a code of points along its ray; queries attend
to all tokens of all cameras.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bevcask.detectors.blocks.motion import Modulation
from bevcask.detectors.blocks.stream_decoder import Reader
from bevcask.detectors.blocks.transformer import inverse_sigmoid

_NEAREST = 1.0  # metres, depth of the first bin
_MIDDLE = 30  # bins from the end: the second point of a token's ray that its features hear of


class Cameras(NamedTuple):
    """The cameras of a frame; float32.

    Attributes:
        lidar_to_image_BV44: augmented LIDAR_TOP -> pixel times depth, depth.
        intrinsics_BV44: of network pixels; the focal length along u is negative when mirrored.
        extrinsics_BV44: canonical LIDAR_TOP -> camera.
        size_HW: pixels of the network image.
    """

    lidar_to_image_BV44: Tensor
    intrinsics_BV44: Tensor
    extrinsics_BV44: Tensor
    size_HW: tuple[int, int]


class Tokens(NamedTuple):
    """What queries attend to.

    Attributes:
        keys_BTC: features with positions.
        values_BTC: features.
    """

    keys_BTC: Tensor
    values_BTC: Tensor


def focal_camera(cells: int, order: Sequence[int], own: bool) -> Tensor:
    """Return the camera (V, cells) whose focal lengths a token hears of.

    The release takes camera i mod V for token i of all cameras, row by row; its weights are used
    to that.

    Args:
        cells: of a camera's map.
        order: index in our order of each camera in the released one.
        own: the token's own camera instead.
    """
    cameras = torch.tensor(order)
    if own:
        return torch.arange(len(order))[:, None].expand(-1, cells)
    tokens = torch.arange(len(order) * cells).view(len(order), cells)
    heard = torch.empty_like(tokens)
    heard[cameras] = cameras[tokens % len(order)]
    return heard


class RayPositions(nn.Module):
    """Tokens of one image level.

    Args:
        channels: of the map and the tokens.
        bins: depths along a ray; they grow linearly farther apart.
        stride: pixels a cell.
        low: (x, y, z) of the range of positions, metres.
        high: its other corner; its x is the farthest depth.
        order: see `focal_camera`.
        own_focal: see `focal_camera`.
    """

    depths_D: Tensor
    low_3: Tensor
    high_3: Tensor

    def __init__(
        self,
        channels: int,
        bins: int,
        stride: int,
        low: tuple[float, float, float],
        high: tuple[float, float, float],
        order: Sequence[int],
        own_focal: bool,
    ) -> None:
        super().__init__()
        self.stride, self.order, self.own_focal = stride, tuple(order), own_focal
        self.encode = nn.Sequential(
            nn.Linear(3 * bins, 4 * channels), nn.ReLU(), nn.Linear(4 * channels, channels)
        )
        self.embed = nn.Sequential(
            nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, channels)
        )
        self.align = Modulation(8, channels)
        self.gate = nn.Sequential(
            nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, channels), nn.Sigmoid()
        )
        self.register_buffer("depths_D", depth_bins(bins, high[0]), persistent=False)
        self.register_buffer("low_3", torch.tensor(low), persistent=False)
        self.register_buffer("high_3", torch.tensor(high), persistent=False)

    def forward(self, map_BVCHW: Tensor, cameras: Cameras) -> tuple[Tensor, Tensor]:
        """Return features and positions of all tokens, (B, V, H * W, C) each."""
        with torch.autocast(map_BVCHW.device.type, enabled=False):
            points = self.points(cameras, (map_BVCHW.shape[-2], map_BVCHW.shape[-1]))
            hints = self._hints(points, cameras)
            code = inverse_sigmoid(points).flatten(-2)
        features = self.align(self.embed(map_BVCHW.flatten(3).transpose(2, 3)), hints)
        return features, self.encode(code) * self.gate(features)

    def points(self, cameras: Cameras, shape_YX: tuple[int, int]) -> Tensor:
        """Return points along the rays, 0 to 1 over the range unless outside, (B, V, T, D, 3)."""
        rows, columns = (
            torch.arange(side, device=self.depths_D.device) * self.stride + self.stride / 2
            for side in shape_YX
        )
        v_YX, u_YX = torch.meshgrid(rows, columns, indexing="ij")
        pixel_T13 = torch.stack([u_YX, v_YX, torch.ones_like(u_YX)], dim=-1).view(-1, 1, 3)
        along_TD3 = pixel_T13 * self.depths_D[:, None]
        along_TD4 = torch.cat([along_TD3, torch.ones_like(along_TD3[..., :1])], dim=-1)
        back = torch.linalg.inv_ex(cameras.lidar_to_image_BV44).inverse[..., :3, :]
        metres = torch.einsum("bvij,tdj->bvtdi", back, along_TD4)
        return (metres - self.low_3) / (self.high_3 - self.low_3)

    def _hints(self, points_BVTD3: Tensor, cameras: Cameras) -> Tensor:
        focal = torch.stack(
            [cameras.intrinsics_BV44[..., 0, 0], cameras.intrinsics_BV44[..., 1, 1]], dim=-1
        )
        heard = focal_camera(points_BVTD3.shape[2], self.order, self.own_focal).to(focal.device)
        ends = points_BVTD3[..., [-1, -_MIDDLE], :].flatten(-2)
        return torch.cat([focal.abs()[:, heard] / 1000, ends], dim=-1)


def depth_bins(bins: int, farthest: float) -> Tensor:
    """Return the lower edges of depth bins, float32 metres."""
    index = torch.arange(bins, dtype=torch.float32)
    return _NEAREST + (farthest - _NEAREST) / (bins * (1 + bins)) * index * (index + 1)


class DenseRead(Reader):
    """Attention to all tokens.

    Args:
        channels: of queries and tokens.
        heads: of attention.
        dropout: of attention weights.
    """

    def __init__(self, channels: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(channels, heads, dropout, batch_first=True)
        nn.init.xavier_uniform_(self.attention.out_proj.weight)

    def forward(
        self, query_BQC: Tensor, position_BQC: Tensor, places_BQ3: Tensor, seen: Tokens
    ) -> tuple[Tensor, Tensor]:
        read, _ = self.attention(
            query_BQC + position_BQC, seen.keys_BTC, seen.values_BTC, need_weights=False
        )
        return read, places_BQ3[..., :0].detach()
