"""BEVDepth: six cameras to boxes through supervised depth, one frame or two, in plain torch.

The same network is BEVDet with `depth: plain`, and BEVDet4D and BEVDepth4D with `num_frames: 2`.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal, NamedTuple, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from bevcask.config import Config as BaseConfig
from bevcask.detectors.base import MEAN_RGB, STD_RGB, Batch, Detections, Detector, Inputs, Output
from bevcask.detectors.bevdet_names import adopt_published, published_tensors
from bevcask.detectors.blocks.backbone import Variant, build_backbone
from bevcask.detectors.blocks.bev_encoder import BEVBackbone, BEVNeck
from bevcask.detectors.blocks.depthnet import (
    DepthNet,
    PlainDepthNet,
    camera_numbers,
    depth_loss,
)
from bevcask.detectors.blocks.fpn import FeaturePyramid, encode_images
from bevcask.detectors.blocks.heads import CenterHead, CenterHeadConfig
from bevcask.detectors.blocks.lift_splat import cameras_of, frustum_cells, splat
from bevcask.detectors.blocks.resnet import BasicBlock
from bevcask.detectors.camera import CameraConfig, lidar_depths, network_image_aug
from bevcask.geometry import CAMERAS
from bevcask.measures import Count, Rising
from bevcask.targets.spec import TapInfo


class BEVDepthConfig(CameraConfig):
    """Architecture; defaults: BEVDepth-R50 as DistillBEV and TiG-BEV train it (BEVDet port)."""

    bev_divisor = 8
    backbone: Variant = "resnet50"
    image_channels: int = Field(512, ge=1, description="channels of image.fpn0")
    layout: Literal["own", "bevdet"] = Field(
        "own",
        description="bevdet: lift, neck and colours of BEVDet's release, whose files it then "
        "reads; one frame, plain depth",
    )
    num_frames: Literal[1, 2] = Field(
        1, description="2: an earlier keyframe's BEV joins (BEVDet4D)"
    )
    depth: Literal["camera_aware", "plain"] = Field(
        "camera_aware", description="plain: one convolution that no LiDAR supervises (BEVDet)"
    )
    depth_range: tuple[float, float] = Field((1.0, 60.0), description="metres; first to last edge")
    depth_bins: int = Field(59, ge=1)
    depth_channels: int = Field(256, ge=1, description="width of the depth branch")
    depth_blocks: int = Field(3, ge=0)
    depth_dilations: tuple[Count, ...] = Field(
        (1, 6, 12, 18), description="ASPP; empty leaves it out"
    )
    depth_weight: float = Field(3.0, ge=0, description="BEVDepth release")
    context_channels: int = Field(64, ge=1, description="channels of bev.lift")
    frame_blocks: int = Field(2, ge=1, description="basic blocks on each of two frames")
    z_range: Rising = Field((-10.0, 10.0), description="metres; one bin")
    bev_channels: tuple[Count, Count, Count] = (128, 256, 512)
    bev_blocks: int = Field(2, ge=1, description="basic blocks a stage")
    join_channels: int = Field(512, ge=1, description="width inside the neck")
    neck_channels: int = Field(256, ge=1, description="channels of bev.neck")
    head: CenterHeadConfig = CenterHeadConfig()

    @model_validator(mode="after")
    def _depth_rises(self) -> "BEVDepthConfig":
        if not 0 < self.depth_range[0] < self.depth_range[1]:
            raise ValueError(f"depth_range {self.depth_range} must rise and start above 0")
        return self

    @model_validator(mode="after")
    def _layout_is_whole(self) -> "BEVDepthConfig":
        if self.layout == "bevdet" and (self.num_frames > 1 or self.depth != "plain"):
            raise ValueError(
                f"layout bevdet needs num_frames 1 and depth plain, got {self.num_frames} and "
                f"{self.depth}"
            )
        return self

    @property
    def as_released(self) -> bool:
        """Laid out as BEVDet's release."""
        return self.layout == "bevdet"

    @property
    def bin_size(self) -> float:
        return (self.depth_range[1] - self.depth_range[0]) / self.depth_bins

    @property
    def bin_depths(self) -> tuple[float, ...]:
        """Where features are lifted to: the middle of each bin, in the release its lower edge."""
        within = 0.0 if self.as_released else 0.5
        return tuple(
            self.depth_range[0] + (index + within) * self.bin_size
            for index in range(self.depth_bins)
        )


class _Lift(NamedTuple):
    """What one frame's images say: features, depth (logits and softmax), the map before fusion."""

    image_BVCHW: Tensor
    logits_BVDHW: Tensor
    depth_BVDHW: Tensor
    map_BCYX: Tensor


class BEVDepth(Detector):
    """Image backbone and FPN, camera-aware depth, lift-splat, BEV encoder, CenterHead.

    Features are lifted to bin *centres* (the BEVDet port lifts to lower edges, half a bin short of
    the depths its loss teaches; so does `layout: bevdet`).

    `image.depth` holds the probabilities that features are lifted with, bins as the second axis.

    Taps: `image.fpn0`, `image.depth`, `bev.lift`, `bev.block0`, `bev.block1`, `bev.block2`,
    `bev.neck`, `head.heatmap`, `head.codes`, `head.boxes`.

    Attributes:
        backbone: the image backbone that ImageNet weights fill (`blocks.backbone.load_imagenet`).
        head: the CenterHead, whose `tasks` can be inherited.
    """

    Config = BEVDepthConfig

    def __init__(self, config: BEVDepthConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = build_backbone(config.backbone, config.levels)
        self.pyramid = FeaturePyramid(
            [self.backbone.channels[level] for level in config.levels], config.image_channels
        )
        self.depth_net = _depth_net(config)
        width = config.context_channels
        self.frame = nn.Sequential(  # shared by both frames
            *(
                BasicBlock(width, width)
                for _ in range(config.frame_blocks * (config.num_frames - 1))
            )
        )
        self.bev_backbone = BEVBackbone(
            config.num_frames * width, config.bev_channels, config.bev_blocks
        )
        joined = config.bev_channels[0] + config.bev_channels[-1]
        self.neck = BEVNeck(joined, config.join_channels, config.neck_channels, config.as_released)
        self.head = CenterHead(config.head, config.neck_channels, config.grid)

    @classmethod
    def inputs(cls, config: BaseConfig) -> Inputs:
        own = cast(BEVDepthConfig, config)
        return Inputs(own.image_size_HW, own.num_frames - 1, depth=own.depth == "camera_aware")

    @classmethod
    def describe_taps(cls, config: BaseConfig) -> Mapping[str, TapInfo]:
        own = cast(BEVDepthConfig, config)
        height, width = (side // own.stride for side in own.image_size_HW)
        taps = {
            "image.fpn0": TapInfo(
                "image.fpn0",
                "image_feature",
                (len(CAMERAS), own.image_channels, height, width),
                depends_on_images=True,
            ),
            "image.depth": TapInfo(
                "image.depth",
                "image_feature",
                (len(CAMERAS), own.depth_bins, height, width),
                nonnegative=True,
                depends_on_images=True,
                bins=own.bin_depths,
            ),
        }
        maps = [("bev.lift", own.context_channels, own.grid)]
        maps += [
            (f"bev.block{stage}", channels, own.grid.coarsen(2 ** (stage + 1)))
            for stage, channels in enumerate(own.bev_channels)
        ]
        maps.append(("bev.neck", own.neck_channels, own.grid))
        signed = {"bev.lift", "bev.neck"} if own.as_released else {"bev.lift"}
        for name, channels, grid in maps:
            taps[name] = TapInfo(
                name,
                "dense_bev",
                (channels, *grid.shape_YX),
                grid=grid,
                nonnegative=name not in signed,
                depends_on_images=True,
            )
        return taps | CenterHead.describe_taps(own.grid, depends_on_images=True)

    @classmethod
    def identity(cls, config: BaseConfig) -> dict[str, Any]:
        """Return the configuration; the layout only where it is the release's."""
        said = super().identity(config)
        return {k: v for k, v in said.items() if (k, v) != ("layout", "own")}

    def adopt(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return adopt_published(tensors, self)

    def published(self) -> dict[str, Tensor]:
        return published_tensors(self)

    def forward(self, batch: Batch) -> Output:
        own = self._lift(batch, batch.bev_aug_B44)
        fused = own.map_BCYX
        if self.config.num_frames > 1:
            assert batch.history, "the loader gave no earlier frame"
            with torch.no_grad():
                earlier = self.frame(self._lift(batch.history[-1], batch.bev_aug_B44).map_BCYX)
            fused = torch.cat([self.frame(own.map_BCYX), earlier], dim=1)
        blocks = self.bev_backbone(fused)
        neck = self.neck(blocks)
        preds = self.head(neck)
        taps = {"image.fpn0": own.image_BVCHW, "image.depth": own.depth_BVDHW}
        taps |= {"bev.lift": own.map_BCYX}
        taps |= {f"bev.block{stage}": block for stage, block in enumerate(blocks)}
        taps |= {"bev.neck": neck, **self.head.taps(preds)}
        return Output(taps, {**preds, "depth": own.logits_BVDHW})

    def _lift(self, batch: Batch, told_B44: Tensor) -> _Lift:
        """Bring one frame's images to the BEV.

        Args:
            batch: images and cameras; its `bev_aug` says where the map lies.
            told_B44: the BEV augmentation the depth net hears of; an earlier frame's own matrix
                holds ego motion too.
        """
        config = self.config
        cameras, pixels = cameras_of(batch), batch.normalised()
        if config.as_released:  # it swaps red and blue first, and its resize moves no pixel centre
            pixels = batch.normalised(MEAN_RGB[::-1], STD_RGB[::-1])
            aug_BV33 = network_image_aug(batch, half_pixel=False).to(cameras.image_aug_BV33.dtype)
            cameras = replace(cameras, image_aug_BV33=aug_BV33)
        image_BVCHW = encode_images(self.backbone, self.pyramid, config.levels, pixels)
        numbers = camera_numbers(replace(cameras, bev_aug_B44=told_B44))
        logits_BVDHW, context_BVCHW = self.depth_net(image_BVCHW, numbers)
        cells = frustum_cells(
            cameras,
            (image_BVCHW.shape[-2], image_BVCHW.shape[-1]),
            config.stride,
            config.bin_depths,
            config.grid,
            config.z_range,
            config.as_released,
        )
        depth_BVDHW = logits_BVDHW.float().softmax(dim=2)
        lift = splat(depth_BVDHW, context_BVCHW, cells, config.grid)
        return _Lift(image_BVCHW, logits_BVDHW, depth_BVDHW, lift)

    def loss(self, output: Output, batch: Batch) -> dict[str, Tensor]:
        assert batch.labels is not None, "the loader gave no labels"
        losses = self.head.loss(output.preds, batch.labels)
        if self.config.depth == "plain":
            return losses
        depth_BVHW = lidar_depths(batch, self.config)
        depth = depth_loss(
            output.preds["depth"], depth_BVHW, self.config.depth_range[0], self.config.bin_size
        )
        return {**losses, "depth": self.config.depth_weight * depth}

    def decode(self, output: Output) -> list[Detections]:
        return self.head.decode(output.preds)


def _depth_net(config: BEVDepthConfig) -> nn.Module:
    if config.depth == "plain":
        return PlainDepthNet(config.image_channels, config.context_channels, config.depth_bins)
    return DepthNet(
        config.image_channels,
        config.depth_channels,
        config.context_channels,
        config.depth_bins,
        config.depth_blocks,
        config.depth_dilations,
    )
