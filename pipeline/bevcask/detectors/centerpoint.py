"""CenterPoint with dynamic pillars: LiDAR points to boxes, in plain torch."""

from collections.abc import Sequence
from typing import cast

from bevcask.config import Config as AnyConfig
from bevcask.detectors.blocks.heads import CenterHead
from bevcask.detectors.blocks.lidar import LidarConfig
from bevcask.detectors.blocks.pillars import PillarEncoder
from bevcask.detectors.blocks.second import SECOND, SECONDFPN, set_norm_momentum
from bevcask.detectors.lidar import LidarDetector, LidarDetectorConfig
from bevcask.geometry import Grid


class CenterPointConfig(LidarConfig, LidarDetectorConfig):
    """Architecture; defaults: CenterPoint-pillar on nuScenes, 0.2 m."""

    def grids(self) -> list[Grid]:
        """Return the grid of the pillars, of each stage, and of the neck, in this order.

        Raises:
            ConfigError: see `LidarConfig.grids_over`.
        """
        return self.grids_over(self.half_extent)


class CenterPoint(LidarDetector):
    """Dynamic pillars, SECOND, neck, CenterHead; with virtual points the teacher MVP.

    Taps: `bev.block0`, `bev.block1`, `bev.block2` (stages of SECOND), `bev.neck`, `head.heatmap`,
    `head.codes`, `head.boxes`.
    """

    Config = CenterPointConfig

    def __init__(self, config: CenterPointConfig) -> None:
        super().__init__()
        grids = config.grids()
        self.encoder = PillarEncoder(
            config.pillar_channels,
            grids[0],
            config.z_range,
            point_channels=config.point_channels,
        )
        self.backbone = SECOND(
            config.pillar_channels, config.channels, config.convs, config.strides
        )
        self.neck = SECONDFPN(config.channels, config.neck_channels, config.neck_scales)
        self.head = CenterHead(config.head, sum(config.neck_channels), grids[-1])
        set_norm_momentum(self, config.norm_momentum)

    @classmethod
    def describe_maps(cls, config: AnyConfig) -> Sequence[tuple[int, Grid]]:
        own = cast(CenterPointConfig, config)
        widths = [*own.channels, sum(own.neck_channels)]
        return list(zip(widths, own.grids()[1:], strict=True))
