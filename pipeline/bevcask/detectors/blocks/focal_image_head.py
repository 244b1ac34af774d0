"""StreamPETR's head in the images: boxes and their centres, cell by cell, in training alone."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from pydantic import Field
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from bevcask.config import Config
from bevcask.detectors.blocks.image_overlap import overlap
from bevcask.detectors.blocks.starts import start_improbable
from bevcask.detectors.blocks.transformer import inverse_sigmoid
from bevcask.geometry import constant
from bevcask.ranks import per_rank
from bevcask.targets.image_boxes import ImageBoxes, channels_of

_GROUPS = 32
_ALPHA, _GAMMA, _TINY = 0.25, 2, 1e-12
_SURE = 1e-4  # probabilities of centres are kept this far from 0 and 1


class FocalImageLoss(Config):
    """Weights of losses; those of matching are the same. Defaults: the release."""

    class_weight: float = Field(2.0, ge=0)
    box_weight: float = Field(5.0, ge=0, description="L1 of centre and size, shares of the image")
    overlap_weight: float = Field(2.0, ge=0, description="generalised IoU")
    centre_weight: float = Field(10.0, ge=0, description="L1 of the 3D centre, share of the image")
    heat_weight: float = Field(1.0, ge=0, description="where centres are")


class Matched(NamedTuple):
    """Cells and the boxes they are given, all images together."""

    cells_M2: Tensor
    corners_M4: Tensor
    centres_M2: Tensor
    channels_M: Tensor


class FocalImageHead(nn.Module):
    """Class, centre-ness, box and 3D centre of every cell.

    Args:
        channels: of the map.
        classes: of the logits.
        stride: pixels a cell.
    """

    def __init__(self, channels: int, classes: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.sort_tower, self.place_tower = (_tower(channels) for _ in range(2))
        self.classes = nn.Conv2d(channels, classes, 1)
        self.heat = nn.Conv2d(channels, 1, 1)
        self.sides = nn.Conv2d(channels, 4, 1)
        self.centres = nn.Conv2d(channels, 2, 1)
        start_improbable(self.classes, self.heat)

    def forward(self, map_BVCHW: Tensor, size_HW: tuple[int, int]) -> dict[str, Tensor]:
        """Return `image/logits` (B, V, T, K), `heat` (T, 1), `boxes` and `centres`, 0 to 1.

        Boxes are centre and size.
        """
        lead, (rows, columns) = map_BVCHW.shape[:2], map_BVCHW.shape[-2:]
        map_NCHW = map_BVCHW.flatten(0, 1)
        sorts, places = self.sort_tower(map_NCHW), self.place_tower(map_NCHW)

        def by_cell(map_NEHW: Tensor) -> Tensor:
            return map_NEHW.flatten(2).transpose(1, 2).float().reshape(*lead, rows * columns, -1)

        height, width = size_HW
        u_X = (torch.arange(columns) * self.stride + self.stride / 2) / width
        v_Y = (torch.arange(rows) * self.stride + self.stride / 2) / height
        v_YX, u_YX = torch.meshgrid(v_Y, u_X, indexing="ij")
        spot_T2 = torch.stack([u_YX, v_YX], dim=-1).flatten(0, 1).to(map_BVCHW.device)
        sides = by_cell(self.sides(places)).sigmoid()
        low, high = (spot_T2 - sides[..., :2]).clamp(0, 1), (spot_T2 + sides[..., 2:]).clamp(0, 1)
        return {
            "image/logits": by_cell(self.classes(sorts)),
            "image/heat": by_cell(self.heat(sorts)),
            "image/boxes": torch.cat([(low + high) / 2, high - low], dim=-1),
            "image/centres": (inverse_sigmoid(spot_T2) + by_cell(self.centres(places))).sigmoid(),
            "image/shape_YX": torch.tensor([rows, columns]),
        }

    def loss(
        self,
        said: Mapping[str, Tensor],
        truth: Sequence[Sequence[ImageBoxes]],
        size_HW: tuple[int, int],
        weights: FocalImageLoss,
    ) -> dict[str, Tensor]:
        """Return the losses, each over the matched cells of all ranks' batches.

        Args:
            said: by `forward`.
            truth: boxes of each sample in each camera, network pixels.
            size_HW: of the network image.
            weights: of the losses.
        """
        own = {name: value.flatten(0, 1) for name, value in said.items() if value.ndim > 1}
        images = [boxes for sample in truth for boxes in sample]
        matched = match_images(own, images, size_HW, weights)
        pixels_4 = constant((*size_HW[::-1], *size_HW[::-1]), own["image/boxes"])
        image_M, cell_M = matched.cells_M2.unbind(1)
        boxes_M4 = own["image/boxes"][image_M, cell_M]
        share_M = overlap(corners(boxes_M4) * pixels_4, matched.corners_M4, generalised=True)
        count = per_rank(len(cell_M))
        wanted_M4 = middle(matched.corners_M4 / pixels_4)
        centre_gap = own["image/centres"][image_M, cell_M] - matched.centres_M2 / pixels_4[:2]
        rows, columns = said["image/shape_YX"].tolist()
        heat = torch.stack([heat_of(boxes, (rows, columns), self.stride) for boxes in images])
        return {
            "image/class": weights.class_weight * _quality(own, matched, pixels_4) / count,
            "image/box": weights.box_weight * (boxes_M4 - wanted_M4).abs().sum() / count,
            "image/overlap": weights.overlap_weight * (1 - share_M).sum() / count,
            "image/centre": weights.centre_weight * centre_gap.abs().sum() / count,
            "image/heat": weights.heat_weight
            * _heat_loss(own["image/heat"][..., 0], heat.flatten(1))
            / count,
        }


def token_scores(said: Mapping[str, Tensor]) -> Tensor:
    """Return how much each token of all cameras matters, (B, V * T)."""
    best = said["image/logits"].amax(-1).sigmoid() * said["image/heat"][..., 0].sigmoid()
    return best.flatten(1)


def _tower(channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=1),
        nn.GroupNorm(_GROUPS, channels),
        nn.ReLU(),
    )


def corners(boxes_N4: Tensor) -> Tensor:
    """Return left, top, right, bottom of centre and size."""
    centre, size = torch.split(boxes_N4, 2, dim=-1)
    return torch.cat([centre - size / 2, centre + size / 2], dim=-1)


def middle(corners_N4: Tensor) -> Tensor:
    """Return centre and size of left, top, right, bottom."""
    low, high = torch.split(corners_N4, 2, dim=-1)
    return torch.cat([(low + high) / 2, high - low], dim=-1)


def image_cost(
    logits_TK: Tensor,
    boxes_T4: Tensor,
    centres_T2: Tensor,
    truth: ImageBoxes,
    size_HW: tuple[int, int],
    weights: FocalImageLoss,
) -> Tensor:
    """Return what it costs to give each cell of an image each box, (T, N)."""
    pixels_4 = constant((*size_HW[::-1], *size_HW[::-1]), boxes_T4)
    p_TK = logits_TK.sigmoid()
    wrong = -(1 - p_TK + _TINY).log() * (1 - _ALPHA) * p_TK**_GAMMA
    right = -(p_TK + _TINY).log() * _ALPHA * (1 - p_TK) ** _GAMMA
    sorts = (right - wrong)[:, channels_of(truth.classes_N)]
    boxes = torch.cdist(boxes_T4, middle(truth.corners_N4 / pixels_4), p=1)
    centres = torch.cdist(centres_T2, truth.centres_N2 / pixels_4[:2], p=1)
    said_T14 = (corners(boxes_T4) * pixels_4)[:, None]
    shares = overlap(said_T14, truth.corners_N4[None], generalised=True)
    return (
        weights.class_weight * sorts
        + weights.box_weight * boxes
        - weights.overlap_weight * shares
        + weights.centre_weight * centres
    )


@torch.no_grad()
def match_images(
    said: Mapping[str, Tensor],
    images: Sequence[ImageBoxes],
    size_HW: tuple[int, int],
    weights: FocalImageLoss,
) -> Matched:
    """Return the cells of each image and the boxes they are given, at the least cost in all."""
    found = []
    for number, truth in enumerate(images):
        cost_TN = image_cost(
            said["image/logits"][number],
            said["image/boxes"][number],
            said["image/centres"][number],
            truth,
            size_HW,
            weights,
        )
        cost = np.nan_to_num(cost_TN.cpu().numpy(), nan=100, posinf=100, neginf=-100)
        cells, boxes = map(torch.from_numpy, linear_sum_assignment(cost))
        boxes_M = boxes.to(cost_TN.device)
        place_M2 = torch.stack([torch.full_like(cells, number), cells], dim=1).to(cost_TN.device)
        found.append(
            Matched(
                place_M2,
                truth.corners_N4[boxes_M],
                truth.centres_N2[boxes_M],
                channels_of(truth.classes_N)[boxes_M],
            )
        )
    return Matched(*(torch.cat(parts) for parts in zip(*found, strict=True)))


def heat_of(truth: ImageBoxes, shape_YX: tuple[int, int], stride: int) -> Tensor:
    """Return the highest of a hill a box, (Y, X); as wide as its centre is far from its border."""
    rows, columns = shape_YX
    device = truth.corners_N4.device
    heat_YX = torch.zeros(shape_YX, device=device)
    sides_N4 = torch.cat(
        [
            truth.centres_N2 - truth.corners_N4[:, :2],
            truth.corners_N4[:, 2:] - truth.centres_N2,
        ],
        dim=1,
    )
    radius_N = (sides_N4.amin(1) / stride).ceil().clamp(min=1).int()
    cell_N2 = (truth.centres_N2 / stride).int()  # towards zero
    for (column, row), reach in zip(cell_N2.tolist(), radius_N.tolist(), strict=True):
        v_Y = torch.arange(rows, device=device)[:, None] - row
        u_X = torch.arange(columns, device=device) - column
        hill_YX = torch.exp(-(u_X**2 + v_Y**2) / (2 * ((2 * reach + 1) / 6) ** 2))
        near_YX = (u_X.abs() <= reach) & (v_Y.abs() <= reach)
        heat_YX = torch.where(near_YX, torch.maximum(heat_YX, hill_YX), heat_YX)
    return heat_YX


def _quality(said: Mapping[str, Tensor], matched: Matched, pixels_4: Tensor) -> Tensor:
    """Return the sum of the quality focal loss (Li et al. 2020): a class says its box's IoU."""
    logits_NTK = said["image/logits"]
    image_M, cell_M = matched.cells_M2.unbind(1)
    place = (image_M, cell_M, matched.channels_M)
    boxes_M4 = corners(said["image/boxes"][image_M, cell_M].detach()) * pixels_4
    wanted_NTK = torch.zeros_like(logits_NTK)
    wanted_NTK[place] = overlap(boxes_M4, matched.corners_M4)
    gap_NTK = (wanted_NTK - logits_NTK.sigmoid()).abs()
    entropy = binary_cross_entropy_with_logits(logits_NTK, wanted_NTK, reduction="none")
    return (entropy * gap_NTK**2).sum()


def _heat_loss(logits_NT: Tensor, heat_NT: Tensor) -> Tensor:
    """Return the sum of the focal loss of hills (Law and Deng 2018)."""
    p_NT = logits_NT.sigmoid().clamp(_SURE, 1 - _SURE)
    on_top = -((1 - p_NT) ** 2) * p_NT.log()
    beside = -((1 - heat_NT) ** 4) * p_NT**2 * (1 - p_NT).log()
    return torch.where(heat_NT == 1, on_top, beside).sum()
