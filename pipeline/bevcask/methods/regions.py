"""Where a loss looks: foreground, false positives, background, and their scales.

Everything is drawn from ground truth in the canonical frame at canonical cell centres, so it fits
targets as they are stored. DistillBEV, ICCV 2023; formulas in methods/README.md.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from scipy import ndimage
from torch import Tensor

from bevcask.detectors.base import Labels
from bevcask.geometry import Grid
from bevcask.targets.align import Align
from bevcask.targets.heatmap import centre_cells, draw_heatmaps
from bevcask.targets.ragged import kept, sample_of_box, scattered
from bevcask.targets.region import footprint

Claimant = Literal["teacher", "student", "student_alone", "union"]
Owner = Callable[[list[Tensor], Grid], tuple[Tensor, Tensor]]
"""Says which cells belong to a box, and the scale of its owner, as `foreground` does."""


@dataclass(frozen=True)
class Regions:
    """A partition of the valid cells of a batch.

    Attributes:
        foreground_BYX: bool, cells of ground-truth boxes, found by the teacher or not.
        false_positive_BYX: bool, cells where a detector alone is confident.
        background_BYX: bool, the valid rest.
        box_scale_BYX: float32, 1 / sqrt(box area in cells) on foreground cells, else 0.
    """

    foreground_BYX: Tensor
    false_positive_BYX: Tensor
    background_BYX: Tensor
    box_scale_BYX: Tensor


def in_reach(labels: Labels, student: Grid, target: Grid) -> Tensor:
    """Return which boxes both sides can see, bool (N,), samples laid end to end.

    It is a box with positive footprint whose centre lies on the target's grid, and on the
    student's grid after augmentation. Online training filters boxes after augmentation; this is the
    same filter seen from the canonical frame, joined with the teacher's own range.

    Args:
        labels: ground truth in both frames, same order.
        student: the student's grid, augmented frame.
        target: the target's grid, canonical frame.
    """
    canonical_N9 = torch.cat(labels.canonical_boxes)
    _, seen_N = centre_cells(torch.cat(labels.boxes), student)
    _, known_N = centre_cells(canonical_N9, target)
    solid_N = (canonical_N9[:, 3:5] > 0).all(1)
    return seen_N & known_N & solid_N


def boxes_in_reach(labels: Labels, student: Grid, target: Grid) -> list[Tensor]:
    """Return the canonical boxes (N, 9) float32 that both sides can see; see `in_reach`."""
    [boxes] = kept(in_reach(labels, student, target), labels.canonical_boxes)
    return [own_N9.float() for own_N9 in boxes]


def foreground(boxes: list[Tensor], grid: Grid) -> tuple[Tensor, Tensor]:
    """Return which cells belong to a box, and the scale of the first box that owns each.

    A cell belongs to a box when its centre lies in the rotated footprint, or when it is the cell of
    the box's centre (otherwise most cones would own no cell at 0.8 m).

    Args:
        boxes: per sample (N, 9) float32, centres on the grid, positive sizes.
        grid: where the cells lie.

    Returns:
        bool (B, Y, X), and float32 (B, Y, X): sqrt(cell area / (l w)), 0 outside.
    """
    device, shape_BYX = boxes[0].device, (len(boxes), *grid.shape_YX)
    boxes_M9 = torch.cat(boxes).float()
    num, num_cells = len(boxes_M9), math.prod(shape_BYX)
    owner_P = torch.full((num_cells,), num, device=device)
    if num:
        sample_M = sample_of_box(boxes, device)
        cells_MS2, owned_MS = footprint(boxes_M9, grid)
        flat_MS = (sample_M[:, None] * grid.num_y + cells_MS2[..., 0]) * grid.num_x
        flat_MS = flat_MS + cells_MS2[..., 1]
        box_MS = torch.arange(num, device=device)[:, None].expand_as(flat_MS)
        owner_P = scattered(box_MS, flat_MS, owned_MS, num_cells, "amin", num)
    scale_M = (boxes_M9[:, 3] * boxes_M9[:, 4]).rsqrt() * grid.cell
    scale_P = torch.cat([scale_M, scale_M.new_zeros(1)])[owner_P]
    return (owner_P < num).reshape(shape_BYX), scale_P.reshape(shape_BYX)


def split(
    boxes: list[Tensor],
    grid: Grid,
    valid_BYX: Tensor,
    confident_BYX: Tensor | None,
    threshold: float,
    owner: Owner = foreground,
) -> Regions:
    """Part the valid cells into foreground, false positives and background.

    Args:
        boxes: per sample (N, 9), canonical frame, from `boxes_in_reach`.
        grid: the target's grid.
        valid_BYX: cells the student can be read at.
        confident_BYX: bool, where an object is claimed; None at levels without false positives.
        threshold: a cell near ground truth (its Gaussian at least this) is no false positive.
        owner: which cells are foreground.
    """
    foreground_BYX, scale_BYX = owner(boxes, grid)
    foreground_BYX = foreground_BYX & valid_BYX
    scale_BYX = scale_BYX * valid_BYX
    if confident_BYX is None:
        false_positive_BYX = torch.zeros_like(foreground_BYX)
    else:
        one_class = [own.new_zeros(len(own), dtype=torch.int64) for own in boxes]
        truth_BYX = draw_heatmaps(boxes, one_class, grid, num_classes=1)[:, 0]
        false_positive_BYX = confident_BYX & (truth_BYX < threshold) & ~foreground_BYX & valid_BYX
    background_BYX = valid_BYX & ~foreground_BYX & ~false_positive_BYX
    return Regions(foreground_BYX, false_positive_BYX, background_BYX, scale_BYX)


def claims(by: Claimant, teacher_BYX: Tensor | None, student_BYX: Tensor | None) -> Tensor:
    """Return where an object is claimed, bool (B, Y, X), by whom it counts.

    Args:
        by: `student_alone`: where the teacher is silent; `union`: by either.
        teacher_BYX: bool, where the teacher is confident; unused by `student`.
        student_BYX: bool, where the student is; unused by `teacher`.
    """
    if teacher_BYX is None or student_BYX is None:
        [one_BYX] = [mask for mask in (teacher_BYX, student_BYX) if mask is not None]
        return one_BYX
    return student_BYX & ~teacher_BYX if by == "student_alone" else student_BYX | teacher_BYX


def moved_mask(mask_BYX: Tensor, align: Align, source: Grid, target: Grid) -> Tensor:
    """Return a student's mask at canonical cells: where interpolation finds more than half of it.

    The threshold is taken before cells move, so that narrow peaks are not lost in between.
    """
    read_B1YX, valid_BYX = align.cells(mask_BYX[:, None].float(), source, target)
    return (read_B1YX[:, 0] > 0.5) & valid_BYX


def share(mask_BYX: Tensor) -> Tensor:
    """Return 1 / |mask| on the cells of a mask, float32; zero for a sample whose mask is empty."""
    return mask_BYX / mask_BYX.sum((1, 2), keepdim=True).clamp(min=1)


def component_share(mask_BYX: Tensor) -> Tensor:
    """Return 1 / |component| on the cells of a mask, float32; components join along edges.

    Components are found on the host.
    """
    shares = []
    for mask_YX in mask_BYX.cpu().numpy():
        component_YX = torch.from_numpy(ndimage.label(mask_YX)[0]).long()
        share_M = component_YX.flatten().bincount().float().reciprocal()
        share_M[0] = 0  # outside
        shares.append(share_M[component_YX])
    return torch.stack(shares).to(mask_BYX.device)
