"""What FD3D's queries say: where objects are, and what they read of the teacher's BEV map."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from bevcask.detectors.base import Labels
from bevcask.detectors.blocks.deformable import Reading, sum_of_samples
from bevcask.detectors.blocks.query_decoder import DecoderLayer, QueryDecoder
from bevcask.detectors.blocks.set_loss import SetLossConfig, set_losses, wanted
from bevcask.geometry import CLASSES, Grid, constant
from bevcask.methods.base import Target
from bevcask.methods.fd3d_settings import Settings
from bevcask.ranks import per_rank
from bevcask.targets.query_code import decode_query_boxes
from bevcask.targets.set_kinds import PLACE_COLUMNS

_LARGEST = 30.0  # metres; the sides of boxes that only say where to look
_SMALLEST = 0.1
_WHOLE = 1e-3  # share of a reading that may lie out of sight


@dataclass(frozen=True)
class Layer:
    """What queries read in one decoder layer. Nothing here has a gradient but the projection's.

    Attributes:
        places_BQAP2: (x, y), 0 to 1 over the teacher's range.
        shares_BQAP: weight of each place.
        reads_BQC: what they read of the teacher's projected map.
        scores_BQ: how probable their best class is.
        weight_BCC: of the value projection, output channel first.
        bias_BC: of the value projection.
    """

    places_BQAP2: Tensor
    shares_BQAP: Tensor
    reads_BQC: Tensor
    scores_BQ: Tensor
    weight_BCC: Tensor
    bias_BC: Tensor

    def read(self, map_BCYX: Tensor) -> Tensor:
        """Return what the same queries read of another map at the same places, (B, Q, C)."""
        bias_BC1, weight_BCC = (
            own.to(map_BCYX.dtype) for own in (self.bias_BC[..., None], self.weight_BCC)
        )
        values_BCP = torch.baddbmm(bias_BC1, weight_BCC, map_BCYX.flatten(2))
        return self._sum(values_BCP.view_as(map_BCYX))

    def in_sight(self, valid_BYX: Tensor) -> Tensor:
        """Return which queries read valid cells alone, bool (B, Q)."""
        num_heads = self.shares_BQAP.shape[2]
        hidden_BAYX = (~valid_BYX).to(self.shares_BQAP.dtype)[:, None].expand(-1, num_heads, -1, -1)
        return self._sum(hidden_BAYX.contiguous()).amax(2) <= _WHOLE

    def _sum(self, map_BCYX: Tensor) -> Tensor:
        places_BQALP2, shares_BQALP = (
            self.places_BQAP2[:, :, :, None],
            self.shares_BQAP[:, :, :, None],
        )
        return sum_of_samples([map_BCYX], places_BQALP2, shares_BQALP)


@dataclass(frozen=True)
class Said:
    """What the queries of a batch say.

    Attributes:
        boxes: per sample (N, 9), canonical frame.
        layers: what they read, layer by layer.
        losses: of the head itself.
    """

    boxes: list[Tensor]
    layers: list[Layer]
    losses: dict[str, Tensor]


class TrainedHead(nn.Module):
    """A query decoder that learns to detect on the teacher's map, in the canonical frame.

    Args:
        settings: of the method.
        channels: of the teacher's map.
        grid: of the teacher's map.
    """

    def __init__(self, settings: Settings, channels: int, grid: Grid) -> None:
        super().__init__()
        self._settings = settings
        self._loss = SetLossConfig()
        bottom, top = settings.heights
        self.decoder = QueryDecoder(
            settings.layers,
            settings.queries,
            channels,
            settings.heads,
            settings.points,
            settings.width,
            0.0,  # a method leaves the random state alone
            len(CLASSES),
            (grid.x_min, grid.y_min, bottom),
            (grid.x_max, grid.y_max, top),
        )

    def forward(self, map_BCYX: Tensor, labels: Labels) -> Said:
        """Read a teacher's map."""
        said = self.decoder(map_BCYX)
        low_2, high_2 = self.decoder.low_3[:2], self.decoder.high_3[:2]
        truth = wanted(labels.canonical_boxes, labels.classes, low_2, high_2)
        weights_E = constant(self._loss.code_weights, map_BCYX)
        losses = [
            torch.stack(set_losses(logits_BQK, codes_BQE, truth, self._loss, weights_E))
            for logits_BQK, codes_BQE in zip(said.logits_LBQK, said.codes_LBQE, strict=True)
        ]
        classes, boxes = torch.stack(losses).sum(0)
        scores_LBQ = said.logits_LBQK.detach().sigmoid().amax(3)
        layers = [
            self._layer(cast(DecoderLayer, layer), reading, scores_BQ)
            for layer, reading, scores_BQ in zip(
                self.decoder.layers, said.readings, scores_LBQ, strict=True
            )
        ]
        boxes_BQ9 = decode_query_boxes(said.codes_LBQE[-1].detach())
        found = [
            best(boxes_Q9, scores_Q, self._settings)
            for boxes_Q9, scores_Q in zip(boxes_BQ9, scores_LBQ[-1], strict=True)
        ]
        return Said(found, layers, {"classes": classes, "boxes": boxes})

    def _layer(self, layer: DecoderLayer, reading: Reading, scores_BQ: Tensor) -> Layer:
        projection = layer.read.value
        assert projection.bias is not None
        weight_CC, bias_C = projection.weight[:, :, 0, 0], projection.bias
        if self._settings.stop_gradient == "head":
            weight_CC, bias_C = weight_CC.detach(), bias_C.detach()
        return Layer(
            reading.places_BQALP2[:, :, :, 0].detach(),
            reading.shares_BQALP[:, :, :, 0].detach(),
            reading.sums_BQC.detach(),
            scores_BQ,
            weight_CC.expand(len(scores_BQ), -1, -1),
            bias_C.expand(len(scores_BQ), -1),
        )


def stored(targets: Mapping[str, Target], settings: Settings) -> Said:
    """Return what a frozen head said, from the cache."""
    boxes = []
    if settings.boxes_by == "predicted":
        for rows_N11 in targets[settings.boxes].values:  # rows behind the count score 0
            boxes.append(best(rows_N11[:, :9], rows_N11[:, 9], settings))
    return Said(boxes, list(_stored_layers(targets, settings)) if settings.focal else [], {})


def _stored_layers(targets: Mapping[str, Target], settings: Settings) -> Iterator[Layer]:
    num_layers = num_of_layers(targets[settings.values].values.shape[1:])
    names = (settings.places, settings.reads, settings.scores, settings.values)
    parts = (targets[name].values.chunk(num_layers, dim=1) for name in names)
    for places_BQN, reads_BQC, scores_BQK, values_BCD in zip(*parts, strict=True):
        triples_BQAP3 = places_BQN.view(*places_BQN.shape[:2], settings.heads, -1, PLACE_COLUMNS)
        yield Layer(
            triples_BQAP3[..., :2],
            triples_BQAP3[..., 2],
            reads_BQC,
            scores_BQK.amax(2),
            values_BCD[..., :-1],
            values_BCD[..., -1],
        )


def num_of_layers(values_shape: tuple[int, ...]) -> int:
    """Return how many projections (L C, C + 1) are stacked; 0 where it is no whole number."""
    rows, columns = values_shape
    return rows // (columns - 1) if columns > 1 and rows % (columns - 1) == 0 else 0


def best(boxes_N9: Tensor, scores_N: Tensor, settings: Settings) -> Tensor:
    """Return the boxes that say where objects are, best first, with sides that are no nonsense."""
    scores_M, order_M = scores_N.topk(min(settings.most_boxes, len(scores_N)))
    boxes_M9 = boxes_N9[order_M[scores_M > settings.score]]
    sides_M3 = boxes_M9[:, 3:6].clamp(_SMALLEST, _LARGEST)
    return torch.cat([boxes_M9[:, :3], sides_M3, boxes_M9[:, 6:]], dim=1)


def focal(layers: list[Layer], student_BCYX: Tensor, valid_BYX: Tensor, by_score: bool) -> Tensor:
    """Return the mean over layers and queries of squared distances between readings of two maps.

    Args:
        layers: what was read of the teacher's map.
        student_BCYX: the student's, at the teacher's cells.
        valid_BYX: bool; queries that read other cells count nowhere, on any rank.
        by_score: weigh each by its score.
    """
    total, count = student_BCYX.new_zeros(()), student_BCYX.new_zeros(())
    for layer in layers:
        square_BQ = (layer.read(student_BCYX) - layer.reads_BQC).square().sum(2)
        kept_BQ = layer.in_sight(valid_BYX).to(square_BQ.dtype)
        weight_BQ = kept_BQ * layer.scores_BQ if by_score else kept_BQ
        total = total + (weight_BQ * square_BQ).sum()
        count = count + kept_BQ.sum()
    return total / per_rank(count)
