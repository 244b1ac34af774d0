"""Image features at another size, the same way before they are stored and in a loss."""

from torch import Tensor
from torch.nn import functional


def resized(map_NCHW: Tensor, size_HW: tuple[int, int]) -> Tensor:
    """Return maps at a size: bilinear, corner to corner, as HarmoDistill's release does."""
    if tuple(map_NCHW.shape[-2:]) == size_HW:
        return map_NCHW
    return functional.interpolate(map_NCHW, size=size_HW, mode="bilinear", align_corners=True)
