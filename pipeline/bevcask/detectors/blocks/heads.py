"""CenterHead: six groups of classes, one heatmap a class, one box code a group.

The code is that of `targets.box_code`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from bevcask.config import Config
from bevcask.detectors.base import Detections, Labels
from bevcask.detectors.blocks.nms import circle_nms, rotated_nms
from bevcask.detectors.blocks.second import conv_norm_relu
from bevcask.geometry import CLASSES, Grid, constant
from bevcask.measures import Count, Length, Weight, Whole
from bevcask.ranks import num_ranks, per_rank
from bevcask.targets.box_code import (
    CODE_SIZE,
    TASK_OF_CLASS,
    TASKS,
    decode_boxes,
    encode_boxes,
)
from bevcask.targets.heatmap import centre_cells, draw_heatmaps
from bevcask.targets.ragged import sample_of_box
from bevcask.targets.spec import TapInfo

MAX_BOXES = 500
_PRIOR_BIAS = -2.19  # sigmoid(-2.19) = 0.1; CenterNet
_CLAMP = 1e-4


class CenterHeadConfig(Config):
    """Shape, loss weights and decoding of the head; defaults: CenterPoint on nuScenes."""

    channels: Count = 64
    shared_convs: Whole = 1
    branch_convs: Count = 2
    box_weight: Weight = 0.25
    velocity_weight: Weight = 0.2
    score_threshold: Weight = 0.1
    candidates: Count = 500
    centre_range: Length = 61.2
    nms_radius: tuple[Weight, Weight, Weight, Weight, Weight, Weight] = (
        2.0,  # car
        3.46,  # truck, construction_vehicle
        3.16,  # bus, trailer
        1.0,  # barrier
        0.92,  # motorcycle, bicycle
        0.42,  # pedestrian, traffic_cone
    )
    nms: Literal["circle", "rotated"] = "circle"
    nms_overlap: Weight = 0.2  # of `rotated`: IoU of footprints; CenterPoint without circle NMS
    boxes_per_task: Count = 83


@dataclass
class HeadTargets:
    """What the head should say about a batch; N counts boxes on the grid, over all samples.

    Attributes:
        heatmap_BKYX: Gaussians, float32, channels as `geometry.CLASSES`.
        sample_N: sample of each box, int64.
        task_N: task group of each box, int64.
        cells_N2: cell (row, column) of each centre, int64.
        code_NE: box codes, float32 (N, 10).
    """

    heatmap_BKYX: Tensor
    sample_N: Tensor
    task_N: Tensor
    cells_N2: Tensor
    code_NE: Tensor


def heatmap_loss(logits_BKYX: Tensor, target_BKYX: Tensor) -> Tensor:
    """Return the penalty-reduced focal loss, each task group over max(its centres, 1), summed.

    Centres are those of the batches of all ranks together.
    """
    p = logits_BKYX.sigmoid().clamp(_CLAMP, 1 - _CLAMP)
    centre = target_BKYX == 1
    positive = (1 - p) ** 2 * p.log()
    negative = (1 - target_BKYX) ** 4 * p**2 * (1 - p).log()
    loss_K = -torch.where(centre, positive, negative).sum(dim=(0, 2, 3))
    centre_K = centre.sum(dim=(0, 2, 3))
    task_K = constant(TASK_OF_CLASS, centre_K)
    zero_T = loss_K.new_zeros(len(TASKS))
    loss_T = zero_T.index_add(0, task_K, loss_K)
    centres_T = zero_T.index_add(0, task_K, centre_K.to(loss_K.dtype))
    return (loss_T / per_rank(centres_T)).sum()


class TaskHead(nn.Module):
    """The six branches of one task group; each is `convs` 3x3 convolutions deep.

    Args:
        width: channels of the shared map.
        num_classes: classes of the group.
        convs: convolutions a branch, the last one included.
    """

    def __init__(self, width: int, num_classes: int, convs: int) -> None:
        super().__init__()
        self.reg = _branch(width, 2, convs)
        self.height = _branch(width, 1, convs)
        self.dim = _branch(width, 3, convs)
        self.rot = _branch(width, 2, convs)
        self.vel = _branch(width, 2, convs)
        self.heatmap = _branch(width, num_classes, convs)
        final = self.heatmap[-1]
        assert isinstance(final, nn.Conv2d)
        assert final.bias is not None
        nn.init.constant_(final.bias, _PRIOR_BIAS)

    def branches(self) -> list[nn.Sequential]:
        """Return the branches: heatmap, then the box code in order."""
        return [self.heatmap, self.reg, self.height, self.dim, self.rot, self.vel]


class CenterHead(nn.Module):
    """Predict centre heatmaps and box codes from a BEV map.

    `preds` holds raw values: `heatmap` logits (B, 10, Y, X), channels as `geometry.CLASSES`, and
    `code` (B, 6, 10, Y, X), one box code a task group.

    Args:
        config: shape, loss and decoding.
        num_in: channels of the BEV map.
        grid: its grid.
    """

    def __init__(self, config: CenterHeadConfig, num_in: int, grid: Grid) -> None:
        super().__init__()
        self.config = config
        self.grid = grid
        width = config.channels
        shared = [
            conv_norm_relu(num_in if first else width, width)
            for first in [True] + [False] * (config.shared_convs - 1)
        ]
        self.shared = nn.Sequential(*shared)
        self.tasks = nn.ModuleList(
            TaskHead(width, len(names), config.branch_convs) for names in TASKS
        )

    @staticmethod
    def describe_taps(grid: Grid, *, depends_on_images: bool) -> dict[str, TapInfo]:
        """Return the head's taps on this grid."""
        return {
            "head.heatmap": TapInfo(
                "head.heatmap",
                "heatmap",
                (len(CLASSES), *grid.shape_YX),
                grid=grid,
                nonnegative=True,
                classes=CLASSES,
                depends_on_images=depends_on_images,
            ),
            "head.codes": TapInfo(
                "head.codes",
                "box_code",
                (len(TASKS) * CODE_SIZE, *grid.shape_YX),
                grid=grid,
                depends_on_images=depends_on_images,
            ),
            "head.boxes": TapInfo(
                "head.boxes",
                "box_set",
                (MAX_BOXES, 11),
                classes=CLASSES,
                depends_on_images=depends_on_images,
            ),
        }

    def forward(self, map_BCYX: Tensor) -> dict[str, Tensor]:
        """Return the raw predictions `heatmap` and `code`."""
        branches = [branch for task in self.tasks for branch in task.branches()]  # type: ignore[operator]
        outputs = iter(_run_branches(branches, self.shared(map_BCYX)))
        heatmaps, codes = [], []
        for _ in TASKS:
            heatmaps.append(next(outputs))
            codes.append(torch.cat([next(outputs) for _ in range(5)], dim=1))
        return {"heatmap": torch.cat(heatmaps, dim=1), "code": torch.stack(codes, dim=1)}

    @classmethod
    def taps(cls, preds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the head's dense taps from its raw predictions.

        `head.heatmap`: probabilities, float32 (B, 10, Y, X). `head.codes`: box codes, float32
        (B, 60, Y, X), channel 10 * task + number of the code; a view of `preds` unless these are
        of half precision.
        """
        return {
            "head.heatmap": cls.probabilities(preds),
            "head.codes": preds["code"].flatten(1, 2).float(),
        }

    @staticmethod
    def probabilities(preds: Mapping[str, Tensor]) -> Tensor:
        """Return the heatmap probabilities, float32 (B, 10, Y, X), a new tensor."""
        return preds["heatmap"].float().sigmoid()

    def targets(self, labels: Labels) -> HeadTargets:
        """Return what the head should say, from boxes in the (augmented) frame of its input."""
        boxes_N9 = torch.cat(labels.boxes).float()
        classes_N = torch.cat(labels.classes)
        sample_N = sample_of_box(labels.boxes, boxes_N9.device)
        task_N = constant(TASK_OF_CLASS, classes_N)[classes_N]
        cells_N2, inside_N = centre_cells(boxes_N9, self.grid)
        row_M = inside_N.nonzero()[:, 0]  # a device waits for the host here, once
        cells_M2 = cells_N2[row_M]
        return HeadTargets(
            heatmap_BKYX=draw_heatmaps(labels.boxes, labels.classes, self.grid, len(CLASSES)),
            sample_N=sample_N[row_M],
            task_N=task_N[row_M],
            cells_N2=cells_M2,
            code_NE=encode_boxes(boxes_N9[row_M], cells_M2, self.grid),
        )

    def loss(self, preds: Mapping[str, Tensor], labels: Labels) -> dict[str, Tensor]:
        """Return `heatmap` and `box`, each summed over task groups.

        Heatmaps: focal, each group divided by its number of centres. Boxes: L1 over the code,
        velocity weighted, each group divided by its number of boxes. Both count all ranks.
        """
        targets = self.targets(labels)
        heatmap = heatmap_loss(preds["heatmap"].float(), targets.heatmap_BKYX)
        code_NE = preds["code"][
            targets.sample_N, targets.task_N, :, targets.cells_N2[:, 0], targets.cells_N2[:, 1]
        ].float()
        weight_E = code_NE.new_ones(CODE_SIZE)
        weight_E[-2:] = self.config.velocity_weight
        error_N = ((code_NE - targets.code_NE).abs() * weight_E).sum(dim=1)
        zero_T = error_N.new_zeros(len(TASKS))
        count_T = zero_T.index_add(0, targets.task_N, torch.ones_like(error_N))
        count_T = per_rank(count_T + 1e-4 / num_ranks(), least=0)
        box = (error_N / count_T[targets.task_N]).sum()
        return {"heatmap": heatmap, "box": self.config.box_weight * box}

    @torch.no_grad()
    def decode(self, preds: Mapping[str, Tensor]) -> list[Detections]:
        """Return each sample's boxes after suppression within each task group, best first.

        All samples and groups at once: a device waits for the host twice, however many there are.
        """
        found = self._candidates(self.probabilities(preds), preds["code"].float())
        keep_BTN = self._kept(found)
        keep_BTN &= keep_BTN.int().cumsum(dim=-1) <= self.config.boxes_per_task
        score_BM = found.scores_BTN.masked_fill(~keep_BTN, -torch.inf).flatten(1)
        order_BM = score_BM.argsort(dim=1, descending=True, stable=True)
        boxes_BM9, classes_BM = found.boxes_BTN9.flatten(1, 2), found.classes_BTN.flatten(1)
        counts_B = keep_BTN.sum(dim=(1, 2)).clamp(max=MAX_BOXES).tolist()
        return [
            Detections(boxes_M9[best], score_M[best], classes_M[best])
            for boxes_M9, score_M, classes_M, best in zip(
                boxes_BM9,
                score_BM,
                classes_BM,
                (order_M[:count] for order_M, count in zip(order_BM, counts_B, strict=True)),
                strict=True,
            )
        ]

    def _candidates(self, scores_BKYX: Tensor, code_BTEYX: Tensor) -> "_Candidates":
        """Return the best cells of each task group; no more than any group has boxes."""
        config, num_cells = self.config, self.grid.num_y * self.grid.num_x
        tops, first, classes = [], 0, []
        for names in TASKS:
            flat = scores_BKYX[:, first : first + len(names)].flatten(1)
            score_BN, index_BN = flat.topk(min(config.candidates, flat.shape[1]), dim=1)
            fill = (0, config.candidates - score_BN.shape[1])
            tops.append((nn.functional.pad(score_BN, fill), nn.functional.pad(index_BN, fill)))
            classes.append(first)
            first += len(names)
        scores_BTN, index_BTN = (torch.stack(own, dim=1) for own in zip(*tops, strict=True))
        above_BTN = scores_BTN > config.score_threshold
        num = int(above_BTN.sum(dim=-1).max())
        scores_BTN, index_BTN, above_BTN = (
            own[..., :num] for own in (scores_BTN, index_BTN, above_BTN)
        )
        cell_BTN = index_BTN % num_cells
        cells_BTN2 = torch.stack([cell_BTN // self.grid.num_x, cell_BTN % self.grid.num_x], dim=-1)
        asked_BTEN = cell_BTN[:, :, None].expand(-1, -1, CODE_SIZE, -1)
        code_BTNE = code_BTEYX.flatten(3).gather(3, asked_BTEN).transpose(2, 3)
        boxes_BTN9 = decode_boxes(code_BTNE, cells_BTN2, self.grid)
        near_BTN = (boxes_BTN9[..., :2].abs() <= config.centre_range).all(dim=-1)
        first_T1 = torch.tensor(classes).to(index_BTN.device, non_blocking=True)[:, None]
        classes_BTN = index_BTN // num_cells + first_T1
        return _Candidates(boxes_BTN9, scores_BTN, classes_BTN, above_BTN & near_BTN)

    def _kept(self, found: "_Candidates") -> Tensor:
        """Return which candidates stay, bool (B, T, N)."""
        config = self.config
        if config.nms == "circle":
            radius_T = torch.tensor(config.nms_radius, dtype=torch.float64)
            return circle_nms(found.boxes_BTN9[..., :2], radius_T, found.valid_BTN)
        boxes_LN9, valid_LN = found.boxes_BTN9.flatten(0, 1).cpu(), found.valid_BTN.flatten(0, 1)
        keep_LN = valid_LN.cpu()
        for boxes_N9, keep_N in zip(boxes_LN9, keep_LN, strict=True):
            keep_N[keep_N.clone()] = rotated_nms(boxes_N9[keep_N], config.nms_overlap)
        return keep_LN.to(valid_LN.device).view_as(found.valid_BTN)


@dataclass
class _Candidates:
    """Boxes of each task group, best first, float32 and int64.

    Attributes:
        boxes_BTN9: `geometry.BOX_FIELDS`.
        scores_BTN: probabilities.
        classes_BTN: as `geometry.CLASSES`.
        valid_BTN: which of them are boxes, bool.
    """

    boxes_BTN9: Tensor
    scores_BTN: Tensor
    classes_BTN: Tensor
    valid_BTN: Tensor


def _branch(width: int, num_out: int, num_convs: int) -> nn.Sequential:
    hidden = [conv_norm_relu(width, width) for _ in range(num_convs - 1)]
    return nn.Sequential(*hidden, nn.Conv2d(width, num_out, 3, padding=1))


def _run_branches(branches: list[nn.Sequential], shared_BCYX: Tensor) -> list[Tensor]:
    """Run every branch on the shared map; their first convolutions run as one.

    One wide convolution instead of 36 narrow ones makes the tiny head four times faster on a CPU.
    """
    firsts, rests = zip(*(_split_first(branch) for branch in branches), strict=True)
    biases = [conv.bias for conv in firsts if conv.bias is not None]
    joined_BCYX = nn.functional.conv2d(
        shared_BCYX,
        torch.cat([conv.weight for conv in firsts]),
        torch.cat(biases) if biases else None,
        padding=1,
    )
    parts = torch.split(joined_BCYX, [conv.out_channels for conv in firsts], dim=1)
    return [rest(part) for rest, part in zip(rests, parts, strict=True)]


def _split_first(branch: nn.Sequential) -> tuple[nn.Conv2d, nn.Sequential]:
    """Return a branch's first convolution and what follows it."""
    first, *rest = branch
    if isinstance(first, nn.Sequential):
        first, *inner = first
        rest = [*inner, *rest]
    assert isinstance(first, nn.Conv2d)
    return first, nn.Sequential(*rest)
