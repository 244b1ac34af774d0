"""Where boxes lie in the cells of image maps: the upright rectangle around each box's corners."""

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from bevcask.errors import TargetMismatchError
from bevcask.geometry import constant
from bevcask.targets.align import ImageAug

_NEAREST = 0.1  # metres; corners nearer to the camera, or behind it, are left out


def rectangle_mask(
    boxes: Sequence[Tensor], images: ImageAug | None, size_HW: tuple[int, int]
) -> Tensor:
    """Return the cells of image maps that a box's rectangle touches, bool (B, V, H, W).

    A rectangle spans the corners of a box in front of the camera; it is cut at the border of the
    map. Cell i of stride s covers the pixels i s to (i + 1) s - 1; an edge alone touches nothing.

    Args:
        boxes: per sample (N, 9), canonical frame.
        images: how the student's images came about, with calibration.
        size_HW: rows and columns of the maps. Their stride is the power of two that is nearest to
            image columns by map columns: images may have been padded at the right and bottom.

    Raises:
        TargetMismatchError: no images, or no calibration.
    """
    if images is None or images.lidar_to_image_BV44 is None:
        raise TargetMismatchError(
            "boxes are projected into the images: they need a student that has images, and the "
            "calibration of its cameras"
        )
    stride = 2 ** round(math.log2(images.size_HW[1] / size_HW[1]))
    masks = []
    for own_N9, to_image_V44, aug_V33 in zip(
        boxes, images.lidar_to_image_BV44, images.matrices_BV33, strict=True
    ):
        corners_N84 = _corners(own_N9)
        to_image_V34 = to_image_V44[:, :3].to(corners_N84.device, non_blocking=True)
        aug_V23 = aug_V33[:, :2].double().to(corners_N84.device, non_blocking=True)
        seen_NV83 = torch.einsum("vij,nkj->nvki", to_image_V34, corners_N84)
        ahead_NV8 = seen_NV83[..., 2] > _NEAREST
        flat_NV83 = seen_NV83 / seen_NV83[..., 2:].clamp(min=_NEAREST)
        pixels_NV82 = torch.einsum("vij,nvkj->nvki", aug_V23, flat_NV83)
        cells_NV82 = (pixels_NV82 + 0.5) / stride
        masks.append(_touched(cells_NV82, ahead_NV8, size_HW))
    return torch.stack(masks)


def _corners(boxes_N9: Tensor) -> Tensor:
    """Return the corners of boxes, float64 (N, 8, 4), homogeneous."""
    boxes_N9 = boxes_N9.double()
    signs_83 = constant(tuple(itertools.product((-0.5, 0.5), repeat=3)), boxes_N9)
    offset_N83 = signs_83 * boxes_N9[:, None, 3:6]
    c, s = boxes_N9[:, 6:7].cos(), boxes_N9[:, 6:7].sin()
    x = offset_N83[..., 0] * c - offset_N83[..., 1] * s + boxes_N9[:, :1]
    y = offset_N83[..., 0] * s + offset_N83[..., 1] * c + boxes_N9[:, 1:2]
    z = offset_N83[..., 2] + boxes_N9[:, 2:3]
    return torch.stack([x, y, z, torch.ones_like(x)], dim=-1)


def _touched(cells_NV82: Tensor, ahead_NV8: Tensor, size_HW: tuple[int, int]) -> Tensor:
    """Return the cells (V, H, W) of the rectangles around continuous cells (column, row)."""
    hidden_NV81 = ~ahead_NV8[..., None]
    low_NV2 = cells_NV82.masked_fill(hidden_NV81, math.inf).amin(2)
    high_NV2 = cells_NV82.masked_fill(hidden_NV81, -math.inf).amax(2)
    sides = []
    for axis, size in ((1, size_HW[0]), (0, size_HW[1])):
        first = torch.arange(size, device=cells_NV82.device)
        sides.append((first + 1 > low_NV2[..., axis, None]) & (first < high_NV2[..., axis, None]))
    rows_NVH, columns_NVW = (side.float() for side in sides)
    return torch.einsum("nvh,nvw->vhw", rows_NVH, columns_NVW) > 0
