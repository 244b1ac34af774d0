"""How a query says a box: ten numbers, as the heads of DETR3D and BEVFormer do (mmdet3d 0.17).

x, y, log w, log l, z, log h, sin, cos, vx, vy; metres and m/s, LIDAR_TOP, z of the centre. Sine and
cosine are those of mmdet3d's old yaw, -yaw - pi / 2 of ours.
"""

import torch
from torch import Tensor

QUERY_CODE_SIZE = 10


def encode_query_boxes(boxes_N9: Tensor) -> Tensor:
    """Return the codes (N, 10) of boxes (N, 9), `geometry.BOX_FIELDS`; log 0 is -inf."""
    x, y, z, length, width, height, yaw, vx, vy = boxes_N9.unbind(-1)
    return torch.stack(
        [x, y, width.log(), length.log(), z, height.log(), -yaw.cos(), -yaw.sin(), vx, vy], dim=-1
    )


def decode_query_boxes(code_NE: Tensor) -> Tensor:
    """Return the boxes (..., 9) of codes (..., 10); yaw in [-pi, pi)."""
    x, y, log_w, log_l, z, log_h, sine, cosine, vx, vy = code_NE.unbind(-1)
    yaw = torch.atan2(-cosine, -sine)
    yaw = torch.where(yaw >= torch.pi, yaw - 2 * torch.pi, yaw)
    return torch.stack([x, y, z, log_l.exp(), log_w.exp(), log_h.exp(), yaw, vx, vy], dim=-1)
