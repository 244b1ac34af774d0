"""A small cache with known numbers, for those who look at caches."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from bevcask.cache import Cache, FrameTable, create, encode, open_cache
from bevcask.geometry import CLASSES, Grid
from bevcask.targets.spec import TapInfo, TargetSpec

GRID = Grid.square(51.2, 3.2)
SHAPE_YX = GRID.shape_YX
SPECS = (
    TargetSpec(TapInfo("bev.neck", "dense_bev", (4, *SHAPE_YX), GRID, nonnegative=True), "float32"),
    TargetSpec(
        TapInfo(
            "head.heatmap", "heatmap", (10, *SHAPE_YX), GRID, nonnegative=True, classes=CLASSES
        ),
        "uint8",
    ),
    TargetSpec(TapInfo("head.boxes", "box_set", (20, 11), classes=CLASSES), "float32"),
    TargetSpec(TapInfo("query.last", "query_set", (6, 3)), "float16"),
)
FINGERPRINT = {
    "teacher": {"type": "native/centerpoint", "weights": "ab" * 32, "checkpoint": "random, seed 3"}
}
PROVENANCE = {
    "time": "2026-01-02T03:04:05+00:00",
    "host": "workbench",
    "command": "bevcask teacher-extract x.zarr",
    "git": "abc1234",
    "torch": "2.13.0",
}
DEAD_CHANNEL = 2


def frame_table(num_frames: tuple[int, ...] = (3, 2)) -> FrameTable:
    """Scenes of the given lengths; with two rows a shard the first needs a pad row."""
    scenes = [f"scene-{i}" for i, num in enumerate(num_frames) for _ in range(num)]
    poses = np.tile(np.eye(4), (len(scenes), 1, 1))
    tokens = [f"{0xABC0 + i:032x}" for i in range(len(scenes))]
    return FrameTable(tokens, scenes, 1000.5 + np.arange(len(scenes)), poses)


def truth(frame: int) -> dict[str, tuple[torch.Tensor, int | None]]:
    """Return target name -> (values, count) of a frame."""
    generator = torch.Generator().manual_seed(frame)
    neck = torch.rand((4, *SHAPE_YX), generator=generator) + torch.arange(4.0)[:, None, None]
    neck[DEAD_CHANNEL] = 0.0
    neck[0, : 1 + frame] = 0.0
    heatmap = torch.rand((10, *SHAPE_YX), generator=generator) * 0.5
    boxes = torch.zeros((20, 11))
    num_boxes = min(2 + frame, 20)
    boxes[:num_boxes, 0] = torch.arange(num_boxes) * 6.0 - 12
    boxes[:num_boxes, 1] = 15.0
    boxes[:num_boxes, 3:6] = torch.tensor([4.5, 2.0, 1.6])
    boxes[:num_boxes, 9] = torch.linspace(0.9, 0.1, num_boxes)
    boxes[:num_boxes, 10] = torch.arange(num_boxes) % 3
    queries = torch.randn((6, 3), generator=generator)
    num_queries = min(1 + frame, 6)
    queries[num_queries:] = 0
    return {
        "bev.neck": (neck, None),
        "head.heatmap": (heatmap, None),
        "head.boxes": (boxes, num_boxes),
        "query.last": (queries, num_queries),
    }


def build(
    url: Path,
    frames: FrameTable | None = None,
    dataset: dict[str, Any] | None = None,
    num_shards: int | None = None,
) -> Cache:
    """Write a cache; `num_shards` stops early and leaves it unsealed."""
    frames = frames or frame_table()
    writer = create(
        str(url),
        SPECS,
        frames,
        shard_rows=2,
        fingerprint=FINGERPRINT,
        plan={"dataset": dataset or {"root": "gone", "version": "v1.0-synthetic", "split": "all"}},
        provenance=PROVENANCE,
    )
    for shard in writer.missing()[:num_shards]:
        numbers = [list(frames.tokens).index(token) for token in writer.tokens(shard)]
        said = [truth(number) for number in numbers]
        writer.write(
            shard,
            {
                spec.name: encode(
                    torch.stack([frame[spec.name][0] for frame in said]),
                    spec,
                    count=torch.tensor([frame[spec.name][1] for frame in said])
                    if spec.tap.kind.endswith("_set")
                    else None,
                )
                for spec in SPECS
            },
        )
    if num_shards is None:
        writer.seal()
    return open_cache(str(url), allow_unsealed=True)
