"""TiG-BEV's inner-depth supervision: what lies how deep within an object, by LiDAR alone."""

import torch
from torch import Tensor

from bevcask.ranks import per_rank


def expected_depth(probabilities_BVDHW: Tensor, bins_D: Tensor) -> Tensor:
    """Return the mean depth of every image cell, metres, (B, V, H, W)."""
    return (probabilities_BVDHW * bins_D[:, None, None]).sum(2)


def inner_depth(expected_BVHW: Tensor, depth_BVHW: Tensor, box_BVHW: Tensor) -> Tensor:
    """Compare depths relative to a reference cell within each box of each image.

    The reference of a box is the one of its cells whose depth the student gets best at the moment,
    the first in row-major order among equals; it gets no gradient. The mean runs over all cells of
    boxes in the batches of all ranks; without any it is 0, with the same graph.

    Args:
        expected_BVHW: what the student expects, metres; differentiable.
        depth_BVHW: what LiDAR measured, metres.
        box_BVHW: int64, the box each cell's point lies in, 0 for background; numbered from 1
            within a sample.

    Returns:
        A scalar, square metres.
    """
    num_samples, num_cameras = box_BVHW.shape[:2]
    images = torch.arange(num_samples * num_cameras, device=box_BVHW.device)
    image_BVHW = images.view(num_samples, num_cameras, 1, 1).expand_as(box_BVHW)
    inside_BVHW = box_BVHW > 0
    pair_BVHW = image_BVHW * (box_BVHW.max() + 1) + box_BVHW
    pair_G, group_M = torch.unique(pair_BVHW[inside_BVHW], return_inverse=True)
    expected_M, depth_M = expected_BVHW[inside_BVHW], depth_BVHW[inside_BVHW]
    error_M = (expected_M.detach() - depth_M).abs()
    reference_M = first_smallest(error_M, group_M, len(pair_G))[group_M]
    guessed_M = expected_M - expected_M.detach()[reference_M]
    measured_M = depth_M - depth_M[reference_M]
    return (guessed_M - measured_M).square().sum() / per_rank(len(depth_M))


def first_smallest(values_M: Tensor, group_M: Tensor, num_groups: int) -> Tensor:
    """Return where the smallest value of each group is, the first of equals, int64 (G,).

    Args:
        values_M: no NaN.
        group_M: int64 in [0, G), every group at least once.
        num_groups: G.
    """
    smallest_G = values_M.new_full((num_groups,), torch.inf)
    smallest_G.scatter_reduce_(0, group_M, values_M, "amin")
    place_M = torch.arange(len(values_M), device=values_M.device)
    place_M = torch.where(values_M == smallest_G[group_M], place_M, len(values_M))
    first_G = place_M.new_full((num_groups,), len(values_M))
    return first_G.scatter_reduce_(0, group_M, place_M, "amin")
