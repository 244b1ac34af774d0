"""Learned queries beside remembered ones, decoded by one reading of the cameras or another."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bevcask.detectors.base import Memory
from bevcask.detectors.blocks.motion import (
    MOTION_SIZE,
    OCTAVES,
    ModulatedNorm,
    octaves,
    place_code,
    sine_code,
)
from bevcask.detectors.blocks.query_decoder import classifier, regressor
from bevcask.detectors.blocks.query_memory import Frame, Rows, empty_rows, recall, remember
from bevcask.detectors.blocks.transformer import FeedForward, inverse_sigmoid, start_weights

Corner = tuple[float, float, float]


class PetrSizes(NamedTuple):
    """What both detectors size alike.

    Attributes:
        channels: of queries and maps.
        heads: of self-attention.
        feed_forward: hidden width.
        dropout: of self-attention and what it adds.
        feed_forward_dropout: of the feed-forward layers.
        layers: of the decoder.
        queries: learned ones.
        propagated: remembered ones that are decoded.
        memory: remembered rows that are read.
        kept: rows that a frame adds.
        classes: of the logits.
        low: corner of the range of centres, metres.
        high: its other corner.
    """

    channels: int
    heads: int
    feed_forward: int
    dropout: float
    feed_forward_dropout: float
    layers: int
    queries: int
    propagated: int
    memory: int
    kept: int
    classes: int
    low: Corner
    high: Corner


class Queries(NamedTuple):
    """Rows of a decoder.

    Attributes:
        content_BQC: what they are.
        position_BQC: where and how old.
        place_BQ3: 0 to 1 over the range; remembered ones may have left it.
    """

    content_BQC: Tensor
    position_BQC: Tensor
    place_BQ3: Tensor


class Decoded(NamedTuple):
    """What the head says, layer by layer.

    Attributes:
        queries: the decoder's rows, learned ones first.
        states_LBQC: after each layer.
        logits_LBQK: of the classes.
        codes_LBQE: `targets.query_code.decode_centre_boxes`.
        memory: to be recalled at the next frame.
    """

    queries: Queries
    states_LBQC: Tensor
    logits_LBQK: Tensor
    codes_LBQE: Tensor
    memory: Memory


class PetrLayer(nn.Module):
    """Self-attention that hears the memory too, reading of the cameras, feed-forward."""

    def __init__(self, sizes: PetrSizes, read: nn.Module) -> None:
        super().__init__()
        channels = sizes.channels
        self.attention = nn.MultiheadAttention(
            channels, sizes.heads, sizes.dropout, batch_first=True
        )
        self.read = read
        self.feed_forward = FeedForward(channels, sizes.feed_forward, sizes.feed_forward_dropout)
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(3))
        self.dropout = nn.Dropout(sizes.dropout)
        start_weights(self.attention.out_proj)

    def forward(
        self, state_BQC: Tensor, rows: Queries, others: Queries, metres_BQ3: Tensor, seen: object
    ) -> Tensor:
        """Return the states (B, Q, C) after the layer.

        Args:
            state_BQC: before it.
            rows: the decoder's rows as they entered the first layer.
            others: remembered rows that are only heard.
            metres_BQ3: places of the rows.
            seen: what the view says of the cameras.
        """
        asked = state_BQC + rows.position_BQC
        heard = torch.cat([state_BQC, others.content_BQC], dim=1)
        keys = torch.cat([asked, others.content_BQC + others.position_BQC], dim=1)
        # Weights are asked for so that sums are taken as in the release: rows that read far places
        # amplify the last bits.
        said, _ = self.attention(asked, keys, heard)
        state_BQC = self.norms[0](state_BQC + self.dropout(said))
        read = self.read(state_BQC, rows.position_BQC, metres_BQ3, seen)
        state_BQC = self.norms[1](state_BQC + read)
        return self.norms[2](self.feed_forward(state_BQC))  # type: ignore[no-any-return]


class PetrHead(nn.Module):
    """The head of StreamPETR and RayDN; one pair of branches for all layers, no refinement.

    Args:
        sizes: see there.
        view: brings maps and a frame to what the layers read.
        read: makes the reading of a layer.
        post_norm: whether what a layer says is normed once more; the next layer does not see that.
    """

    low_3: Tensor
    high_3: Tensor
    starts_P3: Tensor

    def __init__(
        self, sizes: PetrSizes, view: nn.Module, read: Callable[[], nn.Module], post_norm: bool
    ) -> None:
        super().__init__()
        channels = sizes.channels
        self.sizes = sizes
        self.view = view
        self.places = nn.Parameter(torch.rand(sizes.queries, 3))
        self.register_buffer("starts_P3", torch.rand(sizes.propagated, 3))
        self.place_embedding = nn.Sequential(
            nn.Linear(channels // 2 * 3, channels), nn.ReLU(), nn.Linear(channels, channels)
        )
        self.age_embedding = nn.Sequential(nn.Linear(channels, channels), nn.LayerNorm(channels))
        code_size = 2 * OCTAVES * MOTION_SIZE
        self.motion_position = ModulatedNorm(channels, code_size)
        self.motion_content = ModulatedNorm(channels, code_size)
        self.layers = nn.ModuleList(PetrLayer(sizes, read()) for _ in range(sizes.layers))
        self.post_norm = nn.LayerNorm(channels) if post_norm else nn.Identity()
        self.classify = classifier(channels, sizes.classes)
        self.regress = regressor(channels)
        self.register_buffer("low_3", torch.tensor(sizes.low), persistent=False)
        self.register_buffer("high_3", torch.tensor(sizes.high), persistent=False)

    def forward(
        self,
        maps_BVCHW: list[Tensor],
        frame: Frame,
        memory: Memory | None,
        known_B: Tensor | None,
    ) -> Decoded:
        seen = self.view(maps_BVCHW, frame)
        rows = self.recall(frame, memory, known_B)
        queries, others = self.ask(rows)
        metres_BQ3 = self._metres(queries.place_BQ3)
        state_BQC, states = queries.content_BQC, []
        for layer in self.layers:
            state_BQC = layer(state_BQC, queries, others, metres_BQ3, seen)
            states.append(self.post_norm(state_BQC))
        states_LBQC = torch.stack(states).nan_to_num()
        logits_LBQK = self.classify(states_LBQC)
        codes_LBQE = self._code(self.regress(states_LBQC), queries.place_BQ3)
        new = self._best(states_LBQC[-1], logits_LBQK[-1], codes_LBQE[-1])
        return Decoded(queries, states_LBQC, logits_LBQK, codes_LBQE, remember(rows, new, frame))

    def recall(self, frame: Frame, memory: Memory | None, known_B: Tensor | None) -> Rows:
        """Return the remembered rows as a frame sees them."""
        num_samples = len(frame.seconds_B)
        starts_BP3 = self._metres(self.starts_P3).expand(num_samples, -1, -1)
        empty = empty_rows(num_samples, self.sizes.memory, self.sizes.channels, self.starts_P3)
        return recall(memory, known_B, frame, starts_BP3, empty)

    def ask(self, rows: Rows) -> tuple[Queries, Queries]:
        """Return the rows that are decoded, and those that are only heard."""
        num_samples, propagated = len(rows.embedding_BMC), self.sizes.propagated
        learned = [own.expand(num_samples, -1, -1) for own in self._learned()]
        kept = self._kept(rows)
        pairs = zip(learned, kept, strict=True)
        asked = Queries(*(torch.cat([own, old[:, :propagated]], dim=1) for own, old in pairs))
        return asked, Queries(*(own[:, propagated:] for own in kept))

    def _learned(self) -> Queries:
        """Return the learned rows, (1, Q, ...): they do not move, and are 0 seconds old."""
        still_1K = self.places.new_tensor([[0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0]])
        code_1K = octaves(still_1K)
        places_1Q3 = self.places[None]
        nothing_1QC = self.places.new_zeros((*places_1Q3.shape[:2], self.sizes.channels))
        position = self.motion_position(self._embed(places_1Q3), code_1K)
        age = self.age_embedding(sine_code(still_1K[:, 0], self.sizes.channels))
        return Queries(self.motion_content(nothing_1QC, code_1K), position + age, places_1Q3)

    def _kept(self, rows: Rows) -> Queries:
        motion = [rows.velocity_BM2, rows.time_BM1.float(), rows.pose_BM44[..., :3, :].flatten(2)]
        code_BMK = octaves(torch.cat(motion, dim=-1))
        place_BM3 = (rows.reference_BM3 - self.low_3) / (self.high_3 - self.low_3)
        position = self.motion_position(self._embed(place_BM3), code_BMK)
        age = self.age_embedding(sine_code(rows.time_BM1[..., 0], self.sizes.channels).float())
        return Queries(self.motion_content(rows.embedding_BMC, code_BMK), position + age, place_BM3)

    def _embed(self, place: Tensor) -> Tensor:
        embedded: Tensor = self.place_embedding(place_code(place, self.sizes.channels // 2))
        return embedded

    def _metres(self, place: Tensor) -> Tensor:
        return place * (self.high_3 - self.low_3) + self.low_3

    def _code(self, said_LBQE: Tensor, place_BQ3: Tensor) -> Tensor:
        centre = (said_LBQE[..., :3] + inverse_sigmoid(place_BQ3)).sigmoid()
        return torch.cat([self._metres(centre), said_LBQE[..., 3:]], dim=-1)

    def _best(self, states_BQC: Tensor, logits_BQK: Tensor, codes_BQE: Tensor) -> Rows:
        """Return what is remembered of a frame: its surest queries, surest first."""
        index_BK = logits_BQK.sigmoid().amax(dim=-1).topk(self.sizes.kept, dim=1).indices

        def chosen(values_BQC: Tensor) -> Tensor:
            return values_BQC.gather(1, index_BK[..., None].expand(-1, -1, values_BQC.shape[-1]))

        states, codes = chosen(states_BQC), chosen(codes_BQE)
        rows = empty_rows(len(index_BK), self.sizes.kept, self.sizes.channels, states)
        here = torch.eye(4, dtype=states.dtype, device=states.device)
        return Rows(
            states, codes[..., :3], rows.time_BM1, here.expand_as(rows.pose_BM44), codes[..., 8:]
        )
