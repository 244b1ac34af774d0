"""Pseudo labels: boxes of a teacher that a student's denoising queries are built from."""

import torch
from torch import Tensor

from bevcask.geometry import constant


def pseudo_boxes(
    boxes_BN11: Tensor,
    count_B: Tensor | None,
    num_truth: list[int],
    reach: tuple[float, float, float],
    released: bool,
) -> list[Tensor]:
    """Return the best boxes (K, 11) of each sample, as many as it has of ground truth.

    Boxes whose centre is out of reach are no candidates. Released: all samples of a batch get as
    many as the first that has any, those before it none, and boxes out of reach are dropped
    afterwards, so that fewer may be left.

    Args:
        boxes_BN11: nine box fields, score, class; best first.
        count_B: rows that are boxes; None where all are.
        num_truth: boxes of ground truth in each sample.
        reach: metres from the car in x, y and z, borders included.
        released: as released.
    """
    limits_3 = constant(reach, boxes_BN11)
    inside_BN = (boxes_BN11[..., :3].abs() <= limits_3).all(2)
    counts = [boxes_BN11.shape[1]] * len(boxes_BN11) if count_B is None else count_B.tolist()
    taken = []
    for own_N11, inside_N, count, wanted in zip(
        boxes_BN11, inside_BN, counts, _wanted(num_truth, released), strict=True
    ):
        rows_M = torch.nonzero(inside_N[:count])[:, 0]
        rows_M = rows_M[rows_M < wanted] if released else rows_M[:wanted]
        taken.append(own_N11[rows_M])
    return taken


def _wanted(num_truth: list[int], released: bool) -> list[int]:
    if not released:
        return num_truth
    wanted: list[int] = []
    for own in num_truth:
        wanted.append((wanted[-1] if wanted else 0) or own)
    return wanted
