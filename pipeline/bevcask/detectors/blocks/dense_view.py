"""Queries that attend to every pixel of a map, each with a code of its ray (PETR, StreamPETR)."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from bevcask.detectors.blocks.motion import ModulatedNorm
from bevcask.detectors.blocks.query_memory import Frame
from bevcask.detectors.blocks.transformer import inverse_sigmoid

_CONE_SIZE = 8
_NEARER = 30  # bins before the end: the second point of a cone
_MILLI = 1e-3  # focal lengths, of pixels


class Tokens(NamedTuple):
    """Pixels of all cameras, in the order camera, row, column.

    Attributes:
        value_BTC: what they say.
        position_BTC: where they look, gated.
        raw_BTC: the same before the gate.
        cone_BTK: focal lengths and two points of the ray.
    """

    value_BTC: Tensor
    position_BTC: Tensor
    raw_BTC: Tensor
    cone_BTK: Tensor


def depth_bins(num_bins: int, start: float, end: float) -> Tensor:
    """Return the lower edges of bins that grow linearly, metres."""
    index = torch.arange(num_bins, dtype=torch.float32)
    return start + (end - start) / (num_bins * (1 + num_bins)) * index * (index + 1)


class DenseView(nn.Module):
    """Pixels with the code of their ray.

    A pixel is given the focal length of a wrong camera, as published: pixel i that of camera
    i mod V. The order of the cameras matters therefore.

    Args:
        channels: of the map.
        stride: network pixels a cell.
        bins: depths of the points on a ray, metres; see `depth_bins`.
        low: corner of the box that points are measured in.
        high: its other corner.
    """

    bins_D: Tensor
    low_3: Tensor
    high_3: Tensor

    def __init__(
        self,
        channels: int,
        stride: int,
        bins: Tensor,
        low: tuple[float, float, float],
        high: tuple[float, float, float],
    ) -> None:
        super().__init__()
        self.stride = stride
        self.register_buffer("bins_D", bins, persistent=False)
        self.register_buffer("low_3", torch.tensor(low), persistent=False)
        self.register_buffer("high_3", torch.tensor(high), persistent=False)
        self.position = nn.Sequential(
            nn.Linear(3 * len(bins), 4 * channels), nn.ReLU(), nn.Linear(4 * channels, channels)
        )
        self.embed = nn.Sequential(
            nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, channels)
        )
        self.alignment = ModulatedNorm(channels, _CONE_SIZE)
        self.gate_reduce = nn.Linear(channels, channels)
        self.gate_expand = nn.Linear(channels, channels)

    def forward(self, maps_BVCHW: list[Tensor], frame: Frame) -> Tokens:
        (map_BVCHW,) = maps_BVCHW
        given_BTC = map_BVCHW.permute(0, 1, 3, 4, 2).flatten(1, 3)
        points_BTD3 = self._points(map_BVCHW.shape[-2:], frame)
        raw_BTC = self.position(inverse_sigmoid(points_BTD3).flatten(2))
        cone_BTK = self._cones(points_BTD3, frame)
        value_BTC = self.alignment(self.embed(given_BTC), cone_BTK)
        gate_BTC = self.gate_expand(torch.relu(self.gate_reduce(value_BTC))).sigmoid()
        return Tokens(value_BTC, raw_BTC * gate_BTC, raw_BTC, cone_BTK)

    def _points(self, size_HW: torch.Size, frame: Frame) -> Tensor:
        """Return points on the rays, 0 to 1 over the box, neither clamped nor dropped."""
        device = self.bins_D.device
        v, u = (self.stride * (torch.arange(n, device=device) + 0.5) for n in size_HW)
        pixel_HW2 = torch.stack(torch.meshgrid(u, v, indexing="xy"), dim=-1)
        pixel_HWD2 = pixel_HW2[:, :, None] * self.bins_D[:, None]
        depth_HWD1 = self.bins_D[:, None].expand(*size_HW, -1, 1)
        seen_HWD4 = torch.cat([pixel_HWD2, depth_HWD1, torch.ones_like(depth_HWD1)], dim=-1)
        from_image_BV44 = torch.linalg.inv(frame.lidar_to_image_BV44)
        points = from_image_BV44[:, :, None, None, None] @ seen_HWD4[..., None]
        share: Tensor = (points[..., :3, 0] - self.low_3) / (self.high_3 - self.low_3)
        return share.flatten(1, 3)

    def _cones(self, points_BTD3: Tensor, frame: Frame) -> Tensor:
        focal_BV2 = frame.intrinsics_BV44.diagonal(dim1=-2, dim2=-1)[..., :2].abs() * _MILLI
        camera_T = torch.arange(points_BTD3.shape[1], device=focal_BV2.device) % focal_BV2.shape[1]
        ends = [points_BTD3[:, :, -1], points_BTD3[:, :, -_NEARER]]
        return torch.cat([focal_BV2[:, camera_T], *ends], dim=-1)


class DenseRead(nn.Module):
    """Attention of queries to all tokens; only what is added to it is dropped out."""

    def __init__(self, channels: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(channels, heads, batch_first=True)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, query_BQC: Tensor, position_BQC: Tensor, _place_BQ3: Tensor, tokens: Tokens
    ) -> Tensor:
        heard, _ = self.attention(
            query_BQC + position_BQC,
            tokens.value_BTC + tokens.position_BTC,
            tokens.value_BTC,
            need_weights=False,
        )
        return self.dropout(heard)  # type: ignore[no-any-return]
