"""A target as a method reads it."""

from dataclasses import dataclass

import torch
from torch import Tensor


def full_precision(tensor: Tensor) -> Tensor:
    """Return a half-precision tensor in float32; float32 and float64 stay."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


@dataclass
class Target:
    """A teacher target of a batch, dequantised.

    Attributes:
        values: float32, batch first, in the *canonical* frame. dense_bev, heatmap, box_code
            (B, C, Y, X); occupancy, voxel_labels (B, C, Z, Y, X); box_set (B, N, 11): nine box
            fields, score, class; polylines (B, N, 2 P + 2): x, y of P points, score, class;
            query_set, query_places and query_points (B, Q, C); query_layers (B, L, Q, C);
            track_ids (B, Q), int64; image_feature (B, V, C, H, W); channel_moments
            (B, 2, C); point_set (B, P, 5), `pixels.FIELDS`.
        region_BYX: bool, cells that were stored; None where everything is.
        count_B: int64, valid rows of padded sets; None otherwise.
    """

    values: Tensor
    region_BYX: Tensor | None = None
    count_B: Tensor | None = None
