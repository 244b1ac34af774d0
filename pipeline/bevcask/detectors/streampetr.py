"""StreamPETR (Wang et al., ICCV 2023): queries that travel through time, in plain torch.

It computes what the released detector computes with its published weights, R50 with 428 or 900
queries. One slip is part of those weights: a token hears of another camera's focal lengths
(`blocks.ray_positions.focal_camera`).
"""

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from pydantic import Field
from torch import Tensor, nn

from bevcask.detectors.blocks.focal_image_head import FocalImageHead, FocalImageLoss, token_scores
from bevcask.detectors.blocks.fpn import FeaturePyramid
from bevcask.detectors.blocks.levels import STRIDES
from bevcask.detectors.blocks.ray_positions import (
    Cameras,
    DenseRead,
    RayPositions,
    Tokens,
    depth_bins,
)
from bevcask.detectors.blocks.starts import start_linear
from bevcask.detectors.blocks.stream_decoder import StreamDecoder, StreamLayer
from bevcask.detectors.stream_config import StreamConfig
from bevcask.detectors.stream_family import Seen, StreamDetector
from bevcask.geometry import CLASSES
from bevcask.targets.image_boxes import ImageBoxes


class StreamPETRConfig(StreamConfig):
    """Defaults: StreamPETR R50, 428 queries."""

    channels: int = Field(256, ge=32, multiple_of=32, description="norms have 32 groups of them")
    depth_bins: int = Field(64, ge=31, description="points of a token's ray")
    position_low: tuple[float, float, float] = Field(
        (-61.2, -61.2, -10.0), description="range that positions of tokens are told in"
    )
    position_high: tuple[float, float, float] = Field((61.2, 61.2, 10.0), description="its corner")
    own_focal: bool = Field(
        False,
        description="a token hears of its own camera's focal lengths; published weights were "
        "trained with those of camera i mod 6 for token i",
    )
    read_dropout: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="of cross-attention's weights: flash attention has none, plain attention 0.1",
    )
    token_share: float = Field(
        1.0, gt=0, le=1, description="tokens read in training, best scores of the image head first"
    )
    image_loss: FocalImageLoss = FocalImageLoss()


class StreamPETR(StreamDetector):
    """Dense attention to one level of stride 16; see `StreamDetector`."""

    Config = StreamPETRConfig
    config: StreamPETRConfig

    def __init__(self, config: StreamPETRConfig) -> None:
        super().__init__(config)
        finest = config.backbone.levels[0]
        widths = [self.backbone.channels[level] for level in config.backbone.levels]
        self.pyramid = FeaturePyramid(widths, config.channels)
        start_linear(*(own for own in self.pyramid.modules() if isinstance(own, nn.Conv2d)))
        self.image_head = FocalImageHead(config.channels, len(CLASSES), STRIDES[finest])
        self.positions = RayPositions(
            config.channels,
            config.depth_bins,
            STRIDES[finest],
            config.position_low,
            config.position_high,
            config.camera_order,
            config.own_focal,
        )
        layers = [
            StreamLayer(
                config.channels,
                config.heads,
                config.feed_forward,
                config.dropout,
                config.dropout,
                DenseRead(config.channels, config.heads, config.read_dropout),
            )
            for _ in range(config.layers)
        ]
        for layer in layers:
            start_linear(layer.feed_forward.inner, layer.feed_forward.outer)
        self.decoder = StreamDecoder(layers, config.channels, len(CLASSES), norm=True)

    @classmethod
    def num_levels(cls, config: StreamConfig) -> int:
        return 1

    @classmethod
    def num_points(cls, config: StreamConfig) -> int:
        return 0

    def constants(self) -> dict[str, Tensor]:
        own, head = self.config, "pts_bbox_head."
        return super().constants() | {
            f"{head}position_range": torch.tensor([*own.position_low, *own.position_high]),
            f"{head}coords_d": depth_bins(own.depth_bins, own.position_high[0]),
        }

    def see(self, maps: Sequence[Tensor], cameras: Cameras) -> Seen:
        (map_BVCHW,) = maps
        features_BVTC, positions_BVTC = self.positions(map_BVCHW, cameras)
        modulated = features_BVTC.transpose(2, 3).unflatten(3, map_BVCHW.shape[-2:])
        tokens = [own.flatten(1, 2) for own in (features_BVTC, positions_BVTC)]
        said: dict[str, Tensor] = {}
        if self.training:
            said = self.image_head(map_BVCHW, cameras.size_HW)
            if self.config.token_share < 1:
                scores_BT = token_scores(said)
                count = int(scores_BT.shape[1] * self.config.token_share)
                best_BT1 = scores_BT.topk(count, dim=1).indices[..., None]
                tokens = [own.gather(1, best_BT1.expand(-1, -1, own.shape[-1])) for own in tokens]
        values, positions = tokens
        return Seen(maps, [modulated], Tokens(values + positions, values), said)

    def image_losses(
        self, said: Mapping[str, Tensor], truth: Sequence[Sequence[ImageBoxes]]
    ) -> dict[str, Tensor]:
        head = cast(FocalImageHead, self.image_head)
        return head.loss(said, truth, self.config.image_size_HW, self.config.image_loss)
