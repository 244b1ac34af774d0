"""What BEVFusion and a student made in its image share: two BEV maps, fused, decoded, read."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Literal, cast

import torch
from pydantic import Field
from torch import Tensor

from bevcask.config import Config as BaseConfig
from bevcask.detectors.base import Batch, Detections, Detector, Inputs, Output
from bevcask.detectors.blocks.backbone import Variant, build_backbone
from bevcask.detectors.blocks.bev_encoder import BEVBackbone, BEVNeck
from bevcask.detectors.blocks.bev_lift import LiftConfig
from bevcask.detectors.blocks.depthnet import depth_loss
from bevcask.detectors.blocks.fpn import FeaturePyramid, encode_images
from bevcask.detectors.blocks.heads import CenterHead, CenterHeadConfig
from bevcask.detectors.blocks.second import conv_norm_relu
from bevcask.detectors.camera import CameraConfig, lidar_depths
from bevcask.geometry import CAMERAS, Grid
from bevcask.measures import Count
from bevcask.targets.spec import TapInfo

_DECODER_STRIDES = (2, 2, 1)


class FusionConfig(CameraConfig):
    """Architecture; defaults: BEVFusion's sizes as SimDistill uses them."""

    bev_divisor = 4
    backbone: Variant = "swin_t"
    finest_level: Literal["c2", "c3", "c4"] = Field("c3", description="level the pyramid ends on")
    image_channels: int = Field(256, ge=1, description="channels of image.fpn0")
    lift: LiftConfig = LiftConfig()
    depth_weight: float = Field(
        0.0, ge=0, description="of LiDAR depth as a label for the lift; 0 asks for none (BEVFusion)"
    )
    half_extent: float = Field(54.0, gt=0, description="metres")
    cell: float = Field(0.6, gt=0, description="metres")
    fused_channels: int = Field(256, ge=1, description="channels of bev.fused")
    decoder_channels: tuple[Count, Count, Count] = Field(
        (128, 256, 512), description="of the stages, which stride by 2, 2 and 1"
    )
    decoder_blocks: int = Field(2, ge=1, description="basic blocks a stage")
    join_channels: int = Field(256, ge=1, description="width inside the neck")
    neck_channels: int = Field(256, ge=1, description="channels of bev.neck")
    norm_momentum: float = Field(0.1, gt=0, le=1, description="of every batch norm")
    head: CenterHeadConfig = CenterHeadConfig()

    @property
    def image_size_of_cells(self) -> tuple[int, int]:
        """Rows and columns of image.fpn0."""
        height, width = (side // self.stride for side in self.image_size_HW)
        return height, width


class FusionDetector(Detector):
    """Images to a pyramid map, two BEV maps, a convolutional fuser, a decoder and a CenterHead.

    A subclass adds the branches that make the two maps. The pyramid adds coarser levels, where
    BEVFusion's concatenates them.

    The decoder is that of BEVFusion's CenterHead variant in our blocks: three stages of basic
    blocks with strides 2, 2, 1, of which the coarsest joins the finest. Its first join is 3x3, not
    1x1, and a 1x1 convolution ends it.

    Attributes:
        backbone: the image backbone that ImageNet weights fill.
        head: the CenterHead, whose `tasks` can be inherited.
    """

    def __init__(self, config: FusionConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = build_backbone(config.backbone, config.levels)
        self.pyramid = FeaturePyramid(
            [self.backbone.channels[level] for level in config.levels], config.image_channels
        )
        width = sum(tap.shape[0] for tap in self.describe_maps(config))
        self.fuser = conv_norm_relu(width, config.fused_channels)
        self.decoder = BEVBackbone(
            config.fused_channels, config.decoder_channels, config.decoder_blocks, _DECODER_STRIDES
        )
        joined = config.decoder_channels[0] + config.decoder_channels[-1]
        self.neck = BEVNeck(joined, config.join_channels, config.neck_channels)
        self.head = CenterHead(config.head, config.neck_channels, config.grid)

    @classmethod
    def inputs(cls, config: BaseConfig) -> Inputs:
        own = cast(FusionConfig, config)
        return Inputs(image_size_HW=own.image_size_HW, depth=own.depth_weight > 0)

    @classmethod
    @abstractmethod
    def describe_maps(cls, config: FusionConfig) -> list[TapInfo]:
        """Return the taps of the two BEV maps, in the order they are fused."""

    @abstractmethod
    def bev_maps(
        self, image_BVCHW: Tensor, batch: Batch
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the maps (B, C, Y, X) by tap name, as described, and depth logits by branch."""

    @classmethod
    def describe_taps(cls, config: BaseConfig) -> Mapping[str, TapInfo]:
        own = cast(FusionConfig, config)
        image = TapInfo(
            "image.fpn0",
            "image_feature",
            (len(CAMERAS), own.image_channels, *own.image_size_of_cells),
            depends_on_images=True,
        )
        fused = [
            bev_tap(name, channels, own.grid)
            for name, channels in (
                ("bev.fused", own.fused_channels),
                ("bev.neck", own.neck_channels),
            )
        ]
        taps = {tap.name: tap for tap in (image, *cls.describe_maps(own), *fused)}
        return taps | CenterHead.describe_taps(own.grid, depends_on_images=True)

    def forward(self, batch: Batch) -> Output:
        image_BVCHW = encode_images(
            self.backbone, self.pyramid, self.config.levels, batch.normalised()
        )
        maps, logits = self.bev_maps(image_BVCHW, batch)
        fused = self.fuser(torch.cat(list(maps.values()), dim=1))
        neck = self.neck(self.decoder(fused))
        preds = self.head(neck)
        taps = {"image.fpn0": image_BVCHW, **maps, "bev.fused": fused, "bev.neck": neck}
        return Output(taps | self.head.taps(preds), preds | logits)

    def loss(self, output: Output, batch: Batch) -> dict[str, Tensor]:
        assert batch.labels is not None, "the loader gave no labels"
        losses = self.head.loss(output.preds, batch.labels)
        if not self.config.depth_weight:
            return losses
        depth_BVHW = lidar_depths(batch, self.config)
        lift = self.config.lift
        for name in (name for name in output.preds if name.startswith("depth")):
            found = depth_loss(output.preds[name], depth_BVHW, lift.depth_range[0], lift.bin_size)
            losses[name] = self.config.depth_weight * found
        return losses

    def decode(self, output: Output) -> list[Detections]:
        return self.head.decode(output.preds)


def bev_tap(
    name: str,
    channels: int,
    grid: Grid,
    *,
    nonnegative: bool = True,
    depends_on_images: bool = True,
) -> TapInfo:
    """Return the description of a BEV map."""
    return TapInfo(
        name,
        "dense_bev",
        (channels, *grid.shape_YX),
        grid=grid,
        nonnegative=nonnegative,
        depends_on_images=depends_on_images,
    )
