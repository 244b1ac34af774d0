"""A small cache whose values say where they are: frame, channel, y, x show in the number."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from bevcask.cache import Cache, Encoded, FrameTable, Writer, concatenate, create, encode
from bevcask.cache.layout import arrays_of, commit_bytes
from bevcask.geometry import Grid
from bevcask.targets.spec import Region, TapInfo, TargetSpec

GRID = Grid(-4.0, -3.0, 1.0, 8, 6)
SPECS = (
    TargetSpec(TapInfo("bev.neck", "dense_bev", (3, 6, 8), GRID, nonnegative=True), "uint8"),
    TargetSpec(TapInfo("bev.signed", "dense_bev", (3, 6, 8), GRID), "int8"),
    TargetSpec(TapInfo("bev.silent", "dense_bev", (2, 6, 8), GRID, nonnegative=True), "uint8"),
    TargetSpec(
        TapInfo("head.heatmap", "heatmap", (2, 6, 8), GRID, nonnegative=True),
        "uint8",
        Region("confident", 0.77),
    ),
    TargetSpec(TapInfo("head.boxes", "box_set", (5, 11)), "float32"),
    TargetSpec(TapInfo("query.last", "query_set", (4, 3)), "int8"),
    TargetSpec(TapInfo("image.fpn0", "image_feature", (2, 3, 4, 5)), "float16"),
)
FINGERPRINT = {
    "teacher": {"weights": "aa" * 32, "config": {"channels": [64, 128], "cell": 0.2}},
    "dataset": {"calibration": {"CAM_FRONT": "bb" * 32, "LIDAR_TOP": "cc" * 32}},
}
PLAN = {"total_bytes": 1234}


def frame_table(num_frames: tuple[int, ...] = (3, 2, 1)) -> FrameTable:
    """Scenes of the given lengths; with two rows a shard most of them need a pad row."""
    scenes = [f"scene-{i}" for i, num in enumerate(num_frames) for _ in range(num)]
    total = len(scenes)
    poses = np.tile(np.eye(4), (total, 1, 1))
    poses[:, 0, 3] = np.arange(total)
    tokens = [f"{0xABC0 + i:032x}" for i in range(total)]
    return FrameTable(tokens, scenes, 1000.5 + np.arange(total), poses)


def truth(spec: TargetSpec, frame: int) -> torch.Tensor:
    """What the teacher says about a frame: distinct in every index."""
    shape = spec.tap.shape
    if spec.name == "bev.silent":
        return torch.zeros(shape)
    if spec.name == "head.boxes":
        rows, columns = torch.meshgrid(torch.arange(5.0), torch.arange(11.0), indexing="ij")
        boxes = (1 + rows * 11 + columns) * (1 + frame / 8)
        boxes[:, 9], boxes[:, 10] = 1 / (1 + boxes[:, 0]), rows[:, 0] + frame
        return boxes
    cells = torch.arange(1, 1 + int(np.prod(shape)), dtype=torch.float32).reshape(shape)
    values = cells * (1 + frame / 8)
    if spec.name == "head.heatmap":
        return values / values.max()
    return values if spec.tap.nonnegative else values * (-1.0) ** cells


def count_of(frame: int) -> int:
    return 1 + frame % 4


class Filled(Protocol):
    """What says which frames of a cache are wanted: a writer, a repairer, one that waits."""

    @property
    def cache(self) -> Cache: ...

    @property
    def specs(self) -> Sequence[TargetSpec]: ...

    @property
    def tokens(self) -> Callable[[int], list[str]]: ...


def encoded(writer: Filled, shard: int) -> dict[str, Encoded[Any]]:
    """Encode a shard's frames as an extraction does."""
    tokens = writer.tokens(shard)
    numbers = [list(writer.cache.frames.tokens).index(token) for token in tokens]
    found: dict[str, Encoded[Any]] = {}
    for name, spec in ((spec.name, spec) for spec in writer.specs):
        values = torch.stack([truth(spec, number) for number in numbers])
        sets = spec.tap.kind.endswith("_set")
        count = torch.tensor([count_of(number) for number in numbers]) if sets else None
        found[name] = encode(values, spec, count=count, tokens=tokens)
    return found


def begin(url: str | Path, **changes: Any) -> Writer:
    """Create (or resume) the example cache; keywords replace arguments of `create`."""
    arguments: dict[str, Any] = {
        "specs": SPECS,
        "frames": frame_table(),
        "shard_rows": 2,
        "fingerprint": FINGERPRINT,
        "plan": PLAN,
        "provenance": {"host": "here"},
        **changes,
    }
    return create(str(url), arguments.pop("specs"), arguments.pop("frames"), **arguments)


def commit_folder(url: str | Path) -> Path:
    """Return where the example cache (or the addition under way in one) commits its shards."""
    folders = [path for path in (Path(url) / "commit").iterdir() if path.is_dir()]
    assert len(folders) == 1
    return folders[0]


def damage_commit(url: str | Path, shard: int) -> Path:
    """Flip a bit of a shard's row in the commit of the sealed example cache; return its file."""
    path = commit_folder(url) / "c.0.0.0"
    data = bytearray(path.read_bytes())
    num_arrays = sum(len(arrays_of(spec, 8)) for spec in SPECS)
    data[shard * (commit_bytes(2) * num_arrays + 4) + 5] ^= 1
    path.write_bytes(data)
    return path


def build(url: str | Path, **changes: Any) -> str:
    """Write and seal the example cache."""
    with begin(url, **changes) as writer:
        for shard in writer.missing():
            writer.write(shard, encoded(writer, shard))
    writer.seal()
    return str(url)


def rewrite(
    cache: Cache, url: Path, rows_of: Callable[[int], list[dict[str, Encoded[Any]]]]
) -> Path:
    """Write a cache again, shard s with what `rows_of(s)` says: every digest is in order."""
    writer = begin(
        url,
        specs=list(cache.specs.values()),
        frames=cache.frames,
        shard_rows=cache.layout.shard_rows,
        fingerprint=cache.fingerprint,
        plan=cache.plan,
    )
    for shard in writer.missing():
        rows = rows_of(shard)
        whole = {name: concatenate([_batched(row[name]) for row in rows]) for name in cache.specs}
        writer.write(shard, whole)
    writer.seal()
    return url


def rows_in(cache: Cache, shard: int) -> list[dict[str, Encoded[Any]]]:
    """Return what a cache holds of the frames of a shard."""
    return [cache.read(cache.frames.tokens[number]) for number in cache.layout.frames_of(shard)]


def _batched(sample: Encoded[Any]) -> Encoded[Any]:
    parts = (sample.values, sample.scale, sample.region, sample.count)
    return Encoded(*(None if part is None else np.asarray(part)[None] for part in parts))
