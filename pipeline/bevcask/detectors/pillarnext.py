"""PillarNeXt, dense: LiDAR points to boxes by fine pillars, residual stages and an ASPP neck.

After Li et al. (2023) as TiGDistill-BEV uses it. The original's stages convolve occupied pillars
only, by compiled ops; in plain torch every cell takes part (see `blocks.residual`), and pillars are
dynamic, without a cap on points. The original's weights do not fit.
"""

from collections.abc import Sequence
from typing import Self, cast

from pydantic import model_validator

from bevcask.config import Config as AnyConfig
from bevcask.detectors.blocks.aspp_neck import ASPPNeck
from bevcask.detectors.blocks.heads import CenterHead
from bevcask.detectors.blocks.pillars import PillarEncoder
from bevcask.detectors.blocks.residual import ResidualStages
from bevcask.detectors.blocks.second import set_norm_momentum
from bevcask.detectors.lidar import LidarDetector, LidarDetectorConfig
from bevcask.geometry import Grid
from bevcask.measures import Count, Length, Rising, Whole


class PillarNeXtConfig(LidarDetectorConfig):
    """Architecture; defaults: the teacher of TiGDistill-BEV, 0.1 m."""

    pillar: Length = 0.1
    z_range: Rising = (-5.0, 3.0)
    point_layers: tuple[Count, ...] = (64,)
    pillar_channels: Count = 64
    channels: tuple[Count, ...] = (64, 128, 256, 256)
    blocks: tuple[Whole, ...] = (2, 2, 2, 2)
    strides: tuple[Count, ...] = (1, 2, 2, 2)
    neck_channels: Count = 256
    dilations: tuple[Count, ...] = (1, 6, 12, 18)

    @model_validator(mode="after")
    def _stages_fit(self) -> Self:
        if not len(self.channels) == len(self.blocks) == len(self.strides) > 0:
            raise ValueError(
                f"channels {self.channels}, blocks {self.blocks} and strides {self.strides} must "
                "name one number a stage"
            )
        cells = Grid.square(self.half_extent, self.pillar).num_x
        for stride in self.strides:
            if cells % stride:
                raise ValueError(
                    f"strides {self.strides} cannot halve {cells} cells by {stride}; choose "
                    "half_extent and pillar so that every stride divides the cells"
                )
            cells //= stride
        return self

    def grids(self) -> list[Grid]:
        """Return the grid of the pillars and of each stage; the neck's is the last."""
        grids = [Grid.square(self.half_extent, self.pillar)]
        for stride in self.strides:
            grids.append(grids[-1].coarsen(stride))
        return grids


class PillarNeXt(LidarDetector):
    """Dynamic pillars of two layers, residual stages, ASPP neck on the last, CenterHead.

    Taps: `bev.block0` to `bev.block3` (stages), `bev.neck`, `head.heatmap`, `head.codes`,
    `head.boxes`.
    """

    Config = PillarNeXtConfig

    def __init__(self, config: PillarNeXtConfig) -> None:
        super().__init__()
        grids = config.grids()
        self.encoder = PillarEncoder(
            config.pillar_channels,
            grids[0],
            config.z_range,
            point_channels=config.point_channels,
            hidden=config.point_layers,
        )
        self.backbone = ResidualStages(
            config.pillar_channels, config.channels, config.blocks, config.strides
        )
        self.neck = ASPPNeck(config.channels[-1], config.neck_channels, config.dilations)
        self.head = CenterHead(config.head, config.neck_channels, grids[-1])
        set_norm_momentum(self, config.norm_momentum)

    @classmethod
    def describe_maps(cls, config: AnyConfig) -> Sequence[tuple[int, Grid]]:
        own = cast(PillarNeXtConfig, config)
        grids = own.grids()[1:]
        return [*zip(own.channels, grids, strict=True), (own.neck_channels, grids[-1])]
