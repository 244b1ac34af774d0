"""What a kind of target is: what it may hold, how it is stored, how it meets augmentation.

A kind knows no model and no file. `kind_of(tap)` finds the kind of a tap in `registry.KINDS`; those
of maps lie in `map_kinds`, those of padded sets in `set_kinds`.
"""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from bevcask.config import AugmentConfig, ImageAugmentConfig
from bevcask.errors import TargetMismatchError
from bevcask.registry import load_class
from bevcask.targets.spec import (
    GIVEN,
    LEVELS,
    Alignment,
    Codec,
    Region,
    TapInfo,
    TargetSpec,
    stored_dtype,
)

ITEM_BYTES = {"uint8": 1, "int8": 1, "float16": 2, "float32": 4, "int64": 8}
SCALE_BYTES = 4  # one float32 a (row, [camera,] channel)
COUNT_BYTES = 8  # one int64 a row
ROUNDING = 2.0**-10  # of half precision: a probability may pass 1 by this much


class Kind(ABC):
    """What sort of thing a target is."""

    axes: tuple[str, ...]
    codecs: tuple[Codec, ...]
    padded = False  # rows behind a count are zero
    whole_numbers = False

    def describe_problems(self, tap: TapInfo) -> list[str]:
        """Return what is wrong with a tap's description; empty when it is fine."""
        if len(tap.shape) != len(self.axes) or min(tap.shape, default=0) < 1:
            return [f"{tap.name}: {tap.kind} has shape ({', '.join(self.axes)}), got {tap.shape}"]
        if unknown := [own for own in tap.given if own not in GIVEN]:
            return [f"{tap.name}: given {unknown[0]!r}, expected one of {', '.join(GIVEN)}"]
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
