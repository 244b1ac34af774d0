"""Where a step's targets come from: rows of a cache, or a teacher kept in the loop.

Both give the same thing through the same codec, so that methods cannot tell them apart. This file
never imports a teacher; the one that runs online is handed in.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from bevcask.cache.quantize import encode_targets
from bevcask.cache.union import labelled
from bevcask.data.join import TrainBatch, dequantised
from bevcask.detectors.base import Batch, Labels
from bevcask.methods.base import Target
from bevcask.targets.align import Align, ImageAug
from bevcask.targets.spec import TargetSpec

if TYPE_CHECKING:
    from bevcask.teachers.base import Teacher


class TargetSource(Protocol):
    """Gives the targets of a batch."""

    canonical: bool
    """True where targets are in the canonical frame, False where they are in the student's."""

    def __call__(self, batch: TrainBatch) -> dict[str, Target]:
        """Return float32 targets by name, on the batch's device."""
        ...


class CachedTargets:
    """Targets the loader read; dequantised on the device."""

    canonical = True

    def __call__(self, batch: TrainBatch) -> dict[str, Target]:
        return batch.dequantised()


class OnlineTargets:
    """Targets a teacher says now, through the taps, regions and codecs of the plan.

    Args:
        teacher: loaded onto the student's device.
        specs: what the method reads, by name.
        canonical: True if the teacher sees the clean frame, False if what the student sees.
        label: of the teacher, in front of the names of its targets.
    """

    def __init__(
        self,
        teacher: "Teacher",
        specs: Mapping[str, TargetSpec],
        canonical: bool,
        label: str = "",
    ) -> None:
        self._teacher = teacher
        self._specs = dict(specs)
        self.canonical = canonical
        self._label = label

    def __call__(self, batch: TrainBatch) -> dict[str, Target]:
        shown = batch.teacher_batches[self._label]
        device = batch.batch.bev_aug_B44.device.type
        with torch.autocast(device, enabled=False), torch.inference_mode():
            said = self._teacher.targets(shown, list(self._specs))
            boxes = self._boxes(batch.batch.labels)
            specs = self._specs.values()
            encoded = encode_targets(said, specs, boxes, batch.batch.tokens)
            targets = dequantised({spec.name: encoded[spec.key] for spec in specs})
        return {
            labelled(name, self._label): _outside_inference(target)
            for name, target in targets.items()
        }

    def __deepcopy__(self, memo: dict[int, Any]) -> "OnlineTargets":
        """Return itself: the moving average copies the module, and needs no second teacher."""
        return self

    def _boxes(self, labels: Labels | None) -> list[torch.Tensor] | None:
        """Return ground truth in the frame the teacher sees."""
        if labels is None:
            return None
        return labels.canonical_boxes if self.canonical else labels.boxes


class SeveralSources:
    """Targets of several teachers, each under its label.

    Args:
        sources: of the same frames, seen alike.
    """

    def __init__(self, sources: Sequence[TargetSource]) -> None:
        self._sources = tuple(sources)
        (self.canonical,) = {source.canonical for source in sources}

    def __call__(self, batch: TrainBatch) -> dict[str, Target]:
        return {name: own for source in self._sources for name, own in source(batch).items()}


def _outside_inference(target: Target) -> Target:
    """Copy the values, so that autograd may keep them for the backward pass.

    The copy is laid out as one from a cache: strides decide in which order kernels add, and with it
    the last bits of a gradient.
    """
    return Target(
        _copied(target.values),
        None if target.region_BYX is None else _copied(target.region_BYX),
        None if target.count_B is None else _copied(target.count_B),
    )


def _copied(part: torch.Tensor) -> torch.Tensor:
    return part.clone(memory_format=torch.contiguous_format)


def align_of(batch: Batch) -> Align:
    """Return how canonical targets meet the student of a batch that is still on the host."""
    if batch.images_BVCHW is None or batch.image_aug_BV33 is None:
        return Align(batch.bev_aug_B44)
    height, width = batch.images_BVCHW.shape[-2:]
    images = ImageAug(batch.image_aug_BV33, (height, width), lidar_to_image(batch))
    return Align(batch.bev_aug_B44, images)


def lidar_to_image(batch: Batch) -> Tensor | None:
    """Return canonical LIDAR_TOP -> original pixels, see `ImageAug`; None without calibration."""
    if batch.intrinsics_BV33 is None or batch.camera_to_lidar_BV44 is None:
        return None
    to_camera_BV44: Tensor = torch.linalg.inv(batch.camera_to_lidar_BV44.double())
    to_image_BV44 = to_camera_BV44.clone()
    to_image_BV44[..., :3, :] = batch.intrinsics_BV33.double() @ to_camera_BV44[..., :3, :]
    return to_image_BV44


def meet(source: TargetSource, labels: Labels, align: Align) -> tuple[Labels, Align]:
    """Return labels and alignment as the method must see them.

    Targets that are already in the student's frame need no alignment, and the frame they are in
    takes the place of the canonical one.
    """
    if source.canonical:
        return labels, align
    images = align.images
    if images is not None and images.lidar_to_image_BV44 is not None:
        back_B144 = torch.from_numpy(align.inverse().matrices_B44)[:, None]
        images = replace(images, lidar_to_image_BV44=images.lidar_to_image_BV44 @ back_B144)
    return replace(labels, canonical_boxes=labels.boxes), Align.identity(len(align), images)
