"""Kinds of maps: features, probabilities and codes on a BEV grid or in images."""

from itertools import pairwise
from typing import get_args

from torch import Tensor

from bevcask.config import AugmentConfig
from bevcask.targets.box_code import CODE_SIZE, TASKS
from bevcask.targets.kinds import ROUNDING, Kind, moves_bev, turns_or_scales
from bevcask.targets.spec import VALUE_CODECS, Alignment, Codec, Region, RegionName, TapInfo

_COLUMN_REGIONS = ("all", "foreground", "union")
_MOST_LABELS = 2048  # whole numbers that half precision tells apart


class DenseBEV(Kind):
    """A feature map (C, Y, X) on a BEV grid."""

    axes: tuple[str, ...] = ("C", "Y", "X")
    codecs: tuple[Codec, ...] = VALUE_CODECS

    def describe_problems(self, tap: TapInfo) -> list[str]:
        found = super().describe_problems(tap)
        if tap.grid is None:
            found.append(f"{tap.name}: {tap.kind} needs a grid")
        elif not found and tap.shape[-2:] != tap.grid.shape_YX:
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
            found.append(
                f"{tap.name}: a {tap.kind} holds probabilities, so nonnegative must be true"
            )
        if len(tap.classes) != self.num_classes(tap):
            found.append(
                f"{tap.name}: expected one class name a channel ({self.num_classes(tap)}), "
                f"got {len(tap.classes)}"
            )
        return found

    def num_classes(self, tap: TapInfo) -> int:
        """Return how many classes a tap has to name."""
        return tap.shape[0]

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


class Occupancy(Heatmap):
    """How probable it is that a voxel holds a class (C, Z, Y, X), `TapInfo.bins` its height.

    One channel without a class name: that it holds anything, or, of a visibility mask, which is a
    target of its own beside what it masks, that a sensor saw it. A region keeps whole columns.
    """

    axes: tuple[str, ...] = ("C", "Z", "Y", "X")

    def describe_problems(self, tap: TapInfo) -> list[str]:
        return [*super().describe_problems(tap), *_layer_problems(tap)]

    def num_classes(self, tap: TapInfo) -> int:
        return tap.shape[0] if tap.shape[0] > 1 else 0

    def codec(self, tap: TapInfo, region: Region) -> Codec:
        """Return one byte a value: half of it would be tens of MB a frame. 0 and 1 stay exact."""
        return "uint8"

    def regions(self, tap: TapInfo) -> tuple[str, ...]:
        return _COLUMN_REGIONS


class VoxelLabels(DenseBEV):
    """The class of every voxel (1, Z, Y, X), index into `TapInfo.classes`; see `Occupancy`."""

    axes: tuple[str, ...] = ("1", "Z", "Y", "X")
    codecs: tuple[Codec, ...] = ("float16",)  # exact up to `_MOST_LABELS`; integers would scale
    whole_numbers = True

    def describe_problems(self, tap: TapInfo) -> list[str]:
        found = [*super().describe_problems(tap), *_layer_problems(tap)]
        if tap.shape[0] != 1:
            found.append(f"{tap.name}: labels have one channel, got {tap.shape[0]}")
        if not 0 < len(tap.classes) <= _MOST_LABELS:
            found.append(
                f"{tap.name}: expected the names of 1 to {_MOST_LABELS} classes, "
                f"got {len(tap.classes)}"
            )
        return found

    def problems(self, tap: TapInfo, values: Tensor) -> list[str]:
        found = super().problems(tap, values)
        if found or not values.numel():
            return found
        if (values != values.round()).any() or values.min() < 0:
            found.append(f"{tap.name}: labels must be whole numbers >= 0")
        elif values.max() > self.bounds(tap)[1]:
            found.append(f"{tap.name}: label {int(values.max())} of {len(tap.classes)} classes")
        return found

    def bounds(self, tap: TapInfo) -> tuple[float, float]:
        return 0.0, len(tap.classes) - 1

    def codec(self, tap: TapInfo, region: Region) -> Codec:
        return "float16"

    def regions(self, tap: TapInfo) -> tuple[str, ...]:
        return _COLUMN_REGIONS


def _layer_problems(tap: TapInfo) -> list[str]:
    """Return what is wrong with the heights of a tap's layers."""
    rising = all(low < high for low, high in pairwise(tap.bins))
    if len(tap.shape) == 4 and (len(tap.bins) != tap.shape[1] or not rising):
        return [
            f"{tap.name}: expected the rising height of each of {tap.shape[1]} layers (bins, "
            f"metres), got {tap.bins}"
        ]
    return []


class ImageFeature(Kind):
    """Features of every camera (V, C, H, W); they change with the pixels, never with the BEV."""

    axes: tuple[str, ...] = ("V", "C", "H", "W")
    codecs: tuple[Codec, ...] = VALUE_CODECS

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
