"""Decoder of StreamPETR and RayDN: queries hear each other and memory, then read the images."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bevcask.detectors.blocks.query_decoder import classifier, regressor
from bevcask.detectors.blocks.stream_queries import Asked
from bevcask.detectors.blocks.transformer import FeedForward, inverse_sigmoid


class Reader(nn.Module):
    """How a layer reads images; what it reads is prepared once a frame.

    A subclass's forward takes the queries (B, Q, C), their positions, their places in metres
    (B, Q, 3) and what was prepared; it returns what was read, and offsets in metres (B, Q, 3 K)
    of the points that were looked at, without columns where it looks everywhere.
    """


class Said(NamedTuple):
    """What the decoder says, layer by layer; denoising rows in front.

    Attributes:
        states_LBQC: as given to the branches and to memory.
        logits_LBQK: of the classes.
        codes_LBQE: `targets.metric_code`.
        offsets_LBQE: metres from the reference, of the points each query looks at; may be empty.
    """

    states_LBQC: Tensor
    logits_LBQK: Tensor
    codes_LBQE: Tensor
    offsets_LBQE: Tensor


class StreamLayer(nn.Module):
    """Self-attention with memory, reading of the images, feed-forward; a norm behind each.

    Args:
        channels: of the queries.
        heads: of self-attention.
        width: of the feed-forward layers.
        dropout: of attention weights and of what attention says.
        inner_dropout: of the feed-forward layers.
        read: the layer's own reader.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        width: int,
        dropout: float,
        inner_dropout: float,
        read: Reader,
    ) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(channels, heads, dropout, batch_first=True)
        self.read = read
        self.feed_forward = FeedForward(channels, width, inner_dropout)
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(3))
        self.dropout = nn.Dropout(dropout)
        nn.init.xavier_uniform_(self.attention.out_proj.weight)

    def forward(
        self,
        query_BQC: Tensor,
        asked: Asked,
        places_BQ3: Tensor,
        seen: object,
        blocked_QM: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Return the queries (B, Q, C), and where they looked."""
        values = torch.cat([query_BQC, asked.older_contents_BMC], dim=1)
        places = torch.cat([asked.positions_BQC, asked.older_positions_BMC], dim=1)
        heard, _ = self.attention(
            query_BQC + asked.positions_BQC,
            values + places,
            values,
            need_weights=False,
            attn_mask=blocked_QM,
        )
        query_BQC = self.norms[0](query_BQC + self.dropout(heard))
        read, offsets = self.read(query_BQC, asked.positions_BQC, places_BQ3, seen)
        query_BQC = self.norms[1](query_BQC + self.dropout(read))
        return self.norms[2](self.feed_forward(query_BQC)), offsets


class StreamDecoder(nn.Module):
    """Layers, and branches that all of them share; references are the same in every layer.

    Args:
        layers: in order.
        channels: of the queries.
        classes: of the logits.
        norm: another layer norm over what each layer gives to the branches and to memory.
    """

    def __init__(
        self, layers: Sequence[StreamLayer], channels: int, classes: int, norm: bool
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.norm = nn.LayerNorm(channels) if norm else nn.Identity()
        self.classify = classifier(channels, classes)
        self.regress = regressor(channels)

    def forward(
        self,
        asked: Asked,
        low_3: Tensor,
        high_3: Tensor,
        seen: object,
        blocked_QM: Tensor | None = None,
    ) -> Said:
        """Return what every layer says.

        Args:
            asked: where to start.
            low_3: corner of the range of centres, metres.
            high_3: its other corner.
            seen: what the readers read.
            blocked_QM: bool, who may not hear whom; columns are all queries, then older memory.
        """
        places_BQ3 = asked.references_BQ3 * (high_3 - low_3) + low_3
        query_BQC, states, offsets = asked.contents_BQC, [], []
        for layer in self.layers:
            query_BQC, looked = layer(query_BQC, asked, places_BQ3, seen, blocked_QM)
            states.append(self.norm(query_BQC))
            offsets.append(looked)
        states_LBQC = torch.nan_to_num(torch.stack(states))
        said_LBQE = self.regress(states_LBQC).float()
        share = (said_LBQE[..., :3] + inverse_sigmoid(asked.references_BQ3)).sigmoid()
        codes = torch.cat([share * (high_3 - low_3) + low_3, said_LBQE[..., 3:]], dim=-1)
        return Said(states_LBQC, self.classify(states_LBQC).float(), codes, torch.stack(offsets))
