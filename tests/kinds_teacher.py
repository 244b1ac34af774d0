"""A teacher of somebody else's package that says what no detector of ours does, and who asks."""

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from bevcask.config import Config
from bevcask.detectors.base import Batch, Inputs
from bevcask.geometry import CLASSES, Grid
from bevcask.methods.base import Method, Pair
from bevcask.targets.moments import channel_moments
from bevcask.targets.spec import Region, TapInfo
from bevcask.teachers.base import Teacher

GRID = Grid.square(25.6, 3.2)
NUM_VOXELS = 3, *GRID.shape_YX
VOXEL_CLASSES = ("road", "vehicle", "free")
HEIGHTS = (-1.0, 0.5, 2.0)

TAPS = {
    tap.name: tap
    for tap in (
        TapInfo(
            "occ.classes", "occupancy", (3, *NUM_VOXELS), GRID, True, VOXEL_CLASSES, bins=HEIGHTS
        ),
        TapInfo("occ.seen", "occupancy", (1, *NUM_VOXELS), GRID, True, bins=HEIGHTS),
        TapInfo(
            "occ.labels", "voxel_labels", (1, *NUM_VOXELS), GRID, True, VOXEL_CLASSES, bins=HEIGHTS
        ),
        TapInfo("map.lines", "polylines", (6, 2 * 4 + 2), classes=("divider", "crossing")),
        TapInfo("bev.labels", "dense_bev", (1, *GRID.shape_YX), GRID, True, given=("labels",)),
        TapInfo("head.boxes", "box_set", (2, 11), classes=CLASSES, given=("labels", "future")),
        TapInfo("query.layers", "query_layers", (3, 6, 5)),
        TapInfo("query.centres", "query_points", (6, 3)),
        TapInfo("query.tracks", "track_ids", (6,)),
        TapInfo("occ.moments", "channel_moments", (2, 3), GRID),
    )
}


_SETS = ("map.lines", "query.layers", "query.centres", "query.tracks")


def said_of(token: str) -> dict[str, Tensor]:
    """Return what it says of a frame, (*tap.shape) and `TAP.count`, distinct in every index."""
    generator = torch.Generator().manual_seed(int(token[:8], 16))
    classes = torch.rand((3, *NUM_VOXELS), generator=generator).softmax(0)
    count = 2 + int(token[-1], 16) % 4
    valid = (torch.arange(6) < count)[:, None]
    lines = torch.zeros(6, 10)
    lines[:count, :8] = 20 * torch.randn((count, 8), generator=generator)
    lines[:count, 8] = torch.linspace(0.9, 0.1, count)
    lines[:count, 9] = torch.arange(count) % 2
    return {
        "occ.classes": classes,
        "bev.labels": classes[:1, 0],
        "head.boxes": torch.zeros(2, 11),
        "head.boxes.count": torch.tensor(0),
        "occ.moments": channel_moments(classes[None])[0],
        "occ.seen": (torch.rand((1, *NUM_VOXELS), generator=generator) > 0.3).float(),
        "occ.labels": classes.argmax(0, keepdim=True).float(),
        "map.lines": lines,
        "query.layers": torch.randn((3, 6, 5), generator=generator) * valid,
        "query.centres": 20 * torch.randn((6, 3), generator=generator) * valid,
        "query.tracks": (2**53 + torch.arange(6)) * valid[:, 0],
        **{f"{name}.count": torch.tensor(count) for name in _SETS},
    }


class Stub(Teacher):
    """Reads nothing and says `said_of`."""

    class Config(Config):
        pass

    def taps(self) -> Mapping[str, TapInfo]:
        return TAPS

    def load(self, device: torch.device | str) -> None: ...

    def fingerprint(self) -> dict[str, Any]:
        return {"type": "stub", "weights": "none"}

    def inputs(self) -> Inputs:
        return Inputs()

    def __call__(self, batch: Batch, names: Collection[str]) -> dict[str, Tensor]:
        frames = [said_of(token) for token in batch.tokens]
        return {
            name: torch.stack([frame[name] for frame in frames])
            for name in frames[0]
            if name.removesuffix(".count") in names
        }


class WantsAll(Method):
    """Asks for all of it and teaches nothing."""

    class Config(Config):
        pass

    def __init__(self, config: Any) -> None:
        super().__init__()

    def pairs(self) -> list[Pair]:
        regions = {"occ.classes": Region("foreground", margin=1.0)}
        return [
            Pair(name, None, name, tap.kind, regions.get(name, Region()))
            for name, tap in TAPS.items()
        ]

    def forward(self, *_: Any) -> dict[str, Tensor]:
        return {}
