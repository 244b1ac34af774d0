"""BEVFormer (Li et al., ECCV 2022): six cameras and a memory to boxes, in plain torch.

It computes what the released detectors compute with the published weights: base, small and tiny,
the student of FocalDistiller, and that of DistillBEV's Transformer line. One difference: which
cells a camera sees is decided sample by sample, where the release takes the first sample's.
"""

from collections.abc import Mapping
from typing import Literal, Self, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from bevcask.config import Config as BaseConfig
from bevcask.config import Inherit
from bevcask.detectors.base import Batch, Detections, Detector, Inputs, Output
from bevcask.detectors.bevformer_names import (
    adopt_published,
    published_start,
    published_tensors,
)
from bevcask.detectors.blocks.bevformer_encoder import BEVFormerEncoder, EncoderConfig
from bevcask.detectors.blocks.fpn import MultiLevelPyramid
from bevcask.detectors.blocks.frozen import BackboneConfig, freeze, hold_norms
from bevcask.detectors.blocks.levels import LEVELS, STRIDES
from bevcask.detectors.blocks.query_decoder import QueryDecoder, query_taps
from bevcask.detectors.blocks.resnet import ResNet
from bevcask.detectors.blocks.set_loss import SetLossConfig, decode_queries, set_losses, wanted
from bevcask.detectors.camera import network_intrinsics
from bevcask.errors import ConfigError
from bevcask.geometry import CAMERAS, CLASSES, Grid
from bevcask.measures import Count
from bevcask.targets.spec import TapInfo

_OF_THE_BEV = ("encoder.bev_queries", "encoder.row_positions", "encoder.column_positions")
_SURVIVING = ("0", "1", "3", "4", "6.weight")  # of a classifier, whose last bias is filled anew


class BEVFormerConfig(BaseConfig):
    """Architecture and losses; defaults: BEVFormer-Base."""

    image_size_HW: tuple[Count, Count] = Field((900, 1600), description="network input, pixels")
    pad_divisor: int = Field(
        32, ge=1, description="images are padded at the right and bottom to multiples of it"
    )
    enlarge: int = Field(
        1,
        ge=1,
        description="padded images are enlarged so many times: FocalDistiller's teacher sees the "
        "pixels of its student doubled",
    )
    pixels: Literal["bgr_caffe", "rgb_imagenet"] = Field(
        "bgr_caffe", description="what the backbone was trained on: mean taken, or deviation too"
    )
    half_pixel: bool = Field(
        False, description="whether a resize maps pixel centres; the release scales coordinates"
    )
    backbone: BackboneConfig = BackboneConfig()
    num_levels: int = Field(4, ge=1, description="maps of the pyramid, image.level0 and on")
    channels: int = Field(256, ge=2, multiple_of=2)
    heads: int = Field(8, ge=1)
    feed_forward: int = Field(512, ge=1)
    dropout: float = Field(0.1, ge=0, lt=1)
    half_extent: float = Field(51.2, gt=0, description="metres along x")
    bev_size_YX: tuple[Count, Count] = Field((200, 200), description="cells; they are square")
    encoder: EncoderConfig = EncoderConfig()
    decoder_layers: int = Field(6, ge=1)
    decoder_points: int = Field(4, ge=1, description="places a head reads in the BEV")
    queries: int = Field(900, ge=1)
    history: int = Field(3, ge=0, description="keyframes before, shown without gradient (window)")
    loss: SetLossConfig = SetLossConfig()

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.encoder.spatial_points % self.encoder.heights:
            raise ValueError(
                f"encoder.spatial_points {self.encoder.spatial_points} must divide by heights "
                f"{self.encoder.heights}: points take turns at the heights of a pillar"
            )
        if self.num_levels > self.encoder.level_embeddings:
            raise ValueError(
                f"num_levels {self.num_levels} needs as many encoder.level_embeddings, which is "
                f"{self.encoder.level_embeddings}"
            )
        if self.channels % self.heads:
            raise ValueError(f"channels {self.channels} must divide by heads {self.heads}")
        if self.num_levels < len(self.backbone.levels):
            raise ValueError(
                f"num_levels {self.num_levels}: the backbone gives {len(self.backbone.levels)}"
            )
        return self

    @property
    def grid(self) -> Grid:
        """The BEV cells."""
        rows, columns = self.bev_size_YX
        cell = 2 * self.half_extent / columns
        return Grid(-self.half_extent, -cell * rows / 2, cell, columns, rows)

    @property
    def padded_HW(self) -> tuple[int, int]:
        """Size of the images as the backbone sees them."""
        height, width = (-(-s // self.pad_divisor) * self.pad_divisor for s in self.image_size_HW)
        return height * self.enlarge, width * self.enlarge

    @property
    def level_sizes(self) -> list[tuple[int, int]]:
        """Rows and columns of the pyramid's maps."""
        sizes = []
        for level in LEVELS:
            if level in self.backbone.levels:
                height, width = (-(-side // STRIDES[level]) for side in self.padded_HW)
                sizes.append((height, width))
        while len(sizes) < self.num_levels:
            height, width = sizes[-1]
            sizes.append(((height + 1) // 2, (width + 1) // 2))
        return sizes


class BEVFormer(Detector):
    """ResNet and pyramid, encoder with temporal and spatial attention, query decoder.

    Its memory is the BEV of the frame and where the ego was. BEV augmentation is refused: the
    memory is moved by the ego's poses alone, as published.

    Taps: `image.level0` and on (outputs of the pyramid), `bev.encoder`, those of
    `blocks.query_decoder.query_taps`, `head.boxes`.

    Attributes:
        backbone: the image backbone that ImageNet weights fill (`blocks.backbone.load_imagenet`).
    """

    Config = BEVFormerConfig
    code_weights: Tensor

    def __init__(self, config: BEVFormerConfig) -> None:
        super().__init__()
        self.config = config
        grid, (low_z, high_z) = config.grid, config.encoder.z_range
        self.backbone = ResNet(config.backbone.shape)
        self.pyramid = MultiLevelPyramid(
            [self.backbone.channels[level] for level in config.backbone.levels],
            config.channels,
            config.num_levels,
        )
        self.encoder = BEVFormerEncoder(
            config.encoder,
            config.channels,
            config.heads,
            config.num_levels,
            config.feed_forward,
            config.dropout,
            grid,
        )
        self.decoder = QueryDecoder(
            config.decoder_layers,
            config.queries,
            config.channels,
            config.heads,
            config.decoder_points,
            config.feed_forward,
            config.dropout,
            len(CLASSES),
            (grid.x_min, grid.y_min, low_z),
            (grid.x_max, grid.y_max, high_z),
        )
        self.register_buffer("code_weights", torch.tensor(config.loss.code_weights))
        freeze(self.backbone, self.config.backbone)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        hold_norms(self.backbone, self.config.backbone)
        return self

    @classmethod
    def inputs(cls, config: BaseConfig) -> Inputs:
        own = cast(BEVFormerConfig, config)
        return Inputs(own.image_size_HW, own.history, memory=True, can_bus=True)

    @classmethod
    def describe_taps(cls, config: BaseConfig) -> Mapping[str, TapInfo]:
        own = cast(BEVFormerConfig, config)
        taps = [
            TapInfo(
                f"image.level{level}",
                "image_feature",
                (len(CAMERAS), own.channels, *size),
                depends_on_images=True,
            )
            for level, size in enumerate(own.level_sizes)
        ]
        taps += [
            TapInfo(
                "bev.encoder",
                "dense_bev",
                (own.channels, *own.bev_size_YX),
                grid=own.grid,
                depends_on_images=True,
            ),
            *query_taps(
                own.decoder_layers,
                own.queries,
                own.channels,
                own.heads,
                own.decoder_points,
                len(CLASSES),
            ),
            TapInfo(
                "head.boxes",
                "box_set",
                (own.loss.max_boxes, 11),
                classes=CLASSES,
                depends_on_images=True,
            ),
        ]
        return {tap.name: tap for tap in taps}

    @classmethod
    def donors(cls) -> Mapping[str, Mapping[str, str]]:
        return {"bevdepth": {"backbone": "backbone"}}

    def starts(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        return published_start(tensors, self.state_dict())

    def head_weights(self) -> dict[str, Tensor]:
        """Return the encoder without what has the size of the BEV, and the decoder."""
        return {
            name: own
            for name, own in self.state_dict().items()
            if name.startswith(("encoder.", "decoder.")) and name not in _OF_THE_BEV
        }

    def inherits(self, what: Inherit) -> tuple[str, ...]:
        """Return as in FocalDistiller: the head, or what its initialisation did not fill anew."""
        if what == "none":
            return ()
        layers = range(self.config.decoder_layers)
        if what == "surviving_subset":
            kept = [f"decoder.classify.{n}.{part}" for n in layers for part in _SURVIVING]
            return ("decoder.queries", "decoder.regress", *kept)
        encoder = [f"encoder.layers.{n}" for n in range(self.config.encoder.layers)]
        embeddings = ("encoder.camera_embeddings", "encoder.level_embeddings")
        return ("decoder", "encoder.can_bus", *embeddings, *encoder)

    def adopt(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return adopt_published(tensors, self.state_dict())

    def published(self) -> dict[str, Tensor]:
        return published_tensors(self.state_dict())

    def forward(self, batch: Batch) -> Output:
        _refuse_bev_augmentation(batch)
        assert batch.can_bus_B18 is not None, "the loader gave no CAN bus"
        maps = self._see(batch)
        can_bus_B18 = batch.can_bus_B18.double()
        memory = batch.memory or {}
        bev_BQC = self.encoder(
            maps,
            self._lidar_to_image(batch),
            self.config.padded_HW,
            since(can_bus_B18, memory.get("can_bus"), batch.known_B),
            memory.get("bev"),
            batch.known_B,
        )
        bev_BCYX = bev_BQC.transpose(1, 2).unflatten(2, self.config.bev_size_YX)
        said = self.decoder(bev_BCYX)
        taps = {f"image.level{level}": own for level, own in enumerate(maps)}
        taps |= {"bev.encoder": bev_BCYX, **self.decoder.taps(said)}
        preds = {"logits": said.logits_LBQK, "codes": said.codes_LBQE}
        return Output(taps, preds, {"bev": bev_BQC, "can_bus": can_bus_B18})

    def _see(self, batch: Batch) -> list[Tensor]:
        """Return the pyramid's maps, (B, V, C, H, W), finest first."""
        if self.config.pixels == "bgr_caffe":
            images_BVCHW = batch.normalised(std=(1.0, 1.0, 1.0)).flip(2)
        else:
            images_BVCHW = batch.normalised()
        images_NCHW = images_BVCHW.flatten(0, 1)
        height, width = (
            padded // self.config.enlarge - own
            for padded, own in zip(self.config.padded_HW, images_NCHW.shape[-2:], strict=True)
        )
        images_NCHW = nn.functional.pad(images_NCHW, (0, width, 0, height))  # the mean colour
        if self.config.enlarge > 1:
            images_NCHW = nn.functional.interpolate(
                images_NCHW, self.config.padded_HW, mode="bilinear", align_corners=False
            )
        maps = self.backbone(images_NCHW)
        pyramid = self.pyramid([maps[level] for level in self.config.backbone.levels])
        return [own.unflatten(0, images_BVCHW.shape[:2]) for own in pyramid]

    def _lidar_to_image(self, batch: Batch) -> Tensor:
        """Return canonical LIDAR_TOP -> network pixels and depth, float32 (B, V, 4, 4)."""
        assert batch.camera_to_lidar_BV44 is not None, "the loader gave no camera poses"
        to_image = network_intrinsics(batch, self.config.half_pixel)
        to_image[..., :2, :] *= self.config.enlarge
        to_camera: Tensor = torch.linalg.inv_ex(batch.camera_to_lidar_BV44.double()).inverse
        return (to_image @ to_camera).float()

    def loss(self, output: Output, batch: Batch) -> dict[str, Tensor]:
        """Return `class` and `box` of the last layer, `layer0/class` and on of the others."""
        assert batch.labels is not None, "the loader gave no labels"
        low, high = self.decoder.low_3[:2], self.decoder.high_3[:2]
        truth = wanted(batch.labels.boxes, batch.labels.classes, low, high)
        losses = {}
        layers = list(zip(output.preds["logits"], output.preds["codes"], strict=True))
        for number, (logits_BQK, codes_BQE) in enumerate(layers):
            place = "" if number == len(layers) - 1 else f"layer{number}/"
            losses[f"{place}class"], losses[f"{place}box"] = set_losses(
                logits_BQK, codes_BQE, truth, self.config.loss, self.code_weights
            )
        return losses

    def decode(self, output: Output) -> list[Detections]:
        """Return the best pairs of query and class as boxes; nothing is suppressed."""
        preds = output.preds
        return decode_queries(preds["logits"][-1], preds["codes"][-1], self.config.loss)


def since(now_B18: Tensor, before_B18: Tensor | None, known_B: Tensor | None) -> Tensor:
    """Return the CAN bus as the network reads it: place and heading since the frame before.

    Both are 0 where nothing is known of it; a turn over north gives about 360 degrees, as released.

    Args:
        now_B18: float64, see `Batch.can_bus_B18`.
        before_B18: the same of the frames before.
        known_B: bool; None where all of them are known.
    """
    gone = [0, 1, 2, 17]
    read_B18 = now_B18.clone()
    if before_B18 is None:
        read_B18[:, gone] = 0
        return read_B18
    read_B18[:, gone] -= before_B18[:, gone]
    if known_B is not None:
        read_B18[:, gone] *= known_B[:, None]
    return read_B18


def _refuse_bev_augmentation(batch: Batch) -> None:
    still = torch.eye(4, device=batch.bev_aug_B44.device, dtype=batch.bev_aug_B44.dtype)
    if not bool(torch.isclose(batch.bev_aug_B44, still, atol=1e-6).all()):
        raise ConfigError(
            "bevformer is defined without BEV augmentation: its memory is moved by the ego's poses "
            "alone. Leave augment.bev_rotation, bev_scale, bev_flip_x and bev_flip_y at their "
            "defaults."
        )
