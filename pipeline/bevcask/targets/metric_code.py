"""How the queries of StreamPETR and RayDN say a box: ten numbers of our own axes.

x, y, z, log l, log w, log h, sin yaw, cos yaw, vx, vy; metres and m/s, LIDAR_TOP, z of the centre.
"""

import torch
from torch import Tensor


def encode_metric_boxes(boxes_N9: Tensor) -> Tensor:
    """Return the codes (N, 10) of boxes (N, 9), `geometry.BOX_FIELDS`; log 0 is -inf."""
    centre, size, yaw, velocity = torch.split(boxes_N9, [3, 3, 1, 2], dim=-1)
    return torch.cat([centre, size.log(), yaw.sin(), yaw.cos(), velocity], dim=-1)


def decode_metric_boxes(code_NE: Tensor) -> Tensor:
    """Return the boxes (..., 9) of codes (..., 10); yaw in [-pi, pi)."""
    centre, logs, sine, cosine, velocity = torch.split(code_NE, [3, 3, 1, 1, 2], dim=-1)
    yaw = torch.atan2(sine, cosine)
    yaw = torch.where(yaw >= torch.pi, yaw - 2 * torch.pi, yaw)
    return torch.cat([centre, logs.exp(), yaw, velocity], dim=-1)
