"""StreamPETR (Wang et al., ICCV 2023) and RayDN (Liu et al., ECCV 2024), to be run, not trained.

They compute what the released detectors compute with the published weights. Losses, denoising and
the 2D head of training are not here.
"""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Self, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from bevcask.config import Config as BaseConfig
from bevcask.detectors.base import Batch, Detections, Detector, Inputs, Memory, Output
from bevcask.detectors.bevformer import BackboneConfig
from bevcask.detectors.blocks.dense_view import DenseRead, DenseView, depth_bins
from bevcask.detectors.blocks.fpn import MultiLevelPyramid
from bevcask.detectors.blocks.levels import STRIDES
from bevcask.detectors.blocks.petr_head import Decoded, PetrHead, PetrSizes
from bevcask.detectors.blocks.point_view import PointRead, PointView
from bevcask.detectors.blocks.query_memory import Frame
from bevcask.detectors.blocks.resnet import ResNet
from bevcask.detectors.blocks.set_loss import best_pairs
from bevcask.detectors.camera import scaled_coordinates
from bevcask.detectors.streampetr_names import adopt_published
from bevcask.errors import ConfigError
from bevcask.geometry import CAMERAS, CLASSES
from bevcask.targets.query_code import decode_centre_boxes
from bevcask.targets.spec import TapInfo

Corners = tuple[float, float, float, float, float, float]

# Published: CAM_FRONT, FRONT_RIGHT, FRONT_LEFT, BACK, BACK_LEFT, BACK_RIGHT; where each of them is
# among `geometry.CAMERAS`.
_THEIR_CAMERAS = (1, 2, 0, 4, 3, 5)


class PetrConfig(BaseConfig):
    """What both detectors say; defaults: the published ResNet-50 with 428 queries."""

    image_size_HW: tuple[int, int] = Field((256, 704), description="network input, pixels")
    backbone: BackboneConfig
    num_levels: int = Field(ge=1, description="maps of the pyramid, image.level0 and on")
    channels: int = Field(256, ge=4, multiple_of=4)
    heads: int = Field(8, ge=1)
    feed_forward: int = Field(ge=1)
    dropout: float = Field(0.1, ge=0, lt=1)
    layers: int = Field(6, ge=1)
    queries: int = Field(300, ge=1, description="learned ones")
    propagated: int = Field(128, ge=1, description="remembered ones that are decoded")
    memory: int = Field(512, ge=1, description="remembered ones that are read")
    kept: int = Field(128, ge=1, description="how many a frame adds to the memory")
    centres: Corners = Field(
        (-51.2, -51.2, -5.0, 51.2, 51.2, 3.0), description="two corners, metres"
    )
    code_weights: tuple[float, ...] = Field(
        (2.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0), min_length=10, max_length=10
    )
    max_boxes: int = Field(300, ge=1, le=500)
    centre_range: tuple[float, float, float] = Field(
        (61.2, 61.2, 10.0), description="metres; boxes with a centre beyond are not said"
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        stride = STRIDES[self.backbone.levels[0]]
        if any(side % stride for side in self.image_size_HW):
            raise ValueError(f"image_size_HW {self.image_size_HW} must divide by {stride}")
        if self.channels % self.heads:
            raise ValueError(f"channels {self.channels} must divide by heads {self.heads}")
        if self.propagated > self.memory:
            raise ValueError(f"propagated {self.propagated} of a memory of {self.memory}")
        if self.kept > self.queries + self.propagated:
            raise ValueError(f"kept {self.kept} of {self.queries + self.propagated} queries")
        if self.max_boxes > (self.queries + self.propagated) * len(CLASSES):
            raise ValueError(f"max_boxes {self.max_boxes} are more than there are")
        return self

    @property
    def low(self) -> tuple[float, float, float]:
        """Lower corner of the range of centres."""
        return self.centres[:3]

    @property
    def high(self) -> tuple[float, float, float]:
        """Upper corner of the range of centres."""
        return self.centres[3:]

    @property
    def level_sizes(self) -> list[tuple[int, int]]:
        """Rows and columns of the pyramid's maps."""
        first, *_ = self.backbone.levels
        height, width = (-(-side // STRIDES[first]) for side in self.image_size_HW)
        sizes = [(height, width)]
        while len(sizes) < self.num_levels:
            height, width = sizes[-1]
            sizes.append(((height + 1) // 2, (width + 1) // 2))
        return sizes

    def sizes(self, feed_forward_dropout: float) -> PetrSizes:
        """Return what the head is told."""
        return PetrSizes(
            self.channels,
            self.heads,
            self.feed_forward,
            self.dropout,
            feed_forward_dropout,
            self.layers,
            self.queries,
            self.propagated,
            self.memory,
            self.kept,
            len(CLASSES),
            self.low,
            self.high,
        )


_R50 = {"blocks": (3, 4, 6, 3), "stride_first": False, "deformable": (), "frozen_stages": -1}


class StreamPETRConfig(PetrConfig):
    """Architecture; defaults: stream_petr_r50_flash_704_bs2_seq_428q_nui."""

    backbone: BackboneConfig = BackboneConfig.model_validate({**_R50, "levels": ("c4", "c5")})
    num_levels: int = Field(1, ge=1, le=1, description="one map: image.level0")
    feed_forward: int = Field(2048, ge=1)
    depth_bins: int = Field(64, ge=31, description="points on the ray of a pixel")
    depth_start: float = Field(1.0, gt=0, description="metres")
    position_range: Corners = Field(
        (-61.2, -61.2, -10.0, 61.2, 61.2, 10.0),
        description="two corners of the box that points on rays are measured in, metres",
    )

    @property
    def bins(self) -> Tensor:
        """Depths of points on a ray."""
        return depth_bins(self.depth_bins, self.depth_start, self.position_range[3])


class RayDNConfig(PetrConfig):
    """Architecture; defaults: raydn_r50_428q."""

    backbone: BackboneConfig = BackboneConfig.model_validate({**_R50, "levels": ("c3", "c4", "c5")})
    num_levels: int = Field(4, ge=1, description="maps of the pyramid, image.level0 and on")
    feed_forward: int = Field(1024, ge=1, description="published configs say 2048: not heard")
    points: int = Field(13, ge=1, description="places a query reads")
    groups: int = Field(8, ge=1, description="of channels, with weights of their own")

    @model_validator(mode="after")
    def _groups_divide(self) -> Self:
        if self.channels % self.groups:
            raise ValueError(f"channels {self.channels} must divide by groups {self.groups}")
        return self


class _Petr(Detector):
    """ResNet, pyramid and a head with a memory of queries.

    Taps: `image.level0` and on (outputs of the pyramid), `query.last` (states after the last layer,
    learned ones first), `head.boxes`. Remembered queries are ordered by their score in the frame
    before: row i of them is not the same object in two frames.

    Attributes:
        backbone: the image backbone that ImageNet weights fill (`blocks.backbone.load_imagenet`).
    """

    def __init__(self, config: PetrConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = ResNet(config.backbone.shape)
        channels = [self.backbone.channels[level] for level in config.backbone.levels]
        self.pyramid = MultiLevelPyramid(channels, config.channels, config.num_levels)
        self.head = self._head()
        norms = [own for own in self.backbone.modules() if isinstance(own, nn.BatchNorm2d)]
        self._norms = [] if config.backbone.train_norms else norms
        for norm in self._norms:
            norm.requires_grad_(False)

    @abstractmethod
    def _head(self) -> PetrHead:
        """Return the head that the config describes."""

    @abstractmethod
    def constants(self) -> dict[str, Tensor]:
        """Return what published files carry of the config, by their name."""

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for norm in self._norms:
            norm.eval()
        return self

    @classmethod
    def inputs(cls, config: BaseConfig) -> Inputs:
        return Inputs(cast(PetrConfig, config).image_size_HW, memory=True)

    @classmethod
    def describe_taps(cls, config: BaseConfig) -> Mapping[str, TapInfo]:
        own = cast(PetrConfig, config)
        shapes = [(len(CAMERAS), own.channels, *size) for size in own.level_sizes]
        taps = [
            TapInfo(f"image.level{level}", "image_feature", shape, depends_on_images=True)
            for level, shape in enumerate(shapes)
        ]
        states, boxes = (own.queries + own.propagated, own.channels), (own.max_boxes, 11)
        taps += [
            TapInfo("query.last", "query_set", states, depends_on_images=True),
            TapInfo("head.boxes", "box_set", boxes, classes=CLASSES, depends_on_images=True),
        ]
        return {tap.name: tap for tap in taps}

    def adopt(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return adopt_published(tensors, self.state_dict(), self.constants())

    def forward(self, batch: Batch) -> Output:
        maps = self._see(batch)
        theirs = list(_THEIR_CAMERAS)
        said = self.look(
            [own[:, theirs] for own in maps], self._frame(batch), batch.memory, batch.known_B
        )
        taps = {f"image.level{level}": own for level, own in enumerate(maps)}
        taps["query.last"] = said.states_LBQC[-1]
        preds = {"logits": said.logits_LBQK, "codes": said.codes_LBQE}
        return Output(taps, preds, said.memory)

    def look(
        self,
        maps_BVCHW: list[Tensor],
        frame: Frame,
        memory: Memory | None,
        known_B: Tensor | None,
    ) -> Decoded:
        """Return what the head says, in float32; cameras in the published order."""
        with torch.autocast(maps_BVCHW[0].device.type, enabled=False):
            said = self.head([own.float() for own in maps_BVCHW], frame, memory, known_B)
        return cast(Decoded, said)

    def _see(self, batch: Batch) -> list[Tensor]:
        """Return the pyramid's maps, (B, V, C, H, W), finest first."""
        assert batch.images_BVCHW is not None, "the loader gave no images"
        maps = self.backbone(batch.images_BVCHW.flatten(0, 1))
        pyramid = self.pyramid([maps[level] for level in self.config.backbone.levels])
        return [own.unflatten(0, batch.images_BVCHW.shape[:2]) for own in pyramid]

    def _frame(self, batch: Batch) -> Frame:
        """Return where cameras and ego are: products in float64, then rounded, as published."""
        assert batch.intrinsics_BV33 is not None, "the loader gave no intrinsics"
        assert batch.image_aug_BV33 is not None, "the loader gave no image augmentation"
        assert batch.camera_to_lidar_BV44 is not None, "the loader gave no camera poses"
        assert batch.lidar_to_global_B44 is not None, "the loader gave no ego poses"
        assert batch.seconds_B is not None, "the loader gave no times"
        theirs, device = list(_THEIR_CAMERAS), batch.bev_aug_B44.device
        image_aug = scaled_coordinates(batch.image_aug_BV33)
        intrinsics = torch.eye(4, dtype=torch.float64, device=device)
        intrinsics = intrinsics.expand(*image_aug.shape[:2], 4, 4).clone()
        intrinsics[..., :3, :3] = image_aug @ batch.intrinsics_BV33.double()
        extrinsics: Tensor = torch.linalg.inv(batch.camera_to_lidar_BV44.double())
        augment = batch.bev_aug_B44.double()
        if bool((torch.linalg.det(augment[:, :2, :2]) < 0).any()):
            raise ConfigError(
                "streampetr and raydn are defined without mirrored BEVs. Leave augment.bev_flip_x "
                "and augment.bev_flip_y at their defaults."
            )
        back = torch.linalg.inv(augment)
        to_global = batch.lidar_to_global_B44.double().to(device)
        return Frame(
            (intrinsics @ extrinsics @ back[:, None]).float()[:, theirs],
            intrinsics.float()[:, theirs],
            extrinsics.float()[:, theirs],
            (to_global @ back).float(),
            (augment @ torch.linalg.inv(to_global)).float(),
            batch.seconds_B.to(device),
        )

    def loss(self, output: Output, batch: Batch) -> dict[str, Tensor]:
        raise NotImplementedError(f"{type(self).__name__} is not trained here yet")

    def decode(self, output: Output) -> list[Detections]:
        """Return the best pairs of query and class as boxes; nothing is suppressed."""
        logits, codes = output.preds["logits"][-1], output.preds["codes"][-1]
        own = self.config
        return best_pairs(logits, codes, own.max_boxes, own.centre_range, decode_centre_boxes)


def _common_constants(config: PetrConfig) -> dict[str, Tensor]:
    weights = torch.tensor(config.code_weights)
    centres = torch.tensor(config.centres)
    return {"code_weights": weights, "match_costs": weights, "pc_range": centres}


class StreamPETR(_Petr):
    """Queries attend to every pixel of one map, each with a code of its ray."""

    Config = StreamPETRConfig
    config: StreamPETRConfig

    def _head(self) -> PetrHead:
        own = self.config
        stride = STRIDES[own.backbone.levels[0]]
        low, high = own.position_range[:3], own.position_range[3:]
        view = DenseView(own.channels, stride, own.bins, low, high)

        def read() -> DenseRead:
            return DenseRead(own.channels, own.heads, own.dropout)

        return PetrHead(own.sizes(own.dropout), view, read, post_norm=True)

    def constants(self) -> dict[str, Tensor]:
        places = torch.tensor(self.config.position_range)
        return {
            **_common_constants(self.config),
            "position_range": places,
            "coords_d": self.config.bins,
        }


class RayDN(_Petr):
    """Queries read several maps at a few points of their own."""

    Config = RayDNConfig
    config: RayDNConfig

    def _head(self) -> PetrHead:
        own = self.config

        def read() -> PointRead:
            return PointRead(
                own.channels,
                own.num_levels,
                own.points,
                own.groups,
                own.image_size_HW,
                own.dropout,
            )

        view = PointView(own.channels)
        return PetrHead(own.sizes(0.0), view, read, post_norm=False)

    def constants(self) -> dict[str, Tensor]:
        return _common_constants(self.config)
