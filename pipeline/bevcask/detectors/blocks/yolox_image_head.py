"""RayDN's head in the images, after YOLOX (Ge et al. 2021): boxes and centres on every level.

In training alone. Cells are given to boxes by SimOTA: those that say a box best, as many as their
overlaps add up to.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import (
    binary_cross_entropy,
    binary_cross_entropy_with_logits,
    one_hot,
)

from bevcask.config import Config
from bevcask.detectors.blocks.image_overlap import overlap
from bevcask.detectors.blocks.starts import start_improbable
from bevcask.ranks import per_rank
from bevcask.targets.image_boxes import ImageBoxes, channels_of

_PARTS = ("logits", "boxes", "objects", "centres")
_RADIUS = 2.5  # cells around the middle of a box
_BEST = 10  # overlaps that add up to the number of cells of a box
_APART = 1e5  # cost of cells that are not in the box and near its middle


class YoloxImageLoss(Config):
    """Weights of losses; defaults: RayDN's release."""

    class_weight: float = Field(1.0, ge=0)
    object_weight: float = Field(1.0, ge=0)
    overlap_weight: float = Field(5.0, ge=0, description="1 - IoU^2")
    box_weight: float = Field(1.0, ge=0, description="L1 of what the head says of a box")
    centre_weight: float = Field(1.0, ge=0, description="L1 of the 3D centre, cells")


class Priors(NamedTuple):
    """Cells of all levels.

    Attributes:
        corner_T2: (u, v) of their first pixel.
        stride_T: pixels a side.
    """

    corner_T2: Tensor
    stride_T: Tensor


class Assigned(NamedTuple):
    """Cells of an image that have a box, in order, and which.

    Attributes:
        cells_M: which.
        boxes_M: their boxes.
        overlap_M: IoU of what the cell says with its box.
    """

    cells_M: Tensor
    boxes_M: Tensor
    overlap_M: Tensor


class YoloxImageHead(nn.Module):
    """Towers of its own on every level; class, box, objectness and 3D centre of every cell.

    Args:
        channels: of the levels.
        width: of the towers.
        classes: of the logits.
        strides: pixels a cell, one a level.
    """

    def __init__(self, channels: int, width: int, classes: int, strides: Sequence[int]) -> None:
        super().__init__()
        self.strides = tuple(strides)

        def each(outputs: int, prior: bool = False) -> nn.ModuleList:
            return nn.ModuleList(_last(width, outputs, prior) for _ in strides)

        self.sort_towers = nn.ModuleList(_tower(channels, width) for _ in strides)
        self.place_towers = nn.ModuleList(_tower(channels, width) for _ in strides)
        self.classes, self.objects = each(classes, prior=True), each(1, prior=True)
        self.boxes, self.centres = each(4), each(2)

    def forward(self, maps: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return `image/logits`, `boxes`, `objects` and `centres`, (N, T, E) over all levels.

        N are the cameras of all samples. Boxes are the offset of the middle and logs of the size,
        centres offsets too, in cells.
        """
        found: dict[str, list[Tensor]] = {f"image/{part}": [] for part in _PARTS}
        for level, map_BVCHW in enumerate(maps):
            map_NCHW = map_BVCHW.flatten(0, 1)
            sorts = self.sort_towers[level](map_NCHW)
            places = self.place_towers[level](map_NCHW)
            heads = (self.classes, self.boxes, self.objects, self.centres)
            for name, head, read in zip(found, heads, (sorts, *[places] * 3), strict=True):
                found[name].append(head[level](read).float().flatten(2).transpose(1, 2))
        said = {name: torch.cat(parts, dim=1) for name, parts in found.items()}
        said["image/shapes_L2"] = torch.tensor([own.shape[-2:] for own in maps])
        return said

    def priors(self, shapes_L2: Tensor, device: torch.device) -> Priors:
        """Return the cells of levels of these rows and columns."""
        corners, strides = [], []
        for (rows, columns), stride in zip(shapes_L2.tolist(), self.strides, strict=True):
            v_YX, u_YX = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
            corners.append(torch.stack([u_YX, v_YX], dim=-1).flatten(0, 1) * float(stride))
            strides.append(torch.full((rows * columns,), float(stride)))
        return Priors(torch.cat(corners).to(device), torch.cat(strides).to(device))

    def loss(
        self,
        said: Mapping[str, Tensor],
        truth: Sequence[Sequence[ImageBoxes]],
        weights: YoloxImageLoss,
    ) -> dict[str, Tensor]:
        """Return the losses, each over the cells that have a box, of all ranks' batches.

        Args:
            said: by `forward`.
            truth: boxes of each sample in each camera, network pixels.
            weights: of the losses.
        """
        logits_NTK, boxes_NT4, objects_NT1, centres_NT2 = (said[f"image/{p}"] for p in _PARTS)
        priors = self.priors(said["image/shapes_L2"], logits_NTK.device)
        corners_NT4 = box_corners(boxes_NT4, priors)
        sums: dict[str, list[Tensor]] = {name: [] for name in ("class", "overlap", "box", "centre")}
        has_NT, count = torch.zeros_like(objects_NT1[..., 0]), 0
        for image, own in enumerate(boxes for sample in truth for boxes in sample):
            scores = logits_NTK[image].sigmoid() * objects_NT1[image].sigmoid()
            given = assign(scores.detach(), corners_NT4[image].detach(), own, priors)
            cells_M, wanted = given.cells_M, ImageBoxes(*(part[given.boxes_M] for part in own))
            has_NT[image, cells_M] = 1
            count += len(cells_M)
            target_MK = _labels(wanted.classes_N, logits_NTK.shape[-1]) * given.overlap_M[:, None]
            sums["class"].append(_entropy(logits_NTK[image, cells_M], target_MK))
            shares_M = overlap(corners_NT4[image, cells_M], wanted.corners_N4)
            sums["overlap"].append((1 - shares_M**2).sum())
            middle_M4, centre_M2 = box_targets(wanted, priors, cells_M)
            sums["box"].append((boxes_NT4[image, cells_M] - middle_M4).abs().sum())
            sums["centre"].append((centres_NT2[image, cells_M] - centre_M2).abs().sum())
        terms = {name: torch.stack(parts).sum() for name, parts in sums.items()}
        terms["object"] = _entropy(objects_NT1[..., 0], has_NT)
        each, shared = weights.model_dump(), per_rank(count)
        return {
            f"image/{name}": each[f"{name}_weight"] * term / shared for name, term in terms.items()
        }


def box_corners(boxes_NT4: Tensor, priors: Priors) -> Tensor:
    """Return left, top, right, bottom in pixels of what the head says of boxes."""
    middle = boxes_NT4[..., :2] * priors.stride_T[:, None] + priors.corner_T2
    half = boxes_NT4[..., 2:].exp() * priors.stride_T[:, None] / 2
    return torch.cat([middle - half, middle + half], dim=-1)


def box_targets(wanted: ImageBoxes, priors: Priors, cells_M: Tensor) -> tuple[Tensor, Tensor]:
    """Return what the head is to say of boxes (M, 4) and centres (M, 2) at these cells."""
    corner_M2, stride_M1 = priors.corner_T2[cells_M], priors.stride_T[cells_M, None]
    low, high = torch.split(wanted.corners_N4, 2, dim=1)
    middle = ((low + high) / 2 - corner_M2) / stride_M1
    size = ((high - low) / stride_M1 + 1e-8).log()
    return torch.cat([middle, size], dim=1), (wanted.centres_N2 - corner_M2) / stride_M1


@torch.no_grad()
def assign(scores_TK: Tensor, corners_T4: Tensor, truth: ImageBoxes, priors: Priors) -> Assigned:
    """Give cells of an image to its boxes (SimOTA).

    Args:
        scores_TK: class probability times objectness.
        corners_T4: what the cells say, pixels.
        truth: the boxes.
        priors: the cells.
    """
    inside_TN, near_TN = _around(truth, priors)
    cells_T = torch.nonzero((inside_TN | near_TN).any(1))[:, 0]
    if not len(cells_T):
        none = cells_T.new_zeros(0)
        return Assigned(none, none, corners_T4.new_zeros(0))
    shares_TN = overlap(corners_T4[cells_T, None], truth.corners_N4[None])
    target_NK = _labels(truth.classes_N, scores_TK.shape[1])
    say_TNK = scores_TK[cells_T].sqrt()[:, None].expand(-1, len(target_NK), -1)
    with torch.autocast(scores_TK.device.type, enabled=False):
        sort_TN = binary_cross_entropy(
            say_TNK.float(), target_NK.expand_as(say_TNK), reduction="none"
        ).sum(-1)
    apart_TN = ~(inside_TN & near_TN)[cells_T]
    cost_TN = sort_TN - 3 * (shares_TN + 1e-7).log() + apart_TN * _APART
    best = min(_BEST, len(cells_T))
    many_N = shares_TN.topk(best, dim=0).values.sum(0).int().clamp(min=1)
    taken_TN = torch.zeros_like(apart_TN)
    for box, many in enumerate(many_N.tolist()):
        taken_TN[cost_TN[:, box].topk(many, largest=False).indices, box] = True
    cheapest_TN = one_hot(cost_TN.argmin(1), len(many_N)).bool()
    shared_T1 = taken_TN.sum(1, keepdim=True) > 1
    taken_TN = torch.where(shared_T1, cheapest_TN, taken_TN)
    rows_M, boxes_M = torch.nonzero(taken_TN, as_tuple=True)
    return Assigned(cells_T[rows_M], boxes_M, shares_TN[rows_M, boxes_M])


def _around(truth: ImageBoxes, priors: Priors) -> tuple[Tensor, Tensor]:
    """Return which cells' middles lie in boxes, and near the middles of boxes; (T, N) bool."""
    middle_T12 = (priors.corner_T2 + priors.stride_T[:, None] / 2)[:, None]
    low_N2, high_N2 = torch.split(truth.corners_N4, 2, dim=1)
    inside = ((middle_T12 > low_N2) & (middle_T12 < high_N2)).all(-1)
    reach_T1 = _RADIUS * priors.stride_T[:, None]
    near = ((middle_T12 - (low_N2 + high_N2) / 2).abs() < reach_T1[..., None]).all(-1)
    return inside, near


def _labels(classes_N: Tensor, count: int) -> Tensor:
    return one_hot(channels_of(classes_N), count).float()


def _entropy(logits: Tensor, target: Tensor) -> Tensor:
    return binary_cross_entropy_with_logits(logits, target, reduction="sum")


def _tower(channels: int, width: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for given in (channels, width):
        conv = nn.Conv2d(given, width, 3, padding=1, bias=False)
        nn.init.kaiming_uniform_(conv.weight, a=math.sqrt(5))
        layers += [conv, nn.BatchNorm2d(width, eps=1e-3, momentum=0.03), nn.SiLU()]
    return nn.Sequential(*layers)


def _last(width: int, outputs: int, prior: bool) -> nn.Conv2d:
    conv = nn.Conv2d(width, outputs, 1)
    if prior:
        start_improbable(conv)
    return conv
