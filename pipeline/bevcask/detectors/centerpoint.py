"""CenterPoint with dynamic pillars: LiDAR points to boxes, in plain torch.

It can be laid out as mmdet3d's, whose published files it then reads (`centerpoint_names`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, cast

from pydantic import Field
from torch import Tensor

from bevcask.config import Config as AnyConfig
from bevcask.detectors.base import Inputs
from bevcask.detectors.blocks.heads import CenterHead
from bevcask.detectors.blocks.lidar import LidarConfig
from bevcask.detectors.blocks.pillars import PillarEncoder
from bevcask.detectors.blocks.second import SECOND, SECONDFPN, set_norm_momentum
from bevcask.detectors.centerpoint_names import adopt_published, published_tensors
from bevcask.detectors.lidar import LidarDetector, LidarDetectorConfig
from bevcask.geometry import Grid

_LAYOUT = ("centre_axes", "pillar_points")


class CenterPointConfig(LidarConfig, LidarDetectorConfig):
    """Architecture; defaults: CenterPoint-pillar on nuScenes, 0.2 m."""

    centre_axes: Literal[2, 3] = Field(
        2, description="of a point's offset to its pillar's centre; mmdet3d 0.x: 2, 1.x: 3"
    )
    pillar_points: int | None = Field(
        None,
        ge=1,
        description="points of a pillar that are seen, the first in order; where there are fewer, "
        "points of zeros too, as in mmdet3d (20); none: all, and no zeros",
    )

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
    encoder: PillarEncoder

    def __init__(self, config: CenterPointConfig) -> None:
        super().__init__()
        grids = config.grids()
        self.encoder = PillarEncoder(
            config.pillar_channels,
            grids[0],
            config.z_range,
            point_channels=config.point_channels,
            centre_axes=config.centre_axes,
            most_points=config.pillar_points,
        )
        self.backbone = SECOND(
            config.pillar_channels, config.channels, config.convs, config.strides
        )
        self.neck = SECONDFPN(config.channels, config.neck_channels, config.neck_scales)
        self.head = CenterHead(config.head, sum(config.neck_channels), grids[-1])
        set_norm_momentum(self, config.norm_momentum)

    @classmethod
    def inputs(cls, config: AnyConfig) -> Inputs:
        """Return what is loaded; laid out as mmdet3d's it is shown the points that it is there."""
        own = cast(CenterPointConfig, config)
        inputs = super().inputs(config)
        if own.pillar_points is None:
            return inputs
        return replace(inputs, ego_points="keyframe", pad="empty")

    @classmethod
    def identity(cls, config: AnyConfig) -> dict[str, Any]:
        """Return the configuration; what mmdet3d's layout adds to it only where it is taken."""
        fields = CenterPointConfig.model_fields
        return {
            key: value
            for key, value in super().identity(config).items()
            if key not in _LAYOUT or value != fields[key].default
        }

    def adopt(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return adopt_published(tensors, self)

    def published(self) -> dict[str, Tensor]:
        return published_tensors(self)

    @classmethod
    def describe_maps(cls, config: AnyConfig) -> Sequence[tuple[int, Grid]]:
        own = cast(CenterPointConfig, config)
        widths = [*own.channels, sum(own.neck_channels)]
        return list(zip(widths, own.grids()[1:], strict=True))
