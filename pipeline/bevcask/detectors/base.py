"""What every detector takes, gives and promises."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from bevcask.config import Config as AnyConfig
from bevcask.config import Inherit
from bevcask.errors import CheckpointError, ConfigError
from bevcask.targets.spec import TapInfo

MEAN_RGB = (123.675, 116.28, 103.53)
"""ImageNet's, of 0..255: what most detectors normalise images with, and `STD_RGB`."""

STD_RGB = (58.395, 57.12, 57.375)


@dataclass
class Batch:
    """What a detector sees. Everything geometric is already augmented unless it says canonical.

    Attributes:
        tokens: sample tokens, one a sample.
        images_BVCHW: RGB, 0..255, uint8; float32 where colours were changed, which leaves neither
            whole numbers nor these bounds. Detectors read `normalised`. None without cameras.
        shown_BHW: bool, pixels that a mask leaves, of all cameras alike; None shows all.
        intrinsics_BV33: camera matrix of the *original* image, pixels.
        image_aug_BV33: original pixel (u, v, 1) -> network pixel (resize, crop, flip, rotate).
        camera_to_lidar_BV44: camera frame -> canonical keyframe LIDAR_TOP frame (ego motion between
            the exposures included).
        bev_aug_B44: canonical LIDAR_TOP -> augmented LIDAR_TOP (`geometry.bev_matrix`).
        points: per sample (P, 5) float32, `geometry.POINT_FIELDS`, or (P, 17),
            `geometry.VIRTUAL_POINT_FIELDS`; augmented; None without LiDAR.
        pixels: per sample (P, 5) float32, `targets.pixels.FIELDS`: the keyframe's LiDAR points in
            the *original* images, which depth losses draw (`targets.pixels.nearest_depths`). None
            where neither the detector nor a target asks for them.
        labels: ground truth; None when the split has none.
        pseudo: boxes that join ground truth where denoising queries are built, and nowhere else;
            None where a method gives none.
        seconds_B: float64, time of the keyframe; stays on the host.
        lidar_to_global_B44: float64, canonical LIDAR_TOP -> global; stays on the host.
        can_bus_B18: float64, absolute values of this frame as `data.can_bus.CanBus` says them: a
            detector that wants differences remembers those of the frame before. None unless it asks
            for them.
        after: per sample the token of the frame whose memory this one goes on with, None to begin
            anew.
        memory: what the detector said to remember after those frames; None where none of the
            samples goes on with one.
        known_B: bool, whose memory holds something; None without memory.
        history: earlier keyframes of each sample, oldest first, as `Inputs.history` asks. Of a
            detector that remembers each is a frame of its own, to be shown in turn
            (`memory.unroll`); those that are trained have labels. Of others there is one, images
            and cameras only, whose `bev_aug` brings its canonical LIDAR_TOP to *this* batch's
            augmented one, ego motion included.
    """

    tokens: list[str]
    bev_aug_B44: Tensor
    images_BVCHW: Tensor | None = None
    shown_BHW: Tensor | None = None
    intrinsics_BV33: Tensor | None = None
    image_aug_BV33: Tensor | None = None
    camera_to_lidar_BV44: Tensor | None = None
    points: list[Tensor] | None = None
    pixels: list[Tensor] | None = None
    labels: "Labels | None" = None
    pseudo: "Labels | None" = None
    seconds_B: Tensor | None = None
    lidar_to_global_B44: Tensor | None = None
    can_bus_B18: Tensor | None = None
    after: list[str | None] | None = None
    memory: "Memory | None" = None
    known_B: Tensor | None = None
    history: tuple["Batch", ...] = ()

    def to(self, device: torch.device | str) -> "Batch":
        """Return the batch on a device."""

        def move(value: Tensor | None) -> Tensor | None:
            return None if value is None else value.to(device, non_blocking=True)

        def each(values: list[Tensor] | None) -> list[Tensor] | None:
            return None if values is None else [v.to(device, non_blocking=True) for v in values]

        return replace(
            self,
            bev_aug_B44=self.bev_aug_B44.to(device, non_blocking=True),
            images_BVCHW=move(self.images_BVCHW),
            shown_BHW=move(self.shown_BHW),
            intrinsics_BV33=move(self.intrinsics_BV33),
            image_aug_BV33=move(self.image_aug_BV33),
            camera_to_lidar_BV44=move(self.camera_to_lidar_BV44),
            points=each(self.points),
            pixels=each(self.pixels),
            labels=None if self.labels is None else self.labels.to(device),
            pseudo=None if self.pseudo is None else self.pseudo.to(device),
            can_bus_B18=move(self.can_bus_B18),
            memory=None if self.memory is None else _moved(self.memory, device),
            known_B=move(self.known_B),
            history=tuple(earlier.to(device) for earlier in self.history),
        )

    def normalised(
        self, mean: Sequence[float] = MEAN_RGB, std: Sequence[float] = STD_RGB
    ) -> Tensor:
        """Return the images as a network reads them: (pixel - mean) / std, 0 where not shown.

        Args:
            mean: of each channel, of 0..255 RGB.
            std: the same.

        Returns:
            (B, V, C, H, W) float32, on the device of the batch.
        """
        assert self.images_BVCHW is not None, "the loader gave no images"
        images_BVCHW = self.images_BVCHW.to(torch.float32, copy=True)
        for channel, (centre, spread) in enumerate(zip(mean, std, strict=True)):
            images_BVCHW[:, :, channel].mul_(1 / spread).add_(-centre / spread)
        if self.shown_BHW is not None:
            images_BVCHW *= self.shown_BHW[:, None, None]
        return images_BVCHW


CLEAN_GAP = 3
"""Keyframes, 1.5 s on nuScenes: how far BEVDet4D looks back at test time."""

Memory = dict[str, Tensor]
"""What a detector remembers, batch first; only the detector that said it reads it."""


def _moved(memory: Memory, device: torch.device | str) -> Memory:
    return {name: value.to(device, non_blocking=True) for name, value in memory.items()}


@dataclass
class Labels:
    """Ground truth of a batch.

    Attributes:
        boxes: per sample (N, 9) float32, augmented LIDAR_TOP frame, `geometry.BOX_FIELDS`.
        classes: per sample (N,) int64, index into `geometry.CLASSES`.
        canonical_boxes: the same boxes, same order, before BEV augmentation.
    """

    boxes: list[Tensor]
    classes: list[Tensor]
    canonical_boxes: list[Tensor]

    def to(self, device: torch.device | str) -> "Labels":
        """Return the labels on a device."""
        return Labels(
            *(
                [t.to(device, non_blocking=True) for t in group]
                for group in (self.boxes, self.classes, self.canonical_boxes)
            )
        )


@dataclass
class Output:
    """What a forward pass gives.

    Attributes:
        taps: name -> tensor, batch first, exactly as `Detector.taps()` describes a sample
            (dense_bev and heatmap (B, C, Y, X); heatmaps are probabilities).
        preds: the head's raw output; only the same detector's `loss` and `decode` read it.
        memory: what it wants to be reminded of at the next frame of each sample's scene; empty
            for a detector that remembers nothing.
    """

    taps: dict[str, Tensor]
    preds: dict[str, Tensor] = field(default_factory=dict)
    memory: Memory = field(default_factory=dict)


@dataclass
class Detections:
    """Boxes of one sample, best first.

    Attributes:
        boxes_N9: float32, same frame as the input (augmented where the input was).
        scores_N: float32 in [0, 1].
        classes_N: int64, index into `geometry.CLASSES`.
    """

    boxes_N9: Tensor
    scores_N: Tensor
    classes_N: Tensor


@dataclass(frozen=True)
class Inputs:
    """What a detector wants loaded.

    Attributes:
        image_size_HW: network input size in pixels; None for no images.
        history: how many earlier keyframes are loaded with each frame.
        memory: it remembers: `Output.memory` of a frame is `Batch.memory` of the next.
        can_bus: where the ego car stands and how it moves, `Batch.can_bus_B18`.
        num_sweeps: LiDAR sweeps including the keyframe; 0 for no LiDAR.
        depth: the keyframe's LiDAR points in the images, for the loss.
        ego_points: hits on the ego car: dropped, kept in the keyframe's own scan alone (mmdet3d's
            `remove_close`), or kept in all scans.
        pad: when the keyframe stands in for sweeps the dataset does not have: for each that is
            missing, only where there are none at all (mmdet3d's `pad_empty_sweeps`), never.
        virtual_points: virtual points behind those of the sweeps, all of 17 numbers.
        trained: how many frames of a window give losses in training, the frame itself and those
            just before it. Above 1 all of them are drawn one by one, by token and view, rather than
            under one augmentation, and those that are trained bring labels.
    """

    image_size_HW: tuple[int, int] | None = None
    history: int = 0
    memory: bool = False
    can_bus: bool = False
    num_sweeps: int = 0
    depth: bool = False
    ego_points: Literal["drop", "keyframe", "keep"] = "drop"
    pad: Literal["missing", "empty", "never"] = "missing"
    virtual_points: bool = False
    trained: int = 1

    @property
    def gaps(self) -> tuple[int, ...]:
        """How many keyframes back each earlier one is read of a clean sample, farthest first."""
        if self.memory:
            return tuple(range(self.history, 0, -1))
        return (CLEAN_GAP,) if self.history else ()

    def frame_by_frame(self) -> "Inputs":
        """Return what is loaded where memory is carried from frame to frame: no window."""
        return replace(self, history=0, trained=1) if self.memory else self


class Detector(nn.Module, ABC):
    """A module that finds boxes, as teacher or student.

    Subclasses carry a nested `Config` and are built with it:
    `CenterPoint(CenterPoint.Config(...))`.
    """

    Config: type[AnyConfig]
    denoises: ClassVar[bool] = False
    """It is trained with denoising queries, which a method may add boxes to."""

    @classmethod
    @abstractmethod
    def inputs(cls, config: AnyConfig) -> Inputs:
        """Return what the loader must provide."""

    @classmethod
    @abstractmethod
    def describe_taps(cls, config: AnyConfig) -> Mapping[str, TapInfo]:
        """Return every tap by name from the config alone: no weights, no data."""

    @classmethod
    def identity(cls, config: AnyConfig) -> dict[str, Any]:
        """Return what decides what the network computes, weights apart, as plain JSON data."""
        return config.model_dump(mode="json")

    @classmethod
    def donors(cls) -> Mapping[str, Mapping[str, str]]:
        """Return which trained detectors can start parts of it: {type: {own module: theirs}}.

        These modules must agree in every name and shape; the donor's others are not read.
        """
        return {}

    def adopt(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the tensors of a checkpoint under the names and in the layout of this network."""
        return tensors

    def published(self) -> dict[str, Tensor]:
        """Return its tensors under the names and in the layout of its published files.

        Raises:
            CheckpointError: it has none.
        """
        raise CheckpointError(
            f"{type(self).__name__} has no published names here: bevformer, streampetr, raydn "
            "and centerpoint do. Use names=native."
        )

    def starts(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """Return what published weights of other detectors start, under the names of this one.

        None for files that it does not know.
        """
        return None

    def head_weights(self) -> dict[str, Tensor]:
        """Return what students may inherit, named as in this detector; or nothing.

        Here the head's branches, `head.tasks.*`, named as in `blocks.heads`.
        """
        state = self.state_dict()
        return {name: state[name] for name in state if name.startswith("head.tasks.")}

    def inherits(self, what: Inherit) -> tuple[str, ...]:
        """Return the modules and parameters that a student takes from a head file.

        Raises:
            ConfigError: this detector knows no such share.
        """
        if what == "surviving_subset":
            raise ConfigError(
                f"student.inherit={what} is of bevformer alone; {type(self).__name__} inherits "
                "full_head or none."
            )
        return ("head.tasks",) if what == "full_head" else ()

    @abstractmethod
    def forward(self, batch: Batch) -> Output:
        """Run the network."""

    @abstractmethod
    def loss(self, output: Output, batch: Batch) -> dict[str, Tensor]:
        """Return named scalar losses whose sum is trained; `batch.labels` must be present."""

    @abstractmethod
    def decode(self, output: Output) -> list[Detections]:
        """Return the boxes of each sample after non-maximum suppression, at most 500 a sample."""
