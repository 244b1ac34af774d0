"""Points that go with queries: where they stand, and how far from there they look."""

from bevcask.config import AugmentConfig
from bevcask.targets.kinds import Kind
from bevcask.targets.spec import Alignment, Codec, Region, TapInfo

POINT_COLUMNS = 3  # x, y, z


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
