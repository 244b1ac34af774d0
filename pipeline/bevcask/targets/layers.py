"""Layers of voxels: read between the heights they have."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_RIM = 1e-4  # metres; rounding allowed beyond the outer layers

Floats = npt.NDArray[np.float64]


def between_layers(
    map_BCZYX: Tensor, heights_Z: Floats, wanted_BL: Floats
) -> tuple[Tensor, Tensor]:
    """Interpolate linearly between layers; at the height of a layer, read it bit for bit.

    Args:
        map_BCZYX: (B, C, Z, Y, X); differentiable.
        heights_Z: metres, rising, of its layers.
        wanted_BL: metres, L heights a sample.

    Returns:
        (B, C, L, Y, X), of the nearest layer outside; and which heights lie between the outermost
        layers, bool (B, L).
    """
    inside_BL = np.clip(wanted_BL, heights_Z[0], heights_Z[-1])
    last = len(heights_Z) - 1
    low_BL = (np.searchsorted(heights_Z, inside_BL, "right") - 1).clip(0, max(last - 1, 0))
    high_BL = np.minimum(low_BL + 1, last)
    step_BL = np.where(high_BL > low_BL, heights_Z[high_BL] - heights_Z[low_BL], 1.0)
    share_BL = (inside_BL - heights_Z[low_BL]) / step_BL
    device = map_BCZYX.device
    rows_B1 = torch.arange(len(map_BCZYX), device=device)[:, None]
    low, high, share = (
        torch.as_tensor(own).to(device, non_blocking=True) for own in (low_BL, high_BL, share_BL)
    )
    below_BLCYX, above_BLCYX = (map_BCZYX.transpose(1, 2)[rows_B1, own] for own in (low, high))
    read_BLCYX = torch.lerp(
        below_BLCYX, above_BLCYX, share.to(map_BCZYX.dtype)[:, :, None, None, None]
    )
    valid_BL = np.abs(wanted_BL - inside_BL) <= _RIM
    return read_BLCYX.transpose(1, 2), torch.as_tensor(valid_BL).to(device, non_blocking=True)
