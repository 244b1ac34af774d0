"""BEVFusion: cameras and LiDAR to boxes, the teacher of SimDistill, in plain torch.

The original's LiDAR branch is a sparse 3D convolutional network over 0.075 m voxels, which needs
compiled ops. Here it is dense: dynamic pillars and SECOND stages, like CenterPoint's. A BEVFusion
with its own weights fills a cache through mmdet3d instead.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Self, cast

from pydantic import Field, model_validator
from torch import Tensor

from bevcask.config import Config as BaseConfig
from bevcask.detectors.base import Batch, Inputs
from bevcask.detectors.blocks.bev_lift import CameraLift
from bevcask.detectors.blocks.lidar import LidarBranch, LidarConfig
from bevcask.detectors.blocks.lift_splat import cameras_of
from bevcask.detectors.blocks.second import set_norm_momentum
from bevcask.detectors.fusion import FusionConfig, FusionDetector, bev_tap
from bevcask.targets.spec import TapInfo

_LIDAR = LidarConfig(pillar=0.15, neck_channels=(64, 96, 96))


class BEVFusionConfig(FusionConfig):
    """Architecture; defaults: map sizes of the teacher of SimDistill."""

    num_sweeps: int = Field(10, ge=1, description="LiDAR sweeps, the keyframe included")
    lidar: LidarConfig = _LIDAR

    @model_validator(mode="after")
    def _branches_meet(self) -> Self:
        lidar = self.lidar.grids_over(self.half_extent)[-1]
        if lidar.shape_YX != self.grid.shape_YX:
            raise ValueError(
                f"the LiDAR branch ends on {lidar.num_x} cells a side, half_extent "
                f"{self.half_extent} and cell {self.cell} make {self.grid.num_x}; change "
                "lidar.pillar, lidar.strides or lidar.neck_scales"
            )
        return self


class BEVFusion(FusionDetector):
    """A camera map and a LiDAR map on one grid, concatenated in this order, 3x3 conv, BN, ReLU.

    After Liu et al. (2023) with the CenterHead of SimDistill. Whoever uses it as a teacher runs all
    of it in evaluation mode; SimDistill's release lets the fuser learn.

    Taps: `image.fpn0`, `bev.camera`, `bev.lidar`, `bev.fused`, `bev.neck`, `head.heatmap`,
    `head.codes`, `head.boxes`.
    """

    Config = BEVFusionConfig

    def __init__(self, config: BEVFusionConfig) -> None:
        super().__init__(config)
        self.camera = CameraLift(config.lift, config.image_channels, config.grid, config.stride)
        self.lidar = LidarBranch(config.lidar, config.half_extent)
        set_norm_momentum(self, config.norm_momentum)

    @classmethod
    def inputs(cls, config: BaseConfig) -> Inputs:
        own = cast(BEVFusionConfig, config)
        return replace(super().inputs(config), num_sweeps=own.num_sweeps)

    @classmethod
    def donors(cls) -> Mapping[str, Mapping[str, str]]:
        return {
            "bevdepth": {
                "backbone": "backbone",
                "pyramid": "pyramid",
                "camera.depth_net": "depth_net",
            },
            "centerpoint": {
                "lidar.encoder": "encoder",
                "lidar.backbone": "backbone",
                "lidar.neck": "neck",
                "head.tasks": "head.tasks",
            },
        }

    @classmethod
    def describe_maps(cls, config: FusionConfig) -> list[TapInfo]:
        own = cast(BEVFusionConfig, config)
        width = sum(own.lidar.neck_channels)
        return [
            bev_tap("bev.camera", own.lift.channels, own.grid),
            bev_tap("bev.lidar", width, own.grid, depends_on_images=False),
        ]

    def bev_maps(
        self, image_BVCHW: Tensor, batch: Batch
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        assert batch.points is not None, "the loader gave no LiDAR points"
        cameras = cameras_of(batch)
        cells = self.camera.cells(cameras, image_BVCHW)
        camera, logits = self.camera(image_BVCHW, cameras, cells)
        return {"bev.camera": camera, "bev.lidar": self.lidar(batch.points)}, {"depth": logits}
