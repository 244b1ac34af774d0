"""Kinds of maps: features, probabilities and codes on a BEV grid or in images."""

from typing import get_args

from torch import Tensor

from bevcask.config import AugmentConfig
from bevcask.targets.box_code import CODE_SIZE, TASKS
from bevcask.targets.kinds import ROUNDING, Kind, moves_bev, turns_or_scales
from bevcask.targets.spec import Alignment, Codec, Region, RegionName, TapInfo


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
