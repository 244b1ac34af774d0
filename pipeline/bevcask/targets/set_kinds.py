"""Kinds of padded sets: boxes, map elements, and what queries say, know of their place or read."""

import torch
from torch import Tensor

from bevcask.config import AugmentConfig
from bevcask.targets.kinds import Kind, moves_bev
from bevcask.targets.spec import VALUE_CODECS, Alignment, Codec, Region, TapInfo

BOX_COLUMNS = 11  # nine box fields, score, class
PLACE_COLUMNS = 3  # x, y, weight
POINT_COLUMNS = 3  # x, y, z


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
        return found + _guess_problems(tap, values[..., 9], values[..., 10])

    def codec(self, tap: TapInfo, region: Region) -> Codec:
        return "float32"

    def bev_alignment(self, tap: TapInfo, augment: AugmentConfig) -> Alignment:
        return "exact"


class Polylines(Kind):
    """Map elements (N, 2 P + 2): x, y of P points, score, class; best first.

    Zeros behind the count. Metres, canonical frame, in the order in which the teacher walks along
    them; a closed one says its first point again. Moving keeps that order, so a flip turns the
    sense of rotation round.
    """

    axes: tuple[str, ...] = ("N", "2 P + 2")
    codecs: tuple[Codec, ...] = ("float32",)
    padded = True

    def describe_problems(self, tap: TapInfo) -> list[str]:
        found = super().describe_problems(tap)
        if not found and (tap.shape[1] % 2 or tap.shape[1] < 2 * 2 + 2):
            found.append(
                f"{tap.name}: a polyline has two columns a point (x, y), two points or more, score "
                f"and class, got {tap.shape[1]} columns"
            )
        return found

    def problems(self, tap: TapInfo, values: Tensor) -> list[str]:
        found = super().problems(tap, values)
        if found or not values.numel():
            return found
        return _guess_problems(tap, values[..., -2], values[..., -1])

    def codec(self, tap: TapInfo, region: Region) -> Codec:
        return "float32"

    def bev_alignment(self, tap: TapInfo, augment: AugmentConfig) -> Alignment:
        return "exact"


def _guess_problems(tap: TapInfo, score: Tensor, label: Tensor) -> list[str]:
    """Return what is wrong with the scores and classes of a set."""
    found = []
    if score.min() < 0 or score.max() > 1:
        found.append(f"{tap.name}: scores must lie in [0, 1]")
    if label.min() < 0 or (label != label.round()).any():
        found.append(f"{tap.name}: classes must be whole numbers >= 0")
    elif tap.classes and label.max() >= len(tap.classes):
        found.append(f"{tap.name}: class {int(label.max())} of a detector with {len(tap.classes)}")
    return found


class QuerySet(Kind):
    """Query states (Q, C), zeros behind the count. Features cannot be moved in closed form."""

    axes: tuple[str, ...] = ("Q", "C")
    codecs: tuple[Codec, ...] = VALUE_CODECS
    padded = True

    def codec(self, tap: TapInfo, region: Region) -> Codec:
        return "float16"

    def bev_alignment(self, tap: TapInfo, augment: AugmentConfig) -> Alignment:
        """Return `approximate`: a feature that encodes a heading would itself turn."""
        return "approximate" if moves_bev(augment) else "exact"

    def scales(self, tap: TapInfo) -> int:
        return tap.shape[1]


class QueryLayers(QuerySet):
    """Query states layer by layer (L, Q, C); the count is of queries, the same in each layer."""

    axes: tuple[str, ...] = ("L", "Q", "C")

    def scales(self, tap: TapInfo) -> int:
        return tap.shape[0] * tap.shape[2]


class TrackIds(Kind):
    """Which track each query follows (Q,), int64; negative for none, zeros behind the count.

    A name, not a number: stored as it is, and nothing moves it.
    """

    axes: tuple[str, ...] = ("Q",)
    codecs: tuple[Codec, ...] = ("int64",)
    padded = True

    def problems(self, tap: TapInfo, values: Tensor) -> list[str]:
        if values.dtype == torch.int64:
            return super().problems(tap, values.double())
        found = super().problems(tap, values)
        return [*found, f"{tap.name}: expected whole numbers, int64, got {values.dtype}"]

    def codec(self, tap: TapInfo, region: Region) -> Codec:
        return "int64"

    def bev_alignment(self, tap: TapInfo, augment: AugmentConfig) -> Alignment:
        return "exact"


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


class QueryPoints(Kind):
    """Points or offsets of queries (Q, 3 points): x, y, z of each, canonical frame.

    References are shares of the detector's range (0 to 1, moved ones may leave it), offsets are
    metres. Unlike the queries' states they move in closed form; and a rounded point may fall into
    another cell, so they are stored as they are.
    """

    axes: tuple[str, ...] = ("Q", "3 points")
    codecs: tuple[Codec, ...] = ("float32",)
    padded = True

    def describe_problems(self, tap: TapInfo) -> list[str]:
        found = super().describe_problems(tap)
        if not found and tap.shape[1] % POINT_COLUMNS:
            found.append(
                f"{tap.name}: a point has {POINT_COLUMNS} columns (x, y, z), got "
                f"{tap.shape[1]} in all"
            )
        return found

    def codec(self, tap: TapInfo, region: Region) -> Codec:
        return "float32"

    def bev_alignment(self, tap: TapInfo, augment: AugmentConfig) -> Alignment:
        return "exact"
