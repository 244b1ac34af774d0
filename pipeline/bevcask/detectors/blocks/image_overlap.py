"""How much boxes in images overlap; boxes are left, top, right, bottom."""

import torch
from torch import Tensor

_EPS = 1e-6


def overlap(one: Tensor, other: Tensor, generalised: bool = False) -> Tensor:
    """Return the IoU of boxes (..., 4) pair by pair, or the generalised one (Rezatofighi 2019)."""
    area = _area(one[..., 2:] - one[..., :2]) + _area(other[..., 2:] - other[..., :2])
    low = torch.maximum(one[..., :2], other[..., :2])
    high = torch.minimum(one[..., 2:], other[..., 2:])
    shared = _area((high - low).clamp(min=0))
    union = (area - shared).clamp(min=_EPS)
    share = shared / union
    if not generalised:
        return share
    low = torch.minimum(one[..., :2], other[..., :2])
    high = torch.maximum(one[..., 2:], other[..., 2:])
    hull = _area((high - low).clamp(min=0)).clamp(min=_EPS)
    return share - (hull - union) / hull


def _area(size: Tensor) -> Tensor:
    return size[..., 0] * size[..., 1]
