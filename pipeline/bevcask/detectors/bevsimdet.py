"""BEVSimDet: the camera student of SimDistill, whose two branches imitate camera and LiDAR.

It reads no LiDAR. The released code rasterises LiDAR depth into the student's lift, at test time
too, and lifts once for both branches; here no depth enters and each branch has a lift of its own,
as the paper says.
"""

from collections.abc import Mapping
from typing import Self

from pydantic import Field, model_validator
from torch import Tensor

from bevcask.config import Config as AnyConfig
from bevcask.detectors.base import Batch
from bevcask.detectors.blocks.bev_lift import CameraLift
from bevcask.detectors.blocks.deformable import MapSelfAttention
from bevcask.detectors.blocks.lift_splat import cameras_of
from bevcask.detectors.blocks.second import set_norm_momentum
from bevcask.detectors.fusion import FusionConfig, FusionDetector, bev_tap
from bevcask.targets.spec import TapInfo


class AttentionConfig(AnyConfig):
    """A deformable self-attention."""

    heads: int = Field(8, ge=1)
    points: int = Field(10, ge=1, description="points a head")


class BEVSimDetConfig(FusionConfig):
    """Architecture; defaults: SimDistill's student."""

    image_attention: AttentionConfig = AttentionConfig()
    bev_attention: AttentionConfig = AttentionConfig(points=20)

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        for name, channels in (
            ("image_attention", self.image_channels),
            ("bev_attention", self.lift.channels),
        ):
            heads = getattr(self, name).heads
            if channels % heads:
                raise ValueError(f"{name}.heads {heads} must divide the map's {channels} channels")
        return self


class BEVSimDet(FusionDetector):
    """A simulated LiDAR map and a camera map, concatenated in this order, fused and decoded.

    The branch of the simulated LiDAR compensates geometry by deformable self-attention twice: of
    the image map before its lift, and of its BEV map (Zhao et al. 2024). The other is plain.

    Taps: `image.fpn0` (before any attention), `bev.simulated` (signed), `bev.camera`, `bev.fused`,
    `bev.neck`, `head.heatmap`, `head.codes`, `head.boxes`.
    """

    Config = BEVSimDetConfig

    def __init__(self, config: BEVSimDetConfig) -> None:
        super().__init__(config)
        image, bev = config.image_attention, config.bev_attention
        self.image_attention = MapSelfAttention(
            config.image_channels, image.heads, image.points, config.image_size_of_cells
        )
        self.bev_attention = MapSelfAttention(
            config.lift.channels, bev.heads, bev.points, config.grid.shape_YX
        )
        self.simulated, self.camera = (
            CameraLift(config.lift, config.image_channels, config.grid, config.stride)
            for _ in range(2)
        )
        set_norm_momentum(self, config.norm_momentum)

    @classmethod
    def donors(cls) -> Mapping[str, Mapping[str, str]]:
        return {
            "bevdepth": {
                "backbone": "backbone",
                "pyramid": "pyramid",
                "simulated.depth_net": "depth_net",
                "camera.depth_net": "depth_net",
                "head.tasks": "head.tasks",
            }
        }

    @classmethod
    def describe_maps(cls, config: FusionConfig) -> list[TapInfo]:
        width = config.lift.channels
        return [
            bev_tap("bev.simulated", width, config.grid, nonnegative=False),
            bev_tap("bev.camera", width, config.grid),
        ]

    def bev_maps(
        self, image_BVCHW: Tensor, batch: Batch
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        cameras = cameras_of(batch)
        cells = self.camera.cells(cameras, image_BVCHW)
        seen = self.image_attention(image_BVCHW.flatten(0, 1)).view(image_BVCHW.shape)
        simulated, simulated_logits = self.simulated(seen, cameras, cells)
        camera, camera_logits = self.camera(image_BVCHW, cameras, cells)
        maps = {"bev.simulated": self.bev_attention(simulated), "bev.camera": camera}
        return maps, {"depth.simulated": simulated_logits, "depth.camera": camera_logits}
