"""LiDAR points as the cameras see them: kept in original pixels, drawn under any augmentation.

What depth supervision reads. No teacher says it, yet it lies in the cache beside what the teacher
said, so that a student needs no LiDAR file. A row of `PIXELS` is one point in one camera; the
fields are `FIELDS`: index into `geometry.CAMERAS`; u and v in pixels of the original image, the
centre of the first pixel at (0, 0), whole multiples of `PIXEL_STEP`; metres along the optical axis,
whole multiples of `DEPTH_STEP`; and the box the point lies in: 1 + its row in the frame's ground
truth, 0 for none.
"""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from bevcask.config import AugmentConfig
from bevcask.errors import DataError, TargetMismatchError
from bevcask.geometry import CAMERAS
from bevcask.targets.kinds import Kind
from bevcask.targets.spec import Alignment, Codec, Region, TapInfo, TargetSpec

FIELDS = ("camera", "u", "v", "depth", "box")
PIXEL_STEP = 1 / 32
DEPTH_STEP = 1 / 256
CAPACITY = 32768
"""Rows a frame has room for. A keyframe of nuScenes fills some 24,000; the empty rest costs nothing
on disk."""
PIXELS = TapInfo("lidar.pixels", "point_set", (CAPACITY, len(FIELDS)))
RULE = (
    "keyframe points off the ego car, in front of the camera and inside its image; u, v to 1/32 "
    "pixel, depth to 1/256 m; box: the first of the ten classes' that holds the point"
)
"""How rows come about: part of the identity of a cache that has them."""
_BOX_BITS = 20


def needs_pixels(specs: Iterable[TargetSpec]) -> bool:
    """Tell whether these targets include `PIXELS`."""
    return any(spec.name == PIXELS.name for spec in specs)


class PointSet(Kind):
    """Points in images (P, 5), `FIELDS`; zeros behind the count. Never moved: drawn anew."""

    axes: tuple[str, ...] = ("P", "5")
    codecs: tuple[Codec, ...] = ("float32",)
    padded = True

    def describe_problems(self, tap: TapInfo) -> list[str]:
        found = super().describe_problems(tap)
        if not found and tap.shape[1] != len(FIELDS):
            found.append(
                f"{tap.name}: a point has {len(FIELDS)} columns ({', '.join(FIELDS)}), got "
                f"{tap.shape[1]}"
            )
        return found

    def problems(self, tap: TapInfo, values: Tensor) -> list[str]:
        found = super().problems(tap, values)
        if found or not values.numel():
            return found
        camera, _, _, depth, box = values.unbind(-1)
        if camera.min() < 0 or camera.max() >= len(CAMERAS) or (camera != camera.round()).any():
            found.append(f"{tap.name}: cameras must be whole numbers below {len(CAMERAS)}")
        if depth.min() < 0:
            found.append(f"{tap.name}: depths must not be negative")
        if box.min() < 0 or box.max() >= 1 << _BOX_BITS or (box != box.round()).any():
            found.append(f"{tap.name}: boxes must be whole numbers >= 0")
        return found

    def codec(self, tap: TapInfo, region: Region) -> Codec:
        return "float32"

    def bev_alignment(self, tap: TapInfo, augment: AugmentConfig) -> Alignment:
        return "exact"


def pad(points: Sequence[Tensor], tokens: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Stack the points (P, 5) of B samples: (B, CAPACITY, 5), zeros behind, and a count (B,) int64.

    Raises:
        DataError: more points than rows; the sample is named.
    """
    padded = points[0].new_zeros((len(points), *PIXELS.shape))
    for row, own, token in zip(padded, points, tokens, strict=True):
        if len(own) > CAPACITY:
            raise DataError(
                f"sample {token}: {len(own)} LiDAR points fall into the images, {PIXELS.name} has "
                f"room for {CAPACITY}. A LiDAR denser than nuScenes' needs a larger CAPACITY in "
                "targets/pixels.py, which changes the identity of caches."
            )
        row[: len(own)] = own
    count_B = torch.tensor([len(own) for own in points], dtype=torch.int64)
    return padded, count_B.to(padded.device)


def draw(
    points_BP5: Tensor,
    count_B: Tensor,
    image_aug_BV33: Tensor,
    stride: int,
    size_HW: tuple[int, int],
    depth_range: tuple[float, float],
) -> tuple[Tensor, Tensor]:
    """Draw points into maps of augmented images; the nearest point of a cell wins.

    Cell i covers the pixels [i stride, (i + 1) stride), its centre is at (i + 1/2) stride - 1/2
    (`blocks.lift_splat.frustum_rays`). A point goes to the nearest centre, halfway to the even
    cell. Of equally deep points the lowest box wins, background first. Positions are float64
    products, so the same points give the same bits wherever they come from, on every device.

    Args:
        points_BP5: rows of `PIXELS`.
        count_B: int64, rows that count.
        image_aug_BV33: original -> network pixels, `Batch.image_aug_BV33`.
        stride: network pixels a cell.
        size_HW: rows and columns of the maps.
        depth_range: points outside [low, high) metres are not there.

    Returns:
        Depth float32 (B, V, H, W), metres, 0 where no point falls; box int64 (B, V, H, W), 0 for
        background and where no point falls.

    Raises:
        TargetMismatchError: points of a camera that has no matrix.
    """
    cells_BP2 = torch.round((_moved(points_BP5, image_aug_BV33) + 0.5) / stride - 0.5)
    rows_P = torch.arange(points_BP5.shape[1], device=points_BP5.device)
    depth_BP, (low, high) = points_BP5[..., 3], depth_range
    kept_BP = (rows_P < count_B[:, None]) & (depth_BP >= low) & (depth_BP < high)
    return _nearest(points_BP5, cells_BP2, kept_BP, size_HW)


def nearest_depths(
    points: Sequence[Tensor], image_aug_BV33: Tensor, stride: int, size_HW: tuple[int, int]
) -> Tensor:
    """Return the depth of the nearest point in every block of network pixels.

    A point goes to the nearest pixel, halfway to the even one, and with it to the block it is in:
    what BEVDepth's loss reads. `draw` goes straight to the nearest cell, as TiG-BEV's does.

    Args:
        points: per sample rows of `PIXELS`, `Batch.pixels`.
        image_aug_BV33: original -> network pixels, `Batch.image_aug_BV33`.
        stride: side of a block, pixels.
        size_HW: rows and columns of blocks.

    Returns:
        Metres, float32 (B, V, H, W), 0 where no point falls.

    Raises:
        TargetMismatchError: points of a camera that has no matrix.
    """
    points_BP5 = pad_sequence(list(points), batch_first=True)  # no point is 0 m away
    cells_BP2 = torch.round(_moved(points_BP5, image_aug_BV33)).div(stride, rounding_mode="floor")
    return _nearest(points_BP5, cells_BP2, points_BP5[..., 3] > 0, size_HW)[0]


def _moved(points_BP5: Tensor, image_aug_BV33: Tensor) -> Tensor:
    """Return where points are in the network images, pixels (u, v), float64 (B, P, 2)."""
    if image_aug_BV33.shape[1] != len(CAMERAS):
        raise TargetMismatchError(
            f"{PIXELS.name} speaks of {len(CAMERAS)} cameras, the student sees "
            f"{image_aug_BV33.shape[1]}."
        )
    sample_B1 = torch.arange(len(points_BP5), device=points_BP5.device)[:, None]
    aug_BP23 = image_aug_BV33[sample_B1, points_BP5[..., 0].long(), :2].double()
    uv_BP12 = points_BP5[..., None, 1:3].double()
    return (aug_BP23[..., :2] * uv_BP12).sum(-1) + aug_BP23[..., 2]


def _nearest(
    points_BP5: Tensor, cells_BP2: Tensor, kept_BP: Tensor, size_HW: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Return depth and box of the nearest kept point of each cell (B, V, H, W), as `draw` does.

    Cells are whole numbers, column and row, perhaps outside the maps.
    """
    shape = (num_samples, num_cameras, height, width) = (len(points_BP5), len(CAMERAS), *size_HW)
    column_BP, row_BP = cells_BP2.unbind(-1)
    kept_BP = kept_BP & (column_BP >= 0) & (column_BP < width) & (row_BP >= 0) & (row_BP < height)
    sample_B1 = torch.arange(num_samples, device=points_BP5.device)[:, None]
    image_BP = sample_B1 * num_cameras + points_BP5[..., 0].long()
    cell_BP = (image_BP * height + row_BP.long()) * width + column_BP.long()
    # The bits of positive floats sort as the floats do: depth first, then box.
    bits_BP = points_BP5[..., 3].float().contiguous().view(torch.int32).long()
    key_BP = bits_BP << _BOX_BITS | points_BP5[..., 4].long()
    num_cells = math.prod(shape)
    # Points that are not kept meet in a cell of their own: to select would wait for the device.
    cell_BP = torch.where(kept_BP, cell_BP, num_cells)
    nowhere = torch.iinfo(torch.int64).max
    key = key_BP.new_full((num_cells + 1,), nowhere)
    key = key.scatter_reduce_(0, cell_BP.flatten(), key_BP.flatten(), "amin")[:-1]
    depth = (key >> _BOX_BITS).int().view(torch.float32).masked_fill(key == nowhere, 0)
    box = (key & (1 << _BOX_BITS) - 1).masked_fill(key == nowhere, 0)
    return depth.view(shape), box.view(shape)
