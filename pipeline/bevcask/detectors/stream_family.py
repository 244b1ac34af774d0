"""What StreamPETR and RayDN share: queries that travel with a memory from frame to frame."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple, Self, cast

import numpy as np
import torch
from torch import Tensor, nn

from bevcask.config import Config as BaseConfig
from bevcask.config import Inherit
from bevcask.detectors.base import Batch, Detections, Detector, Inputs, Output
from bevcask.detectors.blocks.frozen import freeze, hold_norms
from bevcask.detectors.blocks.memory_queue import Poses, recalled, remembered
from bevcask.detectors.blocks.query_denoising import Noisy, disturb, draw, nothing_noisy
from bevcask.detectors.blocks.ray_positions import Cameras
from bevcask.detectors.blocks.resnet import ResNet
from bevcask.detectors.blocks.set_loss import Wanted, decode_queries, set_losses
from bevcask.detectors.blocks.stream_decoder import Said, StreamDecoder
from bevcask.detectors.blocks.stream_losses import denoising_losses
from bevcask.detectors.blocks.stream_queries import StreamQueries
from bevcask.detectors.camera import network_image_aug, network_intrinsics
from bevcask.detectors.stream_config import StreamConfig
from bevcask.detectors.stream_names import adopt_published, published_start, published_tensors
from bevcask.errors import ConfigError
from bevcask.geometry import CAMERAS, CLASSES
from bevcask.targets.image_boxes import ImageBoxes, image_boxes
from bevcask.targets.metric_code import decode_metric_boxes, encode_metric_boxes
from bevcask.targets.spec import TapInfo
from bevcask.targets.target import full_precision


class Seen(NamedTuple):
    """The images of a frame.

    Attributes:
        levels: outputs of the pyramid, (B, V, C, H, W), finest first.
        modulated: what the queries read of them, the same sizes.
        read: as the readers of the decoder take it.
        said: of the head in the images, in training alone.
    """

    levels: Sequence[Tensor]
    modulated: Sequence[Tensor]
    read: object
    said: Mapping[str, Tensor]


class StreamDetector(Detector):
    """ResNet and pyramid, queries of learned places and of a memory queue, decoder.

    Its memory is the queue: states, places, poses, times and velocities of the most certain queries
    of earlier frames, in the global frame; BEV augmentation is part of the poses.

    Taps: `image.level0` and on (outputs of the pyramid), `image.modulated0` and on (what queries
    read), `query.states` (all layers) and `query.last`, `query.scores`, `query.references`, with
    `raydn` also `query.offsets`, `head.boxes`.

    Attributes:
        backbone: the image backbone that ImageNet weights fill (`blocks.backbone.load_imagenet`).
    """

    denoises = True
    config: StreamConfig
    pyramid: nn.Module
    image_head: nn.Module
    decoder: StreamDecoder
    code_weights: Tensor

    def __init__(self, config: StreamConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = ResNet(config.backbone.shape)
        self.queries = StreamQueries(
            config.channels, config.queries, config.propagated, config.low, config.high
        )
        weights = torch.tensor(config.loss.code_weights)
        self.register_buffer("code_weights", weights, persistent=False)
        freeze(self.backbone, config.backbone)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        hold_norms(self.backbone, self.config.backbone)
        return self

    @classmethod
    @abstractmethod
    def num_levels(cls, config: StreamConfig) -> int:
        """Return how many maps the pyramid gives."""

    @classmethod
    @abstractmethod
    def num_points(cls, config: StreamConfig) -> int:
        """Return how many points a query looks at; 0 where it looks everywhere."""

    @abstractmethod
    def see(self, maps: Sequence[Tensor], cameras: Cameras) -> Seen:
        """Return what the decoder reads.

        Args:
            maps: outputs of the pyramid, (B, V, C, H, W), finest first.
            cameras: of the frame.
        """

    @abstractmethod
    def image_losses(
        self, said: Mapping[str, Tensor], truth: Sequence[Sequence[ImageBoxes]]
    ) -> dict[str, Tensor]:
        """Return the losses of the head in the images.

        Args:
            said: by the head.
            truth: boxes of each sample in each camera.
        """

    @classmethod
    def inputs(cls, config: BaseConfig) -> Inputs:
        own = cast(StreamConfig, config)
        return Inputs(own.image_size_HW, own.history, memory=True, trained=own.trained)

    @classmethod
    def describe_taps(cls, config: BaseConfig) -> Mapping[str, TapInfo]:
        own = cast(StreamConfig, config)
        rows, points = own.layers * own.rows, cls.num_points(own)
        taps = [
            TapInfo(f"image.{what}{level}", "image_feature", (len(CAMERAS), own.channels, *size))
            for what in ("level", "modulated")
            for level, size in enumerate(own.level_sizes(cls.num_levels(own)))
        ]
        taps += [
            TapInfo("query.states", "query_set", (rows, own.channels)),
            TapInfo("query.last", "query_set", (own.rows, own.channels)),
            TapInfo("query.scores", "query_set", (rows, len(CLASSES)), nonnegative=True),
            TapInfo("query.references", "query_points", (own.rows, 3)),
            TapInfo("head.boxes", "box_set", (own.loss.max_boxes, 11), classes=CLASSES),
        ]
        if points:
            taps.append(TapInfo("query.offsets", "query_points", (rows, 3 * points)))
        return {tap.name: replace(tap, depends_on_images=True) for tap in taps}

    @classmethod
    def donors(cls) -> Mapping[str, Mapping[str, str]]:
        return {"bevdepth": {"backbone": "backbone"}}

    def starts(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        return published_start(tensors, self)

    def constants(self) -> dict[str, Tensor]:
        """Return what published files hold beside weights and the configuration decides."""
        head, config = "pts_bbox_head.", self.config
        weights = torch.tensor(config.loss.code_weights)
        return {
            f"{head}code_weights": weights,
            f"{head}match_costs": weights,
            f"{head}pc_range": torch.tensor([*config.low, *config.high]),
        }

    def adopt(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return adopt_published(tensors, self)

    def published(self) -> dict[str, Tensor]:
        return published_tensors(self)

    def head_weights(self) -> dict[str, Tensor]:
        """Return queries, modulations and decoder: all behind the pyramid but the image head."""
        state = self.state_dict()
        mine = ("backbone.", "pyramid.", "image_head.")
        return {name: own for name, own in state.items() if not name.startswith(mine)}

    def inherits(self, what: Inherit) -> tuple[str, ...]:
        if what != "full_head":
            return super().inherits(what)
        return tuple(sorted({name.partition(".")[0] for name in self.head_weights()}))

    def forward(self, batch: Batch) -> Output:
        """Run the network; under autocast backbone and pyramid alone are in half precision.

        What is behind them reckons with places and times, and with as many digits as the releases.
        """
        maps = self._maps(batch)
        with torch.autocast(batch.bev_aug_B44.device.type, enabled=False):
            return self._find(batch, [full_precision(own) for own in maps])

    def _find(self, batch: Batch, maps: Sequence[Tensor]) -> Output:
        cameras, poses = self._cameras(batch), self._poses(batch)
        seen = self.see(maps, cameras)
        config, samples = self.config, len(batch.tokens)
        rows = recalled(
            batch.memory,
            self._known(batch),
            poses,
            self.queries.metres(self.queries.starts_P3),
            config.memory,
            config.channels,
        )
        noisy = self._noisy(batch, cameras)
        asked = self.queries(rows, noisy.references_BN3)
        said = self.decoder(
            asked, self.queries.low_3, self.queries.high_3, seen.read, noisy.blocked_QM
        )
        count = noisy.references_BN3.shape[1]
        own = Said(*(part[:, :, count:] for part in said))
        memory = remembered(
            rows, poses, own.states_LBQC[-1], own.logits_LBQK[-1], own.codes_LBQE[-1], config.kept
        )
        taps = self._taps(seen, own, asked.references_BQ3[:, count:], samples)
        preds = {"logits": own.logits_LBQK, "codes": own.codes_LBQE, **seen.said}
        if self.training and batch.labels is not None:
            preds |= noisy.chosen(said.logits_LBQK, said.codes_LBQE)
        return Output(taps, preds, memory)

    def _taps(
        self, seen: Seen, said: Said, references_BQ3: Tensor, samples: int
    ) -> dict[str, Tensor]:
        def by_layer(values: Tensor) -> Tensor:
            return values.transpose(0, 1).flatten(1, 2)

        taps = {f"image.level{level}": own for level, own in enumerate(seen.levels)}
        taps |= {f"image.modulated{level}": own for level, own in enumerate(seen.modulated)}
        taps |= {
            "query.states": by_layer(said.states_LBQC),
            "query.last": said.states_LBQC[-1],
            "query.scores": by_layer(said.logits_LBQK.sigmoid()),
            "query.references": references_BQ3,
        }
        if self.num_points(self.config):
            taps["query.offsets"] = by_layer(said.offsets_LBQE)
        return taps

    def _maps(self, batch: Batch) -> list[Tensor]:
        """Return the pyramid's maps, (B, V, C, H, W), finest first."""
        images_BVCHW = batch.normalised()
        maps = self.backbone(images_BVCHW.flatten(0, 1))
        found = self.pyramid([maps[level] for level in self.config.backbone.levels])
        pyramid = [found] if isinstance(found, Tensor) else found
        return [own.unflatten(0, images_BVCHW.shape[:2]) for own in pyramid]

    def _cameras(self, batch: Batch) -> Cameras:
        assert batch.camera_to_lidar_BV44 is not None, "the loader gave no camera poses"
        to_pixels = network_intrinsics(batch, self.config.half_pixel)
        to_camera: Tensor = torch.linalg.inv_ex(batch.camera_to_lidar_BV44.double()).inverse
        if bool((torch.linalg.det(batch.bev_aug_B44[:, :2, :2].double()) < 0).any()):
            raise ConfigError(
                f"{type(self).__name__} is defined without mirrored BEVs: its memory never turns a "
                "velocity. Leave augment.bev_flip_x and augment.bev_flip_y at their defaults."
            )
        straight = torch.linalg.inv_ex(batch.bev_aug_B44.double()).inverse[:, None]
        return Cameras(
            (to_pixels @ to_camera @ straight).float(),
            to_pixels.float(),
            to_camera.float(),
            self.config.image_size_HW,
        )

    def _poses(self, batch: Batch) -> Poses:
        assert batch.lidar_to_global_B44 is not None, "the loader gave no poses"
        assert batch.seconds_B is not None, "the loader gave no times"
        device = batch.bev_aug_B44.device
        to_global = batch.lidar_to_global_B44.double() @ np_inverse(batch.bev_aug_B44.cpu())
        exact = torch.float32 if self.config.single_poses else torch.float64
        return Poses(
            to_global.to(device, exact),
            np_inverse(to_global).to(device, exact),
            batch.seconds_B.double().to(device),
        )

    def _known(self, batch: Batch) -> Tensor:
        if batch.known_B is not None:
            return batch.known_B
        known = batch.memory is not None
        return torch.full((len(batch.tokens),), known, device=batch.bev_aug_B44.device)

    def _noisy(self, batch: Batch, cameras: Cameras) -> Noisy:
        """Return the denoising queries; none outside training."""
        config, samples = self.config, len(batch.tokens)
        if not self.training or batch.labels is None:
            return nothing_noisy(samples, batch.bev_aug_B44.device)
        truth = self._truth(batch)
        boxes, classes = [own[0] for own in truth], [own[1] for own in truth]
        if batch.pseudo is not None:
            boxes = [torch.cat(pair) for pair in zip(boxes, batch.pseudo.boxes, strict=True)]
            classes = [torch.cat(pair) for pair in zip(classes, batch.pseudo.classes, strict=True)]
        return disturb(
            boxes,
            classes,
            draw(sum(map(len, boxes)), config.denoising),
            config,
            cameras,
        )

    def _truth(self, batch: Batch) -> list[tuple[Tensor, Tensor]]:
        """Return boxes and classes of each sample that are in range before BEV augmentation."""
        assert batch.labels is not None, "the loader gave no labels"
        return [
            (boxes_N9[inside_N], classes_N[inside_N])
            for boxes_N9, classes_N, inside_N in zip(
                batch.labels.boxes, batch.labels.classes, self._inside(batch), strict=True
            )
        ]

    def _canonical(self, batch: Batch) -> list[tuple[Tensor, Tensor]]:
        assert batch.labels is not None, "the loader gave no labels"
        rows = zip(batch.labels.canonical_boxes, batch.labels.classes, strict=True)
        inside = self._inside(batch)
        return [(own[inside[n]], classes[inside[n]]) for n, (own, classes) in enumerate(rows)]

    def _inside(self, batch: Batch) -> list[Tensor]:
        assert batch.labels is not None, "the loader gave no labels"
        low, high = self.queries.low_3[:2], self.queries.high_3[:2]
        return [
            ((own[:, :2] > low) & (own[:, :2] < high)).all(1)
            for own in batch.labels.canonical_boxes
        ]

    def loss(self, output: Output, batch: Batch) -> dict[str, Tensor]:
        """Return the losses of the queries, and in training of disturbed ones and of image boxes.

        `class` and `box` are of the last layer, `layer0/class` and on of the others; the same in
        `denoising/`; `image/...` as the head in the images calls them.
        """
        preds, own, losses = output.preds, self.config, {}
        truth = [Wanted(kinds, encode_metric_boxes(b.float())) for b, kinds in self._truth(batch)]
        layers = list(zip(preds["logits"], preds["codes"], strict=True))
        places = [f"layer{n}/" for n in range(len(layers) - 1)] + [""]
        weights = self.code_weights
        for place, (logits_BQK, codes_BQE) in zip(places, layers, strict=True):
            losses[f"{place}class"], losses[f"{place}box"] = set_losses(
                logits_BQK, codes_BQE, truth, own.loss, weights, weights
            )
        if "denoising/logits" in preds:
            for number, place in enumerate(places):
                matched = losses[f"{place}class"], losses[f"{place}box"]
                losses[f"denoising/{place}class"], losses[f"denoising/{place}box"] = (
                    denoising_losses(preds, number, own, weights, matched)
                )
        said = {name: value for name, value in preds.items() if name.startswith("image/")}
        if said:
            losses |= self.image_losses(said, self._image_truth(batch))
        return losses

    def _image_truth(self, batch: Batch) -> list[list[ImageBoxes]]:
        """Return boxes of each sample in each camera, network pixels."""
        assert batch.labels is not None, "the loader gave no labels"
        assert batch.camera_to_lidar_BV44 is not None, "the loader gave no camera poses"
        assert batch.intrinsics_BV33 is not None, "the loader gave no intrinsics"
        assert batch.lidar_to_global_B44 is not None, "the loader gave no poses"
        to_camera, up_B3 = (
            torch.linalg.inv_ex(batch.camera_to_lidar_BV44.double()).inverse,
            batch.lidar_to_global_B44[:, 2, :3],
        )
        image_aug = network_image_aug(batch, self.config.half_pixel)
        sizes = self.config.camera_size_HW, self.config.image_size_HW
        return [
            image_boxes(
                own,
                kinds,
                to_camera[n],
                batch.intrinsics_BV33[n],
                image_aug[n],
                sizes,
                up_B3[n],
            )
            for n, (own, kinds) in enumerate(self._canonical(batch))
        ]

    def decode(self, output: Output) -> list[Detections]:
        """Return the best pairs of query and class as boxes; nothing is suppressed."""
        logits, codes = output.preds["logits"][-1], output.preds["codes"][-1]
        return decode_queries(logits, codes, self.config.loss, decode_metric_boxes)


def np_inverse(matrix_B44: Tensor) -> Tensor:
    """Return the inverse in float64, on the host."""
    return torch.from_numpy(np.linalg.inv(matrix_B44.double().numpy()))
