"""Losses of denoising queries: each is held to the box that it was made of."""

import math
from collections.abc import Mapping

from torch import Tensor
from torch.nn.functional import one_hot

from bevcask.detectors.blocks.set_loss import focal_loss
from bevcask.detectors.stream_config import StreamConfig
from bevcask.ranks import most, per_rank
from bevcask.targets.metric_code import encode_metric_boxes


def denoising_losses(
    preds: Mapping[str, Tensor],
    layer: int,
    config: StreamConfig,
    code_weights_E: Tensor,
    matched: tuple[Tensor, Tensor],
) -> tuple[Tensor, Tensor]:
    """Return the loss of classes and that of boxes of a layer.

    Rows that are to be no object are held to their box too. The loss of classes is shared among as
    many rows as lie within `split`, on average: the volume of that ball in the cube of draws. Rows
    are those of the batches of all ranks together.

    Args:
        preds: `denoising/...`, see `Noisy.chosen`.
        layer: which.
        config: of the detector.
        code_weights_E: of the numbers of a code.
        matched: losses of the layer's own queries, which the releases report again where there is
            no box at all.
    """
    logits_RK, codes_RE = preds["denoising/logits"][layer], preds["denoising/codes"][layer]
    rows, classes = logits_RK.shape
    share = math.pi / 6 * config.denoising.split**3
    sorted_rows, placed_rows = per_rank(rows * share), per_rank(rows)
    everywhere_none = not most(rows)
    if not rows:
        if config.released and everywhere_none:
            return matched[0].detach(), matched[1].detach()
        return logits_RK.sum(), codes_RE.sum()
    target_RK = one_hot(preds["denoising/labels"], classes + 1)[:, :classes].to(logits_RK.dtype)
    sorts = focal_loss(logits_RK, target_RK) / sorted_rows
    wanted_RE = encode_metric_boxes(preds["denoising/boxes"])
    finite_R = wanted_RE.isfinite().all(dim=1)
    gap_RE = (codes_RE[finite_R] - wanted_RE[finite_R]).abs() * code_weights_E
    weight = config.denoising.weight
    return (
        weight * config.loss.class_weight * sorts,
        weight * config.loss.box_weight * gap_RE.sum() / placed_rows,
    )
