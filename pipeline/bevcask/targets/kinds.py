"""Kinds of targets: what each may hold, how it is stored by default, how it meets augmentation.

A kind knows no model and no file. `kind_of(tap)` finds the kind of a tap in `registry.KINDS`.
"""

import math
from abc import ABC, abstractmethod
from typing import get_args

import torch
from torch import Tensor

from bevcask.config import AugmentConfig, ImageAugmentConfig
from bevcask.errors import TargetMismatchError
from bevcask.registry import load_class
from bevcask.targets.box_code import CODE_SIZE, TASKS
from bevcask.targets.spec import (
    LEVELS,
    Alignment,
    Codec,
    Region,
    RegionName,
    TapInfo,
    TargetSpec,
    stored_dtype,
)

BOX_COLUMNS = 11  # nine box fields, score, class
PLACE_COLUMNS = 3  # x, y, weight
ITEM_BYTES = {"uint8": 1, "int8": 1, "float16": 2, "float32": 4}
SCALE_BYTES = 4  # one float32 a (row, [camera,] channel)
COUNT_BYTES = 8  # one int64 a row
ROUNDING = 2.0**-10  # of half precision: a probability may pass 1 by this much


class Kind(ABC):
    """What sort of thing a target is."""

    axes: tuple[str, ...]
    codecs: tuple[Codec, ...]
    padded = False  # rows behind a count are zero

    def describe_problems(self, tap: TapInfo) -> list[str]:
        """Return what is wrong with a tap's description; empty when it is fine."""
        if len(tap.shape) != len(self.axes) or min(tap.shape, default=0) < 1:
            return [f"{tap.name}: {tap.kind} has shape ({', '.join(self.axes)}), got {tap.shape}"]
        return []

    def problems(self, tap: TapInfo, values: Tensor) -> list[str]:
        """Return what is wrong with a batch of values (B, *tap.shape); empty when it is fine."""
        if values.ndim != len(tap.shape) + 1 or tuple(values.shape[1:]) != tap.shape:
            return [f"{tap.name}: expected shape (B, {_joined(tap.shape)}), got {_shape(values)}"]
        if not values.is_floating_point():
            return [f"{tap.name}: expected floating point values, got {values.dtype}"]
        found = []
        low, high = torch.aminmax(values) if values.numel() else (torch.zeros(()),) * 2
        if not (torch.isfinite(low) and torch.isfinite(high)):
            bad = int((~torch.isfinite(values)).sum())
            found.append(f"{tap.name}: {bad} of {values.numel()} values are not finite")
        elif tap.nonnegative and low < 0:
            found.append(f"{tap.name}: declared non-negative, lowest value is {float(low):.4g}")
        return found

    def bounds(self, tap: TapInfo) -> tuple[float, float]:
        """Return the smallest and the largest value a tap may have; `problems` says more."""
        return (0.0 if tap.nonnegative else -math.inf), math.inf

    def check(self, tap: TapInfo, values: Tensor) -> None:
        """Check a batch of values against the tap's description.

        Args:
            tap: the description.
            values: (B, *tap.shape) float.

        Raises:
            TargetMismatchError: shape, dtype, finiteness, sign or range; all in one message.
        """
        found = [*self.describe_problems(tap), *self.problems(tap, values)]
        if found:
            raise TargetMismatchError(
                "; ".join(found) + ". The detector's describe_taps and forward must agree, and a "
                "teacher with broken weights cannot be cached."
            )

    @abstractmethod
    def codec(self, tap: TapInfo, region: Region) -> Codec:
        """Return how `store.codec=auto` stores it."""

    def alignment(self, tap: TapInfo, augment: AugmentConfig | None) -> Alignment:
        """Return how exactly a canonical target meets a student under this augmentation.

        `exact`: nothing moves, or it moves by an index permutation or in closed form. `aligned`:
        resampled or re-drawn. `approximate`: the target would itself be different.
        """
        if augment is None:
            return "exact"
        if tap.depends_on_images and changes_pixels(augment):
            return "approximate"
        return self.bev_alignment(tap, augment)

    @abstractmethod
    def bev_alignment(self, tap: TapInfo, augment: AugmentConfig) -> Alignment:
        """Return how exactly it follows a BEV augmentation."""

    def regions(self, tap: TapInfo) -> tuple[str, ...]:
        """Return the names of the regions it may be stored on."""
        return ("all",)

    def scales(self, tap: TapInfo) -> int:
        """Return how many scales one frame has when stored as integers."""
        return tap.shape[0]

    def bytes_per_frame(self, spec: TargetSpec) -> int:
        """Return the exact uncompressed bytes of one frame: values, scales, region bits, count."""
        size = math.prod(spec.tap.shape) * ITEM_BYTES[stored_dtype(spec.codec)]
        if spec.codec in LEVELS:
            size += self.scales(spec.tap) * SCALE_BYTES
        if spec.region.name != "all":
            size += -(-spec.tap.shape[-1] * spec.tap.shape[-2] // 8)
        if self.padded:
            size += COUNT_BYTES
        return size


class DenseBEV(Kind):
    """A feature map (C, Y, X) on a BEV grid."""

    axes: tuple[str, ...] = ("C", "Y", "X")
    codecs: tuple[Codec, ...] = get_args(Codec)

    def describe_problems(self, tap: TapInfo) -> list[str]:
        found = super().describe_problems(tap)
        if tap.grid is None:
            found.append(f"{tap.name}: {tap.kind} needs a grid")
        elif not found and tap.shape[1:] != tap.grid.shape_YX:
            found.append(
                f"{tap.name}: shape {tap.shape} does not fit its grid of {tap.grid.shape_YX} cells"
            )
        return found

    def codec(self, tap: TapInfo, region: Region) -> Codec:
        """Return one byte a value, a scale a channel: loss error about 1e-6 (spec 5.3)."""
        return "uint8" if tap.nonnegative else "int8"

    def bev_alignment(self, tap: TapInfo, augment: AugmentConfig) -> Alignment:
        """Return `exact` where cells are permuted at most: flips of a symmetric grid."""
        permutes = tap.grid is not None and tap.grid.is_symmetric and not turns_or_scales(augment)
        return "exact" if permutes or not moves_bev(augment) else "aligned"

    def regions(self, tap: TapInfo) -> tuple[str, ...]:
        return get_args(RegionName)


class Heatmap(DenseBEV):
    """Class probabilities (K, Y, X) on a BEV grid, one channel a class."""

    def describe_problems(self, tap: TapInfo) -> list[str]:
        found = super().describe_problems(tap)
        if not tap.nonnegative:
            found.append(f"{tap.name}: a heatmap holds probabilities, so nonnegative must be true")
        if len(tap.classes) != tap.shape[0]:
            found.append(
                f"{tap.name}: expected one class name a channel ({tap.shape[0]}), "
                f"got {len(tap.classes)}"
            )
        return found

    def problems(self, tap: TapInfo, values: Tensor) -> list[str]:
        found = super().problems(tap, values)
        if not found and values.numel() and float(values.max()) > self.bounds(tap)[1]:
            found.append(
                f"{tap.name}: probabilities must not exceed 1, highest is {float(values.max()):.4g}"
                " (logits instead of probabilities?)"
            )
        return found

    def bounds(self, tap: TapInfo) -> tuple[float, float]:
        return 0.0, 1.0 + ROUNDING

    def codec(self, tap: TapInfo, region: Region) -> Codec:
        """Return uint8 where the region is decided and stored as bits, float16 over all cells.

        With `confident`, whether a cell counts is a bit decided in float32 before quantisation, so
        a byte a value cannot flip it. Over all cells the low tail matters, and a linear byte would
        round it to zero.
        """
        return "float16" if region.name == "all" else "uint8"


class BoxCode(DenseBEV):
    """What a CenterHead says of the box in a cell: a code a task group (60, Y, X), task by task.

    Read at single cells, moved there in closed form (`Align.codes`), never interpolated.
    """

    codecs: tuple[Codec, ...] = ("float32",)  # a few cells a frame: nothing to save

    def describe_problems(self, tap: TapInfo) -> list[str]:
        found = super().describe_problems(tap)
        if tap.shape[0] != len(TASKS) * CODE_SIZE:
            found.append(
                f"{tap.name}: {len(TASKS)} task groups of {CODE_SIZE} numbers take "
                f"{len(TASKS) * CODE_SIZE} channels, got {tap.shape[0]}"
            )
        return found

    def codec(self, tap: TapInfo, region: Region) -> Codec:
        return "float32"

    def bev_alignment(self, tap: TapInfo, augment: AugmentConfig) -> Alignment:
        return "exact"

    def regions(self, tap: TapInfo) -> tuple[str, ...]:
        return ("all", "centres")


class BoxSet(Kind):
    """Detections (N, 11): nine box fields, score, class; best first, zeros behind the count."""

    axes: tuple[str, ...] = ("N", "11")
    codecs: tuple[Codec, ...] = ("float32",)
    padded = True

    def describe_problems(self, tap: TapInfo) -> list[str]:
        found = super().describe_problems(tap)
        if not found and tap.shape[1] != BOX_COLUMNS:
            found.append(
                f"{tap.name}: a box row has {BOX_COLUMNS} columns (nine box fields, score, class), "
                f"got {tap.shape[1]}"
            )
        return found

    def problems(self, tap: TapInfo, values: Tensor) -> list[str]:
        found = super().problems(tap, values)
        if found or not values.numel():
            return found
        if values[..., 3:6].min() < 0:
            found.append(f"{tap.name}: box sizes must not be negative")
        if values[..., 9].min() < 0 or values[..., 9].max() > 1:
            found.append(f"{tap.name}: scores must lie in [0, 1]")
        label = values[..., 10]
        if label.min() < 0 or (label != label.round()).any():
            found.append(f"{tap.name}: classes must be whole numbers >= 0")
        elif tap.classes and label.max() >= len(tap.classes):
            found.append(
                f"{tap.name}: class {int(label.max())} of a detector with {len(tap.classes)}"
            )
        return found

    def codec(self, tap: TapInfo, region: Region) -> Codec:
        return "float32"

    def bev_alignment(self, tap: TapInfo, augment: AugmentConfig) -> Alignment:
        return "exact"


class QuerySet(Kind):
    """Query states (Q, C), zeros behind the count. Features cannot be moved in closed form."""

    axes: tuple[str, ...] = ("Q", "C")
    codecs: tuple[Codec, ...] = get_args(Codec)
    padded = True

    def codec(self, tap: TapInfo, region: Region) -> Codec:
        return "float16"

    def bev_alignment(self, tap: TapInfo, augment: AugmentConfig) -> Alignment:
        """Return `approximate`: a feature that encodes a heading would itself turn."""
        return "approximate" if moves_bev(augment) else "exact"

    def scales(self, tap: TapInfo) -> int:
        return tap.shape[1]


class QueryPlaces(Kind):
    """Where queries read a BEV map (Q, 3 places): x, y and weight of each, head by head.

    x and y are 0 to 1 over the map's range, borders included; weights of a head sum to 1. They stay
    canonical: the student's map is brought to the cells they were read from.
    """

    axes: tuple[str, ...] = ("Q", "3 places")
    codecs: tuple[Codec, ...] = ("float32",)  # half precision would move them by tenths of a cell
    padded = True

    def describe_problems(self, tap: TapInfo) -> list[str]:
        found = super().describe_problems(tap)
        if not found and tap.shape[1] % PLACE_COLUMNS:
            found.append(
                f"{tap.name}: a place has {PLACE_COLUMNS} columns (x, y, weight), got "
                f"{tap.shape[1]} in all"
            )
        return found

    def problems(self, tap: TapInfo, values: Tensor) -> list[str]:
        found = super().problems(tap, values)
        if (
            not found
            and values.numel()
            and values[..., PLACE_COLUMNS - 1 :: PLACE_COLUMNS].min() < 0
        ):
            found.append(f"{tap.name}: weights of places must not be negative")
        return found

    def codec(self, tap: TapInfo, region: Region) -> Codec:
        return "float32"

    def bev_alignment(self, tap: TapInfo, augment: AugmentConfig) -> Alignment:
        """Return how the map they read is aligned; its grid is not known here."""
        return "aligned" if moves_bev(augment) else "exact"


class ImageFeature(Kind):
    """Features of every camera (V, C, H, W); they change with the pixels, never with the BEV."""

    axes: tuple[str, ...] = ("V", "C", "H", "W")
    codecs: tuple[Codec, ...] = get_args(Codec)

    def describe_problems(self, tap: TapInfo) -> list[str]:
        found = super().describe_problems(tap)
        if not tap.depends_on_images:
            found.append(f"{tap.name}: an image feature depends on images, say depends_on_images")
        return found

    def codec(self, tap: TapInfo, region: Region) -> Codec:
        return "float16"

    def bev_alignment(self, tap: TapInfo, augment: AugmentConfig) -> Alignment:
        return "exact"

    def scales(self, tap: TapInfo) -> int:
        return tap.shape[0] * tap.shape[1]


class ImageTransform(Kind):
    """Original pixel -> network pixel of every camera (V, 3, 3): what a view did to the images."""

    axes: tuple[str, ...] = ("V", "3", "3")
    codecs: tuple[Codec, ...] = ("float32",)

    def codec(self, tap: TapInfo, region: Region) -> Codec:
        return "float32"

    def bev_alignment(self, tap: TapInfo, augment: AugmentConfig) -> Alignment:
        return "exact"


def kind_of(tap: TapInfo) -> Kind:
    """Return the kind of a tap.

    Raises:
        UnknownNameError: `tap.kind` is not in `registry.KINDS`.
    """
    kind: Kind = load_class("kind", tap.kind)()
    return kind


def changes_pixels(augment: ImageAugmentConfig) -> bool:
    """Tell whether an augmentation changes what the cameras show."""
    return (
        augment.resize != (0.0, 0.0)
        or augment.crop
        or augment.image_flip
        or augment.image_rotation > 0
        or augment.photometric
        or augment.grid_mask > 0
    )


def turns_or_scales(augment: AugmentConfig) -> bool:
    """Tell whether an augmentation moves BEV cells off the lattice."""
    return augment.bev_rotation > 0 or augment.bev_scale != (1.0, 1.0)


def moves_bev(augment: AugmentConfig) -> bool:
    """Tell whether an augmentation moves BEV points at all."""
    return turns_or_scales(augment) or augment.bev_flip_x or augment.bev_flip_y


def _joined(shape: tuple[int, ...]) -> str:
    return ", ".join(map(str, shape))


def _shape(values: Tensor) -> str:
    return f"({_joined(tuple(values.shape))})"
