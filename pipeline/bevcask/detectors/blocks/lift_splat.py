"""Lift-splat: image features times depth probabilities, summed into BEV cells.

Geometry (`frustum_cells`) and summation (`splat`). The frustum copy of the context, P * D * C
numbers for P image cells, D depth bins and C channels, is never held: depth bins are taken a few at
a time, forward and backward. The idea is Philion and Fidler's (2020); the cell rule here is floor,
not the truncation of the released CUDA ops, which keeps points up to one cell outside the lower
borders.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from bevcask.detectors.base import Batch
from bevcask.geometry import Grid

# Largest temporary of `splat`, in numbers, unless one depth bin alone is larger.
CHUNK_NUMBERS = 1 << 18


@dataclass(frozen=True)
class Cameras:
    """The camera geometry of a batch; see `detectors.base.Batch`."""

    intrinsics_BV33: Tensor
    image_aug_BV33: Tensor
    camera_to_lidar_BV44: Tensor
    bev_aug_B44: Tensor


def cameras_of(batch: Batch) -> Cameras:
    """Return the camera geometry of a batch."""
    assert batch.intrinsics_BV33 is not None, "the loader gave no intrinsics"
    assert batch.image_aug_BV33 is not None, "the loader gave no image augmentation"
    assert batch.camera_to_lidar_BV44 is not None, "the loader gave no camera poses"
    return Cameras(
        batch.intrinsics_BV33, batch.image_aug_BV33, batch.camera_to_lidar_BV44, batch.bev_aug_B44
    )


def frustum_rays(
    cameras: Cameras, size_HW: tuple[int, int], stride: int, to_borders: bool = False
) -> tuple[Tensor, Tensor]:
    """Return where every image cell looks, in the augmented LIDAR_TOP frame.

    Cell (row i, column j) of a map with stride s covers the s x s network pixels from (i s, j s);
    its ray goes through their middle, so that rays, pooled depth maps and features mean the same
    block. Pixel centres are whole numbers, as in `data.images`. (The BEVDet port spreads its rays
    by linspace(0, W - 1, W / s) instead: up to half a cell off at the image borders.)

    Args:
        cameras: geometry, any float dtype; computed in float32 or wider.
        size_HW: rows and columns of the feature map.
        stride: network pixels a cell.
        to_borders: spread the rays as the BEVDet port does.

    Returns:
        origin (B, V, 3), metres, and direction (B, V, H, W, 3), metres a metre of depth: the point
        at depth d (along the optical axis) is origin + d * direction.
    """
    to_pixel_BV33 = cameras.image_aug_BV33 @ cameras.intrinsics_BV33
    if to_pixel_BV33.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"camera matrices must be float32 or float64, got {to_pixel_BV33.dtype}")
    dtype, device = to_pixel_BV33.dtype, to_pixel_BV33.device
    rows_H, columns_W = (
        torch.linspace(0, n * stride - 1, n, dtype=dtype, device=device)
        if to_borders
        else (torch.arange(n, dtype=dtype, device=device) + 0.5) * stride - 0.5
        for n in size_HW
    )
    v_HW, u_HW = torch.meshgrid(rows_H, columns_W, indexing="ij")
    pixels_HW3 = torch.stack([u_HW, v_HW, torch.ones_like(u_HW)], dim=-1)
    camera_to_bev_BV44 = cameras.bev_aug_B44[:, None] @ cameras.camera_to_lidar_BV44
    pixel_to_bev_BV33 = camera_to_bev_BV44[..., :3, :3] @ torch.linalg.inv_ex(to_pixel_BV33).inverse
    direction = torch.einsum("bvij,hwj->bvhwi", pixel_to_bev_BV33, pixels_HW3)
    return camera_to_bev_BV44[..., :3, 3], direction


def frustum_cells(
    cameras: Cameras,
    size_HW: tuple[int, int],
    stride: int,
    depths: Sequence[float],
    grid: Grid,
    z_range: tuple[float, float],
    as_released: bool = False,
) -> Tensor:
    """Return the flat BEV cell of every frustum point.

    Args:
        cameras: geometry.
        size_HW: rows and columns of the feature map.
        stride: network pixels a cell.
        depths: depth of each bin, metres along the optical axis.
        grid: the BEV grid.
        z_range: points with z outside [low, high) are dropped, metres.
        as_released: rays and cells of the BEVDet port, which cuts off digits rather than rounding
            down: points up to a cell outside the lower borders count, of z too.

    Returns:
        (D, B, V, H, W) int64: sample * Y * X + row * X + column, or B * Y * X for points that fall
        on no cell.
    """
    with torch.no_grad(), torch.autocast(cameras.bev_aug_B44.device.type, enabled=False):
        origin_BV3, direction_BVHW3 = frustum_rays(cameras, size_HW, stride, as_released)
        whole = torch.trunc if as_released else torch.floor
        num_samples = len(origin_BV3)
        first_B = torch.arange(num_samples, device=origin_BV3.device) * (grid.num_y * grid.num_x)
        outside = num_samples * grid.num_y * grid.num_x
        cells = []
        for depth in depths:
            point_BVHW3 = origin_BV3[:, :, None, None] + depth * direction_BVHW3
            column_row = whole(grid.to_cells(point_BVHW3[..., :2]))
            column, row = column_row.unbind(-1)
            z = point_BVHW3[..., 2]
            inside = (column >= 0) & (column < grid.num_x) & (row >= 0) & (row < grid.num_y)
            low = 2 * z_range[0] - z_range[1] if as_released else z_range[0]
            inside &= ((z > low) if as_released else (z >= low)) & (z < z_range[1])
            cell = (row * grid.num_x + column).nan_to_num().long()
            cells.append(torch.where(inside, cell + first_B[:, None, None, None], outside))
        return torch.stack(cells)


def splat(depth_BVDHW: Tensor, context_BVCHW: Tensor, cells_DBVHW: Tensor, grid: Grid) -> Tensor:
    """Sum depth * context over the frustum points of every BEV cell.

    Beyond inputs, outputs and their gradients it holds at most two temporaries of
    max(B*V*H*W*C, `CHUNK_NUMBERS`) numbers; nothing with both D and C is ever alive at once.
    Deterministic on CPU; on CUDA under `torch.use_deterministic_algorithms`.

    Args:
        depth_BVDHW: weight of every frustum point.
        context_BVCHW: feature of every image cell.
        cells_DBVHW: from `frustum_cells`.
        grid: the same grid.

    Returns:
        (B, C, Y, X), float32 (float64 for float64 input), whatever the precision of the inputs.
    """
    wide = torch.promote_types(context_BVCHW.dtype, torch.float32)
    num_samples, num_channels = len(context_BVCHW), context_BVCHW.shape[2]
    depth_DP = depth_BVDHW.to(wide).permute(2, 0, 1, 3, 4).flatten(1)
    context_PC = context_BVCHW.to(wide).permute(0, 1, 3, 4, 2).reshape(-1, num_channels)
    num_cells = num_samples * grid.num_y * grid.num_x
    sums: Tensor = _Splat.apply(  # type: ignore[no-untyped-call]
        depth_DP.contiguous(), context_PC, cells_DBVHW.flatten(1), num_cells
    )
    return sums.view(num_samples, *grid.shape_YX, num_channels).permute(0, 3, 1, 2).contiguous()


class _Splat(torch.autograd.Function):
    """sums[m] = sum over (d, p) with cells[d, p] = m of depth[d, p] * context[p]."""

    @staticmethod
    def forward(
        ctx: Any, depth_DP: Tensor, context_PC: Tensor, cells_DP: Tensor, num_cells: int
    ) -> Tensor:
        ctx.save_for_backward(depth_DP, context_PC, cells_DP)
        num_channels = context_PC.shape[1]
        sums_MC = context_PC.new_zeros(num_cells + 1, num_channels)
        for bins in _chunks(depth_DP, num_channels):
            points = depth_DP[bins, :, None] * context_PC
            sums_MC.index_add_(0, cells_DP[bins].flatten(), points.flatten(0, 1))
        return sums_MC[:-1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_MC: Tensor) -> tuple[Tensor, Tensor, None, None]:
        depth_DP, context_PC, cells_DP = ctx.saved_tensors
        num_channels = context_PC.shape[1]
        padded_MC = torch.cat([grad_MC, grad_MC.new_zeros(1, num_channels)])
        grad_depth_DP = torch.empty_like(depth_DP)
        grad_context_PC = torch.zeros_like(context_PC)
        for bins in _chunks(depth_DP, num_channels):
            cells = cells_DP[bins]
            points = padded_MC.index_select(0, cells.flatten()).view(*cells.shape, num_channels)
            grad_depth_DP[bins] = torch.einsum("dpc,pc->dp", points, context_PC)
            grad_context_PC += torch.einsum("dpc,dp->pc", points, depth_DP[bins])
        return grad_depth_DP, grad_context_PC, None, None


def _chunks(depth_DP: Tensor, num_channels: int) -> list[slice]:
    num_bins, num_points = depth_DP.shape
    step = max(1, CHUNK_NUMBERS // max(1, num_points * num_channels))
    return [slice(start, start + step) for start in range(0, num_bins, step)]
