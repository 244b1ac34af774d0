"""Losses of a set of queries against the boxes that Hungarian matching gives them (DETR line)."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from pydantic import Field
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from bevcask.config import Config
from bevcask.detectors.base import Detections
from bevcask.geometry import constant
from bevcask.ranks import per_rank
from bevcask.targets.query_code import (
    QUERY_CODE_SIZE,
    decode_query_boxes,
    encode_query_boxes,
)

_ALPHA, _GAMMA = 0.25, 2  # of the focal loss
_MATCHED = 8  # numbers of a code that matching compares: all but the velocity
_TINY = 1e-12


class SetLossConfig(Config):
    """Weights in loss and matching cost, and decoding; defaults: BEVFormer's release."""

    class_weight: float = Field(2.0, ge=0)
    box_weight: float = Field(0.25, ge=0)
    velocity_weight: float = Field(0.2, ge=0, description="of both velocities, inside the box loss")
    max_boxes: int = Field(300, ge=1, le=500)
    centre_range: tuple[float, float, float] = Field(
        (61.2, 61.2, 10.0), description="metres; boxes with a centre beyond are not said"
    )

    @property
    def code_weights(self) -> tuple[float, ...]:
        return (1.0,) * _MATCHED + (self.velocity_weight,) * (QUERY_CODE_SIZE - _MATCHED)


class Wanted(NamedTuple):
    """Ground truth of one sample, as queries say it."""

    classes_N: Tensor
    codes_NE: Tensor


def wanted(
    boxes: Sequence[Tensor], classes: Sequence[Tensor], low: Tensor, high: Tensor
) -> list[Wanted]:
    """Return the boxes of each sample with a centre strictly between two corners.

    Args:
        boxes: per sample (N, 9).
        classes: per sample (N,).
        low: lower corner; as many of x, y, z as are to be compared.
        high: upper corner.
    """
    found = []
    for boxes_N9, classes_N in zip(boxes, classes, strict=True):
        centre = boxes_N9[:, : len(low)]
        inside_N = ((centre > low) & (centre < high)).all(dim=1)
        found.append(Wanted(classes_N[inside_N], encode_query_boxes(boxes_N9[inside_N].float())))
    return found


def matching_cost(
    logits_QK: Tensor,
    codes_QE: Tensor,
    truth: Wanted,
    config: SetLossConfig,
    weights_E: Tensor | None = None,
) -> Tensor:
    """Return what it costs to give each query each box: focal and L1, (Q, N).

    Velocities are left out; numbers of the code are weighed where weights are given.
    """
    p_QK = logits_QK.sigmoid()
    wrong = -(1 - p_QK + _TINY).log() * (1 - _ALPHA) * p_QK**_GAMMA
    right = -(p_QK + _TINY).log() * _ALPHA * (1 - p_QK) ** _GAMMA
    said, true = codes_QE[:, :_MATCHED], truth.codes_NE[:, :_MATCHED]
    if weights_E is not None:
        said, true = said * weights_E[:_MATCHED], true * weights_E[:_MATCHED]
    apart = torch.cdist(said, true, p=1)
    return config.class_weight * (right - wrong)[:, truth.classes_N] + config.box_weight * apart


@torch.no_grad()
def match(
    logits_QK: Tensor,
    codes_QE: Tensor,
    truth: Wanted,
    config: SetLossConfig,
    weights_E: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the queries and the boxes they are given, both int64, at the least cost in all.

    Numbers that are not finite cost as much as anything can: the loss says what is wrong.
    """
    cost_QN = matching_cost(logits_QK, codes_QE, truth, config, weights_E)
    queries, boxes = linear_sum_assignment(np.nan_to_num(cost_QN.cpu().numpy(), nan=1e9))
    device = logits_QK.device
    query_M, box_M = (
        torch.from_numpy(own).to(device, non_blocking=True) for own in (queries, boxes)
    )
    return query_M, box_M


def set_losses(
    logits_BQK: Tensor,
    codes_BQE: Tensor,
    truth: Sequence[Wanted],
    config: SetLossConfig,
    code_weights_E: Tensor,
    match_weights_E: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the loss of classes and that of boxes of one layer, both over max(matched pairs, 1).

    Pairs are those of the batches of all ranks together: the released codes count so for boxes,
    StreamPETR and RayDN each process by itself for classes.

    A pair whose code is not finite (a box without extent) is left out of the loss of boxes.
    """
    target_BQK = torch.zeros_like(logits_BQK)
    errors, pairs = [], 0
    for sample, own in enumerate(truth):
        queries_N, boxes_N = match(
            logits_BQK[sample], codes_BQE[sample], own, config, match_weights_E
        )
        target_BQK[sample, queries_N, own.classes_N[boxes_N]] = 1
        wanted_NE = own.codes_NE[boxes_N]
        finite_N = wanted_NE.isfinite().all(dim=1)
        gap_NE = codes_BQE[sample, queries_N[finite_N]] - wanted_NE[finite_N]
        errors.append((gap_NE.abs() * code_weights_E).sum())
        pairs += len(queries_N)
    count = per_rank(pairs)
    classes = focal_loss(logits_BQK, target_BQK) / count
    return config.class_weight * classes, config.box_weight * torch.stack(errors).sum() / count


def focal_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Return the sum of the sigmoid focal loss (Lin et al. 2017) against zeros and ones."""
    p = logits.sigmoid()
    missed = torch.where(target > 0, 1 - p, p)
    weight = torch.where(target > 0, _ALPHA, 1 - _ALPHA) * missed**_GAMMA
    entropy = torch.nn.functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return (weight * entropy).sum()


@torch.no_grad()
def decode_queries(
    logits_BQK: Tensor,
    codes_BQE: Tensor,
    config: SetLossConfig,
    decode: Callable[[Tensor], Tensor] = decode_query_boxes,
) -> list[Detections]:
    """Return each sample's best pairs of query and class as boxes, best first, none merged."""
    found = []
    num_classes = logits_BQK.shape[-1]
    reach_3 = constant(config.centre_range, logits_BQK)
    for logits_QK, codes_QE in zip(logits_BQK.float(), codes_BQE.float(), strict=True):
        scores = logits_QK.sigmoid().flatten()
        scores_N, index_N = scores.topk(min(config.max_boxes, len(scores)))
        boxes_N9 = decode(codes_QE[index_N // num_classes])
        near_N = (boxes_N9[:, :3].abs() <= reach_3).all(dim=1)
        found.append(
            Detections(boxes_N9[near_N], scores_N[near_N], (index_N % num_classes)[near_N])
        )
    return found
