"""CenterPoint with dynamic pillars: LiDAR points to boxes, in plain torch."""

from collections.abc import Mapping
from typing import cast

from torch import Tensor

from bevcask.config import Config as AnyConfig
from bevcask.detectors.base import Batch, Detections, Detector, Inputs, Output
from bevcask.detectors.blocks.heads import CenterHead, CenterHeadConfig
from bevcask.detectors.blocks.lidar import LidarConfig
from bevcask.detectors.blocks.pillars import PillarEncoder
from bevcask.detectors.blocks.second import NORM_MOMENTUM, SECOND, SECONDFPN, set_norm_momentum
from bevcask.geometry import Grid
from bevcask.targets.spec import TapInfo


class CenterPointConfig(LidarConfig):
    """Architecture; defaults: CenterPoint-pillar on nuScenes, 0.2 m."""

    half_extent: float = 51.2
    num_sweeps: int = 10
    norm_momentum: float = NORM_MOMENTUM
    head: CenterHeadConfig = CenterHeadConfig()

    def grids(self) -> list[Grid]:
        """Return the grid of the pillars, of each stage, and of the neck, in this order.

        Raises:
            ConfigError: see `LidarConfig.grids_over`.
        """
        return self.grids_over(self.half_extent)


class CenterPoint(Detector):
    """Dynamic pillars, SECOND, neck, CenterHead.

    Taps: `bev.block0`, `bev.block1`, `bev.block2` (stages of SECOND), `bev.neck`, `head.heatmap`,
    `head.codes`, `head.boxes`.
    """

    Config = CenterPointConfig

    def __init__(self, config: CenterPointConfig) -> None:
        super().__init__()
        grids = config.grids()
        self.encoder = PillarEncoder(config.pillar_channels, grids[0], config.z_range)
        self.backbone = SECOND(
            config.pillar_channels, config.channels, config.convs, config.strides
        )
        self.neck = SECONDFPN(config.channels, config.neck_channels, config.neck_scales)
        self.head = CenterHead(config.head, sum(config.neck_channels), grids[-1])
        set_norm_momentum(self, config.norm_momentum)

    @classmethod
    def inputs(cls, config: AnyConfig) -> Inputs:
        return Inputs(num_sweeps=cast(CenterPointConfig, config).num_sweeps)

    @classmethod
    def describe_taps(cls, config: AnyConfig) -> Mapping[str, TapInfo]:
        own = cast(CenterPointConfig, config)
        grids = own.grids()[1:]
        names = ["bev.block0", "bev.block1", "bev.block2", "bev.neck"]
        widths = [*own.channels, sum(own.neck_channels)]
        taps = {
            name: TapInfo(name, "dense_bev", (width, *grid.shape_YX), grid=grid, nonnegative=True)
            for name, width, grid in zip(names, widths, grids, strict=True)
        }
        return taps | CenterHead.describe_taps(grids[-1], depends_on_images=False)

    def forward(self, batch: Batch) -> Output:
        assert batch.points is not None, "the loader gave no LiDAR points"
        blocks = self.backbone(self.encoder(batch.points))
        neck = self.neck(blocks)
        preds = self.head(neck)
        taps = {f"bev.block{level}": block for level, block in enumerate(blocks)}
        taps |= {"bev.neck": neck, **self.head.taps(preds)}
        return Output(taps, preds)

    def loss(self, output: Output, batch: Batch) -> dict[str, Tensor]:
        assert batch.labels is not None, "the loader gave no labels"
        return self.head.loss(output.preds, batch.labels)

    def decode(self, output: Output) -> list[Detections]:
        return self.head.decode(output.preds)
