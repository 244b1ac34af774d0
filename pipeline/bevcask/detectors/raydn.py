"""RayDN (Liu et al., ECCV 2024): StreamPETR that looks at points, in plain torch.

It computes what the released detector computes with its published weights, and what HarmoDistill's
teachers and students do. Training adds boxes moved along camera rays (`blocks.query_denoising`).
"""

from collections.abc import Mapping, Sequence
from typing import Self, cast

from pydantic import Field, model_validator
from torch import Tensor, nn

from bevcask.detectors.blocks.fpn import MultiLevelPyramid
from bevcask.detectors.blocks.levels import STRIDES, Level
from bevcask.detectors.blocks.point_reading import CameraModulation, Levels, PointRead
from bevcask.detectors.blocks.ray_positions import Cameras
from bevcask.detectors.blocks.starts import start_linear
from bevcask.detectors.blocks.stream_decoder import StreamDecoder, StreamLayer
from bevcask.detectors.blocks.yolox_image_head import YoloxImageHead, YoloxImageLoss
from bevcask.detectors.stream_config import DenoisingConfig, StreamBackboneConfig, StreamConfig
from bevcask.detectors.stream_family import Seen, StreamDetector
from bevcask.geometry import CLASSES
from bevcask.targets.image_boxes import ImageBoxes


class RayDNBackboneConfig(StreamBackboneConfig):
    """Defaults: R50, three levels."""

    levels: tuple[Level, ...] = Field(("c3", "c4", "c5"), min_length=1)


class RayDenoisingConfig(DenoisingConfig):
    """Defaults: RayDN's release, plain groups and one of five draws along the ray."""

    ray_draws: int = Field(5, ge=0, description="copies along the ray of a camera")


class RayDNConfig(StreamConfig):
    """Defaults: RayDN R50, 428 queries."""

    backbone: RayDNBackboneConfig = RayDNBackboneConfig()
    feed_forward: int = Field(
        1024, ge=1, description="the release says 2048 and ignores it, dropout there as well"
    )
    denoising: RayDenoisingConfig = RayDenoisingConfig()
    levels: int = Field(4, ge=1, description="maps of the pyramid")
    groups: int = Field(8, ge=1, description="of channels, each weighing points by itself")
    points: int = Field(13, ge=1, description="that a query looks at")
    image_channels: int = Field(256, ge=1, description="of the head in the images")
    image_loss: YoloxImageLoss = YoloxImageLoss()

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.channels % self.groups:
            raise ValueError(f"channels {self.channels} must divide by groups {self.groups}")
        if self.levels < len(self.backbone.levels):
            raise ValueError(f"levels {self.levels}: the backbone gives more")
        return self


class RayDN(StreamDetector):
    """Points around each query, read on four levels of all cameras; see `StreamDetector`."""

    Config = RayDNConfig
    config: RayDNConfig

    def __init__(self, config: RayDNConfig) -> None:
        super().__init__(config)
        widths = [self.backbone.channels[level] for level in config.backbone.levels]
        first = STRIDES[config.backbone.levels[0]]
        strides = [first * 2**level for level in range(config.levels)]
        self.pyramid = MultiLevelPyramid(widths, config.channels, config.levels)
        start_linear(*(own for own in self.pyramid.modules() if isinstance(own, nn.Conv2d)))
        self.image_head = YoloxImageHead(
            config.channels, config.image_channels, len(CLASSES), strides
        )
        self.modulation = CameraModulation(config.channels)
        layers = [
            StreamLayer(
                config.channels,
                config.heads,
                config.feed_forward,
                config.dropout,
                0.0,
                PointRead(config.channels, config.groups, config.points, config.levels),
            )
            for _ in range(config.layers)
        ]
        self.decoder = StreamDecoder(layers, config.channels, len(CLASSES), norm=False)

    @classmethod
    def num_levels(cls, config: StreamConfig) -> int:
        return cast(RayDNConfig, config).levels

    @classmethod
    def num_points(cls, config: StreamConfig) -> int:
        return cast(RayDNConfig, config).points

    def see(self, maps: Sequence[Tensor], cameras: Cameras) -> Seen:
        modulated = self.modulation(maps, cameras)
        said = self.image_head(maps) if self.training else {}
        return Seen(maps, modulated, Levels(tuple(modulated), cameras), said)

    def image_losses(
        self, said: Mapping[str, Tensor], truth: Sequence[Sequence[ImageBoxes]]
    ) -> dict[str, Tensor]:
        head = cast(YoloxImageHead, self.image_head)
        return head.loss(said, truth, self.config.image_loss)
