"""HarmoDistill's query terms: states written into a BEV map where queries look, and responses."""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from bevcask.geometry import constant
from bevcask.targets.align import Align

Duplicates = Literal["score", "last"]
Start = Literal["own", "all"]
_POOLED = 3  # cells that a pool, and a convolution behind it, reads in each direction


@dataclass(frozen=True)
class Looks:
    """What the queries of a batch know and where they look, decoder layer by decoder layer.

    Attributes:
        states_BLQC: of the queries.
        points_BLQK3: key points of each, metres.
        scores_BLQ: how probable their best class is; None where it decides nothing.
    """

    states_BLQC: Tensor
    points_BLQK3: Tensor
    scores_BLQ: Tensor | None

    def moved(self, align: Align) -> "Looks":
        """Return the same with its points in the student's frame; states cannot be moved."""
        shape = self.points_BLQK3.shape
        points = align.points([own.reshape(-1, 3) for own in self.points_BLQK3])
        return replace(self, points_BLQK3=torch.stack(points).view(shape))


def key_points(
    references_BQ3: Tensor,
    offsets_BRD: Tensor,
    low: tuple[float, float, float],
    high: tuple[float, float, float],
) -> Tensor:
    """Return the key points (B, L, Q, K, 3) in metres.

    Args:
        references_BQ3: shares of the range.
        offsets_BRD: metres, rows layer by layer, three columns a point.
        low: corner of the range, metres.
        high: its other corner.
    """
    lower_3, upper_3 = (constant(corner, references_BQ3) for corner in (low, high))
    metres_BQ3 = lower_3 + references_BQ3 * (upper_3 - lower_3)
    num_samples, num_queries, _ = metres_BQ3.shape
    shape = (num_samples, offsets_BRD.shape[1] // num_queries, num_queries, -1, 3)
    return metres_BQ3[:, None, :, None] + offsets_BRD.reshape(shape)


def cells_of(
    points_BQK3: Tensor,
    low: tuple[float, float, float],
    high: tuple[float, float, float],
    num: int,
) -> Tensor:
    """Return the cell of each point in a map of num x num, row-major, rows are y; int64 (B, Q, K).

    Released: trunc(x / 102.4 * 127 + 64), kept within 0 to 127. That is the nearest of 128 places
    from border to border, so the outermost cells are half outside; points beyond count as there.
    """
    lower_2, upper_2 = (constant(corner[:2], points_BQK3) for corner in (low, high))
    shares_BQK2 = (points_BQK3[..., :2] - lower_2) / (upper_2 - lower_2)
    index_BQK2 = (shares_BQK2 * (num - 1) + 0.5).trunc().clamp(0, num - 1).long()
    return index_BQK2[..., 1] * num + index_BQK2[..., 0]


def ranks(scores_BQ: Tensor) -> Tensor:
    """Return the place of each query in ascending order, int64; of equals the last is highest."""
    return scores_BQ.argsort(dim=1, stable=True).argsort(dim=1)


def winners(cells_BQK: Tensor, ranks_BQ: Tensor, num: int) -> tuple[Tensor, Tensor]:
    """Return which point fills each cell, int64 (B, cells), query by query, and whether any does.

    Of several queries that look at a cell the one of the highest rank fills it, with the last of
    its points that lie there. No point fills two cells.

    Args:
        cells_BQK: int64, row-major.
        ranks_BQ: int64, a permutation of the queries of each sample.
        num: rows and columns of the map.
    """
    num_samples, _, num_points = cells_BQK.shape
    points_K = torch.arange(num_points, device=cells_BQK.device)
    keys_BP = (ranks_BQ[..., None] * num_points + points_K).flatten(1)  # each once in a sample
    nobody_BY = keys_BP.new_full((num_samples, num * num), -1)
    key_BY = nobody_BY.scatter_reduce(1, cells_BQK.flatten(1), keys_BP, "amax")
    taken_BY, key_BY = key_BY >= 0, key_BY.clamp(min=0)
    query_BY = ranks_BQ.argsort(dim=1).gather(1, key_BY // num_points)
    return query_BY * num_points + key_BY % num_points, taken_BY


def written(states_BQC: Tensor, cells_BQK: Tensor, ranks_BQ: Tensor, num: int) -> Tensor:
    """Return a map (B, C, Y, X): a query's state in each cell it fills, 0 where nobody looks.

    States are differentiable, positions are not. Neither the map nor its gradient is a sum in an
    order that may change: a state goes to each of its points, and each point to one cell at most.
    """
    num_points = cells_BQK.shape[2]
    point_BY, taken_BY = winners(cells_BQK, ranks_BQ, num)
    states_BPC = states_BQC[:, :, None].expand(-1, -1, num_points, -1).flatten(1, 2)
    index_BYC = point_BY[..., None].expand(-1, -1, states_BPC.shape[2])
    read_BYC = states_BPC.gather(1, index_BYC)
    map_BYC = torch.where(taken_BY[..., None], read_BYC, read_BYC.new_zeros(()))
    return map_BYC.transpose(1, 2).reshape(len(states_BQC), -1, num, num)


def mixer(channels: int, wanted: int, start: Start) -> nn.Sequential:
    """Return a mean over 3x3 cells, then a 3x3 convolution; a map loses two cells at each border.

    Its weights are 1 at the start: all of them, or of the channel's own. There is no bias: what it
    adds to a whole channel no softmax over positions sees.
    """
    last = nn.Conv2d(channels, wanted, _POOLED, bias=False)
    nn.init.ones_(last.weight)
    if start == "own":
        own_O1, in_I = torch.arange(wanted)[:, None] % channels, torch.arange(channels)
        with torch.no_grad():
            last.weight.mul_((own_O1 == in_I)[..., None, None])
    return nn.Sequential(nn.AvgPool2d(_POOLED, stride=1), last)


def by_layer(rows_BRC: Tensor, layers: int) -> Tensor:
    """Return stacked rows (B, layers Q, ...) as (B, layers, Q, ...)."""
    return rows_BRC.reshape(len(rows_BRC), layers, -1, *rows_BRC.shape[2:])


def responses(states_BRC: Tensor, layers: int, map_BVCHW: Tensor) -> Tensor:
    """Return how queries respond to image features, (B V, Q, H, W).

    The sum of a query's states over all layers says, by a softmax, what it listens to.
    """
    summed_BQC = by_layer(states_BRC, layers).sum(1)
    return torch.einsum("bqc,bvchw->bvqhw", summed_BQC.softmax(2), map_BVCHW).flatten(0, 1)
