"""Mode `compat`: the released code bug for bug, where the loss of mode `clean` differs from it.

For equivalence tests only, and for batches without BEV augmentation. Each function stands in for
one of a clean method's; methods/README.md says where each quirk comes from and which are left out.
"""

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from bevcask.detectors.base import Labels
from bevcask.errors import TargetMismatchError
from bevcask.geometry import Grid, centres_on, constant, inside_footprints
from bevcask.methods import regions
from bevcask.methods.regions import Regions, in_reach
from bevcask.targets.align import Align
from bevcask.targets.box_code import CODE_SIZE, TASK_OF_CLASS, TASKS
from bevcask.targets.heatmap import centre_cells
from bevcask.targets.ragged import sample_of_box

_CLIP = 1e-4  # SimDistill: sigmoids of heads stay this far from 0 and 1
_ROWS = 500  # SimDistill: length of the padded list of objects of a task group
_THEIR_SINE = 7  # SimDistill: its yaw is -yaw - pi/2 of ours, so its sine is minus our cosine


def corner_foreground(boxes: list[Tensor], grid: Grid) -> tuple[Tensor, Tensor]:
    """Test the lower corner of each cell: DistillBEV, CNN line. See `regions.foreground`."""
    return _foreground(boxes, grid, grid.cell / 2)


def centre_foreground(boxes: list[Tensor], grid: Grid) -> tuple[Tensor, Tensor]:
    """Test the centre of each cell: DistillBEV, Transformer line. See `regions.foreground`."""
    return _foreground(boxes, grid, 0.0)


def _foreground(boxes: list[Tensor], grid: Grid, back: float) -> tuple[Tensor, Tensor]:
    """Own the cells by one point each, metres before the centre; many boxes own no cell."""
    masks, scales = [], []
    for own_N9 in boxes:
        points_YX2 = centres_on(grid, own_N9.device).to(own_N9) - back
        inside_PN = inside_footprints(points_YX2.reshape(-1, 2), own_N9)
        nobody_P1 = inside_PN.new_ones(len(inside_PN), 1)
        owner_P = torch.cat([inside_PN, nobody_P1], 1).int().argmax(1)  # the first of several
        scale_N = (own_N9[:, 3] * own_N9[:, 4]).rsqrt() * grid.cell
        scales.append(torch.cat([scale_N, scale_N.new_zeros(1)])[owner_P].view(grid.shape_YX))
        masks.append(inside_PN.any(1).view(grid.shape_YX))
    return torch.stack(masks), torch.stack(scales)


def background_at_least(parts: Regions) -> Regions:
    """Raise the scale of boxes to that of background cells: DistillBEV takes the larger."""
    floor_B11 = regions.share(parts.background_BYX).amax((1, 2), keepdim=True)
    scale_BYX = torch.maximum(parts.box_scale_BYX, floor_B11) * parts.foreground_BYX
    return replace(parts, box_scale_BYX=scale_BYX)


def read_points(map_CYX: Tensor, grid: Grid, points_NK2: Tensor) -> tuple[Tensor, Tensor]:
    """Read a map as TiG does: stretched by n / (n - 1), clamped, half amplitude at the border.

    See `tigdistill.read_points`; every point counts.
    """
    last_2 = constant((grid.num_x - 1, grid.num_y - 1), points_NK2)
    unit_NK2 = (2 * grid.to_cells(points_NK2) / last_2 - 1).clamp(-1, 1)
    read_CNK = functional.grid_sample(
        map_CYX[None], unit_NK2[None].to(map_CYX.dtype), align_corners=False, padding_mode="zeros"
    )[0]
    everywhere_NK = torch.ones(points_NK2.shape[:2], dtype=torch.bool, device=points_NK2.device)
    return read_CNK.permute(1, 2, 0), everywhere_NK


def require_boxes(boxes: list[Tensor]) -> None:
    """Refuse what TiG's released code fails on.

    Raises:
        TargetMismatchError: a sample has no box.
    """
    bare = [str(b) for b, own in enumerate(boxes) if not len(own)]
    if bare:
        raise TargetMismatchError(
            f"tigdistill in mode compat: no box in range in sample {', '.join(bare)} of the batch, "
            "where the released code fails. Leave such frames out, or use mode=clean."
        )


def lower_edges(bins_D: Tensor) -> Tensor:
    """Return the lower edges of evenly spaced depth bins (D,), where TiG takes its mean depth."""
    return bins_D - (bins_D[1] - bins_D[0]) / 2


def whole_strides(align: Align, rows: int) -> Align:
    """Return an alignment whose `pixels` rounds u / stride, half a cell away, as TiG does.

    Args:
        align: of the batch.
        rows: of the student's image map.
    """
    if align.images is None:
        return align
    stride = align.images.size_HW[0] // rows
    matrices_BV33 = align.images.matrices_BV33.clone()
    matrices_BV33[..., :2, 2] += (stride - 1) / 2
    images = replace(align.images, matrices_BV33=matrices_BV33)
    return Align(torch.from_numpy(align.matrices_B44), images)


def quality_focal(student_BKYX: Tensor, teacher_BKYX: Tensor) -> Tensor:
    """Return SimDistill's quality focal loss of probabilities that pass a second sigmoid.

    Both lie in [0.5, 0.7311], so every cell counts as an object: each task group is divided by
    cells / classes, of one sample. See `simdistill.quality_focal`.
    """
    p, t = (twice(both) for both in (student_BKYX, teacher_BKYX))
    entropy = -(t * p.log() + (1 - t) * (1 - p).log())
    loss_K = (entropy * (p - t).square()).sum((0, 2, 3))
    cells = student_BKYX.shape[2] * student_BKYX.shape[3]
    classes_K = constant(tuple(len(names) for names in TASKS for _ in names), loss_K)
    return (loss_K * classes_K / cells).sum()


def twice(probabilities: Tensor) -> Tensor:
    """Return the sigmoid of clipped probabilities."""
    return probabilities.clamp(_CLIP, 1 - _CLIP).sigmoid()


def box(
    student_BCYX: Tensor,
    teacher_BCYX: Tensor,
    labels: Labels,
    grid: Grid,
    weight_E: Tensor,
    beta: float,
) -> Tensor:
    """Return SimDistill's box term over padded lists: empty rows read cell (0, 0).

    Each task group of each sample reads 500 rows and divides by 500. The gap between sines is
    taken for one between angles.

    Args:
        student_BCYX: box codes, `targets.box_code`.
        teacher_BCYX: the same of the teacher.
        labels: ground truth.
        grid: of both maps.
        weight_E: of the gap of each number of a code, before smooth L1.
        beta: where smooth L1 turns linear.
    """
    shape = (len(student_BCYX), len(TASKS), CODE_SIZE, *grid.shape_YX)
    gap_BTEYX = (student_BCYX - teacher_BCYX).reshape(shape)
    angle = torch.arange(CODE_SIZE, device=gap_BTEYX.device) == _THEIR_SINE
    gap_BTEYX = torch.where(angle.view(-1, 1, 1), gap_BTEYX.sin(), gap_BTEYX)
    gap_BTEYX = gap_BTEYX * weight_E.view(-1, 1, 1)
    error_BTEYX = functional.smooth_l1_loss(
        gap_BTEYX, torch.zeros_like(gap_BTEYX), reduction="none", beta=beta
    )
    keep_N = in_reach(labels, grid, grid)
    sample_N = sample_of_box(labels.boxes, keep_N.device)[keep_N]
    class_N = torch.cat(labels.classes)[keep_N]
    task_N = constant(TASK_OF_CLASS, class_N)[class_N]
    row_N, column_N = centre_cells(torch.cat(labels.boxes)[keep_N], grid)[0].unbind(1)
    reads_BTYX = error_BTEYX.new_zeros(len(gap_BTEYX), len(TASKS), *grid.shape_YX)
    one_N = reads_BTYX.new_ones(len(row_N))
    reads_BTYX.index_put_((sample_N, task_N, row_N, column_N), one_N, accumulate=True)
    reads_BTYX[..., 0, 0] += _ROWS - reads_BTYX.sum((2, 3))
    return torch.einsum("btyx,bteyx->", reads_BTYX, error_BTEYX) / _ROWS
