"""Object queries that read a BEV and say boxes, layer by layer (Deformable DETR, BEVFormer)."""

from dataclasses import replace
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from bevcask.detectors.blocks.deformable import DeformableAttention, Reading
from bevcask.detectors.blocks.starts import start_improbable, start_weights
from bevcask.detectors.blocks.transformer import FeedForward, inverse_sigmoid
from bevcask.targets.query_code import QUERY_CODE_SIZE
from bevcask.targets.spec import TapInfo


class Decoded(NamedTuple):
    """What the decoder says, layer by layer.

    Attributes:
        states_LBQC: queries after each layer.
        logits_LBQK: of the classes.
        codes_LBQE: `targets.query_code`, centres in metres.
        references_LBQ3: where the queries were when they entered each layer, 0 to 1 over the range.
        readings: what they read of the BEV in each layer.
    """

    states_LBQC: Tensor
    logits_LBQK: Tensor
    codes_LBQE: Tensor
    references_LBQ3: Tensor
    readings: tuple[Reading, ...]


class DecoderLayer(nn.Module):
    """Self-attention, reading of the BEV, feed-forward; a norm behind each."""

    def __init__(self, channels: int, heads: int, points: int, width: int, dropout: float) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(channels, heads, dropout, batch_first=True)
        self.read = DeformableAttention(channels, heads, points)
        self.feed_forward = FeedForward(channels, width, dropout)
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(3))
        self.dropout = nn.Dropout(dropout)
        start_weights(self.attention.out_proj)

    def forward(
        self, query_BQC: Tensor, position_BQC: Tensor, reference_BQ2: Tensor, bev_BCYX: Tensor
    ) -> tuple[Tensor, Reading]:
        """Return the queries (B, Q, C), and what they read."""
        asked = query_BQC + position_BQC
        heard, _ = self.attention(asked, asked, query_BQC, need_weights=False)
        query_BQC = self.norms[0](query_BQC + self.dropout(heard))
        reading = self.read.gather(query_BQC + position_BQC, reference_BQ2, [bev_BCYX])
        read = self.read.output(reading.sums_BQC)
        query_BQC = self.norms[1](query_BQC + self.dropout(read))
        return self.norms[2](self.feed_forward(query_BQC)), reading

    def projection(self) -> Tensor:
        """Return the rows of the value projection, its bias last, (C, C + 1)."""
        value = self.read.value
        assert value.bias is not None
        return torch.cat([value.weight.flatten(1), value.bias[:, None]], dim=1)


def query_taps(
    layers: int, queries: int, channels: int, heads: int, points: int, classes: int
) -> list[TapInfo]:
    """Return what a decoder that reads a BEV offers.

    `query.last`: states after the last layer. `query.reads`, `query.places`, `query.scores`: what
    the queries read in each layer before the output projection, where and with what weight, and
    the class probabilities after it, layer by layer. `query.values`: rows of each layer's value
    projection, its bias last; the same for every frame.
    """
    rows = layers * queries
    taps = [
        TapInfo("query.last", "query_set", (queries, channels)),
        TapInfo("query.reads", "query_set", (rows, channels)),
        TapInfo("query.places", "query_places", (rows, heads * points * 3)),
        TapInfo("query.scores", "query_set", (rows, classes), nonnegative=True),
        TapInfo("query.values", "query_set", (layers * channels, channels + 1)),
    ]
    return [replace(tap, depends_on_images=tap.name != "query.values") for tap in taps]


class QueryDecoder(nn.Module):
    """Learned queries to boxes; each layer moves the queries' references, without gradient.

    Args:
        layers: decoder layers, each with branches of its own.
        queries: how many objects may be said.
        channels: of the BEV and the queries.
        heads: attention heads.
        points: places a head reads in the BEV.
        width: of the feed-forward layers.
        dropout: in training.
        classes: of the logits.
        low: (x, y, z) of the range of centres, metres.
        high: its other corner.
    """

    low_3: Tensor
    high_3: Tensor

    def __init__(
        self,
        layers: int,
        queries: int,
        channels: int,
        heads: int,
        points: int,
        width: int,
        dropout: float,
        classes: int,
        low: tuple[float, float, float],
        high: tuple[float, float, float],
    ) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(queries, 2 * channels))  # positions, then contents
        self.references = nn.Linear(channels, 3)
        self.layers = nn.ModuleList(
            DecoderLayer(channels, heads, points, width, dropout) for _ in range(layers)
        )
        self.classify = nn.ModuleList(classifier(channels, classes) for _ in range(layers))
        self.regress = nn.ModuleList(regressor(channels) for _ in range(layers))
        self.register_buffer("low_3", torch.tensor(low), persistent=False)
        self.register_buffer("high_3", torch.tensor(high), persistent=False)
        nn.init.xavier_uniform_(self.references.weight)
        nn.init.zeros_(self.references.bias)

    def taps(self, said: Decoded) -> dict[str, Tensor]:
        """Return the decoder's taps, as `query_taps` describes them."""
        num_samples = said.states_LBQC.shape[1]
        places = [
            torch.cat([own.places_BQALP2, own.shares_BQALP[..., None]], dim=-1).flatten(2)
            for own in said.readings
        ]
        layers = cast(list[DecoderLayer], list(self.layers))
        values_RD = torch.cat([layer.projection() for layer in layers])
        return {
            "query.last": said.states_LBQC[-1],
            "query.reads": torch.cat([own.sums_BQC for own in said.readings], dim=1),
            "query.places": torch.cat(places, dim=1),
            "query.scores": said.logits_LBQK.sigmoid().transpose(0, 1).flatten(1, 2),
            "query.values": values_RD.expand(num_samples, -1, -1),
        }

    def forward(self, bev_BCYX: Tensor) -> Decoded:
        position_QC, content_QC = self.queries.chunk(2, dim=1)
        query_BQC = content_QC.expand(len(bev_BCYX), -1, -1)
        position_BQC = position_QC.expand_as(query_BQC)
        reference_BQ3 = self.references(position_BQC).float().sigmoid()
        states, logits, codes, references, readings = [], [], [], [], []
        branches = zip(self.layers, self.classify, self.regress, strict=True)
        for layer, classify, regress in branches:
            query_BQC, reading = layer(query_BQC, position_BQC, reference_BQ3[..., :2], bev_BCYX)
            said_BQE = regress(query_BQC).float()
            centre_BQ3 = (said_BQE[..., [0, 1, 4]] + inverse_sigmoid(reference_BQ3)).sigmoid()
            states.append(query_BQC)
            logits.append(classify(query_BQC).float())
            codes.append(self._code(said_BQE, centre_BQ3))
            references.append(reference_BQ3)
            readings.append(reading)
            reference_BQ3 = centre_BQ3.detach()
        return Decoded(
            torch.stack(states),
            torch.stack(logits),
            torch.stack(codes),
            torch.stack(references),
            tuple(readings),
        )

    def _code(self, said_BQE: Tensor, centre_BQ3: Tensor) -> Tensor:
        metres_BQ3 = self.low_3 + (self.high_3 - self.low_3) * centre_BQ3
        return torch.cat(
            [metres_BQ3[..., :2], said_BQE[..., 2:4], metres_BQ3[..., 2:], said_BQE[..., 5:]],
            dim=-1,
        )


def classifier(channels: int, classes: int) -> nn.Sequential:
    """Return the branch that says logits; every class is improbable at the start."""
    hidden = [
        layer
        for _ in range(2)
        for layer in (nn.Linear(channels, channels), nn.LayerNorm(channels), nn.ReLU())
    ]
    last = nn.Linear(channels, classes)
    start_improbable(last)
    return nn.Sequential(*hidden, last)


def regressor(channels: int) -> nn.Sequential:
    """Return the branch that says the ten numbers of a box."""
    hidden = [layer for _ in range(2) for layer in (nn.Linear(channels, channels), nn.ReLU())]
    return nn.Sequential(*hidden, nn.Linear(channels, QUERY_CODE_SIZE))
